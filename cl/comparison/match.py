"""Arms at equal plasticity: what is left of old tasks where the new one is known equally well.

An arm that learns new tasks worse forgets less by that alone. `--match new_task=0.9` therefore
looks at every arm where the new task's *validation* score is 0.9 (V, never R: what is chosen is not
what is reported) and reports *test* scores of old tasks there. Two ways, each a table of its own:

along updates    for runs with evaluations within experiences (`eval.every`). In each experience
                 from the second on: the first evaluation at which V of what it teaches is at or
                 above the level, and the one before it; the share w of the way between them at
                 which V crosses the level, linearly; old = mean over past evals of the test score,
                 at the same share w. The run's number is the mean over those experiences. Each
                 experience counts by itself: the one after it starts from its end, not from there.
along a setting  for arms that differ in one number. V of new tasks, mean over experiences and over
                 the seeds that all of them have, as a function of that setting, joined by straight
                 lines; where it crosses the level (of several places that at which V of past evals
                 is highest), old = mean over past evals of the last test scores, interpolated
                 between both neighbours, seed by seed.

An arm that does not get there in every experience and seed is not matched, and it is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cl.comparison.arms import Arm, Section
from cl.comparison.measured import Difference, Value, differences_from
from cl.comparison.read import Run, curve_lines
from cl.config import show
from cl.errors import BadValue, UsageError, nearest
from cl.metrics import past
from cl.statistics import described, statistic_of, summary

NEW, OLD = "new_task", "old_tasks"
UPDATES = "updates"


@dataclass(frozen=True)
class Matched:
    """An arm, or arms along a setting, at the level.

    at: updates into the experience, or the setting's value, mean over seeds; new: the new task's
    test score there; old: what is asked for.
    """

    label: str
    strategy: str
    arms: tuple[str, ...]
    along: str
    at: float | None
    new: Value
    old: Value


@dataclass
class Matching:
    """All that could be matched in a section, way by way.

    base: by way the row that others are compared with, the baseline or one of its strategy.
    """

    level: float
    rows: list[Matched]
    base: dict[str, str]
    differences: dict[str, list[Difference]]

    def along(self, way: str) -> list[Matched]:
        """Rows of one way, those with most kept first."""
        found = [row for row in self.rows if row.along == way]
        return sorted(found, key=lambda m: -m.old.estimate.mean if m.old.estimate else math.inf)

    @property
    def ways(self) -> list[str]:
        """What was interpolated along."""
        return list(dict.fromkeys(row.along for row in self.rows))


def level_of(text: str | None) -> float | None:
    """0.9 of `new_task=0.9`. Raises UsageError, BadValue."""
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if name != NEW or not equals:
        raise UsageError(f"--match takes {NEW}=SCORE, got {text!r}{nearest(name, [NEW])}")
    try:
        level = float(value)
    except ValueError:
        level = math.nan
    if not 0 < level <= 1:
        raise BadValue(f"--match {NEW} must be a score above 0 and up to 1, got {value!r}")
    return level


def matching(section: Section, level: float, baseline: Arm) -> Matching:
    """Every arm with evaluations within experiences, and every family along one setting."""
    rows = [found for arm in section.arms if (found := _along_updates(arm, level)) is not None]
    for key, arms in _families(section.arms):
        rows.append(_along_setting(key, arms, level))
    base, differences = {}, {}
    for way in dict.fromkeys(row.along for row in rows):
        own = [row for row in rows if row.along == way and row.old.estimate is not None]
        first = [row for row in own if baseline.label in row.arms]
        first += [row for row in own if row.strategy == baseline.strategy]
        if first and len(own) > 1:
            values = {row.label: row.old.by_seed for row in own}
            base[way] = first[0].label
            domain = section.example["domain"]
            differences[way] = differences_from(base[way], OLD, values, domain)
    return Matching(level, rows, base, differences)


def unmatched(section: Section, found: Matching) -> list[str]:
    """A line for each arm that is not matched."""
    rows = [m for m in found.rows if m.old.estimate is None]
    lines = [f"{m.label} along {m.along}: {m.old.reason}" for m in rows]
    tried = {label for m in found.rows for label in m.arms}
    rest = [arm.label for arm in section.arms if arm.label not in tried]
    if rest:
        why = "no evaluations within experiences (eval.every), no sibling with another number"
        lines.append(f"{', '.join(rest)}: {why}")
    return lines


# -- along updates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crossing:
    """One experience of one run at the level: updates into it, test scores there."""

    at: float
    new: float
    old: float


def _along_updates(arm: Arm, level: float) -> Matched | None:
    """None for an arm without evaluations within experiences."""
    if not any(run.results["metrics"].get("eval_every") for run in arm.runs.values()):
        return None
    found: dict[int, list[_Crossing]] = {}
    for seed, run in arm.runs.items():
        try:
            found[seed] = crossings(run, level)
        except BadValue as short:
            missing = Value(None, {}, reason=f"seed {seed}: {short}")
            return Matched(arm.label, arm.strategy, (arm.label,), UPDATES, None, missing, missing)
    at = np.mean([c.at for own in found.values() for c in own])
    new, old = (
        _value(
            {s: float(np.mean([getattr(c, name) for c in own])) for s, own in found.items()}, arm
        )
        for name in ("new", "old")
    )
    return Matched(arm.label, arm.strategy, (arm.label,), UPDATES, float(at), new, old)


def crossings(run: Run, level: float) -> list[_Crossing]:
    """Where each experience with a past first reaches the level. Raises BadValue if one doesn't."""
    lines = [line for line in curve_lines(run) if line["kind"] != "untrained"]
    at = [e["learned_at"] for e in run.results["evals"]]
    found = []
    for i in range(1, run.n_experiences):
        old, own = past(at, i), [j for j in range(len(at)) if i in at[j]]
        if not old or not own:
            continue
        before = [line for line in lines if line["experience"] == i - 1][-1:]
        rows = before + [line for line in lines if line["experience"] == i]
        if not rows:
            raise BadValue(f"experience {i} has no lines in curves.jsonl")
        points = [
            (
                line["updates"] - before[0]["updates"] if before else line["updates"],
                *(_mean(line["val"], own), _mean(line["test"], own), _mean(line["test"], old)),
            )
            for line in rows
        ]
        found.append(_first_crossing(points, level, i))
    if not found:
        raise BadValue("no experience has a past")
    return found


