"""The README's table of plasticity: 300 two-class tasks in a row, and what keeps a network able.

    python benchmarks/plasticity.py [--seeds 0,1,2,3,4] [--path omniglot.zip] [--jobs 2] [--write]

Accuracy on each task just after learning it, averaged over the first and the last 50 of 300 pairs
of Omniglot characters. Settings of the methods were chosen on seeds 100 to 102. Overhead is what
an experience costs beside training and evaluation, at the 10th and at the 300th (medians of 20
experiences around them), measured once, with `eval.past=sample:20`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from _readme import put
from baselines import ROOT, interval
from joblib import Parallel, delayed

import cl
from cl.evaluation import Evaluator
from cl.loop import Loop

DATA = Path(os.environ.get("CL_DATA", ROOT.parent / "shared" / "data")) / "omniglot-small1.zip"
KEYS = {"stream.size": 14, "stream.test": 0.5, "stream.val": 0}
ARMS = {
    "naive": {},
    "continual_backprop": {"strategy.rho": 0.01},
    "l2_init": {"strategy.lam": 0.01},
    "shrink_perturb": {"strategy.lam": 0.8, "strategy.noise": 0.2},
}
WINDOW = 50  # tasks


def one(arm: str, seed: int, path: str, out: str) -> dict:
    """A run's results, from its folder if it has finished there."""
    for done in Path(out, arm).glob(f"*/*/seed{seed}/results.json"):
        results = cl.load(done.parent).results
        if results["status"] == "finished":
            return results
    keys = {**KEYS, **ARMS[arm], "stream.path": path, "seed": seed, "eval.past": "own"}
    probes = ["dormant_units", "effective_rank", "weight_norm"]
    return cl.run("image_pairs", arm, **keys, probes=probes, out=f"{out}/{arm}").results


def windows(results: dict) -> tuple[float, float]:
    """Mean plasticity over the first and over the last WINDOW tasks."""
    curve = results["metrics"]["plasticity"]
    return float(np.mean(curve[:WINDOW])), float(np.mean(curve[-WINDOW:]))


def row(arm: str, runs: list[dict]) -> str:
    """One arm's line."""
    first, last = zip(*map(windows, runs), strict=True)
    change = [b - a for a, b in zip(first, last, strict=True)]
    ends = [run["probes"] for run in runs]
    cells = [
        f"`{arm}`",
        interval(list(first)),
        interval(list(last)),
        interval(change),
        interval([p["dormant_units"][-1]["dead"] for p in ends]),
        interval([p["effective_rank"][-1]["effective_rank"] for p in ends]),
        interval([p["weight_norm"][-1]["all"] for p in ends]),
    ]
    return "| " + " | ".join(cells) + " |"


def overhead(path: str, out: str) -> list[float]:
    """Milliseconds of each of 300 experiences beside training and evaluation."""
    spent: list[float] = []
    begun: list[float] = []
    inside: list[float] = []

    def timed(function):
        def call(*args):
            at = time.perf_counter()
            result = function(*args)
            inside.append(time.perf_counter() - at)
            return result

        return call

    def marked(learn):
        def call(*args):
            now = time.perf_counter()
            if begun:
                spent.append(1000 * (now - begun[-1] - sum(inside)))
            begun.append(now)
            inside.clear()
            return learn(*args)

        return call

    keys = {**KEYS, "stream.path": path, "train.updates": 2, "eval.past": "sample:20"}
    with (
        patch.object(Evaluator, "score", timed(Evaluator.score)),
        patch.object(Loop, "_train_epochs", timed(Loop._train_epochs)),
        patch.object(Loop, "_learn", marked(Loop._learn)),
    ):
        cl.run("image_pairs", "naive", **keys, out=f"{out}/overhead")
    return spent


def table(runs: dict[str, list[dict]], spent: list[float]) -> str:
    """Everything as Markdown."""
    early, late = (statistics.median(part) for part in (spent[:20], spent[-20:]))
    head = (
        f"| strategy | first {WINDOW} tasks | last {WINDOW} tasks | change | dead units "
        "| effective rank | weight norm |\n|---|---|---|---|---|---|---|"
    )
    cost = (
        f"Overhead per experience: {early:.0f} ms around the 10th, {late:.0f} ms around the 290th "
        "of 300 (training and evaluation aside, `eval.past=sample:20`)."
    )
    return "\n".join([head, *(row(arm, runs[arm]) for arm in ARMS), "", cost])


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--path", default=str(DATA))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default=str(ROOT / "runs" / "plasticity"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    seeds = [int(s) for s in arguments.seeds.split(",")]
    tasks = [(arm, seed) for arm in ARMS for seed in seeds]
    run = delayed(one)
    found = Parallel(arguments.jobs)(run(a, s, arguments.path, arguments.out) for a, s in tasks)
    runs = {arm: [r for (a, _), r in zip(tasks, found, strict=True) if a == arm] for arm in ARMS}
    text = table(runs, overhead(arguments.path, arguments.out))
    print(text)
    if arguments.write:
        put("plasticity", text)


if __name__ == "__main__":
    main()
