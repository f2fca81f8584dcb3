"""Exemplar methods and DeeSIL against independent calculations, and what they must show."""

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, blobs, make_loop, tiny_stream, weights
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.svm import LinearSVC

import cl
from cl.data import Table
from cl.errors import BadValue
from cl.evaluation import InferenceBatch
from cl.herding import herd, refreshed
from cl.seeding import frozen
from cl.stream import Eval, Experience, Stream
from cl.svm import one_vs_rest
from strategies.bic import BiC, fit, shares
from strategies.deesil import DeeSIL
from strategies.icarl import ICaRL
from strategies.naive import Naive
from strategies.wa import WA, aligned

METHODS = (ICaRL, WA, BiC)


class Batches(Naive):
    """Keeps every micro-batch with the outputs and the loss that was minimised."""

    def __init__(self):
        self.seen = []

    def after_backward(self, loop):
        y, past = loop.mb_y.numpy(), set(range(loop.known_classes)) - set(loop.experience.classes)
        output, loss = loop.mb_output.detach().double().numpy(), loop.loss.item()
        self.seen.append((loop.experience.index, loop.mb_x, y, output, loss, sorted(past)))


def watched(strategy, stream=None, **train):
    """The last experience's first batch under `strategy`, and the old model's outputs for it."""
    old, look = {}, Batches()

    class Old(Naive):
        def before_training_exp(self, loop):
            old[loop.experience.index] = strategy.old

    loop = make_loop([strategy, Old(), look], stream or tiny_stream(6, (2, 2, 2)), **train)
    loop.run()
    last = len(loop.stream) - 1
    _, x, y, output, loss, past = next(b for b in look.seen if b[0] == last)
    return loop, old[last](x).double().numpy(), y, output, loss, past


def several_domains(with_labels=False, returning=True):
    """Three experiences: classes 0-1, 2-3, then all again (or 4-5); perhaps with task labels."""
    n = 4 if returning else 6
    data = blobs(n)
    task = torch.tensor([0, 0, 1, 1, 2, 2])[data.y]
    pool = {"x": data.x, "y": data.y}
    pool |= {"task_label": task} if with_labels else {}
    sets = ((0, 1), (2, 3), (0, 1, 2, 3) if returning else (4, 5))
    experiences, evals = [], []
    for i, classes in enumerate(sets):
        own = torch.isin(data.y, torch.tensor(classes))
        label = i if with_labels else None
        train = data.train[own[data.train]]
        train = train[i::3] if returning else train  # other rows each time
        test = Table(pool, data.test[own[data.test]])
        experiences.append(Experience(i, f"e{i}", classes, Table(pool, train), task_label=label))
        evals.append(Eval(f"e{i}", classes, test, None, (i,), task_label=label))
    names = [str(c) for c in range(n)]
    return Stream("mixed", "vision", experiences, evals, (1, 8, 8), names)


def rows_of(table):
    return {tuple(row.flatten().tolist()) for row in table.column("x")}


# -- herding ------------------------------------------------------------------------------------


def test_herding_is_algorithm_4_by_brute_force():
    phi = np.random.default_rng(0).normal(size=(12, 5))
    phi /= np.linalg.norm(phi, axis=1, keepdims=True)
    mu, chosen = phi.mean(0), []
    for k in range(1, 8):
        left = [n for n in range(12) if n not in chosen]
        sums = phi[chosen].sum(0)
        chosen.append(min(left, key=lambda n: np.linalg.norm(mu - (phi[n] + sums) / k)))
    got = herd(torch.tensor(phi), torch.tensor(mu), 7).tolist()
    assert got == chosen
    assert herd(torch.tensor(phi), torch.tensor(mu), 4).tolist() == chosen[:4]
    assert sorted(herd(torch.tensor(phi), torch.tensor(mu), 99).tolist()) == list(range(12))


