"""Scenario operators: what they promise, against counts and arithmetic done another way."""

import shutil
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Watcher, assert_same_weights, blobs, make_loop, tiny_stream, weights

import cl
from cl.errors import BadValue, DataError, UnknownName
from cl.folder import comparable
from cl.metrics import anytime_accuracy, prequential
from cl.models import build
from cl.runner import resume
from cl.scenarios import apply, by_arrival
from cl.settings import Scenario
from cl.stream import class_incremental
from strategies.cumulative import Cumulative
from strategies.naive import Naive
from strategies.replay import Replay


def stream(n_classes=6, sizes=(2, 2, 2), **kwargs):
    return tiny_stream(n_classes=n_classes, sizes=sizes, **kwargs)


def made(source=None, seed=0, **keys):
    return apply(source or stream(), Scenario(**keys), seed)


def positions(tables):
    return torch.cat([t.positions() for t in tables]).tolist()


OPERATORS = {
    "imbalance": {"imbalance": 5.0},
    "shuffled tail": {"imbalance": 5.0, "imbalance_order": "shuffled"},
    "permute": {"shift": "permute"},
    "rotate": {"shift": "rotate", "domains": 3},
    "noise": {"shift": "noise"},
    "brightness": {"shift": "brightness"},
    "blurry": {"blurry": 0.5, "blurry_level": 0.3},
    "all blurry": {"blurry": 1.0},
    "cycles": {"cycles": 3},
    "cycles in parts": {"cycles": 3, "cycle_data": "parts"},
    "task labels": {"task_labels": True},
    "task labels over domains": {"shift": "permute", "task_labels": True},
    "task labels over cycles": {"cycles": 2, "task_labels": True},
    "task free": {"task_free": 7},
    "smooth": {"task_free": 7, "smooth": 1.0},
    "online": {"online": True},
    "several": {"imbalance": 3.0, "cycles": 2, "task_free": 5, "smooth": 0.5, "online": True},
    "blurry and task free": {"blurry": 0.5, "task_free": 6},
}


@pytest.mark.parametrize("keys", OPERATORS.values(), ids=OPERATORS)
def test_every_operator_keeps_what_streams_promise(keys):
    s = made(**keys)
    train, test = [e.train for e in s.experiences], [ev.test for ev in s.evals]
    val = [e.val for e in s.experiences if e.val is not None] + [ev.val for ev in s.evals]
    rows = {name: set(positions(t)) for name, t in (("train", train), ("test", test), ("val", val))}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"]
    assert not rows["val"] & rows["test"]
    seen = 0
    for k, e in enumerate(s.experiences):  # classes so far are always 0..n-1
        assert e.index == k and set(e.classes) == set(e.train.column("y").tolist())
        assert set(range(seen, max(seen, max(e.classes) + 1))) <= set(e.classes)
        seen = max(seen, max(e.classes) + 1)
        assert s.seen_classes(k) == seen
    assert seen == s.n_classes
    for ev in s.evals:
        assert set(ev.classes) == set(ev.test.column("y").tolist())
        assert ev.learned_at and list(ev.learned_at) == sorted(ev.learned_at)
        assert s.seen_classes(ev.learned_at[0]) > max(ev.classes)
    again = made(**keys)
    assert s.content_hash() == again.content_hash()


@pytest.mark.parametrize("keys", OPERATORS.values(), ids=OPERATORS)
def test_every_operator_trains_and_keeps_names_with_their_images(keys):
    plain, s = stream(), made(**keys)
    name_of = {i: plain.class_names[y] for i, y in enumerate(plain.evals[0].test.columns["y"])}
    if keys.get("shift") is None:
        for ev in s.evals:
            shown = [s.class_names[y].rpartition(":")[2] for y in ev.test.column("y")]
            assert shown == [name_of[i] for i in ev.test.positions().tolist()]
    watcher = Watcher()
    loop = make_loop([Replay(size=20)], s, observer=watcher, updates=2)
    loop.run()
    assert all(v is not None for v in watcher.rows[-1].test)
    assert bool(loop.prequential.windows) == bool(keys.get("online"))


def test_nothing_asked_for_is_the_stream_itself():
    s = stream()
    assert apply(s, Scenario(), 0) is s


