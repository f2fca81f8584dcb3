"""parity_digits: odd or even by any digit of the right parity, on top of an old task.

Shifts    the question: experience 0 teaches two tasks jointly, the old one (ten classes) and
          parity; experience 1 teaches parity alone, by demonstrations or by rewards. Both tasks
          share ten outputs; an input of -1 (old) or +1 (parity) tells them apart
Answers   old task: its class. parity: every digit of the right parity, so that five answers are
          right and demonstrations choose among them
Source    the form is ParityMNIST of RL's Razor (Shenfeld et al. 2025, arXiv:2509.04259):
          Fashion-MNIST beside MNIST, 500 images of each for experience 0. Here the digits are
          scikit-learn's (1,797 of 8x8 pixels, enlarged to `size`: nothing is added by that), and
          the old task, unless `old` names ten classes of images, is other digits of that set under
          one permutation of their pixels with their true labels. Both tasks are tested on the same
          held-out digits, permuted or not. Experience 1 has what is left, under 300 rows, not
          60,000, so that it takes more epochs than the paper's one or two
Shapes    x float32 [size^2 + 1]: grey values in [0, 1], then the task; y int64 in [0, 10); answer
          int64: 0 to 9 that class, 10 even, 11 odd
Splits    stratified by digit, fixed by seed; no image is in two splits. Labels y of parity: random
          right ones in experience 0, `demonstrations` in experience 1, the digit itself elsewhere
Gives     boundaries, stream_length; jointly solvable
Parameters
    demonstrations  what experience 1 shows: sft1 (0 for even, 1 for odd), sft2 (0 or 4, 1 or 5),
                    uniform (any right digit), drawn once; see the strategy oracle_sft for those of
                    the model itself
    answers         which answers to parity are right: any of the right parity, or one, 0 and 1,
                    which makes imitation and rewards have the same optimum (the null control)
    phase           both experiences, the pretraining or the parity one alone (the old task is
                    then held out: start it with model.from=RUN model.keep_head=true)
    old             folder or .zip of ten class folders as the old task, e.g. Fashion-MNIST
    size            side of the images of both tasks [pixels]
    n_pretraining   images of each task in experience 0 [images]
    val             share of the training images held out for validation [1]
    test            share of the digits held out for testing [1]
    seed            of splits, permutation and labels; follows the run's seed
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl.config import Range
from cl.data import Table
from cl.errors import BadValue, DataError
from cl.images import decode, scan
from cl.registry import register
from cl.seeding import generator
from cl.stream import Eval, Experience, Stream, hold_out
from streams._digits import digits

NAMES = [str(d) for d in range(10)]
EVEN, ODD = 10, 11  # kinds of truth beside the ten classes
SHOWN = {
    "sft1": ([0], [1]),
    "sft2": ([0, 4], [1, 5]),
    "uniform": ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9]),
}
OLD_TEST = 100  # test images of each class of an old task from a folder, at most
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue (ITU-R BT.601)
Split = dict[str, tuple[Tensor, Tensor]]  # {split: (images [n, size^2], labels [n])}


@register
def parity_digits(
    *,
    demonstrations: Literal["sft1", "sft2", "uniform"] = "sft1",
    answers: Literal["any", "one"] = "any",
    phase: Literal["both", "pretraining", "parity"] = "both",
    old: Path | None = None,
    size: Annotated[int, Range(min=4, max=64)] = 28,
    n_pretraining: Annotated[int, Range(min=10)] = 500,
    val: Annotated[float, Range(above=0, below=1)] = 0.1,
    test: Annotated[float, Range(above=0, below=1)] = 0.2,
    seed: int = 0,
) -> Stream:
    """An old task and parity, then parity alone."""
    if answers == "one" and demonstrations != "sft1":
        raise BadValue(f"stream.answers=one takes demonstrations=sft1, not {demonstrations}")
    parity, spare = _parity(size, n_pretraining, val, test, seed, apart=old is None)
    if old is None:
        before = _permuted(spare | {k: parity[k] for k in ("val", "test")}, seed)
    else:
        before = _folder(Path(old), size, n_pretraining, len(parity["val"][1]), test, seed)
    pieces = [("old", k, *before[k], before[k][1], -1) for k in ("pretraining", "val", "test")]
    random, shown = SHOWN["uniform"], SHOWN[demonstrations]
    choices = {"pretraining": random, "finetuning": shown}
    for k, (x, digit) in parity.items():
        own = digit if k in ("val", "test") and answers == "any" else None
        y = _drawn(digit, choices.get(k, SHOWN["sft1"]), k, seed) if own is None else own
        pieces.append(("parity", k, x, y, EVEN + digit % 2, 1))
    accepts = torch.zeros(12, 10, dtype=torch.bool)
    accepts[range(10), range(10)] = True
    right = SHOWN["uniform" if answers == "any" else "sft1"]
    for kind, those in zip((EVEN, ODD), right, strict=True):
        accepts[kind, those] = True
    return _stream(_pool(pieces), phase, accepts, size)


def _parity(size, n, val, test, seed, *, apart: bool) -> tuple[Split, Split]:
    """The digits of parity by split, and, where the old task is made of others, those: n."""
    data = digits(test, seed)
    train, held = hold_out_of(data.y, data.train, val, seed)
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


def hold_out_of(y: Tensor, rows: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split given rows into (kept, held), `share` of each class held."""
    kept, held = hold_out(y[rows], share, seed, NAMES)
    return rows[kept], rows[held]


