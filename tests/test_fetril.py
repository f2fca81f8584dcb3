"""FeTrIL against independent calculations, and every pitfall that its paper's readers fell into."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_weights, make_loop, tiny_stream, weights
from sklearn.svm import LinearSVC

import cl
from cl.check import _resumed
from cl.data import Table
from cl.errors import BadValue
from cl.evaluation import InferenceBatch
from cl.models import build
from cl.seeding import generator
from cl.state import stored_bytes
from cl.stream import Experience, Labelled, Stream, class_incremental
from cl.svm import one_vs_rest
from strategies.fetril import FeTrIL, fc, sources, with_pseudo_features
from strategies.naive import Naive


def features(n_per_class=12, d=6, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d)) * 3
    y = np.repeat(np.arange(classes), n_per_class)
    return (centres[y] + rng.normal(size=(len(y), d))).astype(np.float32), y


def feature_stream(sizes=(4, 3), n_per_class=(40, 30, 20, 25, 18, 26, 31), d=8, seed=0):
    """Features as inputs of the model `identity`: no backbone stands between data and method."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n_per_class)), n_per_class)
    x = np.maximum(
        0, rng.normal(size=(len(n_per_class), d))[y] + 0.7 * rng.normal(size=(len(y), d))
    )
    rows = torch.arange(len(y))
    names = [str(c) for c in range(len(n_per_class))]
    data = Labelled(
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(y),
        rows[rows % 5 > 0],
        rows[rows % 5 == 0],
        names,
    )
    return class_incremental(
        "features", data, sizes=list(sizes), order="fixed", val=0, seed=0, normalise=False
    )


def trained(strategy, stream=None, **train):
    stream = stream or feature_stream()
    loop = make_loop([strategy], stream, build("identity", stream.input_shape, {}), **train)
    loop.run()
    return loop


def arrays(experience):
    return experience.train.column("x").numpy(), experience.train.column("y").numpy()


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def means(stream):
    both = [arrays(e) for e in stream.experiences]
    x, y = (np.concatenate(parts) for parts in zip(*both, strict=True))
    return np.stack([x[y == c].mean(0) for c in range(stream.n_classes)])


def expected_head(x, y, C=1.0):
    """LinearSVC on what the method must have built, its rows divided by their norms last."""
    machine = LinearSVC(C=C, tol=1e-8, dual=False).fit(unit(x), y)
    return machine.coef_, machine.intercept_


# -- eq. 1 and the choice of rows ------------------------------------------------------------------


def test_sources_are_the_most_similar_new_classes():
    mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.5], [0.2, 0.9], [-1.0, 0.0]])
    past, new = torch.tensor([0, 1]), torch.tensor([2, 3, 4])
    assert sources(mu, past, new, "cosine").tolist() == [2, 3]
    assert sources(mu, past, new, "euclidean").tolist() == [3, 3]  # (5, 0.5) is far away


def test_k_counts_down_the_order_of_similarity():
    mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.5], [0.2, 0.9], [-1.0, 0.0]])
    past, new = torch.tensor([0, 1]), torch.tensor([2, 3, 4])
    assert [sources(mu, past, new, "cosine", k).tolist() for k in (1, 2, 3)] == [
        [2, 3],
        [3, 2],
        [4, 4],
    ]
    assert sources(mu, past, new, "euclidean", 3).tolist() == [2, 2]


