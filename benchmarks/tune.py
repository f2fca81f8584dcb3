"""The packaged settings of `best=true`: every grid of `benchmarks/grids.yaml` by `cl.tune`.

    python benchmarks/tune.py split_digits [STRATEGY ...] [--workers 2]
    python benchmarks/tune.py cifar10 [STRATEGY ...]

On calibration seeds, with the same number of trials for every strategy. What is chosen goes to
`strategies/best/<bench>.yaml`; strategies that are not named keep what they have there. Trials are
kept in `--out`, and what has finished there is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from baselines import BENCHES, ROOT, Bench

import cl
from cl.tuned import as_yaml

HERE = Path(__file__).parent
BEST = ROOT / "strategies" / "best"
PATH = "stream.path"  # of data that lie anywhere
SEEDS = {"split_digits": [100, 101, 102], "cifar10": [100]}


def grids(bench: Bench, names: list[str]) -> dict[str, dict[str, list]]:
    """{strategy: {key: values}}."""
    every = yaml.safe_load((HERE / "grids.yaml").read_text(encoding="utf-8"))
    every = every["common"] | every.get(bench.name, {})
    return {name: every[name] for name in names}


def write(bench: Bench, found: list) -> None:
    """Put what was found into `strategies/best/<name>.yaml`, for the stream wherever it lies."""
    path = BEST / f"{bench.name}.yaml"
    known = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    best = known.get("best", {}) | {tuned.strategy: tuned.best for tuned in found}
    trials = known.get("trials", {}) | {tuned.strategy: tuned.trials for tuned in found}
    how = yaml.safe_load(found[0].path.read_text(encoding="utf-8"))["selection"]
    document = {
        "stream": list(bench.streams),
        "experiences": 5,
        "classes": list(bench.classes),
        "selection": how | {"settings": {k: v for k, v in bench.keys.items() if k != PATH}},
        "best": dict(sorted(best.items())),
        "trials": dict(sorted(trials.items())),
    }
    BEST.mkdir(exist_ok=True)
    text = f"# written by benchmarks/tune.py {bench.name}\n{as_yaml(document)}"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Tune and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bench", choices=sorted(BENCHES))
    parser.add_argument("strategies", nargs="*")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", help="default: runs/tuning/<bench>")
    arguments = parser.parse_args()
    bench = BENCHES[arguments.bench]
    found = cl.tune(
        bench.stream,
        grids(bench, arguments.strategies or list(bench.strategies)),
        **bench.keys,
        seed=SEEDS[bench.name],
        out=arguments.out or str(ROOT / "runs" / "tuning" / bench.name),
        workers=arguments.workers,
        progress=True,
    )
    write(bench, found)
    for tuned in found:
        print(f"{tuned.strategy:20} {tuned.best}")


if __name__ == "__main__":
    main()
