"""Streams of maps, of MiniGrid's rooms and of Gymnasium ids; environments that fail."""

import copy
import itertools
import json
import sys
from collections import deque

import gymnasium
import numpy as np
import pytest

import cl
from cl.cli import main
from cl.env_stream import EnvStream, env_stream
from cl.environments import FrozenLake, WithContext, make
from cl.errors import BadValue, DataError, MissingPackage, UnknownName
from cl.registry import find
from streams.frozenlake_maps import best, expected, stationary

SMALL = {"objective.n_envs": 4, "objective.n_steps": 16, "train.batch_size": 32}


def stream(name, **settings) -> EnvStream:
    return find("streams", name).load()(**settings)


# ---------------------------------------------------------------- frozenlake_maps


def enumerated(lake, act, steps):
    """What `act` returns from the start: every outcome of every step, one after the other.

    act(cell, steps left, value) -> value of the cell, from value(action).
    """
    cells, shares, rewards, ends = lake.outcomes()

    def value(cell, left):
        if left == 0:
            return 0.0

        def of(action):
            worth = 0.0
            for where, share in zip(cells[cell, action], shares, strict=True):
                more = 0.0 if ends[where] else value(where, left - 1)
                worth += share * (rewards[where] + more)
            return worth

        return act(cell, of)

    return value(int((lake.cells[0] == "S").argmax()), steps)


@pytest.mark.parametrize("slippery", [True, False])
def test_exact_returns_are_those_of_an_enumeration(slippery):
    lake = FrozenLake(1, maps=["SFH", "FFG"], is_slippery=slippery, limit=4)
    table = stationary(lake)
    chance = enumerated(lake, lambda cell, of: sum(map(of, range(4))) / 4, 4)
    assert expected(lake) == pytest.approx(chance, abs=1e-12)
    top = enumerated(lake, lambda cell, of: max(map(of, range(4))), 4)
    assert best(lake) == pytest.approx(top, abs=1e-12)
    own = enumerated(lake, lambda cell, of: of(table[cell]), 4)
    assert expected(lake, table) == pytest.approx(own, abs=1e-12)
    assert chance < own <= top


@pytest.mark.parametrize("kind", ["random", "expert"])
def test_exact_returns_are_those_of_a_simulation(kind):
    for task in stream("frozenlake_maps", n_experiences=2, seed=3, standard=True).tasks:
        n = 8000
        env, rng = task.build(n), np.random.default_rng(5)
        seen, sums, running = env.reset(rng), np.zeros(n), np.ones(n, bool)
        act = task.expert(env)
        while running.any():
            step = env.step(env.sample(rng) if kind == "random" else act(seen))
            sums += step.rewards * running
            running &= ~(step.terminated | step.truncated)
            seen = step.observations
        exact = task.random
        if kind == "expert":
            exact = expected(env.env, act(np.eye(16, env.observation_size)))
            assert task.reference - 0.01 < exact <= task.reference
        assert sums.mean() == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / n) + 1e-6)


def test_the_best_policies_of_gymnasiums_maps_are_known():
    assert best(FrozenLake(1)) == pytest.approx(0.744, abs=5e-4)
    assert best(FrozenLake(1, maps="8x8", limit=200)) == pytest.approx(0.913, abs=5e-4)
    assert best(FrozenLake(1, is_slippery=False)) == 1
    assert expected(FrozenLake(1), stationary(FrozenLake(1))) > 0.74


@pytest.mark.parametrize("slippery", [True, False])
def test_outcomes_are_gymnasiums_table_of_transitions(slippery):
    table = gymnasium.make("FrozenLake-v1", is_slippery=slippery).unwrapped.P
    cells, shares, rewards, ends = FrozenLake(1, is_slippery=slippery).outcomes()
    for cell, action in itertools.product(range(16), range(4)):
        if table[cell][action][0][3] and len(table[cell][action]) == 1 and slippery:
            continue  # a cell that an episode has ended in
        theirs, ours = {}, {}
        for share, to, reward, end in table[cell][action]:
            theirs[to, reward, end] = theirs.get((to, reward, end), 0) + share
        for to, share in zip(cells[cell, action], shares, strict=True):
            key = (int(to), float(rewards[to]), bool(ends[to]))
            ours[key] = ours.get(key, 0) + share
        ours = {key: share for key, share in ours.items() if share}
        if slippery or not table[cell][action][0][3] or cell not in (5, 7, 11, 12, 15):
            assert ours == pytest.approx(theirs)


