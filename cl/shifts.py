"""Domain shifts: the same classes under transformed inputs, one transformation per experience."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cl.data import Table
from cl.errors import BadValue
from cl.seeding import generator
from cl.stream import Eval, Experience, Stream

MOST = {"rotate": 90.0, "noise": 0.5, "brightness": 0.5}  # degrees, shares of the value range


def shift(stream: Stream, kind: str, domains: int, most: float | None, seed: int) -> Stream:
    """Domain-incremental: every experience holds all classes, domain k in its own guise.

    kind: `permute` pixels (an own permutation each, Goodfellow et al. 2014, arXiv:1312.6211),
    `rotate` by `most` * k / (domains - 1) degrees (GEM, arXiv:1706.08840), `noise` of that
    standard deviation, `brightness` raised by that; the last two in shares of the value range.
    Domain 0 is the data as it is. Inputs are kept once per domain. Raises BadValue.
    """
    most = _most(stream, kind, most)
    parts = _parts(stream)
    x = torch.cat([table.column("x") for table in parts.values()])
    y = torch.cat([table.column("y") for table in parts.values()])
    amounts = [most * k / max(1, domains - 1) for k in range(domains)]
    guises = [
        _guise(x, kind, amount, generator(seed, f"shift/{k}"), k)
        for k, amount in enumerate(amounts)
    ]
    pool = {"x": torch.cat(guises), "y": y.repeat(domains)}
    if stream.accepts is not None:
        answer = torch.cat([table.column("answer") for table in parts.values()])
        pool["answer"] = answer.repeat(domains)
    classes = tuple(range(stream.n_classes))
    experiences, evals = [], []
    for k in range(domains):
        views, start = {}, k * len(y)
        for name, table in parts.items():
            views[name] = Table(pool, torch.arange(start, start + len(table)))
            start += len(table)
        name = f"{k:02d}_{kind}{k}"
        val = views.get("val")
        experiences.append(Experience(k, name, classes, views["train"], val))
        chance = stream.chance(parts["test"], classes)
        evals.append(Eval(name, classes, views["test"], val, (k,), chance=chance))
    return replace(stream, experiences=experiences, evals=evals)


def _most(stream: Stream, kind: str, most: float | None) -> float:
    """How far the last domain goes. Raises BadValue where that has no meaning."""
    if most is not None and kind == "permute":
        raise BadValue("stream.shift_max has no meaning with stream.shift=permute")
    if kind == "rotate" and len(stream.input_shape) != 3:
        raise BadValue(
            f"stream.shift=rotate needs images [C, H, W], inputs are {list(stream.input_shape)}"
        )
    return MOST.get(kind, 0.0) if most is None else most


def _parts(stream: Stream) -> dict[str, Table]:
    """All training, test and validation rows of a stream."""
    parts = {
        "train": Table.concat([e.train for e in stream.experiences]),
        "test": Table.concat([ev.test for ev in stream.evals]),
    }
    if stream.experiences[0].val is not None:
        parts["val"] = Table.concat([e.val for e in stream.experiences])
    return parts


def _guise(x: Tensor, kind: str, amount: float, rng: torch.Generator, k: int) -> Tensor:
    """x [N, ...] in domain k, dtype and range kept."""
    if k == 0:
        return x
    if kind == "permute":
        spatial = x.flatten(2) if x.dim() == 4 else x.flatten(1)
        return spatial[..., torch.randperm(spatial.shape[-1], generator=rng)].view_as(x)
    if kind == "rotate":
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import rotate

        return rotate(x, amount, interpolation=InterpolationMode.BILINEAR)
    low, high = (0.0, 255.0) if x.dtype == torch.uint8 else (x.min().item(), x.max().item())
    moved = x.float() + amount * (high - low) * (
        torch.randn(x.shape, generator=rng).to(x.device) if kind == "noise" else 1.0
    )
    moved = moved.clamp(low, high)
    return moved.round().to(x.dtype) if x.dtype == torch.uint8 else moved