def test_of_equally_similar_classes_the_first_is_the_source():
    mu = torch.tensor([[1.0, 1.0], [0.0, 2.0], [2.0, 0.0]])
    assert sources(mu, torch.tensor([0]), torch.tensor([1, 2]), "cosine").tolist() == [1]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_the_classifier_is_that_of_eq_1_calculated_by_hand(k, similarity):
    stream = feature_stream()
    loop = trained(FeTrIL(k=k, similarity=similarity, tol=1e-6), stream)
    (x, y), mu = arrays(stream.experiences[1]), means(stream)
    xs, ys = [x], [y]
    for p in range(4):
        if similarity == "cosine":
            near = [
                mu[p] @ mu[n] / np.linalg.norm(mu[p]) / np.linalg.norm(mu[n]) for n in (4, 5, 6)
            ]
        else:
            near = [-np.linalg.norm(mu[p] - mu[n]) for n in (4, 5, 6)]
        n = 4 + np.argsort(near)[-k]
        xs.append(x[y == n] + mu[p] - mu[n])
        ys.append(np.full((y == n).sum(), p))
    weight, bias = expected_head(np.concatenate(xs), np.concatenate(ys))
    np.testing.assert_allclose(loop.model.head.weight.detach(), weight, atol=1e-3)
    np.testing.assert_allclose(loop.model.head.bias.detach(), bias, atol=1e-3)


def test_rand_translates_as_many_rows_as_a_new_class_has_each_by_its_own_classs_mean():
    stream = feature_stream()
    loop = trained(FeTrIL(select="rand", tol=1e-6), stream, seed=3)
    (x, y), mu, rng = arrays(stream.experiences[1]), means(stream), generator(3, "fetril.rand")
    s = round(np.mean([(y == c).sum() for c in (4, 5, 6)]))
    xs, ys = [x], [y]
    for p in range(4):
        rows = torch.randperm(len(y), generator=rng)[:s].numpy()
        assert len(set(rows)) == s and len(set(y[rows])) == 3  # no row twice, of all new classes
        for i in rows:
            xs.append((x[i] + mu[p] - mu[y[i]])[None])
            ys.append([p])
    weight, bias = expected_head(np.concatenate(xs), np.concatenate(ys))
    np.testing.assert_allclose(loop.model.head.weight.detach(), weight, atol=1e-3)
    np.testing.assert_allclose(loop.model.head.bias.detach(), bias, atol=1e-3)


def test_herd_chooses_greedily_the_rows_whose_running_mean_is_nearest():
    stream = feature_stream()
    loop = trained(FeTrIL(select="herd", tol=1e-6), stream)
    (x, y), mu = arrays(stream.experiences[1]), means(stream)
    s = round(np.mean([(y == c).sum() for c in (4, 5, 6)]))
    xs, ys = [x], [y]
    for p in range(4):
        candidates, chosen = x.astype(np.float64) + mu[p] - mu[y], []
        for _ in range(s):
            left = [i for i in range(len(x)) if i not in chosen]
            gaps = [np.linalg.norm(candidates[[*chosen, i]].mean(0) - mu[p]) for i in left]
            chosen.append(left[int(np.argmin(gaps))])
        xs.append(candidates[chosen])
        ys.append(np.full(s, p))
    weight, bias = expected_head(np.concatenate(xs), np.concatenate(ys))
    np.testing.assert_allclose(loop.model.head.weight.detach(), weight, atol=1e-3)
    np.testing.assert_allclose(loop.model.head.bias.detach(), bias, atol=1e-3)


def test_pseudo_features_of_one_source_have_the_past_classes_means():
    x, y = (torch.tensor(a) for a in features())
    mu = torch.stack([x[y == c].mean(0) for c in range(5)])
    new, labels = x[y >= 3], y[y >= 3]
    chosen = [(labels == n).nonzero()[:, 0] for n in (3, 4, 3)]
    got, got_y = with_pseudo_features(new, labels, mu, torch.arange(3), chosen)
    for p in range(3):
        torch.testing.assert_close(got[got_y == p].mean(0), mu[p], atol=1e-4, rtol=0)


# -- pitfalls --------------------------------------------------------------------------------------


def test_the_means_are_those_of_raw_features_and_all_that_is_stored():
    strategy = FeTrIL()
    loop = make_loop([strategy], epochs=2)
    loop.run()
    for e in loop.stream.experiences:
        x, y = loop.features(e.train), e.train.column("y")
        for c in e.classes:
            torch.testing.assert_close(strategy.mu[c], x[y == c].mean(0), atol=1e-5, rtol=0)
    assert strategy.mu.norm(dim=1).sub(1).abs().min() > 1e-3  # not normalised
    assert stored_bytes(loop) == 4 * loop.model.backbone.n_features * 4