def test_maps_are_seeded_distinct_and_can_be_solved():
    made = stream("frozenlake_maps", n_experiences=6, seed=1)
    described = [task.described for task in made.tasks]
    assert described == [
        t.described for t in stream("frozenlake_maps", n_experiences=6, seed=1).tasks
    ]
    assert len(set(described)) == 6
    other = stream("frozenlake_maps", n_experiences=6, seed=2)
    assert set(described) != {task.described for task in other.tasks}
    assert all(0.5 <= task.reference <= 1 and task.random <= 0.2 for task in made.tasks)
    assert all(
        task.score(task.reference) == 1 and task.score(task.random) == 0 for task in made.tasks
    )
    assert [e.name for e in made.experiences][:2] == ["00_map0", "01_map1"]


def test_the_first_map_can_be_gymnasiums_own():
    made = stream("frozenlake_maps", n_experiences=1, standard=True)
    assert "SFFF/FHFH/FFFH/HFFG" in made.tasks[0].described
    assert made.tasks[0].reference == pytest.approx(0.744, abs=5e-4)
    large = stream("frozenlake_maps", n_experiences=1, standard=True, size=8)
    assert large.tasks[0].reference == pytest.approx(0.913, abs=5e-4)
    assert large.tasks[0].build(1).env.limit == 200


def test_the_map_is_in_the_observation_unless_it_is_hidden():
    shown = stream("frozenlake_maps", n_experiences=2)
    env = shown.tasks[1].build(3)
    seen = env.reset(np.random.default_rng(0))
    rows = shown.tasks[1].described.split()[1].replace("/", "")
    assert seen[:, :16].sum(1).tolist() == [1, 1, 1] and seen[:, 0].all()
    assert seen[0, 16:].tolist() == [float(letter == "H") for letter in rows]
    assert shown.jointly_solvable and not shown.hidden
    hidden = stream("frozenlake_maps", n_experiences=2, context="hidden")
    assert hidden.input_shape == (16,) and hidden.hidden and not hidden.jointly_solvable
    assert stream("frozenlake_maps", n_experiences=1, context="hidden").jointly_solvable


def test_a_share_of_ice_that_leaves_no_map_is_refused():
    with pytest.raises(BadValue, match="no further map of 4 x 4 with a share of 1 ice"):
        stream("frozenlake_maps", frozen=1.0)


def test_an_expert_on_ice_is_cloned(tmp_path):
    settings = {"n_experiences": 1, "n_test": 50, "n_val": 0}
    few = {"objective.demonstrations": 1024, "train.lr": 0.01, "seed": 100, "out": str(tmp_path)}
    done = cl.run("frozenlake_maps", "sft", stream=settings, **few)
    assert done.R[0, 0] > 0.9


# ---------------------------------------------------------------- minigrid_small


def shortest(env):
    """The least steps to a reward, by copies of the environment itself, breadth first."""
    start = copy.deepcopy(env.unwrapped)
    waiting, known = deque([(start, 0)]), {start.hash(size=32)}
    while waiting:
        here, steps = waiting.popleft()
        for action in (0, 1, 2, 3, 5):
            there = copy.deepcopy(here)
            _, reward, terminated, *_ = there.step(action)
            if reward > 0:
                return steps + 1
            held = there.carrying is not None
            state = (there.hash(size=32), held)
            if not terminated and state not in known:
                known.add(state)
                waiting.append((there, steps + 1))
    return None


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_planner_goes_the_shortest_way(k):
    task = stream("minigrid_small").tasks[k]
    env = task.build(2)
    seen, act = env.reset(np.random.default_rng(k)), task.expert(env)
    inner = env.env.vector.envs[0].unwrapped
    inner.gen_obs = lambda: {"image": np.zeros((7, 7, 3), np.uint8)}  # the search sees nothing
    least = shortest(env.env.vector.envs[0]) if k < 2 else None
    limit, steps = inner.max_steps, 0
    del inner.gen_obs
    while True:
        step, steps = env.step(act(seen)), steps + 1
        if step.terminated[0]:
            break
    assert steps == (least or steps) < 25
    assert step.rewards[0] == pytest.approx(1 - 0.9 * steps / limit)


def test_the_planner_finds_back_when_it_is_led_astray():
    for task in stream("minigrid_small").tasks:
        env, rng = task.build(4), np.random.default_rng(7)
        seen, act, solved = env.reset(rng), task.expert(env), np.zeros(4, bool)
        for _ in range(150):
            chosen = np.where(rng.random(4) < 0.4, env.sample(rng), act(seen))
            step = env.step(chosen)
            solved |= step.terminated & (step.rewards > 0)
            seen = step.observations
        assert solved.all()


