"""Actor, critic, Q and cloning in numbers: worked examples and loops in numpy.

Tests are named after the list of pins, `test_p1_...`; those of environments and whole runs are
where these are tested.
"""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch

from cl.errors import ShapeMismatch, UnknownName
from cl.models.policy import Actions
from cl.normalise import Normaliser, RewardScale
from cl.objectives import _actions as act
from cl.objectives import _q_learning as dqn
from cl.objectives._actor_critic import (
    _Clipped,
    approximate_kl,
    clip_fraction,
    explained_variance,
    gae,
    mean,
    normalised,
    policy_loss,
    successors,
    valid_rows,
    value_loss,
)

T, N = 9, 4


def close(found, expected, atol=1e-6, rtol=1e-6):
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def restricted(scores, allowed):
    """An action that is not allowed has a score of -inf."""
    return scores.masked_fill(~allowed, -math.inf)


def rollout(seed=0, t=T, n=N):
    """Rewards, values, last values, terminated, truncated, final values; ends of both kinds."""
    rng = np.random.default_rng(seed)
    ends = rng.random((t, n))
    return {
        "rewards": rng.normal(size=(t, n)),
        "values": rng.normal(size=(t, n)),
        "last_values": rng.normal(size=n),
        "terminated": ends < 0.2,
        "truncated": (ends > 0.15) & (ends < 0.4),  # some rows are both
        "final_values": rng.normal(size=(t, n)),
    }


def tensors(r):
    return {k: torch.tensor(v if v.dtype == bool else v.astype("float32")) for k, v in r.items()}


def following_by_hand(r, t, i):
    """V of what follows step t of environment i."""
    if r["terminated"][t, i]:
        return 0.0
    if r["truncated"][t, i]:
        return r["final_values"][t, i]
    return r["last_values"][i] if t == len(r["rewards"]) - 1 else r["values"][t + 1, i]


def gae_by_hand(r, gamma, lam):
    found = np.zeros(r["rewards"].shape)
    for i in range(found.shape[1]):
        for t in range(len(found)):
            weight = 1.0
            for s in range(t, len(found)):
                delta = r["rewards"][s, i] + gamma * following_by_hand(r, s, i) - r["values"][s, i]
                found[t, i] += weight * delta
                if r["terminated"][s, i] or r["truncated"][s, i]:
                    break
                weight *= gamma * lam
    return found


# ---------------------------------------------------------------- advantages


@pytest.mark.parametrize(("t", "expected"), [(1, 0.98), (2, 1.90169), (3, 2.76854)])
def test_p1_constant_reward_and_critic_have_the_published_advantages(t, expected):
    no = torch.zeros(t, 1, dtype=torch.bool)
    ones, twos = torch.ones(t, 1), torch.full((t, 1), 2.0)
    found, returns = gae(ones, twos, torch.tensor([2.0]), no, no, gamma=0.99, lam=0.95)
    close(found[0], [expected], atol=1e-5)
    close(returns, found.numpy() + 2)
    assert found.dtype == returns.dtype == torch.float32


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_p1_advantages_are_those_of_a_double_loop(gamma, lam, seed):
    r = rollout(seed)
    found, returns = gae(**tensors(r), gamma=gamma, lam=lam)
    expected = gae_by_hand(r, gamma, lam)
    close(found, expected, atol=2e-6)
    close(returns, expected + r["values"], atol=2e-6)


def test_p1_whatever_type_comes_in_float32_goes_out():
    r = {k: torch.tensor(v) for k, v in rollout().items()}  # float64
    plain, _ = gae(**tensors(rollout()), gamma=0.99, lam=0.95)
    found, returns = gae(**r, gamma=0.99, lam=0.95)
    assert found.dtype == returns.dtype == torch.float32
    close(found, plain.numpy())
    half = {k: v if v.dtype == torch.bool else v.bfloat16() for k, v in r.items()}
    assert gae(**half, gamma=0.99, lam=0.95)[0].dtype == torch.float32
    rewards = torch.ones(T, N, dtype=torch.int64)
    assert gae(**{**r, "rewards": rewards}, gamma=0.99, lam=0.95)[0].dtype == torch.float32


def test_p1_arguments_stay_as_they_are_and_nothing_has_a_gradient():
    r = tensors(rollout())
    r["values"].requires_grad_()
    before = {k: v.clone() for k, v in r.items()}
    found, returns = gae(**r, gamma=0.99, lam=0.95)
    assert not found.requires_grad and not returns.requires_grad
    assert all(torch.equal(r[k], before[k]) for k in r)


def test_p1_shapes_that_do_not_fit_are_refused():
    r = tensors(rollout())
    with pytest.raises(ShapeMismatch, match=r"expected \[T, n\], \[T, n\] and \[n\]"):
        gae(**{**r, "last_values": torch.zeros(N, 1)}, gamma=0.99, lam=0.95)


