"""sweep_workers: what a second worker of `cl sweep` is worth, and what a finished sweep costs.

Cases   12 runs of `split_digits` (naive, replay, fetril, ewc; three seeds) by one worker and by N;
        the same command once more, which finds everything finished
Method  every sweep is a command of its own in an empty folder, start, imports and checks included;
        the two take turns, the other one first in every second round; the first round is a warm-up.
        Throughput is runs per minute by the clock, ratios are medians of those within a round. How
        busy the machine was with other work is measured before every sweep and said below the table
Bar     two workers on two idle cores: 1.5 or more times the throughput; finished: below 3 s
Run     python benchmarks/sweep_workers.py [--rounds 3] [--workers 2] [--write]
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
from _readme import put

ROOT = Path(__file__).parents[1]
SWEEP = ["sweep", "split_digits", "naive,replay,fetril,ewc", "seed=0,1,2"]
RUNS = 12


def seconds(workers: int, out: str) -> float:
    """One sweep, by the clock."""
    line = [sys.executable, "-m", "cl.cli", *SWEEP, f"workers={workers}", f"out={out}"]
    started = time.perf_counter()
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def measured(workers: int) -> tuple[float, float, float]:
    """(seconds of a sweep, of the same one finished, share of the machine that was busy before)."""
    busy = psutil.cpu_percent(interval=2) / 100
    with tempfile.TemporaryDirectory() as out:
        return seconds(workers, out), seconds(workers, out), busy


def compare(n: int, rounds: int) -> list[dict[int, tuple[float, float, float]]]:
    """{workers: `measured`} for every round."""
    taken = []
    for k in range(rounds + 1):
        order = (1, n) if k % 2 else (n, 1)
        taken.append({workers: measured(workers) for workers in order})
    return taken[1:]


def table(n: int, rounds: int) -> str:
    """Everything as Markdown."""
    taken = compare(n, rounds)
    lines = [
        "| workers | seconds | runs/min | times as fast | of rounds | finished, seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for workers in (1, n):
        clock = median(t[workers][0] for t in taken)
        ratios = sorted(t[1][0] / t[workers][0] for t in taken)
        again = median(t[workers][1] for t in taken)
        cells = [str(workers), f"{clock:.1f}", f"{60 * RUNS / clock:.1f}", f"{median(ratios):.2f}"]
        cells += [f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]", f"{again:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    busy = [row[2] for t in taken for row in t.values()]
    about = {name: version(name) for name in ("torch", "joblib")}
    about |= {"device": platform.machine(), "cores": psutil.cpu_count(), "rounds": rounds}
    said = ", ".join(f"{k} {v}" for k, v in {"python": platform.python_version(), **about}.items())
    load = f"busy with other work before a sweep: {median(busy):.0%} of the machine, at most"
    return "\n".join([*lines, "", f"({said}; {load} {max(busy):.0%})"])


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    text = table(args.workers, args.rounds)
    print(text)
    if args.write:
        put("sweep_workers", text)


if __name__ == "__main__":
    main()
