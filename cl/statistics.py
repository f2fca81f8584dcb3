"""Intervals and tests of means over seeds; pure functions.

Below ten values a t-interval, from ten on a percentile bootstrap (10,000 resamples, fixed seed).
Reinforcement learning, whose returns have outliers, takes interquartile means of at least ten.
Source  Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", NeurIPS 2021,
        arXiv:2108.13264 (bootstrap, interquartile mean); Schuirmann 1987 (two
        one-sided tests); Holm 1979
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import fdtri, stdtr, stdtrit  # scipy.stats takes half a second to import

BOOTSTRAP_FROM = 10
RESAMPLES = 10_000
SAME = 1e-12  # differences this far apart are rounding: there is no spread to test against


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and its confidence interval [low, high]."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and interval of `values` [n]; one value has an interval without bounds."""
    x = np.asarray(values, dtype=float)
    low, high = _bounds(x, (1 - level) / 2)
    return Estimate(float(x.mean()), low, high, len(x))


def _bounds(x: np.ndarray, tail: float) -> tuple[float, float]:
    """The quantiles `tail` and 1 - `tail` of the mean's distribution, by t or by bootstrap."""
    if len(x) < 2:
        return -np.inf, np.inf
    if len(x) < BOOTSTRAP_FROM:
        half = stdtrit(len(x) - 1, 1 - tail) * x.std(ddof=1) / np.sqrt(len(x))
        return float(x.mean() - half), float(x.mean() + half)
    low, high = np.quantile(_resampled(x), (tail, 1 - tail))
    return float(low), float(high)


def tail(values: Sequence[float], border: float, *, above: bool) -> float:
    """One-sided p-value of "the mean is not above (below) the border"."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return 1.0
    sign = 1 if above else -1
    if len(x) < BOOTSTRAP_FROM:
        return _t_tail(x, border, sign)
    wrong = np.sum(sign * (_resampled(x) - border) <= 0)
    return float((wrong + 1) / (RESAMPLES + 1))


def statistic_of(domain: str, n: int) -> str:
    """What stands for n seeds: `iqm`, the interquartile mean, of ten policies or more, or `mean`.

    It has the same meaning for the intervals of `summary`.
    """
    return "iqm" if domain == "rl" and n >= BOOTSTRAP_FROM else "mean"


def summary(values: Sequence[float], statistic: str = "mean") -> Estimate:
    """`estimate` or `iqm_estimate` of values [n]."""
    return estimate(values) if statistic == "mean" else iqm_estimate(np.asarray(values))


def described(n: int, statistic: str = "mean") -> str:
    """The method of `summary` over n seeds, in words."""
    if n < 2:
        return "one seed: no interval"
    if n < BOOTSTRAP_FROM and statistic == "mean":
        return "mean, 95 % t-interval"
    of = "interquartile mean" if statistic == "iqm" else "mean"
    return f"{of}, 95 % stratified bootstrap"


def two_sided(differences: Sequence[float], statistic: str = "mean") -> float | None:
    """p-value of paired differences [n]: the t-test of "their mean is 0"; iqm: by bootstrap.

    None where there is nothing to test against: fewer than two, or all the same and not 0.
    """
    x = np.asarray(differences, dtype=float)
    if len(x) < 2:
        return None
    if np.ptp(x) < SAME:
        return 1.0 if abs(x[0]) < SAME else None
    if statistic == "iqm":
        least = min(iqm_tail(x, 0.0, above=above) for above in (True, False))
    else:
        least = min(_t_tail(x, 0.0, sign) for sign in (1, -1))
    return min(1.0, 2 * least)


def equivalence(
    differences: Sequence[float], within: float, statistic: str = "mean"
) -> float | None:
    """p-value of "the mean of paired differences [n] is not between -within and within".

    Two one-sided t-tests (Schuirmann 1987), the larger p of both; iqm: by bootstrap. None with
    fewer than two differences, or where all are the same and within.
    """
    x = np.asarray(differences, dtype=float)
    if len(x) < 2:
        return None
    if np.ptp(x) < SAME:
        return None if abs(x[0]) < within else 1.0
    if statistic == "iqm":
        low, high = iqm_tail(x, -within, above=True), iqm_tail(x, within, above=False)
    else:
        low, high = _t_tail(x, -within, 1), _t_tail(x, within, -1)
    return max(low, high)


def band(x: np.ndarray, statistic: str = "mean") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high), each [E], of `summary` for every column of x [S, E].

    A column that has a nan has nan; one seed has a band without width.
    """
    x = np.asarray(x, dtype=float)
    if len(x) < 2:
        return x[0], x[0], x[0]
    if statistic == "iqm":
        found = [iqm_estimate(column) for column in x.T]
        mean, low, high = np.array([(e.mean, e.low, e.high) for e in found]).reshape(-1, 3).T
        return np.where(np.isnan(x).any(0), np.nan, [mean, low, high])
    mean, n = x.mean(0), len(x)
    if n < BOOTSTRAP_FROM:
        half = stdtrit(n - 1, 0.975) * x.std(0, ddof=1) / np.sqrt(n)
        return mean, mean - half, mean + half
    drawn = _drawn(n)
    shares = np.zeros((RESAMPLES, n))
    np.add.at(shares, (np.arange(RESAMPLES)[:, None], drawn), 1 / n)
    low, high = np.quantile(shares @ x, (0.025, 0.975), axis=0)
    return mean, low, high


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given (Holm 1979, step-down)."""
    order = np.argsort(p)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = largest
    return adjusted


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter of all values.

    A quarter of n that is no whole number is rounded down, as in rliable.
    """
    return float(_trimmed(np.asarray(scores, dtype=float).reshape(1, -1))[0])


