"""Arms to numbers: means with intervals, paired differences, equivalence.

A measure is undefined for an arm if one of its seeds has none: a mean over the seeds in which it
happens to have a meaning would be one of other seeds than the next arm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cl.comparison.arms import Arm, Section
from cl.comparison.read import Note
from cl.comparison.remarks import grids, listed
from cl.errors import ContractError, UsageError, unknown
from cl.measures import measure
from cl.statistics import (
    Estimate,
    described,
    equivalence,
    holm,
    statistic_of,
    summary,
    two_sided,
)

SCORE = "average_accuracy"
PLAIN = "naive"  # what others are compared with if nothing else is asked for
LEVEL = 0.05


@dataclass(frozen=True)
class Column:
    """A measure of `cl/measures.py`: its title and unit, what it means.

    always: shown even where no arm has it; test: differences from the baseline are tested.
    """

    name: str
    title: str
    unit: str = ""
    always: bool = False
    test: bool = False
    meaning: str = ""


SCORES = (
    Column(SCORE, "average accuracy", "", True, True, "mean of R's last row"),
    Column("mean_plasticity", "plasticity", "", True, True, "score on what was just learned, mean"),
    Column(
        "stability", "stability", "", True, True, "past scores at the end over those when learned"
    ),
    Column("forgetting", "forgetting", "", True, meaning="best past score minus the last, mean"),
    Column(
        "backward_transfer", "backward transfer", "", True, True, "last score minus when learned"
    ),
    Column("average_incremental_accuracy", "average incremental", meaning="mean of seen accuracy"),
    Column("held_out", "held out", meaning="mean score on what no experience teaches, at the end"),
    Column("min_acc", "min-ACC", meaning="lowest score since learned, mean over past (eval.every)"),
    Column("wc_acc", "WC-ACC", meaning="mean of those minima and the last score (eval.every)"),
    Column("anytime_accuracy", "anytime", meaning="area under the seen accuracy (eval.every)"),
    Column("prequential_accuracy", "prequential", meaning="answers right on arrival (online)"),
    Column("cw_average_performance", "CW performance", meaning="Continual World's"),
    Column("cw_forgetting", "CW forgetting", meaning="Continual World's"),
    Column("cw_forward_transfer", "CW forward transfer", meaning="Continual World's"),
)
COSTS = (
    Column("train_seconds", "training", "s", True, meaning="seconds, evaluation not counted"),
    Column("updates", "updates", "", True, meaning="optimizer steps"),
    Column("samples_seen", "samples", meaning="rows trained on, replayed ones too"),
    Column("tokens_seen", "tokens", meaning="tokens that went through the model"),
    Column("env_steps", "environment steps"),
    Column("flops", "FLOPs", meaning="floating-point operations of training"),
    Column("peak_memory_bytes", "peak memory", "B"),
    Column(
        "stored_bytes", "stored", "B", True, meaning="kept between experiences: buffers, models"
    ),
)
ON_A_GRID = ("min_acc", "wc_acc", "anytime_accuracy")


@dataclass(frozen=True)
class Value:
    """An arm's estimate of a measure, or why it has none."""

    estimate: Estimate | None
    by_seed: dict[int, float]
    method: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline on shared seeds; p: two-sided, p_within: of being not within.

    Both corrected by Holm over the arms of the table; None where there is nothing to test.
    """

    arm: str
    measure: str
    estimate: Estimate
    seeds: list[int]
    method: str
    p: float | None
    p_holm: float | None = None
    p_within: float | None = None
    p_within_holm: float | None = None

    @property
    def says(self) -> str:
        """In a word: above, below, within, equal or undecided, at the 5 % level."""
        within = self.p_within_holm is not None and self.p_within_holm < LEVEL
        if self.p_holm is not None and self.p_holm < LEVEL:
            side = "above" if self.estimate.mean > 0 else "below"
            return f"{side}, within" if within else side
        if within:
            return "within"
        same = self.estimate.n > 1 and self.estimate.low == self.estimate.high == 0
        return "equal" if same else "undecided"


@dataclass
class Table:
    """A section in numbers, its arms sorted by score. differences: {measure: [per other arm]}."""

    section: Section
    columns: list[Column]
    arms: list[Arm]
    values: dict[str, dict[str, Value]]
    baseline: Arm
    within: float
    differences: dict[str, list[Difference]]

    def value(self, arm: Arm, name: str) -> Value:
        """An arm's estimate."""
        return self.values[arm.label][name]

    @property
    def footnotes(self) -> dict[str, dict[tuple[str, ...], list[str]]]:
        """{reason: {measures: arms that have none of them}}."""
        found: dict[str, dict[tuple[str, ...], list[str]]] = {}
        for arm in self.arms:
            missing: dict[str, list[str]] = {}
            for column in self.columns:
                value = self.value(arm, column.name)
                if value.estimate is None:
                    missing.setdefault(value.reason, []).append(column.title)
            for why, titles in missing.items():
                found.setdefault(why, {}).setdefault(tuple(titles), []).append(arm.label)
        return found