def test_imbalance_thins_each_class_by_its_rank():
    plain, s = stream(), made(imbalance=10.0)
    n = np.bincount(torch.cat([e.train.column("y") for e in plain.experiences]).numpy())
    got = np.bincount(torch.cat([e.train.column("y") for e in s.experiences]).numpy())
    expected = [max(1, round(n[r] / 10 ** (r / 5))) for r in range(6)]
    assert got.tolist() == expected and got[0] == n[0] and got[5] == round(n[5] / 10)
    assert [len(ev.test) for ev in s.evals] == [len(ev.test) for ev in plain.evals]


def test_permute_is_one_permutation_per_domain_and_the_first_is_the_identity():
    plain, s = stream(), made(shift="permute", domains=3)
    whole = torch.cat([e.train.column("x") for e in plain.experiences]).flatten(1).numpy()
    domains = [e.train.column("x").flatten(1).numpy() for e in s.experiences]
    np.testing.assert_array_equal(domains[0], whole)
    orders = []
    for x in domains[1:]:  # where each pixel went, found from one image, must hold for all
        order = [int(np.flatnonzero(whole[0] == v)[0]) for v in x[0]]
        np.testing.assert_array_equal(x, whole[:, order])
        orders.append(order)
    assert orders[0] != orders[1] != list(range(64))


def test_rotate_by_90_degrees_turns_each_image():
    s = made(shift="rotate", domains=2)
    first, last = (e.train.column("x").numpy() for e in s.experiences)
    np.testing.assert_allclose(last, np.rot90(first, 1, axes=(2, 3)), atol=1e-5)


def test_noise_and_brightness_grow_and_stay_in_range():
    data = blobs(4)
    data.x = (data.x.clamp(0, 1) * 255).round().to(torch.uint8)
    sizes = {"sizes": [2, 2], "order": "fixed", "val": 0.1, "seed": 0}
    s = apply(class_incremental("bytes", data, **sizes), Scenario(shift="brightness", domains=3), 0)
    x = [e.train.column("x").to(int) for e in s.experiences]
    assert torch.equal(x[1], (x[0] + 63.75).round().clamp(max=255))
    assert torch.equal(x[2], (x[0] + 127.5).round().clamp(max=255))
    noisy = apply(class_incremental("bytes", data, **sizes), Scenario(shift="noise"), 0)
    moved = [(e.train.column("x").float() - x[0]).std().item() for e in noisy.experiences]
    assert moved[0] == 0 and moved == sorted(moved) and 20 < moved[1] < 32  # 0.125 * 255 = 31.9
    assert s.experiences[1].train.columns["x"].dtype == torch.uint8


def test_blurry_classes_leave_their_share_to_the_others_and_no_row_is_lost():
    plain, s = stream(), made(blurry=0.5, blurry_level=0.25)
    assert sorted(positions([e.train for e in plain.experiences])) == sorted(
        positions([e.train for e in s.experiences])
    )
    counts = {}
    for e in s.experiences:
        for y in e.train.column("y").tolist():
            counts.setdefault(s.class_names[y], [0] * 3)[e.index] += 1
    blurred = {name: c for name, c in counts.items() if sum(n > 0 for n in c) > 1}
    assert len(blurred) == 3
    for name, c in blurred.items():
        home, total = int(name) // 2, sum(c)
        assert c[home] == total - round(0.25 * total)
        away = [n for i, n in enumerate(c) if i != home]
        assert max(away) - min(away) <= 1
    assert [ev.learned_at for ev in s.evals] == [(0,), (1,), (2,)]


def test_cycles_bring_the_same_rows_or_parts_that_add_up():
    plain, same = stream(), made(cycles=2)
    assert [e.train.positions().tolist() for e in same.experiences] == 2 * [
        e.train.positions().tolist() for e in plain.experiences
    ]
    assert [ev.learned_at for ev in same.evals] == [(0, 3), (1, 4), (2, 5)]
    parts = made(cycles=3, cycle_data="parts")
    for k, e in enumerate(plain.experiences):
        visits = [parts.experiences[k + 3 * v].train.positions().tolist() for v in range(3)]
        assert sorted(sum(visits, [])) == sorted(e.train.positions().tolist())
        assert len({i for rows in visits for i in rows}) == sum(map(len, visits))
    with pytest.raises(DataError, match="cycles=50 with cycle_data=parts: class"):
        made(cycles=50, cycle_data="parts")


