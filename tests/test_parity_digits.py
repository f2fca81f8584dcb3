"""ParityDigits: which images, which labels, which answers; the oracle's labels."""

import numpy as np
import pytest
import torch
from conftest import make_loop, tiny_stream, weights
from PIL import Image
from sklearn.datasets import load_digits

from cl.errors import BadValue, DataError
from cl.models import build
from strategies.naive import Naive
from strategies.oracle_sft import OracleSFT, drawn_among
from streams.parity_digits import parity_digits


@pytest.fixture(scope="module")
def small():
    return parity_digits(size=8)


def images(table):
    return table.column("x")[:, :-1]


def as_keys(x):
    return {row.numpy().round(4).tobytes() for row in x}


def test_the_inputs_are_grey_values_and_the_task(small):
    old, parity = small.evals
    assert small.input_shape == (65,) and (old.name, parity.name) == ("old", "parity")
    assert set(old.test.column("x")[:, -1].tolist()) == {-1.0}
    assert set(parity.test.column("x")[:, -1].tolist()) == {1.0}
    task = small.experiences[0].train.column("x")[:, -1]
    assert ((task == 1).sum(), (task == -1).sum()) == (500, 500)
    assert set(small.experiences[1].train.column("x")[:, -1].tolist()) == {1.0}
    x = images(small.experiences[0].train)
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1


def test_images_are_those_of_scikit_learn_and_none_is_in_two_splits(small):
    digits = load_digits().images.reshape(-1, 64) / 16
    known = as_keys(torch.tensor(digits, dtype=torch.float32))
    parity = [t for e in small.experiences for t in (e.train,)]
    first = parity[0]
    own = first.select((first.column("x")[:, -1] == 1).nonzero()[:, 0])
    parts = [as_keys(images(t)) for t in (own, parity[1])]
    parts += [as_keys(images(small.evals[1].val)), as_keys(images(small.evals[1].test))]
    assert all(part <= known for part in parts)
    assert sum(map(len, parts)) == len(set().union(*parts))
    total = 500 + sum(len(t) for t in (own, parity[1], small.evals[1].val, small.evals[1].test))
    assert total == 1797


def test_the_old_task_is_one_permutation_of_other_images(small):
    first = small.experiences[0].train
    old = images(first.select((first.column("x")[:, -1] == -1).nonzero()[:, 0]))
    plain, permuted = images(small.evals[1].test), images(small.evals[0].test)
    pairs = torch.cdist(plain.T, permuted.T)  # columns of one are those of the other
    assert (pairs.min(1).values == 0).all() and not torch.equal(plain, permuted)
    order = pairs.argmin(1)
    used = as_keys(torch.cat([images(e.train) for e in small.experiences]))
    assert not as_keys(old[:, order]) & used, "no digit is trained on in both tasks"


@pytest.mark.parametrize(
    ("demonstrations", "even", "odd"),
    [("sft1", {0}, {1}), ("sft2", {0, 4}, {1, 5}), ("uniform", {0, 2, 4, 6, 8}, {1, 3, 5, 7, 9})],
)
def test_demonstrations_choose_among_the_right_answers(demonstrations, even, odd):
    stream = parity_digits(size=8, demonstrations=demonstrations)
    rows = stream.experiences[1].train.rows(torch.arange(len(stream.experiences[1].train)))
    assert set(rows["y"][rows["answer"] == 10].tolist()) == even
    assert set(rows["y"][rows["answer"] == 11].tolist()) == odd
    assert stream.is_right(rows, rows["y"]).all()
    counts = np.bincount(rows["y"].numpy(), minlength=10)
    assert counts[sorted(even)].min() > 0.5 * counts[sorted(even)].mean()
    assert stream.experiences[1].classes == tuple(sorted(even | odd))


def test_pretraining_shows_any_digit_of_the_right_parity(small):
    first = small.experiences[0].train
    rows = first.rows(torch.arange(len(first)))
    parity = rows["answer"] >= 10
    y, odd = rows["y"][parity], rows["answer"][parity] - 10
    assert torch.equal(y % 2, odd)
    assert np.bincount(y.numpy(), minlength=10).min() > 25
    assert torch.equal(rows["y"][~parity], rows["answer"][~parity])


def test_right_are_five_digits_or_the_one_that_is_shown(small):
    rows = small.evals[1].test.rows(torch.arange(len(small.evals[1].test)))
    for c in range(10):
        said = torch.full_like(rows["y"], c)
        assert torch.equal(small.is_right(rows, said), rows["y"] % 2 == c % 2)
    assert small.evals[1].chance == pytest.approx(0.5) and small.evals[0].chance == pytest.approx(
        0.1
    )
    one = parity_digits(size=8, answers="one")
    rows = one.evals[1].test.rows(torch.arange(len(one.evals[1].test)))
    right = torch.stack([one.is_right(rows, torch.full_like(rows["y"], c)) for c in range(10)], 1)
    assert right.sum(1).eq(1).all() and torch.equal(right.float().argmax(1), rows["answer"] - 10)
    assert torch.equal(one.experiences[0].train.column("y"), small.experiences[0].train.column("y"))
    with pytest.raises(BadValue, match="sft1"):
        parity_digits(answers="one", demonstrations="sft2")


def test_the_phases_are_the_two_experiences(small):
    first, second = (parity_digits(size=8, phase=p) for p in ("pretraining", "parity"))
    for part, e in zip((first, second), small.experiences, strict=True):
        assert len(part) == 1
        assert torch.equal(part.experiences[0].train.column("x"), e.train.column("x"))
        assert torch.equal(part.experiences[0].train.column("y"), e.train.column("y"))
    assert [(e.kind, e.learned_at) for e in small.evals] == [("stream", (0,)), ("stream", (0, 1))]
    assert [(e.kind, e.learned_at) for e in first.evals] == [("stream", (0,))] * 2
    assert [(e.kind, e.learned_at) for e in second.evals] == [("held_out", ()), ("stream", (0,))]
    assert second.seen_classes(0) == 10, "it starts from a model with ten outputs"


