"""Metrics: pure functions of the recorded scores. Nothing here is stored that can't be recomputed.

R[i, j]: test score on eval j after experience i, [E, J], nan where undefined. learned_at[j]: the
experiences that teach eval j. l(i, j): the last of them at or before i. Eval j is *seen* at i if
l(i, j) exists and *past* if l(i, j) < i. One that is taught again at i is not past there.

Every function returns None (or a list holding None) where its value has no meaning. Row i of a
curve depends on rows 0..i alone; `start` leaves out the rows before it, which are known already.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import bdtr

LearnedAt = Sequence[Sequence[int]]
Curve = list[float | None]
CURVES = ("seen_accuracy", "plasticity", "stability", "past_accuracy")
CELL = "it needs a cell of R that is undefined"


def last_learned(learned_at: LearnedAt, i: int, j: int) -> int | None:
    """l(i, j): the last experience at or before i that teaches eval j."""
    before = [e for e in learned_at[j] if e <= i]
    return max(before) if before else None


def seen(learned_at: LearnedAt, i: int) -> list[int]:
    """Evals taught at or before experience i."""
    return np.flatnonzero(_seen(learned_at, i + 1)[i]).tolist()


def past(learned_at: LearnedAt, i: int) -> list[int]:
    """Evals taught before experience i and not in it."""
    return np.flatnonzero(_past(learned_at, i + 1)[i]).tolist()


def seen_accuracy(R: np.ndarray, learned_at: LearnedAt, n: Sequence[int], start: int = 0) -> Curve:
    """Curve over i: sum over seen j of n_j R[i, j] / sum over seen j of n_j."""
    chosen = _seen(learned_at, len(R))[start:]
    return _row_means(R[start:], chosen, np.array(n, dtype=float))


def average_incremental_accuracy(curve: Curve) -> float | None:
    """Mean of the seen-accuracy curve, state 0 included (FeTrIL, iCaRL tables)."""
    return None if None in curve or not curve else float(np.mean(curve))


def average_accuracy(R: np.ndarray, learned_at: LearnedAt) -> float | None:
    """Mean over learned evals of the last row (GEM, Avalanche tables)."""
    return _mean(R[-1, _seen(learned_at, len(R))[-1]])


def plasticity(R: np.ndarray, learned_at: LearnedAt, start: int = 0) -> Curve:
    """Curve R[i, i]: mean over the evals that experience i teaches."""
    i = np.arange(start, len(R))[:, None]
    return _row_means(R[start:], _last(learned_at, len(R))[start:] == i)


def past_accuracy(R: np.ndarray, learned_at: LearnedAt, start: int = 0) -> Curve:
    """Curve: mean over past j of R[i, j]; None at experience 0."""
    return _row_means(R[start:], _past(learned_at, len(R), start))


def stability(
    R: np.ndarray, learned_at: LearnedAt, chance: Sequence[float], start: int = 0
) -> Curve:
    """Curve: mean over past j of R[i, j] / R[l(i, j), j].

    Evals whose R[l, j] is at or below chance have no ratio and are left out (see
    `below_chance`); None where none is left.
    """
    then, was_past = _when_learned(R, learned_at, start)
    kept = was_past & ~(then <= np.array(chance))
    return _row_means(np.divide(R[start:], then, out=np.zeros_like(then), where=kept), kept)


def below_chance(
    R: np.ndarray, learned_at: LearnedAt, chance: Sequence[float]
) -> list[tuple[int, int]]:
    """(i, j) of the ratios that `stability` leaves out."""
    return list(map(tuple, np.argwhere(_below_chance(R, learned_at, chance)).tolist()))


def backward_transfer(R: np.ndarray, learned_at: LearnedAt) -> float | None:
    """Mean over past j of R[E-1, j] - R[l(j), j]."""
    then, was_past = _when_learned(R, learned_at, len(R) - 1)
    return _mean((R[-1] - then[0])[was_past[0]])


def forgetting(R: np.ndarray, learned_at: LearnedAt) -> float | None:
    """Mean over past j of (max over l(j) <= i < E-1 of R[i, j]) - R[E-1, j]."""
    js = np.flatnonzero(_past(learned_at, len(R), len(R) - 1))
    if np.isnan(R[-1, js]).any():
        return None
    since = _since_learned(learned_at, len(R))[:-1, js]
    best = np.where(since, R[:-1, js], -np.inf).max(0, initial=-np.inf)  # nan if any of them is
    return _mean(best - R[-1, js])


def forgetting_null_bias(R: np.ndarray, learned_at: LearnedAt, n: Sequence[int]) -> float | None:
    """Forgetting that noise alone would show, for scores that are shares of n_j right answers.

    Under the null every R[i, j] from l(j) on is an independent draw k/n_j with
    k ~ Binomial(n_j, p_j), p_j the mean of those scores. The maximum over the m rows before the
    last then exceeds the last by E[max of m draws] - p_j; this is the mean of that over past j.
    Test items are the same each time, so real scores are less noisy: read it as an upper bound.
    """
    js = np.flatnonzero(_past(learned_at, len(R), len(R) - 1))
    if not len(js) or np.isnan(R[-1, js]).any():
        return None
    since = _since_learned(learned_at, len(R))[:, js]
    p = np.where(since, R[:, js], 0).sum(0) / since.sum(0)
    if np.isnan(p).any():
        return None
    m, n_past = since.sum(0) - 1, np.array(n)[js]
    which = np.repeat(np.arange(len(js)), n_past)
    k = np.arange(len(which)) - np.repeat(n_past.cumsum() - n_past, n_past)  # 0..n_j-1 each
    below = bdtr(k, n_past[which], p[which]) ** m[which]  # P(max <= k)
    best = (n_past - np.bincount(which, below)) / n_past  # E[max] = sum over k of P(max > k)
    return _mean(best - p)


def fwt_gem(R: np.ndarray, learned_at: LearnedAt, b: Sequence[float]) -> float | None:
    """Mean over j first taught at f > 0 of R[f-1, j] - b[j], b the untrained model's score."""
    firsts = _firsts(learned_at)
    return _mean([R[f - 1, j] - b[j] for j, f in firsts])


