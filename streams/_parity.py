"""The images of parity_digits: digits in splits, the old task's, as flat grey values."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cl.errors import BadValue, DataError
from cl.images import decode, scan
from cl.seeding import generator
from cl.stream import hold_out
from streams._digits import digits

OLD_TEST = 100  # test images of each class of an old task from a folder, at most
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)
Split = dict[str, tuple[Tensor, Tensor]]  # {split: (images [n, size^2], labels [n])}


def parity(size, n, val, test, seed, *, apart: bool) -> tuple[Split, Split]:
    """The digits of parity by split; apart: and n others, for an old task."""
    data = digits(test, seed)
    train, held = _held(data.y, data.train, val, seed)
    order = train[torch.randperm(len(train), generator=generator(seed, "roles"))]
    least = n * (2 if apart else 1) + 10
    if len(order) < least:
        raise BadValue(
            f"stream.n_pretraining={n} needs {least} training digits, there are {len(order)}; "
            "give fewer, or smaller stream.val and stream.test"
        )
    x = F.interpolate(data.x, (size, size), mode="bilinear", antialias=True).flatten(1)
    ends = {"pretraining": order[:n], "finetuning": order[(2 * n if apart else n) :]}
    rows = ends | {"val": held, "test": data.test}
    spare = {"pretraining": order[n : 2 * n]} if apart else {}
    return tuple({k: (x[r], data.y[r]) for k, r in part.items()} for part in (rows, spare))


def _held(y: Tensor, rows: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split given rows into (kept, held), `share` of each class held."""
    kept, held = hold_out(y[rows], share, seed, list(map(str, range(10))))
    return rows[kept], rows[held]


def permuted(parts: Split, seed: int) -> Split:
    """The images under one permutation of their pixels."""
    n = next(iter(parts.values()))[0].shape[1]
    order = torch.randperm(n, generator=generator(seed, "permutation"))
    return {name: (x[:, order], y) for name, (x, y) in parts.items()}


def from_folder(path: Path, size: int, n: int, n_val: int, test: float, seed: int) -> Split:
    """Ten classes of images as grey values."""
    folder = scan(path)
    if len(folder.classes) != 10:
        raise DataError(f"stream.old={path} must hold 10 classes, it has {len(folder.classes)}")
    y = torch.tensor(folder.labels)
    train, tested = folder.splits()
    if tested is None:
        train, tested = hold_out(y, test, seed, folder.classes)
    rng = generator(seed, "old")
    train = train[torch.randperm(len(train), generator=rng)]
    if len(train) < n + n_val:
        raise DataError(f"stream.old={path} has {len(train)} training images, {n + n_val} needed")
    parts = [tested[y[tested] == c] for c in range(10)]
    some = [p[torch.randperm(len(p), generator=rng)[:OLD_TEST]] for p in parts]
    rows = {"pretraining": train[:n], "val": train[n : n + n_val], "test": torch.cat(some)}
    found = {}
    for name, part in rows.items():
        x = decode(folder, part.tolist(), size).float() / 255  # [n, 1 or 3, size, size]
        weight = GREY if x.shape[1] == 3 else torch.ones(1)
        found[name] = (x * weight[:, None, None]).sum(1).flatten(1), y[part]
    return found