def test_with_task_labels_the_loss_is_that_of_the_tasks_own_head():
    s = made(task_labels=True)
    loop = make_loop([Naive()], s, lr=0.1, momentum=0.0, batch_size=1000)
    loop.run()
    before = weights(loop.model)
    e = s.experiences[2]
    x, y = e.train.column("x"), e.train.column("y")
    assert e.classes == (4, 5) and e.task_label == 2
    loop.model.train()
    logits = loop.model(x)
    own = F.cross_entropy(logits[:, 4:6], y - 4)  # a separate head for the task
    loop.mb_x, loop.mb_y, loop.mb_task_id = x, y, torch.full_like(y, 2)
    loop.mb_output = logits
    torch.testing.assert_close(loop.objective.loss(loop), own)
    own.backward()
    assert not loop.model.head.weight.grad[:4].any()
    assert before.keys() == weights(loop.model).keys()


def test_with_task_labels_answers_are_among_the_tasks_classes():
    watcher = Watcher()
    make_loop([Naive()], made(task_labels=True), observer=watcher).run()
    assert watcher.rows[-1].test == watcher.rows[-1].within
    free = Watcher()
    make_loop([Naive()], stream(), observer=free).run()
    assert free.rows[-1].test != free.rows[-1].within


def test_replayed_rows_keep_their_own_task_labels():
    seen = []

    class Look(Naive):
        def before_backward(self, loop):
            seen.append((loop.mb_y.tolist(), loop.mb_task_id.tolist()))

    make_loop([Replay(size=30), Look()], made(task_labels=True)).run()
    assert all(y // 2 == t for ys, ts in seen for y, t in zip(ys, ts, strict=True))
    assert len(set(seen[-1][1])) > 1


def test_shared_classes_are_set_apart_by_task():
    s = made(shift="permute", domains=3, task_labels=True)
    assert s.n_classes == 18 and s.class_names[:2] == ["0:0", "0:1"]
    assert [e.classes for e in s.experiences] == [tuple(range(k, k + 6)) for k in (0, 6, 12)]
    assert s.task_mask.sum(1).tolist() == [6, 6, 6] and s.jointly_solvable
    assert {"task_id_train", "task_id_test"} <= s.gives


def test_task_free_cuts_the_whole_sequence_into_equal_pieces():
    plain, s = stream(), made(task_free=7)
    sizes = [len(e.train) for e in s.experiences]
    assert max(sizes) - min(sizes) <= 1
    sequence = positions([e.train for e in s.experiences])
    start = 0
    for e in plain.experiences:  # without mixing, tasks follow one another
        assert sorted(sequence[start : start + len(e.train)]) == sorted(
            e.train.positions().tolist()
        )
        start += len(e.train)
    assert s.gives == frozenset()


def test_smooth_mixes_neighbours_only():
    s = made(stream(n_classes=8, sizes=(2, 2, 2, 2)), task_free=1, smooth=1.0)
    home = [int(s.class_names[y]) // 2 for y in s.experiences[0].train.column("y")]
    n = len(home) // 4
    assert set(home[: n // 2]) == {0} and set(home[n // 2 : n]) == {0, 1}
    assert set(home[n : 2 * n]) <= {0, 1, 2} and set(home[-n // 2 :]) == {3}
    late = np.mean([h == 1 for h in home[3 * n // 4 : n]])  # mean offset w/8 of the boundary
    assert 0.1 < late < 0.65


@pytest.mark.parametrize(
    ("strategy", "keys", "message"),
    {
        "less than a class": ("naive", {"blurry": 0.04}, "of 10 classes is less than one class"),
        "boundaries": ("fetril", {"task_free": 5}, "fetril needs boundaries"),
        "length": ("joint", {"task_free": 5}, "joint needs stream_length"),
        "both": ("naive", {"task_free": 5, "task_labels": True}, "contradict each other"),
        "blurred": ("naive", {"blurry": 0.5, "task_labels": True}, "contradict each other"),
        "homes": ("naive", {"blurry": 0.5, "cycles": 2}, "each class at home in one experience"),
        "idle": ("naive", {"smooth": 0.5}, "stream.smooth has no meaning without stream.task_free"),
        "idle shift": ("naive", {"domains": 3}, "stream.domains has no meaning without"),
        "most": ("naive", {"shift": "permute", "shift_max": 3}, "no meaning with stream.shift"),
        "pieces": ("naive", {"task_free": 10**6}, "rows only"),
        "range": ("naive", {"blurry": 2}, "stream.blurry must be float ≥ 0 and ≤ 1"),
    }.values(),
)
def test_contradictions_are_one_line_before_training(strategy, keys, message, tmp_path):
    with pytest.raises(BadValue, match=message):
        cl.run("split_digits", strategy, stream=keys, out=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_an_online_stream_is_one_pass(tmp_path):
    with pytest.raises(BadValue, match="one pass: train.epochs=3"):
        keys = {"stream": {"online": True}, "train": {"epochs": 3}}
        cl.run("split_digits", "naive", out=str(tmp_path), **keys)
    with pytest.raises(BadValue, match="train.updates would leave rows out"):
        keys = {"stream": {"online": True}, "train": {"updates": 3}}
        cl.run("split_digits", "naive", out=str(tmp_path), **keys)
    with pytest.raises(UnknownName, match="did you mean 'online'"):
        cl.run("split_digits", "naive", out=str(tmp_path), stream={"onlin": True})


def test_prequential_accuracy_counts_answers_given_before_learning():
    """A model that hardly moves answers every batch as the untrained one does."""
    s = made(online=True)
    loop = make_loop([Naive()], s, build("mlp", s.input_shape, {}), lr=1e-12, momentum=0.0)
    loop.run()
    expected = [
        int((loop.model(e.train.column("x"))[:, : s.seen_classes(k)].argmax(1) == y).sum())
        for k, e in enumerate(s.experiences)
        for y in [e.train.column("y")]
    ]
    windows = np.array(loop.prequential.windows)
    n = np.array([len(e.train) for e in s.experiences])
    ends = np.searchsorted(windows[:, 1].cumsum(), n.cumsum()) + 1
    got = np.diff(np.concatenate([[0], windows[:, 2].cumsum()[ends - 1]]))
    assert windows[:, 1].sum() == n.sum() and got.tolist() == expected
    assert 0 < sum(expected) < n.sum()


def test_answering_on_arrival_changes_nothing():
    loops = [make_loop([Naive()], s) for s in (made(online=True), stream())]
    for loop in loops:
        loop.run()
    assert_same_weights(*(weights(loop.model) for loop in loops))
    assert loops[0].prequential.windows and not loops[1].prequential.windows


def test_prequential_and_anytime_numbers_by_hand():
    accuracy, area = prequential([(1, 10, 5), (2, 10, 10), (3, 20, 10)])
    assert accuracy == 25 / 40
    assert area == pytest.approx((0.5 * 10 + 0.75 * 10 + 0.625 * 20) / 40)
    assert prequential([]) == (None, None)
    nan = float("nan")
    steps = [(0, [0.5, nan], 10), (0, [1.0, nan], 20), (1, [0.5, 0.0], 30), (1, [0.0, 1.0], 40)]
    # eval 1 has 30 items, eval 0 has 10: seen 0.5, 1.0, 0.125, 0.75
    learned_at, n = [(0,), (1,)], [10, 30]
    area = anytime_accuracy(steps, learned_at, n)
    assert area == pytest.approx((0.5 + 1.0 + 0.125 + 0.75) / 4)
    # an experience of three times the updates weighs the same, one without has its end's score
    longer = [(e, row, at if e == 0 else 20 + 3 * (at - 20)) for e, row, at in steps]
    assert anytime_accuracy(longer, learned_at, n) == pytest.approx(area)
    still = [*steps[:2], (1, [0.5, 0.5], 20)]
    assert anytime_accuracy(still, learned_at, n) == pytest.approx((0.75 + 0.5) / 2)
    assert anytime_accuracy([(0, [nan, nan], 10)], learned_at, n) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"online": True, "cycles": 2},
        {"task_labels": True},
        {"task_free": 4, "smooth": 0.5, "online": True},
        {"shift": "rotate", "domains": 3},
    ],
    ids=str,
)
def test_scenarios_resume_as_if_uninterrupted_and_repeat_from_their_recipe(keys, tmp_path):
    train = {"batch_size": 200} if keys.get("online") else {"updates": 3}
    settings = {"stream": keys, "train": train, "out": str(tmp_path)}
    first = cl.run("split_digits", "replay", **settings)
    kept = tmp_path / "kept"
    shutil.copytree(first.dir, kept)
    shutil.rmtree(sorted((kept / "checkpoint").iterdir())[-1])
    results = kept / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    assert comparable(resume(kept).results) == comparable(first.results)
    from cl.request import Request
    from cl.runner import execute

    again = Request.from_recipe(first.dir / "recipe.yaml", {"out": str(tmp_path / "again")})
    assert comparable(execute(again, progress=False).results) == comparable(first.results)


def test_operators_work_on_streams_given_as_python_objects(tmp_path):
    result = cl.run(stream(), "naive", stream={"task_labels": True}, out=str(tmp_path))
    assert result.R.tolist() == [
        [np.nan if v is None else v for v in row] for row in result.results["R_within"]
    ] or np.allclose(result.R, np.array(result.results["R_within"], dtype=float), equal_nan=True)


def test_by_arrival_renames_classes_that_come_later():
    s = stream()
    turned = [s.experiences[2], s.experiences[0], s.experiences[1]]
    for k, e in enumerate(turned):
        e.index = k
    s.experiences = turned
    s = by_arrival(s)
    assert s.class_names == ["4", "5", "0", "1", "2", "3"]
    assert s.experiences[0].classes == (0, 1) and s.experiences[1].classes == (2, 3)


# -- torchvision -----------------------------------------------------------------------------------


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        y = np.arange(n, dtype=np.uint8) % 10
        x = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        x[:, 0, 0] = y  # to be found again
        write_idx(raw / f"{part}-images-idx3-ubyte", x)
        write_idx(raw / f"{part}-labels-idx1-ubyte", y)
    return tmp_path


def test_a_torchvision_set_is_read_from_its_files(mnist, tmp_path):
    keys = {"root": str(mnist), "n_experiences": 2}
    run = {"train": {"updates": 1}, "out": str(tmp_path / "runs")}
    result = cl.run("torchvision:MNIST", "naive", stream=keys, **run)
    assert [e["n_train"] for e in result.results["experiences"]] == [25, 25]
    assert [ev["n"] for ev in result.results["evals"]] == [10, 10]
    assert result.results["experiences"][1]["classes"][0].startswith("5")
    assert "torchvision" in str(result.dir)
    s = cl.registry.find("streams", "torchvision:MNIST").load()(root=mnist)
    assert torch.equal(s.evals[3].test.column("x")[:, 0, 0, 0].long(), s.evals[3].test.column("y"))
    assert s.input_shape == (1, 28, 28) and s.experiences[0].train.columns["x"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("MNIST", {}, "is not in .*stream.download=true"),
        ("CIFAR1000", {}, "did you mean 'torchvision:CIFAR100'"),
        ("CIFAR10", {"download": True}, "could not be downloaded"),
    ],
)
def test_a_missing_set_is_one_line(name, keys, message, tmp_path):
    keys = {"root": str(tmp_path / "none"), **keys}
    with pytest.raises((DataError, UnknownName), match=message):
        cl.run(f"torchvision:{name}", "naive", stream=keys, out=str(tmp_path / "runs"))


def test_sets_without_a_test_split_and_of_several_sizes_are_handled(tmp_path, monkeypatch):
    from PIL import Image
    from torchvision import datasets

    class Fake:
        def __init__(self, root, transform=None, target_transform=None, download=False):
            rng = np.random.default_rng(0)
            sizes = [(20, 30), (24, 24)]
            self.items = [
                (Image.fromarray(rng.integers(0, 255, (*sizes[k % 2], 3), dtype=np.uint8)), k % 3)
                for k in range(30)
            ]
            self.categories = ["cat", "dog", "eel"]

        def __iter__(self):
            return iter(self.items)

    monkeypatch.setattr(datasets, "Caltech101", Fake)
    load = cl.registry.find("streams", "torchvision:Caltech101").load()
    with pytest.raises(BadValue, match="give stream.size"):
        load(root=tmp_path)
    s = load(root=tmp_path, size=16, n_experiences=3)
    assert s.class_names == ["cat", "dog", "eel"] and s.input_shape == (3, 16, 16)
    assert [len(ev.test) for ev in s.evals] == [2, 2, 2]


def test_a_sample_of_past_evals_holds_none_that_is_still_to_come():
    watcher = Watcher()
    s = made(shift="permute", domains=6)
    make_loop([Naive()], s, observer=watcher, evaluation={"past": "sample:2"}, updates=1).run()
    rows = watcher.rows[1:]  # after that of the untrained model
    scored = [{j for j, v in enumerate(row.test) if v is not None} for row in rows]
    assert scored[0] == {0} and scored[1] == {0, 1} and scored[2] == {0, 1, 2}
    assert all(len(found) == 3 and max(found) == i for i, found in enumerate(scored) if i >= 2)
    assert rows[1].undefined[4] == "not scored: eval.past=sample:2"


def test_a_shift_of_what_is_shifted_already_is_refused(tmp_path):
    for name in ("rotated_digits", "permuted_digits"):
        with pytest.raises(BadValue, match="come in several experiences"):
            cl.run(name, "naive", stream={"shift": "noise"}, out=str(tmp_path))


def test_blurred_classes_keep_a_row_at_home():
    s = made(blurry=1.0, blurry_level=0.99)
    for ev in s.evals:
        assert set(ev.classes) <= set(s.experiences[ev.learned_at[0]].classes)


@pytest.mark.parametrize("strategy", ["icarl", "ncm", "fecam", "ranpac", "cumulative"])
def test_what_learns_whole_experiences_has_no_answers_on_the_first(strategy, tmp_path):
    keys = {"stream": {"online": True, "n_experiences": 2}, "out": str(tmp_path)}
    results = cl.run("split_digits", strategy, **keys).results
    n = results["experiences"][0]["n_train"]
    windows = np.array(results["prequential"])
    first = windows[windows[:, 1].cumsum() <= n]
    assert first[:, 1].sum() == n and first[:, 2].sum() == 0
    assert windows[:, 1].sum() == n + results["experiences"][1]["n_train"]


def test_a_head_wider_than_the_stream_is_masked_by_task(tmp_path):
    keys = {"stream": {"task_labels": True}, "strategy": {"classes": 12}, "train": {"updates": 2}}
    result = cl.run("split_digits", "der", out=str(tmp_path), **keys)
    assert result.model.head.weight.shape[0] == 12 and not np.isnan(result.R[-1]).any()


def test_replay_stores_rows_of_the_experience_only():
    loop = make_loop([Cumulative(), Replay(size=1000)], stream())
    loop.run()
    rows = loop.buffers["replay"].rows["x"].flatten(1)
    total = sum(len(e.train) for e in loop.stream.experiences)
    assert len(rows) == total == len(rows.unique(dim=0))


def test_a_frozen_model_with_a_growing_head_composes_with_rwalk(tmp_path):
    result = cl.run("split_digits", "rwalk+deesil", out=str(tmp_path), **{"train.updates": 2})
    assert result.results["status"] == "finished"


def test_the_beginning_of_a_stream_is_learned_as_in_the_whole(tmp_path):
    keys = {"train.updates": 3, "seed": 2}
    whole = cl.run("split_digits", "replay", out=str(tmp_path / "whole"), **keys)
    keys["stream.first"] = 2
    first = cl.run("split_digits", "replay", out=str(tmp_path / "first"), **keys)
    assert [row[:2] for row in whole.results["R"][:2]] == first.results["R"]
    assert first.results["evals"] == whole.results["evals"][:2]
    assert first.results["experiences"] == whole.results["experiences"][:2]
    assert first.dir.parent.name == "replay,stream.first=2,train.updates=3"
    with pytest.raises(BadValue, match="has 5 experiences"):
        cl.run("split_digits", "naive", out=str(tmp_path), stream={"first": 6})