def zero_shot(R: np.ndarray, learned_at: LearnedAt) -> float | None:
    """Mean over j first taught at f > 0 of R[f-1, j]: the score just before learning it."""
    return _mean([R[f - 1, j] for j, f in _firsts(learned_at)])


def min_acc(
    steps: Sequence[tuple[int, Sequence[float]]], learned_at: LearnedAt, n_experiences: int
) -> float | None:
    """Mean over past j of the lowest score since j was learned (De Lange et al. 2023).

    steps: (experience, scores [J]) of every evaluation in order, end-of-experience ones
    included; those after experience l(j) count for j.
    """
    return _mean(_lows(steps, learned_at, n_experiences))


def wc_acc(
    R: np.ndarray, steps: Sequence[tuple[int, Sequence[float]]], learned_at: LearnedAt
) -> float | None:
    """Mean of those minima and the last experience's own scores (De Lange et al. 2023)."""
    own = R[-1, _last(learned_at, len(R))[-1] == len(R) - 1]
    return _mean(np.concatenate([_lows(steps, learned_at, len(R)), own]))


def anytime_accuracy(
    steps: Sequence[tuple[int, Sequence[float], int]], learned_at: LearnedAt, n: Sequence[int]
) -> float | None:
    """Area under the seen accuracy over the stream, as a share (Koh et al. 2022, A_AUC).

    steps: (experience, scores [J], updates) of every evaluation in order, the last one of each
    experience at its end. Each score stands for the part of its experience's updates since the one
    before it, an experience without updates has the score at its end; every experience weighs the
    same. Seen means taught at or before that experience.
    """
    e = np.array([experience for experience, *_ in steps], dtype=int)
    updates = np.array([at for *_, at in steps], dtype=float)
    ends = np.flatnonzero(np.append(np.diff(e) > 0, True))  # the last step of each experience
    end, start = updates[ends], np.append(0.0, updates[ends][:-1])  # by experience
    length = (end - start)[e]
    place = np.where(length > 0, (updates - start[e]) / np.where(length > 0, length, 1), 1.0)
    width = np.diff(e + place, prepend=0.0)
    rows = np.array([row for _, row, _ in steps], dtype=float)
    curve = _row_means(rows, _seen(learned_at, len(ends))[e], np.array(n, dtype=float))
    if not curve or None in curve:
        return None
    return float(np.dot(width, curve) / len(ends))