def iqm_estimate(scores: np.ndarray, level: float = 0.95, *, whole: bool = False) -> Estimate:
    """IQM of scores [S] or [S, N], S seeds of N tasks, and its stratified bootstrap interval.

    Seeds are drawn again with replacement, task by task, as is right where each task had runs of
    its own; whole: the N scores of a run stay together, as is right for the tasks of one stream.
    A single seed has an interval without bounds.
    """
    x = np.asarray(scores, dtype=float)
    if len(x) < 2:
        return Estimate(iqm(x), -np.inf, np.inf, len(x))
    tail = (1 - level) / 2
    low, high = np.quantile(_resampled_iqm(x, whole), (tail, 1 - tail))
    return Estimate(iqm(x), float(low), float(high), len(x))


def iqm_tail(scores: np.ndarray, border: float, *, above: bool, whole: bool = False) -> float:
    """One-sided p-value of "the interquartile mean is not above (below) the border"."""
    x = np.asarray(scores, dtype=float)
    if len(x) < 2:
        return 1.0
    sign = 1 if above else -1
    wrong = np.sum(sign * (_resampled_iqm(x, whole) - border) <= 0)
    return float((wrong + 1) / (RESAMPLES + 1))


def _resampled_iqm(x: np.ndarray, whole: bool) -> np.ndarray:
    """IQMs of RESAMPLES draws with replacement, the same ones every time."""
    return _iqms(x.tobytes(), len(x), whole)


@lru_cache(maxsize=8)  # an interval and four tests ask for the same ones
def _iqms(data: bytes, n: int, whole: bool) -> np.ndarray:
    x = np.frombuffer(data).reshape(n, -1)  # [S, N]
    rng, strata = np.random.default_rng(0), 1 if whole else x.shape[1]
    found = []
    for _ in range(10):  # in parts, for memory
        index = rng.integers(0, len(x), (RESAMPLES // 10, len(x), strata))
        drawn = np.take_along_axis(
            x[None], np.broadcast_to(index, (*index.shape[:2], x.shape[1])), 1
        )
        found.append(_trimmed(drawn.reshape(len(index), -1)))
    return np.concatenate(found)


def _trimmed(x: np.ndarray) -> np.ndarray:
    """Mean of the middle half of each row."""
    cut = x.shape[1] // 4
    return np.sort(x, 1)[:, cut : x.shape[1] - cut].mean(1)


def ellipse(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Confidence region (95 %) of the mean of points [S, 2]: (centre, half axes, directions).

    Hotelling's T^2: the points m with (mean - m)' C^-1 (mean - m) <= 2 (S-1) / (S (S-2)) F, C the
    covariance, F the quantile of F(2, S-2). directions [2, 2]: one column for each half axis, the
    shorter first. None below four points, where it says nothing.
    """
    x = np.asarray(x, dtype=float)
    n = len(x)
    if n < 4:
        return None
    spread, directions = np.linalg.eigh(np.cov(x.T))
    factor = 2 * (n - 1) / (n * (n - 2)) * fdtri(2, n - 2, 0.95)
    return x.mean(0), np.sqrt(factor * spread.clip(0)), directions


def _t_tail(x: np.ndarray, border: float, sign: int) -> float:
    """One-sided p-value of Student's t-test; sign 1: of "not above the border", -1: "not below"."""
    spread = x.std(ddof=1) / np.sqrt(len(x))
    gap = sign * (x.mean() - border)
    if spread == 0:
        return 0.0 if gap > 0 else 1.0
    return float(stdtr(len(x) - 1, -gap / spread))


def _resampled(x: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES draws with replacement, the same ones every time."""
    return x[_drawn(len(x))].mean(1)


@lru_cache(maxsize=4)
def _drawn(n: int) -> np.ndarray:
    """Positions [RESAMPLES, n] of n values drawn again with replacement."""
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
