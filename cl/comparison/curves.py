"""What pictures draw: curves over experiences and within them, matrices; nan where undefined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cl.comparison.arms import Arm
from cl.comparison.read import Run, curve_lines
from cl.metrics import past
from cl.statistics import band, statistic_of


@dataclass(frozen=True)
class Segment:
    """A line with its band: x, mean, low, high [K]."""

    VALUES: ClassVar = ("mean", "low", "high")
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def over_experiences(arm: Arm, name: str) -> Segment:
    """A metric after each experience; nan where a seed has none."""
    E = arm.first.n_experiences
    rows = []
    for results in arm.results:
        values = results["metrics"].get(name)
        whole = isinstance(values, list) and len(values) == E
        rows.append(numbers(values if whole else [None] * E))
    statistic = statistic_of(arm.first.results["domain"], len(rows))
    return Segment(np.arange(E), *band(np.array(rows), statistic))


def mean_matrix(arm: Arm) -> np.ndarray:
    """R [E, J], mean over seeds; nan where a seed has none."""
    return np.mean([[numbers(row) for row in r["R"]] for r in arm.results], axis=0)


def gap_curve(arm: Arm) -> list[Segment]:
    """Mean score on past tasks while each experience is learned, a segment for each.

    x: experience plus share of its updates. Empty for an arm without evaluations within
    experiences.
    """
    runs = [parts for run in arm.runs.values() if (parts := _of_run(run))]
    if len(runs) < len(arm.runs):
        return []
    statistic = statistic_of(arm.first.results["domain"], len(runs))
    segments = []
    for i in sorted(set.intersection(*(set(parts) for parts in runs))):
        x = np.unique(np.concatenate([parts[i][0] for parts in runs]).round(6))
        y = np.array([np.interp(x, *parts[i]) for parts in runs])  # the same grid, or nearly so
        segments.append(Segment(i + x, *band(y, statistic)))
    return segments


def _of_run(run: Run) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{experience: (share of its updates, mean past score)}; {} without any within one."""
    if not run.results["metrics"].get("eval_every"):
        return {}
    lines = [line for line in curve_lines(run) if line["kind"] != "untrained"]
    if not any(line["kind"] == "periodic" for line in lines):
        return {}
    at, found = [e["learned_at"] for e in run.results["evals"]], {}
    for i in range(1, run.n_experiences):
        js = past(at, i)
        if not js:
            continue
        rows = [line for line in lines if line["experience"] == i - 1][-1:]
        rows += [line for line in lines if line["experience"] == i]
        updates = np.array([line["updates"] for line in rows], dtype=float)
        scores = (
            np.array([numbers([line["test"][j] for j in js]).mean() for line in rows]) if js else []
        )
        if not js or len(rows) < 2 or np.isnan(scores).any():
            continue
        length = updates[-1] - updates[0]
        share = (updates - updates[0]) / length if length else np.linspace(0, 1, len(rows))
        found[i] = share, scores
    return found


def numbers(values: list) -> np.ndarray:
    """None as nan."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)
