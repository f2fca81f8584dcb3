"""PPO and DQN in the loop: whole runs on environments whose answers are known.

Tests are named after the list of pins, `test_p2_...`; those of mathematics alone are in
test_rl_math.py, those of single environments in test_environments.py.
"""

import copy

import numpy as np
import pytest
import torch
from conftest import Watcher, assert_same_weights, weights
from test_resume import stopped_after
from test_rl_math import close, ours_of, sb3_rollout

import cl
from cl.data import Table
from cl.env_stream import EnvTask, env_stream
from cl.environments import CartPole, Environment, Joined, Pendulum, Simulated, Step
from cl.environments._base import uniform
from cl.environments.gymnasium_adapter import Gymnasium
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build
from cl.objectives import _actions as act
from cl.objectives import _q_learning as q_learning
from cl.objectives import ppo as ppo_module
from cl.objectives._acting import Players, copies_of
from cl.objectives._actor_critic import approximate_kl, clip_fraction
from cl.objectives.dqn import DQN
from cl.objectives.ppo import PPO
from cl.optim import clip_gradients
from cl.runner import resume
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.strategy import Strategy

CPU = torch.device("cpu")


class Identity(Simulated):
    """Sees which of two actions is rewarded, another one in every step; 100 steps."""

    id, n_actions, observation_size = "Identity", 2, 2
    width = draws = 1

    def __init__(self, n):
        super().__init__(n, 100)

    def _begin(self, which, u):
        return np.floor(2 * u.T)

    def _advance(self, x, actions):
        rewards = (actions == x[0]).astype(np.float32)
        following = np.floor(2 * uniform(self.streams, np.arange(self.n), 1)).T
        return following, rewards, np.zeros(self.n, bool)

    def _seen(self, x):
        return np.stack([x[0] == 0, x[0] == 1], 1).astype(np.float32)


class Counting(Simulated):
    """Sees the episode's step, in hundredths; reward 1; ends by the clock or by terminating."""

    id, n_actions, observation_size = "Counting", 2, 1
    width = draws = 1

    def __init__(self, n, *, limit=None, last=None, blind=False):
        super().__init__(n, limit)
        self.last, self.blind = last, blind

    def _begin(self, which, u):
        return np.zeros_like(u.T)

    def _advance(self, x, actions):
        x = x + 1
        ended = np.zeros(self.n, bool) if self.last is None else x[0] >= self.last
        return x, np.ones(self.n, np.float32), ended

    def _seen(self, x):
        return (np.zeros_like(x.T) if self.blind else x.T / 100).astype(np.float32)


def seeing(hook, look):
    """A strategy of a class of its own, as hooks are looked up in classes."""
    seen = []
    kind = type("Looks", (Strategy,), {hook: lambda self, loop: seen.append(look(loop))})
    return kind(), seen


def both_ends(n):
    """Episodes of 5 steps that the clock ends; in the last environment, of 4 that terminate."""
    last = [Counting(1, last=4)]
    return Joined([Counting(n - 1, limit=5), *last] if n > 1 else last)


def make_rl_loop(*builders, objective=None, strategies=(), steps=512, seed=100, **more):
    """A loop over a task for each builder of environments. more: model_settings, evaluation,
    observer, hidden sizes, and settings of training."""
    seed_globals(seed)
    objective = objective or PPO(n_envs=4, n_steps=32)
    tasks = [EnvTask(f"t{k}", built, 0.0, 100.0) for k, built in enumerate(builders)]
    stream = env_stream("toy", tasks, steps=steps, n_test=4, n_val=0, seed=0)
    evaluation, observer = more.pop("evaluation", {}), more.pop("observer", None)
    kind = "q_network" if isinstance(objective, DQN) else "actor_critic"
    settings = {"hidden": [16]} | more.pop("model", {})
    train = {"optimizer": "adam", "lr": 1e-3, "batch_size": 32, "epochs": 1, "fused": True}
    return Loop(
        stream=stream,
        strategies=list(strategies),
        model=build(kind, stream.input_shape, settings, actions=stream.actions),
        objective=objective,
        train=Train(**train | {"reset_optimizer": True} | more),
        evaluation=Eval(**evaluation),
        seed=seed,
        device=CPU,
        observer=observer,
    )