def test_p2_truncation_bootstraps_and_termination_does_not():
    one, two, five = torch.ones(1, 1), torch.full((1, 1), 2.0), torch.full((1, 1), 5.0)
    last = torch.tensor([100.0])  # the next episode's first value: never to be used
    for terminated, truncated, follows in [(1, 0, 0), (0, 1, 5), (1, 1, 0), (0, 0, 100)]:
        flags = torch.tensor([[bool(terminated)]]), torch.tensor([[bool(truncated)]])
        found, _ = gae(one, two, last, *flags, gamma=0.9, lam=0.95, final_values=five)
        assert found.item() == pytest.approx(1 + 0.9 * follows - 2)


@pytest.mark.parametrize(("flag", "limit"), [("truncated", 10.0), ("terminated", 1.0)])
def test_p2_a_time_limit_leaves_the_value_of_an_endless_task(flag, limit):
    """Reward 1 for ever, gamma 0.9, every episode cut after one step: V is 1 / (1 - gamma)."""
    value, ends = torch.zeros(1), torch.ones(8, 1, dtype=torch.bool)
    flags = {"terminated": ~ends, "truncated": ~ends} | {flag: ends}
    for _ in range(400):
        values = value.expand(8, 1)
        _, returns = gae(
            torch.ones(8, 1), values, value, **flags, gamma=0.9, lam=0.95, final_values=values
        )
        value = returns.mean(0)
    assert value.item() == pytest.approx(limit, rel=1e-4)


def test_p2_a_lambda_of_one_is_all_discounted_rewards_and_the_critic_behind_them():
    r, gamma = rollout(2), 0.9
    expected = np.zeros((T, N))
    for i in range(N):
        for t in range(T):
            for k, s in enumerate(range(t, T)):
                expected[t, i] += gamma**k * r["rewards"][s, i]
                ended = r["terminated"][s, i] or r["truncated"][s, i]
                if ended or s == T - 1:
                    expected[t, i] += gamma ** (k + 1) * following_by_hand(r, s, i)
                    break
    _, returns = gae(**tensors(r), gamma=gamma, lam=1.0)
    close(returns.numpy(), expected, atol=2e-6)


# ---------------------------------------------------------------- rows that are no steps


def next_step(r):
    """The same episodes with NEXT_STEP autoreset: after every end a row with the final values.

    A list of environments' (rewards, values, terminated, truncated, valid), as long as they get.
    """
    made = []
    for i in range(r["rewards"].shape[1]):
        rows = []
        for t in range(len(r["rewards"])):
            names = ("rewards", "values", "terminated", "truncated")
            rows.append((*(r[k][t, i] for k in names), True))
            if r["terminated"][t, i] or r["truncated"][t, i]:
                rows.append((0.0, r["final_values"][t, i], False, False, False))
        made.append(rows)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_p3_dummy_rows_change_neither_advantages_nor_statistics_nor_losses(seed):
    r = rollout(seed)
    expected, targets = gae(**tensors(r), gamma=0.99, lam=0.95)
    for i, rows in enumerate(next_step(r)):
        columns = [torch.tensor(np.array(c))[:, None] for c in zip(*rows, strict=True)]
        rewards, values, terminated, truncated, valid = columns
        last = torch.tensor([0.0 if not valid[-1] else r["last_values"][i]])
        if not valid[-1]:
            last += 77.0  # the next episode's first value, behind a dummy row: never to be used
        before = torch.tensor([False])
        assert torch.equal(valid_rows(before, terminated, truncated), valid)
        found, returns = gae(
            rewards, values, last, terminated, truncated, gamma=0.99, lam=0.95, valid=valid
        )
        close(found[valid], expected[:, i].numpy())
        close(returns[valid], targets[:, i].numpy())
        assert (found[~valid] == 0).all()
        close(normalised(found, valid)[valid], normalised(expected[:, i]).numpy(), atol=1e-5)


def test_p3_an_end_before_the_first_row_makes_it_a_dummy():
    no = torch.zeros(3, 2, dtype=torch.bool)
    ended = no.clone()
    ended[1, 0] = True
    found = valid_rows(torch.tensor([False, True]), no, ended)
    assert found.tolist() == [[True, False], [True, True], [False, True]]


def test_p3_gymnasiums_dummy_rows_are_found():
    gymnasium = pytest.importorskip("gymnasium")
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    assert str(envs.metadata["autoreset_mode"].name) == "NEXT_STEP"
    envs.reset(seed=0)
    steps = [envs.step(np.ones(3, dtype=int))[1:4] for _ in range(40)]
    rewards, terminated, truncated = (torch.tensor(np.array(c)) for c in zip(*steps, strict=True))
    valid = valid_rows(torch.zeros(3), terminated, truncated)
    assert torch.equal(valid, rewards == 1) and not valid.all()  # CartPole pays 1 for every step


