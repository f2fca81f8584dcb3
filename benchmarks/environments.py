"""environments: cl.environments beside Gymnasium's SyncVectorEnv, in environment steps per second.

Cases   every id that both have, --copies of each, uniform random actions drawn beforehand
Method  one process, one thread; the two take turns, the other one first in every second round; the
        first round is a warm-up. A round is --steps steps of all copies, a twentieth of that for
        Gymnasium, as it comes (NEXT_STEP autoreset; its resets count as steps). Rates are medians
        over rounds by the process's own time (what it waits for a core is not counted) and by the
        clock, ratios medians of the ratios within a round
Run     python benchmarks/environments.py [--copies 256] [--steps 400] [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from statistics import median

import gymnasium as gym
import numpy as np
from _readme import put

from cl.environments import NATIVE, make

FEWER = 20  # steps of ours for one of Gymnasium's


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--copies", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.rounds < 1 or (args.write and args.rounds < 5):
        parser.error(f"--rounds must be 1 or more, 5 with --write, got {args.rounds}")
    lines = [
        "| environment | Gymnasium, M steps/s | cl, M steps/s | ratio | by the clock |",
        "| --- | --- | --- | --- | --- |",
    ]
    for id in NATIVE:
        theirs, ours, ratio, clock = compare(id, args.copies, args.steps, args.rounds)
        row = f"| `{id}` | {theirs:.3f} | {ours:.2f} | {ratio:.0f} | {clock:.0f} |"
        lines.append(row.replace("nan", "–"))
    text = "\n".join(lines) + f"\n\n({about(args)})"
    print(text)
    if args.write:
        put("environments", text)


def about(args: argparse.Namespace) -> str:
    """What the numbers depend on."""
    named = {"python": platform.python_version(), "numpy": np.__version__}
    named |= {"gymnasium": gym.__version__, "device": platform.machine(), "cores": os.cpu_count()}
    named |= {"copies": args.copies, "steps": args.steps, "rounds": args.rounds}
    return ", ".join(f"{key} {value}" for key, value in named.items())


def compare(id: str, n: int, steps: int, rounds: int) -> tuple[float, float, float, float]:
    """(M steps/s of Gymnasium, of cl, ratio, ratio by the clock); nan for an id of ours alone."""
    env, rng = make(id, n), np.random.default_rng(0)
    env.reset(rng)
    actions = [env.sample(rng) for _ in range(steps)]
    runs: dict[str, Callable[[], None]] = {"cl": lambda: [env.step(a) for a in actions]}
    if id in gym.registry:
        other = gym.make_vec(id, n, vectorization_mode="sync")
        other.reset(seed=0)
        runs["gymnasium"] = lambda: [other.step(a) for a in actions[::FEWER]]
    rows = []
    for k in range(rounds + 1):
        order = list(runs) if k % 2 else list(runs)[::-1]
        rows.append({name: _timed(runs[name]) for name in order})
    count = {"cl": n * steps / 1e6, "gymnasium": n * len(actions[::FEWER]) / 1e6}
    rates = {
        name: [[count[name] / seconds for seconds in row[name]] for row in rows[1:]]
        for name in runs
    }
    ours = rates["cl"]
    theirs = rates.get("gymnasium", [[float("nan")] * 2] * rounds)
    return (
        median(own for own, _ in theirs),
        median(own for own, _ in ours),
        *(median(a[i] / b[i] for a, b in zip(ours, theirs)) for i in range(2)),
    )


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """(process time, time by the clock) of one call [s]."""
    own, clock = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - own, time.perf_counter() - clock


if __name__ == "__main__":
    main()