def players_of(build_env, n, seed=100):
    """Players of the first experience of a stream of one task."""
    loop = make_rl_loop(build_env, seed=seed)
    loop.experience, loop.env_steps = loop.stream.experiences[0], 0
    return loop, Players(loop, loop.experience.train, n)


# ---------------------------------------------------------------- ends of episodes


@pytest.mark.parametrize(("limit", "last", "value"), [(8, None, 5.0), (None, 2, 1.4)])
def test_p2_a_time_limit_leaves_the_value_of_an_endless_task(limit, last, value):
    loop = make_rl_loop(
        lambda n: Counting(n, limit=limit, last=last, blind=True),
        objective=PPO(n_envs=8, n_steps=32, passes=8, gamma=0.8, lam=0.8),
        steps=2048,
        lr=1e-2,
        batch_size=128,
    )
    loop.run()
    assert loop.model.values(torch.zeros(1, 1)).item() == pytest.approx(value, abs=0.15)


def test_p2_action_values_do_not_end_with_the_clock_either():
    loop = make_rl_loop(
        lambda n: Counting(n, limit=8, blind=True),
        objective=DQN(gamma=0.8, starts=64, target_every=20, every=8, updates=3),
        steps=1600,
        lr=1e-2,
    )
    loop.run()
    assert loop.model(torch.zeros(1, 1)).detach().amax().item() == pytest.approx(5, abs=0.2)


def advantages_by_hand(steps, model, gamma, lam):
    """GAE in numpy, environment by environment, backwards."""
    T, n = steps.rewards.shape
    finals = {tuple(at): row for at, row in zip(steps.at.tolist(), steps.finals, strict=True)}
    with torch.no_grad():
        values = np.array(
            [[model.values(x[None]).item() for x in row] for row in steps.observations]
        )
        last = [model.values(x[None]).item() for x in steps.last]
        final = {at: model.values(x[None]).item() for at, x in finals.items()}
    found = np.zeros((T, n))
    for i in range(n):
        later, following = 0.0, last[i]
        for t in reversed(range(T)):
            if steps.terminated[t, i]:
                later, following = 0.0, 0.0
            elif steps.truncated[t, i]:
                later, following = 0.0, final[t, i]
            delta = float(steps.rewards[t, i]) + gamma * following - values[t, i]
            found[t, i] = later = delta + gamma * lam * later
            following = values[t, i]
    return found, found + values


def test_p2_advantages_of_a_rollout_with_both_ends_are_those_of_a_loop_over_its_steps():
    looks, seen = seeing("after_advantage", lambda loop: (loop.rollouts, copy.deepcopy(loop.model)))
    loop = make_rl_loop(both_ends, strategies=[looks], steps=384)
    loop.run()
    assert len(seen) == 3
    for steps, model in seen:
        assert steps.truncated.any() and steps.terminated.any()
        assert len(steps.finals) == steps.truncated.sum()
        close(steps.finals[:, 0], np.full(len(steps.finals), 0.05))
        found, returns = advantages_by_hand(steps, model, 0.99, 0.95)
        close(steps.advantages, found, atol=1e-5, rtol=1e-5)
        close(steps.returns, returns, atol=1e-5, rtol=1e-5)


def test_p3_every_row_of_gymnasiums_vector_environments_is_a_step():
    loop, players = players_of(lambda n: Gymnasium("CartPole-v1", n, max_episode_steps=11), 3)
    draws = act.noise(loop.model.actions, (64, 3), torch.Generator().manual_seed(0), CPU)
    steps = players.steps(64, lambda x, t: act.draw(0 * x[:, :2], draws[t]))
    assert (steps.rewards == 1).all()  # a dummy row's is 0
    ended = steps.terminated | steps.truncated
    assert steps.truncated.any() and steps.terminated.any()
    following = torch.cat([steps.observations[1:], steps.last[None]])
    ours = CartPole(1, limit=None)
    ours.reset(np.random.default_rng(0))
    state = ours.state()
    finals = iter(steps.finals)
    for t in range(64):
        for i in range(3):
            ours.load(state | {"x": steps.observations[t, i, None].double().numpy()})
            led = ours.step(steps.actions[t, i, None].numpy())
            assert bool(led.terminated[0]) == bool(steps.terminated[t, i])
            if steps.truncated[t, i]:
                close(next(finals), led.final_observations[0], atol=1e-5)
            if ended[t, i]:
                assert following[t, i].abs().max() <= 0.05  # a new episode's first
            else:
                close(following[t, i], led.observations[0], atol=1e-5)


