"""Strategies on environments: which run there, that they keep the contract, and their numbers."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, weights

import cl
from cl.cloned import said
from cl.config import REQUIRED
from cl.env_stream import EnvTask, env_stream
from cl.environments import Pendulum, WithContext
from cl.errors import BadValue
from cl.folder import comparable
from cl.importance import log_likelihood
from cl.loop import Loop
from cl.models import build
from cl.registry import entries, find
from cl.runner import resume
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.strategy import Strategy

NAMES = list(entries("strategies"))
ACTING = [n for n in NAMES if "rl" in (find("strategies", n).domains or ("rl",))]
REFUSING = [n for n in NAMES if n not in ACTING]
NEUTRAL = {  # settings with which a strategy is naive
    "cloning_replay": {"weight": 0.0},
    "continual_backprop": {"rho": 0.0},
    "cpo": {"lam": 0.0},
    "distill": {"lam": 0.0},
    "ewc": {"lam": 0.0},
    "fpf": {"steps": 0},
    "hft": {"ratio": 0.0},
    "k_fpf": {"k": 0},
    "l2_init": {"lam": 0.0},
    "l2sp": {"lam": 0.0},
    "mas": {"lam": 0.0},
    "online_ewc": {"lam": 0.0},
    "rft": {},
    "rwalk": {"lam": 0.0},
    "shrink_perturb": {"lam": 1.0, "noise": 0.0},
    "si": {"c": 0.0},
    "weight_average": {"alpha": 1.0},
}
OBJECTIVE = {"ppo": {"n_envs": 4, "n_steps": 16, "passes": 2}}
OBJECTIVE["dqn"] = {"n_envs": 4, "every": 8, "updates": 1, "starts": 16, "target_every": 5}
OBJECTIVE["cloning"] = {"demonstrations": 64}


class Silent:
    """Stands in for the board, whose figures take longer than these runs."""

    prequential_at = -1

    def __init__(self, *args):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: {}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("cl.runner.Board", Silent)


def run(name, out, objective="ppo", **settings):
    """Two experiences of 128 steps."""
    stream = {"steps": 128, "n_test": 2, "n_val": 0}
    if name == "packnet":
        stream["task_labels"] = True
    if name == "sft" or (name, objective) == ("replay", "ppo"):
        objective = "cloning"
    given = {} if name in ("sft", "rft") else {"objective": objective}
    given |= {f"objective.{k}": v for k, v in OBJECTIVE[objective].items()}
    base = {"stream": stream, "model": {"hidden": [8, 8]}, "train": {"batch_size": 32, "epochs": 1}}
    base |= {"eval.every": None, "threads": 1, "out": str(out)} | given
    strategy = settings.pop("strategy", {"steps": 3} if name in ("fpf", "k_fpf") else {})
    return cl.run("cartpole_actions", name, **(base | settings), strategy=strategy)


def keeps_the_contract(name, tmp_path, objective="ppo"):
    first = run(name, tmp_path / "a", objective)
    kept = tmp_path / "kept"
    shutil.copytree(first.dir, kept)
    probes = ["weight_norm", "dormant_units", "effective_rank"]
    watched = run(name, tmp_path / "b", objective, **{"eval.every": 1, "probes": probes})
    assert_same_weights(weights(first.model), weights(watched.model))
    assert first.results["R"] == watched.results["R"]
    again = resumed(kept)
    left, right = comparable(first.results), comparable(again.results)
    assert [key for key in left if left[key] != right[key]] == []
    assert_same_weights(weights(first.model), weights(again.model))
    assert all(np.isfinite(row).all() for row in first.R[1:])
    return first


def resumed(folder):
    """Go on after the first experience."""
    shutil.rmtree(sorted((folder / "checkpoint").iterdir())[-1])
    results = folder / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    return resume(folder)


DEFAULT = ("agem", "cloning_replay", "packnet")


@pytest.mark.parametrize(
    "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in ACTING]
)
def test_a_strategy_keeps_the_contract_in_environments(name, tmp_path):
    first = keeps_the_contract(name, tmp_path)
    assert first.results["cost"]["updates"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agem", "cloning_replay", "distill", "ewc", "packnet", "replay"])
def test_a_strategy_keeps_the_contract_with_values_of_actions(name, tmp_path):
    keeps_the_contract(name, tmp_path, "dqn")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ACTING if n not in ("sft", "rft", "packnet")])
def test_a_strategy_runs_beside_cloning(name, tmp_path):
    done = run(name, tmp_path, "cloning")
    assert np.isfinite(done.R[-1]).all()


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_are_naive_bit_for_bit(name):
    ends = []
    for strategy in (made("naive"), made(name, **NEUTRAL[name])):
        loop = loop_of([strategy], poles(64))
        loop.run()
        ends.append(weights(loop.model))
    assert_same_weights(*ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ACTING) - set(NEUTRAL) - {"joint", "cumulative"}))
def test_every_strategy_has_a_neutral_value_or_a_first_experience_like_naives(name, tmp_path):
    if name in ("naive", "sft", "replay", "packnet"):
        pytest.skip("not to be compared")
    assert run(name, tmp_path).results["R"][0] == run("naive", tmp_path).results["R"][0]


@pytest.mark.parametrize("name", REFUSING)
def test_other_strategies_refuse_environments_in_one_line(name, tmp_path):
    entry = find("strategies", name)
    if any(p.default is REQUIRED for p in entry.params().values()):
        pytest.skip("needs settings")
    with pytest.raises(BadValue, match=f"{name} is made for streams of the domain") as refusal:
        cl.run("cartpole_actions", name, out=str(tmp_path))
    message = str(refusal.value)
    assert "\n" not in message and "cartpole_actions is of the domain rl" in message
    other = entry.load().instead.get("rl")
    assert other is None or (other in ACTING and f"where {other} does its job" in message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("replay", {"objective": "ppo"}, "cloning_replay does its job"),
        ("packnet", {}, "packnet needs task_id_train"),
        ("fpf", {"objective": "dqn"}, "has values of actions; give ppo or cloning"),
        ("k_fpf", {"objective": "dqn"}, "has values of actions; give ppo or cloning"),
        ("fpf", {"strategy": {"lam": 1.0}}, "logits are stored for classes"),
        ("cloning_replay", {"objective": "dqn", "strategy": {"critic": 1.0}}, "needs a critic"),
        ("cloning_replay", {"objective": "cloning", "strategy": {"critic": 1.0}}, "needs a critic"),
        ("distill", {"objective": "dqn", "strategy": {"T": 2.0}}, "chooses among actions"),
        ("ewc", {"strategy": {"lam": -1.0}}, "strategy.lam"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(name, settings, said, tmp_path):
    with pytest.raises(BadValue, match=said) as refusal:
        cl.run("cartpole_actions", name, out=str(tmp_path), **settings)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


# -- loops without a record ------------------------------------------------------------------------


def swings(steps=64, labels=False):
    """Two pendulums of different weight, their mass in the observation; continuous actions."""
    tasks = []
    for mass in (1.0, 2.0):

        def made(n, mass=mass):
            return WithContext(Pendulum(n, mass=mass, limit=20), [mass])

        def expert(env):
            return lambda seen: np.clip(-seen[:, 1:2] - seen[:, 2:3], -2, 2)

        tasks.append(EnvTask(f"mass {mass:g}", made, -100.0, 0.0, expert))
    stream = env_stream("swings", tasks, steps=steps, n_test=2, n_val=0, seed=0)
    return stream.labelled() if labels else stream


def poles(steps=128, labels=False):
    stream = find("streams", "cartpole_actions").load()(steps=steps, n_test=1, n_val=0)
    return stream.labelled() if labels else stream


def loop_of(strategies, stream=None, objective="ppo", model=None, seed=0, **train):
    """A loop; model: settings of its builder, options: those of the objective."""
    seed_globals(seed)
    stream = stream or poles()
    options = {**OBJECTIVE[objective], **train.pop("options", {})}
    name = "q_network" if objective == "dqn" else "actor_critic"
    settings = {"hidden": [8, 6], **(model or {})}
    return Loop(
        stream=stream,
        strategies=strategies,
        model=build(name, stream.input_shape, settings, actions=stream.actions),
        objective=find("objectives", objective).load()(**options),
        train=Train(**{"epochs": 1, "batch_size": 32, "optimizer": "adam", "lr": 0.01} | train),
        evaluation=Eval(),
        seed=seed,
        device=torch.device("cpu"),
    )


def made(name, **settings):
    return find("strategies", name).load()(**settings)


class Diary(Strategy):
    """Calls what it is given at hooks: `Diary(after_update=function)`."""

    def __init__(self, **calls):
        for name, call in calls.items():
            setattr(self, f"_{name}", call)

    def after_training_exp(self, loop):
        getattr(self, "_after_training_exp", lambda loop: None)(loop)

    def before_rollout(self, loop):
        getattr(self, "_before_rollout", lambda loop: None)(loop)

    def before_backward(self, loop):
        getattr(self, "_before_backward", lambda loop: None)(loop)

    def before_update(self, loop):
        getattr(self, "_before_update", lambda loop: None)(loop)

    def after_update(self, loop):
        getattr(self, "_after_update", lambda loop: None)(loop)


def added(loop):
    """[(name, value)] of the loss terms that strategies will add."""
    found, add_loss = [], loop.add_loss

    def add(name, value):
        found.append((name, float(value.detach())))
        add_loss(name, value)

    loop.add_loss = add
    return found


def tower(state, x, side="actor"):
    """Features [n, D] in numpy, float64, of an actor-critic's weights."""
    h, k = np.asarray(x, np.float64), 0
    while f"backbone.layers.{k}.{side}.weight" in state:
        w, b = (
            state[f"backbone.layers.{k}.{side}.{p}"].double().numpy() for p in ("weight", "bias")
        )
        h, k = np.tanh(h @ w.T + b), k + 1
    return h


