"""What claims are about: one number of a finished run's results.

A measure is a name below, a metric of `results.json` (of a curve its last point), a `cost.*`
entry's name, `probe:NAME.KEY` (its last value), or one of

    final:EVAL    score on an eval at the end; final: mean over all that were taught
    drop:EVAL     what it has lost by then: score when last taught (held out: of the model at the
                  start) minus score at the end
    diagonal      mean over experiences of the score on what was just taught
    val:...       the three above on validation data
    r2:Y~X        over all runs of a seed, whatever their arm and settings (but those that others
                  start from): the share of the variance of measure Y that a quadratic of measure X
                  explains

EVAL is an eval's name, with or without the number before it, or `held_out`: mean over those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from cl.errors import ContractError, unknown

METRICS = (
    *("average_accuracy", "seen_accuracy", "average_incremental_accuracy", "forgetting"),
    *("backward_transfer", "zero_shot", "plasticity", "stability", "past_accuracy"),
    *("min_acc", "wc_acc", "prequential_accuracy", "prequential_area", "anytime_accuracy"),
    *("held_out", "held_out_before"),
    # of environments (cl/rl_metrics.py)
    *("cw_average_performance", "cw_forgetting", "cw_forward_transfer"),
    *("coom_average_performance", "coom_forgetting", "fwt_gem", "fwt_cw"),
    *("cora_isolated_forgetting", "cora_zero_shot_transfer"),
    *("meal_forgetting_peak", "meal_forgetting_weighted", "meal_forward_transfer"),
)
COSTS = (
    *("train_seconds", "samples_seen", "tokens_seen", "env_steps", "updates", "extra_updates"),
    "stored_bytes",
)


def within_accuracy(results: dict) -> float:
    """Mean of R_within's last row: what is known of each eval when told that it is the eval."""
    return fmean(v for v in results["R_within"][-1] if v is not None)


def mean_plasticity(results: dict) -> float:
    """Mean over experiences of the score on what was just learned."""
    return fmean(_whole(results, "plasticity"))


def past_minus_new(results: dict) -> float:
    """Mean over experiences from the second on of past accuracy minus that of the new."""
    return fmean(_gaps(results))


def past_new_gap(results: dict) -> float:
    """Mean over experiences from the second on of |past accuracy - accuracy of the new|."""
    return fmean(map(abs, _gaps(results)))


def increment_seconds(results: dict) -> float:
    """Seconds of learning, from the second experience on."""
    return sum(results["cost"]["experience_seconds"][1:])


def first_accuracy(results: dict) -> float:
    """Accuracy after the first experience: a base that failed explains what follows."""
    return results["metrics"]["seen_accuracy"][0]


DERIVED: dict[str, Callable[[dict], float]] = {
    f.__name__: f
    for f in (
        *(within_accuracy, mean_plasticity, past_minus_new, past_new_gap),
        *(increment_seconds, first_accuracy),
    )
}


def check_measure(name: str, where: str) -> None:
    """Raises ContractError for a measure that does not exist."""
    if name.startswith("r2:"):
        parts = name.removeprefix("r2:").split("~")
        if len(parts) != 2 or parts[0] == parts[1]:
            raise ContractError(f"{where}: {name} must name two measures, r2:Y~X")
        for part in parts:
            check_measure(part, where)
        return
    if name == "val:drop:held_out":
        raise ContractError(f"{where}: {name}: what is held out has no validation score before")
    plain = name.removeprefix("val:")
    if plain in ("final", "diagonal") or plain.startswith(("final:", "drop:")):
        return
    if name.startswith("probe:") and "." in name:
        return
    known = (*METRICS, *COSTS, *DERIVED, "final", "diagonal", "val:final", "val:diagonal")
    if name not in known:
        raise ContractError(f"{where}: {unknown('measure', name, known)}")


def measure(name: str, results: dict) -> float:
    """The number. Raises ContractError where the run has none."""
    plain = name.removeprefix("val:")
    if name in DERIVED:
        return DERIVED[name](results)
    if plain in ("final", "diagonal") or plain.startswith(("final:", "drop:")):
        value = _of_scores(plain, results, "V" if plain != name else "R")
    elif name.startswith("probe:"):
        probe, _, key = name.removeprefix("probe:").partition(".")
        value = (results["probes"].get(probe) or [{}])[-1].get(key)
    else:
        value = results["metrics"].get(name, results["cost"].get(name))
    value = value[-1] if isinstance(value, list) else value
    if not isinstance(value, int | float):
        raise ContractError(f"{results['strategy']}, seed {results['seed']}: {name} is undefined")
    return float(value)


def explained(x: Sequence[float], y: Sequence[float]) -> float:
    """R^2 = 1 - sum (y - f(x))^2 / sum (y - mean y)^2 of the least-squares quadratic f.

    x, y [n], n >= 4 and x of three different values at least. Raises ContractError.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 4 or len(set(x.tolist())) < 3 or y.std() == 0:
        raise ContractError(f"a quadratic fit needs four or more runs that differ, got {len(x)}")
    scaled = (x - x.mean()) / x.std()
    left = y - np.polyval(np.polyfit(scaled, y, 2), scaled)
    return float(1 - (left**2).sum() / ((y - y.mean()) ** 2).sum())


def _of_scores(name: str, results: dict, matrix: str) -> float | None:
    """A number of the matrix R or V; None where a score in it is undefined."""
    rows, evals = results[matrix], results["evals"]
    if rows is None:
        return None
    kind, _, which = name.partition(":")
    if kind == "diagonal":
        taught = [
            [row[j] for j, e in enumerate(evals) if i in e["learned_at"]]
            for i, row in enumerate(rows)
        ]
        return _mean([_mean(scores) for scores in taught if scores])
    if not which:
        chosen = [j for j, e in enumerate(evals) if e["learned_at"]]
    elif which == "held_out":
        chosen = [j for j, e in enumerate(evals) if e["kind"] == "held_out"]
    else:
        names = [e["name"] for e in evals]
        chosen = [j for j, n in enumerate(names) if which in (n, n.partition("_")[2])]
        if not chosen:
            raise ContractError(f"{name}: {unknown('eval', which, names)}")
    last = [rows[-1][j] for j in chosen]
    if kind == "final":
        return _mean(last)
    start = results["b"] if matrix == "R" else [None] * len(evals)
    before = [
        rows[max(evals[j]["learned_at"])][j] if evals[j]["learned_at"] else start[j] for j in chosen
    ]
    return None if None in (*before, *last) else _mean([a - z for a, z in zip(before, last)])


def _mean(values: list[float | None]) -> float | None:
    return None if not values or None in values else fmean(values)


def _gaps(results: dict) -> list[float]:
    past, new = _whole(results, "past_accuracy", 1), _whole(results, "plasticity", 1)
    return [a - b for a, b in zip(past, new, strict=True)]


def _whole(results: dict, name: str, start: int = 0) -> list[float]:
    """A curve from experience `start` on. Raises ContractError if a point of it is undefined."""
    curve = (results["metrics"].get(name) or [])[start:]
    if not curve or None in curve:
        raise ContractError(f"{results['strategy']}, seed {results['seed']}: {name} is undefined")
    return curve
