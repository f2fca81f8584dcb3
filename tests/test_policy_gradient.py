"""Learning from rewards, in numbers: worked examples, enumeration and differences in numpy.

A pin is a mistake that others made and that no curve shows. Tests are named after the list of
pins, `test_g10_...`; those of sampling, masks and streams are where these are tested.
"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from cl.errors import BadValue, ShapeMismatch, UnknownName
from cl.objectives._policy_gradient import advantages, clipped, kl
from cl.objectives._tokens import (
    IGNORE,
    aggregate,
    entropy,
    full_kl,
    normaliser,
    token_cross_entropy,
    token_logp,
)

NAN = float("nan")
KINDS = ("sequence_mean", "token_mean", "fixed", "sequence_sum")
COMPARING = ("grpo", "dr_grpo", "rloo", "max_rl")


def advantage(rewards, kind, group=None, **options):
    group = [0] * len(rewards) if group is None else group
    return advantages(torch.tensor(rewards), torch.tensor(group), kind, **options)


def close(found, expected, atol=1e-5):
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# ---------------------------------------------------------------- advantages


@pytest.mark.parametrize(
    ("kind", "options", "right", "wrong"),
    [
        ("grpo", {"ddof": 1, "eps": 1e-4}, 1.49970, -0.49990),
        ("grpo", {"ddof": 1, "eps": 1e-6}, 1.5, -0.5),
        ("grpo", {"ddof": 0, "eps": 1e-4}, 1.73165, -0.57722),
        ("dr_grpo", {}, 0.75, -0.25),
        ("rloo", {}, 1.0, -1 / 3),
        ("max_rl", {}, 3.0, -1.0),
        ("reinforce", {}, 1.0, 0.0),
        ("remax", {"baseline": torch.tensor([0.25])}, 0.75, -0.25),
    ],
)
def test_g1_one_right_answer_of_four_has_the_published_advantages(kind, options, right, wrong):
    found, counted = advantage([1.0, 0.0, 0.0, 0.0], kind, **options)
    assert found.dtype == torch.float32 and counted.tolist() == [True] * 4
    close(found, [right, wrong, wrong, wrong])


def test_g1_advantages_are_float32_whatever_the_rewards_are():
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert advantages(rewards, torch.zeros(2, dtype=torch.int64), "rloo")[0].dtype == torch.float32


def test_g2_rloo_subtracts_the_mean_of_the_others_and_scales_what_dr_grpo_has():
    rewards = np.random.default_rng(0).normal(size=12)
    group = np.array([0, 1, 2, 0, 0, 1, 2, 2, 2, 0, 0, 1])
    others = [
        np.mean([rewards[j] for j in range(12) if group[j] == group[i] and j != i])
        for i in range(12)
    ]
    found, _ = advantage(list(rewards), "rloo", list(group))
    close(found, rewards - others)
    n = np.array([np.sum(group == g) for g in group])
    close(found, n / (n - 1) * advantage(list(rewards), "dr_grpo", list(group))[0].numpy())


@pytest.mark.parametrize("kind", COMPARING)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("std", ["group", "batch"])
def test_g3_a_group_of_equal_rewards_has_no_advantages(kind, reward, std):
    found, counted = advantage([reward] * 7, kind, std=std)
    assert found.tolist() == [0.0] * 7 and counted.all()


@pytest.mark.parametrize("kind", COMPARING)
def test_g3_a_single_completion_can_not_be_compared(kind):
    with pytest.raises(BadValue, match=f"advantage={kind} compares .* has only 1"):
        advantage([1.0, 0.0, 1.0], kind, [0, 0, 1])
    assert advantage([], kind)[0].shape == (0,)


def test_g3_a_single_completion_has_its_reward_under_reinforce():
    assert advantage([1.0, 0.5], "reinforce", [0, 1])[0].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("kind", COMPARING)
@pytest.mark.parametrize("std", ["group", "batch"])
def test_g4_what_can_not_be_scored_is_as_if_it_were_not_there(kind, std):
    found, counted = advantage([1.0, NAN, 0.0, 0.0, NAN, 1.0], kind, [0, 0, 0, 0, 1, 1], std=std)
    assert counted.tolist() == [True, False, True, True, False, True]
    assert found[[1, 4]].tolist() == [0.0, 0.0]
    if std == "group" or kind != "grpo":
        close(found[[0, 2, 3]], advantage([1.0, 0.0, 0.0], kind)[0].numpy())
    else:
        close(found[[0, 2, 3]], np.array([2, -1, -1]) / 3 / (np.std([1, 0, 0, 1], ddof=1) + 1e-4))
    assert found[5] == 0  # nothing of its group is left to compare it with


@pytest.mark.parametrize("kind", ["reinforce", "remax", *COMPARING])
def test_g4_a_group_without_any_score_counts_nowhere(kind):
    options = {"baseline": torch.tensor([0.0, 0.0])} if kind == "remax" else {}
    found, counted = advantage([NAN, NAN, 1.0, 0.0], kind, [0, 0, 1, 1], **options)
    assert counted.tolist() == [False, False, True, True]
    assert found[:2].tolist() == [0.0, 0.0] and found.isfinite().all()


def test_g4_what_does_not_count_is_not_in_the_denominator():
    rewards, group = [1.0, NAN, 0.0], [0, 0, 0]
    found, counted = advantage(rewards, "dr_grpo", group)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]]).bool() & counted[:, None]
    logp = torch.zeros(3, 2, requires_grad=True)
    loss, _ = clipped(logp, None, found, mask, low=0.2, high=0.2)
    totals = {kind: normaliser(mask, kind, max_len=4).item() for kind in KINDS}
    assert totals == {"sequence_mean": 2, "token_mean": 3, "fixed": 8, "sequence_sum": 2}
    aggregate(loss, mask, "sequence_mean").backward()
    close(logp.grad, [[-0.125, -0.125], [0, 0], [0.25, 0]])


def test_g4_remax_leaves_out_groups_without_a_baseline():
    baseline = torch.tensor([NAN, 0.5])
    found, counted = advantage([1.0, 0.0, 1.0], "remax", [0, 0, 1], baseline=baseline)
    assert found.tolist() == [0.0, 0.0, 0.5] and counted.tolist() == [False, False, True]
    with pytest.raises(BadValue, match="greedy completion"):
        advantage([1.0], "remax")
    with pytest.raises(ShapeMismatch, match="1 baselines for a group numbered 1"):
        advantage([1.0], "remax", [1], baseline=torch.tensor([0.0]))


def test_g5_nearly_equal_rewards_make_loud_advantages_unless_the_spread_has_a_floor():
    rewards = [0.5, 0.501, 0.5, 0.5]
    with pytest.warns(UserWarning, match="set std_floor"):
        found, _ = advantage(rewards, "grpo")
    close(found, np.array([-1.25, 3.75, -1.25, -1.25]) / 3, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(advantage(rewards, "grpo", std_floor=0.1)[0][1], 0.00075 / 0.1001)
        close(advantage(rewards, "dr_grpo")[0][1], 0.00075)
        advantage([0.5] * 4 + [1.0, 0.0] + [NAN] * 2, "grpo", [0] * 4 + [1] * 2 + [2] * 2)
        close(advantage([1.0, 0.0, 0.0, 0.0], "grpo", std_floor=0.1)[0][0], 1.49970)


def test_g6_the_batchs_spread_is_taken_around_the_batchs_mean():
    rewards = np.random.default_rng(1).uniform(size=8)
    group = np.repeat([3, 7], 4)
    means = np.repeat([rewards[:4].mean(), rewards[4:].mean()], 4)
    for ddof in (0, 1):
        found, _ = advantage(list(rewards), "grpo", list(group), std="batch", ddof=ddof)
        close(found, (rewards - means) / (rewards.std(ddof=ddof) + 1e-4))


@pytest.mark.parametrize("kind", ["reinforce", "remax", *COMPARING])
def test_g7_the_order_of_completions_does_not_matter(kind):
    rng = torch.Generator().manual_seed(0)
    rewards, group = torch.rand(12, generator=rng), torch.arange(12) % 3
    options = {"baseline": torch.rand(3, generator=rng)} if kind == "remax" else {}
    order = torch.randperm(12, generator=rng)
    whole, _ = advantages(rewards, group, kind, **options)
    permuted, _ = advantages(rewards[order], group[order], kind, **options)
    close(permuted, whole[order].numpy(), atol=1e-6)


def test_g7_equal_prompts_stay_two_groups():
    apart, _ = advantage([1.0, 0.0, 1.0, 1.0], "dr_grpo", [0, 0, 1, 1])
    assert apart.tolist() == [0.5, -0.5, 0.0, 0.0]
    assert advantage([1.0, 0.0, 1.0, 1.0], "dr_grpo")[0].tolist() == [0.25, -0.75, 0.25, 0.25]


def test_g8_dropped_groups_leave_the_denominator_and_kept_ones_dilute_it():
    rewards, group = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2]
    mask, values = torch.ones(6, 3), {}
    for choice in ("keep", "drop"):
        found, counted = advantage(rewards, "dr_grpo", group, zero_variance=choice)
        assert found.tolist() == [0.5, -0.5, 0, 0, 0, 0]
        assert counted.tolist() == [True, True] + [choice == "keep"] * 4
        kept = mask.bool() & counted[:, None]
        values[choice] = aggregate(found[:, None].abs().expand(6, 3), kept, "token_mean").item()
    assert values == {"keep": pytest.approx(1 / 6), "drop": pytest.approx(1 / 2)}


def test_g8_a_group_says_nothing_where_all_its_advantages_are_zero():
    rewards, group = [0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]
    assert advantage(rewards, "reinforce", group, zero_variance="drop")[1].tolist() == [
        *(False, False, True, True)
    ]
    equal = {"baseline": torch.tensor([0.0, 0.0]), "zero_variance": "drop"}
    assert advantage(rewards, "remax", group, **equal)[1].tolist() == [False, False, True, True]


# --------------------------------------------------------------- aggregation

ORACLE = {"sequence_mean": 0.0, "token_mean": 0.5, "fixed": 0.25, "sequence_sum": 2.0}
MASK = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_g9_two_completions_of_two_and_six_tokens_have_the_worked_losses(kind):
    logp = torch.randn(2, 6)
    loss, _ = clipped(logp, None, torch.tensor([1.0, -1.0]), MASK, low=0.2, high=0.2)
    close(aggregate(loss, MASK, kind, max_len=8), ORACLE[kind], atol=1e-6)


def test_g9_fixed_needs_the_longest_length_and_names_are_checked():
    with pytest.raises(BadValue, match="max_len, at least 1 token; it is None"):
        aggregate(torch.ones(2, 6), MASK, "fixed")
    for total in (None, 3):
        with pytest.raises(UnknownName, match="no aggregate 'tokn_mean'; did you mean"):
            aggregate(torch.ones(2, 6), MASK, "tokn_mean", total=total)
    for what in ({"kind": "gpro"}, {"std": "all"}, {"zero_variance": "refill"}):
        with pytest.raises(UnknownName):
            advantage([1.0, 0.0], **{"kind": "grpo", **what})
    with pytest.raises(UnknownName, match="no level"):
        clipped(torch.ones(1, 1), None, torch.ones(1), torch.ones(1, 1), low=0, high=0, level="x")
    with pytest.raises(UnknownName, match="no kl"):
        kl(torch.ones(1), torch.ones(1), "k4")
    with pytest.raises(UnknownName, match="no normalise"):
        token_cross_entropy(torch.ones(1, 1, 2), torch.ones(1, 1).long(), normalise="token")


def rollouts(seed=0, B=5, T=6, V=7):
    """Ids, a mask of random lengths (the last row empty), advantages, and a small model."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (B, T + 1), generator=rng)
    lengths = torch.randint(1, T + 1, (B,), generator=rng)
    lengths[-1] = 0
    mask = torch.arange(T) < lengths[:, None]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V)).double()
    return model, ids, mask, torch.randn(B, generator=rng)


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def rl_loss(model, ids, mask, advantage, kind, total=None, level="token"):
    logp = token_logp(model(ids[:, :-1]), ids[:, 1:])
    old = logp.detach() + 0.2 * torch.sin(ids[:, 1:].double())
    loss, _ = clipped(logp, old, advantage, mask, low=0.2, high=0.28, level=level)
    loss = loss + 0.1 * kl(logp, old - 0.3, "k2")
    return aggregate(loss, mask, kind, max_len=9, total=total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("size", [1, 2])
def test_g10_micro_batches_add_up_to_the_whole_batch(kind, level, size):
    model, *rows = rollouts()
    whole = rl_loss(model, *rows, kind, level=level)
    total = normaliser(rows[1], kind, max_len=9)
    parts = [
        rl_loss(model, *(r[k : k + size] for r in rows), kind, total, level)
        for k in range(0, 5, size)
    ]
    close(sum(p.item() for p in parts), whole.item(), atol=1e-12)
    close(sum(gradients(model, p) for p in parts), gradients(model, whole), atol=1e-12)
    assert sum(normaliser(m[None], kind, max_len=9) for m in rows[1]) == total


def test_g10_means_of_micro_batches_would_not_add_up():
    model, *rows = rollouts()
    parts = [rl_loss(model, *(r[k : k + 1] for r in rows), "token_mean") for k in range(4)]
    assert abs(sum(parts) / 4 - rl_loss(model, *rows, "token_mean")) > 1e-3


@pytest.mark.parametrize("normalise", ["tokens", "sequences"])
def test_g10_cross_entropy_adds_up_over_micro_batches_too(normalise):
    model, ids, mask, _ = rollouts()
    labels = ids[:, 1:].masked_fill(~mask, IGNORE)
    kind = {"tokens": "token_mean", "sequences": "sequence_mean"}[normalise]
    total = normaliser(labels != IGNORE, kind)
    whole = token_cross_entropy(model(ids[:, :-1]), labels, normalise=normalise)
    parts = [
        token_cross_entropy(model(i[None, :-1]), y[None], normalise=normalise, total=total)
        for i, y in zip(ids, labels)
    ]
    close(sum(gradients(model, p) for p in parts), gradients(model, whole), atol=1e-12)
    logits = model(ids[:, :-1]).detach().numpy()
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    per = [[-logp[b, t, ids[b, t + 1]] for t in range(6) if mask[b, t]] for b in range(5)]
    tokens, sequences = np.concatenate(per).mean(), np.mean([np.mean(p) for p in per if p])
    close(whole, {"tokens": tokens, "sequences": sequences}[normalise], atol=1e-12)


def test_g10_cross_entropy_is_what_transformers_computes_over_an_accumulated_batch():
    loss_utils = pytest.importorskip("transformers.loss.loss_utils")
    model, ids, mask, _ = rollouts(B=4)
    full = ids.masked_fill(~torch.cat([mask[:, :1], mask], 1), IGNORE)  # theirs shift by themselves
    logits, items = model(ids), int((full[:, 1:] != IGNORE).sum()) + 5
    theirs = loss_utils.ForCausalLMLoss(logits.float(), full, 7, num_items_in_batch=items)
    ours = token_cross_entropy(logits[:, :-1].float(), full[:, 1:], total=items)
    close(ours, theirs.item(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_g11_more_padding_changes_nothing(kind, level):
    model, ids, mask, advantage = rollouts()
    wider = torch.cat([ids, torch.zeros(5, 3, dtype=torch.int64)], 1)
    longer = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], 1)
    short = rl_loss(model, ids, mask, advantage, kind, level=level)
    padded = rl_loss(model, wider, longer, advantage, kind, level=level)
    close(padded, short.item(), atol=1e-12)
    close(gradients(model, padded), gradients(model, short), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_g12_a_fully_masked_row_is_as_if_it_were_not_there(kind, level):
    model, *rows = rollouts()
    with_empty, without = (
        rl_loss(model, *(r[:n] for r in rows), kind, level=level) for n in (5, 4)
    )
    close(with_empty, without.item(), atol=1e-12)
    close(gradients(model, with_empty), gradients(model, without), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_g12_nothing_that_counts_gives_zero_and_nan_behind_the_mask_stays_there(kind, level):
    logp = torch.tensor([[-1.0, NAN], [NAN, NAN]], requires_grad=True)
    mask = torch.tensor([[1, 0], [0, 0]])
    for m, expected in ((mask, -1.0), (0 * mask, 0.0)):
        old = logp.detach().clone()
        loss, share = clipped(logp, old, torch.ones(2), m, low=0.2, high=0.2, level=level)
        value = aggregate(loss, m, kind, max_len=1)
        (gradient,) = torch.autograd.grad(value, logp)
        assert value == expected and share == 0
        assert gradient.tolist() == [[expected, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_g12_values_that_do_not_count_may_be_anything(kind):
    values = torch.tensor([[1.0, NAN], [torch.inf, -torch.inf]])
    assert aggregate(values, torch.tensor([[1, 0], [0, 0]]), kind, max_len=1) == 1


def test_g12_labels_that_do_not_count_have_no_loss_and_no_gradient():
    logits = torch.zeros(2, 2, 4, requires_grad=True)
    labels = torch.tensor([[1, IGNORE], [IGNORE, IGNORE]])
    assert token_logp(logits, labels)[labels == IGNORE].tolist() == [0, 0, 0]
    for normalise in ("tokens", "sequences"):
        loss = token_cross_entropy(logits, labels, normalise=normalise)
        (gradient,) = torch.autograd.grad(loss, logits)
        close(loss, np.log(4))
        close(gradient[0, 0], [0.25, -0.75, 0.25, 0.25])
        assert gradient.flatten(0, 1)[1:].count_nonzero() == 0
        assert token_cross_entropy(logits[1:], labels[1:], normalise=normalise) == 0


# ---------------------------------------------------------- log-probabilities


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def test_g18_log_probabilities_are_float32_under_bfloat16_autocast():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 50), 4 * torch.randn(2, 3, 16)
    ids = torch.randint(50, (2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        found = {
            "logp": token_logp(logits, ids),
            "warm": token_logp(logits, ids, 0.7),
            "entropy": entropy(logits),
            "kl": full_kl(logits, logits.flip(0)),
            "loss": token_cross_entropy(logits, ids),
        }
    assert logits.dtype == torch.bfloat16
    assert {value.dtype for value in found.values()} == {torch.float32}
    exact = log_softmax(logits.detach().float().numpy())
    warm = log_softmax(logits.detach().float().numpy() / 0.7)
    picked = np.take_along_axis(exact, ids.numpy()[..., None], -1)[..., 0]
    close(found["logp"], picked)
    close(found["warm"], np.take_along_axis(warm, ids.numpy()[..., None], -1)[..., 0])
    close(found["entropy"], -(np.exp(exact) * exact).sum(-1))
    close(found["kl"], (np.exp(exact) * (exact - exact[::-1])).sum(-1))
    close(found["loss"], -picked.mean())


def test_token_logp_keeps_float64_and_temperature_divides_logits():
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    found = token_logp(logits, torch.tensor([1]), 2.0)
    assert found.dtype == torch.float64
    close(found, log_softmax([[1.0, 0.0, -0.5]])[:, 1], atol=1e-12)


def test_impossible_tokens_neither_add_entropy_nor_distance():
    logits = torch.tensor([1.0, 2.0, -torch.inf], requires_grad=True)
    for value, expected in (
        (entropy(logits), entropy(logits[:2]).item()),
        (full_kl(logits, logits.detach().flip(0).roll(-1)), 0.4621172),
    ):
        close(value, expected)
        assert torch.autograd.grad(value, logits)[0].isfinite().all()
    assert full_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -torch.inf])) > 1e30


# ----------------------------------------------------- ratio, clip and gradient

TABLE = np.array([[0.3, -0.2, 0.9], [1.1, 0.0, -0.7], [-0.4, 0.5, 0.2]])  # next given last token
PATHS = np.array([[0, 1, 2, 0], [0, 2, 2, 1], [0, 0, 1, 1]])  # each begins with the prompt's token
LENGTHS = (3, 2, 3)


def differences(f, x, h=1e-6):
    """The gradient of f: array -> number at x, by central differences."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = h
        gradient[place] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def path_logp(table, path, length):
    rows = log_softmax(table)
    return np.array([rows[path[t], path[t + 1]] for t in range(length)])


def three_token_model(table):
    """theta [3, 3], logp [3, 3] of PATHS under it, and their mask."""
    theta = torch.tensor(table, requires_grad=True)
    ids = torch.tensor(PATHS)
    mask = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
    return theta, token_logp(theta[ids[:, :-1]], ids[:, 1:]), mask


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_g26_the_first_inner_steps_gradient_is_reinforces(stored, level):
    A = np.array([0.7, -1.3, 0.4])
    theta, logp, mask = three_token_model(TABLE)
    old = logp.detach().clone() if stored else None
    loss, share = clipped(logp, old, torch.tensor(A), mask, low=0.2, high=0.28, level=level)
    assert share == 0 and not share.requires_grad
    close(loss[mask], -np.repeat(A, LENGTHS), atol=1e-12)  # the ratio is 1
    kinds = ("sequence_mean",) if level == "sequence" else KINDS
    for kind in kinds:
        weights = {
            "sequence_mean": [1 / n / 3 for n in LENGTHS],
            "token_mean": [1 / sum(LENGTHS)] * 3,
            "fixed": [1 / 15] * 3,
            "sequence_sum": [1 / 3] * 3,
        }[kind]
        expected = differences(
            lambda table, weights=weights: (
                -sum(
                    w * a * path_logp(table, path, n).sum()
                    for w, a, path, n in zip(weights, A, PATHS, LENGTHS)
                )
            ),
            TABLE,
        )
        value = aggregate(loss, mask, kind, max_len=5)
        (found,) = torch.autograd.grad(value, theta, retain_graph=True)
        close(found, expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_g27_the_first_losss_value_is_zero_while_its_gradient_is_not(kind):
    theta, logp, mask = three_token_model(TABLE)
    A, _ = advantage([1.0, 0.0, 0.0], kind)
    loss, _ = clipped(logp, None, A.double(), mask, low=0.2, high=0.2)
    value = aggregate(loss, mask, "sequence_mean")
    assert abs(value.item()) < 1e-6
    value.backward()
    assert theta.grad.abs().max() > 0.05


def ratio_loss(ratio, A, **options):
    """Loss, d loss / d log-ratio and share clipped of one token."""
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    options = {"low": 0.2, "high": 0.2, **options}
    old = torch.zeros(1, 1, dtype=torch.float64)
    loss, share = clipped(log_ratio, old, torch.tensor([A]), torch.ones(1, 1), **options)
    loss.sum().backward()
    return loss.item(), log_ratio.grad.item(), share.item()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("A", "ratio", "flows"),
    [
        (1.0, 1.3, False),
        (1.0, 0.7, True),
        (-1.0, 0.7, False),
        (-1.0, 1.3, True),
        (1.0, 1.19, True),
        (-1.0, 0.81, True),
    ],
)
def test_g28_the_clip_stops_a_token_that_has_gone_far_enough(A, ratio, flows, level):
    loss, gradient, share = ratio_loss(ratio, A, level=level)
    close(loss, -A * (ratio if flows else np.clip(ratio, 0.8, 1.2)), atol=1e-12)
    close(gradient, -A * ratio if flows else 0.0, atol=1e-12)
    assert share == (not flows)


def test_g28_the_upper_bound_is_its_own():
    assert ratio_loss(1.25, 1.0)[1:] == (0.0, 1.0)
    assert ratio_loss(1.25, 1.0, high=0.28)[1:] == (pytest.approx(-1.25), 0.0)
    assert ratio_loss(1.3, 1.0, high=0.28)[0] == pytest.approx(-1.28)
    assert ratio_loss(0.75, -1.0, high=0.28)[1:] == (0.0, 1.0)


def test_g28_the_dual_clip_bounds_what_a_bad_completion_costs():
    assert ratio_loss(5.0, -1.0) == (pytest.approx(5.0), pytest.approx(5.0), 0.0)
    assert ratio_loss(5.0, -1.0, dual=3.0) == (pytest.approx(3.0), 0.0, 1.0)
    assert ratio_loss(2.9, -1.0, dual=3.0) == (pytest.approx(2.9), pytest.approx(2.9), 0.0)
    assert ratio_loss(5.0, 1.0, dual=3.0) == ratio_loss(5.0, 1.0)
    assert ratio_loss(0.5, -1.0, dual=3.0) == ratio_loss(0.5, -1.0)
    with pytest.raises(BadValue, match="dual=0.5"):
        ratio_loss(1.0, -1.0, dual=0.5)


def test_g28_the_share_is_of_tokens_that_count_or_of_sequences():
    log_w = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    given = (log_w, torch.zeros(3, 3), torch.ones(3), mask)
    assert clipped(*given, low=0.2, high=0.2)[1] == pytest.approx(3 / 5)
    # e^(1/3) and e^(1/4) against 1.3
    assert clipped(*given, low=0.2, high=0.3, level="sequence")[1] == pytest.approx(1 / 2)


def test_a_sequences_ratio_is_the_exponential_of_its_mean_log_ratio():
    """GSPO's loss and gradient with ratios other than 1, in numpy."""
    A, shift = np.array([0.7, -1.3, 0.4]), 0.05 * np.arange(9).reshape(3, 3)
    theta, logp, mask = three_token_model(TABLE)
    old = logp.detach() - torch.tensor(shift)
    loss, _ = clipped(logp, old, torch.tensor(A), mask, low=0.1, high=0.1, level="sequence")
    (found,) = torch.autograd.grad(aggregate(loss, mask, "sequence_mean"), theta)

    def surrogate(table):
        total = 0
        for a, path, n, s in zip(A, PATHS, LENGTHS, shift):
            before = path_logp(TABLE, path, n) - s[:n]
            ratio = np.exp((path_logp(table, path, n) - before).mean())
            total -= min(ratio * a, np.clip(ratio, 0.9, 1.1) * a) / 3
        return total

    close(aggregate(loss, mask, "sequence_mean"), surrogate(TABLE), atol=1e-12)
    close(found, differences(surrogate, TABLE), atol=1e-8)


def test_advantages_may_be_given_per_token():
    A = torch.tensor([[1.0, -2.0, 0.5]])
    loss, _ = clipped(torch.zeros(1, 3), torch.zeros(1, 3), A, torch.ones(1, 3), low=0.2, high=0.2)
    assert loss.tolist() == [[-1.0, 2.0, -0.5]]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_g29_a_log_ratio_is_kept_within_20_before_it_is_exponentiated(level):
    for log_ratio, ratio in ((500.0, np.exp(20)), (-500.0, np.exp(-20)), (19.0, np.exp(19))):
        logp = torch.full((1, 2), log_ratio, dtype=torch.float64, requires_grad=True)
        given = (torch.zeros(1, 2), torch.tensor([-1.0]), torch.ones(1, 2))
        loss, _ = clipped(logp, *given, low=1.0, high=0.2, level=level)
        close(loss[0, 0] / ratio, 1.0, atol=1e-12)
        assert torch.autograd.grad(loss.sum(), logp)[0].isfinite().all()
    for kind in ("k3", "ratio_k3"):
        logp = torch.tensor([-500.0, 500.0], requires_grad=True)
        found = kl(logp, torch.zeros(2), kind)
        close(found / torch.tensor([np.exp(20), 499.0]), [1.0, 1.0])
        assert torch.autograd.grad(found.sum(), logp)[0].isfinite().all()
    close(kl(torch.tensor([500.0]), torch.tensor([500.0]), "ratio_k3", old_logp=torch.zeros(1)), 0)


def test_g30_later_inner_steps_compare_with_the_policy_that_sampled():
    A = np.array([0.7, -1.3, 0.4])
    moved = TABLE + 0.4 * np.cos(np.arange(9)).reshape(3, 3)
    _, sampled, mask = three_token_model(TABLE)  # its graph is still there
    theta, logp, _ = three_token_model(moved)
    loss, share = clipped(logp, sampled, torch.tensor(A), mask, low=0.1, high=0.1)
    value = aggregate(loss, mask, "token_mean")

    def surrogate(table):
        total = 0
        for a, path, n in zip(A, PATHS, LENGTHS):
            w = np.exp(path_logp(table, path, n) - path_logp(TABLE, path, n))
            total -= np.minimum(w * a, np.clip(w, 0.9, 1.1) * a).sum()
        return total / sum(LENGTHS)

    assert 0 < share < 1
    close(value, surrogate(moved), atol=1e-12)
    close(torch.autograd.grad(value, theta)[0], differences(surrogate, moved), atol=1e-8)
    constant = torch.zeros(1, 1, requires_grad=True)
    loss, _ = clipped(
        torch.zeros(1, 1, requires_grad=True), constant, torch.ones(1), mask[:1, :1], low=1, high=1
    )
    both = loss + kl(torch.zeros(1, 1), constant, "ratio_k3", old_logp=constant)
    both.sum().backward()
    assert constant.grad is None


# ------------------------------------------------------------------------- KL

POLICY, REFERENCE = np.array([0.6, -0.4, 0.1]), np.array([-0.2, 0.7, 0.3])


def divergence(p_logits, q_logits):
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return float((np.exp(p) * (p - q)).sum())


@pytest.mark.parametrize(
    ("d", "values"), [(0.5, (-0.5, 0.125, 0.14872)), (-0.5, (0.5, 0.125, 0.10653))]
)
def test_g31_the_estimators_have_the_worked_values(d, values):
    logp, ref = torch.tensor([-1.0]), torch.tensor([-1.0 + d])
    for kind, value in zip(("k1", "k2", "k3"), values):
        close(kl(logp, ref, kind), [value])
    close(kl(logp, ref, "ratio_k3"), [values[2]])
    close(kl(logp, ref, "ratio_k3", old_logp=logp - np.log(2)), [2 * values[2]])


def expected_gradient(kind, **options):
    """sum_a pi(a) d kl(a) / d theta, on-policy, of a policy over three tokens."""
    theta = torch.tensor(POLICY, requires_grad=True)
    ids = torch.arange(3)
    logp = token_logp(theta.expand(3, 3), ids)
    ref = token_logp(torch.tensor(REFERENCE).expand(3, 3), ids)
    per_token = kl(logp, ref, kind, **options)
    return torch.autograd.grad((logp.detach().exp() * per_token).sum(), theta)[0]


def test_g32_expected_gradients_are_those_of_the_named_divergences():
    reverse = differences(lambda x: divergence(x, REFERENCE), POLICY)
    forward = differences(lambda x: divergence(REFERENCE, x), POLICY)
    assert np.abs(reverse - forward).max() > 0.02
    close(expected_gradient("k1"), np.zeros(3), atol=1e-12)
    close(expected_gradient("k2"), reverse, atol=1e-8)
    close(expected_gradient("k3"), forward, atol=1e-8)
    close(expected_gradient("ratio_k3"), reverse, atol=1e-8)


def test_g32_k1_in_the_reward_pulls_towards_the_reference():
    theta = torch.tensor(POLICY, requires_grad=True)
    logp = token_logp(theta.expand(3, 3), torch.arange(3))[:, None]  # [3, 1]
    ref = token_logp(torch.tensor(REFERENCE).expand(3, 3), torch.arange(3))[:, None]
    rewards = -kl(logp, ref, "k1").detach()[:, 0]
    loss, _ = clipped(logp, None, rewards, torch.ones(3, 1), low=0.2, high=0.2)
    (found,) = torch.autograd.grad((logp.detach().exp() * loss).sum(), theta)
    close(found, differences(lambda x: divergence(x, REFERENCE), POLICY), atol=1e-8)


def test_g33_a_stale_ratio_still_gives_the_reverse_divergence():
    """Samples of another policy, weighted by the ratio: the same expected gradient."""
    theta = torch.tensor(POLICY, requires_grad=True)
    ids = torch.arange(3)
    logp, ref, old = (
        token_logp(t.expand(3, 3), ids)
        for t in (theta, torch.tensor(REFERENCE), torch.tensor([0.0, 0.3, -0.5]).double())
    )
    value = (old.exp() * kl(logp, ref, "ratio_k3", old_logp=old)).sum()
    close(value, divergence(POLICY, REFERENCE), atol=1e-12)
    (found,) = torch.autograd.grad(value, theta)
    close(found, differences(lambda x: divergence(x, REFERENCE), POLICY), atol=1e-8)


def test_g34_the_full_divergence_is_exact_in_value_and_gradient():
    theta = torch.tensor(POLICY, requires_grad=True)
    ref = torch.tensor(REFERENCE, requires_grad=True)
    value = full_kl(theta, ref)
    close(value, divergence(POLICY, REFERENCE), atol=1e-12)
    found = torch.autograd.grad(value, (theta, ref))
    close(found[0], differences(lambda x: divergence(x, REFERENCE), POLICY), atol=1e-8)
    close(found[1], differences(lambda x: divergence(POLICY, x), REFERENCE), atol=1e-8)
    close(full_kl(ref, theta), divergence(REFERENCE, POLICY), atol=1e-12)
    warm = full_kl(theta, ref, temperature=2.0)
    close(warm, divergence(POLICY / 2, REFERENCE / 2), atol=1e-12)


def test_g34_the_sampled_estimators_average_to_the_full_divergence():
    logits = torch.tensor(np.stack([POLICY, REFERENCE]))
    p = logits.softmax(-1)
    ids = torch.arange(3)
    logp, ref = (token_logp(row.expand(3, 3), ids) for row in logits)
    for kind in ("k1", "k3", "ratio_k3"):
        close((p[0] * kl(logp, ref, kind)).sum(), full_kl(*logits), atol=1e-12)
    close(entropy(logits), [-(row * row.log()).sum() for row in p], atol=1e-12)


# ------------------------------------------------------------ beside TRL's own


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    """TRL, a folder with a language model of 12 symbols, and its tokenizer."""
    trl = pytest.importorskip("trl", reason="agreement with TRL needs the extra `oracle`")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    symbols = [*special.values(), *"abcdefgh"]
    words = models.WordLevel({s: k for k, s in enumerate(symbols)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return trl, folder, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def trl_rollouts(tiny_llama, algorithm, reward=None, **config):
    """TRL's trainer, its rollouts with advantages, the rewards it saw, and a copy of the model.

    The model is moved after the rollouts, so that ratios and distances are not trivial.
    """
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    trl, folder, tokenizer = tiny_llama
    rewards = []

    def seen(prompts, completions, completion_ids, **_):
        rewards[:] = [(reward or (lambda ids: sum(ids) % 5 / 4))(ids) for ids in completion_ids]
        return list(rewards)

    warnings.simplefilter("ignore")
    arguments = getattr(trl, f"{algorithm}Config")(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        bf16=False,
        use_cpu=True,
        report_to=[],
        seed=3,
        **config,
    )
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=seen,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["abc", "de"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(
        [{"prompt": prompt} for prompt in ["abc"] * 4 + ["de"] * 4]
    )
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids, mask, T = full_rows(batch)
    temperature = arguments.temperature
    with torch.no_grad():
        logits = plain(ids, attention_mask=mask).logits[:, -T - 1 : -1]
        batch["old_per_token_logps"] = token_logp(logits, batch["completion_ids"], temperature)
        rng = torch.Generator().manual_seed(0)
        for theirs, ours in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            theirs += 0.02 * torch.randn(theirs.shape, generator=rng)
            ours.copy_(theirs)
    group = torch.arange(2).repeat_interleave(4)
    return trainer, batch, torch.tensor([NAN if r is None else r for r in rewards]), group, plain


def full_rows(batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    return ids, mask, batch["completion_ids"].shape[1]


RECIPES = {  # TRL's arguments, and ours that mean the same
    "grpo": ({"loss_type": "grpo"}, {"aggregate": "sequence_mean"}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"high": 0.28}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"aggregate": "fixed", "advantage": "dr_grpo"},
    ),
    "batch_spread": ({"scale_rewards": "batch"}, {"std": "batch"}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
        {"aggregate": "sequence_mean", "level": "sequence", "low": 0.05, "high": 0.05},
    ),
    "dual": ({"delta": 1.5, "epsilon": 0.1}, {"dual": 1.5, "low": 0.1, "high": 0.1}),
    "k3": ({"beta": 0.3, "use_bias_correction_kl": False}, {"kl": "k3"}),
    "ratio_k3": ({"beta": 0.3, "use_bias_correction_kl": True}, {"kl": "ratio_k3"}),
    "warm": ({"temperature": 1.7, "beta": 0.3}, {"kl": "ratio_k3", "temperature": 1.7}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_and_gradients_agree_with_trls_on_the_same_rollouts(recipe, tiny_llama):
    theirs, given = RECIPES[recipe]
    ours = {"aggregate": "token_mean", "advantage": "grpo", "low": 0.2, "high": 0.2} | given
    trainer, batch, rewards, group, model = trl_rollouts(
        tiny_llama, "GRPO", **{"loss_type": "dapo", "beta": 0.0} | theirs
    )
    A, counted = advantages(rewards, group, ours["advantage"], std=ours.get("std", "group"))
    assert counted.all() and A.abs().max() > 0.1
    close(A, batch["advantages"].numpy())
    loss = trainer._compute_loss(trainer.model, batch)
    ids, mask, T = full_rows(batch)
    logits = model(ids, attention_mask=mask).logits[:, -T - 1 : -1]
    logp = token_logp(logits, batch["completion_ids"], ours.get("temperature", 1.0))
    old, mask = batch["old_per_token_logps"], batch["completion_mask"]
    options = {name: ours[name] for name in ("low", "high", "dual", "level") if name in ours}
    per_token, share = clipped(logp, old, A, mask, **options)
    assert 0 < share < 1 and (mask == 0).any()
    if "kl" in ours:
        ref = batch["ref_per_token_logps"]
        per_token = per_token + 0.3 * kl(logp, ref, ours["kl"], old_logp=old)
    value = aggregate(per_token, mask, ours["aggregate"], max_len=6)
    close(value, loss.item())
    assert value.abs() > 1e-3
    expected = torch.autograd.grad(loss, list(trainer.model.parameters()))
    found = torch.autograd.grad(value, list(model.parameters()))
    assert max(g.abs().max() for g in expected) > 1e-2
    for a, b in zip(found, expected, strict=True):
        close(a, b.numpy())


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("GRPO", "grpo"), ("GRPO", "dr_grpo"), ("RLOO", "rloo")]
)
def test_advantages_agree_with_trls_where_some_completions_can_not_be_scored(
    algorithm, kind, tiny_llama
):
    config = {"beta": 0.0} | ({"scale_rewards": "none"} if kind == "dr_grpo" else {})
    _, batch, rewards, group, _ = trl_rollouts(
        tiny_llama, algorithm, lambda ids: None if sum(ids) % 4 == 0 else sum(ids) % 5 / 4, **config
    )
    assert 0 < rewards.isnan().sum() < 6
    close(advantages(rewards, group, kind)[0], batch["advantages"].numpy())