def test_features_are_normalised_after_the_translation_and_the_test_rows_too():
    loop = trained(FeTrIL())
    x = loop.stream.evals[0].test.column("x")
    got = loop.predict(InferenceBatch(x)).numpy()
    head = loop.model.head
    expected = unit(x.numpy()) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for scale in (0.1, 10.0):  # the answer depends on the direction alone
        np.testing.assert_allclose(loop.predict(InferenceBatch(x * scale)), got, atol=1e-4)


def test_pseudo_features_of_features_that_are_not_negative_may_be():
    x = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
    mu = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    chosen = [torch.arange(2)]
    got, y = with_pseudo_features(x, torch.tensor([1, 1]), mu, torch.tensor([0]), chosen)
    assert got.tolist() == [[0.0, 4.0], [2.0, 0.0], [0.0, 3.0], [2.0, -1.0]]
    assert y.tolist() == [1, 1, 0, 0]


def test_experience_0_equals_naive_bit_for_bit():
    stream = tiny_stream(sizes=(4,))
    left, right = make_loop([Naive()], stream, epochs=3), make_loop([FeTrIL()], stream, epochs=3)
    left.run()
    right.run()
    assert_same_weights(weights(left.model), weights(right.model))
    assert not right.model.normalize


def test_weights_and_batch_norm_statistics_rest_after_experience_0():
    kept = {}

    class Look(Naive):
        def after_training_exp(self, loop):
            kept[loop.experience.index] = weights(loop.model.backbone)

    loop = make_loop([Look(), FeTrIL()], epochs=2)
    loop.run()
    assert any("running_var" in name for name in kept[0])
    assert_same_weights(kept[0], kept[1])
    assert_same_weights(kept[0], weights(loop.model.backbone))
    assert not any(p.requires_grad for p in loop.model.parameters())
    assert loop.model.normalize and loop.model.head.weight.shape[0] == 4


@pytest.mark.parametrize("settings", [{}, {"head": "fc"}, {"select": "rand"}, {"select": "herd"}])
def test_new_data_passes_the_backbone_once(settings):
    passed, stream = {0: 0, 1: 0, 2: 0}, tiny_stream(6, (2, 2, 2))
    loop = make_loop([FeTrIL(**settings)], stream, epochs=2)

    def count(module, args):
        passed[loop.experience.index] += len(args[0])

    loop.model.backbone.register_forward_pre_hook(count)
    loop.run()
    n = [len(e.train) for e in stream.experiences]
    assert passed == {0: 3 * n[0], 1: n[1], 2: n[2]}  # two epochs of training, then features
    assert loop.samples_seen == sum(passed.values())
    assert loop.clock.train_iterations == 2 * -(-n[0] // 16)


def test_new_classes_without_a_past_get_a_frozen_feature_svm():
    stream = feature_stream((3,), (20, 30, 25))
    again = Experience(1, "again", (0, 1, 2), stream.experiences[0].train)
    both = Stream("both", "vision", [stream.experiences[0], again], stream.evals, (8,), list("abc"))
    loop = trained(FeTrIL(tol=1e-6), both)
    weight, bias = expected_head(*arrays(again))
    np.testing.assert_allclose(loop.model.head.weight.detach(), weight, atol=1e-3)
    np.testing.assert_allclose(loop.model.head.bias.detach(), bias, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"head": "fc"}, {"negatives": 1}, {"select": "herd"}])
def test_one_class_that_comes_back_alone_is_the_only_answer(settings):
    stream = feature_stream((1,), (20,))
    again = Experience(1, "again", (0,), stream.experiences[0].train)
    both = Stream("both", "vision", [stream.experiences[0], again], stream.evals, (8,), ["a"])
    loop = trained(FeTrIL(**settings), both)
    assert torch.isfinite(loop.model.head.weight).all() and loop.model.head.weight.shape == (1, 8)