def head(state, h, name="policy"):
    w, b = (state[f"{name}.{p}"].double().numpy() for p in ("weight", "bias"))
    return h @ w.T + b


def log_softmax(scores):
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


# -- importance ------------------------------------------------------------------------------------


def gradients_by_row(loop, value):
    """[{name: d value / d theta, float64}] of value(scores [1, A], y [1], log_std), row by row."""
    table, model, found = loop.shown, copy.deepcopy(loop.model).double(), []
    for x, y in zip(table.column("x"), table.column("y"), strict=True):
        model.zero_grad()
        value(model(x[None].double()), y[None], model.log_std).backward()
        found.append(
            {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in named(model)}
        )
    return found


def named(model):
    return list(model.named_parameters())


def gaussian(scores, y, log_std):
    z = (y.double() - scores) / log_std.exp()
    return -(z.square() / 2 + log_std + 0.5 * np.log(2 * np.pi)).sum()


VALUES = {
    "ppo": lambda scores, y, log_std: scores.log_softmax(1)[0, y[0]],
    "cloning": lambda scores, y, log_std: scores.log_softmax(1)[0, y[0]],
    "dqn": lambda scores, y, log_std: scores[0, y[0]],
    "continuous": gaussian,
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ["ewc", "online_ewc"])
def test_the_fisher_is_the_mean_square_of_single_rows_gradients(kind, name):
    strategy = made(name, fisher_samples=None)
    stream = swings() if kind == "continuous" else poles(64)
    objective = "ppo" if kind == "continuous" else kind
    checked = []

    def compare(loop):
        if loop.experience.index == 0:
            rows = gradients_by_row(loop, VALUES[kind])
            checked.append(len(rows))
            for n, held in strategy.F.items():
                expected = torch.stack([row[n].square() for row in rows]).mean(0)
                torch.testing.assert_close(held.double(), expected, rtol=1e-3, atol=1e-8)
            assert any(held.any() for held in strategy.F.values())
            assert "log_std" not in strategy.F or strategy.F["log_std"].all()

    loop_of([strategy, Diary(after_training_exp=compare)], stream, objective).run()
    assert checked == [64]