# ---------------------------------------------------------------- updates


def test_p5_on_the_first_minibatch_of_a_rollout_the_ratio_is_1():
    def look(loop):
        steps, at = loop.rollouts, loop.mb_index
        new = act.logp(loop.mb_output.detach(), loop.mb_y, loop.model.log_std)
        old = steps.part("logp", at)
        return approximate_kl(new, old).item(), clip_fraction(new, old, 0.2).item()

    looks, seen = seeing("after_forward", look)
    loop = make_rl_loop(Identity, strategies=[looks], lr=1e-2)
    loop.run()
    each = 4 * 4  # passes of minibatches
    assert len(seen) == each * 4
    for first in range(0, len(seen), each):
        assert seen[first] == (pytest.approx(0, abs=1e-7), 0)
        assert all(moved > 1e-7 for moved, _ in seen[first + 1 : first + each])


def test_p5_the_loss_of_a_continuous_policy_begins_at_a_ratio_of_1_too():
    def look(loop):
        new = act.logp(loop.mb_output.detach(), loop.mb_y, loop.model.log_std)
        return (new - loop.rollouts.part("logp", loop.mb_index)).abs().max().item()

    looks, seen = seeing("after_forward", look)
    make_rl_loop(Pendulum, strategies=[looks], steps=128).run()
    assert seen[0] < 1e-5 < seen[-1]


@pytest.mark.parametrize("objective", ["ppo", "dqn"])
def test_p8_the_identity_environment_is_solved(objective):
    made = {
        "ppo": PPO(n_envs=8, n_steps=16, passes=8, lam=0.5, gamma=0.5),
        "dqn": DQN(starts=64, gamma=0.0, target_every=20, explore=0.5, every=8, updates=8),
    }
    watcher = Watcher()
    loop = make_rl_loop(
        Identity, objective=made[objective], steps=1200, lr=5e-3, batch_size=32, observer=watcher
    )
    loop.run()
    raw = watcher.rows[-1].counts["return"][0]
    assert raw >= 90 > watcher.rows[0].counts["return"][0]
    assert watcher.rows[-1].test[0] == pytest.approx(raw / 100)


@pytest.mark.parametrize("objective", [PPO, DQN])
def test_p9_the_same_seed_gives_the_same_curve_and_another_one_another(objective):
    def curve(seed):
        watcher, settings = Watcher(), {"starts": 32} if objective is DQN else {"n_steps": 16}
        loop = make_rl_loop(
            CartPole,
            objective=objective(n_envs=4, **settings),
            observer=watcher,
            evaluation={"every": 8},
            seed=seed,
            steps=256,
        )
        loop.run()
        return [row.counts["return"] for row in watcher.rows], weights(loop.model)

    (first, model), (again, same), (other, _) = curve(100), curve(100), curve(101)
    assert first == again and len(first) > 3
    assert_same_weights(model, same)
    assert first != other


def test_p10_an_environments_steps_do_not_depend_on_how_many_others_run_beside_it():
    def steps(n):
        _, players = players_of(CartPole, n)
        return players.steps(80, lambda x, t: (x[:, 2] > 0).long())

    few, many = steps(2), steps(5)
    for name in ("observations", "rewards", "actions", "terminated", "truncated"):
        assert torch.equal(getattr(few, name), getattr(many, name)[:, :2])
    assert few.terminated.any()


def test_p10_advantages_do_not_depend_on_the_order_of_the_environments():
    looks, seen = seeing("after_advantage", lambda loop: copy.copy(loop.rollouts))
    loop = make_rl_loop(lambda n: CartPole(n, limit=9), strategies=[looks], steps=128)
    loop.run()
    (steps,), order = seen, torch.tensor([2, 0, 3, 1])
    other = copy.copy(steps)
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        setattr(other, name, getattr(steps, name)[:, order])
    place = order.argsort()
    other.last, other.at = steps.last[order], steps.at.clone()
    other.at[:, 1] = place[steps.at[:, 1]]
    seed_globals(100)
    fresh = make_rl_loop(lambda n: CartPole(n, limit=9)).model
    with torch.no_grad():
        loop.objective._judge(fresh, other)
    for name in ("advantages", "returns", "logp", "values"):
        close(getattr(other, name), getattr(steps, name)[:, order], atol=1e-5)


