"""fetril_increment: what one increment of FeTrIL costs, beside PyCIL's FeTrIL and beside naive.

Part 1  seconds per increment on given features: cl's `fetril` with both heads, and PyCIL's
        models/fetril.py as it is (its fc head, 50 epochs, and then its SVM; both are needed for
        what it logs). Accuracy over all classes on held-out features, the same for all
Part 2  seconds per increment on images: cl's `fetril` and cl's `naive`, feature extraction and
        10 epochs of training included, since there the backbone is what costs
Method  one process, contestants take turns, a different one first in every round; the first round
        is a warm-up and not counted. Times are medians over rounds, ratios medians of the ratios
        within a round. Of PyCIL's time its passes over images and its tests during training are
        taken off: its backbone is replaced by one that hands on the given features, nothing else
        is changed, but for num_workers=0: with the 8 of its exps/fetril.json the small case takes
        thirty times as long on two cores. Both start an increment from what they keep of the one
        before; PyCIL's fc head, which goes on from its old weights, has had 20 epochs before.
Source  synthetic features (classes around random means, then ReLU) and images from a fixed seed;
        PyCIL: git clone https://github.com/LAMDA-CL/PyCIL, its folder given as --pycil PATH
"""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _readme import put
from torch import Tensor, nn

from cl.evaluation import InferenceBatch
from cl.loop import Loop
from cl.models import build
from cl.objectives.cross_entropy import CrossEntropy
from cl.seeding import generator, seed_globals
from cl.settings import Eval, Train
from cl.strategy import Strategy
from cl.stream import Labelled, Stream, class_incremental
from strategies.fetril import FeTrIL
from strategies.naive import Naive

SEED = 0
SVM, FC, NAIVE = "cl, svm", "cl, fc", "cl, naive"
PYCIL, PYCIL_FC, PYCIL_SVM = "PyCIL", "PyCIL's fc alone", "PyCIL's SVM alone"
PYCIL_ARGS = {  # its exps/fetril.json, but for the device and the first state's epochs
    "memory_size": 0,
    "convnet_type": "resnet32",
    "device": [torch.device("cpu")],
    "init_epochs": 20,
    "init_lr": 0.1,
    "init_weight_decay": 5e-4,
    "epochs": 50,
    "lr": 0.05,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "num_workers": 0,
}


@dataclass(frozen=True)
class Case:
    """`past` classes are known, `new` ones arrive; rows per class for training and testing."""

    title: str
    past: int
    new: int
    rows: int
    tests: int
    d: int = 64

    @property
    def sizes(self) -> list[int]:
        """Classes of the two experiences."""
        return [self.past, self.new]


FEATURES = (
    Case("50 + 5 classes, 500 rows each, D = 64", 50, 5, 500, 100),
    Case("5 + 1 classes, 1,000 rows each, D = 64", 5, 1, 1000, 200),
)
IMAGES = Case("5 + 1 classes, 500 images 32x32 each, small_cnn", 5, 1, 500, 20)
Outcome = dict[str, tuple[float, float]]  # contestant: (seconds, accuracy)


# -- data ------------------------------------------------------------------------------------------


def stream_of(case: Case, x: Tensor, y: Tensor, tests: Tensor) -> Stream:
    """Two experiences; the rows marked in `tests` [N] are held out."""
    rows, names = torch.arange(len(y)), [str(c) for c in range(case.past + case.new)]
    data = Labelled(x, y, rows[~tests], rows[tests], names)
    kind = {"order": "fixed", "val": 0, "seed": SEED, "normalise": False}
    return class_incremental("increment", data, sizes=case.sizes, **kind)


def labels_of(case: Case) -> tuple[Tensor, Tensor]:
    """Classes int64 [N] and which rows are held out, bool [N]."""
    each = case.rows + case.tests
    y = torch.arange(case.past + case.new).repeat_interleave(each)
    return y, torch.arange(len(y)) % each >= case.rows


def features_of(case: Case, spread: float = 1.6) -> Stream:
    """Features as a ReLU leaves them: around a mean per class, each class with its own spread."""
    rng, (y, tests) = generator(SEED, "features"), labels_of(case)
    n_classes = case.past + case.new
    means = torch.randn(n_classes, case.d, generator=rng)
    scales = spread * (0.75 + 0.5 * torch.rand(n_classes, case.d, generator=rng))
    noise = torch.randn(len(y), case.d, generator=rng)
    return stream_of(case, (means[y] + scales[y] * noise).relu(), y, tests)


