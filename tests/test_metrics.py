"""Metrics against numbers worked out by hand."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from cl import metrics

NAN = float("nan")
R = np.array([[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.3, 0.5, 0.7]])
ONCE = [(0,), (1,), (2,)]
N = [10, 20, 30]
CHANCE = [0.5, 0.25, 0.2]

# two evals, each taught twice
RECURRING = np.array([[0.8, 0.1], [0.4, 0.9], [0.85, 0.5], [0.6, 0.95]])
TWICE = [(0, 2), (1, 3)]


def test_seen_accuracy_weighs_evals_by_their_items():
    expected = [0.9, (10 * 0.6 + 20 * 0.8) / 30, (10 * 0.3 + 20 * 0.5 + 30 * 0.7) / 60]
    assert metrics.seen_accuracy(R, ONCE, N) == pytest.approx(expected)


def test_average_incremental_accuracy_includes_state_0():
    curve = metrics.seen_accuracy(R, ONCE, N)
    assert metrics.average_incremental_accuracy(curve) == pytest.approx(
        (0.9 + 22 / 30 + 34 / 60) / 3
    )


def test_average_accuracy_is_the_mean_of_the_last_row():
    assert metrics.average_accuracy(R, ONCE) == pytest.approx(0.5)


def test_plasticity_is_the_diagonal():
    assert metrics.plasticity(R, ONCE) == pytest.approx([0.9, 0.8, 0.7])


def test_past_accuracy_leaves_out_the_current_experience():
    assert metrics.past_accuracy(R, ONCE) == [None, pytest.approx(0.6), pytest.approx(0.4)]


def test_stability_is_the_mean_share_kept():
    expected = [None, pytest.approx(0.6 / 0.9), pytest.approx((0.3 / 0.9 + 0.5 / 0.8) / 2)]
    assert metrics.stability(R, ONCE, CHANCE) == expected


def test_stability_leaves_out_what_was_never_above_chance():
    chance = [0.5, 0.8, 0.2]
    assert metrics.stability(R, ONCE, chance)[2] == pytest.approx(0.3 / 0.9)
    assert metrics.below_chance(R, ONCE, chance) == [(2, 1)]


def test_backward_transfer():
    assert metrics.backward_transfer(R, ONCE) == pytest.approx(((0.3 - 0.9) + (0.5 - 0.8)) / 2)


def test_forgetting_starts_from_the_best_past_score():
    better_later = R.copy()
    better_later[1, 0] = 0.95
    assert metrics.forgetting(R, ONCE) == pytest.approx((0.6 + 0.3) / 2)
    assert metrics.forgetting(better_later, ONCE) == pytest.approx((0.65 + 0.3) / 2)


def test_forgetting_null_bias_equals_the_enumerated_expectation():
    p, n = 0.6, 10  # eval 0: mean of 0.9, 0.6, 0.3; two rows before the last
    pmf = binom.pmf(np.arange(n + 1), n, p)
    best_of_two = sum(pmf[a] * pmf[b] * max(a, b) for a, b in product(range(n + 1), repeat=2)) / n
    expected = ((best_of_two - p) + 0.0) / 2  # eval 1 has one row before the last: no maximum
    assert metrics.forgetting_null_bias(R, ONCE, N) == pytest.approx(expected)


def test_a_recurring_eval_is_past_only_when_it_is_not_being_taught():
    assert [metrics.past(TWICE, i) for i in range(4)] == [[], [0], [1], [0]]
    assert metrics.plasticity(RECURRING, TWICE) == pytest.approx([0.8, 0.9, 0.85, 0.95])
    assert metrics.past_accuracy(RECURRING, TWICE) == [None, 0.4, 0.5, 0.6]
    expected = [None, 0.4 / 0.8, 0.5 / 0.9, pytest.approx(0.6 / 0.85)]
    assert metrics.stability(RECURRING, TWICE, [0, 0]) == expected
    assert metrics.backward_transfer(RECURRING, TWICE) == pytest.approx(0.6 - 0.85)
    assert metrics.forgetting(RECURRING, TWICE) == pytest.approx(0.85 - 0.6)


def test_forward_transfer_variants():
    b = [0.5, 0.05]
    assert metrics.fwt_gem(RECURRING, TWICE, b) == pytest.approx(0.1 - 0.05)
    assert metrics.zero_shot(RECURRING, TWICE) == pytest.approx(0.1)
    assert metrics.fwt_gem(R, ONCE, [NAN] * 3) is None  # class-incremental: no head column


def test_min_and_worst_case_accuracy():
    steps = [
        (0, [0.5, NAN, NAN]),
        (0, [0.9, NAN, NAN]),
        (1, [0.2, 0.4, NAN]),
        (1, [0.6, 0.8, NAN]),
        (2, [0.25, 0.3, 0.5]),
        (2, [0.3, 0.5, 0.7]),
    ]  # the first of each pair is taken while the experience is being learned
    low_0, low_1 = 0.2, 0.3
    assert metrics.min_acc(steps, ONCE, 3) == pytest.approx((low_0 + low_1) / 2)
    assert metrics.wc_acc(R, steps, ONCE) == pytest.approx((low_0 + low_1 + 0.7) / 3)


def test_held_out_evals_are_never_seen():
    held_out = [(0,), (1,), ()]
    full = np.nan_to_num(R, nan=0.4)
    assert metrics.seen(held_out, 2) == [0, 1]
    assert metrics.average_accuracy(full, held_out) == pytest.approx(0.4)


def test_an_undefined_cell_makes_its_metrics_none_with_a_reason():
    joint = np.array([[NAN] * 3, [NAN] * 3, [0.9, 0.8, 0.7]])
    summary, reasons = metrics.summarise(
        joint,
        learned_at=ONCE,
        n=N,
        chance=CHANCE,
        b=[NAN] * 3,
        steps=[],
        eval_every=None,
        shares=True,
    )
    assert summary["average_accuracy"] == pytest.approx(0.8)
    assert summary["plasticity"] == [None, None, pytest.approx(0.7)]
    for name, value in summary.items():
        if value is None:
            assert reasons[name]
        for i, entry in enumerate(value if isinstance(value, list) else []):
            assert entry is not None or reasons[f"{name}[{i}]"]


def test_a_single_experience_has_no_past():
    summary, reasons = metrics.summarise(
        np.array([[0.9]]),
        learned_at=[(0,)],
        n=[10],
        chance=[0.5],
        b=[0.1],
        steps=[],
        eval_every=None,
        shares=True,
    )
    assert summary["forgetting"] is None and summary["backward_transfer"] is None
    assert "before the last experience" in reasons["forgetting"]


def test_held_out_is_the_mean_over_evals_that_nothing_teaches():
    evals = [(0,), (), (1,), ()]
    rows = np.array([[0.9, 0.7, NAN, 0.4], [0.6, 0.5, 0.8, NAN], [0.6, 0.5, 0.8, 0.1]])
    settings = {"learned_at": evals, "n": [10] * 4, "chance": [0.0] * 4, "steps": []}
    settings |= {"b": [0.1, 0.9, 0.2, 0.7], "eval_every": None, "shares": True}
    summary, reasons = metrics.summarise(rows, **settings)
    assert summary["held_out"] == [pytest.approx(0.55), None, pytest.approx(0.3)]
    assert summary["held_out_before"] == pytest.approx(0.8)
    assert reasons["held_out[1]"] == metrics.CELL
    first = metrics.summarise(rows[:1], **settings)
    assert metrics.summarise(rows, **settings, before=first) == (summary, reasons)
    settings["b"] = [NAN] * 4
    assert "before training" in metrics.summarise(rows, **settings)[1]["held_out_before"]


def test_without_a_held_out_eval_there_is_no_curve_of_them():
    settings = {"learned_at": ONCE, "n": N, "chance": CHANCE, "steps": [], "b": [NAN] * 3}
    summary, reasons = metrics.summarise(R, **settings, eval_every=None, shares=True)
    assert summary["held_out"] is None and summary["held_out_before"] is None
    assert "taught" in reasons["held_out"] and "held_out[0]" not in reasons