# ---------------------------------------------------------------- Stable-Baselines3


class Recorded(Environment):
    """Gives what was recorded, whatever is done."""

    id = "Recorded"

    def __init__(self, rows, finals, last, actions):
        self.rows, self.finals, self.last, self.t = rows, finals, last, 0
        self.n, self.observation_size = last.shape
        self.n_actions = actions.n if not actions.continuous else None
        self.action_size = actions.n
        if actions.continuous:
            self.action_low = np.full(actions.n, -np.inf, np.float32)
            self.action_high = -self.action_low

    def reset(self, rng=None, which=None):
        return self.rows["observations"][0] if self.rows else self.last

    def step(self, actions):
        row = {name: column[self.t] for name, column in self.rows.items()}
        self.t += 1
        ended = self.t == len(self.rows["rewards"])
        seen = self.last if ended else self.rows["observations"][self.t]
        flags = row["terminated"], row["truncated"]
        return Step(seen, row["rewards"], *flags, self.finals[self.t - 1])


def recorded_of(model, seen):
    """What SB3's environments did, before its buffer is flattened."""
    buffer, T, n = model.rollout_buffer, 32, 3
    flags = {name: np.zeros((T, n), bool) for name in ("terminated", "truncated")}
    finals = np.zeros(buffer.observations.shape, np.float32)
    for t, (_, done, infos) in enumerate(seen):
        for i in np.flatnonzero(done):
            cut = infos[i]["TimeLimit.truncated"]
            flags["truncated" if cut else "terminated"][t, i] = True
            finals[t, i] = infos[i]["terminal_observation"]
    rewards = np.array([reward for reward, *_ in seen], np.float32)
    rows = {"observations": buffer.observations.copy(), "rewards": rewards, **flags}
    return rows, finals, model._last_obs.astype(np.float32), buffer.actions.copy()


@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize(("name", "limit"), [("CartPole-v1", 20), ("Pendulum-v1", 13)])
def test_a_whole_update_ends_in_the_weights_of_sb3s(name, limit, clip, monkeypatch):
    model, seen = sb3_rollout(name, limit)
    continuous = name == "Pendulum-v1"
    ours, pairs = ours_of(model.policy, continuous)
    rows, finals, last, taken = recorded_of(model, seen)

    def noise(actions, lead, rng, device):  # that makes the policy do what SB3's did
        if not continuous:
            return 1e6 * torch.eye(actions.n)[torch.tensor(taken).long().view(lead)]
        with torch.no_grad():
            means = ours(torch.tensor(rows["observations"]).flatten(0, 1))
            away = torch.tensor(taken).flatten(0, 1) - means
            return (away * (-ours.log_std).exp()).view(*lead, actions.n)

    monkeypatch.setattr(ppo_module, "noise", noise)
    passes, entropy = 3, 0.01
    task = EnvTask("t", lambda n: Recorded(rows, finals, last, ours.actions), 0.0, 1.0)
    stream = env_stream("recorded", [task], steps=96, n_test=1, n_val=0, seed=0)
    loop = Loop(
        stream=stream,
        strategies=[],
        model=ours,
        objective=PPO(n_envs=3, n_steps=32, passes=passes, entropy_coef=entropy),
        train=Train(
            optimizer="adam", lr=3e-4, eps=1e-5, clip=clip, batch_size=96, epochs=1, fused=True
        ),
        evaluation=Eval(),
        seed=0,
        device=CPU,
    )
    model.n_epochs, model.ent_coef, model.max_grad_norm = passes, entropy, clip
    model._logger = type("Log", (), {"record": lambda *a, **k: None})()
    begun = weights(ours)
    model.train()
    loop.run()
    moved = max((ours.state_dict()[k] - w).abs().max() for k, w in begun.items())
    assert moved > 3e-4
    for mine, theirs in pairs:
        for key, p in mine.named_parameters(recurse=False):
            close(p, dict(theirs.named_parameters())[key].detach().numpy(), atol=1e-6, rtol=0)