def test_p3_masked_losses_are_those_of_the_valid_rows_alone():
    rng = torch.Generator().manual_seed(0)
    logp, old, advantages, values, returns = torch.randn(5, T, N, generator=rng)
    valid = torch.rand(T, N, generator=rng) > 0.3
    bad = [torch.where(valid, x, float("nan")) for x in (logp, old, advantages, values, returns)]
    logp, values = (x.requires_grad_() for x in (bad[0], bad[3]))
    kept = [x.detach()[valid].requires_grad_() for x in bad]

    def losses(logp, old, advantages, values, returns, valid=None):
        policy = policy_loss(logp, old, advantages, clip=0.2, valid=valid)
        critic = value_loss(values, returns, old_values=old, clip=0.1, valid=valid)
        return policy, critic

    found = losses(logp, *bad[1:3], values, bad[4], valid)
    expected = losses(*kept)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs.detach().numpy())
    sum(found).backward()
    sum(expected).backward()
    for ours, theirs in ((logp, kept[0]), (values, kept[3])):
        close(ours.grad[valid], theirs.grad.numpy())
        assert (ours.grad[~valid] == 0).all()
    close(approximate_kl(*bad[:2], valid=valid), approximate_kl(*kept[:2]).numpy())
    close(clip_fraction(*bad[:2], 0.2, valid), clip_fraction(*kept[:2], 0.2).numpy())
    assert explained_variance(*bad[3:], valid) == pytest.approx(explained_variance(*kept[3:]))


def test_p3_losses_of_micro_batches_add_up_to_the_whole_updates():
    rng = torch.Generator().manual_seed(1)
    values, returns = torch.randn(2, 10, generator=rng)
    valid = torch.rand(10, generator=rng) > 0.4
    whole = value_loss(values, returns, valid=valid)
    total = valid.sum()
    parts = [
        value_loss(values[part], returns[part], valid=valid[part], total=total)
        for part in (slice(0, 3), slice(3, 4), slice(4, 10))
    ]
    close(sum(parts), whole.numpy())


def test_p3_where_nothing_is_valid_losses_are_0():
    x, no = torch.randn(4, requires_grad=True), torch.zeros(4, dtype=torch.bool)
    loss = policy_loss(x, x, x, clip=0.2, valid=no)
    (loss + value_loss(x, x, valid=no) + mean(x, no)).backward()
    assert loss == 0 and (x.grad == 0).all()
    assert explained_variance(x, x, no) is None
    assert normalised(x, no).tolist() == [0.0] * 4


# ---------------------------------------------------------------- advantage normalisation


def test_p4_a_minibatch_has_mean_0_and_spread_1():
    x = np.random.default_rng(0).normal(3, 5, 50)
    expected = (x - x.mean()) / (x.std(ddof=1) + 1e-8)
    close(normalised(torch.tensor(x)), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 2.5, -1e8])
def test_p4_a_single_advantage_stays_as_it_is(value):
    assert normalised(torch.tensor([value])).tolist() == [value]
    valid = torch.tensor([False, True, False])
    found = normalised(torch.tensor([float("nan"), value, 3.0]), valid)
    assert found.tolist() == [0.0, value, 0.0]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6])
@pytest.mark.parametrize("n", [2, 7, 64])
def test_p4_equal_advantages_are_0_and_never_nan(value, n):
    assert normalised(torch.full((n,), value)).tolist() == [0.0] * n
    assert normalised(torch.zeros(0)).shape == (0,)


# ---------------------------------------------------------------- policy loss


def test_p5_on_the_first_minibatch_the_ratio_is_1():
    rng = torch.Generator().manual_seed(0)
    logp = torch.randn(12, generator=rng).requires_grad_()
    advantages = torch.randn(12, generator=rng)
    loss = policy_loss(logp, logp.detach().clone(), advantages, clip=0.2)
    assert clip_fraction(logp, logp, 0.2) == 0
    assert approximate_kl(logp, logp, "k1") == 0 and approximate_kl(logp, logp, "k3") == 0
    close(loss, -advantages.mean().numpy())
    loss.backward()
    close(logp.grad, -advantages.numpy() / 12)  # REINFORCE's


@pytest.mark.parametrize(
    ("advantage", "ratio", "flows"),
    [(1, 1.3, False), (1, 0.7, True), (-1, 0.7, False), (-1, 1.3, True)]
    + [(1, 1.1, True), (1, 0.9, True), (-1, 0.9, True), (-1, 1.1, True)],
)
def test_p6_the_clip_table(advantage, ratio, flows):
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = policy_loss(logp, torch.zeros(1), torch.tensor([float(advantage)]), clip=0.2)
    loss.backward()
    close(logp.grad, [-advantage * ratio if flows else 0.0])
    bounded = min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    close(loss, -bounded)
    assert clip_fraction(logp, torch.zeros(1), 0.2) == (abs(ratio - 1) > 0.2)


def test_p6_the_policy_loss_is_that_of_a_loop():
    rng = np.random.default_rng(3)
    logp, old, a = rng.normal(size=(3, 30))
    each = []
    for i in range(30):
        w = math.exp(logp[i] - old[i])
        each.append(-min(w * a[i], min(max(w, 0.8), 1.28) * a[i]))
    loss = policy_loss(*map(torch.tensor, (logp, old, a)), clip=0.2, high=0.28)
    close(loss, np.mean(each), atol=1e-5)
    assert loss.dtype == torch.float32


