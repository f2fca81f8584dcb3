"""Environments in numpy beside Gymnasium's scalar ones: the same states, rewards and ends.

The scalar environments are stepped one by one, their states set from outside; everything else is
counted or computed again here. Pins p2, p3, p10 are those of the list of RL pins.
"""

import math
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from cl.checkpoint import pack
from cl.environments import (
    NATIVE,
    Acrobot,
    CartPole,
    ChangedObservations,
    DiscreteActions,
    FrozenLake,
    GridWorld,
    Joined,
    MountainCar,
    Padded,
    Pendulum,
    PermutedActions,
    ScaledRewards,
    WithContext,
    discrete,
    make,
    random_grid,
    random_map,
)
from cl.environments._base import new_streams, uniform
from cl.environments.gymnasium_adapter import Gymnasium, one_hot_images
from cl.errors import BadValue, ClError, NonFinite, RunError, ShapeMismatch, UnknownName

PHYSICS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1")
LIMITS = {"CartPole-v1": 500, "Acrobot-v1": 500, "MountainCar-v0": 200, "Pendulum-v1": 200}
N = 6


def started(id, n=N, seed=0, **parameters):
    env = make(id, n, **parameters)
    env.reset(np.random.default_rng(seed))
    return env


def states(env):
    """Where the environments are, float64 [n, width]."""
    return env.x.T.copy()


def keep_balance(x):
    """A policy that keeps CartPole up for long: actions [n] of states [n, 4]."""
    return (x @ np.array([0.1, 0.5, 4.0, 1.0]) > 0).astype(int)


def swing(x):
    """A policy that gets MountainCar up: push where it moves to."""
    return np.where(x[:, 1] >= 0, 2, 0)


def pump(x):
    """A policy that gets Acrobot up: torque with the second link's speed."""
    return np.where(x[:, 3] >= 0, 2, 0)


POLICIES = {"CartPole-v1": keep_balance, "MountainCar-v0": swing, "Acrobot-v1": pump}


def actions_for(env, rng, t, policy):
    drawn = env.sample(rng)
    if policy is None:  # torques in float64, as all else; Gymnasium would go on in float32
        return drawn if env.n_actions else drawn.astype(np.float64)
    return np.where(rng.random(env.n) < 0.1, drawn, policy(states(env)))


def scalar(id, k, attributes):
    """Gymnasium's environment without its clock, with attributes set to their k-th value."""
    inner = gym.make(id).unwrapped
    for name, values in attributes.items():
        setattr(inner, name, float(values[k]))
    if id == "CartPole-v1":
        inner.total_mass = inner.masspole + inner.masscart
        inner.polemass_length = inner.masspole * inner.length
    inner.reset(seed=0)
    return inner


def set_state(inner, x):
    inner.state = np.array(x)
    if hasattr(inner, "steps_beyond_terminated"):
        inner.steps_beyond_terminated = None


def follow(id, env, attributes, steps, policy, atol=1e-6):
    """Step ours and the scalar ones with the same actions; (terminations, truncations) seen."""
    inner = [scalar(id, k, attributes) for k in range(env.n)]
    for k in range(env.n):
        set_state(inner[k], states(env)[k])
    clock, ends, rng = np.zeros(env.n, int), [0, 0], np.random.default_rng(1)
    for t in range(steps):
        actions = actions_for(env, rng, t, policy)
        step = env.step(actions)
        clock += 1
        for k in range(env.n):
            seen, reward, terminated, _, _ = inner[k].step(actions[k])
            assert np.abs(step.final_observations[k] - seen).max() <= atol
            assert abs(step.rewards[k] - reward) <= 1e-6
            assert step.terminated[k] == terminated
            assert step.truncated[k] == (clock[k] == LIMITS[id] and not terminated)
            ends[0] += step.terminated[k]
            ends[1] += step.truncated[k]
            if step.terminated[k] or step.truncated[k]:
                clock[k] = 0
                set_state(inner[k], states(env)[k])
            else:
                assert np.abs(env.x[:, k] - inner[k].state).max() <= atol
    return ends


# ---------------------------------------------------------------- equal to Gymnasium's