def test_average_incremental_accuracy_includes_state_0(tmp_path):
    result = cl.run("split_digits", "fetril", out=str(tmp_path), **{"train.updates": 20})
    n = [e["n"] for e in result.results["evals"]]
    curve = [
        sum(n[j] * row[j] for j in range(i + 1)) / sum(n[: i + 1]) for i, row in enumerate(result.R)
    ]
    assert len(curve) == 5
    assert result.metrics["average_incremental_accuracy"] == pytest.approx(np.mean(curve))
    assert result.results["cost"]["stored_bytes"] == 10 * 64 * 4


def test_a_class_that_returns_gets_its_new_mean_and_real_features_only():
    stream = feature_stream((4, 3))
    first, second = stream.experiences
    rows = (first.train.column("y") == 2).nonzero()[:, 0]
    back = Table(
        {
            name: torch.cat([first.train.rows(rows[:9])[name], second.train.column(name)])
            for name in ("x", "y")
        }
    )
    classes = (2, 4, 5, 6)
    both = Stream(
        "back",
        "vision",
        [first, Experience(1, "b", classes, back)],
        stream.evals,
        (8,),
        list("abcdefg"),
    )
    strategy = FeTrIL(tol=1e-6)
    loop = trained(strategy, both)
    (x, y), mu = arrays(both.experiences[1]), means(stream)
    mu[2] = x[y == 2].mean(0)
    np.testing.assert_allclose(strategy.mu, mu, atol=1e-5)
    xs, ys = [x], [y]
    for p in (0, 1, 3):
        n = max(classes, key=lambda n: unit(mu)[p] @ unit(mu)[n])
        xs.append(x[y == n] + mu[p] - mu[n])
        ys.append(np.full((y == n).sum(), p))
    weight, _ = expected_head(np.concatenate(xs), np.concatenate(ys))
    np.testing.assert_allclose(loop.model.head.weight.detach(), weight, atol=1e-3)


def test_ten_classes_one_by_one_and_blurred_streams_run(tmp_path):
    for stream in (
        {"base": 1, "increment": 1},
        {"blurry": 0.5, "blurry_level": 0.3},
        {"cycles": 2},
        {"task_labels": True},
    ):
        settings = {"train.updates": 10, "train.accumulate": 2}
        result = cl.run("split_digits", "fetril", stream=stream, out=str(tmp_path), **settings)
        assert not np.isnan(result.R[-1]).any()


# -- the classifiers -------------------------------------------------------------------------------


def primal(w, b, x, sign, C):
    return (w @ w + b * b) / 2 + C * (np.maximum(0, 1 - sign * (x @ w + b)) ** 2).sum()


PROBLEMS = {
    "two classes": (features(20, 6, 2), 1.0),
    "many": (features(30, 10, 12), 1.0),
    "little penalty": (features(30, 10, 5), 100.0),
    "much penalty": (features(30, 10, 5), 0.01),
    "more features than rows": (features(4, 60, 3), 1.0),
    "duplicate and dead features": (features(20, 6, 4), 1.0),
    "unequal classes": (features(40, 6, 3), 10.0),
}


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("tol", "bar"), [(1e-4, 1e-4), (1e-6, 1e-10)])
def test_the_svm_reaches_what_liblinear_does(case, dtype, tol, bar):
    (x, y), C = PROBLEMS[case]
    x = unit(x).astype(dtype)
    if case.startswith("duplicate"):
        x = np.hstack([x, x, np.zeros_like(x)])
    if case.startswith("unequal"):
        x, y = x[35:], y[35:]  # 5 rows of class 0
    classes, weight, bias = one_vs_rest(torch.tensor(x), torch.tensor(y), C, tol)
    assert classes.tolist() == sorted(set(y)) and weight.dtype == torch.tensor(x).dtype
    for c, w, b in zip(classes.tolist(), weight.double().numpy(), bias.tolist(), strict=True):
        sign = np.where(y == c, 1, -1)
        machine = LinearSVC(C=C, tol=bar, max_iter=10**5, dual=False).fit(x, sign)
        least = primal(machine.coef_[0], machine.intercept_[0], x, sign, C)
        assert primal(w, b, x, sign, C) <= least * (1 + 1e-4)