def test_a_class_that_returns_is_herded_towards_the_mean_of_all_its_rows():
    loop = make_loop([Naive()], several_domains())
    loop.run()
    first, _, third = (e.train for e in loop.stream.experiences)
    stored, counts = refreshed(loop, {}, {}, first, 3)
    both, counts = refreshed(loop, stored, counts, third, 5)

    def unit(x):
        f = loop.features(Table({"x": x, "y": torch.zeros(len(x)).long()})).double().numpy()
        return f / np.linalg.norm(f, axis=1, keepdims=True)

    own = [t.column("x")[t.column("y") == 1] for t in (first, third)]
    before, now = unit(stored[1]["x"]), unit(own[1])
    mu = (len(own[0]) * before.mean(0) + now.sum(0)) / (len(own[0]) + len(own[1]))
    everything, chosen = np.concatenate([before, now]), []
    for k in range(1, 6):
        left = [n for n in range(len(everything)) if n not in chosen]
        sums = everything[chosen].sum(0)
        chosen.append(min(left, key=lambda n: np.linalg.norm(mu - (everything[n] + sums) / k)))
    torch.testing.assert_close(both[1]["x"], torch.cat([stored[1]["x"], own[1]])[chosen])
    assert counts[1] == len(own[0]) + len(own[1])


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_shared_by_the_classes_seen_and_old_lists_are_cut(method):
    kept, total = [], []

    class Look(Naive):
        def after_training_exp(self, loop):
            kept.append({c: rows["x"] for c, rows in strategy.exemplars.items()})
            held = strategy.val if method is BiC else {}
            total.append(sum(len(r["y"]) for r in (*strategy.exemplars.values(), *held.values())))

    strategy = method(size=25)
    make_loop([strategy, Look()], tiny_stream(6, (2, 2, 2))).run()
    # bic's classes have 22 training rows after validation, a tenth of which it may hold out
    n = 1 if method is BiC else 0
    assert [[len(x) for x in k.values()] for k in kept] == [[12 - n] * 2, [6 - n] * 4, [4 - n] * 6]
    assert all(t <= 25 for t in total)
    for before, after in zip(kept, kept[1:], strict=False):
        for c, x in before.items():
            assert torch.equal(after[c], x[: len(after[c])])


@pytest.mark.parametrize("method", METHODS)
def test_training_is_on_the_union_and_evaluation_data_stay_as_they_are(method):
    stream, sizes = tiny_stream(6, (2, 2, 2)), []
    strategy, before = method(size=30), stream.content_hash()

    class Look(Naive):
        def after_train_dataset_adaptation(self, loop):
            e, stored = loop.experience, sum(len(r["y"]) for r in strategy.exemplars.values())
            held = 0 if method is not BiC else len(e.train) - len(strategy.rest)
            sizes.append((len(loop.adapted_dataset), len(e.train) - held + stored))

    make_loop([strategy, Look()], stream).run()
    assert sizes[2][1] > sizes[0][1] and all(got == expected for got, expected in sizes)
    assert stream.content_hash() == before
    train = set.union(*(rows_of(e.train) for e in stream.experiences))
    for c, rows in strategy.exemplars.items():
        assert set(rows["y"].tolist()) == {c} and rows_of(Table(rows)) <= train


@pytest.mark.parametrize("method", METHODS)
def test_exemplars_are_stored_as_raw_bytes(method):
    data = blobs(4, shape=(3, 8, 8))
    data.x = (data.x.clamp(0, 1) * 255).to(torch.uint8)
    stream = cl.stream.class_incremental("b", data, sizes=[2, 2], order="fixed", val=0, seed=0)
    strategy = method(size=16)
    make_loop([strategy], stream, augment=["crop", "flip"]).run()
    assert all(rows["x"].dtype == torch.uint8 for rows in strategy.exemplars.values())


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_return_are_learned_from_labels_and_not_distilled(method):
    strategy, look = method(size=20), Batches()
    loop = make_loop([strategy, look], several_domains())
    loop.run()
    assert [b[5] for b in look.seen if b[0] == 1][0] == [0, 1]
    _, _, y, output, loss, past = next(b for b in look.seen if b[0] == 2)
    assert past == [] and len(strategy.past) == 0
    if method is ICaRL:
        sign = np.where(np.eye(4)[y] > 0, 1, -1)
        expected = np.log1p(np.exp(-sign * output)).sum(1).mean()
    else:
        expected = -log_softmax(output, axis=1)[np.arange(len(y)), y].mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert set(strategy.exemplars) == {0, 1, 2, 3}


