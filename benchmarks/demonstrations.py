"""README's table of what imitation keeps: strategies on `skills` under all four demonstrations.

    python benchmarks/demonstrations.py [--seeds 0,1,2,3,4] [--jobs 2] [--write]

100 updates of 64 rows a task, every arm at the stream's rate of 1e-4; nothing is tuned. Mean and
95 % t-interval over seeds. Runs are kept in `--out`; what has finished there is not run again.
`rft` learns from its own answers and is shown nothing.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from _readme import put
from joblib import Parallel, delayed
from scipy.stats import t

import cl

ROOT = Path(__file__).parents[1]
KINDS = ("canonical", "foreign", "own", "oracle")
ARMS = ("sft", "hft+sft")
CASES = [(arm, kind) for arm in ARMS for kind in KINDS] + [("rft", None)]
HEAD = (
    "| strategy | demonstrations | learned | average at the end | backward transfer | held out |\n"
    "|---|---|---|---|---|---|"
)


def interval(values: list[float]) -> str:
    """`mean ± half-width` of the 95 % t-interval."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def one(case: tuple[str, str | None], seed: int, out: str) -> dict:
    """A run's results, from its folder if it has finished there."""
    arm, kind = case
    home = Path(out, f"{arm}-{kind}")
    for done in home.glob(f"*/*/seed{seed}/results.json"):
        results = cl.load(done.parent).results
        if results["status"] == "finished":
            return results
    keys = {"seed": seed, "out": str(home)}
    keys |= {"stream.demonstrations": kind} if kind else {}
    return cl.run("skills", arm, **keys).results


def row(case: tuple[str, str | None], results: list[dict]) -> str:
    """One line."""
    metrics = [r["metrics"] for r in results]
    columns = [
        [float(np.mean(m["plasticity"])) for m in metrics],
        [m["average_accuracy"] for m in metrics],
        [m["backward_transfer"] for m in metrics],
        [m["held_out"][-1] for m in metrics],
    ]
    cells = [f"`{case[0]}`", case[1] or "none: rewards", *map(interval, columns)]
    return "| " + " | ".join(cells) + " |"


def table(seeds: list[int], jobs: int, out: str) -> str:
    """The table as Markdown."""
    tasks = [(case, seed) for case in CASES for seed in seeds]
    random.Random(0).shuffle(tasks)
    tasks.sort(key=lambda task: seeds.index(task[1]))
    runs = Parallel(jobs, verbose=5)(delayed(one)(case, seed, out) for case, seed in tasks)
    found = dict(zip(tasks, runs, strict=True))
    return "\n".join([HEAD] + [row(case, [found[case, s] for s in seeds]) for case in CASES])


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default=str(ROOT / "runs" / "baselines" / "demonstrations"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(s) for s in arguments.seeds.split(",")]
    text = table(seeds, arguments.jobs, arguments.out)
    print(text)
    if arguments.write:
        put("demonstrations", text)


if __name__ == "__main__":
    main()
