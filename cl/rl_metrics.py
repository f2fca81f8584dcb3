"""Metrics of continual reinforcement learning: one name per published definition.

Works that use one word for different quantities are the rule here, so every function carries the
name of its source; values of two names never share a column. Pure functions of a `Course`.

p_w      score of the task of window w; a stream that repeats a task has a window per visit, and
         these count as tasks of their own, as CW20 does with ten tasks twice
final    mean of the last `last` evaluations of the run, all from the last window: five in CW's
         metrics, ten in COOM's forgetting and MEAL's
at end   the same for w's own window
AUC      mean over a window of its task's score, clipped to [0, 1] there and nowhere else; an
         evaluation stands for the steps since the one before it
None     no meaning; `summarise` says why
Sources  CW Continual World arXiv:2105.10919; COOM Tomilin et al., NeurIPS 2023 datasets; CORA
         arXiv:2110.10067; MEAL arXiv:2506.14990; definitions checked against their public code
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cl.errors import BadValue, ShapeMismatch

Value = float | None
LAST_CW, LAST_COOM, LAST_MEAL = 5, 10, 10  # evaluations that make a final value
NEAR = 0.01  # an AUC of the reference this close to 1 (MEAL: to 0) leaves nothing to divide by
LAMBDA = 2.0  # MEAL: how much more early forgetting counts


@dataclass(frozen=True)
class Course:
    """The evaluations of one run.

    steps  [K] environment steps of all experiences so far; 0 is before training
    p      [K, N] scores of N tasks, normalised (CORA: of any scale), not clipped
    ends   [W] steps at which each experience's window ends
    order  [W] the task that each window trains; None: task w
    """

    steps: Sequence[int]
    p: np.ndarray
    ends: Sequence[int]
    order: Sequence[int] | None = None

    def __post_init__(self):
        p = np.array(self.p, dtype=float)
        order = range(len(self.ends)) if self.order is None else self.order
        for name, value in (("p", p), ("order", tuple(map(int, order)))):
            object.__setattr__(self, name, value)
        for name in ("steps", "ends"):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=float))
        if p.ndim != 2 or len(p) != len(self.steps) or len(self.order) != len(self.ends):
            raise ShapeMismatch(
                f"{len(self.steps)} steps and scores {list(p.shape)}; {len(self.ends)} ends and "
                f"an order of {len(self.order)}"
            )
        if max(self.order, default=-1) >= p.shape[1]:
            raise ShapeMismatch(f"task {max(self.order)} of {p.shape[1]}")
        if (np.diff(self.steps) < 0).any() or (np.diff(self.ends) <= 0).any():
            raise BadValue("evaluations must be in order and every window have steps")

    @property
    def starts(self) -> np.ndarray:
        """[W] steps at which each window begins."""
        return np.append(0.0, self.ends[:-1])

    def rows(self, w: int) -> np.ndarray:
        """Evaluations of window w: after its start, up to its end."""
        return np.flatnonzero((self.steps > self.starts[w]) & (self.steps <= self.ends[w]))

    def end_of(self, w: int, task: int, last: int = 1) -> Value:
        """Mean of a task's last `last` scores in window w; of fewer if it has not as many."""
        return _mean(self.p[self.rows(w)[-last:], task])

    def auc(self, w: int) -> Value:
        """AUC of window w's task within that window."""
        rows = self.rows(w)
        width = np.diff(self.steps[rows], prepend=self.starts[w])
        scores = np.clip(self.p[rows, self.order[w]], 0, 1)
        return _number((scores * width).sum() / width.sum()) if len(rows) else None


def normalised_return(raw, random: float, reference: float) -> np.ndarray:
    """(raw - random) / (reference - random), never clipped: 0 a random policy, 1 the reference.

    Raises BadValue where the two constants are the same.
    """
    if random == reference:
        raise BadValue(f"random and reference policy both return {random:g}: nothing to scale by")
    return (np.asarray(raw, dtype=float) - random) / (reference - random)


# ---------------------------------------------------------------- Continual World


def cw_average_performance(c: Course, last: int = LAST_CW) -> Value:
    """P = mean over windows of their task's final value (of the last five evaluations)."""
    return _mean([c.end_of(len(c.ends) - 1, task, last) for task in c.order])


def cw_forgetting_each(c: Course, last: int = LAST_CW) -> list[Value]:
    """F_w = score at the end of window w - final score, both of five evaluations; last: 0."""
    return _drops(c, last)


def cw_forgetting(c: Course, last: int = LAST_CW) -> Value:
    """Mean of F_w over all windows, the last one's 0 included."""
    return _mean(_drops(c, last))


