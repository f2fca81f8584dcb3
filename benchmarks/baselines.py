"""The README's tables: every baseline on one stream, mean and 95 % t-interval over seeds.

    python benchmarks/baselines.py split_digits [--seeds 0,1,2,3,4] [--jobs 2] [--write]
    python benchmarks/baselines.py cifar10 [--path cifar10.zip]

Tuned settings (`best=true`) for every strategy. Runs are kept in `--out`; what has finished there
is not run again. `--write` puts the table between the README's markers. Seconds are those of
training, of one process with one thread, runs in random order.
"""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _readme import put
from joblib import Parallel, delayed
from scipy.stats import t

import cl

ROOT = Path(__file__).parents[1]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_PATH = Path(os.environ.get("CL_DATA", ROOT.parent / "shared" / "data")) / "cifar10-jpeg.zip"
GROUPS = {
    "bounds": ("naive", "joint", "cumulative", "feature_oracle", "raw_ncm"),
    "regularisation": ("ewc", "online_ewc", "si", "mas", "rwalk", "lwf"),
    "exemplars": (
        *("replay", "er_ace", "der", "derpp", "agem", "gem", "gdumb", "icarl", "bic", "wa"),
    ),
    "frozen features": (
        *("linear_probe", "ncm", "simplecil", "deesil", "fetril", "slda", "fecam", "ranpac"),
    ),
    "plasticity": ("l2_init", "shrink_perturb", "continual_backprop"),
}
STRATEGIES = tuple(name for names in GROUPS.values() for name in names)


@dataclass(frozen=True)
class Bench:
    """A stream with its fixed settings; streams and classes say what tuned settings fit."""

    name: str
    stream: str
    keys: dict
    streams: tuple[str, ...]
    classes: tuple[str, ...]
    strategies: tuple[str, ...] = STRATEGIES


BENCHES = {
    "split_digits": Bench(
        "split_digits", "split_digits", {}, ("split_digits",), tuple(map(str, range(10)))
    ),
    "cifar10": Bench(
        "cifar10",
        "image_folder",
        {"stream.path": str(CIFAR10_PATH), "stream.per_class": 200},
        ("image_folder", "torchvision:CIFAR10"),
        tuple(CIFAR10),
    ),
}


def interval(values: list[float | None]) -> str:
    """`mean ± half-width` of the 95 % t-interval, or a dash where a run has no value."""
    if None in values:
        return "–"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def mean(curve: list[float | None]) -> float | None:
    """Mean of a curve, None if a point has none."""
    return None if None in curve else float(np.mean(curve))


def row(name: str, results: list[dict]) -> str:
    """One strategy's line."""
    metrics = [r["metrics"] for r in results]
    cells = [
        f"`{name}`",
        interval([m["seen_accuracy"][-1] for m in metrics]),
        interval([m["stability"][-1] for m in metrics]),
        interval([mean(m["plasticity"]) for m in metrics]),
        f"{np.median([r['cost']['train_seconds'] for r in results]):.1f}",
        f"{np.median([r['cost']['stored_bytes'] for r in results]):,.0f}",
        ", ".join(results[0]["needs"]) or "–",
    ]
    return "| " + " | ".join(cells) + " |"


def one(bench: Bench, name: str, seed: int, out: str) -> tuple[str, int, dict]:
    """A run's results, from its folder if it has finished there."""
    keys = bench.keys | {"best": True, "seed": seed, "out": f"{out}/{name}"}
    for done in Path(out, name).glob(f"*/*/seed{seed}/results.json"):
        results = cl.load(done.parent).results
        if results["status"] == "finished":
            return name, seed, results
    return name, seed, cl.run(bench.stream, name, **keys).results


def table(bench: Bench, names: list[str], seeds: list[int], jobs: int, out: str) -> str:
    """The whole table as Markdown, in groups."""
    tasks = [(name, seed) for name in names for seed in seeds]
    random.Random(0).shuffle(tasks)
    runs = Parallel(jobs, verbose=5)(delayed(one)(bench, n, s, out) for n, s in tasks)
    found = {(name, seed): results for name, seed, results in runs}
    head = (
        "| strategy | seen accuracy | stability | plasticity | seconds | stored bytes | needs |\n"
        "|---|---|---|---|---|---|---|"
    )
    lines = [head]
    for group, members in GROUPS.items():
        own = [name for name in members if name in names]
        if own:
            lines.append(f"| *{group}* | | | | | | |")
        lines += [row(name, [found[name, s] for s in seeds]) for name in own]
    return "\n".join(lines)


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bench", choices=sorted(BENCHES))
    parser.add_argument("strategies", nargs="*", default=[])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", help="default: runs/baselines/<bench>")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    bench = BENCHES[arguments.bench]
    out = arguments.out or str(ROOT / "runs" / "baselines" / bench.name)
    names = arguments.strategies or list(bench.strategies)
    seeds = [int(s) for s in arguments.seeds.split(",")]
    text = table(bench, names, seeds, arguments.jobs, out)
    print(text)
    if arguments.write:
        put(bench.name, text)


if __name__ == "__main__":
    main()