def test_a_critic_of_its_own_is_free_of_the_penalty():
    strategy = made("ewc", lam=100.0)
    loop_of([strategy]).run()
    critic = [n for n in strategy.F if ".critic." in n or n.startswith("value.")]
    assert len(critic) == 6 and not any(strategy.F[n].any() for n in critic)
    assert strategy.F["backbone.layers.0.actor.weight"].any()


@pytest.mark.parametrize("stream", [poles, swings])
def test_a_sampled_fisher_draws_actions_from_the_policy(stream):
    strategy = made("ewc", fisher="sampled", fisher_samples=None)
    loop = loop_of([strategy], stream(64))
    loop.run()
    assert all(held.isfinite().all() for held in strategy.F.values())
    assert strategy.F["policy.bias"].all()


def test_the_sampled_fisher_of_a_gaussian_is_that_of_its_mean():
    """d log p / d bias of the last layer is (y - mean) / sigma^2, whose square is 1 / sigma^2."""
    strategy, found = made("ewc", fisher="sampled", fisher_samples=None), []

    def look(loop):
        found.append((float(loop.model.log_std.detach().exp()), copy.deepcopy(strategy.F)))

    stream = swings(steps=1024)
    stream.experiences.pop()
    stream.evals.pop()
    options = {"passes": 1, "n_envs": 16, "n_steps": 64}
    loop_of([strategy, Diary(after_training_exp=look)], stream, options=options).run()
    (sigma, fisher), *_ = found
    assert float(fisher["policy.bias"]) == pytest.approx(1 / sigma**2, rel=0.15)
    assert float(fisher["log_std"]) == pytest.approx(2.0, rel=0.3)


