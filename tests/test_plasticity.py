"""Plasticity: streams of hundreds of tasks, what is measured on them, methods that keep it."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_weights, make_loop, tiny_stream, weights

import cl
from cl import metrics
from cl.data import Gathered, Table
from cl.document import Document
from cl.errors import BadValue, DataError
from cl.folder import comparable
from cl.models import build
from cl.probes.effective_rank import ranks
from cl.registry import find
from cl.runner import resume
from cl.seeding import frozen
from cl.strategy import Strategy
from cl.stream import Experience
from strategies.continual_backprop import reset, units_of
from streams.image_pairs import draw_pairs

OMNIGLOT = "omniglot-small1.zip"


def pairs(data_folder, **settings):
    make = find("streams", "image_pairs").load()
    return make(path=data_folder / OMNIGLOT, **{"size": 8, "n_experiences": 12, **settings})


# -- a column that stands for rows of another -------------------------------------------------


def test_gathered_rows_are_those_of_the_source_without_a_copy():
    source = torch.arange(12.0).view(4, 3)
    column = Gathered(source, torch.tensor([3, 0, 0, 2, 1]))
    assert (len(column), column.shape, column.dtype) == (5, (5, 3), torch.float32)
    assert column[torch.tensor([4, 0])].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert column.to(torch.device("cpu")).source.data_ptr() == source.data_ptr()
    table = Table({"x": column, "y": torch.arange(5)}, torch.tensor([1, 3]))
    assert table.column("x").tolist() == [[0, 1, 2], [6, 7, 8]]
    assert table.nbytes == 2 * (3 * 4 + 8)
    joined = Table.concat([table, table.select(torch.tensor([0]))])
    assert joined.columns["x"] is column and joined.column("y").tolist() == [1, 3, 1]


def test_gathered_digest_tells_values_and_positions_apart():
    source, index = torch.arange(6.0).view(3, 2), torch.tensor([0, 2])
    digest = Gathered(source, index).digest()
    assert digest == Gathered(source.clone(), index.clone()).digest()
    assert digest != Gathered(source + 1, index).digest()
    assert digest != Gathered(source, index.flip(0)).digest()


# -- the stream -------------------------------------------------------------------------------


def test_every_task_holds_two_classes_under_labels_of_its_own(data_folder):
    stream = pairs(data_folder)
    assert (len(stream), stream.n_classes, stream.jointly_solvable) == (12, 2, False)
    assert stream.seen_classes(0) == stream.seen_classes(11) == 2
    for e, ev in zip(stream.experiences, stream.evals, strict=True):
        assert ev.learned_at == (e.index,) and ev.chance == 0.5
        for table, n in ((e.train, 14), (e.val, 2), (ev.test, 4)):  # 20 drawings: 4 test, 2 val
            assert table.column("y").bincount().tolist() == [n, n]


def test_images_are_held_once_and_scored_in_one_pass(data_folder):
    stream = pairs(data_folder, n_experiences=80).to(torch.device("cpu"))
    columns = {id(e.train.columns["x"]) for e in stream.experiences}
    columns |= {id(e.test.columns["x"]) for e in stream.evals}
    assert len(columns) == 1
    x = stream.experiences[0].train.columns["x"]
    assert len(x.source) == 136 * 20 < len(x) == 80 * 40
    labels_once = stream.experiences[3].train.columns["y"]
    assert len(labels_once) == len(x)


def test_rows_are_the_images_of_the_named_classes_and_never_shared_between_splits(data_folder):
    stream = pairs(data_folder, n_experiences=60)
    splits: dict[str, set] = {"train": set(), "val": set(), "test": set()}
    for e, ev in zip(stream.experiences, stream.evals, strict=True):
        for split, table in (("train", e.train), ("val", e.val), ("test", ev.test)):
            splits[split] |= set(table.columns["x"].index[table.index].tolist())
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["val"]
    assert not splits["val"] & splits["test"]
    folder = find("streams", "image_folder").load()(
        path=data_folder / OMNIGLOT, size=8, n_experiences=136, val=0
    )
    images = {
        e.name.partition("_")[2]: {
            t.column("x")[k].numpy().tobytes() for t in (e.train, ev.test) for k in range(len(t))
        }
        for e, ev in zip(folder.experiences, folder.evals, strict=True)
    }
    for e in stream.experiences:
        zero, one = e.name.partition("_")[2].split("+")
        for label, name in enumerate((zero, one)):
            rows = e.train.column("x")[e.train.column("y") == label]
            mine = {row.numpy().tobytes() for row in rows}
            assert any(key.endswith(name) and mine <= held for key, held in images.items())


def test_pairs_are_distinct_until_all_have_come():
    first = draw_pairs(5, 25, 0)  # 10 pairs
    unordered = [tuple(sorted(p)) for p in first.tolist()]
    assert len(set(unordered[:10])) == len(set(unordered[10:20])) == 10
    assert len(set(unordered[20:])) == 5 and unordered[:10] != unordered[10:20]
    assert 0 < sum(a < b for a, b in first.tolist()) < 25  # which class is 0 is drawn too
    assert torch.equal(first, draw_pairs(5, 25, 0))
    assert not torch.equal(first, draw_pairs(5, 25, 1))


def test_the_pairs_follow_the_seed(data_folder):
    content = pairs(data_folder, seed=1).content_hash()
    assert content == pairs(data_folder, seed=1).content_hash()
    assert content != pairs(data_folder, seed=2).content_hash()


def test_per_class_and_val_are_kept_and_refused_where_nothing_is_left(data_folder):
    stream = pairs(data_folder, per_class=3, val=0)
    assert len(stream.experiences[0].train) == 6 and stream.experiences[0].val is None
    with pytest.raises(BadValue, match="stream.val=0.9 leaves class .* no training item of its 2"):
        pairs(data_folder, per_class=2, val=0.9)
    with pytest.raises(DataError, match="no file or folder"):
        pairs(data_folder / "nowhere")


# -- what an experience costs besides training does not grow ----------------------------------


def test_metrics_continued_row_by_row_equal_those_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    R = rng.integers(6, 21, (9, 5)) / 20
    R[rng.random(R.shape) < 0.1] = np.nan
    at = [(0, 4), (1,), (2, 6), (), (3,)]
    settings = {"learned_at": at, "n": [20] * 5, "chance": [0.5] * 5, "b": [0.5] * 5}
    settings |= {"steps": [], "eval_every": None, "shares": True}
    before = None
    for i in range(1, 10):
        before = metrics.summarise(R[:i], **settings, before=before)
    assert before == metrics.summarise(R, **settings)
    assert any("left out" in reason for reason in before[1].values())


def test_results_are_written_as_they_are_and_no_row_is_encoded_twice(monkeypatch):
    document, encoded = Document(), []
    real = json.dumps
    monkeypatch.setattr(
        "cl.document.json.dumps", lambda v, **k: (encoded.append(v), real(v, **k))[1]
    )
    results = {"schema": 1, "evals": [{"name": "é"}], "R": [], "V": None, "undefined": {}}
    results |= {"metrics": {}, "probes": {"p": [{"a": 1.0}]}}
    for k in range(3):
        results["R"] = results["R"] + [[0.1 * k, None]]
        results["undefined"] = results["undefined"] | {f"R[{k}][1]": 'why, "so"'}
        results["metrics"] = {"plasticity": [0.5] * (k + 1), "forgetting": None}
        encoded.clear()
        assert json.loads("".join(document.parts(results))) == results
        assert sum(isinstance(v, list) and None in v for v in encoded) == 1


def test_a_sampled_run_is_resumed_from_its_curves(tmp_path):
    settings = {"model": "mlp", "stream.n_experiences": 4, "eval.past": "sample:1"}
    settings |= {"train.updates": 2, "probes": ["weight_norm"], "eval.every": 1}
    whole = cl.run("split_digits", "naive", out=str(tmp_path), **settings)
    assert [sum(v is not None for v in row) for row in whole.results["R"]] == [1, 2, 2, 2]
    paths = [path for path in whole.results["undefined"] if path.startswith("R[3]")]
    assert len(paths) == 1  # scattered cells of one reason are named together
    for path in sorted((whole.dir / "checkpoint").iterdir())[-1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    results = whole.dir / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    lines = (whole.dir / "curves.jsonl").read_text()
    assert comparable(resume(whole.dir).results) == comparable(whole.results)
    assert (whole.dir / "curves.jsonl").read_text() == lines
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    (whole.dir / "curves.jsonl").write_text("".join(lines.splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="curves.jsonl is damaged: it holds 2 evaluations"):
        resume(whole.dir)


# -- probes ------------------------------------------------------------------------------------


def probe(name, model, x):
    experience = Experience(0, "e", (0, 1), Table({"x": x, "y": torch.zeros(len(x))}))
    with frozen(model):
        return find("probes", name).load()(model, experience)


def test_dormant_units_are_those_below_a_fortieth_of_their_layers_mean():
    model = build("mlp", (2,), {"hidden": [4, 2]})
    first, second = model.backbone.layers
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0.01, 0], [-1, -1]]))
        first.bias.zero_()
        second.weight.zero_()
        second.bias.copy_(torch.tensor([1.0, 1.0]))
    x = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    # layer 0: means 2, 2, 0.02, 0 over a layer mean of 1.005: the last two are dormant, one dead
    expected = {"layer_0": 0.5, "layer_1": 0.0, "all": 2 / 6, "dead": 1 / 6}
    assert probe("dormant_units", model, x) == pytest.approx(expected)
    with torch.no_grad():
        second.bias.fill_(-1)
    assert probe("dormant_units", model, x)["layer_1"] == 1.0  # a silent layer is dormant


@pytest.mark.parametrize("name", ["small_cnn", "resnet20"])
def test_dormant_units_of_convolutions_are_channels(name):
    model = build(name, (1, 8, 8), {"width": 4})
    x = torch.rand(6, 1, 8, 8)
    found = probe("dormant_units", model, x)
    assert len(found) == len(model.backbone.layers) + 2
    if name == "small_cnn":
        with frozen(model):
            h = [model.backbone.layers[0](x)]
            h.append(model.backbone.layers[1](h[0]))
        for k, maps in enumerate(h):
            mean = maps.numpy().mean((0, 2, 3))
            assert found[f"layer_{k}"] == np.mean(mean <= 0.025 * mean.mean())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_ranks_count_directions():
    three = ranks(torch.tensor([2.0, 2.0, 2.0, 0.0], dtype=torch.float64))
    assert three == pytest.approx({"effective_rank": 3.0, "srank": 3.0, "stable_rank": 3.0})
    uneven = ranks(torch.tensor([0.9, 0.085, 0.01, 0.005], dtype=torch.float64))
    entropy = -sum(p * np.log(p) for p in (0.9, 0.085, 0.01, 0.005))
    assert uneven["effective_rank"] == pytest.approx(np.exp(entropy))
    assert uneven["srank"] == 3  # 0.985 is short of 0.99
    squares = 0.9**2 + 0.085**2 + 0.01**2 + 0.005**2
    assert uneven["stable_rank"] == pytest.approx(squares / 0.81)
    assert set(ranks(torch.zeros(3)).values()) == {0.0}


def test_effective_rank_looks_at_the_features():
    model = build("mlp", (3,), {"hidden": [3]})
    with torch.no_grad():
        model.backbone.layers[0].weight.copy_(torch.eye(3))
        model.backbone.layers[0].bias.zero_()
    assert probe("effective_rank", model, torch.eye(3))["srank"] == 3
    assert probe("effective_rank", model, torch.ones(5, 3))["effective_rank"] == pytest.approx(1)


def test_probes_get_rows_of_all_classes_as_model_inputs(data_folder):
    stream = pairs(data_folder)
    loop = make_loop([], stream, lambda: build("mlp", stream.input_shape, {"hidden": [4]}))
    table = stream.experiences[0].train
    probed = loop.probed(table)
    assert torch.equal(probed.column("x"), stream.transform(table.column("x")))
    loop.experience = stream.experiences[0]
    expected = probe("effective_rank", loop.model, stream.transform(table.column("x")))
    assert loop.measure("effective_rank") == pytest.approx(expected)
    many = Table({"x": torch.zeros(5000, 1, 8, 8), "y": torch.arange(5000)})
    positions = loop.probed(many).column("y")
    assert len(positions) == 512 and positions[0] == 0 and positions[-1] > 4900


def test_probing_changes_nothing(tmp_path):
    settings = {"train.updates": 3, "stream.n_experiences": 2, "seed": 3}
    plain = cl.run("split_digits", "naive", out=str(tmp_path / "a"), **settings)
    names = ["dormant_units", "effective_rank", "weight_norm"]
    probed = cl.run("split_digits", "naive", out=str(tmp_path / "b"), probes=names, **settings)
    assert_same_weights(plain.model.state_dict(), probed.model.state_dict())
    assert plain.results["R"] == probed.results["R"]
    rows = probed.results["probes"]
    assert {name: len(rows[name]) for name in names} == dict.fromkeys(names, 2)
    assert 1 <= rows["effective_rank"][0]["effective_rank"] <= 64


# -- strategies --------------------------------------------------------------------------------


class Diary(Strategy):
    """Keeps the weights, batches and gradients of every update."""

    def __init__(self):
        self.before, self.after, self.x, self.y, self.grads, self.starts = [], [], [], [], [], []

    def before_training_exp(self, loop):
        self.starts.append(weights(loop.model))

    def before_training_iteration(self, loop):
        self.before.append(weights(loop.model))
        self.x.append(loop.mb_x.clone())
        self.y.append(loop.mb_y.clone())

    def before_update(self, loop):
        self.grads.append({n: p.grad.clone() for n, p in loop.model.named_parameters()})

    def after_update(self, loop):
        self.after.append(weights(loop.model))


def mlp(*hidden, stream=None):
    return lambda: build("mlp", (stream or tiny_stream()).input_shape, {"hidden": list(hidden)})


def trained_with(strategy, model=None, diary=None, **settings):
    strategies = [s for s in (diary, strategy) if s is not None]
    loop = make_loop(strategies, model=model, **settings)
    loop.run()
    return loop


NEUTRAL = {
    "l2_init": {"lam": 0.0},
    "shrink_perturb": {"lam": 1.0, "noise": 0.0},
    "shrink_perturb each update": {"lam": 1.0, "noise": 0.0, "when": "update"},
    "continual_backprop": {"rho": 0.0},
}


@pytest.mark.parametrize("model", [None, mlp(8, 6)], ids=["small_cnn", "mlp"])
@pytest.mark.parametrize("case", NEUTRAL)
def test_the_neutral_value_is_naive_exactly(case, model):
    strategy = find("strategies", case.split()[0]).load()(**NEUTRAL[case])
    left = trained_with(strategy, model).model.state_dict()
    assert_same_weights(left, trained_with(None, model).model.state_dict())


def test_l2_init_adds_the_gradient_of_the_squared_distance():
    lam, diary = 0.05, Diary()
    strategy = find("strategies", "l2_init").load()(lam=lam)
    trained_with(strategy, mlp(5), diary, epochs=2)
    anchors, seen = {}, 0
    for start in diary.starts:  # values at which each row was first there
        for name, value in start.items():
            known = anchors.get(name, value[:0])
            anchors[name] = torch.cat([known, value[len(known) :]])
    assert {n: len(v) for n, v in anchors.items()}["head.weight"] == 4
    for theta, x, y, grads in zip(diary.before, diary.x, diary.y, diary.grads, strict=True):
        theta = {name: value.requires_grad_() for name, value in theta.items()}
        hidden = F.relu(
            F.linear(
                x.flatten(1), theta["backbone.layers.0.weight"], theta["backbone.layers.0.bias"]
            )
        )
        logits = F.linear(hidden, theta["head.weight"], theta["head.bias"])
        F.cross_entropy(logits, y).backward()
        for name, value in theta.items():
            pull = 2 * lam * (value.detach() - anchors[name][: len(value)])
            torch.testing.assert_close(grads[name], value.grad + pull, atol=1e-6, rtol=1e-4)
            seen += bool(pull.abs().max() > 1e-3)
    assert seen > 4
    torch.testing.assert_close(dict(strategy.theta_0), anchors)


def test_l2_init_keeps_the_weights_near_their_start():
    def distance(strategy):
        diary = Diary()
        end = weights(trained_with(strategy, mlp(16), diary, epochs=10).model)
        name = "backbone.layers.0.weight"
        return (end[name] - diary.starts[0][name]).norm()

    assert distance(find("strategies", "l2_init").load()(lam=0.1)) < 0.5 * distance(None)


def mixed(**settings):
    """Weights before the second experience: as left by the first, and as the second starts."""
    diary = Diary()
    strategy = find("strategies", "shrink_perturb").load()(**settings)
    trained_with(strategy, mlp(6), diary)
    n = next(k for k, theta in enumerate(diary.before) if len(theta["head.bias"]) == 4)
    return diary.after[n - 1], diary.starts[1]


def test_shrink_perturb_mixes_the_weights_with_those_of_a_new_model():
    old, half = mixed(lam=0.5, noise=0.0)
    _, fresh = mixed(lam=0.0, noise=1.0)
    _, both = mixed(lam=0.3, noise=0.2)
    new = build("mlp", (1, 8, 8), {"hidden": [6]}).state_dict()
    for name in old:
        rows = len(old[name])
        torch.testing.assert_close(half[name][:rows], old[name] / 2)
        torch.testing.assert_close(both[name][:rows], 0.3 * old[name] + 0.2 * fresh[name][:rows])
        bound = 1 / math.sqrt(64 if "layers" in name else 6)
        assert fresh[name].abs().max() <= bound and fresh[name].abs().max() > 0.5 * bound
        if name in new and new[name].numel():
            assert not torch.equal(fresh[name], new[name])
    # head columns that the experience brings start as they are
    assert torch.equal(half["head.weight"][2:], both["head.weight"][2:])


def test_shrink_perturb_at_each_update_scales_and_adds_normal_noise():
    make = find("strategies", "shrink_perturb").load()
    settings = {"model": mlp(200), "stream": tiny_stream(sizes=(4,)), "batch_size": 1000}
    plain = weights(trained_with(None, **settings).model)  # one update
    half = weights(trained_with(make(when="update", lam=0.5, noise=0.0), **settings).model)
    noisy = weights(trained_with(make(when="update", lam=1.0, noise=0.3), **settings).model)
    for name in plain:
        torch.testing.assert_close(half[name], plain[name] / 2)
    z = ((noisy[name := "backbone.layers.0.weight"] - plain[name]) / 0.3).flatten()
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05  # 12,800 draws
    assert abs(z.pow(4).mean() - 3) < 0.3  # normal


def test_shrink_perturb_has_defaults_for_either_time():
    make = find("strategies", "shrink_perturb").load()
    assert (make().lam, make().noise) == (0.4, 0.1)
    assert (make(when="update").lam, make(when="update", lam=0.9).lam) == (1 - 1e-7, 0.9)


def continual_backprop(**settings):
    return find("strategies", "continual_backprop").load()(**settings)


def test_utility_is_the_running_contribution_to_the_consumers():
    diary, strategy = Diary(), continual_backprop(rho=0.0, eta=0.9)
    trained_with(strategy, mlp(7, 5), diary, epochs=2)
    u, f = [np.zeros(7), np.zeros(5)], [np.zeros(7), np.zeros(5)]
    for before, after, x in zip(diary.before, diary.after, diary.x, strict=True):
        h = x.flatten(1).double().numpy()
        for k, reader in enumerate(("backbone.layers.1", "head")):
            w = before[f"backbone.layers.{k}.weight"].double().numpy()
            h = np.maximum(h @ w.T + before[f"backbone.layers.{k}.bias"].double().numpy(), 0)
            out = np.abs(after[f"{reader}.weight"].double().numpy()).sum(0)
            u[k] = 0.9 * u[k] + 0.1 * np.abs(h).mean(0) * out
            f[k] = 0.9 * f[k] + 0.1 * h.mean(0)
    for k in range(2):
        np.testing.assert_allclose(strategy.u[k].numpy(), u[k], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(strategy.f[k].numpy(), f[k], rtol=1e-4, atol=1e-6)
    assert strategy.t == len(diary.x) and strategy.a[0].tolist() == [strategy.t] * 7


def test_channels_are_units_and_micro_batches_count_by_their_share():
    whole, parts = (continual_backprop(rho=0.0) for _ in range(2))
    model = partial(build, "small_cnn", (1, 8, 8), {"width": 6, "norm": "none"})
    settings = {"stream": tiny_stream(sizes=(4,)), "batch_size": 15}
    diary = Diary()
    loop = trained_with(whole, model, diary, **settings)
    trained_with(parts, model, accumulate=2, **settings)
    assert [len(u) for u in whole.u] == [6, 12]
    for left, right in zip(whole.u, parts.u, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)
    u = torch.zeros(6)
    for before, after, x in zip(diary.before, diary.after, diary.x, strict=True):
        loop.model.load_state_dict(before)
        h = loop.model.backbone.layers[0](x)
        out = after["backbone.layers.1.conv.weight"].abs().sum((0, 2, 3))
        u = 0.99 * u + 0.01 * h.abs().mean((0, 2, 3)) * out
    torch.testing.assert_close(whole.u[0], u.detach(), rtol=1e-4, atol=1e-6)


class Resets(Strategy):
    """Looks at the weights after every update of the continual_backprop before it."""

    def __init__(self, cbp):
        self.cbp, self.n = cbp, 0

    def after_update(self, loop):
        cbp, layers = self.cbp, loop.model.backbone.layers
        for k, reader in enumerate((layers[1], loop.model.head)):
            new = cbp.a[k] == 0
            assert new.sum() == cbp.reset_at[k].count(cbp.t) and not cbp.u[k][new].any()
            if not new.any():
                continue
            self.n += int(new.sum())
            old = cbp.a[1] > 0 if k == 0 else slice(None)  # new readers have new input weights
            assert not reader.weight[old][:, new].any() and not layers[k].bias[new].any()
            assert layers[k].weight[new].abs().max() <= 1 / math.sqrt(layers[k].in_features)
            moments = loop.optimizer.state[reader.weight]["exp_avg"]
            assert not moments[:, new].any() and moments.any()
            assert not loop.optimizer.state[layers[k].weight]["exp_avg_sq"][new].any()


def test_resets_come_at_the_rate_rho_and_clear_weights_and_moments():
    cbp = continual_backprop(rho=0.03, m=4, eta=0.9)
    watch = Resets(cbp)
    make_loop([cbp, watch], model=mlp(10, 8), epochs=12, optimizer="adam", lr=0.01).run()
    counts, protected, n = [0.0, 0.0], [[], []], 0
    for t in range(1, cbp.t + 1):
        for k, units in enumerate((10, 8)):
            protected[k] = [at for at in protected[k] if t - at <= 4]
            counts[k] += 0.03 * (units - len(protected[k])) if t > 4 else 0
            while counts[k] >= 1:
                protected[k].append(t)
                counts[k], n = counts[k] - 1, n + 1
    assert watch.n == n > 10
    assert cbp.c == pytest.approx(counts)


def test_the_least_useful_of_the_mature_units_is_reset():
    cbp = continual_backprop(rho=0.1, m=3, eta=0.5)
    loop = make_loop([cbp], model=mlp(10))
    loop.grow_to(2)
    cbp.before_training(loop)
    loop.prepare_optimizer()
    cbp.t, cbp.seen = 10, [[torch.zeros(10), torch.zeros(10)]]  # silent: utilities only decay
    cbp.u[0] = torch.tensor([9.0, 8, 7, 1, 2, 5, 5, 5, 5, 5])
    cbp.a[0] = torch.tensor([9.0, 9, 9, 1, 3, 9, 9, 9, 1, 9])
    cbp.reset_at[0], cbp.c[0] = [8, 10], 0.0  # units 3 and 8 are protected until t = 13
    cbp.c[0] = 0.2  # 8 of 10 are mature: + 0.8
    cbp.after_update(loop)
    # unit 4 is just mature: 2 / (1 - 0.5^4) is the smallest, unit 3 is smaller but protected
    assert (cbp.a[0] == 0).nonzero()[:, 0].tolist() == [4]
    assert cbp.c[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_reset_leaves_the_output_for_the_mean_input_as_it_was(layer):
    model = build("mlp", (6,), {"hidden": [9, 7]})
    model.head.grow(3)
    x, rng = torch.rand(1, 6), torch.Generator().manual_seed(0)
    with torch.no_grad():
        first = F.relu(model.backbone.layers[0](x))
        h = [first, model.features(x)][layer][0]
        index = h.topk(2).indices
        expected = model(x)
        reset(units_of(model)[layer], index, h[index], rng)
        torch.testing.assert_close(model(x), expected)
        reset(units_of(model)[layer], h.topk(4).indices, None, rng)
        assert not torch.allclose(model(x), expected)


def test_reset_channels_restart_with_their_batch_norm():
    model = build("small_cnn", (1, 8, 8), {"width": 4})
    model.head.grow(2)
    model(torch.rand(8, 1, 8, 8))
    layer = units_of(model)[0]
    with torch.no_grad():
        layer.norm.weight.fill_(3)
    reset(layer, torch.tensor([1, 3]), torch.ones(2), torch.Generator())
    assert layer.norm.weight.tolist() == [3, 1, 3, 1] and layer.norm.running_mean[1] == 0
    assert layer.norm.running_var[3] == 1 != layer.norm.running_var[2]
    assert not model.backbone.layers[1].conv.weight[:, [1, 3]].any()


def test_dead_units_come_back_to_life():
    def dead_at_the_end(strategy):
        def broken():
            model = mlp(20, 20)()
            with torch.no_grad():
                model.backbone.layers[0].bias[:15] = -100
            return model

        loop = trained_with(strategy, broken, epochs=20)
        return loop.measure("dormant_units")["layer_0"]

    assert dead_at_the_end(None) >= 0.75
    assert dead_at_the_end(continual_backprop(rho=0.05, m=5)) < 0.4


REFUSED = {
    "another model": (
        "continual_backprop",
        {"model": "resnet20"},
        "knows the units of mlp, small_cnn, actor_critic, q_network, not of resnet20",
    ),
    "negative lam": ("l2_init", {"strategy.lam": -1}, "strategy.lam"),
    "lam that grows": ("shrink_perturb", {"strategy.lam": 1.5}, "strategy.lam"),
    "eta that never forgets": ("continual_backprop", {"strategy.eta": 1}, "strategy.eta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused(case, tmp_path):
    name, settings, message = REFUSED[case]
    with pytest.raises(BadValue, match=message):
        cl.run("split_digits", name, out=str(tmp_path), **settings)


def test_shrink_perturb_mixes_in_a_new_model_where_the_run_was_given_weights(tmp_path):
    settings = {"stream.n_experiences": 2, "train.updates": 2, "out": str(tmp_path)}
    given = cl.run("split_digits", "naive", **settings).dir
    seen = {}

    class Watch(Strategy):
        def before_training_exp(self, loop):
            if loop.experience.index == 1:
                drawn = loop.fresh_model("test", trained=False)
                same = loop.fresh_model("test", trained=True)
                seen["new"] = drawn.backbone.state_dict()
                seen["given"] = same.backbone.state_dict()

    cl.run("split_digits", Watch(), **settings, **{"model.from": given})
    kept = cl.load(given).model.backbone.state_dict()
    weight = next(name for name in kept if name.endswith("weight"))
    assert torch.equal(seen["given"][weight], kept[weight])
    assert not torch.equal(seen["new"][weight], kept[weight])