def images_of(case: Case) -> Stream:
    """Random images; nothing but time is measured on them."""
    y, tests = labels_of(case)
    return stream_of(case, torch.rand(len(y), 3, 32, 32, generator=generator(SEED, "x")), y, tests)


# -- cl --------------------------------------------------------------------------------------------


class Before(Strategy):
    """Takes the time when an experience begins; must stand first."""

    def __init__(self):
        self.at = 0.0

    def before_train_dataset_adaptation(self, loop):
        """The experience has been set, nothing has been done."""
        self.at = time.perf_counter()


class After(Strategy):
    """Takes the time when an experience is learned; must stand last."""

    def __init__(self):
        self.at = 0.0

    def after_training_exp(self, loop):
        """All others are done."""
        self.at = time.perf_counter()


def ours(strategy: Strategy, stream: Stream, model: str, epochs: int) -> tuple[float, float]:
    """Seconds of the stream's last experience and the accuracy after it."""
    seed_globals(SEED)
    before, after = Before(), After()
    loop = Loop(
        stream=stream,
        strategies=[before, strategy, after],
        model=build(model, stream.input_shape, {}),
        objective=CrossEntropy(),
        train=Train(epochs=epochs, batch_size=128),
        evaluation=Eval(),
        seed=SEED,
        device=torch.device("cpu"),
    )
    loop.run()
    loop.model.eval()
    with torch.no_grad():
        right = [
            (loop.predict(InferenceBatch(e.test.column("x"))).argmax(1) == e.test.column("y"))
            for e in stream.evals
        ]
    return after.at - before.at, torch.cat(right).double().mean().item()


# -- PyCIL -----------------------------------------------------------------------------------------


class Given(nn.Module):
    """A backbone in PyCIL's form whose inputs are features already."""

    def __init__(self, d: int):
        super().__init__()
        self.out_dim = d

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, D] -> [B, D]."""
        return {"features": x}


class Rows(torch.utils.data.Dataset):
    """(position, features, label), as PyCIL's data sets give them."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[int, Tensor, Tensor]:
        return i, self.x[i], self.y[i]


class Manager:
    """What PyCIL's models ask of its DataManager, on a stream's rows."""

    def __init__(self, stream: Stream):
        self.sizes = [len(e.classes) for e in stream.experiences]
        tables = {"train": [e.train for e in stream.experiences]}
        tables["test"] = [e.test for e in stream.evals]
        self.rows = {
            split: [torch.cat([t.column(name) for t in kept]) for name in ("x", "y")]
            for split, kept in tables.items()
        }

    def get_task_size(self, task: int) -> int:
        """Classes that a task brings."""
        return self.sizes[task]

    def get_dataset(self, indices, source, mode, appendent=None, ret_data=False):
        """All rows of the classes `indices`."""
        x, y = self.rows[source]
        kept = torch.isin(y, torch.as_tensor(np.asarray(indices)))
        data = Rows(x[kept], y[kept])
        return (data.x.numpy(), data.y.numpy(), data) if ret_data else data


class Timer:
    """Adds up the seconds spent in methods of one object."""

    def __init__(self, owner, *names: str):
        self.seconds = dict.fromkeys(names, 0.0)
        for name in names:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, method: Callable) -> Callable:
        def call(*args):
            started = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return call


class Theirs:
    """PyCIL's learner after its first state; every increment starts from a copy."""

    def __init__(self, path: Path, stream: Stream, workers: int):
        sys.path.insert(0, str(path))
        learner = importlib.import_module("models.fetril").FeTrIL(dict(PYCIL_ARGS))
        seed_globals(SEED)
        learner._network.convnet = Given(stream.input_shape[0])
        self.manager, self.learner = Manager(stream), learner
        with quiet():
            learner.incremental_train(self.manager)
            learner.after_task()
        learner.args["num_workers"] = workers

    def increment(self) -> Outcome:
        """Seconds and accuracy of the whole increment and of its two heads."""
        learner = copy.deepcopy(self.learner)
        off = Timer(learner, "_extract_vectors", "_compute_accuracy")
        parts = Timer(learner, "_train_function", "_train_svm")
        started = time.perf_counter()
        with quiet():
            learner.incremental_train(self.manager)
        whole = time.perf_counter() - started - sum(off.seconds.values())
        x, y = self.manager.rows["test"]
        with torch.no_grad():
            fc = (learner._network.fc(x)["logits"].argmax(1) == y).double().mean().item()
        train = parts.seconds["_train_function"] - off.seconds["_compute_accuracy"]
        svm = learner._svm_accs[-1] / 100
        parts = {PYCIL_FC: (train, fc), PYCIL_SVM: (parts.seconds["_train_svm"], svm)}
        return {PYCIL: (whole, fc), **parts}


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and warnings about pinned memory."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- measuring and output --------------------------------------------------------------------------


