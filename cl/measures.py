"""What claims are about: one number of a finished run's results.

A measure is a name below, a metric of `results.json` (of a curve its last point), a `cost.*`
entry's name, or `probe:NAME.KEY` (its last value).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from cl.errors import ContractError, unknown

METRICS = (
    *("average_accuracy", "seen_accuracy", "average_incremental_accuracy", "forgetting"),
    *("backward_transfer", "zero_shot", "plasticity", "stability", "past_accuracy"),
    *("min_acc", "wc_acc", "prequential_accuracy", "prequential_area", "anytime_accuracy"),
    *("held_out", "held_out_before"),
)
COSTS = ("train_seconds", "samples_seen", "updates", "extra_updates", "stored_bytes")


def within_accuracy(results: dict) -> float:
    """Mean of R_within's last row: what is known of each eval when told that it is the eval."""
    return fmean(v for v in results["R_within"][-1] if v is not None)


def mean_plasticity(results: dict) -> float:
    """Mean over experiences of the score on what was just learned."""
    return fmean(results["metrics"]["plasticity"])


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
    if name.startswith("probe:") and "." in name:
        return
    known = (*METRICS, *COSTS, *DERIVED)
    if name not in known:
        raise ContractError(f"{where}: {unknown('measure', name, known)}")


def measure(name: str, results: dict) -> float:
    """The number. Raises ContractError where the run has none."""
    if name in DERIVED:
        return DERIVED[name](results)
    if name.startswith("probe:"):
        probe, _, key = name.removeprefix("probe:").partition(".")
        value = (results["probes"].get(probe) or [{}])[-1].get(key)
    else:
        value = results["metrics"].get(name, results["cost"].get(name))
    value = value[-1] if isinstance(value, list) else value
    if value is None:
        raise ContractError(f"{results['strategy']}, seed {results['seed']}: {name} is undefined")
    return float(value)


def _gaps(results: dict) -> list[float]:
    metrics = results["metrics"]
    pairs = zip(metrics["past_accuracy"][1:], metrics["plasticity"][1:], strict=True)
    return [past - new for past, new in pairs]
