"""Streams of classic control: tasks, contexts, experts, constants of scores; slow: what is learned.

Returns here are measured by a player of the tests' own.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cl
from cl.cli import main
from cl.env_stream import env_stream
from cl.environments import CartPole
from cl.objectives._acting import Players
from streams.cartpole_actions import cartpole_actions
from streams.cartpole_physics import PHYSICS, USUAL, cartpole_physics
from streams.classic_mixed import KINDS, classic_mixed

STREAMS = [cartpole_actions, cartpole_physics, classic_mixed]
ALL = {
    "cartpole_actions": {},
    "cartpole_physics": {},
    "classic_mixed": {"tasks": list(KINDS)},
}
EVERY = [
    (make, k, context)
    for make, n in zip(STREAMS, (2, len(PHYSICS), len(KINDS)), strict=True)
    for k in range(n)
    for context in ("shown", "hidden")
]


def made(make, **settings):
    return make(**ALL[make.__name__] | {"steps": 64} | settings)


def returns(env, act, seed=0):
    """The return of the first episode of each environment."""
    seen = env.reset(np.random.default_rng(seed))
    sums, running = np.zeros(env.n), np.ones(env.n, bool)
    while running.any():
        step = env.step(act(seen))
        sums += step.rewards * running
        running &= ~(step.terminated | step.truncated)
        seen = step.observations
    return sums


def near(sums, expected, spread=5):
    """Whether a mean is as expected, within so many standard errors (and rounding)."""
    return abs(sums.mean() - expected) < spread * sums.std() / len(sums) ** 0.5 + 0.06


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("make", "names", "shown", "n_actions"),
    [
        (cartpole_actions, ["normal", "exchanged"], (5, 4), 2),
        (cartpole_physics, list(PHYSICS), (9, 4), 2),
        (classic_mixed, list(KINDS), (10, 6), 3),
    ],
)
def test_tasks_have_one_size_with_and_without_context(make, names, shown, n_actions):
    for context, size in zip(("shown", "hidden"), shown, strict=True):
        stream = made(make, context=context)
        assert [t.name for t in stream.tasks] == names
        assert stream.input_shape == (size,) and stream.hidden == (context == "hidden")
        assert (stream.actions.n, stream.actions.continuous) == (n_actions, False)
        assert [len(e.train) for e in stream.experiences] == [64] * len(names)
        assert [len(ev.test) for ev in stream.evals] == [20] * len(names)
        assert [len(ev.val) for ev in stream.evals] == [10] * len(names)


@pytest.mark.parametrize("make", STREAMS)
def test_the_hash_changes_with_what_tasks_are_and_with_nothing_else(make):
    base = made(make).content_hash()
    assert made(make).content_hash() == base
    fewer = {"tasks": ["cartpole"]} if make is classic_mixed else {"n_experiences": 1}
    changes = [{"steps": 65}, {"context": "hidden"}, {"n_test": 3}, {"n_val": 0}, {"seed": 1}]
    for change in [*changes, fewer]:
        assert made(make, **change).content_hash() != base, change


@pytest.mark.parametrize("make", [cartpole_physics, classic_mixed])
def test_a_seeded_order_holds_the_same_tasks(make):
    fixed, seeded = made(make), [made(make, order="seeded", seed=s) for s in range(4)]
    names = [[t.name for t in stream.tasks] for stream in seeded]
    assert all(sorted(n) == sorted(t.name for t in fixed.tasks) for n in names)
    assert len({tuple(n) for n in names}) > 1
    assert [t.name for t in made(make, order="seeded", seed=2).tasks] == names[2]


def test_solvability_is_declared():
    assert made(cartpole_actions).jointly_solvable
    assert not made(cartpole_actions, context="hidden").jointly_solvable
    assert made(cartpole_actions, context="hidden", n_experiences=1).jointly_solvable
    for make in (cartpole_physics, classic_mixed):
        for context in ("shown", "hidden"):
            assert made(make, context=context).jointly_solvable


def test_exchanged_actions_do_the_opposite():
    normal, exchanged = (task.build(6) for task in made(cartpole_actions).tasks)
    start = [env.reset(np.random.default_rng(0)) for env in (normal, exchanged)]
    assert (start[0][:, 4] == 1).all() and (start[1][:, 4] == -1).all()
    assert (start[0][:, :4] == start[1][:, :4]).all()
    push = np.array([0, 1, 0, 1, 1, 0])
    left, right = normal.step(push).observations, exchanged.step(1 - push).observations
    assert (left[:, :4] == right[:, :4]).all()


def test_the_context_of_physics_is_their_logarithms():
    contexts = []
    for task in made(cartpole_physics).tasks:
        seen = task.build(3).reset(np.random.default_rng(0))
        contexts.append(seen[0, 4:])
        physics = USUAL | PHYSICS[task.name][0]
        expected = [np.log(physics[key] / USUAL[key]) / np.log(20) for key in USUAL]
        np.testing.assert_allclose(seen[:, 4:], [expected] * 3, rtol=1e-6)
    assert (contexts[0] == 0).all() and len({tuple(c) for c in contexts}) == len(PHYSICS)
    assert np.abs(contexts).max() <= 1


def test_a_task_has_the_physics_that_it_is_named_for():
    for task in made(cartpole_physics, context="hidden").tasks:
        ours = task.build(4)
        plain = CartPole(4, **PHYSICS[task.name][0])
        start = [env.reset(np.random.default_rng(0)) for env in (ours, plain)]
        push = np.array([0, 1, 1, 0])
        steps = [env.step(push).observations for env in (ours, plain)]
        assert (start[0] == start[1]).all() and (steps[0] == steps[1]).all()


def test_mixed_tasks_are_padded_and_say_which_they_are():
    sizes = {"cartpole": 4, "acrobot": 6, "mountain_car": 2, "pendulum": 3}
    for k, task in enumerate(made(classic_mixed).tasks):
        seen = task.build(2).reset(np.random.default_rng(0))
        assert (seen[:, sizes[task.name] : 6] == 0).all()
        assert (seen[:, : sizes[task.name]] != 0).any()
        assert (seen[:, 6:] == np.eye(4)[k]).all()
    (car,) = made(classic_mixed, tasks=["mountain_car"], context="hidden").tasks
    assert car.build(2).reset(np.random.default_rng(0)).shape == (2, 6)
    (one,) = made(classic_mixed, tasks=["pendulum"]).tasks  # the same place, whoever is beside it
    assert (one.build(1).reset(np.random.default_rng(0))[0, 6:] == [0, 0, 0, 1]).all()


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(("make", "k", "context"), EVERY)
def test_an_expert_reaches_the_reference_through_the_wrappers(make, k, context):
    task = made(make, context=context).tasks[k]
    env = task.build(200)
    sums = returns(env, task.expert(env))
    assert near(sums, task.reference), (task.name, sums.mean())
    assert task.score(task.reference) == 1 and task.score(task.random) == 0


@pytest.mark.parametrize(("make", "k"), [(make, k) for make, k, c in EVERY if c == "shown"])
def test_the_random_policys_constant_is_that_of_a_fresh_simulation(make, k):
    task = made(make).tasks[k]
    env, rng = task.build(500), np.random.default_rng(7)
    sums = returns(env, lambda seen: rng.integers(env.n_actions, size=env.n))
    assert near(sums, task.random), (task.name, sums.mean())


def test_what_is_right_in_one_physics_is_not_simply_right_in_others():
    tasks = {task.name: task for task in made(cartpole_physics).tasks}

    def crossed(of, other):
        env = tasks[other].build(50)
        return tasks[other].score(returns(env, tasks[of].expert(env)).mean())

    assert 0.8 < crossed("usual", "long") < 0.98 and 0.3 < crossed("usual", "short") < 0.7
    assert crossed("long", "short") < 0.2 and crossed("short", "long") < 0.6


def test_learned_from_is_a_share_of_the_pendulums_rewards_and_reported_all():
    stream = made(classic_mixed, tasks=["cartpole", "pendulum"])
    device = torch.device("cpu")
    rewards, returned = {}, {}
    for k, task in enumerate(stream.tasks):
        loop = SimpleNamespace(seed=0, experience=stream.experiences[k], device=device, env_steps=0)
        loop.stream = stream
        players = Players(loop, stream.experiences[k].train, 2)
        steps = players.steps(200, lambda x, t: torch.full((2,), t % 3))
        rewards[task.name], returned[task.name] = steps.rewards, players.returned
    assert (rewards["cartpole"] == 1).all() and max(returned["cartpole"]) > 5
    sums = 10 * rewards["pendulum"].sum(0).numpy()
    np.testing.assert_allclose(returned["pendulum"], sums, rtol=1e-4)


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("stream", "key", "said"),
    [
        ("cartpole_physics", "stream.n_experiences=6", "'6'"),
        ("cartpole_physics", "stream.context=half", "shown"),
        ("cartpole_physics", "stream.gravity=3", "stream.gravity"),
        ("cartpole_actions", "stream.n_experiences=3", "'3'"),
        ("classic_mixed", "stream.tasks=cartpole,acrobat", "acrobot"),
        ("classic_mixed", "stream.tasks=cartpole,cartpole", "each at most once"),
        ("classic_mixed", "stream.steps=0", "stream.steps must be int ≥ 1"),
    ],
)
def test_a_bad_key_ends_in_one_line(stream, key, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", stream, "naive", key, f"out={tmp_path}"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and said in err, err
    assert not list(tmp_path.iterdir())


def test_cycles_bring_every_task_back(tmp_path):
    done = cl.run(
        "cartpole_actions",
        stream={"steps": 64, "n_test": 2, "n_val": 0, "cycles": 3},
        objective={"passes": 1},
        train={"batch_size": 32},
        out=str(tmp_path),
    )
    names = [e["name"] for e in done.results["experiences"]]
    assert names == [f"{i:02d}_{('normal', 'exchanged')[i % 2]}" for i in range(6)]
    assert [ev["learned_at"] for ev in done.results["evals"]] == [[0, 2, 4], [1, 3, 5]]
    assert len(done.R) == 6


# ---------------------------------------------------------------- what is learned


def learned(name, tmp_path, strategy="naive", **settings):
    """A run without evaluations on the way."""
    return cl.run(name, strategy, **{"eval.every": None, "out": str(tmp_path)} | settings)


def alone(stream, k):
    """The stream's k-th task as a stream, with the same defaults."""
    steps = len(stream.experiences[k].train)
    defaults = {key: v for key, v in stream.defaults.items() if not key.endswith("eval.every")}
    return env_stream(
        f"{stream.name}_{k}",
        [stream.tasks[k]],
        steps=steps,
        n_test=20,
        n_val=0,
        seed=stream.seed,
        defaults=defaults,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_p13_ppo_balances_the_pole_within_100_000_steps(seed, tmp_path):
    task = {"n_experiences": 1, "steps": 100_000, "n_test": 20, "n_val": 0}
    done = learned("cartpole_actions", tmp_path, seed=seed, stream=task)
    assert done.results["raw"]["return"][0][0] >= 450


@pytest.mark.slow
def test_p13_ppo_swings_the_acrobot_up(tmp_path):
    task = {"tasks": ["acrobot"], "steps": 131_072, "n_test": 20, "n_val": 0}
    done = learned("classic_mixed", tmp_path, stream=task)
    assert done.results["raw"]["return"][0][0] >= -110


@pytest.mark.slow
@pytest.mark.parametrize("make", STREAMS)
def test_cloning_learns_every_task(make, tmp_path):
    stream = make(n_val=0)
    done = learned(stream, tmp_path, "sft")
    for i, row in enumerate(done.R):
        assert row[i] >= 0.9, (stream.tasks[i].name, row)


@pytest.mark.slow
@pytest.mark.parametrize("make", STREAMS)
def test_joint_training_solves_what_is_declared_solvable(make, tmp_path):
    stream = make(n_val=0)
    assert stream.jointly_solvable and not stream.hidden
    singles = [learned(alone(stream, k), tmp_path).R[0][0] for k in range(len(stream))]
    joint = learned(stream, tmp_path, "joint").R[-1]
    assert np.mean(joint) >= 0.9 * np.mean(singles), (joint, singles)
