"""Checkpoints: everything a run needs to go on, as safetensors and JSON, never as code.

`<updates>-<experience>/` holds `model.safetensors`, `state.safetensors`, `state.json` and
`checksums.json`. A checkpoint is written aside, synced and renamed, so it is there whole or not
at all; the last two are kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cl.errors import ContractError, DataError
from cl.models import rebuild

FORMAT = 1
KEPT = 2


def pack(value: object, tensors: dict[str, Tensor], path: str) -> object:
    """`value` as JSON; its tensors go to `tensors`. Raises ContractError naming `path`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path, "device": value.device.type}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(np.array(value, copy=True))
        return {"ndarray": path}
    if isinstance(value, np.generic):
        return pack(value.item(), tensors, path)
    if isinstance(value, torch.Generator):
        tensors[path] = value.get_state()
        return {"generator": path}
    if isinstance(value, nn.Module):
        tensors |= {f"{path}.{name}": t for name, t in _on_cpu(value.state_dict()).items()}
        return {"module": path, "architecture": getattr(value, "architecture", None)}
    for kind in (list, tuple, set):
        if type(value) is kind:
            items = sorted(value, key=repr) if kind is set else value
            packed = [pack(item, tensors, f"{path}.{k}") for k, item in enumerate(items)]
            return {kind.__name__: packed}
    if type(value) is dict:
        pairs = enumerate(value.items())
        return {
            "dict": [
                [pack(key, tensors, f"{path}.k{k}"), pack(item, tensors, f"{path}.{k}")]
                for k, (key, item) in pairs
            ]
        }
    raise ContractError(
        f"{path} holds a {type(value).__name__}, which a checkpoint can't hold; allowed: None, "
        "bool, int, float, str, tensor, numpy array, torch.Generator, a model from "
        "loop.snapshot(), and list, tuple, set, dict of these"
    )


def unpack(packed: object, tensors: dict[str, Tensor], device: torch.device, like=None) -> object:
    """What `pack` was given. `like` is the model that an unnamed module is a copy of."""
    if not isinstance(packed, dict):
        return packed
    (tag, content), *_ = packed.items()
    if tag == "float":
        return float(content)
    if tag == "tensor":
        value = tensors[content]
        return value if packed["device"] == "cpu" else value.to(device)
    if tag == "ndarray":
        return tensors[content].numpy()
    if tag == "generator":
        made = torch.Generator()
        made.set_state(tensors[content])
        return made
    if tag == "module":
        return _module(packed, tensors, device, like)
    if tag == "dict":
        return {
            unpack(k, tensors, device, like): unpack(v, tensors, device, like) for k, v in content
        }
    items = [unpack(item, tensors, device, like) for item in content]
    return {"list": list, "tuple": tuple, "set": set}[tag](items)


def save(folder: Path, name: str, model: nn.Module, state: dict) -> Path:
    """Write the checkpoint `folder/name`, then drop all but the last two."""
    tensors: dict[str, Tensor] = {}
    document = {"format": FORMAT, "state": pack(state, tensors, "state")}
    document["model"] = {
        "architecture": getattr(model, "architecture", None),
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
    }
    aside = folder / f".{name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    weights = _on_cpu(model.state_dict())
    save_file(weights, aside / "model.safetensors")
    save_file(tensors, aside / "state.safetensors")
    (aside / "state.json").write_text(json.dumps(document), encoding="utf-8")
    sums = {path.name: _checksum(path) for path in sorted(aside.iterdir())}
    (aside / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in aside.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    target = folder / name
    if target.exists():
        shutil.rmtree(target)
    os.replace(aside, target)
    for old in found(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def found(folder: Path) -> list[Path]:
    """Complete checkpoints in order of age."""
    return sorted(p for p in folder.glob("[0-9]*") if (p / "checksums.json").is_file())


def load(folder: Path, device: torch.device) -> tuple[dict[str, Tensor], dict, dict[str, Tensor]]:
    """(weights, document, tensors) of one checkpoint. Raises DataError if it is damaged."""
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if _checksum(folder / name) != expected:
                raise DataError(
                    f"checkpoint {folder} is damaged: {name} does not match its checksum"
                )
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"checkpoint {folder} can't be read: {error}") from error
    if document.get("format") != FORMAT:
        raise DataError(f"checkpoint {folder} has format {document.get('format')}, known: {FORMAT}")
    weights = load_file(folder / "model.safetensors", device=str(device))
    return weights, document, load_file(folder / "state.safetensors")


def _module(packed: dict, tensors: dict[str, Tensor], device: torch.device, like) -> nn.Module:
    architecture, path = packed["architecture"], packed["module"]
    module = rebuild(architecture) if architecture else copy.deepcopy(like)
    module.load_state_dict({n: tensors[f"{path}.{n}"] for n in module.state_dict()})
    return module.to(device).eval().requires_grad_(False)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