@pytest.mark.parametrize("method", METHODS)
def test_task_labels_travel_with_the_exemplars(method):
    strategy = method(size=24)
    look = []

    class Look(Naive):
        def after_backward(self, loop):
            look.append((loop.experience.index, loop.mb_y, loop.mb_task_id, loop.loss.item()))

    loop = make_loop([strategy, Look()], several_domains(True, returning=False))
    loop.run()
    for _, y, task, loss in look:
        assert torch.equal(task, y // 2) and np.isfinite(loss)
    assert any((task != index).any() for index, _, task, _ in look)
    test = loop.stream.evals[1].test
    batch = InferenceBatch(test.column("x"), test.column("task_label"))
    if method is ICaRL:
        answers = loop.predict(batch).argmax(1)
        assert set(answers.tolist()) <= {2, 3}


def test_with_task_labels_icarl_counts_new_classes_of_the_rows_task_and_all_old_ones():
    _, old, y, output, loss, past = watched(ICaRL(size=24), several_domains(True, returning=False))
    assert past == [0, 1, 2, 3] and set(y) & {4, 5} and set(y) & set(past)
    total = 0.0
    for i in range(len(y)):
        for c in range(6) if y[i] >= 4 else range(4):
            g, q = expit(output[i, c]), expit(old[i, c]) if c < 4 else float(y[i] == c)
            total -= q * np.log(g) + (1 - q) * np.log(1 - g)
    assert loss == pytest.approx(total / len(y), rel=1e-5)


@pytest.mark.parametrize("method", ["icarl", "wa", "bic"])
def test_a_memory_too_small_for_every_class_is_refused(method, tmp_path):
    with pytest.raises(BadValue, match="size=9 can't hold . of each of the stream's 10 classes"):
        cl.run("split_digits", method, strategy={"size": 9}, out=str(tmp_path))
    with pytest.raises(BadValue):
        cl.run("split_digits", method, strategy={"size": 0}, out=str(tmp_path))


# -- iCaRL ----------------------------------------------------------------------------------------


def test_the_icarl_loss_is_algorithm_3_after_the_head_has_grown():
    _, old, y, output, loss, past = watched(ICaRL(size=30))
    assert past == [0, 1, 2, 3] and output.shape[1] == 6 and set(y) & {4, 5} and set(y) & set(past)
    total = 0.0
    for i in range(len(y)):
        for c in range(6):
            g, q = expit(output[i, c]), expit(old[i, c]) if c < 4 else float(y[i] == c)
            total -= q * np.log(g) + (1 - q) * np.log(1 - g)
    assert loss == pytest.approx(total / len(y), rel=1e-5)


@pytest.mark.parametrize("mirror", [False, True])
def test_icarl_answers_with_the_nearest_mean_of_exemplars(mirror):
    strategy = ICaRL(size=20, mirror=mirror)
    loop = make_loop([strategy], epochs=2)
    loop.run()

    def unit(x):
        with frozen(loop.model):
            f = loop.model.features(x).double().numpy()
        return f / np.linalg.norm(f, axis=1, keepdims=True)

    means = []
    for c in range(4):
        x = strategy.exemplars[c]["x"]
        views = [unit(x), unit(torch.flip(x, (3,)))] if mirror else [unit(x)]
        mean = np.mean([v.mean(0) for v in views], axis=0)
        means.append(mean / np.linalg.norm(mean))
    x = torch.cat([e.test.column("x") for e in loop.stream.evals])
    distance = np.linalg.norm(unit(x)[:, None] - np.array(means), axis=2)
    with frozen(loop.model):
        scores = loop.predict(InferenceBatch(x))
    np.testing.assert_array_equal(scores.argmax(1).numpy(), distance.argmin(1))
    np.testing.assert_allclose(2 - 2 * scores.numpy(), distance**2, atol=1e-5)


def test_the_head_answers_while_features_move_and_where_it_is_asked_to():
    same = []

    class Look(Naive):
        def after_update(self, loop):
            x = loop.stream.evals[0].test.column("x")
            with frozen(loop.model):
                same.append(torch.equal(loop.predict(InferenceBatch(x)), loop.model(x)))

    make_loop([ICaRL(size=20), Look()]).run()
    assert same and all(same)
    loop = make_loop([ICaRL(size=20, classifier="head")])
    loop.run()
    x = loop.stream.evals[0].test.column("x")
    with frozen(loop.model):
        assert torch.equal(loop.predict(InferenceBatch(x)), loop.model(x))


# -- WA and BiC: the distillation that they share -------------------------------------------------


@pytest.mark.parametrize("strategy", [WA(size=30, T=3.0), BiC(size=30, T=3.0)], ids=["wa", "bic"])
def test_the_loss_is_lam_kd_and_one_minus_lam_ce_after_the_head_has_grown(strategy):
    _, old, y, output, loss, past = watched(strategy)
    assert past == [0, 1, 2, 3] and set(y) & {4, 5} and set(y) & set(past)
    lam = 4 / 6
    p = softmax(old[:, :4] / 3, axis=1)
    kd = -np.mean([p[i] @ np.log(softmax(output[i, :4] / 3)) for i in range(len(y))])
    ce = -np.mean([np.log(softmax(output[i])[y[i]]) for i in range(len(y))])
    assert loss == pytest.approx(lam * kd + (1 - lam) * ce, rel=1e-5)


# -- WA -------------------------------------------------------------------------------------------


def test_aligned_rows_have_the_old_rows_mean_norm_and_the_rest_is_untouched():
    w = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 20.0]])
    got = aligned(w, torch.tensor([0, 1]), torch.tensor([2, 3]))  # (5 + 1) / 2 over (10 + 20) / 2
    torch.testing.assert_close(got, torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.2, 1.6], [0.0, 4.0]]))