def test_p6_a_ratio_that_is_out_of_bounds_stays_finite():
    logp = torch.tensor([500.0, -500.0], requires_grad=True)
    loss = policy_loss(logp, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip=0.2)
    loss.backward()
    assert loss.isfinite() and logp.grad.isfinite().all()


def test_p6_the_losss_slope_is_that_of_differences():
    rng = torch.Generator().manual_seed(5)
    logp, old, a = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    logp.requires_grad_()
    bounds = (0.8, 1.28)
    assert torch.autograd.gradcheck(lambda x: _Clipped.apply(x, old, a, *bounds), logp)
    slow = -torch.minimum((logp - old).exp() * a, (logp - old).exp().clamp(*bounds) * a)
    assert torch.equal(_Clipped.apply(logp, old, a, *bounds), slow)
    weights = torch.randn(40, generator=rng, dtype=torch.float64)
    fast = torch.autograd.grad(_Clipped.apply(logp, old, a, *bounds) @ weights, logp)
    close(fast[0], torch.autograd.grad(slow @ weights, logp)[0].numpy(), rtol=1e-14)
    none = torch.zeros_like(a, requires_grad=True)  # at a ratio of 1 nothing is clipped
    policy_loss(none, none.detach(), a, clip=0.2).backward()
    close(none.grad, -a.float().numpy() / 40)


# ---------------------------------------------------------------- value loss, diagnostics


def test_the_value_loss_has_its_half_inside():
    found = value_loss(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert found.item() == pytest.approx((4 + 1) / 2 / 2)


def test_the_clipped_value_loss_is_the_larger_of_both():
    rng = np.random.default_rng(4)
    values, returns, old = rng.normal(size=(3, 40))
    each = []
    for v, r, o in zip(values, returns, old, strict=True):
        near = o + min(max(v - o, -0.2), 0.2)
        each.append(max((v - r) ** 2, (near - r) ** 2) / 2)
    v = torch.tensor(values, requires_grad=True)
    others = torch.tensor(returns), torch.tensor(old)
    found = value_loss(v, others[0], old_values=others[1], clip=0.2)
    close(found, np.mean(each), atol=1e-5)
    wide = value_loss(v, others[0], old_values=others[1], clip=1e6)
    close(wide, value_loss(v, others[0]).detach().numpy())


def test_k1_and_k3_have_their_values():
    logp, old = torch.tensor([0.5, -0.5]), torch.zeros(2)
    assert approximate_kl(logp, old, "k1").item() == pytest.approx(0.0)
    close(approximate_kl(logp[:1], old[:1], "k1"), -0.5)
    close(approximate_kl(logp[:1], old[:1], "k3"), 0.14872, atol=1e-5)
    close(approximate_kl(logp[1:], old[1:], "k3"), 0.10653, atol=1e-5)


def test_explained_variance_is_1_for_a_perfect_critic_and_0_for_a_constant_one():
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns + 7, returns) == pytest.approx(1)  # an offset is no variance
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(3)) is None
    assert explained_variance(torch.zeros(0), torch.zeros(0)) is None


# ---------------------------------------------------------------- policies as distributions


def test_p7_a_step_on_the_loss_with_an_entropy_bonus_makes_the_policy_flatter():
    scores = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    before = act.entropy(scores)
    (-0.5 * mean(act.entropy(scores))).backward()
    after = act.entropy(scores.detach() - scores.grad)
    assert after > before and scores.grad[0, 0] > 0  # the likeliest action's score goes down
    log_std = torch.zeros(2, requires_grad=True)
    (-0.5 * mean(act.entropy(torch.zeros(3, 2), log_std))).backward()
    assert (log_std.grad < 0).all()  # the spread grows


def test_p7_entropies_have_their_closed_forms():
    close(act.entropy(torch.zeros(2, 5)), [math.log(5)] * 2)
    p = np.array([0.5, 0.3, 0.2])
    close(act.entropy(torch.tensor(np.log(p))[None]), [-(p * np.log(p)).sum()])
    std = np.array([0.5, 2.0])
    expected = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in std)
    close(act.entropy(torch.zeros(3, 2), torch.tensor(np.log(std))), [expected] * 3)


def test_log_probabilities_are_those_of_torchs_distributions():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 3, generator=rng)
    choice = torch.randint(3, (7,), generator=rng)
    categorical = torch.distributions.Categorical(logits=scores)
    close(act.logp(scores, choice), categorical.log_prob(choice).numpy())
    close(act.entropy(scores), categorical.entropy().numpy())
    log_std, numbers = torch.randn(3, generator=rng), torch.randn(7, 3, generator=rng)
    normal = torch.distributions.Normal(scores, log_std.exp())
    close(act.logp(scores, numbers, log_std), normal.log_prob(numbers).sum(-1).numpy(), 1e-5)
    close(act.entropy(scores, log_std), normal.entropy().sum(-1).numpy())
    assert act.logp(scores.bfloat16(), choice).dtype == torch.float32
    assert act.logp(scores.bfloat16(), numbers, log_std).dtype == torch.float32


