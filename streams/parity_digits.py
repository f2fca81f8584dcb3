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
from cl.errors import BadValue
from cl.registry import register
from cl.seeding import generator
from cl.stream import Eval, Experience, Stream
from streams._parity import from_folder, parity, permuted

NAMES = [str(d) for d in range(10)]
EVEN, ODD = 10, 11  # kinds of truth beside the ten classes
SHOWN = {
    "sft1": ([0], [1]),
    "sft2": ([0, 4], [1, 5]),
    "uniform": ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9]),
}


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
    own, spare = parity(size, n_pretraining, val, test, seed, apart=old is None)
    if old is None:
        before = permuted(spare | {k: own[k] for k in ("val", "test")}, seed)
    else:
        before = from_folder(Path(old), size, n_pretraining, len(own["val"][1]), test, seed)
    pieces = [("old", k, *before[k], before[k][1], -1) for k in ("pretraining", "val", "test")]
    random, shown = SHOWN["uniform"], SHOWN[demonstrations]
    choices = {"pretraining": random, "finetuning": shown}
    for k, (x, digit) in own.items():
        y = digit
        if k in choices or answers == "one":
            y = _drawn(digit, choices.get(k, shown), k, seed)
        pieces.append(("parity", k, x, y, EVEN + digit % 2, 1))
    accepts = torch.zeros(12, 10, dtype=torch.bool)
    accepts[range(10), range(10)] = True
    right = SHOWN["uniform" if answers == "any" else "sft1"]
    for kind, those in zip((EVEN, ODD), right, strict=True):
        accepts[kind, those] = True
    return _stream(_pool(pieces), phase, accepts, size)


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
        # alone it starts from a model that has all ten outputs
        answered = table.column("y").unique() if phase != "parity" else torch.arange(10)
        classes = tuple(answered.tolist())
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