def table(section: Section, baseline: str | None, within: float) -> Table:
    """All numbers of a section. Raises UnknownName if `baseline` names none of its arms."""
    several = len(grids(section)) > 1
    columns = [_titled(column, section) for column in (*SCORES, *COSTS)]
    values = {
        arm.label: {c.name: _value(arm, c.name, several) for c in columns} for arm in section.arms
    }
    columns = [c for c in columns if c.always or _some(c, values)]
    arms = sorted(section.arms, key=lambda arm: _rank(values[arm.label][SCORE]))
    base = _baseline(arms, baseline)
    differences = {
        c.name: differences_from(
            *(base.label, c.name, _known(values, c.name, arms), section.example["domain"], within)
        )
        for c in columns
        if c.test
    }
    return Table(section, columns, arms, values, base, within, differences)


def _known(values: dict, name: str, arms: Sequence[Arm]) -> dict[str, dict[int, float]]:
    """{arm: {seed: number}} of those that have a measure in all of their seeds."""
    found = {arm.label: values[arm.label][name] for arm in arms}
    return {label: v.by_seed for label, v in found.items() if v.estimate is not None}


def _titled(column: Column, section: Section) -> Column:
    """Of policies nothing is an accuracy."""
    if section.example["score"] == "normalized_return":
        return replace(column, title=column.title.replace("accuracy", "score"))
    return column


def _some(column: Column, values: dict[str, dict[str, Value]]) -> bool:
    """Whether an arm has something other than nothing."""
    found = [row[column.name].estimate for row in values.values()]
    if column in COSTS:
        return any(e is not None and e.mean for e in found)
    return any(e is not None for e in found)


def _value(arm: Arm, name: str, several_grids: bool) -> Value:
    if name in ON_A_GRID and several_grids:
        return Value(None, {}, reason="arms were evaluated on different grids (eval.every)")
    by_seed, missing = {}, {}
    for seed, run in arm.runs.items():
        try:
            by_seed[seed] = measure(name, run.results)
        except ContractError:
            missing[seed] = reason(run.results, name)
    if missing:
        why = next(iter(missing.values()))
        some = f"undefined in seeds {listed(list(missing))} of {len(arm.runs)}: " if by_seed else ""
        return Value(None, by_seed, reason=some + why)
    statistic = statistic_of(arm.first.results["domain"], len(by_seed))
    if any(name == c.name for c in COSTS):
        statistic = "mean"
    found = summary(list(by_seed.values()), statistic)
    return Value(found, by_seed, described(found.n, statistic))


def reason(results: dict, name: str) -> str:
    """Why a run has no such number, as its results say."""
    undefined = results["undefined"]
    plain = name.removeprefix("mean_")
    last = len(results["R"]) - 1
    paths = [f"metrics.{plain}", f"metrics.{plain}[{last}]"]
    if plain != name:
        paths += [f"metrics.{plain}[{i}]" for i in range(last)]
    return next((undefined[p] for p in paths if p in undefined), "its results do not have it")


def _rank(value: Value) -> float:
    return -value.estimate.mean if value.estimate is not None else math.inf


def _baseline(arms: Sequence[Arm], name: str | None) -> Arm:
    """By label, or the only arm (or the plainest) of a strategy; else `PLAIN`, else the first."""
    for wanted in [PLAIN] if name is None else [name]:
        by_label = [arm for arm in arms if arm.label == wanted]
        of_strategy = [arm for arm in arms if arm.label.split(" ")[0] == wanted]
        if by_label or of_strategy:
            return min(by_label or of_strategy, key=lambda arm: len(arm.label))
    if name is not None:
        raise unknown("arm", name, [arm.label for arm in arms])
    return arms[0]


def differences_from(
    base: str, name: str, values: dict[str, dict[int, float]], domain: str, within: float = 0.0
) -> list[Difference]:
    """Of all but `base` that share a seed with it; values: {arm: {seed: number}}.

    within 0: nothing is tested for equivalence.
    """
    found, theirs = [], values.get(base, {})
    for label, own in values.items():
        shared = [seed for seed in own if seed in theirs]
        if label == base or not shared:
            continue
        x = np.array([own[seed] - theirs[seed] for seed in shared])
        statistic = statistic_of(domain, len(x))
        found.append(
            Difference(
                *(label, name, summary(x, statistic), shared, described(len(x), statistic)),
                p=two_sided(x, statistic),
                p_within=equivalence(x, within, statistic) if within else None,
            )
        )
    p, p_within = (_corrected([getattr(d, key) for d in found]) for key in ("p", "p_within"))
    return [
        replace(d, p_holm=a, p_within_holm=b) for d, a, b in zip(found, p, p_within, strict=True)
    ]


def _corrected(p: Sequence[float | None]) -> list[float | None]:
    """Holm over those that could be tested."""
    adjusted = iter(holm([value for value in p if value is not None]))
    return [None if value is None else next(adjusted) for value in p]


def tables_of(
    sections: Sequence[Section], baseline: str | None, within: float, notes: list[Note]
) -> list[Table]:
    """Of every section; a baseline that only some of them have is the others' usual one.

    Raises UnknownName if none has it.
    """
    found, lacking, error = [], [], None
    for section in sections:
        try:
            found.append(table(section, baseline, within))
        except UsageError as refused:
            error = error or refused
            found.append(table(section, None, within))
            lacking.append(found[-1])
    if error is not None and len(lacking) == len(sections):
        raise error
    for t in lacking:
        text = f"{t.section.title}: no arm {baseline!r}; compared with {t.baseline.label}"
        notes.append(Note("baseline", text))
    return found
