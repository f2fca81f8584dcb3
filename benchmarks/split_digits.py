"""The README's first table: every strategy on split_digits, mean and 95 % t-interval over seeds.

    python benchmarks/split_digits.py [--seeds 0,1,2,3,4] [--write]

`--write` puts the table between the README's markers.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import t

import cl

STRATEGIES = ("naive", "fetril", "raw_ncm", "replay", "joint")
README = Path(__file__).parents[1] / "README.md"
MARKERS = "<!-- split_digits -->", "<!-- /split_digits -->"


def interval(values: list[float | None]) -> str:
    """`mean ± half-width` of the 95 % t-interval, or a dash where a run has no value."""
    if None in values:
        return "–"
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def last(curve: list[float | None]) -> float | None:
    """The value after the last experience."""
    return curve[-1]


def mean(curve: list[float | None]) -> float | None:
    """Mean of a curve, None if a point has none."""
    return None if None in curve else float(np.mean(curve))


def row(name: str, results: list[dict]) -> str:
    """One strategy's line."""
    metrics = [r["metrics"] for r in results]
    cells = [
        f"`{name}`",
        interval([m["average_accuracy"] for m in metrics]),
        interval([m["average_incremental_accuracy"] for m in metrics]),
        interval([mean(m["plasticity"]) for m in metrics]),
        interval([last(m["stability"]) for m in metrics]),
        f"{np.median([r['cost']['stored_bytes'] for r in results]):,.0f}",
        f"{np.median([r['cost']['train_seconds'] for r in results]):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(seeds: list[int]) -> str:
    """The whole table as Markdown."""
    head = (
        "| strategy | average accuracy | average incremental | plasticity (mean) "
        "| stability (last) | stored bytes | seconds |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    with tempfile.TemporaryDirectory() as out:
        cl.run("split_digits", "naive", out=out)  # warm up, so that no row pays for imports
        for name in STRATEGIES:
            runs = [cl.run("split_digits", name, seed=s, out=out).results for s in seeds]
            rows.append(row(name, runs))
    return "\n".join([head, *rows])


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    text = table([int(s) for s in arguments.seeds.split(",")])
    print(text)
    if arguments.write:
        start, end = MARKERS
        pattern = re.escape(start) + r".*?" + re.escape(end)
        readme = README.read_text(encoding="utf-8")
        filled = re.sub(pattern, f"{start}\n{text}\n{end}", readme, flags=re.S)
        README.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