# ---------------------------------------------------------------- deep Q-learning


def test_p11_what_follows_a_truncated_episode_is_its_own_last_observation():
    seen = []
    looks, _ = seeing("after_update", lambda loop: seen.append(dict(loop.objective.held)))
    objective = DQN(n_envs=3, every=3, starts=30, updates=1, capacity=64)
    loop = make_rl_loop(
        both_ends,
        objective=objective,
        strategies=[looks],
        steps=90,
    )
    loop.run()
    held = seen[-1]
    x, following, ended = held["x"][:, 0], held["next"][:, 0], held["terminated"]
    close((following - x)[~ended], np.full(int((~ended).sum()), 0.01))  # of the same episode
    assert ended.any() and (x[ended] - 0.03).abs().max() < 1e-6
    assert ((x - 0.04).abs() < 1e-6).any()  # steps that the clock ended are among them


@pytest.mark.parametrize("double", [False, True])
def test_p11_the_target_of_the_loss_bootstraps_wherever_not_terminated(double):
    def look(loop):
        rows, target = loop.objective._rows, loop.objective.target
        with torch.no_grad():
            theirs, own = target(rows["next"]).numpy(), loop.model(rows["next"]).numpy()
        best = (own if double else theirs).argmax(1)
        following = theirs[np.arange(len(best)), best] * ~rows["terminated"].numpy()
        wanted = rows["reward"].numpy() + 0.9 * following
        q = loop.mb_output.detach().numpy()[np.arange(len(best)), loop.mb_y.numpy()]
        far = np.abs(q - wanted)
        by_hand = np.where(far < 1, far**2 / 2, far - 0.5).mean()
        return loop.loss.item(), by_hand, bool(rows["terminated"].any())

    looks, seen = seeing("before_backward", look)
    make_rl_loop(
        both_ends,
        objective=DQN(n_envs=3, starts=12, gamma=0.9, double=double, target_every=7),
        strategies=[looks],
        steps=90,
    ).run()
    found, by_hand, ended = zip(*seen, strict=True)
    close(np.array(found), by_hand, atol=1e-6, rtol=1e-5)
    assert any(ended)


def test_p11_the_target_network_is_set_at_its_interval_and_at_an_experiences_start():
    online, target = [], []
    looks, _ = seeing("before_forward", lambda loop: online.append(weights(loop.model)))
    again, _ = seeing("before_forward", lambda loop: target.append(weights(loop.objective.target)))
    objective = DQN(n_envs=4, every=4, starts=8, updates=2, target_every=5)
    loop = make_rl_loop(
        Identity, Identity, objective=objective, strategies=[looks, again], steps=64
    )
    loop.run()
    each = len(online) // 2
    assert each > 20
    for k, held in enumerate(target):
        own = k % each
        assert_same_weights(held, online[k - own % 5])  # of the last time that it was due


@pytest.mark.parametrize("kept", ["reset", "keep"])
def test_p11_exploration_starts_anew_and_the_buffer_does_as_told(kept, monkeypatch):
    shares, real = [], q_learning.explore
    monkeypatch.setattr(
        q_learning, "explore", lambda q, noise, share: shares.append(share) or real(q, noise, share)
    )
    looks, stored = seeing("before_rollout", lambda loop: loop.objective.stored)
    objective = DQN(n_envs=4, every=4, starts=16, explore=0.5, epsilon=0.1, buffer=kept)
    make_rl_loop(Identity, Identity, objective=objective, strategies=[looks], steps=160).run()
    assert len(shares) == len(stored) == 80
    assert shares[:40] == shares[40:]
    expected = [1.0 if k < 4 else 1 - 0.9 * min(4 * k / 80, 1) for k in range(40)]
    close(np.array(shares[:40]), expected)
    assert stored[:40] == list(range(0, 160, 4))
    assert stored[40] == (160 if kept == "keep" else 0)


# ---------------------------------------------------------------- measuring