def test_wa_aligns_after_every_experience_and_distils_the_aligned_model():
    norms = []

    class Look(Naive):
        def after_training_exp(self, loop):
            n = loop.model.head.weight.norm(dim=1)
            norms.append((n[: loop.known_classes].mean(), n[loop.known_classes :].mean()))
            assert_same_weights(weights(loop.model), weights(strategy.old))

    for align in (True, False):
        norms.clear()
        strategy = WA(size=20, align=align)
        make_loop([strategy, Look()], tiny_stream(6, (2, 2, 2)), epochs=2).run()
        equal = [torch.allclose(old, new) for old, new in norms[1:]]
        assert equal == [align, align]


def test_wa_without_clipping_is_naive_without_a_bias_in_experience_0():
    class Unbiased(Naive):
        def before_training_exp(self, loop):
            loop.model.head.bias.requires_grad_(False).zero_()

    stream = tiny_stream(sizes=(4,))
    left = make_loop([Unbiased()], stream, epochs=3)
    right = make_loop([WA(clip=False)], stream, epochs=3)
    left.run()
    right.run()
    assert_same_weights(weights(left.model), weights(right.model))


def test_wa_keeps_the_bias_at_zero_and_clips_weights():
    for clip in (True, False):
        loop = make_loop([WA(size=20, clip=clip)], epochs=2)
        loop.run()
        assert not loop.model.head.bias.any()
        assert bool((loop.model.head.weight >= 0).all()) is clip


# -- BiC ------------------------------------------------------------------------------------------


def test_shares_give_a_tenth_to_validation_and_at_least_one_row_to_either():
    assert [shares(200, n, 0.1) for n in (2, 10)] == [(90, 10), (18, 2)]
    assert shares(20, 10, 0.1) == (1, 1) and shares(20, 10, 0.9) == (1, 1)
    assert shares(200, 2, 0.5) == (50, 50)


@pytest.mark.parametrize("masked", [False, True])
def test_alpha_and_beta_minimise_the_regularised_cross_entropy(masked):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(5), 8)
    o = rng.normal(size=(40, 5)) + 1.5 * np.eye(5)[y]
    o[:, 3:] = 2 * o[:, 3:] + 3  # a bias towards the new classes

    allowed = np.zeros((40, 5))
    if masked:
        allowed[y > 0, 0] = allowed[y < 2, 3] = -np.inf

    def loss(theta):
        q = np.concatenate([o[:, :3], theta[0] * o[:, 3:] + theta[1]], axis=1)
        return -log_softmax(q + allowed, axis=1)[np.arange(40), y].mean() + 0.05 * theta[1] ** 2

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6}).x
    args = torch.tensor(o), torch.tensor(y), torch.tensor([3, 4]), torch.tensor(allowed)
    got = torch.stack(fit(*args, 2000, 0.1, 0.1)).numpy()
    np.testing.assert_allclose(got, best, atol=1e-3)
    assert best[0] < 0.9 and best[1] < -0.5
    assert torch.stack(fit(*args, 0, 0.1, 0.1)).tolist() == [1.0, 0.0]


