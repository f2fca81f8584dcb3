"""Strategies: known answers on digits, and FeTrIL and the buffers against independent maths."""

import numpy as np
import pytest
import torch
from conftest import blobs, make_loop, tiny_stream
from scipy.stats import chisquare
from sklearn.svm import LinearSVC

import cl
from cl.buffers import Buffer
from cl.seeding import frozen, generator
from strategies.joint import Joint
from strategies.naive import Naive
from strategies.raw_ncm import RawNCM
from strategies.replay import Replay

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Results of every strategy that the README's first table shows, by (name, seed)."""
    out = tmp_path_factory.mktemp("runs")
    names = ("naive", "joint", "replay", "raw_ncm", "fetril")
    return {
        (name, seed): cl.run("split_digits", name, seed=seed, out=str(out))
        for name in names
        for seed in SEEDS
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_naive_forgets_split_digits_but_learns_each_experience(digits, seed):
    metrics = digits["naive", seed].metrics
    assert metrics["average_accuracy"] <= 0.35
    assert np.mean(metrics["plasticity"]) >= 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_joint_is_the_upper_bound_and_has_only_a_last_row(digits, seed):
    result = digits["joint", seed]
    assert result.metrics["average_accuracy"] >= 0.95
    assert np.isnan(result.R[:4]).all() and not np.isnan(result.R[4]).any()
    assert "joint trains once" in result.results["undefined"]["R[0][0]"]


@pytest.mark.parametrize("seed", SEEDS)
def test_replay_with_200_exemplars_keeps_most(digits, seed):
    assert digits["replay", seed].metrics["average_accuracy"] >= 0.80


@pytest.mark.parametrize("seed", SEEDS)
def test_raw_ncm_is_an_honest_floor(digits, seed):
    assert 0.85 <= digits["raw_ncm", seed].metrics["average_accuracy"] <= 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_fetril_is_near_its_frozen_feature_oracle_and_far_above_naive(digits, seed):
    fetril = digits["fetril", seed]
    accuracy = fetril.metrics["average_accuracy"]
    assert accuracy >= digits["naive", seed].metrics["average_accuracy"] + 0.50
    stream = cl.registry.find("streams", "split_digits").load()(seed=seed)
    # the oracle: the same frozen features, real data of all classes kept
    x = {"train": [], "test": []}
    y = {"train": [], "test": []}
    with frozen(fetril.model) as model:
        for e, ev in zip(stream.experiences, stream.evals, strict=True):
            for split, table in (("train", e.train), ("test", ev.test)):
                x[split].append(model.features(table.column("x")).numpy())
                y[split].append(table.column("y").numpy())
    unit = {k: np.concatenate(v) for k, v in x.items()}
    unit = {k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in unit.items()}
    machine = LinearSVC(C=1.0, dual=False).fit(unit["train"], np.concatenate(y["train"]))
    right = machine.predict(unit["test"]) == np.concatenate(y["test"])
    n = [len(part) for part in y["test"]]
    per_eval = [part.mean() for part in np.split(right, np.cumsum(n)[:-1])]
    assert accuracy >= np.mean(per_eval) - 0.03


def test_replay_of_everything_matches_joint(digits, tmp_path):
    everything = cl.run("split_digits", "replay", strategy={"size": 5000}, out=str(tmp_path))
    joint = digits["joint", 0].metrics["average_accuracy"]
    assert everything.metrics["average_accuracy"] >= joint - 0.03


# -- replay and its buffer -------------------------------------


def offer(buffer, n, start=0, classes=1, batch=7, rng=None):
    for at in range(start, start + n, batch):
        rows = torch.arange(at, min(at + batch, start + n))
        buffer.add({"x": rows[:, None].float(), "y": rows % classes}, rng)


def test_a_reservoir_holds_every_row_with_equal_probability():
    n, capacity, trials = 40, 8, 1500
    counts = np.zeros(n)
    for trial in range(trials):
        buffer = Buffer(capacity, "reservoir")
        offer(buffer, n, rng=generator(trial, "reservoir"))
        held = buffer.rows["x"][:, 0].long().numpy()
        assert len(set(held)) == capacity
        counts[held] += 1
    assert chisquare(counts).pvalue > 1e-4


def test_a_balanced_buffer_gives_each_class_its_share_as_classes_arrive():
    buffer, rng = Buffer(10, "class_balanced"), generator(0, "b")
    for c, expected in ((0, [10]), (1, [5, 5]), (2, [4, 3, 3])):
        rows = {"x": torch.randn(30, 2), "y": torch.full((30,), c)}
        buffer.add(rows, rng)
        assert torch.bincount(buffer.rows["y"]).tolist() == expected
    assert buffer.nbytes == 10 * (2 * 4 + 8 + 8)


def test_a_balanced_buffer_samples_a_returning_class_evenly():
    old = 0
    for trial in range(400):
        buffer, rng = Buffer(10, "class_balanced"), generator(trial, "b")
        for part in (0.0, 1.0):
            buffer.add({"x": torch.full((50, 1), part), "y": torch.zeros(50).long()}, rng)
        old += int((buffer.rows["x"] == 0).sum())
    assert 0.45 < old / (400 * 10) < 0.55


def test_buffers_store_raw_bytes():
    data = blobs(4, shape=(3, 8, 8))
    data.x = (data.x.clamp(0, 1) * 255).to(torch.uint8)
    from cl.stream import class_incremental

    stream = class_incremental("b", data, sizes=[2, 2], order="fixed", val=0, seed=0)
    loop = make_loop([Replay(size=8)], stream, augment=["crop", "flip"])
    loop.run()
    buffer = loop.buffers["replay"]
    assert buffer.rows["x"].dtype == torch.uint8 and len(buffer) == 8


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir"])
def test_replay_mixes_stored_rows_into_every_batch(policy):
    sizes = []

    class Look(Naive):
        def after_forward(self, loop):
            sizes.append((loop.experience.index, len(loop.mb_index), len(loop.mb_y)))

    loop = make_loop([Replay(size=20, policy=policy, batch_size=5), Look()])
    loop.run()
    later = [size for size in sizes if size[0] == 1]
    assert later and all(total == fresh + 5 for _, fresh, total in later)
    assert loop.samples_seen == sum(total for *_, total in sizes)


def test_a_reservoir_is_offered_each_row_once():
    loop = make_loop([Replay(size=1000, policy="reservoir")], epochs=3)
    loop.run()
    rows = sum(len(e.train) for e in loop.stream.experiences)
    assert len(loop.buffers["replay"]) == rows


# -- joint, raw_ncm -------------------------------------


def test_joint_trains_on_the_union_in_the_last_experience():
    rows = []

    class Look(Naive):
        def after_train_dataset_adaptation(self, loop):
            rows.append(None if loop.adapted_dataset is None else len(loop.adapted_dataset))

    loop = make_loop([Joint(), Look()])
    loop.run()
    assert rows == [None, sum(len(e.train) for e in loop.stream.experiences)]


def test_raw_ncm_equals_the_nearest_mean_in_numpy():
    stream = tiny_stream()
    loop = make_loop([RawNCM()], stream)
    loop.run()
    x = np.concatenate([e.train.column("x").flatten(1).numpy() for e in stream.experiences])
    y = np.concatenate([e.train.column("y").numpy() for e in stream.experiences])
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    test = stream.evals[1].test.column("x")
    distance = ((test.flatten(1).numpy()[:, None] - means) ** 2).sum(2)
    from cl.evaluation import InferenceBatch

    scores = loop.predict(InferenceBatch(test))
    np.testing.assert_array_equal(scores.argmax(1).numpy(), distance.argmin(1))
