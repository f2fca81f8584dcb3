"""Metrics of continual reinforcement learning against numbers worked out by hand."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from cl import rl_metrics as m
from cl.errors import BadValue, ShapeMismatch
from cl.rl_metrics import Course
from cl.statistics import estimate, iqm, iqm_estimate, iqm_tail

NAN = float("nan")

# three tasks, 100 steps each, an evaluation every 50; row 0 is before training
STEPS = [0, 50, 100, 150, 200, 250, 300]
P = np.array(
    [
        [0.0, 0.1, 0.0],
        [0.4, 0.1, 0.2],
        [0.8, 0.2, 0.2],  # end of task 0
        [0.6, 0.5, 0.1],
        [0.4, 0.9, 0.1],  # end of task 1
        [0.3, 0.5, 0.6],
        [0.2, 0.3, 1.0],  # end of task 2
    ]
)
C = Course(STEPS, P, [100, 200, 300])
AUC = [(0.4 + 0.8) / 2, (0.5 + 0.9) / 2, (0.6 + 1.0) / 2]


def test_returns_are_normalised_between_random_and_reference_and_never_clipped():
    found = m.normalised_return([-50.0, 20.0, 475.0, 500.0], random=20.0, reference=475.0)
    assert found == pytest.approx([-70 / 455, 0, 1, 480 / 455])
    down = m.normalised_return([-500.0, -100.0], random=-500.0, reference=-100.0)
    assert down == pytest.approx([0, 1])
    with pytest.raises(BadValue, match="both return 3"):
        m.normalised_return([1.0], 3.0, 3.0)


def test_cw_average_performance_is_the_mean_of_final_values():
    assert m.cw_average_performance(C, last=1) == pytest.approx((0.2 + 0.3 + 1.0) / 3)
    assert m.cw_average_performance(C, last=2) == pytest.approx((0.25 + 0.4 + 0.8) / 3)


def test_a_final_value_is_the_mean_of_the_last_five_evaluations():
    p = np.arange(20.0)[:, None] / 100
    c = Course(range(1, 21), p, [20])
    assert m.cw_average_performance(c) == pytest.approx(np.mean([15, 16, 17, 18, 19]) / 100)


def test_final_values_never_reach_back_into_another_experience():
    assert m.cw_average_performance(C, last=5) == m.cw_average_performance(C, last=2)
    assert m.cw_forgetting_each(C, last=5)[-1] == 0


def test_cw_forgetting_includes_the_last_task_and_cooms_does_not():
    drops = [0.8 - 0.2, 0.9 - 0.3, 0.0]
    assert m.cw_forgetting_each(C, last=1) == pytest.approx(drops)
    assert m.cw_forgetting(C, last=1) == pytest.approx(sum(drops) / 3)
    assert m.coom_forgetting(C, last=1) == pytest.approx(sum(drops) / 2)
    two = [0.6 - 0.25, 0.7 - 0.4, 0.0]
    assert m.cw_forgetting(C, last=2) == pytest.approx(sum(two) / 3)


def test_coom_average_performance_is_over_training_and_differs_from_cws():
    """Rows: window; columns: tasks taught up to it; cells: means within the window."""
    cells = [0.6, 0.5, 0.7, 0.25, 0.4, 0.8]
    assert m.coom_average_performance(C) == pytest.approx(np.mean(cells))
    assert m.coom_average_performance(C) != pytest.approx(m.cw_average_performance(C, 1))


def test_coom_average_performance_counts_zeros():
    """Its code would take a cell of exactly 0 for missing, and find 0.5 here."""
    c = Course([1, 2], [[0.5, 0.0], [0.0, 0.0]], [1, 2])
    assert m.coom_average_performance(c) == pytest.approx(0.5 / 3)


def test_cw_and_meal_forward_transfer_divide_by_different_things():
    reference = [0.5, 0.8, 0.6]
    cw = [(a - b) / (1 - b) for a, b in zip(AUC, reference, strict=True)]
    meal = [(a - b) / b for a, b in zip(AUC, reference, strict=True)]
    assert m.cw_forward_transfer_each(C, reference) == pytest.approx(cw)
    assert m.cw_forward_transfer(C, reference) == pytest.approx(np.mean(cw))
    assert m.meal_forward_transfer_each(C, reference) == pytest.approx(meal)
    assert m.meal_forward_transfer(C, reference) == pytest.approx(np.mean(meal))
    assert m.cw_forward_transfer(C, AUC) == pytest.approx(0)


def test_the_area_is_clipped_and_weighs_evaluations_by_their_steps():
    c = Course([10, 40], [[3.0], [-1.0]], [40])
    assert c.auc(0) == pytest.approx(1.0 * 10 / 40)
    assert c.p.tolist() == [[3.0], [-1.0]]  # nothing is clipped in storage
    even = Course([20, 40], [[0.3], [0.9]], [40])
    assert even.auc(0) == pytest.approx(0.6)


def test_forward_transfer_has_no_value_near_a_perfect_reference():
    assert m.cw_forward_transfer_each(C, [1.0, 0.995, 0.8]) == [None, None, pytest.approx(0.0)]
    assert m.cw_forward_transfer(C, [1.0, 1.0, 0.999]) is None
    assert m.meal_forward_transfer_each(C, [0.0, 0.005, 0.8]) == [None, None, pytest.approx(0.0)]
    assert m.cw_forward_transfer(C, [None, 0.7, NAN]) == pytest.approx(0.0)
    with pytest.raises(ShapeMismatch, match="2 references for 3 experiences"):
        m.cw_forward_transfer(C, [0.5, 0.5])


def test_why_a_value_is_missing_is_told():
    found, why = m.summarise(C)
    assert found["cw_forward_transfer"] is None and found["meal_forward_transfer"] is None
    assert why == dict.fromkeys(
        ("cw_forward_transfer", "meal_forward_transfer"),
        "needs single-task references, which this run has not",
    )
    found, why = m.summarise(C, [1.0, 0.5, 0.5])
    assert found["cw_forward_transfer"] == pytest.approx(np.mean([0.2 / 0.5, 0.3 / 0.5]))
    assert list(why) == ["cw_forward_transfer"] and why["cw_forward_transfer"].endswith("nces 0")
    _, why = m.summarise(C, [1.0, 1.0, 1.0])
    assert "0.01 from its bound" in why["cw_forward_transfer"]
    alone, why = m.summarise(Course([50, 100], [[0.2], [0.0]], [100]))
    assert {k for k in why if "single experience" in why[k]} == {
        "coom_forgetting",
        "cora_isolated_forgetting",
        "cora_zero_shot_transfer",
    }
    assert "no task scores above 0" in why["meal_forgetting_weighted"]
    assert alone["cw_forgetting"] == 0
    assert all((value is None) <= (name in why) for name, value in alone.items())


def test_cora_isolates_what_each_experience_does_to_the_others():
    scale = [0.8, 0.9, 1.0]
    forgetting = np.full((3, 3), NAN)
    forgetting[1, 0] = (0.8 - 0.4) / scale[0]
    forgetting[2, 0] = (0.4 - 0.2) / scale[0]
    forgetting[2, 1] = (0.9 - 0.3) / scale[1]
    np.testing.assert_allclose(m.cora_isolated_forgetting_each(C), forgetting)
    assert m.cora_isolated_forgetting(C) == pytest.approx(np.nanmean(forgetting))
    transfer = np.full((3, 3), NAN)
    transfer[0, 1] = (0.2 - 0.1) / scale[1]
    transfer[0, 2] = (0.2 - 0.0) / scale[2]
    transfer[1, 2] = (0.1 - 0.2) / scale[2]
    np.testing.assert_allclose(m.cora_zero_shot_transfer_each(C), transfer)
    assert m.cora_zero_shot_transfer(C) == pytest.approx(np.nanmean(transfer))


def test_cora_takes_raw_returns_of_any_scale():
    raw = Course(STEPS, P * [500, -7, 3], [100, 200, 300])
    expected = m.cora_isolated_forgetting_each(C) * [1, -1, 1]
    np.testing.assert_allclose(m.cora_isolated_forgetting_each(raw), expected)
    zeros = Course(STEPS, P * [1, 0, 1], [100, 200, 300])
    assert np.isnan(m.cora_isolated_forgetting_each(zeros)[:, 1]).all()


def test_meal_forgetting_from_the_peak_is_never_negative():
    found = m.meal_forgetting_peak(C, last=1)
    assert found == pytest.approx(((0.8 - 0.2) + (0.9 - 0.3) + 0) / 3)
    two = m.meal_forgetting_peak(C, last=2)
    assert two == pytest.approx(((0.8 - 0.25) + (0.9 - 0.4) + (1.0 - 0.8)) / 3)
    rising = Course([1, 2], [[0.1, 0.1], [0.5, 0.9]], [1, 2])
    assert m.meal_forgetting_peak(rising) == 0


def test_meal_forgetting_weighs_early_losses_more():
    later = np.array([0.6, 0.4, 0.3, 0.2])
    weights = np.exp(-2 * np.arange(4) / 3)
    first = ((0.8 - later) / 0.8 * weights).sum() / weights.sum()
    weights = np.exp(-2 * np.arange(2))
    second = ((0.9 - np.array([0.5, 0.3])) / 0.9 * weights).sum() / weights.sum()
    assert m.meal_forgetting_weighted_each(C) == pytest.approx([first, second, 0.0])
    assert m.meal_forgetting_weighted(C) == pytest.approx((first + second) / 3)
    early, late = np.ones((2, 6, 2)) * 0.5
    early[2, 0], late[5, 0] = 0, 0
    found = [m.meal_forgetting_weighted(Course(range(1, 7), p, [2, 6])) for p in (early, late)]
    assert found[0] > found[1] > 0
    flat = m.meal_forgetting_weighted_each(Course(range(1, 7), early, [2, 6]), lam=0)
    assert flat[0] == pytest.approx(1 / 4)
    gained = Course([1, 2], [[0.5, 0], [0.9, 1]], [1, 2])
    assert m.meal_forgetting_weighted(gained) == 0
    none = Course([1, 2], [[-0.5, 0], [-0.9, 1]], [1, 2])
    assert m.meal_forgetting_weighted_each(none) == [None, 0.0]


def test_a_cycle_has_a_window_per_visit():
    p = [[0.5, 0.0], [0.1, 0.6], [0.9, 0.2], [0.3, 0.8]]
    c = Course([10, 20, 30, 40], p, [10, 20, 30, 40], order=[0, 1, 0, 1])
    assert m.cw_average_performance(c) == pytest.approx((0.3 + 0.8) / 2)
    assert m.cw_forgetting_each(c) == pytest.approx([0.2, -0.2, 0.6, 0.0])
    assert c.auc(2) == pytest.approx(0.9)
    found = m.cora_isolated_forgetting_each(c)  # task 1 is taught before window 2
    assert found[2, 1] == pytest.approx((0.6 - 0.2) / 0.8) and np.isnan(found[2, 0])
    assert m.steps_to(c, 0.5) == [10, 10, 10, 10]
    assert m.steps_to(C, 0.5) == [100, 50, 50] and m.steps_to(C, 0.95) == [None, None, 100]


def test_what_was_not_scored_has_no_metric():
    p = P.copy()
    p[-1, 0] = NAN
    c = Course(STEPS, p, [100, 200, 300])
    assert m.cw_average_performance(c, last=1) is None
    assert m.cw_forgetting_each(c, last=1)[0] is None and m.cw_forgetting(c, last=1) is None
    assert np.isnan(m.cora_isolated_forgetting_each(c)[2, 0])
    assert m.cora_isolated_forgetting(c) is not None
    found, why = m.summarise(c)
    assert {name for name, value in found.items() if value is None} <= set(why)
    unseen = Course([250], P[:1], [100, 200, 300])
    assert m.cw_forgetting(unseen) is None and unseen.auc(0) is None


def test_a_course_that_can_not_be_is_refused():
    with pytest.raises(ShapeMismatch, match="7 steps and scores"):
        Course(STEPS, P[:-1], [100, 200, 300])
    with pytest.raises(ShapeMismatch, match="task 5 of 3"):
        Course(STEPS, P, [100], order=[5])
    with pytest.raises(ShapeMismatch, match="an order of 2"):
        Course(STEPS, P, [100, 200, 300], order=[0, 1])
    with pytest.raises(BadValue, match="must be in order"):
        Course(STEPS[::-1], P, [100, 200, 300])
    with pytest.raises(BadValue, match="every window have steps"):
        Course(STEPS, P, [100, 100, 300])


# ---------------------------------------------------------------- interquartile means


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 17])
def test_the_interquartile_mean_is_the_trimmed_mean_of_all_values(n):
    x = np.random.default_rng(n).normal(size=(n, 3))
    assert iqm(x) == pytest.approx(trim_mean(x.ravel(), 0.25))
    assert iqm([1.0, 2.0, 3.0, 1000.0]) == pytest.approx(2.5)


def test_its_interval_resamples_seeds_task_by_task():
    """Against the plain loop with draws of its own: equal up to the bootstrap's noise."""
    x = np.random.default_rng(0).normal(size=(12, 3)) + [0, 1, 5]
    rng, found = np.random.default_rng(5), []
    for _ in range(2000):
        drawn = [x[rng.integers(0, 12, 12), j] for j in range(3)]
        found.append(np.sort(np.concatenate(drawn))[9:-9].mean())
    ours = iqm_estimate(x)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.06)
    assert ours.low < ours.mean < ours.high and ours.n == 12
    assert ours == iqm_estimate(x)  # the same draws every time
    narrow = iqm_estimate(x, level=0.5)
    assert ours.low < narrow.low < narrow.high < ours.high