def test_bic_corrects_new_outputs_and_goes_on_from_uncorrected_ones():
    raw, fixed, begun = {}, {}, {}

    class Before(Naive):
        def after_training_exp(self, loop):
            raw[loop.experience.index] = (
                loop.model.head.weight.clone(),
                loop.model.head.bias.clone(),
            )

    class After(Naive):
        def before_training_exp(self, loop):
            begun[loop.experience.index] = loop.model.head.weight.clone()

        def after_training_exp(self, loop):
            fixed[loop.experience.index] = weights(loop.model)
            assert_same_weights(fixed[loop.experience.index], weights(strategy.old))

    strategy = BiC(size=40)
    make_loop([Before(), strategy, After()], tiny_stream(6, (2, 2, 2)), epochs=2).run()
    assert torch.equal(fixed[0]["head.weight"], raw[0][0])
    for index, new in ((1, [2, 3]), (2, [4, 5])):
        (w, b), got = raw[index], fixed[index]
        assert torch.equal(got["head.weight"][: new[0]], w[: new[0]])
        alpha = (got["head.weight"][new] / w[new]).flatten()
        assert torch.allclose(alpha, alpha[0], rtol=1e-4) and abs(alpha[0] - 1) > 1e-3
        beta = got["head.bias"][new] - alpha[0] * b[new]
        assert torch.allclose(beta, beta[0], atol=1e-5)
    assert torch.equal(begun[2][:4], raw[1][0])
    assert not torch.equal(begun[2][:4], fixed[1]["head.weight"])


def test_bic_never_trains_on_held_out_rows_and_holds_out_as_many_of_each_class():
    trained, held, sizes = set(), set(), []

    class Look(Naive):
        def after_train_dataset_adaptation(self, loop):
            trained.update(rows_of(loop.adapted_dataset))
            for rows in strategy.val.values():
                held.update(rows_of(Table(rows)))
            sizes.append([len(rows["y"]) for rows in strategy.val.values()])

    strategy = BiC(size=60, val=0.3)
    stream = tiny_stream(6, (2, 2, 2))
    make_loop([strategy, Look()], stream).run()
    everything = set.union(*(rows_of(e.train) for e in stream.experiences))
    assert held and not held & trained and held | trained == everything
    assert len(set(sizes[2])) == 1 and sizes[2][0] > 1


def test_bic_in_experience_0_equals_naive_on_the_rows_that_are_not_held_out():
    stream, strategy, rest = tiny_stream(sizes=(4,)), BiC(), []

    class Look(Naive):
        def before_training_exp(self, loop):
            rest.append(strategy.rest)

    class Rest(Naive):
        def data(self, loop, experience):
            return experience.train.select(rest[0])

    left = make_loop([strategy, Look()], stream, epochs=3)
    left.run()
    assert 0 < len(rest[0]) < len(stream.experiences[0].train) and strategy.rest is None
    right = make_loop([Rest()], stream, epochs=3)
    right.run()
    assert_same_weights(weights(left.model), weights(right.model))


def test_bic_learns_a_class_of_one_row_and_corrects_nothing_then():
    stream = tiny_stream(val=0)
    e = stream.experiences[1]
    y = e.train.column("y")
    e.train = e.train.select(torch.cat([(y == 2).nonzero()[:1, 0], (y == 3).nonzero()[:, 0]]))
    bic = BiC(size=20)
    make_loop([bic], stream).run()
    assert bic.raw is None and len(bic.val[2]["y"]) == 0 and 2 in bic.exemplars