def cw_forward_transfer_each(c: Course, reference: Sequence[Value]) -> list[Value]:
    """FT_w = (AUC_w - AUC_ref) / (1 - AUC_ref); None where AUC_ref is within NEAR of 1.

    reference [W]: AUC of single-task runs of the same length, their mean over seeds.
    """
    return [_ratio(a, b, lambda ref: 1 - ref) for a, b in _paired(c, reference)]


def cw_forward_transfer(c: Course, reference: Sequence[Value]) -> Value:
    """Mean of FT_w over the windows that have one."""
    return _mean_of_some(cw_forward_transfer_each(c, reference))


# ---------------------------------------------------------------- COOM


def coom_average_performance(c: Course) -> Value:
    """Mean over windows k and the tasks taught up to k of the mean score within window k.

    It averages over training, where CW's looks at the end alone: what is learned late or lost
    weighs less, so the two differ for the same run. COOM's code counts a mean of exactly 0 as
    missing; here it counts as 0.
    """
    last = range(len(c.ends))
    return _mean([_mean(c.p[c.rows(k), c.order[w]]) for k in last for w in range(k + 1)])


def coom_forgetting(c: Course, last: int = LAST_COOM) -> Value:
    """Mean of (score at the end of window w - final score) over all windows but the last.

    Both are means of ten evaluations.
    """
    return _mean(_drops(c, last)[:-1])


# ---------------------------------------------------------------- CORA


def cora_isolated_forgetting_each(c: Course) -> np.ndarray:
    """[W, N]: what training window w cost task i, one taught before: before - after.

    Divided by the largest |score| of task i in the run, so that any scale will do; nan where i is
    w's own task, was not taught yet, or has no score.
    """
    return -_isolated(c, seen=True)


def cora_isolated_forgetting(c: Course) -> Value:
    """Mean of those; below 0 where training others helped."""
    return _mean_known(cora_isolated_forgetting_each(c))


def cora_zero_shot_transfer_each(c: Course) -> np.ndarray:
    """[W, N]: what training window w brought task i, one not taught yet: after - before."""
    return _isolated(c, seen=False)


def cora_zero_shot_transfer(c: Course) -> Value:
    """Mean of those."""
    return _mean_known(cora_zero_shot_transfer_each(c))


# ---------------------------------------------------------------- MEAL


def meal_forgetting_peak(c: Course, last: int = LAST_MEAL) -> Value:
    """Mean over windows of max(0, best score of the task at any time - final one, of ten)."""
    final = [c.end_of(len(c.ends) - 1, task, last) for task in c.order]
    best = [_number(np.fmax.reduce(c.p[:, task], initial=-np.inf)) for task in c.order]
    pairs = zip(best, final)
    return _mean([None if None in (a, b) else max(0.0, a - b) for a, b in pairs])


def meal_forgetting_weighted_each(c: Course, lam: float = LAMBDA) -> list[Value]:
    """Weighted share of its score that window w's task loses afterwards, in [0, 1].

    With e the last score of the window and q_0..q_m those after it: the mean of
    max(0, e - q_k) / e, weighed by exp(-lam k / m): early losses count more. 0 where nothing
    follows; None where e is not above 0 (MEAL's code: 0).
    """
    found: list[Value] = []
    for w, task in enumerate(c.order):
        end, later = c.end_of(w, task), c.p[c.steps > c.ends[w], task]
        if end is None or end <= 0:
            found.append(None)
            continue
        weights = np.exp(-lam * np.arange(len(later)) / max(len(later) - 1, 1))
        lost = np.maximum(end - later, 0) / end
        lost = np.minimum((lost * weights).sum() / weights.sum(), 1) if len(later) else 0.0
        found.append(_number(lost))
    return found


def meal_forgetting_weighted(c: Course, lam: float = LAMBDA) -> Value:
    """Mean of those over the windows that have one."""
    return _mean_of_some(meal_forgetting_weighted_each(c, lam))


def meal_forward_transfer_each(c: Course, reference: Sequence[Value]) -> list[Value]:
    """(AUC_w - AUC_ref) / AUC_ref; None where AUC_ref is within NEAR of 0."""
    return [_ratio(a, b, lambda ref: ref) for a, b in _paired(c, reference)]


def meal_forward_transfer(c: Course, reference: Sequence[Value]) -> Value:
    """Mean of those over the windows that have one."""
    return _mean_of_some(meal_forward_transfer_each(c, reference))


# ---------------------------------------------------------------- ours


def steps_to(c: Course, score: float) -> list[int | None]:
    """Steps into window w until its task first scores that much [environment steps], or None.

    Over the visits of a repeated task: how fast it is learned again.
    """
    found: list[int | None] = []
    for w, task in enumerate(c.order):
        rows = c.rows(w)
        there = rows[c.p[rows, task] >= score]
        found.append(int(c.steps[there[0]] - c.starts[w]) if len(there) else None)
    return found