def test_a_larger_image_is_the_same_image():
    small, large = parity_digits(size=8), parity_digits(size=28)
    assert large.input_shape == (785,)
    a, b = (images(s.evals[1].test) for s in (small, large))
    down = torch.nn.functional.interpolate(b.view(-1, 1, 28, 28), (8, 8), mode="area").flatten(1)
    assert np.corrcoef(a.flatten(), down.flatten())[0, 1] > 0.95


def folder(tmp_path, n_classes=10, per_class=8):
    rng = np.random.default_rng(0)
    for c in range(n_classes):
        (tmp_path / "old" / f"c{c}").mkdir(parents=True)
        for k in range(per_class):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "old" / f"c{c}" / f"{k}.png")
    return tmp_path / "old"


def test_images_of_ones_own_are_the_old_task(tmp_path):
    path = folder(tmp_path, per_class=30)
    stream = parity_digits(size=12, old=path, n_pretraining=40, val=0.05)
    train = stream.experiences[0].train
    old = train.select((train.column("x")[:, -1] == -1).nonzero()[:, 0])
    grey = set()
    for file in path.glob("*/*.png"):
        rgb = np.asarray(Image.open(file), dtype=float) / 255
        grey.add((rgb @ [0.299, 0.587, 0.114]).ravel().round(3).tobytes())
    assert len(old) == 40
    assert all(row.double().numpy().round(3).tobytes() in grey for row in images(old)[:5])
    assert len(stream.evals[0].test) == 60
    assert len(stream.experiences[1].train) > 900, "all digits are parity's"
    with pytest.raises(DataError, match="training images"):
        parity_digits(size=12, old=path)


def test_the_old_task_needs_ten_classes_and_digits_enough(tmp_path):
    with pytest.raises(DataError, match="10 classes, it has 3"):
        parity_digits(old=folder(tmp_path, n_classes=3))
    with pytest.raises(BadValue, match="n_pretraining=700 needs"):
        parity_digits(n_pretraining=700)


# -- oracle_sft ---------------------------------------------------------------------------------


def test_labels_follow_the_models_distribution_among_right_classes():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    right = torch.tensor([[True, False, True, True]]).expand(20000, 4)
    drawn = drawn_among(logits, right, torch.Generator().manual_seed(0))
    p = np.exp([2.0, -np.inf, 0.0, -1.0])
    p /= p.sum()
    shares = np.bincount(drawn.numpy(), minlength=4) / 20000
    assert np.abs(shares - p).max() < 4 * np.sqrt(0.25 / 20000)
    assert shares[1] == 0


class Seen(OracleSFT):
    """Keeps what is trained on."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.kept = []

    def before_backward(self, loop):
        rows = loop.adapted_dataset.rows(loop.mb_index)
        right = loop.stream.is_right(rows, loop.mb_y)
        self.kept.append((loop.experience.index, rows["y"].tolist(), loop.mb_y.tolist(), right))


def mlp(stream):
    return lambda: build("mlp", stream.input_shape, {"hidden": [16]})


def test_the_oracles_labels_are_right_and_drawn_anew_in_every_epoch(small):
    strategy = Seen()
    loop = make_loop([strategy], stream=small, model=mlp(small), epochs=2, batch_size=64)
    loop.run()
    first = [k for k in strategy.kept if k[0] == 0]
    later = [k for k in strategy.kept if k[0] == 1]
    assert all(shown == learned for _, shown, learned, _ in first), "as shown"
    assert all(bool(right.all()) for *_, right in later)
    assert len({c for _, _, learned, _ in later for c in learned}) > 5
    assert strategy.base is None


def test_its_oracle_is_the_model_at_the_experiences_start(small):
    class Drawn(OracleSFT):
        start = None

        def before_training_exp(self, loop):
            super().before_training_exp(loop)
            if self.base is not None:
                type(self).start = weights(loop.model)

        def after_update(self, loop):
            if self.base is not None:
                assert all(torch.equal(t, self.start[n]) for n, t in self.base.state_dict().items())
                assert not self.base.training

    make_loop([Drawn()], stream=small, model=mlp(small), epochs=1, batch_size=64).run()
    assert Drawn.start is not None


def test_with_one_right_answer_it_is_naive():
    stream = tiny_stream()
    runs = []
    for strategy in (Naive(), OracleSFT(begin=0)):
        loop = make_loop([strategy], stream=tiny_stream())
        loop.run()
        runs.append(weights(loop.model))
    assert stream.accepts is None
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_rows_of_other_strategies_keep_their_labels(small):
    from strategies.replay import Replay

    strategy = Seen()

    class Check(Naive):
        def before_backward(self, loop):
            n = len(loop.mb_index)
            if loop.experience.index == 1 and len(loop.mb_y) > n:
                type(self).mixed = True
                old = loop.mb_x[n:, -1] == -1
                assert old.any()

    loop = make_loop(
        [Replay(size=50), OracleSFT(), Check()], stream=small, model=mlp(small), batch_size=64
    )
    loop.run()
    assert Check.mixed and strategy.base is None


def test_splitting_a_batch_draws_right_labels_too(small):
    strategy = Seen()
    loop = make_loop([strategy], stream=small, model=mlp(small), batch_size=64, accumulate=3)
    loop.run()
    assert all(bool(right.all()) for index, *_, right in strategy.kept if index == 1)
