"""checkpoint_cost: what checkpoints cost a run, and how soon a resumed run trains again.

Run        `cl run` with all keys at their defaults but those that are shown: its seconds by the
           clock, and the share of them that training waits for checkpoints at the default
           interval (checkpoint.minutes=5 and the ends of experiences). Files are written by a
           thread while training goes on; `processor` is the share of processor time that all of
           it takes, the writing included
Inside     one checkpoint in the middle of an experience, with the most that a run of this kind
           holds: MiB on the disk; ms that training waits; ms until the files are on the disk; this
           last one as a share of the default interval, as if nothing of it overlapped
Resume     seconds from the command, imports done, to the end of the first update: the data set and
           the model built, the checkpoint read and put back. The same of a new run to its first
           update, evaluation of the untrained model included
Method     one process, one thread; medians over rounds. Imports that libraries put off until they
           are used (an optimizer's, a tokenizer's) are done by a run before
Run        python benchmarks/checkpoint_cost.py [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from _readme import put

import cl
from cl import checkpoint
from cl.keeper import Keeper
from cl.loop import Loop
from cl.runner import resume
from cl.settings import Checkpoint

TASKS = {"stream.tasks": ["above", "letter"]}
CASES = {
    "small_cnn, `replay`": ("split_digits", "replay", {}),
    "small_cnn, `fetril`": ("split_digits", "fetril", {}),
    "resnet18, 11 M, `naive`": (
        "split_digits",
        "naive",
        {"model": "resnet18", "train.epochs": 4, "stream.n_experiences": 2},
    ),
    "tiny, 0.87 M, `sft`": ("skills", "sft", TASKS | {"train.updates": 60}),
    "tiny, 0.87 M, `rft`": ("skills", "rft", TASKS | {"train.updates": 15}),
    "`ppo`": ("cartpole_actions", "naive", {"stream.steps": 16384}),
    "`dqn`": ("cartpole_actions", "naive", {"stream.steps": 16384, "objective": "dqn"}),
}


class Stopped(BaseException):
    """Enough has been seen."""


@dataclass
class Seen:
    """What one case has shown, a number per round; seconds, shares of 1 and MiB."""

    run: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)
    held_up: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)


class Times:
    """Time that is spent in checkpoints: waited for, and of the processor, any thread's."""

    def __init__(self):
        self.waited = self.processor = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what goes on in here."""
        save, write = Keeper.save, Keeper._write

        def timed_save(keeper, *args, **kwargs):
            started, own = time.perf_counter(), time.thread_time()
            save(keeper, *args, **kwargs)
            self.waited += time.perf_counter() - started
            self.processor += time.thread_time() - own

        def timed_write(keeper, *args):
            own = time.thread_time()
            write(keeper, *args)
            self.processor += time.thread_time() - own

        with patch.object(Keeper, "save", timed_save), patch.object(Keeper, "_write", timed_write):
            yield


@contextmanager
def stopping(after: int, seen: dict) -> Iterator[None]:
    """Runs end after so many updates; what the last checkpoint took goes to `seen`."""
    update = Loop._update

    def last(loop, index):
        update(loop, index)
        if "first" not in seen:
            seen["first"] = time.perf_counter()
        if seen.setdefault("begun", loop.clock.train_iterations) + after <= _count(loop):
            keeper = loop.observer.keeper
            keeper.finish()
            started = time.perf_counter()
            keeper.save(loop, inside=True)
            seen["held_up"] = time.perf_counter() - started
            keeper.finish()
            seen["written"] = time.perf_counter() - started
            raise Stopped

    with patch.object(Loop, "_update", last):
        yield


def _count(loop: Loop) -> int:
    return loop.clock.train_iterations


def measure(stream: str, strategy: str, settings: dict, seen: Seen) -> None:
    """One round of one case."""
    with tempfile.TemporaryDirectory() as out:
        times = Times()
        own, started = time.process_time(), time.perf_counter()
        with times.watching():
            done = cl.run(stream, strategy, out=f"{out}/whole", **settings)
        seconds = time.perf_counter() - started
        seen.run.append(seconds)
        seen.waited.append(times.waited / seconds)
        seen.processor.append(times.processor / (time.process_time() - own))
        half, marks = max(1, done.results["cost"]["updates"] // 2), {}
        started = time.perf_counter()
        folder = _stopped(half, marks, lambda: cl.run(stream, strategy, out=out, **settings))
        seen.begun.append(marks["first"] - started)
        newest = checkpoint.found(folder / "checkpoint")[-1]
        seen.size.append(sum(path.stat().st_size for path in newest.iterdir()) / 2**20)
        seen.held_up.append(marks["held_up"])
        seen.written.append(marks["written"])
        started, marks = time.perf_counter(), {}
        _stopped(1, marks, lambda: resume(folder))
        seen.resumed.append(marks["first"] - started)


def _stopped(after: int, marks: dict, run) -> Path:
    try:
        with stopping(after, marks):
            run()
    except Stopped as stop:
        return stop.run_folder
    raise SystemExit("a run has ended before it was stopped")


def table(found: dict[str, Seen]) -> str:
    """Markdown."""
    interval = 60 * Checkpoint().minutes
    head = [
        *("run", "seconds", "waits", "processor"),
        *("MiB", "held up, ms", "written, ms", "of 5 min", "resumed, s", "begun, s"),
    ]
    lines = []
    for name, seen in found.items():
        mid = {key: median(values) for key, values in vars(seen).items()}
        lines.append(
            [
                name,
                f"{mid['run']:.1f}",
                f"{mid['waited']:.2%}",
                f"{mid['processor']:.2%}",
                f"{mid['size']:.1f}",
                f"{1e3 * mid['held_up']:.0f}",
                f"{1e3 * mid['written']:.0f}",
                f"{mid['written'] / interval:.3%}",
                f"{mid['resumed']:.2f}",
                f"{mid['begun']:.2f}",
            ]
        )
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="that count (default 5)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.rounds < 1 or (args.write and args.rounds < 5):
        parser.error(f"--rounds must be 1 or more, 5 with --write, got {args.rounds}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {name: Seen() for name in CASES}
    for k in range(args.rounds + 1):
        for name, (stream, strategy, settings) in CASES.items():
            measure(stream, strategy, settings, found[name] if k else Seen())
    about = {"python": platform.python_version(), "torch": torch.__version__}
    about |= {"device": platform.machine(), "cores": os.cpu_count(), "threads": 1}
    about |= {"rounds": args.rounds}
    text = f"{table(found)}\n\n({', '.join(f'{k} {v}' for k, v in about.items())})"
    print(text)
    if args.write:
        put("checkpoint_cost", text)


if __name__ == "__main__":
    main()