def test_the_svm_stops_later_where_the_tolerance_is_smaller():
    (x, y), sums = features(50, 10, 6), []
    for tol in (1.0, 1e-2, 1e-6):
        _, weight, bias = one_vs_rest(torch.tensor(x).double(), torch.tensor(y), 1.0, tol)
        signs = np.where(y[:, None] == np.arange(6), 1, -1)
        sums.append(
            sum(
                primal(w.numpy(), b.item(), x, s, 1.0)
                for w, b, s in zip(weight, bias, signs.T, strict=True)
            )
        )
    assert sums[0] > sums[1] > sums[2]


def test_classes_solved_together_or_apart_have_the_same_planes(monkeypatch):
    x, y = (torch.tensor(a) for a in features(30, 10, 7))
    _, together, _ = one_vs_rest(x, y, 1.0, 1e-6)
    monkeypatch.setattr("cl.svm.BLOCK", 2 * len(x))
    _, apart, _ = one_vs_rest(x, y, 1.0, 1e-6)
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=0)


def test_two_classes_share_one_plane():
    x, y = (torch.tensor(a) for a in features(classes=2))
    _, weight, bias = one_vs_rest(x, y, 1.0, 1e-4)
    machine = LinearSVC(C=1.0, dual=False).fit(x.numpy(), y.numpy())
    answers = (x @ weight.T + bias).argmax(1).numpy()
    np.testing.assert_array_equal(answers, machine.predict(x.numpy()))


@pytest.mark.parametrize("classes", [2, 5])
def test_as_many_negatives_as_there_are_give_the_solution_with_all(classes):
    x, y = features(n_per_class=20, classes=classes)
    x = unit(x).astype(np.float64)
    args = torch.tensor(x), torch.tensor(y), 1.0, 1e-6
    whole = one_vs_rest(*args)
    drawn = one_vs_rest(*args, negatives=classes - 1, rng=generator(0, "n"))
    for c in range(classes):
        values = [
            primal(w[c].double().numpy(), b[c].item(), x, np.where(y == c, 1, -1), 1.0)
            for _, w, b in (whole, drawn)
        ]
        assert values[1] == pytest.approx(values[0], rel=1e-6)
    np.testing.assert_allclose(drawn[1], whole[1], atol=1e-4)


def test_each_class_is_trained_against_r_times_its_rows_drawn_from_the_others():
    x, y = features(n_per_class=15)
    y[:5] = 4  # classes of unequal size: 10, 15, 15, 15, 20
    rng, check = generator(7, "n"), generator(7, "n")
    _, weight, bias = one_vs_rest(torch.tensor(x), torch.tensor(y), 0.5, 1e-6, 2, rng)
    for c in range(5):
        own, others = np.flatnonzero(y == c), np.flatnonzero(y != c)
        drawn = others[torch.randperm(len(others), generator=check)[: 2 * len(own)].numpy()]
        rows = np.concatenate([own, drawn])
        assert len(set(rows)) == min(3 * len(own), len(y))
        machine = LinearSVC(C=0.5, tol=1e-6, dual=False).fit(x[rows], y[rows] == c)
        np.testing.assert_allclose(weight[c], machine.coef_[0], atol=1e-3)
        assert bias[c].item() == pytest.approx(machine.intercept_[0], abs=1e-3)