@pytest.mark.parametrize("continuous", [False, True])
def test_log_probabilities_and_entropies_may_be_had_in_one_go(continuous):
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(7, 3, generator=rng)
    log_std = torch.randn(3, generator=rng) if continuous else None
    actions = torch.randn(7, 3, generator=rng) if continuous else torch.arange(7) % 2
    scores = scores if continuous else restricted(scores, torch.tensor([True, True, False]))
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    both = act.logp_and_entropy(a, actions, log_std)
    apart = act.logp(b, actions, log_std), act.entropy(b, log_std)
    for ours, theirs in zip(both, apart, strict=True):
        close(ours, theirs.detach().numpy())
    (both[0] * 2 + both[1]).sum().backward()
    (apart[0] * 2 + apart[1]).sum().backward()
    close(a.grad, b.grad.numpy())
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_slopes_of_log_probability_and_entropy_together_are_those_of_differences(shape):
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(*shape, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(4, shape, generator=rng)
    assert torch.autograd.gradcheck(lambda x: act.logp_and_entropy(x, actions), scores)
    kept = restricted(scores, torch.tensor([True, True, False, True]))
    new, entropy = act.logp_and_entropy(kept, torch.zeros_like(actions))
    (new.sum() + entropy.sum()).backward()
    assert scores.grad.isfinite().all() and (scores.grad[..., 2] == 0).all()


def test_distances_are_those_of_torchs_distributions():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=rng)
    kl = torch.distributions.kl_divergence
    categorical = [torch.distributions.Categorical(logits=x) for x in (a, b)]
    close(act.distance(a, b), kl(*categorical).numpy())
    s, t = torch.randn(2, 3, generator=rng)
    normal = torch.distributions.Normal(a, s.exp()), torch.distributions.Normal(b, t.exp())
    close(act.distance(a, b, s, t), kl(*normal).sum(-1).numpy(), 1e-4)
    close(act.distance(a, a, s, s), np.zeros(5))


def test_an_action_that_an_environment_has_not_is_nowhere():
    allowed = torch.tensor([True, False, True])
    scores = torch.randn(6, 3, requires_grad=True)
    kept = restricted(scores, allowed)
    two = scores[:, [0, 2]]
    close(act.entropy(kept), act.entropy(two).detach().numpy())
    choice = torch.tensor([0, 1, 0, 1, 1, 0])
    close(act.logp(kept, 2 * choice), act.logp(two, choice).detach().numpy())
    close(act.distance(kept, kept.detach() / 2), act.distance(two, two / 2).detach().numpy())
    (act.entropy(kept) + act.logp(kept, 2 * choice)).sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[:, 1] == 0).all()
    gumbel = act.noise(Actions(3), (1000, 6), torch.Generator().manual_seed(0), kept.device)
    assert gumbel.isfinite().all() and not (act.draw(kept, gumbel) == 1).any()
    least = -torch.tensor(-math.log(act.TINY)).log()  # the smallest number that noise can be
    most = torch.tensor([[0.0, 1e4, 0.0]])
    assert act.draw(kept[:1], most + least).item() != 1


def test_draws_have_the_policys_frequencies():
    p = torch.tensor([0.1, 0.6, 0.3])
    n, rng = 100_000, torch.Generator().manual_seed(0)
    noise = act.noise(Actions(3), (n,), rng, p.device)
    assert noise.shape == (n, 3) and noise.dtype == torch.float32
    counts = act.draw(p.log() + 7, noise).bincount(minlength=3)
    assert float(((counts - n * p).square() / (n * p)).sum()) < 9.21  # chi2 of 2, 1 in 100
    uniform = (-(-noise).exp()).exp().sort(0).values  # by Gumbel's distribution function
    far = (uniform - ((torch.arange(n) + 0.5) / n)[:, None]).abs()
    assert float(far.max()) < 1.63 / n**0.5  # Kolmogorov and Smirnov, 1 in 100