def _permuted(parts: Split, seed: int) -> Split:
    """The images under one permutation of their pixels."""
    n = next(iter(parts.values()))[0].shape[1]
    order = torch.randperm(n, generator=generator(seed, "permutation"))
    return {name: (x[:, order], y) for name, (x, y) in parts.items()}


def _folder(path: Path, size: int, n: int, n_val: int, test: float, seed: int) -> Split:
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


def _drawn(digit: Tensor, choices: tuple[list[int], list[int]], name: str, seed: int) -> Tensor:
    """A digit of the right parity for each, uniform among those of `choices` (even, odd)."""
    allowed = torch.tensor(choices)  # [2, k]
    pick = torch.randint(allowed.shape[1], digit.shape, generator=generator(seed, f"labels/{name}"))
    return allowed[digit % 2, pick]


def _pool(pieces: list[tuple]) -> dict[str, Table]:
    """{"task split": view} of one pool of all rows."""
    columns: dict[str, list[Tensor]] = {"x": [], "y": [], "answer": []}
    views, start = {}, 0
    for task, split, x, y, answer, sign in pieces:
        columns["x"].append(F.pad(x, (0, 1), value=float(sign)))
        columns["y"].append(y)
        columns["answer"].append(answer)
        views[f"{task} {split}"] = torch.arange(start, start + len(y))
        start += len(y)
    pool = {name: torch.cat(parts) for name, parts in columns.items()}
    return {name: Table(pool, index) for name, index in views.items()}


def _stream(part: dict[str, Table], phase: str, accepts: Tensor, size: int) -> Stream:
    """Experiences and evals of the phase that is asked for."""
    both = Table.concat([part["old pretraining"], part["parity pretraining"]])
    trained = {"pretraining": (both, None), "parity": (part["parity finetuning"], "parity")}
    chosen = [name for name in trained if phase in ("both", name)]
    experiences = []
    for k, name in enumerate(chosen):
        table, task = trained[name]
        val = part["parity val"] if task else Table.concat([part["old val"], part["parity val"]])
        classes = tuple(table.column("y").unique().tolist())
        experiences.append(Experience(k, f"{k:02d}_{name}", classes, table, val))
    evals = []
    for task in ("old", "parity"):
        taught = tuple(k for k, n in enumerate(chosen) if task == "parity" or n == "pretraining")
        test, kind = part[f"{task} test"], "stream" if taught else "held_out"
        classes = tuple(test.column("y").unique().tolist())
        chance = float(accepts.double().mean(1)[test.column("answer")].mean())
        evals.append(Eval(task, classes, test, part[f"{task} val"], taught, kind, chance))
    return Stream(
        "parity_digits",
        "vision",
        experiences,
        evals,
        (size * size + 1,),
        NAMES,
        accepts=accepts,
        defaults={
            "model": "mlp",
            "model.hidden": [512, 256],
            "train.optimizer": "adamw",
            "train.lr": 1e-3,
            "train.weight_decay": 0.01,
            "train.batch_size": 64,
            "train.epochs": 50,
            "train.reset_optimizer": True,
        },
    )