def test_the_fc_head_is_sgd_with_momentum_on_the_cross_entropy():
    x, y = (torch.tensor(a) for a in features(n_per_class=40))
    weight, bias = fc(F.normalize(x), y, 3, 0.1, generator(0, "test"), batch=32)
    layer, rng = torch.nn.Linear(6, 5), generator(0, "test")
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        for rows in torch.randperm(len(x), generator=rng).split(32):
            optimizer.zero_grad()
            F.cross_entropy(layer(F.normalize(x)[rows]), y[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(weight, layer.weight.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, layer.bias.detach(), atol=1e-5, rtol=0)


def test_the_fc_heads_rate_falls_to_a_tenth_after_ten_epochs_without_progress():
    x, y = features(n_per_class=8, classes=2)
    x[:] = x[0]  # nothing to tell the classes by: no progress is soon all there is
    y[:3] = 1
    target, one = np.eye(2)[y], np.ones((16, 1))
    rows, theta, velocity = np.hstack([x, one]).astype(np.float64), np.zeros((2, 7)), 0.0
    rate, best, waited, rates = 0.01, np.inf, 0, []
    for _ in range(60):
        p = np.exp(rows @ theta.T)
        p /= p.sum(1, keepdims=True)
        loss = -np.log((p * target).sum(1)).mean()
        velocity = 0.9 * velocity + (p - target).T @ rows / 16
        theta = theta - rate * velocity
        waited = 0 if loss < best * (1 - 1e-4) else waited + 1
        best = min(best, loss) if waited == 0 else best
        if waited > 10:
            rate, waited = rate / 10, 0
        rates.append(rate)
    assert 0.001 in np.round(rates, 9)
    weight, bias = fc(torch.tensor(x), torch.tensor(y), 60, 0.01, generator(0, "test"))
    np.testing.assert_allclose(weight, theta[:, :-1], atol=1e-5)
    np.testing.assert_allclose(bias, theta[:, -1], atol=1e-5)


def test_the_fc_head_separates_what_the_svm_separates():
    x, y = (torch.tensor(a) for a in features(n_per_class=40))
    x, accuracy = F.normalize(x), []
    for weight, bias in (fc(x, y, 50, 0.1, generator(0, "test")), one_vs_rest(x, y, 1.0, 1e-4)[1:]):
        accuracy.append(((x @ weight.T + bias).argmax(1) == y).float().mean())
    assert accuracy[0] >= accuracy[1] - 0.03 and accuracy[1] > 0.9


def test_the_fc_head_leaves_the_global_random_numbers_alone():
    x, before = torch.rand(8, 3), torch.get_rng_state()
    fc(x, torch.arange(8) % 2, 2, 0.1, generator(0, "test"))
    assert torch.equal(torch.get_rng_state(), before)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "fc"},
        {"similarity": "euclidean"},
        {"C": 0.1},
        {"select": "rand"},
        {"select": "herd"},
        {"k": 2},
        {"negatives": 1},
        {"head": "fc", "fc_lr": 0.01},
        {"head": "fc", "fc_epochs": 2},
    ],
    ids=str,
)
def test_every_setting_changes_the_classifier(settings):
    plain, other = trained(FeTrIL()), trained(FeTrIL(**settings))
    same = torch.equal(plain.model.head.weight, other.model.head.weight)
    assert not same or settings == {"similarity": "euclidean"}  # the same source may be nearest


BAD = {
    "k": ({"k": 3}, r"strategy.k=3: .* has no more than 2 classes .* allowed: 1 to 2"),
    "k and rand": ({"k": 2, "select": "rand"}, "strategy.k=2 has no meaning with select=rand"),
    "k and herd": ({"k": 2, "select": "herd"}, "strategy.k=2 has no meaning with select=herd"),
    "negatives and fc": ({"negatives": 5, "head": "fc"}, "negatives=5 has no meaning with head=fc"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_without_a_meaning_are_refused_before_training(case):
    settings, message = BAD[case]
    with pytest.raises(BadValue, match=message) as error:
        make_loop([FeTrIL(**settings)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"select": "rand"}, {"select": "herd"}, {"negatives": 2}, {"head": "fc"}],
    ids=str,
)
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(settings, tmp_path):
    keys = {f"strategy.{k}": v for k, v in settings.items()}
    keys |= {"stream.n_experiences": 5, "train.updates": 2}
    first = cl.run("split_digits", "fetril", out=str(tmp_path / "a"), **keys)
    kept = tmp_path / "kept"
    shutil.copytree(first.dir, kept)
    passed, what, detail = _resumed("resumed equals uninterrupted", first, kept)
    assert passed, f"{what}: {detail}"
