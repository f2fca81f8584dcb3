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

import numpy as np
from scipy.stats import t

BOOTSTRAP_FROM = 10
RESAMPLES = 10_000


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
    tail = (1 - level) / 2
    low, high = (bound(x, tail) for tail in (tail, 1 - tail))
    return Estimate(float(x.mean()), low, high, len(x))


def bound(x: np.ndarray, quantile: float) -> float:
    """The quantile of the mean's distribution, by t or by bootstrap."""
    if len(x) < 2:
        return -np.inf if quantile < 0.5 else np.inf
    if len(x) < BOOTSTRAP_FROM:
        return float(x.mean() + t.ppf(quantile, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(np.quantile(_resampled(x), quantile))


def tail(values: Sequence[float], border: float, *, above: bool) -> float:
    """One-sided p-value of "the mean is not above (below) the border"."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return 1.0
    sign = 1 if above else -1
    if len(x) < BOOTSTRAP_FROM:
        spread = x.std(ddof=1) / np.sqrt(len(x))
        gap = sign * (x.mean() - border)
        if spread == 0:
            return 0.0 if gap > 0 else 1.0
        return float(t.sf(gap / spread, len(x) - 1))
    wrong = np.sum(sign * (_resampled(x) - border) <= 0)
    return float((wrong + 1) / (RESAMPLES + 1))


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
    x = x.reshape(len(x), -1)  # [S, N]
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


def _resampled(x: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES draws with replacement, the same ones every time."""
    index = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    return x[index].mean(1)