# -- DeeSIL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [(4, 7), (1, 3, 6)])
def test_every_svm_is_its_class_against_the_rest_of_the_experience(classes):
    rng = np.random.default_rng(0)
    y = np.repeat(classes, 20)
    f = rng.normal(size=(len(y), 6)) + rng.normal(size=(8, 6))[y]
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    got, weight, bias = one_vs_rest(torch.tensor(f), torch.tensor(y), 2.0, 1e-5)
    assert got.tolist() == list(classes)
    for k, c in enumerate(classes):
        sign = np.where(y == c, 1.0, -1.0)

        def primal(wb, sign=sign):
            margin = np.maximum(0, 1 - sign * (f @ wb[:-1] + wb[-1]))
            return wb @ wb / 2 + 2.0 * (margin**2).sum()

        best = minimize(primal, np.zeros(7), tol=1e-8).x
        np.testing.assert_allclose(weight[k].numpy(), best[:-1], atol=5e-3)
        assert bias[k].item() == pytest.approx(best[-1], abs=5e-3)


def test_deesil_freezes_the_extractor_and_keeps_earlier_svms():
    kept = []

    class Look(Naive):
        def after_training_exp(self, loop):
            kept.append(weights(loop.model))

    stream = tiny_stream(6, (2, 2, 2))
    loop = make_loop([DeeSIL(), Look()], stream, epochs=2)
    loop.run()
    naive = make_loop([Naive()], tiny_stream(6, (2,)), epochs=2)
    naive.run()
    trunk = [{k: v for k, v in w.items() if "head" not in k} for w in (*kept, weights(naive.model))]
    for other in trunk[1:]:
        assert_same_weights(trunk[0], other)
    for before, after in zip(kept, kept[1:], strict=False):
        n = len(before["head.bias"])
        assert torch.equal(after["head.weight"][:n], before["head.weight"])
    f, y = loop.features(stream.experiences[2].train), stream.experiences[2].train.column("y")
    unit = torch.nn.functional.normalize(f).numpy()
    machine = LinearSVC(C=1.0, tol=1e-4, dual=False).fit(unit, (y == 5).numpy())
    np.testing.assert_allclose(kept[2]["head.weight"][5:].numpy(), machine.coef_, atol=1e-4)
    assert loop.model.normalize and not any(p.requires_grad for p in loop.model.parameters())


def test_deesil_refuses_a_class_that_comes_alone():
    with pytest.raises(BadValue, match="two or more classes in every experience, 01_2 has one"):
        make_loop([DeeSIL()], tiny_stream(4, (2, 1, 1))).run()


# -- what they must show --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Final metrics of a run on split_digits, by method and settings; each is done once."""
    out, done = str(tmp_path_factory.mktemp("runs")), {}

    def metrics(name, stream=None, **settings):
        key = name, str(stream), str(settings)
        if key not in done:
            kinds = {"strategy": settings} if settings else {}
            done[key] = cl.run("split_digits", name, out=out, stream=stream or {}, **kinds).metrics
        return done[key]

    return metrics


@pytest.mark.parametrize("name", ["icarl", "wa", "bic"])
def test_200_exemplars_keep_most_of_split_digits(run, name):
    assert run(name)["average_accuracy"] >= 0.92


def test_icarl_nearest_means_beat_its_own_head(run):
    head = run("icarl", classifier="head")["average_accuracy"]
    assert run("icarl")["average_accuracy"] >= head + 0.1


def test_aligning_raises_the_accuracy_on_past_classes(run):
    unaligned = run("wa", size=40, align=False)["past_accuracy"][-1]
    assert run("wa", size=40)["past_accuracy"][-1] >= unaligned + 0.1


def test_bias_correction_raises_the_accuracy_on_past_classes(run):
    biased = run("bic", size=40, bias_epochs=0)["past_accuracy"][-1]
    assert run("bic", size=40)["past_accuracy"][-1] >= biased + 0.1


def test_deesil_is_between_naive_and_fetril_after_a_good_first_experience(run):
    stream = {"base": 6, "increment": 2}
    accuracy = run("deesil", stream)["average_accuracy"]
    assert 0.33 + 0.3 <= accuracy <= run("fetril", stream)["average_accuracy"]  # 0.33 is naive's