@pytest.mark.parametrize("id", PHYSICS)
def test_random_actions_lead_where_gymnasium_has_them_lead(id):
    terminations, truncations = follow(id, started(id), {}, 520, None)
    assert terminations > 20 if id == "CartPole-v1" else truncations >= N


@pytest.mark.parametrize("id", POLICIES)
def test_good_actions_lead_where_gymnasium_has_them_lead(id):
    terminations, truncations = follow(id, started(id), {}, 520, POLICIES[id])
    assert truncations >= 1 if id == "CartPole-v1" else terminations >= N


CHANGED = {
    "CartPole-v1": {
        "gravity": [9.8, 5.0, 20.0, 9.8, 9.8, 9.8],
        "masscart": [1.0, 2.0, 0.5, 1.0, 1.0, 1.3],
        "masspole": [0.1, 0.5, 0.1, 0.2, 0.1, 0.05],
        "length": [0.5, 0.5, 1.5, 0.25, 0.5, 0.7],
        "force_mag": [10.0, 5.0, 20.0, 10.0, -10.0, 12.0],
        "tau": [0.02, 0.02, 0.01, 0.02, 0.03, 0.02],
    },
    "MountainCar-v0": {
        "force": [0.001, 0.002, 0.0005, 0.0015, 0.001, 0.001],
        "gravity": [0.0025, 0.0025, 0.002, 0.003, 0.0015, -0.0025],
        "goal_velocity": [0.0, 0.01, 0.0, 0.03, 0.0, 0.0],
    },
    "Acrobot-v1": {
        "link_length_1": [1.0, 0.5, 1.5, 1.0, 1.0, 1.2],
        "link_mass_1": [1.0, 2.0, 0.5, 1.0, 1.0, 1.0],
        "link_mass_2": [1.0, 0.5, 1.0, 2.0, 1.0, 1.1],
        "link_com_pos_1": [0.5, 0.2, 0.5, 0.5, 0.7, 0.4],
        "link_com_pos_2": [0.5, 0.5, 0.3, 0.5, 0.8, 0.6],
        "link_moi": [1.0, 1.0, 0.8, 1.5, 1.0, 0.9],
    },
    "Pendulum-v1": {
        "gravity": [10.0, 5.0, 15.0, 1.62, 0.0, -10.0],
        "mass": [1.0, 2.0, 0.5, 1.0, 1.0, 1.0],
        "length": [1.0, 1.0, 0.7, 1.5, 1.0, 2.0],
    },
}
THEIRS = {"Pendulum-v1": {"gravity": "g", "mass": "m", "length": "l"}}


@pytest.mark.parametrize("id", CHANGED)
def test_every_environment_has_physics_of_its_own(id):
    parameters = {name: np.array(values) for name, values in CHANGED[id].items()}
    rename = THEIRS.get(id, {})
    upper = id == "Acrobot-v1"
    theirs = {
        rename.get(name, name.upper() if upper else name): values
        for name, values in parameters.items()
    }
    follow(id, started(id, **parameters), theirs, 220, POLICIES.get(id))


def test_starts_of_episodes_cover_the_ranges_that_gymnasium_has():
    n = 4000
    found = {id: states(started(id, n)) for id in PHYSICS}
    for id, low, high in (
        ("CartPole-v1", [-0.05] * 4, [0.05] * 4),
        ("Acrobot-v1", [-0.1] * 4, [0.1] * 4),
        ("Pendulum-v1", [-np.pi, -1], [np.pi, 1]),
        ("MountainCar-v0", [-0.6, 0], [-0.4, 0]),
    ):
        low, high = np.array(low), np.array(high)
        x = found[id]
        assert (x >= low).all() and (x <= high).all()
        np.testing.assert_allclose(x.mean(0), (low + high) / 2, atol=0.05 * (high - low).max())
        np.testing.assert_allclose(x.var(0), (high - low) ** 2 / 12, rtol=0.1)