def summarise(
    c: Course, reference: Sequence[Value] | None = None
) -> tuple[dict[str, Value], dict[str, str]]:
    """All of the above as one number each, and why those that are None are None.

    reference [W]: AUC of single-task runs, None where there is none. A mean that leaves windows
    out says so, too.
    """
    found: dict[str, Value] = {
        "cw_average_performance": cw_average_performance(c),
        "cw_forgetting": cw_forgetting(c),
        "cw_forward_transfer": None,
        "coom_average_performance": coom_average_performance(c),
        "coom_forgetting": coom_forgetting(c),
        "cora_isolated_forgetting": cora_isolated_forgetting(c),
        "cora_zero_shot_transfer": cora_zero_shot_transfer(c),
        "meal_forgetting_peak": meal_forgetting_peak(c),
        "meal_forgetting_weighted": meal_forgetting_weighted(c),
        "meal_forward_transfer": None,
    }
    if reference is not None:
        found["cw_forward_transfer"] = cw_forward_transfer(c, reference)
        found["meal_forward_transfer"] = meal_forward_transfer(c, reference)
    blank = [name for name, value in found.items() if value is None]
    missing = {name: _reason(name, c, reference) for name in blank}
    return found, missing | _left_out(found, c, reference)


def _reason(name: str, c: Course, reference: Sequence[Value] | None) -> str:
    if name.endswith("forward_transfer"):
        if reference is None:
            return "needs single-task references, which this run has not"
        return f"no window has a reference whose area is further than {NEAR:g} from its bound"
    if name.startswith(("cora", "coom_forgetting")) and len(c.ends) < 2:
        return "the run has a single experience"
    if name.startswith("cora"):
        return "no task is scored just before and just after an experience of another one"
    if name == "meal_forgetting_weighted":
        return "no task scores above 0 at the end of its experience"
    return "a task has no score where one is needed"


def _left_out(
    found: dict[str, Value], c: Course, reference: Sequence[Value] | None
) -> dict[str, str]:
    """{name: which windows its mean leaves out} of the means that leave some out."""
    each = {"meal_forgetting_weighted": meal_forgetting_weighted_each(c)}
    if reference is not None:
        each["cw_forward_transfer"] = cw_forward_transfer_each(c, reference)
        each["meal_forward_transfer"] = meal_forward_transfer_each(c, reference)
    told = {}
    for name, values in each.items():
        out = [str(w) for w, value in enumerate(values) if value is None]
        if out and found[name] is not None:
            told[name] = f"left out, no score or nothing to divide by: experiences {', '.join(out)}"
    return told


def _drops(c: Course, last: int) -> list[Value]:
    """Score at the end of its window - final score, of each window's task."""
    ends = [c.end_of(w, task, last) for w, task in enumerate(c.order)]
    final = [c.end_of(len(c.ends) - 1, task, last) for task in c.order]
    return [None if None in (a, b) else a - b for a, b in zip(ends, final, strict=True)]


def _isolated(c: Course, seen: bool) -> np.ndarray:
    """After - before each window, over the largest |score|, of tasks (not) taught before it."""
    found = np.full((len(c.ends), c.p.shape[1]), np.nan)
    with np.errstate(all="ignore"):
        scale = np.fmax.reduce(np.abs(c.p), axis=0, initial=0.0)
    for w, task in enumerate(c.order):
        before, inside = np.flatnonzero(c.steps <= c.starts[w]), c.rows(w)
        for i in range(c.p.shape[1]):
            fits = i != task and (i in c.order[:w]) == seen
            if fits and len(before) and len(inside) and scale[i] > 0:
                found[w, i] = (c.p[inside[-1], i] - c.p[before[-1], i]) / scale[i]
    return found


def _paired(c: Course, reference: Sequence[Value]) -> list[tuple[Value, Value]]:
    if len(reference) != len(c.ends):
        raise ShapeMismatch(f"{len(reference)} references for {len(c.ends)} experiences")
    return [(c.auc(w), ref) for w, ref in enumerate(reference)]


def _ratio(auc: Value, reference: Value, divisor) -> Value:
    if auc is None or reference is None or np.isnan(reference) or divisor(reference) < NEAR:
        return None
    return _number((auc - reference) / divisor(reference))


def _mean(values) -> Value:
    """Mean, None if there is no value or one of them is undefined."""
    values = [np.nan if value is None else value for value in values]
    return _number(np.mean(values)) if values else None


def _mean_of_some(values: Sequence[Value]) -> Value:
    return _mean([value for value in values if value is not None])


def _mean_known(cells: np.ndarray) -> Value:
    return _mean(cells[~np.isnan(cells)])


def _number(value: float) -> Value:
    return float(value) if np.isfinite(value) else None