@pytest.mark.parametrize("kind", ["ppo", "continuous"])
def test_mas_is_the_mean_gradient_of_the_squared_scores(kind):
    strategy, checked = made("mas", samples=None), []

    def compare(loop):
        if loop.experience.index == 0:
            rows = gradients_by_row(loop, lambda scores, *_: scores.square().sum())
            for n, held in strategy.Omega.items():
                expected = torch.stack([row[n].abs() for row in rows]).mean(0)
                torch.testing.assert_close(held.double(), expected, rtol=1e-3, atol=1e-7)
            checked.append(True)

    stream = swings() if kind == "continuous" else poles(64)
    loop_of([strategy, Diary(after_training_exp=compare)], stream).run()
    assert checked


def test_the_likelihood_of_classes_is_what_it_was():
    class Classes:
        valued = False

        def restricted(self, scores, task_id):
            return scores

    scores, y = torch.randn(1, 5), torch.tensor([3])
    expected = scores.log_softmax(1)[0, 3]
    torch.testing.assert_close(log_likelihood(Classes())(scores, y, None), expected)


# -- cloning_replay --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ppo", "continuous", "cloning"])
def test_cloning_replay_adds_the_divergence_from_what_was_said(kind):
    critic = 0.0 if kind == "cloning" else 0.3
    strategy = made("cloning_replay", size=40, batch_size=16, weight=0.7, critic=critic)
    ends, seen = [], []

    def look(loop):
        if strategy.drawn is not None:
            seen.append((weights(loop.model), strategy.drawn))

    stream = swings() if kind == "continuous" else None
    diary = Diary(
        before_backward=look, after_training_exp=lambda loop: ends.append(weights(loop.model))
    )
    objective = "cloning" if kind == "cloning" else "ppo"
    loop = loop_of([strategy, diary], stream, objective)
    terms = added(loop)
    loop.run()
    buffer = loop.buffers["cloning_replay.0"]
    assert len(buffer) == 40 and len(terms) == len(seen) * (2 if critic else 1) > 1
    then = ends[0]
    x = buffer.rows["x"].numpy()
    scores = head(then, tower(then, x))
    np.testing.assert_allclose(buffer.rows["scores"].numpy(), scores, atol=1e-5)
    if kind != "continuous":
        assert np.array_equal(buffer.rows["y"].numpy(), scores.argmax(1))
    for k, (state, rows) in enumerate(seen):
        old, new = (head(s, tower(s, rows["x"].numpy())) for s in (then, state))
        expected = 0.7 * divergence((then, old), (state, new))
        if not critic:
            assert terms[k] == ("cloning_replay", pytest.approx(expected, abs=1e-6))
            continue
        assert terms[2 * k] == ("cloning_replay", pytest.approx(expected, abs=1e-6))
        v = [head(s, tower(s, rows["x"].numpy(), "critic"), "value")[:, 0] for s in (then, state)]
        expected = 0.3 * ((v[0] - v[1]) ** 2).mean() / 2
        assert terms[2 * k + 1][1] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_cloning_replay_of_values_is_their_mean_square_distance():
    strategy, expected = made("cloning_replay", batch_size=8, weight=0.5), []

    def look(loop):
        if strategy.drawn is not None:
            new = loop.model(strategy.drawn["x"]).detach().double().numpy()
            gap = new - strategy.drawn["scores"].double().numpy()
            expected.append(0.5 * (gap**2).mean())

    loop = loop_of([strategy, Diary(before_backward=look)], objective="dqn")
    terms = added(loop)
    loop.run()
    assert len(expected) > 2 and [v for _, v in terms] == pytest.approx(expected, rel=1e-4)


def three(labels=False):
    """Three experiences: normal, exchanged, and normal again, known as the task that it was."""
    stream = poles(64)
    first, second = stream.experiences
    again = replace(first, index=2, name="02_again")
    evals = [replace(e, learned_at=(j, 2) if j == 0 else (j,)) for j, e in enumerate(stream.evals)]
    stream = replace(stream, experiences=[first, second, again], evals=evals)
    return stream.labelled() if labels else stream


def test_every_past_experience_has_an_equal_share_of_the_stored_rows():
    strategy, seen = made("cloning_replay", size=20, batch_size=11), []

    def look(loop):
        if loop.experience.index == 2:
            seen.append([int((strategy.drawn["x"][:, 4] == sign).sum()) for sign in (-1, 1)])

    loop_of([strategy, Diary(before_backward=look)], three()).run()
    assert {tuple(counts) for counts in seen} == {(5, 6), (6, 5)}
    assert strategy.past == [0, 1, 2]


def test_what_is_said_changes_neither_modes_nor_draws():
    found = []

    def look(loop):
        state, before = torch.get_rng_state(), weights(loop.model)
        rows = said(loop, 10, loop.rng("any"), critic=True)
        found.append((rows, torch.equal(state, torch.get_rng_state())))
        assert_same_weights(before, weights(loop.model))
        assert loop.model.training
        assert not any(column.requires_grad for column in rows.values())
        np.testing.assert_allclose(
            rows["values"],
            head(before, tower(before, rows["x"], "critic"), "value")[:, 0],
            atol=1e-5,
        )

    loop_of([Diary(after_training_exp=look)]).run()
    assert all(same and len(rows["x"]) == 10 for rows, same in found)


