"""loop_overhead: what the loop costs above bare PyTorch, and how fast augmented images come.

Part 1  microseconds per update of cl's Loop with `naive`, of a hand-written PyTorch loop and of
        Avalanche's Naive: same initial weights, same rows, same optimizer, float32 in memory
Part 2  images per second with random crop and flip: cl's Loop on a uint8 pool that lives on the
        device, Avalanche's Naive on PIL images through torchvision's transforms
Method  one process; contestants take turns, a different one first in every round; the first
        round is a warm-up and not counted. Times are medians over rounds, ratios medians of the
        ratios within a round. A run is timed from its first line to its last, set-up included;
        building models, optimizers and data sets is not.
Source  synthetic data from a fixed seed; avalanche-lib is imported as it is installed
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from _readme import put
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.supervised import Naive as AvalancheNaive
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from cl.loop import Loop
from cl.models import build
from cl.objectives.cross_entropy import CrossEntropy
from cl.seeding import generator, seed_globals
from cl.settings import Eval, Train
from cl.stream import Labelled, Stream, class_incremental
from strategies.naive import Naive

SEED = 0
N_CLASSES = 10
LR, MOMENTUM = 0.01, 0.9
OURS, BARE, AVALANCHE = "cl", "bare PyTorch", "Avalanche"
AVALANCHE_DEFAULT = "Avalanche, default evaluator"
AUGMENT = ("crop", "flip")


@dataclass(frozen=True)
class Case:
    """One model on one data set; `rows` is a multiple of `batch`, so no batch is smaller."""

    title: str
    model: str
    settings: dict
    shape: tuple[int, ...]
    batch: int
    rows: int
    epochs: int

    @property
    def updates(self) -> int:
        """Optimizer steps of one run."""
        return self.epochs * self.rows // self.batch


MLP = Case("tiny MLP 64-64-64-10, batch 32", "mlp", {"hidden": [64, 64]}, (64,), 32, 4096, 8)
CNN = Case("small_cnn width 32 depth 2, batch 64", "small_cnn", {}, (3, 32, 32), 64, 2048, 2)
LIGHT = Case(
    "small_cnn width 8 depth 2, batch 64", "small_cnn", {"width": 8}, (3, 32, 32), 64, 2048, 1
)
LIGHTEST = Case(
    "small_cnn width 8 depth 1 norm none, batch 64",
    "small_cnn",
    {"width": 8, "depth": 1, "norm": "none"},
    (3, 32, 32),
    64,
    2048,
    1,
)
FULL = replace(CNN, epochs=1)
IMAGES = (LIGHTEST, LIGHT, FULL)  # the ratio depends on the model's own cost: three of them


@dataclass
class Row:
    """One line of the table: `value` in `unit`, and its ratio to the contestant `against`."""

    case: str
    contestant: str
    value: float
    unit: str
    ratio: float
    ratio_low: float
    ratio_high: float
    against: str


# -- contestants: each makes a model's copy ready and returns what is timed ------------------------


def initial_model(case: Case) -> nn.Module:
    """The model that every contestant of `case` starts from, its head at full width."""
    seed_globals(SEED)
    model = build(case.model, case.shape, case.settings)
    model.head.grow(N_CLASSES, generator(SEED, "head"))
    return model


def labelled(x: Tensor, *, normalise: bool) -> Stream:
    """One experience that holds all rows of `x`, as every built-in stream is made."""
    rows = torch.arange(len(x))
    data = Labelled(x, rows % N_CLASSES, rows, rows, [str(c) for c in range(N_CLASSES)])
    return class_incremental(
        "synthetic", data, sizes=[N_CLASSES], order="fixed", val=0.0, seed=SEED, normalise=normalise
    )


def our_loop(case: Case, stream: Stream, model: nn.Module, device, augment=()) -> Loop:
    """cl's Loop with `naive` and no observer."""
    train = Train(
        epochs=case.epochs, batch_size=case.batch, lr=LR, momentum=MOMENTUM, augment=list(augment)
    )
    return Loop(
        stream=stream,
        strategies=[Naive()],
        model=model,
        objective=CrossEntropy(),
        train=train,
        evaluation=Eval(),
        seed=SEED,
        device=device,
    )


def bare_loop(case: Case, stream: Stream, model: nn.Module, device) -> Callable[[], None]:
    """Index draw, forward, cross-entropy, backward, step; batches in the order of cl's Loop."""
    table = stream.experiences[0].train
    x, y = table.column("x"), table.column("y")
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    rng = generator(SEED, "batches")

    def run() -> None:
        for _ in range(case.epochs):
            order = torch.randperm(len(x), generator=rng).to(x.device)
            for index in order.split(case.batch):
                optimizer.zero_grad()
                output = model(torch.index_select(x, 0, index))
                loss = F.cross_entropy(output, torch.index_select(y, 0, index))
                loss.backward()
                optimizer.step()

    return run


def avalanche_naive(case: Case, model: nn.Module, device, evaluator) -> AvalancheNaive:
    """Avalanche's Naive; the evaluator is what its user would choose."""
    return AvalancheNaive(
        model=model.to(device),
        optimizer=torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=case.batch,
        train_epochs=case.epochs,
        device=device,
        evaluator=evaluator,
    )