@pytest.mark.parametrize("objective", ["ppo", "normalised", "dqn"])
def test_p12_evaluating_after_every_update_changes_nothing(objective):
    def ended(every):
        made = {
            "ppo": lambda: PPO(n_envs=4, n_steps=16),
            "normalised": lambda: PPO(
                n_envs=4, n_steps=16, observations="normalised", scale_rewards=True
            ),
            "dqn": lambda: DQN(n_envs=4, starts=32),
        }[objective]()
        watcher = Watcher() if every else None
        evaluation = {"every": every} if every else {}
        loop = make_rl_loop(
            lambda n: CartPole(n, limit=20),
            lambda n: CartPole(n, limit=20, gravity=5.0),
            objective=made,
            observer=watcher,
            evaluation=evaluation,
            steps=128,
        )
        loop.run()
        return weights(loop.model), loop.env_steps

    (with_it, steps), (without, same) = ended(1), ended(None)
    assert_same_weights(with_it, without)
    assert steps == same == 256


def test_p12_every_evaluation_plays_the_same_episodes_greedily_and_once_more_with_draws():
    watcher = Watcher()
    loop = make_rl_loop(CartPole, observer=watcher, steps=128, lr=1e-9, evaluation={"every": 2})
    loop.run()
    kinds = [kind for kind, _ in watcher.kinds]
    greedy = [row.counts["return"][0] for row in watcher.rows]
    drawn = [row.counts["sampled_return"][0] for row in watcher.rows]
    assert len(set(greedy)) == 1 and len(greedy) > 3  # the policy has hardly moved
    assert [value is not None for value in drawn] == [kind == "experience" for kind in kinds]
    assert drawn[-1] != greedy[-1]


def test_p12_raw_returns_of_both_kinds_are_in_the_results(tmp_path):
    task = EnvTask("t", lambda n: CartPole(n, limit=30), 20.0, 30.0)
    stream = env_stream("toy", [task], steps=64, n_test=3, n_val=0, seed=0)
    settings = {"objective": {"n_envs": 4, "n_steps": 16}, "train": {"batch_size": 32}}
    results = cl.run(stream, "naive", out=str(tmp_path), **settings).results
    raw = results["raw"]
    assert raw["return"][0][0] <= 30 and raw["sampled_return"][0][0] <= 30
    assert results["R"][0][0] == pytest.approx((raw["return"][0][0] - 20) / 10)


# ---------------------------------------------------------------- resuming, micro-batches, bounds

SMALL = {"stream.steps": 256, "stream.n_test": 2, "stream.n_val": 0, "train.batch_size": 32}
KEPT = {
    "ppo": {
        "objective.n_envs": 4,
        "objective.n_steps": 16,
        "objective.observations": "normalised",
        "objective.scale_rewards": True,
        "objective.statistics": "keep",
        "train.reset_optimizer": False,
    },
    "dqn": {"objective.starts": 64, "objective.buffer": "keep", "objective.capacity": 300},
}


@pytest.mark.parametrize("objective", KEPT)
def test_a_resumed_run_goes_on_with_statistics_and_stored_steps(objective, tmp_path):
    settings = SMALL | KEPT[objective] | {"objective": objective, "eval.every": 40}
    whole = cl.run("cartpole_actions", "naive", out=str(tmp_path / "whole"), **settings)
    part = stopped_after(whole.dir, 1, tmp_path / "part")
    again = resume(part)
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())
    assert (part / "curves.jsonl").read_text() == (whole.dir / "curves.jsonl").read_text()


def test_what_is_stored_between_tasks_is_counted_and_declared(tmp_path):
    def cost(strategy, **settings):
        run = cl.run("cartpole_actions", strategy, out=str(tmp_path), **SMALL | settings)
        return run.results["cost"]["stored_bytes"], run.results["needs"]

    dqn = {"objective": "dqn"} | KEPT["dqn"]
    # two observations of 5 numbers, action, reward, whether it ended: 53 bytes a step
    assert cost("naive", **dqn) == (300 * 53, ["buffer"])
    assert cost("naive", **dqn | {"objective.buffer": "reset"}) == (0, [])
    small = {"objective.n_envs": 4, "objective.n_steps": 16}
    assert cost("joint", **small)[0] == cost("cumulative", **small)[0] == 0


