"""Checkpoints: everything a run needs to go on, as safetensors and JSON, never as code.

`<updates>-<experiences learned>/` holds `model.safetensors`, `state.safetensors`, `state.json` and
`checksums.json`. A checkpoint is written aside, synced and renamed, so it is there whole or not
at all; the last two are kept. One that is dropped is renamed before it is deleted.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cl.errors import ContractError, DataError
from cl.models import rebuild

FORMAT = 2
READ = (1, 2)  # the first one has no places inside an experience
KEPT = 2
FILES = ("model.safetensors", "state.safetensors", "state.json")


def pack(value: object, tensors: dict[str, Tensor], path: str) -> object:
    """`value` as JSON; its tensors go to `tensors`. Raises ContractError naming `path`.

    A tensor, array or generator that is reached twice is stored once and comes back as one.
    """
    return _Packer(tensors).pack(value, path)


class _Packer:
    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.seen: dict[int, tuple[object, dict]] = {}  # the object is kept, so is its id
        self.open: set[int] = set()  # containers being packed

    def pack(self, value: object, path: str) -> object:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if id(value) in self.seen:
            return self.seen[id(value)][1]
        packed = self._leaf(value, path)
        if packed is None:
            packed = self._container(value, path)
        if packed is None:
            raise ContractError(
                f"{path} holds a {_kind(value)}, which a checkpoint can't hold; allowed: None, "
                "bool, int, float, str, tensor, numpy array, torch.Generator, a model from "
                "loop.snapshot(), and list, tuple, set, dict of these"
            )
        return packed

    def _leaf(self, value: object, path: str) -> dict | None:
        if type(value) is Tensor and value.layout == torch.strided and not value.is_complex():
            if value.requires_grad:
                return None
            self.tensors[path] = value.to("cpu", copy=True).contiguous()
            packed = {"tensor": path, "device": value.device.type} | _layout(value)
        elif type(value) is np.ndarray and value.dtype.kind in "biuf" and value.dtype.isnative:
            self.tensors[path] = torch.from_numpy(np.ascontiguousarray(value).copy())
            packed = {"ndarray": path, "shape": list(value.shape)}
            packed |= {"order": "F"} if value.flags.fnc else {}
        elif isinstance(value, torch.Generator):
            self.tensors[path] = value.get_state().clone()
            packed = {"generator": path}
        elif isinstance(value, nn.Module) and getattr(value, "is_snapshot", False):
            named, tied = _on_cpu(value.state_dict())
            self.tensors |= {f"{path}.{name}": tensor for name, tensor in named.items()}
            packed = {"module": path, "architecture": getattr(value, "architecture", None)}
            packed |= {"tied": tied} if tied else {}
        else:
            return None
        self.seen[id(value)] = value, packed
        return packed

    def _container(self, value: object, path: str) -> dict | None:
        kind = type(value)
        if kind not in (list, tuple, set, dict):
            return None
        if id(value) in self.open:
            raise ContractError(f"{path} is a {kind.__name__} that holds itself")
        self.open.add(id(value))
        if kind is dict:
            packed = {
                "dict": [
                    [self.pack(k, f"{path}.k{n}"), self.pack(item, f"{path}.{n}")]
                    for n, (k, item) in enumerate(value.items())
                ]
            }
        else:
            items = sorted(value, key=repr) if kind is set else value
            packed = {kind.__name__: [self.pack(v, f"{path}.{n}") for n, v in enumerate(items)]}
        self.open.remove(id(value))
        return packed


def _layout(value: Tensor) -> dict:
    """How a tensor lies in memory, where not row by row: sums over it depend on that."""
    usual, n = [], 1
    for size in reversed(value.shape):
        usual.insert(0, n)
        n *= max(1, size)
    if value.numel() < 2 or list(value.stride()) == usual:
        return {}
    n = 1  # as far as it has no gaps
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride != n:
            return {}
        n *= size
    return {"stride": list(value.stride())}


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"numpy array of {value.dtype}"
    if isinstance(value, Tensor):
        grad = " that requires grad" if value.requires_grad else ""
        return f"{str(value.dtype).removeprefix('torch.')} {type(value).__name__}{grad}"
    return type(value).__name__


def unpack(packed: object, tensors: dict[str, Tensor], device: torch.device, like=None) -> object:
    """What `pack` was given. `like` is the model that an unnamed module is a copy of."""
    return _Unpacker(tensors, device, like).unpack(packed)


class _Unpacker:
    def __init__(self, tensors: dict[str, Tensor], device: torch.device, like):
        self.tensors, self.device, self.like = tensors, device, like
        self.made: dict[str, object] = {}  # by path: what was one object becomes one again

    def unpack(self, packed: object) -> object:
        if not isinstance(packed, dict):
            return packed
        (tag, content), *_ = packed.items()
        if tag == "float":
            return float(content)
        if tag in ("tensor", "ndarray", "generator", "module"):
            if content not in self.made:
                self.made[content] = getattr(self, f"_{tag}")(packed, content)
            return self.made[content]
        if tag == "dict":
            return {self.unpack(k): self.unpack(v) for k, v in content}
        items = [self.unpack(item) for item in content]
        return {"list": list, "tuple": tuple, "set": set}[tag](items)

    def _tensor(self, packed: dict, path: str) -> Tensor:
        value = self.tensors[path]
        if "stride" in packed:
            laid = torch.empty_strided(value.shape, packed["stride"], dtype=value.dtype)
            value = laid.copy_(value)
        return value if packed["device"] == "cpu" else value.to(self.device)

    def _ndarray(self, packed: dict, path: str) -> np.ndarray:
        value = self.tensors[path].numpy().reshape(packed["shape"])
        return np.asfortranarray(value) if packed.get("order") == "F" else value

    def _generator(self, packed: dict, path: str) -> torch.Generator:
        made = torch.Generator()
        made.set_state(self.tensors[path])
        return made

    def _module(self, packed: dict, path: str) -> nn.Module:
        architecture = packed["architecture"]
        module = rebuild(architecture) if architecture else copy.deepcopy(self.like)
        tied = packed.get("tied", {})
        names = {n: f"{path}.{tied.get(n, n)}" for n in module.state_dict()}
        module.load_state_dict({n: self.tensors[stored] for n, stored in names.items()})
        return as_snapshot(module.to(self.device))


def as_snapshot(module: nn.Module) -> nn.Module:
    """Mark and freeze a model as `loop.snapshot()` returns it."""
    module.is_snapshot = True
    return module.eval().requires_grad_(False)


@dataclass
class Content:
    """What a checkpoint is going to hold, copied: who it was taken from may go on."""

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    document: str


def content(model: nn.Module, state: dict) -> Content:
    """Of a model and a state that `pack` takes. Raises ContractError."""
    tensors: dict[str, Tensor] = {}
    document = {"format": FORMAT, "inside": state.get("inside") is not None}
    document["state"] = pack(state, tensors, "state")
    weights, tied = _on_cpu(model.state_dict())
    document["model"] = {
        "architecture": getattr(model, "architecture", None),
        "tied": tied,
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
    }
    return Content(weights, tensors, json.dumps(document))


def save(folder: Path, name: str, made: Content, beside: Iterable[Path] = ()) -> Path:
    """Write the checkpoint `folder/name`, then drop all but the last two.

    beside: other files that it speaks of, which must be on the disk before it is there.
    """
    tidy(folder)
    aside = folder / f".{name}.{os.getpid()}"
    aside.mkdir(parents=True)
    save_file(made.weights, aside / "model.safetensors")
    save_file(made.tensors, aside / "state.safetensors")
    (aside / "state.json").write_text(made.document, encoding="utf-8")
    sums = {name: _checksum(aside / name) for name in FILES}
    (aside / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
    settle([*aside.iterdir(), aside, *beside])
    target = folder / name
    if target.exists():  # a damaged one, after which another has been gone on from
        drop(target)
    os.replace(aside, target)
    settle([folder])
    for old in found(folder)[:-KEPT]:
        drop(old)
    return target


def found(folder: Path) -> list[Path]:
    """Complete checkpoints in order of age."""
    return sorted(p for p in folder.glob("[0-9]*") if (p / "checksums.json").is_file())


def tidy(folder: Path) -> None:
    """Delete what a killed process has left half written or half deleted."""
    for path in folder.glob(".[0-9]*"):
        shutil.rmtree(path, ignore_errors=True)


def settle(paths: Iterable[Path]) -> None:
    """Have files and folders on the disk; all at once, since each alone waits for the disk."""
    list(_syncing().map(_sync, paths))


@cache
def _syncing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "sync")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def drop(path: Path) -> None:
    """Delete a checkpoint, which is none any more as soon as that begins."""
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    """(weights, document, tensors) of one checkpoint. Raises DataError if it is damaged."""
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        for name in FILES:
            if not isinstance(sums, dict) or _checksum(folder / name) != sums.get(name):
                raise DataError(
                    f"checkpoint {folder} is damaged: {name} does not match its checksum"
                )
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {folder} can't be read: {error}") from error
    if document.get("format") not in READ:
        known = " and ".join(map(str, READ))
        raise DataError(f"checkpoint {folder} has format {document.get('format')}, known: {known}")
    weights = load_file(folder / "model.safetensors", device=str(device))
    tied = document["model"].get("tied", {})  # older checkpoints hold every name
    weights |= {name: weights[same] for name, same in tied.items()}
    return weights, document, load_file(folder / "state.safetensors")


def _on_cpu(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies on the CPU, and {name: name of the same tensor} of those not copied twice."""
    copies, tied = {}, {}
    first: dict[tuple, str] = {}
    for name, t in state.items():
        whole = (t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else name
        if first.setdefault(whole, name) != name:
            tied[name] = first[whole]
        else:
            copies[name] = t.detach().to("cpu", copy=True).contiguous()
    return copies, tied


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