def quiet_evaluator() -> EvaluationPlugin:
    """An evaluator without metrics or loggers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin()


def avalanche_experience(dataset: Dataset, transform: Callable | None = None):
    """The one experience of an Avalanche benchmark without task labels (its leanest path)."""
    groups = None if transform is None else {"train": (transform, None), "eval": (None, None)}
    wrapped = as_classification_dataset(dataset, groups)
    return benchmark_from_datasets(train=[wrapped]).train_stream[0]


class Pictures(Dataset):
    """Byte arrays in memory, a PIL image for each item drawn, as torchvision's CIFAR10 does it."""

    def __init__(self, x: Tensor, y: Tensor):
        self.images = x.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = y.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[position]), self.targets[position]


# -- timing ----------------------------------------------------------------------------------------


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of `run`, the device's queue emptied before and after; output is dropped."""
    gc.collect()
    synchronise(device)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        run()
        synchronise(device)
        return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for everything queued on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(makers: dict[str, Callable], rounds: int, device, after=None) -> dict[str, list]:
    """{contestant: seconds per round}. A maker returns what to time; `after` sees each round."""
    names, times = list(makers), {name: [] for name in makers}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            with redirect_stdout(io.StringIO()):  # where Avalanche looks up its stdout
                run = makers[name]()
            took = seconds(run, device)
            if k:
                times[name].append(took)
        if after is not None:
            after()
    return times


def rows_of(case: str, times: dict, amount: int, unit: str, against: str) -> list[Row]:
    """Table lines: `us/update` is time per `amount`, `images/s` is `amount` per time."""
    rates = unit == "images/s"
    rows = []
    for name, taken in times.items():
        values = [amount / t if rates else 1e6 * t / amount for t in taken]
        pairs = zip(taken, times[against], strict=True)
        ratios = [other / t if rates else t / other for t, other in pairs]
        low, mid, high = min(ratios), median(ratios), max(ratios)
        rows.append(Row(case, name, median(values), unit, mid, low, high, against))
    return rows


# -- the two parts ---------------------------------------------------------------------------------


def measure_updates(case: Case, rounds: int, device, default: bool) -> list[Row]:
    """Microseconds per update, ratios to the bare loop; raises if weights end up different."""
    x = torch.randn(case.rows, *case.shape, generator=generator(SEED, case.title))
    stream, initial, ended = labelled(x, normalise=False), initial_model(case), {}
    train = stream.experiences[0].train
    tensors = TensorDataset(train.column("x"), train.column("y"))
    tensors.targets = train.column("y").tolist()
    experience = avalanche_experience(tensors)
    stream = stream.to(device)

    def copied(name: str) -> nn.Module:
        ended[name] = copy.deepcopy(initial)
        return ended[name]

    def avalanche(name: str, evaluator: Callable) -> Callable[[], object]:
        torch.manual_seed(SEED)
        strategy = avalanche_naive(case, copied(name), device, evaluator())
        return lambda: strategy.train(experience, num_workers=0)

    makers = {
        BARE: lambda: bare_loop(case, stream, copied(BARE), device),
        OURS: lambda: our_loop(case, stream, copied(OURS), device).run,
        AVALANCHE: lambda: avalanche(AVALANCHE, quiet_evaluator),
    }
    if default:
        makers[AVALANCHE_DEFAULT] = lambda: avalanche(AVALANCHE_DEFAULT, default_evaluator)

    def check() -> None:
        require_same_weights(ended[OURS], ended[BARE], initial)

    times = interleave(makers, rounds, device, check)
    print(f"{case.title}: {case.updates} updates a run, same weights: yes", flush=True)
    return rows_of(case.title, times, case.updates, "us/update", BARE)


def require_same_weights(ours: nn.Module, bare: nn.Module, initial: nn.Module) -> None:
    """Both loops did the same work: equal bit for bit, and not where they started."""
    ours, bare, start = ours.state_dict(), bare.state_dict(), initial.state_dict()
    for name, value in ours.items():
        if not torch.equal(value, bare[name]):
            raise AssertionError(f"{name} differs between cl's loop and the bare loop")
        if torch.equal(value.cpu(), start[name]):
            raise AssertionError(f"{name} was not trained")


@dataclass
class Pictured:
    """The same images for both sides: cl's stream and Avalanche's experience."""

    stream: Stream
    experience: object

    @classmethod
    def make(cls, case: Case, device: torch.device) -> Pictured:
        """Random uint8 images; each side normalises by their mean and deviation."""
        rng = generator(SEED, "images")
        x = torch.randint(256, (case.rows, *case.shape), generator=rng, dtype=torch.uint8)
        stream = labelled(x, normalise=True)
        train = stream.experiences[0].train
        pictures = Pictures(train.column("x"), train.column("y"))
        experience = avalanche_experience(pictures, torchvision_transform(x))
        return cls(stream.to(device), experience)