@pytest.mark.parametrize("objective", ["ppo", "dqn"])
def test_micro_batches_have_the_gradients_of_the_whole(objective):
    def gradients(parts):
        made = {
            "ppo": PPO(n_envs=4, n_steps=16, entropy_coef=0.01, value_coef=0.5, clip_value=0.1),
            "dqn": DQN(n_envs=4, starts=32),
        }[objective]
        looks, seen = seeing(
            "before_update", lambda loop: [p.grad.clone() for p in loop.model.parameters()]
        )
        loop = make_rl_loop(
            CartPole,
            objective=made,
            strategies=[looks],
            steps=64,
            batch_size=20,
            accumulate=parts,
            updates=3,
        )
        loop.run()
        return seen

    whole = gradients(1)
    for parts in (2, 3):
        for ours, theirs in zip(gradients(parts), whole, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                close(a, b.numpy(), atol=2e-6, rtol=1e-4)


def test_continuous_actions_are_learned_as_drawn_and_bounded_for_the_environment_alone(monkeypatch):
    given, real = [], Pendulum.step
    monkeypatch.setattr(
        Pendulum, "step", lambda self, actions: given.append(actions) or real(self, actions)
    )
    looks, seen = seeing("before_forward", lambda loop: loop.rollouts.actions)
    loop = make_rl_loop(Pendulum, strategies=[looks], model={"log_std": 1.0}, steps=256)
    begun = weights(loop.model)
    loop.run()
    inside = np.concatenate(given)
    assert np.abs(inside).max() == 2 and any(actions.abs().max() > 2 for actions in seen)
    close(inside[: 32 * 4].reshape(32, 4, 1), seen[0].clamp(-2, 2).numpy())
    assert all(p.isfinite().all() for p in loop.model.parameters())
    moved = [name for name, w in begun.items() if not torch.equal(w, loop.model.state_dict()[name])]
    assert "log_std" in moved and "policy.weight" in moved and "value.weight" in moved


# ---------------------------------------------------------------- as fast, the same


@pytest.mark.parametrize("largest", [0.01, 1e9])
def test_clipping_is_torchs_to_the_bit(largest):
    model = build("small_cnn", (1, 8, 8), {"width": 8})
    next(model.parameters()).requires_grad_(False)
    held = list(model.parameters())[1:]
    for k, p in enumerate(held):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    held[-1].grad = None
    grads = [p.grad.clone() for p in held[:-1]]
    clip_gradients(torch.optim.SGD(held, 0.1), largest)
    ours = [p.grad.clone() for p in held[:-1]]
    for p, g in zip(held[:-1], grads, strict=True):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(held, largest)
    assert all(torch.equal(a, p.grad) for a, p in zip(ours, held[:-1], strict=True))
    clip_gradients(torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1), largest)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_fused_optimizer_ends_within_rounding_of_the_plain_one(optimizer):
    def ended(fused):
        loop = make_rl_loop(
            Identity, optimizer=optimizer, fused=fused, updates=8, weight_decay=0.01
        )
        loop.run()
        return weights(loop.model)

    plain, fused = ended(False), ended(True)
    for name, w in plain.items():
        close(fused[name], w.numpy(), atol=2e-6)


def test_environments_are_shared_out_among_tasks_and_keep_to_the_budget(tmp_path):
    def table(*counts):
        x = torch.cat([torch.full((c,), k) for k, c in enumerate(counts)])
        return Table({"x": x, "y": torch.zeros_like(x)})

    assert copies_of(table(100), 8) == {0: 8}
    assert copies_of(table(100, 100, 100), 8) == {0: 3, 1: 3, 2: 2}
    assert copies_of(table(100, 100, 100, 100, 100), 4) == dict.fromkeys(range(5), 1)
    assert copies_of(table(700, 100, 1), 8) == {0: 6, 1: 1, 2: 1}
    result = cl.run(
        "cartpole_actions",
        "joint",
        out=str(tmp_path),
        stream={"steps": 512, "n_test": 2, "n_val": 0},
        objective={"n_envs": 5, "n_steps": 32, "passes": 1},
        train={"batch_size": 64},
    )
    assert 1024 <= result.results["cost"]["env_steps"] < 1024 + 5