@pytest.mark.parametrize("id", ["FrozenLake-v1", *PHYSICS])
def test_spaces_are_those_of_gymnasium(id):
    env, theirs = make(id, 2), gym.make(id)
    if isinstance(theirs.action_space, gym.spaces.Discrete):
        assert env.n_actions == theirs.action_space.n
    else:
        assert env.n_actions is None and env.action_size == 1
        assert env.action_low == theirs.action_space.low
        assert env.action_high == theirs.action_space.high
    if id == "FrozenLake-v1":
        assert env.observation_kind == "one_hot"
        assert env.observation_size == theirs.observation_space.n
    else:
        assert (env.observation_size,) == theirs.observation_space.shape
    assert env.limit == theirs.spec.max_episode_steps


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("name", ["4x4", "8x8"])
def test_firm_ice_is_gymnasiums_cell_by_cell(name):
    theirs = gym.make("FrozenLake-v1", map_name=name, is_slippery=False).unwrapped
    env = started("FrozenLake-v1", maps=name, is_slippery=False, limit=None)
    for cell, moves in theirs.P.items():
        if theirs.desc.ravel()[cell] in b"GH":
            continue
        for action, [(_, there, reward, terminated)] in moves.items():
            env.x[:] = cell
            step = env.step(np.full(N, action))
            assert step.final_observations.argmax(1).tolist() == [there] * N
            assert step.rewards.tolist() == [reward] * N
            assert step.terminated.tolist() == [terminated] * N


def chi_square(counts, shares):
    expected = counts.sum() * shares
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("success_rate", [1 / 3, 0.8])
def test_slippery_ice_leads_where_gymnasiums_table_says_as_often(success_rate):
    rewards = (5, -2, 0.5)
    theirs = gym.make("FrozenLake-v1", success_rate=success_rate, reward_schedule=rewards).unwrapped
    n, worst = 3000, 0.0
    env = started("FrozenLake-v1", n, success_rate=success_rate, reward_schedule=rewards)
    for cell in (0, 4, 6, 10, 14):
        for action in range(4):
            env.x[:] = cell
            step = env.step(np.full(n, action))
            there = step.final_observations.argmax(1)
            table = {}
            for p, s, reward, terminated in theirs.P[cell][action]:
                table[s] = (table.get(s, (0,))[0] + p, reward, terminated)
            assert set(there) == set(table)
            for s, (_, reward, terminated) in table.items():
                assert (step.rewards[there == s] == np.float32(reward)).all()
                assert (step.terminated[there == s] == terminated).all()
            counts = np.array([(there == s).sum() for s in table])
            worst = max(worst, chi_square(counts, np.array([p for p, *_ in table.values()])))
    assert worst < 18  # of 20 draws of chi-square with at most 2 degrees: p = 0.0025 in all


def test_every_lake_may_have_its_own_map_slip_and_rewards():
    rng = np.random.default_rng(3)
    maps = [random_map(rng), random_map(rng, frozen=0.6), ["SFFF", "FFFF", "FFFF", "GFFF"]]
    env = FrozenLake(
        3,
        maps=maps,
        is_slippery=[False, False, True],
        success_rate=[1 / 3, 1 / 3, 1.0],
        reward_schedule=[[1, 0, 0], [1, -1, -0.1], [3, 0, 0]],
    )
    env.reset(rng)
    theirs = [
        gym.make("FrozenLake-v1", desc=maps[k], is_slippery=False).unwrapped for k in range(3)
    ]
    goal, hole, ice = ([1, 1, 3], [0, -1, 0], [0, -0.1, 0])
    for _ in range(300):
        cells, actions = env.x[0].copy(), env.sample(rng)
        step = env.step(actions)
        for k in range(3):
            [(_, there, _, terminated)] = theirs[k].P[cells[k]][actions[k]]
            letter = "".join(maps[k])[there]
            paid = {"G": goal, "H": hole}.get(letter, ice)[k]
            assert step.final_observations[k].argmax() == there
            assert step.terminated[k] == terminated and step.rewards[k] == np.float32(paid)


def test_random_maps_are_seeded_and_have_a_way():
    one, same, other = (random_map(np.random.default_rng(s), 6, 0.6) for s in (0, 0, 1))
    assert one == same != other
    for seed in range(30):
        lake = random_map(np.random.default_rng(seed), 5, 0.6)
        assert gym.envs.toy_text.frozen_lake.is_valid([list(row) for row in lake], 5)
        grid = "".join(random_grid(np.random.default_rng(seed), 5, 6))
        assert sorted(grid) == sorted("#" * 6 + "." * 17 + "SG")
    with pytest.raises(BadValue, match="no map of 4 x 4"):
        random_map(np.random.default_rng(0), frozen=0.0)