# -- agem ------------------------------------------------------------------------------------------


def test_agem_projects_onto_what_lowers_the_distance_to_what_was_said():
    strategy = made("agem", size=30, batch_size=12)
    seen, steps = [], {}

    class Before(Strategy):
        def before_update(self, loop):
            steps["g"] = [None if p.grad is None else p.grad.clone() for _, p in named(loop.model)]
            steps["ref"] = strategy.g_ref and [
                r if r is None else r.clone() for r in strategy.g_ref
            ]

    def after(loop):
        if steps["ref"] is not None:
            seen.append((steps["g"], steps["ref"], [p.grad for _, p in named(loop.model)]))

    loop = loop_of([Before(), strategy, Diary(before_update=after)], poles(256), lr=0.05)
    loop.run()
    assert len(seen) == 16 and loop.buffers["agem"].rows["scores"].shape == (30, 2)
    projected = 0
    for g, ref, got in seen:
        pairs = [k for k in range(len(g)) if g[k] is not None and ref[k] is not None]
        flat = [
            np.concatenate([v[k].double().numpy().ravel() for k in pairs]) for v in (g, ref, got)
        ]
        dot = flat[0] @ flat[1]
        expected = flat[0] - min(dot, 0) / max(flat[1] @ flat[1], 1e-30) * flat[1]
        np.testing.assert_allclose(flat[2], expected, rtol=1e-3, atol=1e-6)
        projected += dot < 0
    assert projected


def test_agems_reference_is_the_gradient_of_the_divergence():
    from strategies.agem import memory_gradient

    loop = loop_of([made("agem")])
    loop.run()
    rows = loop.buffers["agem"].rows
    got = memory_gradient(loop, rows)
    model = copy.deepcopy(loop.model).double()
    total = 0
    for x, scores in zip(rows["x"], rows["scores"], strict=True):
        p, q = scores.double().log_softmax(0), model(x[None].double())[0].log_softmax(0)
        total = total + (p.exp() * (p - q)).sum() / len(rows["x"])
    total.backward()
    for (name, p), g in zip(named(model), got, strict=True):
        if g is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            torch.testing.assert_close(g.double(), p.grad, rtol=1e-3, atol=1e-6)


def test_agem_beside_cloning_stores_demonstrations():
    loop = loop_of([made("agem", size=24)], objective="cloning")
    loop.run()
    rows = loop.buffers["agem"].rows
    assert rows.keys() == {"x", "y"} and len(rows["y"]) == 24
    tasks = [e.train for e in loop.stream.experiences]
    both = torch.cat([table.column("x") for table in tasks])
    assert all((both == x).all(1).any() for x in rows["x"])


# -- packnet ---------------------------------------------------------------------------------------


def packnet_run(stream=None, objective="ppo", model=None, **settings):
    """(loop, strategy, weights at hooks by experience): what it was before and after pruning."""
    strategy = made("packnet", **settings)
    before, after, ends = {}, {}, []

    class Before(Strategy):
        def before_rollout(self, loop):
            if not strategy.pruned:
                before[loop.experience.index] = weights(loop.model)

    def look(loop):
        if strategy.pruned and loop.experience.index not in after:
            after[loop.experience.index] = weights(loop.model)

    def end(loop):
        ends.append((weights(loop.model), copy.deepcopy(strategy.owner)))

    stream = stream or poles(256, labels=True)
    diary = Diary(before_rollout=look, after_training_exp=end)
    loop = loop_of([Before(), strategy, diary], stream, objective, model)
    loop.run()
    return loop, strategy, before, after, ends


def test_packnet_keeps_the_largest_half_and_frees_the_rest():
    loop, strategy, before, after, ends = packnet_run()
    pruned = [f"backbone.layers.{k}.actor.weight" for k in range(2)]
    assert sorted(strategy.owner) == pruned
    for name in pruned:
        old, new = before[0][name].numpy(), after[0][name].numpy()
        n = round(old.size / 2)
        kept = np.zeros(old.size, bool)
        kept[np.argsort(-np.abs(old).ravel(), kind="stable")[:n]] = True
        kept = kept.reshape(old.shape)
        assert np.array_equal(ends[0][1][name].numpy() == 0, kept)
        assert np.array_equal(new, np.where(kept, old, 0))
        end = ends[0][0][name].numpy()
        assert not end[~kept].any() and (end[kept] != old[kept]).any()  # it is trained again
        last = ends[1][0][name].numpy()
        assert np.array_equal(last[kept], end[kept]) and last[~kept].any()
        assert np.array_equal(ends[1][1][name].numpy() == 1, ~kept)