def _first_crossing(points: list[tuple], level: float, i: int) -> _Crossing:
    """points: (updates, V of new, R of new, R of old) in order, nan where undefined."""
    reached = next((k for k, (_, v, *_) in enumerate(points) if v >= level), None)
    if reached is None:
        known = [v for _, v, *_ in points if not math.isnan(v)]
        if not known:
            raise BadValue(f"experience {i} has no validation scores")
        raise BadValue(f"experience {i} never reaches {level:g}, its best is {max(known):.3f}")
    here = np.array(points[reached], dtype=float)
    if reached and not np.isnan(points[reached - 1]).any():
        below = np.array(points[reached - 1], dtype=float)
        share = (level - below[1]) / (here[1] - below[1])
        here = below + share * (here - below)
    if np.isnan(here).any():
        raise BadValue(f"experience {i} has no test scores where it reaches {level:g}")
    return _Crossing(here[0], here[2], here[3])


def _mean(row: Sequence[float | None], chosen: Sequence[int]) -> float:
    values = [row[j] for j in chosen]
    return math.nan if None in values else float(np.mean(values))


# -- along a setting -------------------------------------------------------------------------------


def _families(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """(key, arms by its value) of all that differ in the number of one setting alone."""
    found: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        for key, value in arm.own.items():
            if arm.known and _is_number(value):
                rest = {k: v for k, v in arm.own.items() if k != key}
                found.setdefault((key, f"{arm.strategy} {sorted(rest.items())}"), []).append(arm)
    return [
        (key, sorted(family, key=lambda arm: arm.own[key]))
        for (key, _), family in found.items()
        if len(family) > 1
    ]


def _along_setting(key: str, arms: list[Arm], level: float) -> Matched:
    short, labels = key.removeprefix("strategy."), tuple(arm.label for arm in arms)
    values = [show(arm.own[key]) for arm in arms]
    label = labels[0].replace(f"{short}={values[0]}", f"{short}={','.join(values)}")

    def missing(why: str) -> Matched:
        value = Value(None, {}, reason=why)
        return Matched(label, arms[0].strategy, labels, short, None, value, value)

    seeds = [s for s in arms[0].seeds if all(s in arm.runs for arm in arms)]
    if not seeds:
        return missing("its arms share no seed")
    scores = np.array([[_finals(arm.runs[s]) for s in seeds] for arm in arms])  # [A, S, 4]
    if np.isnan(scores).any():
        return missing("a score on new or past tasks is undefined, of validation data perhaps")
    V, V_past = scores[..., 0].mean(1), scores[..., 1].mean(1)  # [A]
    places = [p for k in range(len(arms) - 1) if (p := _between(V, k, level)) is not None]
    if not places:
        most, least = V.max(), V.min()
        side = f"its best is {most:.3f}" if most < level else f"all are above, from {least:.3f}"
        return missing(f"no setting crosses {level:g}, {side}")
    k, w = max(places, key=lambda p: (1 - p[1]) * V_past[p[0]] + p[1] * V_past[p[0] + 1])
    at = (1 - w) * arms[k].own[key] + w * arms[k + 1].own[key]
    mixed = (1 - w) * scores[k] + w * scores[k + 1]  # [S, 4]
    new, old = (_value(dict(zip(seeds, mixed[:, c].tolist())), arms[0]) for c in (2, 3))
    return Matched(label, arms[0].strategy, labels, short, at, new, old)


def _between(V: np.ndarray, k: int, level: float) -> tuple[int, float] | None:
    """(k, share of the way to k + 1) where the straight line between both is at the level."""
    a, b = V[k], V[k + 1]
    if (a - level) * (b - level) > 0:
        return None
    return k, 0.0 if a == b else float((level - a) / (b - a))


def _finals(run: Run) -> tuple[float, float, float, float]:
    """V of new and of past tasks, R of both; nan where undefined."""
    at = [e["learned_at"] for e in run.results["evals"]]
    last = run.n_experiences - 1
    old, found = past(at, last), []
    for name in ("V", "R"):
        rows = run.results[name]
        if rows is None or not old:
            return (math.nan,) * 4
        new = [
            _mean(rows[i], own)
            for i in range(last + 1)
            if (own := [j for j in range(len(at)) if i in at[j]])
        ]
        found += [float(np.mean(new)), _mean(rows[last], old)]
    return found[0], found[1], found[2], found[3]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(by_seed: dict[int, float], arm: Arm) -> Value:
    statistic = statistic_of(arm.first.results["domain"], len(by_seed))
    found = summary(list(by_seed.values()), statistic)
    return Value(found, by_seed, described(found.n, statistic))