def test_a_grid_world_is_walked_by_hand():
    env = GridWorld(2, maps=[["S#.", "..G"], ["SG.", "#.."]], limit=10)
    seen = env.reset(np.random.default_rng(0))
    assert seen.argmax(1).tolist() == [0, 0] and seen.sum() == 2
    blocked = env.step([2, 1])  # against obstacles
    assert blocked.observations.argmax(1).tolist() == [0, 0] and not blocked.rewards.any()
    done = env.step([1, 2])
    assert done.final_observations.argmax(1).tolist() == [3, 1]
    assert done.terminated.tolist() == [False, True]
    np.testing.assert_allclose(done.rewards, [0, 1 - 0.9 * 2 / 10], rtol=1e-6)
    assert done.observations.argmax(1).tolist() == [3, 0]
    assert env.planes("#G").tolist() == [
        [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
    ]


# ---------------------------------------------------------------- ends of episodes


@pytest.mark.parametrize("id", [*NATIVE])
def test_p2_truncated_is_never_terminated_and_comes_with_the_clock(id):
    env = started(id, 20, limit=7)
    rng, clock = np.random.default_rng(0), np.zeros(20, int)
    truncations = 0
    for _ in range(60):
        step = env.step(env.sample(rng))
        clock += 1
        assert not (step.truncated & step.terminated).any()
        assert (step.truncated == ((clock == 7) & ~step.terminated)).all()
        clock[step.truncated | step.terminated] = 0
        truncations += step.truncated.sum()
    assert truncations > 20


def test_a_task_that_ends_with_the_clock_is_terminated():
    env = started("CartPole-v1", 2, limit=3)
    env.clock[:] = 2
    env.x[0] = 2.5, 0.0
    step = env.step([1, 1])
    assert step.terminated.tolist() == [True, False] and step.truncated.tolist() == [False, True]


@pytest.mark.parametrize("id", [*NATIVE, "Gymnasium"])
def test_p3_every_row_is_real_and_final_observations_are_those_before_the_reset(id):
    env = Gymnasium("CartPole-v1", 5) if id == "Gymnasium" else make(id, 5, limit=9)
    rng = np.random.default_rng(0)
    before, ends = env.reset(rng), 0
    for _ in range(80):
        actions = env.sample(rng)
        step = env.step(actions)
        ended = step.terminated | step.truncated
        ends += ended.sum()
        same = (step.final_observations == step.observations).all(1)
        assert same[~ended].all()
        if id in ("CartPole-v1", "Gymnasium"):
            moved = before[:, 0] + np.float32(0.02) * before[:, 1]  # of the episode before
            np.testing.assert_allclose(step.final_observations[:, 0], moved, atol=1e-6)
            assert (np.abs(step.observations[ended]) <= 0.05).all()
            assert (step.rewards == 1).all()
        before = step.observations
    assert ends > 10


def test_observations_and_rewards_are_float32_and_belong_to_the_caller():
    for id in NATIVE:
        env = started(id)
        step = env.step(env.sample(np.random.default_rng(0)))
        assert step.observations.dtype == step.rewards.dtype == np.float32
        assert step.observations.shape == (N, env.observation_size)
        kept = env.state()["x"]
        step.observations[:] = 7
        assert (env.state()["x"] == kept).all()


# ---------------------------------------------------------------- randomness and state


def played(env, actions):
    return [env.step(a) for a in actions]


@pytest.mark.parametrize("id", [*NATIVE, "MiniGrid-Empty-Random-5x5-v0"])
def test_p10_an_environment_does_not_depend_on_how_many_others_there_are(id):
    few, many = make(id, 2), make(id, 5)
    first = few.reset(np.random.default_rng(0)), many.reset(np.random.default_rng(0))
    assert (first[0] == first[1][:2]).all()
    rng = np.random.default_rng(1)
    for _ in range(60):
        actions = many.sample(rng)
        a, b = few.step(actions[:2]), many.step(actions)
        assert all((x == y[:2]).all() for x, y in zip(a, b))


@pytest.mark.parametrize("id", [*NATIVE])
def test_p10_a_permuted_batch_is_the_same_batch_permuted(id):
    env, other = started(id, 8), make(id, 8)
    order = np.random.default_rng(2).permutation(8)
    seen = other.load({name: array[order] for name, array in env.state().items()})
    assert (seen == env._seen(env.x)[order]).all()
    rng = np.random.default_rng(1)
    for _ in range(60):
        actions = env.sample(rng)
        a, b = env.step(actions), other.step(actions[order])
        assert all((x[order] == y).all() for x, y in zip(a, b))


STATEFUL = {
    **{id: {"limit": 25} for id in NATIVE},
    "CliffWalking-v1": {"max_episode_steps": 25},
    "MountainCarContinuous-v0": {"max_episode_steps": 25},
    "MiniGrid-Empty-Random-5x5-v0": {"max_steps": 25},
}


@pytest.mark.parametrize("id", STATEFUL)
def test_a_state_put_back_goes_on_as_it_would_have(id):
    env, rng = started(id, **STATEFUL[id]), np.random.default_rng(1)
    actions = [env.sample(rng) for _ in range(90)]
    last = played(env, actions[:40])[-1]
    state = env.state()
    pack(state, {}, "state")  # a checkpoint can hold it
    kept = {name: array.copy() for name, array in state.items()}
    expected = played(env, actions[40:])
    assert all((state[name] == kept[name]).all() for name in kept), "the state is a copy"
    other = make(id, N, **STATEFUL[id])
    assert (other.load(state) == last.observations).all()
    for a, b in zip(expected, played(other, actions[40:])):
        assert all((x == y).all() for x, y in zip(a, b))
    env.load(state)  # and back in time
    assert (env.step(actions[40]).observations == expected[0].observations).all()


def test_resets_of_some_leave_the_others_alone_and_seeds_matter():
    env = started("CartPole-v1")
    x, streams = states(env), env.streams.copy()
    env.reset(which=[1, 4])
    moved = (states(env) != x).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]
    env.load({"x": x, "clock": env.clock, "streams": streams.view(np.int64)})
    again = env.reset(which=np.arange(N) % 3 == 1)
    assert (env.streams != streams).nonzero()[0].tolist() == [1, 4]
    assert (again == started("CartPole-v1").reset(which=[1, 4])).all()
    assert (states(started("CartPole-v1", seed=1)) != x).all()
    assert (env.reset(np.random.default_rng(0)) == started("CartPole-v1").x.T.astype("f4")).all()


