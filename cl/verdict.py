"""From finished runs to a verdict: values per seed, intervals, bars, the null control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cl.claims import EVERY, LEAST_SEEDS, Bar, Claim, listed
from cl.errors import ContractError
from cl.grids import Chosen, Results, chosen
from cl.measures import explained, measure
from cl.statistics import Estimate, estimate, holm, iqm_estimate, iqm_tail, tail

VERDICTS = ("reproduced", "differs", "inconclusive", "not attempted")
LEVEL = 0.95
ESTIMATES = {"mean": (estimate, tail), "iqm": (iqm_estimate, iqm_tail)}  # by statistic


@dataclass(frozen=True)
class Judged:
    """A bar with its values per seed, their mean with interval, and what follows.

    rows: [S, N] where it compares N lists of arms, whose means are the values.
    """

    bar: Bar
    values: list[float]
    estimate: Estimate
    verdict: str
    rows: list[list[float]] | None = None


@dataclass(frozen=True)
class Judgement:
    """All of a claim; `reason` says why the verdict is not the primary bar's.

    chosen: of every arm the runs that were judged.
    """

    verdict: str
    reason: str
    primary: Judged
    bars: list[Judged]
    controls: list[Judged]
    null: Judged
    arms: dict[str, Estimate]
    chosen: Chosen


def judge(
    claim: Claim, results: Results, *, quick: bool = False, seeds: Sequence[int] | None = None
) -> Judgement:
    """Judge every bar; the primary one decides.

    Interval of the paired differences over seeds (ratios: of their logarithms), of their mean or
    interquartile mean; one over several streams is a stratified bootstrap. The other bars
    are corrected for their number (Holm). A null control that clears its bar takes the verdict
    `reproduced` away: what shows where it can't be is not the claimed effect. So does an arm of
    either that is unmatched (`cl/grids.py`). results: of every member; seeds: those reported.
    """
    seeds = list(results[next(iter(claim.members))]) if seeds is None else seeds
    picked = chosen(claim, results, seeds)
    bases = {arm.get("from") for arm in claim.arms.values()}  # they precede what is compared
    every = {n: results[n] for n, (arm, _) in claim.members.items() if arm not in bases}

    def judged(bar: Bar) -> Judged:
        found = _judged(bar, picked.results, every, claim.statistic)
        lacking = any(arm in picked.unmatched for arm in bar.arms) and found.verdict != "reported"
        return replace(found, verdict="inconclusive") if lacking else found

    primary, null = judged(claim.primary), judged(claim.null_control)
    verdict, reason = _conclusion(claim, primary, null, picked)
    if quick or len(primary.values) < LEAST_SEEDS[claim.statistic]:
        n = len(primary.values)
        reason = "--quick only tries everything out" if quick else f"{n} seeds are too few"
        verdict = "not attempted"
    return Judgement(
        verdict,
        reason,
        primary,
        _corrected([judged(bar) for bar in claim.bars], claim.statistic),
        [judged(bar) for bar in claim.controls],
        null,
        _by_arm(claim.primary.measure, picked.results, claim.statistic),
        picked,
    )


def _conclusion(claim: Claim, primary: Judged, null: Judged, picked: Chosen) -> tuple[str, str]:
    """(verdict, why it is not the primary bar's)."""
    arms = *claim.primary.arms, *claim.null_control.arms
    unmatched = [arm for arm in dict.fromkeys(arms) if arm in picked.unmatched]
    if unmatched:
        arm = unmatched[0]
        seeds = ", ".join(map(str, picked.unmatched[arm]))
        missed = f"{arm}: no setting of its grid reaches {claim.choice(arm).condition}"
        return "inconclusive", f"{missed} (seeds {seeds})"
    if primary.verdict == null.verdict == "reproduced":
        shown = f"the null control shows the effect too ({claim.null_control.title})"
        return "inconclusive", shown
    return primary.verdict, ""


def _by_arm(name: str, results: Results, statistic: str) -> dict[str, Estimate]:
    """The primary measure of each arm that has it."""
    found, (of, _) = {}, ESTIMATES[statistic]
    for arm, by_seed in results.items():
        try:
            found[arm] = of([measure(name, r) for r in by_seed.values()])
        except ContractError:  # an arm that others start from need not have it
            continue
    return found


def values(bar: Bar, results: Results, every: Results | None = None) -> list[float]:
    """One number per seed, of the runs that are judged, or of `every` run for a fit.

    Over lists of arms their mean. Raises ContractError where a ratio or a fit has no meaning.
    """
    if bar.of == EVERY:
        return _fits(bar.measure, every or results, list(next(iter(results.values()))))
    return [sum(row) / len(row) for row in rows(bar, results)]


def rows(bar: Bar, results: Results) -> list[list[float]]:
    """Values [S, N] by seed of the arms in its lists, N = 1 if it names single ones."""
    minus, over = (listed(arms) or [None] * len(listed(bar.of)) for arms in (bar.minus, bar.over))
    columns = [
        _column(replace(bar, of=own, minus=m, over=o), results)
        for own, m, o in zip(listed(bar.of), minus, over, strict=True)
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(bar: Bar, results: Results) -> list[float]:
    own = results[bar.of]
    found = [measure(bar.measure, own[seed]) for seed in own]
    other = bar.minus or bar.over
    if other is None:
        return found
    paired = [measure(bar.measure, results[other][seed]) for seed in own]
    if bar.minus:
        return [a - bar.times * b for a, b in zip(found, paired, strict=True)]
    if min(*found, *paired) <= 0:
        raise ContractError(f"{bar.title}: a ratio needs values above 0")
    return [a / b for a, b in zip(found, paired, strict=True)]


def _fits(name: str, every: Results, seeds: Sequence[int]) -> list[float]:
    """R^2 per seed over all runs that have both measures."""
    y, _, x = name.removeprefix("r2:").partition("~")
    found = []
    for seed in seeds:
        pairs = []
        for by_seed in every.values():
            try:
                pairs.append((measure(x, by_seed[seed]), measure(y, by_seed[seed])))
            except (ContractError, KeyError):  # a base, or not run on this seed
                continue
        found.append(explained(*zip(*pairs, strict=True)) if pairs else explained([], []))
    return found


def _scaled(bar: Bar, x: float) -> float:
    """Where intervals are taken: ratios on a log scale."""
    return math.log(x) if bar.over else x


def _judged(
    bar: Bar, results: Results, every: Results | None = None, statistic: str = "mean"
) -> Judged:
    found, (of, _) = values(bar, results, every), ESTIMATES[statistic]
    table = rows(bar, results) if len(listed(bar.of)) > 1 else None
    e = of(_taken(bar, found, table, statistic), LEVEL)
    if bar.over:
        e = Estimate(*(math.exp(min(v, 700)) for v in (e.mean, e.low, e.high)), e.n)
    return Judged(bar, found, e, _verdict(bar, e), table)


def _taken(bar: Bar, found: list[float], table: list | None, statistic: str) -> list:
    """What a statistic is taken of: numbers by seed, or, of several streams, a table of them."""
    if table is None or statistic == "mean":
        return [_scaled(bar, v) for v in found]
    return [[_scaled(bar, v) for v in row] for row in table]


def _verdict(bar: Bar, e: Estimate) -> str:
    """By the interval alone: it clears the bar, excludes it, or neither; a control is reported."""
    low, high = _region(bar)
    if low == -math.inf and high == math.inf:
        return "reported"
    if low <= e.low and e.high <= high:
        return "reproduced"
    return "differs" if e.high < low or e.low > high else "inconclusive"


def _region(bar: Bar) -> tuple[float, float]:
    """Where the mean must lie."""
    if bar.at_least is not None:
        return bar.at_least, math.inf
    if bar.at_most is not None:
        return -math.inf, bar.at_most
    if bar.within is not None:
        return (1 / (1 + bar.within), 1 + bar.within) if bar.over else (-bar.within, bar.within)
    return -math.inf, math.inf


def _corrected(judged: list[Judged], statistic: str) -> list[Judged]:
    """Secondary bars: what does not survive Holm's correction is inconclusive."""
    adjusted = holm([_p(j, statistic) for j in judged])
    return [
        j if p <= 1 - LEVEL else replace(j, verdict="inconclusive")
        for j, p in zip(judged, adjusted, strict=True)
    ]


def _p(judged: Judged, statistic: str) -> float:
    """Two-sided p-value of the better supported of `it clears the bar` and `it excludes it`."""
    bar, (_, tail) = judged.bar, ESTIMATES[statistic]
    low, high = (_scaled(bar, b) if 0 < b < math.inf or not bar.over else b for b in _region(bar))
    x = _taken(bar, judged.values, judged.rows, statistic)
    above_low = tail(x, low, above=True) if low > -math.inf else 0.0
    below_high = tail(x, high, above=False) if high < math.inf else 0.0
    outside = [tail(x, low, above=False)] if low > -math.inf else []
    outside += [tail(x, high, above=True)] if high < math.inf else []
    return min(1.0, 2 * min(max(above_low, below_high), *outside))