def prequential(windows: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    """(accuracy, area) of rows answered on arrival; windows of (updates, rows, right answers).

    accuracy: right answers over all rows; area: the running accuracy up to each window's end,
    averaged over the rows.
    """
    if not windows:
        return None, None
    _, rows, right = np.array(windows, dtype=float).T
    running = right.cumsum() / rows.cumsum()
    return float(running[-1]), float((running * rows).sum() / rows.sum())


def held_out(R: np.ndarray, learned_at: LearnedAt, start: int = 0) -> Curve | None:
    """Curve: mean over the evals that no experience teaches; None if there are none."""
    untaught = np.array([not at for at in learned_at])
    if not untaught.any():
        return None
    return _row_means(R[start:], np.broadcast_to(untaught, R[start:].shape))


def _lows(steps, learned_at: LearnedAt, n_experiences: int) -> np.ndarray:
    """Lowest score of each past eval since it was learned; nan if any of them is undefined."""
    js = np.flatnonzero(_past(learned_at, n_experiences, n_experiences - 1))
    since = _last(learned_at, n_experiences)[-1, js]
    e = np.array([experience for experience, *_ in steps], dtype=int)[:, None]
    rows = np.array([row for _, row, *_ in steps], dtype=float).reshape(len(steps), len(learned_at))
    later = (e > since) & (e < n_experiences)  # none of an unfinished one
    lows = np.where(later, rows[:, js], np.inf).min(0, initial=np.inf)
    return np.where(np.isinf(lows), np.nan, lows)


def _last(learned_at: LearnedAt, n_experiences: int) -> np.ndarray:
    """l(i, j), the last experience at or before i that teaches eval j: int [E, J], -1 for none."""
    learned_at = tuple(map(tuple, learned_at))
    n = max(n_experiences, *(1 + max(at, default=0) for at in learned_at), 1)
    return _last_of(learned_at, n)[:n_experiences]


@lru_cache(maxsize=2)  # every metric asks for the same one, after every experience
def _last_of(learned_at: tuple[tuple[int, ...], ...], n_experiences: int) -> np.ndarray:
    last = np.full((n_experiences, len(learned_at)), -1)
    for j, at in enumerate(learned_at):
        last[list(at), j] = at
    last = np.maximum.accumulate(last, 0)
    last.flags.writeable = False
    return last


def _seen(learned_at: LearnedAt, n_experiences: int) -> np.ndarray:
    """Whether eval j is seen at i: bool [E, J]."""
    return _last(learned_at, n_experiences) >= 0


def _past(learned_at: LearnedAt, n_experiences: int, start: int = 0) -> np.ndarray:
    """Whether eval j is past at i: bool [E - start, J]."""
    last = _last(learned_at, n_experiences)[start:]
    return (last >= 0) & (last < np.arange(start, n_experiences)[:, None])


def _below_chance(
    R: np.ndarray, learned_at: LearnedAt, chance: Sequence[float], start: int = 0
) -> np.ndarray:
    """Whether `stability` leaves out the ratio of (i, j): bool [E - start, J]."""
    then, was_past = _when_learned(R, learned_at, start)
    return was_past & (then <= np.array(chance))


def _when_learned(
    R: np.ndarray, learned_at: LearnedAt, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """R[l(i, j), j] and whether j is past at i, both [E - start, J]."""
    last = _last(learned_at, len(R))[start:]
    return np.take_along_axis(R, last.clip(0), 0), _past(learned_at, len(R), start)


def _since_learned(learned_at: LearnedAt, n_experiences: int) -> np.ndarray:
    """Whether row i is at or after l(j), the last time that eval j was learned: bool [E, J]."""
    last = _last(learned_at, n_experiences)[-1]
    return (np.arange(n_experiences)[:, None] >= last) & (last >= 0)


def _row_means(values: np.ndarray, chosen: np.ndarray, weights: np.ndarray | float = 1.0) -> Curve:
    """Weighted mean of each row's chosen cells; None if there is none or one of them is nan."""
    weights = np.where(chosen, weights, 0.0)
    total = weights.sum(1)
    sums = np.where(chosen, values * weights, 0.0).sum(1)
    return [_number(s / t) if t else None for s, t in zip(sums, total, strict=True)]


def _firsts(learned_at: LearnedAt) -> list[tuple[int, int]]:
    return [(j, min(at)) for j, at in enumerate(learned_at) if at and min(at) > 0]


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return _number(np.mean(values)) if len(values) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def summarise(
    R: np.ndarray,
    *,
    learned_at: LearnedAt,
    n: Sequence[int],
    chance: Sequence[float],
    b: Sequence[float],
    steps: Sequence[tuple[int, Sequence[float]]],
    eval_every: int | None,
    shares: bool,
    windows: Sequence[Sequence[int]] = (),
    before: tuple[dict, dict[str, str]] | None = None,
) -> tuple[dict, dict[str, str]]:
    """All metrics of a (possibly unfinished) R [E', J], and why those that are None are None.

    shares: scores are shares of n_j right answers, so the null bias of forgetting can be had.
    windows: rows answered on arrival in an online stream, as `prequential` takes them.
    before: what this returned for the first rows of the same R; the curves are continued.
    """
    known = before[0] if before else {name: [] for name in CURVES}
    start = len(known["plasticity"])
    seen_curve = known["seen_accuracy"] + seen_accuracy(R, learned_at, n, start)
    metrics = {
        "average_accuracy": average_accuracy(R, learned_at),
        "seen_accuracy": seen_curve,
        "average_incremental_accuracy": average_incremental_accuracy(seen_curve),
        "backward_transfer": backward_transfer(R, learned_at),
        "forgetting": forgetting(R, learned_at),
        "forgetting_null_bias": forgetting_null_bias(R, learned_at, n) if shares else None,
        "fwt_gem": fwt_gem(R, learned_at, b) if _reached(R, learned_at) else None,
        "fwt_cw": None,
        "zero_shot": zero_shot(R, learned_at) if _reached(R, learned_at) else None,
        "plasticity": known["plasticity"] + plasticity(R, learned_at, start),
        "stability": known["stability"] + stability(R, learned_at, chance, start),
        "past_accuracy": known["past_accuracy"] + past_accuracy(R, learned_at, start),
        "min_acc": min_acc(steps, learned_at, len(R)) if eval_every else None,
        "wc_acc": wc_acc(R, steps, learned_at) if eval_every else None,
        "eval_every": eval_every,
        "anytime_accuracy": anytime_accuracy(steps, learned_at, n) if eval_every else None,
        "prequential_accuracy": prequential(windows)[0],
        "prequential_area": prequential(windows)[1],
        "held_out": None,
        "held_out_before": None,
    }
    untaught = held_out(R, learned_at, start)
    if untaught is not None:
        metrics["held_out"] = known.get("held_out", []) + untaught
        (metrics["held_out_before"],) = held_out(np.array([b], dtype=float), learned_at)
    missing = _reasons(metrics, R, learned_at, shares)
    if before:
        missing |= {path: reason for path, reason in before[1].items() if path.endswith("]")}
    return metrics, missing | _curve_reasons(metrics, R, learned_at, chance, start)


def _reached(R: np.ndarray, learned_at: LearnedAt) -> bool:
    return all(f <= len(R) for _, f in _firsts(learned_at))


def _reasons(metrics: dict, R: np.ndarray, learned_at: LearnedAt, shares: bool) -> dict[str, str]:
    """{name under "metrics.": why it is None}."""
    no_past = not _past(learned_at, len(R), len(R) - 1).any()
    lone = "no eval was learned before the last experience"
    early = "needs scores on evals before they are learned: no head column yet, or eval.past"
    reasons = {
        "fwt_cw": "needs a single-task reference, which this run has not",
        "fwt_gem": early,
        "zero_shot": early,
        "forgetting_null_bias": lone if no_past else CELL if shares else "scores are no shares",
    }
    if metrics["eval_every"] is None:
        unset = ("min_acc", "wc_acc", "eval_every", "anytime_accuracy")
        reasons |= dict.fromkeys(unset, "eval.every is not set")
    late = "the stream is not online: nothing is answered on arrival"
    reasons |= dict.fromkeys(("prequential_accuracy", "prequential_area"), late)
    if all(learned_at):
        reasons |= dict.fromkeys(("held_out", "held_out_before"), "every eval is taught")
    else:
        reasons["held_out_before"] = "no score before training"
    if not _firsts(learned_at):
        reasons |= dict.fromkeys(("fwt_gem", "zero_shot"), "no eval is first learned later")
    elif not _reached(R, learned_at):
        reasons |= dict.fromkeys(("fwt_gem", "zero_shot"), "the stream is not finished")
    blank = [name for name, value in metrics.items() if value is None]
    return {name: reasons.get(name) or (lone if no_past else CELL) for name in blank}


def _curve_reasons(
    metrics: dict, R: np.ndarray, learned_at: LearnedAt, chance: Sequence[float], start: int
) -> dict[str, str]:
    """{path of a curve's entry from row `start` on: why it is None or leaves something out}."""
    missing: dict[str, str] = {}
    n_past = _past(learned_at, len(R), start).sum(1)
    left_out = _below_chance(R, learned_at, chance, start)
    for k, i in enumerate(range(start, len(R))):
        for name in (*CURVES, *["held_out"] * (metrics["held_out"] is not None)):
            if metrics[name][i] is None:
                none_past = name in ("stability", "past_accuracy") and not n_past[k]
                missing[f"{name}[{i}]"] = "nothing is past yet" if none_past else CELL
        js = np.flatnonzero(left_out[k]).tolist()
        if js and metrics["stability"][i] is not None:
            which = ", ".join(map(str, js))
            missing[f"stability[{i}]"] = f"left out, at or below chance when learned: evals {which}"
        elif js and len(js) == n_past[k]:
            missing[f"stability[{i}]"] = "no past eval was above chance when it was learned"
    return missing