def measure_images(case: Case, data: Pictured, rounds: int, device, default: bool) -> list[Row]:
    """Images per second of training with crop and flip, ratios to Avalanche."""
    initial = initial_model(case)

    def avalanche(evaluator: Callable = quiet_evaluator) -> Callable[[], object]:
        torch.manual_seed(SEED)
        strategy = avalanche_naive(case, copy.deepcopy(initial), device, evaluator())
        return lambda: strategy.train(data.experience, num_workers=0)

    makers = {
        OURS: lambda: our_loop(case, data.stream, copy.deepcopy(initial), device, AUGMENT).run,
        AVALANCHE: avalanche,
    }
    if default:
        makers[AVALANCHE_DEFAULT] = lambda: avalanche(default_evaluator)
    times = interleave(makers, rounds, device)
    title = f"crop+flip, {case.title}"
    print(f"{title}: {case.rows * case.epochs} images a run", flush=True)
    return rows_of(title, times, case.rows * case.epochs, "images/s", AVALANCHE)


def measure_input(case: Case, data: Pictured, rounds: int, device) -> list[Row]:
    """Images per second of the data path alone, ratios to Avalanche."""
    initial = initial_model(case)

    def ours() -> Callable[[], None]:
        loop = our_loop(case, data.stream, copy.deepcopy(initial), device, AUGMENT)
        return our_input(loop, case.epochs)

    def avalanche() -> Callable[[], None]:
        torch.manual_seed(SEED)
        strategy = avalanche_naive(case, copy.deepcopy(initial), device, quiet_evaluator())
        return avalanche_input(strategy, data.experience, case.epochs)

    times = interleave({OURS: ours, AVALANCHE: avalanche}, rounds, device)
    title = f"crop+flip, no model, batch {case.batch}"
    return rows_of(title, times, case.rows * case.epochs, "images/s", AVALANCHE)


def torchvision_transform(x: Tensor) -> Callable:
    """Pad 4 and crop, flip, [0, 1] float, per-channel normalisation over x [N, C, H, W]."""
    scaled = x.float() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    return transforms.Compose(
        [
            transforms.RandomCrop(x.shape[-1], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean.tolist(), std.tolist()),
        ]
    )


def our_input(loop: Loop, epochs: int) -> Callable[[], None]:
    """Every batch as the loop loads it, without a model."""
    table = loop.stream.experiences[0].train
    batches = loop.objective.batches(loop, table)

    def run() -> None:
        for _ in range(epochs):
            for index in batches:
                loop.objective.load(loop, table.rows(index))

    return run


def avalanche_input(strategy: AvalancheNaive, experience, epochs: int) -> Callable[[], None]:
    """Every batch of the loader that Avalanche makes for training, moved to its device."""
    strategy.experience = experience
    strategy.train_dataset_adaptation()
    strategy.make_train_dataloader(num_workers=0)

    def run() -> None:
        for _ in range(epochs):
            for batch in strategy.dataloader:
                batch = [column.to(strategy.device) for column in batch]

    return run


# -- output ----------------------------------------------------------------------------------------


def table(rows: list[Row], markdown: bool) -> str:
    """The rows as text, or as a Markdown table; [lowest, highest] ratio of any round."""
    lines = [["case", "contestant", "median", "unit", "ratio", "of rounds", "to"]]
    for row in rows:
        span = f"[{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
        ratio = f"{row.ratio:.3f}"
        lines.append(
            [row.case, row.contestant, f"{row.value:.1f}", row.unit, ratio, span, row.against]
        )
    if markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def environment(args: argparse.Namespace) -> dict:
    """What the numbers depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    cuda = torch.device(args.device).type == "cuda"
    device = torch.cuda.get_device_name(args.device) if cuda else platform.machine()
    counts = {"cores": os.cpu_count(), "threads": args.threads, "rounds": args.rounds}
    return {**versions, "avalanche": version("avalanche-lib"), "device": device, **counts}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--part", choices=("updates", "images", "both"), default="both")
    parser.add_argument(
        "--default-evaluator",
        action="store_true",
        help="also run Avalanche with its default evaluator and logger",
    )
    parser.add_argument("--json", type=Path, help="write the rows into this file")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error(f"--rounds must be 5 or more, got {args.rounds}")
    return args


def main() -> None:
    """Measure, print, write."""
    args, started = arguments(), time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.deterministic = True  # equal weights can be asked for only then
    device, default, rows = torch.device(args.device), args.default_evaluator, []
    if args.part != "images":
        rows += measure_updates(MLP, args.rounds, device, default)
        rows += measure_updates(CNN, args.rounds, device, default)
    if args.part != "updates":
        data = Pictured.make(LIGHT, device)
        rows += measure_input(LIGHT, data, args.rounds, device)
        for case in IMAGES:
            rows += measure_images(case, data, args.rounds, device, default)
    about = environment(args)
    print("  ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print(table(rows, args.markdown))
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.write:
        setting = ", ".join(f"{key} {value}" for key, value in about.items())
        put("loop_overhead", f"{table(rows, markdown=True)}\n\n({setting})")
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
