"""From finished runs to a verdict: values per seed, intervals, bars, the null control."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cl.claims import LEAST_SEEDS, Bar, Claim
from cl.errors import ContractError
from cl.measures import measure
from cl.statistics import Estimate, estimate, holm, tail

VERDICTS = ("reproduced", "differs", "inconclusive", "not attempted")
LEVEL = 0.95

Results = dict[str, dict[int, dict]]  # {arm: {seed: results.json}}


@dataclass(frozen=True)
class Judged:
    """A bar with its values per seed, their mean with interval, and what follows."""

    bar: Bar
    values: list[float]
    estimate: Estimate
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """All of a claim; `reason` says why the verdict is not the primary bar's."""

    verdict: str
    reason: str
    primary: Judged
    bars: list[Judged]
    controls: list[Judged]
    null: Judged
    arms: dict[str, Estimate]


def judge(claim: Claim, results: Results, *, quick: bool = False) -> Judgement:
    """Judge every bar; the primary one decides.

    Interval of the paired differences over seeds (ratios: of their logarithms). The other bars
    are corrected for their number (Holm). A null control that clears its bar takes the verdict
    `reproduced` away: what shows where it can't be is not the claimed effect.
    """
    primary = _judged(claim.primary, results)
    null = _judged(claim.null_control, results)
    verdict, reason = primary.verdict, ""
    if verdict == "reproduced" and null.verdict == "reproduced":
        verdict = "inconclusive"
        reason = f"the null control shows the effect too ({claim.null_control.title})"
    if quick or len(primary.values) < LEAST_SEEDS:
        n = len(primary.values)
        reason = "--quick only tries everything out" if quick else f"{n} seeds are too few"
        verdict = "not attempted"
    return Judgement(
        verdict,
        reason,
        primary,
        _corrected([_judged(bar, results) for bar in claim.bars]),
        [_judged(bar, results) for bar in claim.controls],
        null,
        {
            arm: estimate([measure(claim.primary.measure, r) for r in by_seed.values()])
            for arm, by_seed in results.items()
        },
    )


def values(bar: Bar, results: Results) -> list[float]:
    """One number per seed. Raises ContractError where a ratio has no meaning."""
    own = results[bar.of]
    found = [measure(bar.measure, own[seed]) for seed in own]
    other = bar.minus or bar.over
    if other is None:
        return found
    paired = [measure(bar.measure, results[other][seed]) for seed in own]
    if bar.minus:
        return [a - b for a, b in zip(found, paired, strict=True)]
    if min(*found, *paired) <= 0:
        raise ContractError(f"{bar.title}: a ratio needs values above 0")
    return [a / b for a, b in zip(found, paired, strict=True)]


def _scaled(bar: Bar, x: float) -> float:
    """Where intervals are taken: ratios on a log scale."""
    return math.log(x) if bar.over else x


def _judged(bar: Bar, results: Results) -> Judged:
    found = values(bar, results)
    e = estimate([_scaled(bar, v) for v in found], LEVEL)
    if bar.over:
        e = Estimate(*(math.exp(min(v, 700)) for v in (e.mean, e.low, e.high)), e.n)
    return Judged(bar, found, e, _verdict(bar, e))


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


def _corrected(judged: list[Judged]) -> list[Judged]:
    """Secondary bars: what does not survive Holm's correction is inconclusive."""
    adjusted = holm([_p(j) for j in judged])
    return [
        j if p <= 1 - LEVEL else Judged(j.bar, j.values, j.estimate, "inconclusive")
        for j, p in zip(judged, adjusted, strict=True)
    ]


def _p(judged: Judged) -> float:
    """Two-sided p-value of the better supported of `it clears the bar` and `it excludes it`."""
    bar = judged.bar
    low, high = (_scaled(bar, b) if 0 < b < math.inf or not bar.over else b for b in _region(bar))
    x = [_scaled(bar, v) for v in judged.values]
    above_low = tail(x, low, above=True) if low > -math.inf else 0.0
    below_high = tail(x, high, above=False) if high < math.inf else 0.0
    outside = [tail(x, low, above=False)] if low > -math.inf else []
    outside += [tail(x, high, above=True)] if high < math.inf else []
    return min(1.0, 2 * min(max(above_low, below_high), *outside))