def test_packnet_holds_biases_after_the_first_task_and_lets_the_critic_learn():
    _, _, _, _, ends = packnet_run()
    first, last = ends[0][0], ends[1][0]
    for name in first:
        same = torch.equal(first[name], last[name])
        held = ".actor.bias" in name
        assert same == held, name
    assert any(first[n].any() for n in first if ".actor.bias" in n)


def test_packnet_answers_a_task_with_its_weights_and_its_head():
    loop, strategy, _, _, ends = packnet_run()
    x = torch.randn(7, loop.stream.input_shape[0])
    state, owner = ends[1]
    then = dict(ends[0][0])
    for name, whose in owner.items():
        then[name] = state[name] * (whose == 0)
    expected = head(ends[0][0], tower(then, x))
    batch = cl.evaluation.InferenceBatch(x, torch.zeros(7, dtype=torch.int64))
    np.testing.assert_allclose(strategy.predict(loop, batch).detach(), expected, atol=1e-5)
    batch.task_label = torch.ones(7, dtype=torch.int64)
    torch.testing.assert_close(strategy.predict(loop, batch), loop.model(x))
    mixed = torch.arange(7) % 2
    batch.task_label = mixed
    got = strategy.predict(loop, batch).detach().numpy()
    np.testing.assert_allclose(got[mixed == 0], expected[mixed == 0], atol=1e-5)


@pytest.mark.parametrize("objective", ["ppo", pytest.param("dqn", marks=pytest.mark.slow)])
def test_packnet_forgets_nothing(objective, tmp_path):
    done = run("packnet", tmp_path, objective)
    raw = done.results["raw"]["return"]
    assert raw[1][0] == raw[0][0]
    assert done.results["reported"]["free_share"] == [0.5, 0.0]


def test_packnet_keeps_statistics_of_observations_for_each_task():
    strategy = made("packnet")
    ends = []
    diary = Diary(after_training_exp=lambda loop: ends.append(weights(loop.model)))
    loop = loop_of(
        [strategy, diary], poles(256, labels=True), options={"observations": "normalised"}
    )
    loop.run()
    assert torch.equal(strategy.own[0]["mean"], ends[0]["mean"])
    assert torch.equal(strategy.own[1]["mean"], ends[1]["mean"])
    assert not torch.equal(ends[0]["mean"], ends[1]["mean"])


def test_packnet_divides_by_the_experiences_to_come_or_by_a_given_share():
    stream = three(labels=True)
    loop, strategy, *_ = packnet_run(stream, retrain=0.0)
    for owner in strategy.owner.values():
        n = owner.numel()
        counts = [int((owner == k).sum()) for k in (-1, 0, 1, 2)]
        assert counts == [0, round(n / 3), round((n - round(n / 3)) / 2), counts[3]]
        assert max(counts[1:]) - min(counts[1:]) <= 1
    assert strategy.visits == {0: 2, 1: 1} and made("packnet").needs[-1] == "stream_length"
    loop, strategy, *_ = packnet_run(stream, keep=0.5, retrain=0.0)
    assert "stream_length" not in strategy.needs
    for owner in strategy.owner.values():
        assert int((owner == 0).sum()) == round(owner.numel() / 2)
        assert int((owner == -1).sum()) > 0


def test_packnet_works_on_images_with_task_labels(tmp_path):
    settings = {"stream": {"n_experiences": 2, "task_labels": True, "val": 0}}
    settings |= {"model": "small_cnn", "train": {"epochs": 1, "lr": 0.01}, "out": str(tmp_path)}
    done = cl.run("split_digits", "packnet", **settings)
    assert done.results["R"][1][0] == done.results["R"][0][0]
    assert done.results["R"][0][0] > 0.5 and done.results["R"][1][1] > 0.5


def test_packnet_holds_batch_norms_statistics_and_weight_decay_moves_nothing():
    from conftest import make_loop, tiny_stream

    from cl.scenarios import apply
    from cl.settings import Scenario

    stream = apply(tiny_stream(), Scenario(task_labels=True), 0)
    strategy, ends = made("packnet"), []
    diary = Diary(after_training_exp=lambda loop: ends.append(weights(loop.model)))
    loop = make_loop([strategy, diary], stream, weight_decay=0.1, epochs=2)
    loop.run()
    norms = [n for n in ends[0] if "norm" in n]
    assert any("running_mean" in n for n in norms)
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in norms)
    for name, owner in strategy.owner.items():
        assert torch.equal(ends[0][name][owner == 0], ends[1][name][owner == 0])
        assert not torch.equal(ends[0][name], ends[1][name])
    assert all(not n.startswith("head") for n in strategy.owner)
    assert len(strategy.own[0]["head.weight"]) == 2 and len(strategy.own[1]["head.weight"]) == 4