def test_a_draw_is_the_largest_of_logits_and_noise_and_a_gaussian_moved_and_spread():
    noise = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    assert act.draw(torch.tensor([0.0, 2.0, 0.0]), noise).tolist() == [1, 0]
    made = act.noise(Actions(2, True), (5,), torch.Generator().manual_seed(0), "cpu")
    assert torch.equal(made, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    close(
        act.draw(torch.ones(5, 2), made, torch.tensor([0.0, math.log(2)])),
        [1, 1] + made.numpy() * [1, 2],
    )
    assert act.greedy(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]
    assert act.greedy(made, torch.zeros(2)) is made


@pytest.mark.parametrize("continuous", [False, True])
def test_p10_an_environments_draw_does_not_depend_on_the_others(continuous):
    rng = torch.Generator().manual_seed(0)
    scores, log_std = torch.randn(8, 3, generator=rng), torch.zeros(3) if continuous else None
    noise = act.noise(Actions(3, continuous), (8,), rng, scores.device)
    whole, order = act.draw(scores, noise, log_std), torch.randperm(8, generator=rng)
    assert torch.equal(act.draw(scores[order], noise[order], log_std), whole[order])
    alone = [act.draw(scores[i : i + 1], noise[i : i + 1], log_std) for i in range(8)]
    assert torch.equal(torch.cat(alone), whole)


def test_cloning_is_cross_entropy_or_the_likelihood_of_a_gaussian():
    rng = np.random.default_rng(0)
    scores, choice = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    found = act.cloning_loss(torch.tensor(scores), torch.tensor(choice))
    close(found, -np.log(p[range(6), choice]).mean())
    numbers, std = rng.normal(size=(6, 3)), np.array([0.5, 1.0, 2.0])
    z = ((numbers - scores) / std) ** 2 / 2 + np.log(std) + 0.5 * math.log(2 * math.pi)
    arguments = map(torch.tensor, (scores, numbers, np.log(std)))
    close(act.cloning_loss(*arguments), z.sum(1).mean())
    valid = torch.tensor([True] * 4 + [False] * 2)
    masked = act.cloning_loss(torch.tensor(scores), torch.tensor(choice), valid=valid)
    close(masked, -np.log(p[range(4), choice[:4]]).mean())


# ---------------------------------------------------------------- Q


def test_p11_targets_stop_at_termination_alone():
    next_q = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    rewards, terminated = torch.tensor([0.5, 0.5]), torch.tensor([False, True])
    close(dqn.q_target(rewards, next_q, terminated, gamma=0.9), [0.5 + 0.9 * 3, 0.5])
    names = inspect.signature(dqn.q_target).parameters
    assert "terminated" in names and not {"done", "dones", "truncated"} & set(names)


def test_p11_double_dqn_takes_the_online_networks_choice_at_the_targets_value():
    next_q, online = torch.tensor([[1.0, 3.0]]), torch.tensor([[9.0, 8.0]])
    no = torch.tensor([False])
    found = dqn.q_target(torch.zeros(1), next_q, no, gamma=1.0, next_online=online)
    assert found.tolist() == [1.0]
    missing = torch.tensor([[1.0, -torch.inf]])
    assert dqn.q_target(torch.zeros(1), missing, no, gamma=1.0).tolist() == [1.0]
    gone = torch.full((1, 2), torch.inf)
    assert dqn.q_target(torch.ones(1), gone, ~no, gamma=1.0).tolist() == [1.0]


def test_p11_the_loss_is_hubers_and_its_target_a_constant():
    q = torch.tensor([[0.0, 9.0], [0.0, 9.0], [0.0, 9.0]], requires_grad=True)
    target = torch.tensor([0.5, 6.0, 9.0], requires_grad=True)
    loss = dqn.q_loss(q, torch.tensor([0, 1, 1]), target)
    close(loss, (0.5 * 0.5**2 + (3 - 0.5) + 0) / 3)
    loss.backward()
    close(q.grad, np.array([[-0.5, 0], [0, 1], [0, 0]]) / 3)
    assert target.grad is None
    near = dqn.q_loss(q.detach(), torch.tensor([0, 1, 1]), target, delta=100.0)
    close(near, (0.25 + 9) / 2 / 3)
    nan = torch.tensor([0.5, float("nan"), 9.0])
    valid = torch.tensor([True, False, True])
    close(dqn.q_loss(q.detach(), torch.tensor([0, 1, 1]), nan, valid=valid), 0.125 / 2)


def test_p11_exploration_starts_anew_with_every_experience():
    """`step` counts from the experience's start: a second experience is explored as the first."""
    starts, curves = (0, 777), []
    for start in starts:
        clock = range(start, start + 12)
        curves.append([dqn.epsilon(step - start, steps=10) for step in clock])
    assert curves[0] == curves[1] and curves[0][0] == 1.0 and curves[0][-1] == pytest.approx(0.05)
    found = [dqn.epsilon(step, steps=10, first=1.0, last=0.1) for step in (0, 5, 10, 10_000)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert dqn.epsilon(0, steps=0, last=0.05) == 0.05


def test_p11_the_target_network_stays_between_synchronisations():
    online, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    dqn.synchronise(target, online)
    kept = target.weight.clone()
    assert torch.equal(kept, online.weight) and target.weight is not online.weight
    synchronised = []
    for update in range(13):
        if dqn.sync_is_due(update, 4):
            dqn.synchronise(target, online)
            synchronised.append(update)
        assert torch.equal(target.weight, kept) or update in synchronised
        kept = target.weight.clone()
        with torch.no_grad():
            online.weight += 1
    assert synchronised == [4, 8, 12]
    before = target.weight.clone()
    dqn.synchronise(target, online, tau=0.25)
    close(target.weight, (0.75 * before + 0.25 * online.weight).detach().numpy())


def test_exploring_takes_any_action_that_exists_and_else_the_best():
    q = torch.tensor([0.0, -torch.inf, 5.0, 1.0]).expand(300, 4)
    noise = torch.stack([torch.zeros(300), (torch.arange(300) + 0.5) / 300], 1)
    assert dqn.explore(q, noise, 0.5).bincount(minlength=4).tolist() == [100, 0, 100, 100]
    assert (dqn.explore(q, noise, 0.0) == 2).all()


# ---------------------------------------------------------------- normalisation


def test_running_statistics_are_those_of_all_rows_at_once():
    rng = np.random.default_rng(0)
    parts = [rng.normal(100, 3, (n, 2, 3)) for n in (1, 1, 50, 7)]
    running = Normaliser((3,), prior=0)
    for part in parts:
        running.update(part)
    rows = np.concatenate(parts).reshape(-1, 3)
    close(running.mean, rows.mean(0), rtol=1e-12)
    close(running.variance, rows.var(0), rtol=1e-10)
    assert running.count == len(rows)
    expected = np.clip((rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8), -10, 10)
    found = running(rows)
    assert found.dtype == np.float32 and running.count == len(rows)
    close(found, expected, atol=1e-5)


def test_p3_dummy_rows_are_in_no_running_statistic():
    rows = np.arange(12.0).reshape(4, 3)
    valid = np.array([[True, False, True]] * 4)
    running = Normaliser((), prior=0)
    running.update(rows, valid)
    close(running.mean, rows[valid].mean())
    running.update(rows, np.zeros((4, 3), dtype=bool))
    assert running.count == 8


def test_statistics_are_saved_and_what_a_switch_does_is_said():
    running = Normaliser((2,))
    assert running(np.zeros(2)).tolist() == [0.0, 0.0]
    running.update(np.ones((3, 2)) * [1, 2])
    other = Normaliser((2,))
    other.load(running.state())
    running.state()["mean"][:] = 9
    assert np.array_equal(other(np.ones(2)), running(np.ones(2)))
    running.switch("keep")
    assert running.count == other.count
    running.switch("reset")
    assert running.count == Normaliser((2,)).count and (running.mean == 0).all()
    with pytest.raises(UnknownName, match="did you mean 'reset'"):
        running.switch("rest")
    with pytest.raises(ShapeMismatch, match=r"saved statistics have shape \[2\], these \[\]"):
        Normaliser().load(other.state())
    with pytest.raises(ShapeMismatch, match="rows of shape"):
        running.update(np.ones((4, 3)))


def test_far_rows_are_clipped_and_a_constant_column_stays_finite():
    running = Normaliser((2,), clip=5, prior=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert running(np.ones((1, 2))).tolist() == [[1.0, 1.0]]
        running.update(np.array([[0.0, 3.0], [1.0, 3.0]]))
        assert running(np.array([[100.0, 3.0]])).tolist() == [[5.0, 0.0]]


def test_rewards_are_divided_by_the_spread_of_running_returns():
    rng = np.random.default_rng(0)
    rewards, ended = rng.normal(2, 1, (30, 3)), rng.random((30, 3)) < 0.2
    scale, running, seen = RewardScale(3, gamma=0.9, prior=0), np.zeros(3), []
    for r, e in zip(rewards, ended, strict=True):
        running = running * 0.9 + r
        seen += list(running)
        close(scale(r, e), np.clip(r / np.sqrt(np.var(seen) + 1e-8), -10, 10), atol=1e-5)
        running[e] = 0
    again = RewardScale(3, gamma=0.9)
    again.load(scale.state())
    no = np.zeros(3, dtype=bool)
    assert np.array_equal(again(np.ones(3), no), scale(np.ones(3), no))
    before = scale.statistics.count
    assert scale(np.ones(3), no, valid=no).tolist() == [0.0] * 3
    assert scale.statistics.count == before
    scale.switch("keep")
    assert scale.statistics.count == before and (scale.running == 0).all()
    scale.switch("reset")
    assert scale.statistics.count == Normaliser().count or scale.statistics.prior == 0


# ---------------------------------------------------------------- Stable-Baselines3


def sb3_rollout(name, limit):
    """SB3's PPO with one filled rollout buffer, and what its environments did, [T, n] each."""
    reason = "agreement with Stable-Baselines3 needs the extra `oracle`"
    sb3 = pytest.importorskip("stable_baselines3", reason=reason)
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    seen = []

    class Watched(DummyVecEnv):
        def step_wait(self):
            observations, rewards, *rest = super().step_wait()
            seen.append((rewards.copy(), *rest))  # SB3 adds the bootstrap to these in place
            return observations, rewards, *rest

    envs = Watched([lambda: gymnasium.make(name, max_episode_steps=limit)] * 3)
    model = sb3.PPO("MlpPolicy", envs, n_steps=32, batch_size=96, n_epochs=1, seed=0, device="cpu")
    _, callback = model._setup_learn(96, None, True, "run", False)
    seen.clear()
    model.collect_rollouts(envs, callback, model.rollout_buffer, 32)
    return model, seen


def ours_of(policy, continuous):
    """Our model with the weights of SB3's policy."""
    from cl.models import build

    n = policy.action_net.out_features
    shape = (policy.mlp_extractor.policy_net[0].in_features,)
    ours = build("actor_critic", shape, {}, actions=Actions(n, continuous))
    mlp = policy.mlp_extractor
    pairs = [(ours.policy, policy.action_net), (ours.value, policy.value_net)]
    for k, layer in enumerate(ours.backbone.layers):
        pairs += [(layer["actor"], mlp.policy_net[2 * k]), (layer["critic"], mlp.value_net[2 * k])]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())
    if continuous:
        ours.log_std.data.copy_(policy.log_std.data)
        pairs.append((ours, policy))
    return ours, pairs


SB3 = pytest.mark.parametrize(("name", "limit"), [("CartPole-v1", 20), ("Pendulum-v1", 13)])


@SB3
def test_advantages_and_returns_agree_with_sb3s(name, limit):
    model, seen = sb3_rollout(name, limit)
    buffer = model.rollout_buffer
    flags = {k: torch.zeros(32, 3, dtype=torch.bool) for k in ("terminated", "truncated")}
    final = torch.zeros(32, 3)
    for t, (_, done, infos) in enumerate(seen):
        for i in np.flatnonzero(done):
            cut = infos[i]["TimeLimit.truncated"]
            flags["truncated" if cut else "terminated"][t, i] = True
            last = torch.tensor(infos[i]["terminal_observation"])[None]
            final[t, i] = model.policy.predict_values(last).item()
    assert flags["truncated"].any() and (flags["terminated"].any() or name == "Pendulum-v1")
    now = torch.tensor(model._last_obs)
    found, returns = gae(
        torch.tensor(np.array([reward for reward, *_ in seen])),
        torch.tensor(buffer.values),
        model.policy.predict_values(now)[:, 0].detach(),
        **flags,
        gamma=model.gamma,
        lam=model.gae_lambda,
        final_values=final,
    )
    close(found, buffer.advantages, atol=1e-6, rtol=2e-6)
    close(returns, buffer.returns, atol=1e-6, rtol=2e-6)


@SB3
def test_ppos_loss_and_gradients_agree_with_sb3s(name, limit):
    model, _ = sb3_rollout(name, limit)
    policy, buffer = model.policy, model.rollout_buffer
    model.max_grad_norm, model.ent_coef, continuous = 1e9, 0.01, name == "Pendulum-v1"
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that ratios are not 1
        for p in policy.parameters():
            p += 0.2 * torch.randn(p.shape, generator=rng)
    ours, pairs = ours_of(policy, continuous)
    rows = next(iter(buffer.get()))
    scores, values = ours.outputs(rows.observations)
    actions = rows.actions if continuous else rows.actions.long().flatten()
    logp = act.logp(scores, actions, ours.log_std)
    loss = policy_loss(logp, rows.old_log_prob, normalised(rows.advantages), clip=0.2)
    entropy = mean(act.entropy(scores, ours.log_std))
    critic = value_loss(values, rows.returns)
    (loss + 1.0 * critic - 0.01 * entropy).backward()
    model.policy.optimizer.param_groups[0]["lr"] = 0.0
    logged = {}
    model._logger = type("Log", (), {"record": lambda _, k, v, **more: logged.update({k: v})})()
    model.train()
    close(loss, logged["train/policy_gradient_loss"])
    close(2 * critic, logged["train/value_loss"])
    close(-entropy, logged["train/entropy_loss"])
    close(approximate_kl(logp, rows.old_log_prob), logged["train/approx_kl"])
    assert (
        0
        < clip_fraction(logp, rows.old_log_prob, 0.2)
        == pytest.approx(logged["train/clip_fraction"])
    )
    for mine, theirs in pairs:
        for key, p in mine.named_parameters(recurse=False):
            close(p.grad, dict(theirs.named_parameters())[key].grad.numpy(), atol=1e-6, rtol=1e-5)


def test_running_statistics_agree_with_sb3s():
    sb3 = pytest.importorskip("stable_baselines3.common.running_mean_std")
    theirs, ours = sb3.RunningMeanStd(shape=(3,)), Normaliser((3,))
    rng = np.random.default_rng(0)
    for n in (1, 4, 100):
        batch = rng.normal(7, 2, (n, 3))
        theirs.update(batch), ours.update(batch)
    close(ours.mean, theirs.mean, rtol=1e-12)
    close(ours.variance, theirs.var, rtol=1e-12)
    assert ours.count == theirs.count


def test_a_first_step_needs_no_values_of_what_never_follows():
    r = tensors(rollout())
    found = successors(*(r[k] for k in list(r)[1:]))
    nan = torch.where(r["truncated"] & ~r["terminated"], r["final_values"], float("nan"))
    assert torch.equal(successors(*(r[k] for k in list(r)[1:5]), nan), found)