def test_minigrids_views_are_kept_and_right():
    for id in ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-Unlock-v0"):
        env, rng = make(id, 3), np.random.default_rng(1)
        env.reset(rng)
        for _ in range(60):
            step = env.step(env.sample(rng))
            for row, inner in zip(step.observations, env.vector.envs, strict=True):
                image = type(inner.unwrapped).gen_obs(inner.unwrapped)["image"]
                cells = row.reshape(7, 7, 20)
                for i, part in enumerate(np.split(cells, [11, 17], -1)):
                    assert (part.argmax(-1) == image[..., i]).all() and (part.sum(-1) == 1).all()
        views = [copy.env.seen for copy in env.vector.envs]
        assert views[0] is views[1] and 0 < len(views[0]) < 180


def test_rooms_are_told_by_a_one_hot_unless_it_is_hidden():
    shown = stream("minigrid_small")
    assert shown.input_shape == (983,) and shown.actions.n == 7 and shown.jointly_solvable
    seen = shown.tasks[1].build(2).reset(np.random.default_rng(0))
    assert seen[0, -3:].tolist() == [0, 1, 0]
    hidden = stream("minigrid_small", context="hidden")
    assert hidden.input_shape == (980,) and not hidden.jointly_solvable
    assert [task.name for task in hidden.tasks] == ["Empty-Random-5x5", "DoorKey-5x5", "Unlock"]


def test_minigrid_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(MissingPackage, match="pip install minigrid"):
        stream("minigrid_small")


# ---------------------------------------------------------------- gym


def test_gymnasium_ids_are_padded_to_one_size_and_told_apart():
    made = stream("gym", ids=["CartPole-v1", "Acrobot-v1"])
    assert made.input_shape == (8,) and made.actions.n == 3 and made.jointly_solvable
    first = made.tasks[0].build(2).reset(np.random.default_rng(0))
    assert first[0, 4:].tolist() == [0, 0, 1, 0]
    assert made.tasks[0].random == pytest.approx(22, abs=8)
    assert (made.tasks[0].reference, made.tasks[1].reference) == (475, -100)
    hidden = stream("gym", ids=["CartPole-v1", "Acrobot-v1"], context="hidden")
    assert hidden.input_shape == (6,) and not hidden.jointly_solvable


def test_one_id_needs_no_context_and_references_can_be_given():
    made = stream("gym", ids=["CartPole-v1"], references=[500.0])
    assert made.input_shape == (4,) and made.tasks[0].reference == 500
    assert not isinstance(made.tasks[0].build(1), WithContext)
    same = stream("gym", ids=["CartPole-v1"], references=[500.0], seed=5)
    assert same.tasks[0].random == made.tasks[0].random


def test_a_limit_makes_a_clock():
    made = stream("gym", ids=["CliffWalking-v1"], references=[-13.0], limit=20, n_random=3)
    env, rng = made.tasks[0].build(2), np.random.default_rng(0)
    env.reset(rng)
    ended = [env.step([0, 0]).truncated.all() for _ in range(20)]
    assert ended == [False] * 19 + [True]
    short = stream("gym", ids=["CartPole-v1"], references=[10.0], limit=10, n_random=3)
    assert short.tasks[0].build(1).env.limit == 10