# -- the others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["ppo", "continuous", "dqn"])
def test_distill_holds_the_policy_near_the_last_one_on_the_batch(kind, direction):
    strategy, expected = made("distill", lam=0.5, direction=direction), []

    def look(loop):
        if strategy.old is None:
            return
        x, old, new = loop.mb_x, weights(strategy.old), weights(loop.model)
        if kind == "dqn":
            gap = (strategy.old(x) - loop.model(x)).double().square().mean().item()
        else:
            pair = [(state, head(state, tower(state, x.numpy()))) for state in (old, new)]
            gap = divergence(*(pair if direction == "forward" else pair[::-1]))
        expected.append(0.5 * gap)

    stream = swings() if kind == "continuous" else None
    objective = "dqn" if kind == "dqn" else "ppo"
    loop = loop_of([strategy, Diary(before_backward=look)], stream, objective)
    terms = added(loop)
    loop.run()
    assert len(expected) > 2 and any(expected)
    assert [v for _, v in terms] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def divergence(left, right):
    """Mean KL of two (weights, scores)."""
    (s, a), (t, b) = left, right
    if "log_std" in s:
        s, t = s["log_std"].double().numpy(), t["log_std"].double().numpy()
        return (t - s + (np.exp(2 * s) + (a - b) ** 2) / (2 * np.exp(2 * t)) - 0.5).sum(1).mean()
    p, q = log_softmax(a), log_softmax(b)
    return (np.exp(p) * (p - q)).sum(1).mean()


def test_replay_with_dqn_learns_from_kept_steps_of_earlier_tasks():
    strategy, seen = made("replay", size=20, batch_size=6), []

    def look(loop):
        if loop.experience.index == 1:
            rows, target = loop.objective._rows, loop.objective.target
            assert len(loop.mb_x) == 38 and len(rows["reward"]) == 38
            q = loop.model(loop.mb_x).detach()[torch.arange(38), loop.mb_y].double().numpy()
            best = target(rows["next"]).amax(1).double().numpy()
            ended = rows["terminated"].numpy()
            wanted = rows["reward"].numpy() + 0.99 * best * ~ended
            gap = np.abs(q - wanted)
            huber = np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
            assert float(loop.loss.detach()) == pytest.approx(huber, rel=1e-4)
            seen.append((loop.mb_x[:32, 4].unique().tolist(), loop.mb_x[32:, 4].unique().tolist()))

    loop = loop_of([strategy, Diary(before_backward=look)], objective="dqn")
    loop.run()
    assert seen and all(pair == ([1.0], [-1.0]) or pair == ([-1.0], [1.0]) for pair in seen)
    assert len(loop.buffers["replay"]) == 20


def test_a_kept_buffer_of_dqn_is_perfect_memory():
    loop = loop_of([made("naive")], objective="dqn", options={"buffer": "keep"})
    loop.run()
    x = loop.objective.held["x"][: loop.objective.stored]
    assert loop.objective.stored == 256
    assert [int((x[:, 4] == sign).sum()) for sign in (-1, 1)] == [128, 128]
    assert loop.objective.storable(loop).column("x")[:, 4].unique().tolist() == [x[-1, 4]]
    loop = loop_of([made("naive")], objective="dqn")
    loop.run()
    x = loop.objective.held["x"][: loop.objective.stored]
    assert loop.objective.stored == 128 and len(x[:, 4].unique()) == 1


def test_replay_beside_cloning_keeps_rows_of_continuous_actions_in_a_reservoir():
    loop = loop_of([made("replay", size=10, policy="reservoir")], swings(), "cloning")
    loop.run()
    assert loop.buffers["replay"].rows["y"].shape == (10, 1)
    with pytest.raises(BadValue, match="give policy=reservoir"):
        loop_of([made("replay", size=10)], swings(), "cloning")


def test_a_burst_draws_a_policy_back_to_what_it_said():
    strategy = made("fpf", modules=["all"], steps=60, lr=0.5, when="stay", size=64)
    gaps = []

    class Around(Strategy):
        def after_training_exp(self, loop):
            if loop.experience.index == 1:
                gaps.append(gap(loop))

    def gap(loop):
        rows = loop.buffers["fpf"].rows
        with torch.no_grad():
            new = loop.model(rows["x"]).log_softmax(1)
        old = rows["scores"].log_softmax(1)
        return float((old.exp() * (old - new)).sum(1).mean())

    loop = loop_of([Around(), strategy], lr=0.05)
    loop.run()
    assert strategy.shared is False and loop.extra_updates == 120
    assert gap(loop) < gaps[0]