def test_the_tasks_of_one_stream_may_stay_together():
    """A run's tasks that move together leave more doubt than independent ones."""
    x = np.random.default_rng(0).normal(size=(12, 1)) + np.zeros((12, 4))
    whole, apart = iqm_estimate(x, whole=True), iqm_estimate(x)
    assert whole.high - whole.low > 1.5 * (apart.high - apart.low)
    one = x[:, 0]
    assert iqm_estimate(one) == iqm_estimate(one[:, None]) == iqm_estimate(one, whole=True)


def test_outliers_move_the_mean_and_not_the_interquartile_mean():
    x = np.append(np.random.default_rng(0).normal(1, 0.1, 11), -50.0)
    assert estimate(x).mean < -2 and iqm_estimate(x).mean == pytest.approx(1, abs=0.1)


def test_its_p_values_fit_its_intervals():
    x = np.random.default_rng(0).normal(1, 1, 15)
    ours = iqm_estimate(x)
    assert iqm_tail(x, ours.low, above=True) == pytest.approx(0.025, abs=0.002)
    assert iqm_tail(x, ours.high, above=False) == pytest.approx(0.025, abs=0.002)
    assert iqm_tail(x, -100, above=True) < 0.001 and iqm_tail(x, 100, above=True) == 1
    assert iqm_tail([1.0], 0, above=True) == 1
    assert iqm_estimate([1.0]).low == -np.inf