def test_a_module_that_registers_is_imported_for_its_id(tmp_path, monkeypatch):
    code = "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
    more = "max_episode_steps=30, reward_threshold=30"
    (tmp_path / "own_tasks.py").write_text(
        f'{code}gymnasium.register("own/Pole-v0", CartPoleEnv, {more})\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    id = "own_tasks:own/Pole-v0"
    few = {"steps": 64, "n_test": 2, "n_val": 0, "n_random": 2}
    done = cl.run("gym", stream={"ids": [id], **few}, out=str(tmp_path / "runs"), **SMALL)
    assert done.results["evals"][0]["name"] == "00_own_tasks-own-Pole-v0"
    assert done.results["raw"]["return"][-1][0] <= 30
    del gymnasium.registry["own/Pole-v0"]


WRONG = {
    "no environment 'CartPoel-v1'; did you mean 'CartPole-v1'": {"ids": "CartPoel-v1"},
    "stream.ids names no environment": {"ids": ""},
    "stream.ids has CartPole-v1 twice; stream.cycles=2": {"ids": "CartPole-v1,CartPole-v1"},
    "stream.references has 1 numbers for 2 ids": {
        "ids": "CartPole-v1,Acrobot-v1",
        "references": "500",
    },
    "CliffWalking-v1 has no limit of steps per episode: give stream.limit": {
        "ids": "CliffWalking-v1",
        "references": "-13",
    },
    "Pendulum-v1 has no reward_threshold in Gymnasium's registry": {"ids": "Pendulum-v1"},
    "CartPole-v1 takes discrete actions, Pendulum-v1 continuous ones": {
        "ids": "CartPole-v1,Pendulum-v1",
        "references": "500,-150",
    },
    "Pendulum-v1 takes 1 numbers from [-2.0] to [2.0], MountainCarContinuous-v0 1 numbers": {
        "ids": "Pendulum-v1,MountainCarContinuous-v0",
        "references": "-150,90",
    },
    "task CartPole-v1 can't be scored: random policy": {"ids": "CartPole-v1", "references": "1"},
    "nowhere:Task-v0 can't be made: ModuleNotFoundError": {"ids": "nowhere:Task-v0"},
    "CartPole-v1 has no expert to learn from": {"ids": "CartPole-v1", "objective": "cloning"},
    "objective=dqn chooses among actions, gym has continuous ones": {
        "ids": "Pendulum-v1",
        "references": "-150",
        "objective": "dqn",
        "model": "actor_critic",
    },
    "q_network values a number of actions, the stream has 1 continuous": {
        "ids": "Pendulum-v1",
        "references": "-150",
        "model": "q_network",
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_can_not_be_is_refused_in_one_line_before_training(message, tmp_path, capsys):
    own = ("objective", "model")
    keys = [f"{k if k in own else 'stream.' + k}={v}" for k, v in WRONG[message].items()]
    with pytest.raises(SystemExit) as stop:
        main(["run", "gym", "naive", *keys, "stream.n_random=3", f"out={tmp_path}"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and message in said[0]
    assert not list(tmp_path.iterdir())


def test_dqn_on_continuous_actions_is_refused_with_its_own_network_too():
    with pytest.raises(BadValue, match="1 continuous actions"):
        cl.run("gym", stream={"ids": ["Pendulum-v1"], "references": [-150.0]}, objective="dqn")


def test_ppo_learns_continuous_ids(tmp_path):
    settings = {"ids": ["Pendulum-v1"], "references": [-150.0], "steps": 128, "n_test": 2}
    done = cl.run("gym", stream=settings | {"n_random": 3}, out=str(tmp_path), **SMALL)
    assert done.results["status"] == "finished" and np.isfinite(done.R).all()


def test_meta_world_that_is_not_installed_is_refused_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(SystemExit) as stop:
        main(["run", "metaworld_cw10", "naive", f"out={tmp_path}"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1
    assert "pip install cl-simulator[metaworld]" in said[0]


# ---------------------------------------------------------------- environments that fail


class Switch(gymnasium.Env):
    """A number shows which of two actions pays; 5 steps. Goes wrong at the 41st step of its life,
    which only environments in training reach, as long as `broken` says how."""

    broken = None

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        self.action_space = gymnasium.spaces.Discrete(2)
        self.life = 0

    def _shown(self):
        self.right = int(self.np_random.integers(2))
        return np.array([self.right * 2 - 1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._shown(), {}

    def step(self, action):
        self.life += 1
        reward, seen = float(action == self.right), self._shown()
        if self.life == 41 and type(self).broken is not None:
            if type(self).broken == "raises":
                raise RuntimeError("the motor\nis hot")
            if type(self).broken == "observation":
                seen = seen * np.nan
            else:
                reward = {"reward": np.nan, "infinite": np.inf}[type(self).broken]
        return seen, reward, False, False, {}


class Breaks(Switch):
    """The same, under a name of its own."""


@pytest.fixture
def ids():
    for name, kind in (("Switch-v0", Switch), ("Breaks-v0", Breaks)):
        gymnasium.register(name, kind, max_episode_steps=5, reward_threshold=4.5)
    yield ["Switch-v0", "Breaks-v0"]
    Breaks.broken = None
    for name in ("Switch-v0", "Breaks-v0"):
        del gymnasium.registry[name]


def failing(ids, out):
    keys = [f"stream.ids={','.join(ids)}", "stream.steps=256", "stream.n_test=4", "stream.n_val=0"]
    keys += [f"{name}={value}" for name, value in SMALL.items()]
    with pytest.raises(SystemExit) as stop:
        main(["run", "gym", "naive", *keys, f"out={out}"])
    return stop.value.code


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "raised RuntimeError at step 1 of its episode: the motor is hot"),
        ("observation", "returned an observation or a reward that is nan or inf, at step 1 of its"),
        ("reward", "returned an observation or a reward that is nan or inf, at step 1 of its"),
        ("infinite", "returned an observation or a reward that is nan or inf, at step 1 of its"),
    ],
)
def test_an_environment_that_fails_ends_the_run_in_one_line(how, message, ids, tmp_path, capsys):
    Breaks.broken = how
    assert failing(ids, tmp_path) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"cl: Breaks-v0: environment 0 {message}")
    assert sum(line.startswith("cl: ") for line in said) == 1 and "Traceback" not in str(said)
    (results,) = tmp_path.glob("gym/*/seed0/results.json")
    held = json.loads(results.read_text())
    assert held["status"] == "failed" and held["R"][0][0] is not None
    assert len(list((results.parent / "checkpoint").iterdir())) == 1


def test_a_run_goes_on_once_its_environment_is_repaired(ids, tmp_path, capsys):
    Breaks.broken = "raises"
    assert failing(ids, tmp_path / "failed") == 1
    (results,) = (tmp_path / "failed").glob("gym/*/seed0/results.json")
    Breaks.broken = None
    with pytest.raises(SystemExit) as stop:
        main(["run", "--resume", str(results.parent)])
    assert stop.value.code == 0
    assert failing(ids, tmp_path / "whole") == 0
    (whole,) = (tmp_path / "whole").glob("gym/*/seed0/results.json")
    left, right = (json.loads(path.read_text()) for path in (results, whole))
    assert left["status"] == "finished" and left["R"] == right["R"] and left["raw"] == right["raw"]
    capsys.readouterr()


def test_an_environment_that_fails_for_the_random_policy_is_no_task(ids):
    class Never(Switch):
        def step(self, action):
            raise ValueError("out of order")

    gymnasium.register("Never-v0", Never, max_episode_steps=5, reward_threshold=4.5)
    with pytest.raises(DataError, match="Never-v0: environment 0 raised ValueError at step 1"):
        stream("gym", ids=["Never-v0"])
    del gymnasium.registry["Never-v0"]


def test_an_environment_that_begins_with_nan_is_named(ids):
    class Begins(Switch):
        def _shown(self):
            return np.array([np.nan], np.float32)

    gymnasium.register("Begins-v0", Begins, max_episode_steps=5, reward_threshold=4.5)
    with pytest.raises(DataError, match="Begins-v0: environment 0 returned an observation"):
        stream("gym", ids=["Begins-v0"])
    del gymnasium.registry["Begins-v0"]


def test_an_unknown_id_is_an_unknown_name():
    with pytest.raises(UnknownName, match="MiniGrid-DoorKey-5x5-v0"):
        stream("gym", ids=["MiniGrid-DorKey-5x5-v0"])


# ---------------------------------------------------------------- what is learned (slow)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101, 102])
def test_ppo_solves_gymnasiums_frozen_lake(seed, tmp_path):
    settings = {"n_experiences": 1, "standard": True, "n_test": 1000}
    done = cl.run("frozenlake_maps", stream=settings, seed=seed, out=str(tmp_path))
    assert done.results["raw"]["return"][-1][0] >= 0.65


@pytest.mark.slow
def test_ppo_solves_door_key(tmp_path):
    settings = {"ids": ["MiniGrid-DoorKey-5x5-v0"], "references": [0.9645], "n_test": 100}
    done = cl.run("gym", stream=settings, seed=100, out=str(tmp_path))
    assert done.results["raw"]["return"][-1][0] >= 0.85


@pytest.mark.slow
def test_one_policy_solves_all_maps_that_it_is_shown_and_not_those_it_is_not(tmp_path):
    keys = {"seed": 100, "out": str(tmp_path)}
    made = stream("frozenlake_maps", n_experiences=3, seed=100)
    alone = []
    for task in made.tasks:
        fields = {"steps": 65536, "n_test": 200, "n_val": 0, "seed": 100}
        single = env_stream(f"single_{task.name}", [task], defaults=made.defaults, **fields)
        alone.append(cl.run(single, **keys).R[0, 0])
    assert made.jointly_solvable
    settings = {"n_experiences": 3, "n_test": 200}
    joint = cl.run("frozenlake_maps", "joint", stream=settings, **keys)
    assert joint.R[-1].mean() >= 0.9 * np.mean(alone)
    blind = cl.run("frozenlake_maps", "joint", stream=settings | {"context": "hidden"}, **keys)
    assert blind.R[-1].mean() < 0.9 * np.mean(alone)