def test_bursts_share_what_cloning_replay_stores():
    fpf = made("fpf", steps=4, modules=["policy"])
    loop = loop_of([made("cloning_replay", size=16), fpf])
    loop.run()
    assert fpf.shared and sorted(loop.buffers) == ["cloning_replay.0", "cloning_replay.1"]
    assert loop.extra_updates == 8


def test_k_fpf_counts_the_updates_that_a_policy_will_make():
    k_fpf = made("k_fpf", k=3, steps=2)
    loop = loop_of([k_fpf], poles(128))  # 2 batches of steps, 2 passes, 2 minibatches each
    loop.run()
    assert k_fpf.distance == 16 // 3 and k_fpf.done == 3


@pytest.mark.parametrize("model", [{}, {"shared": True}, {"activation": "relu"}])
def test_continual_backprop_knows_the_units_of_both_towers(model):
    strategy, seen = made("continual_backprop", rho=0.0, eta=0.9), []

    def look(loop):
        seen.append((loop.mb_x.numpy(), before[-1], weights(loop.model)))

    class Before(Strategy):
        def before_backward(self, loop):
            before.append(weights(loop.model))

    before = []
    loop = loop_of([strategy, Before(), Diary(after_update=look)], model=model)
    loop.run()
    sizes = [8, 6] if model.get("shared") else [8, 6, 8, 6]
    assert [len(u) for u in strategy.u] == sizes
    u = np.zeros(8)
    key = "backbone.layers.{}.weight" if model.get("shared") else "backbone.layers.{}.actor.weight"
    bias = key.replace("weight", "bias")
    squash = (lambda z: np.maximum(z, 0)) if "activation" in model else np.tanh
    for x, old, new in seen:
        h = squash(x @ old[key.format(0)].numpy().T + old[bias.format(0)].numpy())
        u = 0.9 * u + 0.1 * np.abs(h).mean(0) * np.abs(new[key.format(1)].numpy()).sum(0)
    np.testing.assert_allclose(strategy.u[0].numpy(), u, rtol=1e-3)
    last = np.abs(seen[-1][2]["policy.weight"].numpy()).sum(0)
    if model.get("shared"):
        last = last + np.abs(seen[-1][2]["value.weight"].numpy()).sum(0)
    assert strategy.u[1].numpy().argmax() >= 0 and (last > 0).all()


@pytest.mark.parametrize("objective", ["ppo", "dqn"])
def test_continual_backprop_resets_units_of_policies_and_clears_what_reads_them(objective):
    strategy = made("continual_backprop", rho=0.2, m=2)
    seen = []

    def look(loop):
        from cl.models.units import units_of

        for k, layer in enumerate(units_of(loop.model)):
            new = (strategy.a[k] == 0).nonzero()[:, 0]
            seen.append(len(new))
            for reader in layer.readers if k % 2 else ():
                assert not reader.weight[:, new].any()

    loop = loop_of([strategy, Diary(after_update=look)], objective=objective)
    loop.run()
    assert sum(seen) and all(torch.isfinite(p).all() for p in loop.model.parameters())


@pytest.mark.parametrize("name", ["l2_init", "shrink_perturb"])
def test_plasticity_methods_move_policies_towards_where_they_began(name):
    settings = {"lam": 10.0} if name == "l2_init" else {"lam": 0.0, "noise": 1.0}
    distances = []

    def look(loop):
        theta = torch.cat([p.detach().flatten() for p in loop.model.parameters()])
        distances.append(float((theta - start).norm()))

    for strategy in ("naive", name):
        diary = Diary(after_training_exp=look)
        loop = loop_of([made(strategy, **(settings if strategy == name else {})), diary], lr=0.02)
        start = torch.cat([p.detach().flatten() for p in loop.model.parameters()])
        loop.run()
    if name == "l2_init":
        assert distances[3] < 0.5 * distances[1]
    else:  # another draw, of the same size
        assert distances[3] > 0.5 * float(start.norm()) and distances[2] == distances[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cloning_replay", "packnet", "replay"])
def test_what_protects_keeps_the_first_task_that_naive_unlearns(name, tmp_path):
    settings = {"stream": {"task_labels": True, "n_test": 10, "n_val": 0}, "seed": 100}
    settings |= {"objective": "cloning", "eval.every": None, "out": str(tmp_path)}
    naive = cl.run("cartpole_actions", "naive", **settings).R
    kept = cl.run("cartpole_actions", name, **settings).R
    assert naive[0][0] > 0.8 and naive[1][0] < 0.2
    assert kept[1][0] > naive[1][0] + 0.4
