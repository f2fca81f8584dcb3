"""A comparison as data: CSV with one thing per row, and what JSON can hold."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from cl.comparison.arms import Arm
from cl.comparison.match import Matching
from cl.comparison.measured import Difference, Table, Value
from cl.comparison.tables import needs, tuned
from cl.statistics import Estimate


def scores_csv(tables: Sequence[Table]) -> str:
    """One row for each arm and measure."""
    head = ["stream", "strategy", "measure", "mean", "low", "high", "seeds", "method"]
    head += ["needs", "tuned", "undefined"]
    rows = []
    for table in tables:
        for arm in table.arms:
            for c in table.columns:
                v = table.value(arm, c.name)
                e = [_finite(getattr(v.estimate, k, None)) for k in ("mean", "low", "high")]
                row = [table.section.title, arm.label, c.name, *e, len(arm.runs), v.method]
                rows.append([*row, needs(arm), tuned(arm), v.reason])
    return _csv(head, rows)


def runs_csv(tables: Sequence[Table]) -> str:
    """One row for each run, its measures side by side."""
    names = dict.fromkeys(c.name for table in tables for c in table.columns)
    rows = []
    for table in tables:
        for arm in table.arms:
            for seed, run in arm.runs.items():
                known = {c.name: table.value(arm, c.name).by_seed.get(seed) for c in table.columns}
                row = [table.section.title, arm.label, seed, run.folder]
                rows.append([*row, *(known.get(name) for name in names)])
    return _csv(["stream", "strategy", "seed", "folder", *names], rows)


def differences_csv(tables: Sequence[Table]) -> str:
    """One row for each arm, measure and difference."""
    head = ["stream", "strategy", "minus", "measure", "mean", "low", "high", "seeds", "method"]
    head += ["p", "p_holm", "within", "p_within", "p_within_holm", "says"]
    rows = []
    for table in tables:
        for found in table.differences.values():
            for d in found:
                e = [_finite(getattr(d.estimate, k)) for k in ("mean", "low", "high")]
                row = [table.section.title, d.arm, table.baseline.label, d.measure, *e]
                row += [d.estimate.n, d.method, d.p, d.p_holm, table.within]
                rows.append([*row, d.p_within, d.p_within_holm, d.says])
    return _csv(head, rows)


def plain(table: Table, found: Matching | None) -> dict[str, Any]:
    """A section as data that JSON can hold."""
    return {
        "title": table.section.title,
        "stream": table.section.example["stream"],
        "domain": table.section.example["domain"],
        "score": table.section.example["score"],
        "baseline": table.baseline.label,
        "within": table.within,
        "arms": [_arm(table, arm) for arm in table.arms],
        "differences": [
            {**_difference(d), "minus": table.baseline.label}
            for ds in table.differences.values()
            for d in ds
        ],
        "matched": None if found is None else _matched(found),
    }


def _arm(table: Table, arm: Arm) -> dict[str, Any]:
    return {
        "label": arm.label,
        "strategy": arm.strategy,
        "settings": arm.settings if arm.known else None,
        "seeds": arm.seeds,
        "needs": list(dict.fromkeys(n for r in arm.results for n in r["needs"])),
        "selection": arm.results[0]["selection"],
        "runs": [str(run.folder) for run in arm.runs.values()],
        "values": {c.name: _plain_value(table.value(arm, c.name)) for c in table.columns},
    }


def _plain_value(v: Value) -> dict[str, Any]:
    by_seed = {str(seed): value for seed, value in v.by_seed.items()}
    if v.estimate is None:
        return {"mean": None, "undefined": v.reason, "by_seed": by_seed}
    return {**_estimate(v.estimate), "method": v.method, "by_seed": by_seed}


def _difference(d: Difference) -> dict[str, Any]:
    tests = {k: getattr(d, k) for k in ("p", "p_holm", "p_within", "p_within_holm", "says")}
    named = {"arm": d.arm, "measure": d.measure, "seeds": d.seeds, "method": d.method}
    return {**named, **_estimate(d.estimate), **tests}


def _matched(found: Matching) -> dict[str, Any]:
    rows = [
        {
            "label": m.label,
            "arms": list(m.arms),
            "along": m.along,
            "at": m.at,
            "new": _plain_value(m.new),
            "old": _plain_value(m.old),
        }
        for way in found.ways
        for m in found.along(way)
    ]
    differences = {
        way: [{**_difference(d), "minus": found.base[way]} for d in ds]
        for way, ds in found.differences.items()
    }
    return {"new_task": found.level, "rows": rows, "differences": differences}


def _estimate(e: Estimate) -> dict[str, Any]:
    return {"mean": _finite(e.mean), "low": _finite(e.low), "high": _finite(e.high), "n": e.n}


def _finite(x: float | None) -> float | None:
    """An interval without a bound has none in a file."""
    return x if x is not None and math.isfinite(x) else None


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()