def rounds_of(makers: list[Callable[[], Outcome]], rounds: int) -> list[Outcome]:
    """What each contestant says in every round that counts."""
    outcomes = []
    for turn in range(rounds + 1):
        shift = turn % len(makers)
        outcome = {}
        for make in makers[shift:] + makers[:shift]:
            outcome |= make()
        outcomes.append(outcome)
    return outcomes[1:]


def rows_of(case: Case, outcomes: list[Outcome], names: list[str], accuracy: bool) -> list[list]:
    """Lines of the table, ratios to the first of `names`."""
    lines = []
    for name in names:
        ratios = [outcome[names[0]][0] / outcome[name][0] for outcome in outcomes]
        seconds = median(outcome[name][0] for outcome in outcomes)
        lines.append(
            [
                case.title,
                name,
                f"{seconds:.3f}",
                f"{median(ratios):.1f}",
                f"[{min(ratios):.1f}, {max(ratios):.1f}]",
                names[0],
                f"{median(outcome[name][1] for outcome in outcomes):.3f}" if accuracy else "–",
            ]
        )
    return lines


def on_features(case: Case, path: Path, rounds: int, workers: int) -> list[list]:
    """Part 1."""
    stream = features_of(case)
    theirs = Theirs(path, stream, workers)
    makers = [
        theirs.increment,
        lambda: {SVM: ours(FeTrIL(), stream, "identity", 1)},
        lambda: {FC: ours(FeTrIL(head="fc"), stream, "identity", 1)},
    ]
    names = [PYCIL, PYCIL_FC, PYCIL_SVM, SVM, FC]
    return rows_of(case, rounds_of(makers, rounds), names, accuracy=True)


def on_images(case: Case, rounds: int) -> list[list]:
    """Part 2."""
    stream = images_of(case)
    kinds = {NAIVE: Naive, SVM: FeTrIL, FC: lambda: FeTrIL(head="fc")}
    makers = [
        lambda name=name, kind=kind: {name: ours(kind(), stream, "small_cnn", 10)}
        for name, kind in kinds.items()
    ]
    return rows_of(case, rounds_of(makers, rounds), list(kinds), accuracy=False)


def table(rows: list[list]) -> str:
    """The rows in Markdown."""
    head = ["case", "contestant", "seconds", "times as fast", "of rounds", "as", "accuracy"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pycil", type=Path, help="a clone of PyCIL; without it part 2 alone")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="PyCIL's num_workers (default 0; its own 8 are slower where features are given)",
    )
    parser.add_argument("--case", type=int, choices=(0, 1), help="one case of part 1 alone")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.pycil and not (args.pycil / "models" / "fetril.py").is_file():
        parser.error(f"--pycil {args.pycil} holds no models/fetril.py")
    if args.write and not args.pycil:
        parser.error("--write needs --pycil: README's table has both parts")
    return args


def main() -> None:
    """Measure, print, write."""
    args, rows = arguments(), []
    torch.set_num_threads(1)
    if args.pycil:
        for case in FEATURES if args.case is None else [FEATURES[args.case]]:
            rows += on_features(case, args.pycil, args.rounds, args.workers)
            print(f"{case.title}: done", flush=True)
    if args.case is None:
        rows += on_images(IMAGES, args.rounds)
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": version("scikit-learn"),
        "device": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "PyCIL's workers": args.workers,
        "rounds": args.rounds,
    }
    text = f"{table(rows)}\n\n({', '.join(f'{key} {value}' for key, value in about.items())})"
    print(text)
    if args.write:
        put("fetril_increment", text)


if __name__ == "__main__":
    main()