def test_streams_of_bits_are_uniform_and_unrelated():
    streams = new_streams(np.random.default_rng(0), 500)
    u = uniform(streams, np.arange(500), 400)
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert u.min() >= 0 and u.max() < 1
    assert chi_square(counts, np.full(50, 1 / 50)) < 90  # 49 degrees: p < 0.0003
    between = np.corrcoef(u[:60])[np.triu_indices(60, 1)]
    along = np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]
    assert abs(along) < 0.01 and abs(between).max() < 0.25 and abs(between.mean()) < 0.005
    more = uniform(streams, np.array([3]), 2)
    whole = new_streams(np.random.default_rng(0), 4)
    assert (uniform(whole, np.arange(4), 402)[3, 400:] == more[0]).all()


def test_splitmix_gives_its_published_numbers():
    streams = np.array([1234567], np.uint64)
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = uniform(streams, np.array([0]), 3)[0]
    assert found.tolist() == [(value >> 11) * 2.0**-53 for value in known]


# ---------------------------------------------------------------- wrappers


def test_permuted_actions_are_the_inner_ones():
    order = [[1, 0], [0, 1], [1, 0]]
    plain, changed = started("CartPole-v1", 3), PermutedActions(CartPole(3), order)
    changed.reset(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(50):
        a = plain.sample(rng)
        inner = np.array([order[k][a[k]] for k in range(3)])
        assert all((x == y).all() for x, y in zip(changed.step(a), plain.step(inner)))


def test_observations_rewards_and_context_change_as_told():
    order, sign, context = [2, 0, 3, 1], [1, -1, 1, -1], np.arange(6).reshape(3, 2)
    plain = started("CartPole-v1", 3)
    env = ChangedObservations(CartPole(3), order, sign)
    env = WithContext(ScaledRewards(env, [1, -1, 0.5]), context)
    seen = env.reset(np.random.default_rng(0))
    assert env.observation_size == 6 and seen.dtype == np.float32
    for _ in range(60):
        a = plain.sample(np.random.default_rng(0))
        theirs, ours = plain.step(a), env.step(a)
        for one, other in zip(theirs[::4], ours[::4]):  # observations, final_observations
            for k in range(3):
                expected = [sign[i] * one[k][order[i]] for i in range(4)] + [*context[k]]
                assert other[k].tolist() == expected
        assert (ours.rewards == theirs.rewards * np.float32([1, -1, 0.5])).all()
        assert (ours.terminated == theirs.terminated).all()
    assert (env.load(env.state()) == ours.observations).all()


def test_levels_of_a_torque_are_actions_to_choose_among():
    env = DiscreteActions(Pendulum(5), levels=5)
    seen = env.reset(np.random.default_rng(0))
    assert discrete(env).n_actions == 5 and env.action_low is None
    plain = started("Pendulum-v1", 5)
    torque = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert (env.step(np.arange(5)).observations == plain.step(torque).observations).all()
    assert Padded(env, 6, 6).reset(np.random.default_rng(0))[:, :3].tolist() == seen.tolist()


def test_importing_environments_imports_neither_gymnasium_nor_torch():
    code = (
        "import sys, cl.environments as e; e.make('CartPole-v1', 2); "
        "assert not {'gymnasium', 'minigrid', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_padding_and_joining_make_one_environment_of_several():
    parts = [CartPole(2), Acrobot(3), MountainCar(1)]
    env = Joined([Padded(part, 6, 3) for part in parts])
    assert (env.n, env.n_actions, env.observation_size) == (6, 3, 6)
    seen = env.reset(np.random.default_rng(0))
    assert not seen[:2, 4:].any() and not seen[5:, 2:].any() and seen.shape == (6, 6)
    rng = np.random.default_rng(0)
    alone = [CartPole(2), Acrobot(3), MountainCar(1)]
    for part in alone:
        part.reset(rng)
    for _ in range(30):
        a = env.sample(rng)
        step, state = env.step(a), env.state()
        for part, rows in zip(alone, (slice(0, 2), slice(2, 5), slice(5, 6))):
            own = part.step(a[rows] % part.n_actions)
            d = part.observation_size
            assert (step.final_observations[rows, :d] == own.final_observations).all()
            assert (step.rewards[rows] == own.rewards).all()
    fresh = Joined([Padded(part, 6, 3) for part in (CartPole(2), Acrobot(3), MountainCar(1))])
    assert (fresh.load(state) == step.observations).all()
    kept = states(alone[1])
    env.reset(which=[0, 5])
    assert (kept == parts[1].x.T).all() and parts[0].clock.tolist()[0] == 0


# ---------------------------------------------------------------- any Gymnasium id


def test_the_adapter_plays_gymnasiums_episodes():
    env = Gymnasium("CartPole-v1", 3)
    seen, rng = env.reset(np.random.default_rng(0)), np.random.default_rng(1)
    scalars = [gym.make("CartPole-v1") for _ in range(3)]

    def restart(k):
        return scalars[k].reset(seed=env.vector.envs[k].episode_seed)[0]

    assert (seen == [restart(k) for k in range(3)]).all()
    for _ in range(100):
        a = env.sample(rng)
        step = env.step(a)
        for k in range(3):
            there, reward, terminated, truncated, _ = scalars[k].step(a[k])
            assert (step.final_observations[k] == there).all() and step.rewards[k] == reward
            assert (step.terminated[k], step.truncated[k]) == (terminated, truncated)
            if terminated or truncated:
                assert (step.observations[k] == restart(k)).all()
    env.close()


def test_the_adapter_reads_spaces():
    assert make("CliffWalking-v1", 2).observation_kind == "one_hot"
    car = started("MountainCarContinuous-v0", 2)
    assert (car.n_actions, car.action_size, car.action_low.tolist()) == (None, 1, [-1.0])
    clipped = car.step(np.array([5.0, -5.0])).observations
    again = started("MountainCarContinuous-v0", 2).step(np.array([[1.0], [-1.0]])).observations
    assert (clipped == again).all()
    with pytest.raises(BadValue, match="Blackjack-v1 is seen as Tuple"):
        make("Blackjack-v1", 1)


def test_minigrids_images_are_one_hot():
    pytest.importorskip("minigrid")
    env = make("MiniGrid-DoorKey-5x5-v0", 3)
    seen = env.reset(np.random.default_rng(0))
    assert env.observation_size == 7 * 7 * 20 and env.n_actions == 7
    images = np.stack([copy.unwrapped.gen_obs()["image"] for copy in env.vector.envs])
    by_hand = np.zeros((3, 7, 7, 20), np.float32)
    for at in np.ndindex(3, 7, 7):
        for first, value in zip((0, 11, 17), images[at]):
            by_hand[(*at, first + value)] = 1
    assert (seen == by_hand.reshape(3, -1)).all() and (one_hot_images(images) == seen).all()
    limit = 10 * 5**2
    for t in range(1, limit + 1):
        step = env.step([6, 6, 6])  # nothing
        assert (step.truncated == (t == limit)).all() and not step.terminated.any()


# ---------------------------------------------------------------- what can go wrong


class Broken(gym.Env):
    """Fails at step 3 of an episode, or at its start, in the way that it is told to."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, how):
        self.how, self.t = how, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        if self.how == "resets":
            raise ValueError("motor\nburnt out")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        bad = self.t == 3
        if bad and self.how == "grows":
            return np.zeros(5, np.float32), 0.0, False, False, {}
        if bad and self.how == "raises":
            raise ValueError("motor\nburnt out")
        seen = np.full(2, np.nan if bad and self.how == "sees" else 0, np.float32)
        return seen, math.nan if bad and self.how == "pays" else 0.0, False, False, {}


@pytest.fixture
def broken():
    gym.register("Broken-v0", Broken, max_episode_steps=10)
    yield "Broken-v0"
    gym.registry.pop("Broken-v0")


@pytest.mark.parametrize(
    ("how", "kind", "line"),
    [
        (
            "raises",
            RunError,
            "environment 0 raised ValueError at step 3 of its episode: motor burnt",
        ),
        ("sees", NonFinite, "environment 0 returned .* nan or inf, at step 3 of its episode"),
        ("pays", NonFinite, "environment 0 returned .* nan or inf, at step 3 of its episode"),
        ("grows", RunError, "breaks its spaces: ValueError"),
        ("resets", RunError, "environment 0 raised ValueError at a reset: motor burnt out"),
    ],
)
def test_an_environment_that_breaks_mid_episode_ends_in_one_clear_line(broken, how, kind, line):
    with pytest.raises(kind, match=f"^{broken}:? {line}") as error:
        env = started(broken, 2, how=how)
        for _ in range(3):
            env.step([0, 1])
        pytest.fail("three steps went well")
    assert "\n" not in str(error.value) and (how == "resets" or env.vector.envs[0].unwrapped.t == 3)


def test_numbers_that_blow_up_are_named():
    env = started("CartPole-v1", 3)
    env.step([0, 0, 0])
    env.x[1, 2] = np.nan
    with pytest.raises(NonFinite, match="CartPole-v1: environment 2 .* at step 2 of its episode"):
        env.step([0, 0, 0])
    with pytest.raises(NonFinite, match="Pendulum-v1: environment 1 .* at step 1 "):
        started("Pendulum-v1", 2).step([0.0, np.nan])


@pytest.mark.parametrize(
    ("make_it", "kind", "line"),
    [
        (lambda: make("CartPoel-v1", 1), UnknownName, "did you mean 'CartPole-v1'"),
        (lambda: make("Nowhere/Maze-v0", 1), UnknownName, "no environment 'Nowhere/Maze-v0'"),
        (lambda: make("CartPole-v9", 1), UnknownName, "no environment 'CartPole-v9'"),
        (lambda: make("CartPole-v1", 1, gravitee=1), UnknownName, "did you mean 'gravity'"),
        (lambda: make("CartPole-v1", 0), BadValue, "at least one environment, got n=0"),
        (lambda: make("CartPole-v1", 2, gravity=[1, 2, 3]), BadValue, "one per environment"),
        (lambda: make("CartPole-v1", 2, masspole=0), BadValue, "masspole=0.0 is not positive"),
        (lambda: make("CartPole-v1", 2, gravity=math.inf), BadValue, "is not finite"),
        (lambda: make("CartPole-v1", 2, limit=0), BadValue, "limit=0"),
        (lambda: make("CliffWalking-v1", 1, depth=3), BadValue, "can't be made: TypeError"),
        (lambda: make("FrozenLake-v1", 1, maps="5x5"), UnknownName, "no map of FrozenLake '5x5'"),
        (lambda: FrozenLake(1, maps=["SF", "FX"]), BadValue, "must be made of the letters SFHG"),
        (lambda: FrozenLake(1, maps=["SF", "G"]), BadValue, "rows of one length"),
        (lambda: FrozenLake(2, maps=[["SG"]]), BadValue, r"one per environment \(2\), got 1"),
        (lambda: FrozenLake(1, success_rate=1.2), BadValue, "is no probability"),
        (lambda: FrozenLake(1, reward_schedule=(1, 0)), BadValue, "goal, hole, ice"),
        (lambda: GridWorld(1, limit=None), BadValue, "needs a limit"),
        (lambda: random_grid(np.random.default_rng(0), 3, 8), BadValue, "leaves no room"),
        (lambda: discrete(Pendulum(1)), BadValue, "Pendulum-v1 takes continuous actions"),
        (lambda: PermutedActions(Pendulum(1), [0]), BadValue, "takes continuous actions"),
        (lambda: PermutedActions(CartPole(1), [0, 0]), BadValue, "must be a permutation"),
        (lambda: PermutedActions(CartPole(1), [0, 1, 2]), BadValue, "has shape"),
        (lambda: DiscreteActions(CartPole(1)), BadValue, "of one continuous number"),
        (lambda: DiscreteActions(Pendulum(1), 1), BadValue, "levels=1"),
        (lambda: Padded(CartPole(1), 3), BadValue, "sees 4 numbers, not 3"),
        (lambda: Padded(Acrobot(1), 6, 2), BadValue, "has 3 actions, not 2"),
        (lambda: Joined([CartPole(1), Acrobot(1)]), BadValue, "can't be joined: n_actions"),
        (lambda: CartPole(2).step([0, 0]), RunError, "reset comes before the first step"),
        (lambda: CartPole(2).state(), RunError, "no state before its first reset"),
        (lambda: CartPole(2).reset(), RunError, "needs a generator"),
        (lambda: started("CartPole-v1", 2).step([0]), ShapeMismatch, r"\(2,\), got \(1,\)"),
        (lambda: started("CartPole-v1", 2).step([0, 2]), BadValue, "actions 0 to 1, got 2"),
        (lambda: started("CartPole-v1", 2).step([0, -1]), BadValue, "actions 0 to 1, got -1"),
        (lambda: started("CartPole-v1", 2).step([0.0, 1.0]), BadValue, "whole numbers"),
        (lambda: started("Pendulum-v1", 2).step(np.zeros((2, 3))), ShapeMismatch, r"\(2, 1\)"),
        (lambda: started("CliffWalking-v1", 2).step([0]), ShapeMismatch, r"\(2,\), got \(1,\)"),
        (
            lambda: CartPole(3).load(started("CartPole-v1", 2).state()),
            ShapeMismatch,
            "a state has the arrays",
        ),
        (
            lambda: make("CliffWalking-v1", 3).load(started("CliffWalking-v1", 2).state()),
            ShapeMismatch,
            "a state has 3 rows",
        ),
    ],
)
def test_bad_input_ends_in_one_clear_line(make_it, kind, line):
    with pytest.raises(kind, match=line) as error:
        make_it()
    assert isinstance(error.value, ClError) and "\n" not in str(error.value)
