"""Several right answers per row: what is scored, what is rewarded, what operators keep."""

import numpy as np
import pytest
import torch
from conftest import Watcher, make_loop, tiny_stream

from cl.data import Table
from cl.errors import BadValue, DataError
from cl.evaluation import reward_of_classes
from cl.scenarios import apply
from cl.settings import Scenario
from cl.stream import Eval, Experience, Stream
from strategies.naive import Naive
from strategies.replay import Replay

ACCEPTS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)


def many_answers(n=60, seed=0, accepts=ACCEPTS):
    """Two experiences of two classes each; even and odd rows, some that only take class 3."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    answer = torch.where(torch.arange(n) % 7 == 3, 2, y % 2)
    x = torch.randn(n, 5, generator=rng) + 3 * torch.nn.functional.one_hot(y, 5)
    pool = {"x": x, "y": y, "answer": answer}

    def rows(which):
        return Table(pool, which.nonzero()[:, 0])

    place = torch.arange(n) % 5
    experiences, evals = [], []
    for k, classes in enumerate([(0, 1), (2, 3)]):
        own = (y == classes[0]) | (y == classes[1])
        parts = rows(own & (place > 1)), rows(own & (place == 1)), rows(own & (place == 0))
        experiences.append(Experience(k, f"{k:02d}", classes, parts[0], parts[1]))
        evals.append(Eval(f"{k:02d}", classes, parts[2], parts[1], (k,), chance=0.5))
    return Stream("many", "vision", experiences, evals, (5,), list("abcd"), accepts=accepts)


class Fixed(torch.nn.Module):
    """Scores that are the inputs."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x[:, :4] * self.scale


def by_hand(stream, table, classes=None):
    found = []
    for k in range(len(table)):
        row = {name: c[0] for name, c in table.rows(torch.tensor([k])).items()}
        scores = row["x"][:4].numpy().copy()
        if classes is not None:
            outside = [c for c in range(4) if c not in classes]
            scores[outside] = -np.inf
        found.append(bool(stream.accepts[int(row["answer"]), int(scores.argmax())]))
    return np.mean(found)


def test_an_answer_counts_if_the_rows_kind_of_truth_accepts_it():
    stream, watcher = many_answers(), Watcher()
    model = Fixed()
    make_loop([Naive()], stream=stream, model=model, observer=watcher, lr=1e-9).run()
    scores = watcher.rows[-1]
    for j, ev in enumerate(stream.evals):
        assert scores.test[j] == pytest.approx(by_hand(stream, ev.test))
        assert scores.val[j] == pytest.approx(by_hand(stream, ev.val))
        assert scores.within[j] == pytest.approx(by_hand(stream, ev.test, ev.classes))
    plain = many_answers()
    plain.accepts = None
    other = Watcher()
    make_loop([Naive()], stream=plain, model=Fixed(), observer=other, lr=1e-9).run()
    assert other.rows[-1].test != scores.test


def test_rewards_are_the_scores_rule():
    stream = many_answers()
    rows = stream.evals[1].test.rows(torch.arange(4))
    actions = torch.arange(4).expand(4, 4)
    expected = [[float(ACCEPTS[a, c]) for c in range(4)] for a in rows["answer"].tolist()]
    assert reward_of_classes(stream, rows, actions).tolist() == expected
    assert reward_of_classes(stream, rows, rows["y"][:, None]).dtype == torch.float32


def test_without_accepts_the_label_is_the_only_right_answer():
    stream = tiny_stream()
    rows = stream.experiences[0].train.rows(torch.arange(6))
    rewards = reward_of_classes(stream, rows, torch.arange(4).expand(6, 4))
    assert rewards.tolist() == torch.nn.functional.one_hot(rows["y"], 4).float().tolist()


def test_identity_accepts_changes_no_number():
    plain, told = many_answers(), many_answers(accepts=torch.eye(4, dtype=torch.bool))
    plain.accepts = None
    for stream in (plain, told):
        for e in stream.experiences:
            e.train.columns["answer"] = e.train.columns["y"]
        for ev in stream.evals:
            ev.test.columns["answer"] = ev.test.columns["y"]
            ev.val.columns["answer"] = ev.val.columns["y"]
    watchers = Watcher(), Watcher()
    for stream, watcher in zip((plain, told), watchers, strict=True):
        make_loop([Naive()], stream=stream, model=Fixed(), observer=watcher).run()
    assert [r.test for r in watchers[0].rows] == [r.test for r in watchers[1].rows]
    assert plain.content_hash() != told.content_hash()


def test_the_hash_knows_what_is_accepted():
    other = ACCEPTS.clone()
    other[0, 3] = True
    hashes = {many_answers().content_hash(), many_answers(accepts=other).content_hash()}
    assert len(hashes) == 2
    assert many_answers().content_hash() in hashes


def test_buffers_keep_the_kind_of_truth():
    stream = many_answers()
    strategy = Replay(size=10)
    loop = make_loop([strategy], stream=stream, model=Fixed())
    loop.run()
    (buffer,) = loop.buffers.values()
    pool = stream.experiences[0].train.columns
    for x, answer in zip(buffer.rows["x"], buffer.rows["answer"], strict=True):
        assert answer == pool["answer"][(pool["x"] == x).all(1).nonzero()[0, 0]]


@pytest.mark.parametrize(
    "keys",
    [
        {"task_labels": True},
        {"cycles": 2},
        {"task_free": 4},
        {"imbalance": 3.0},
        {"blurry": 0.5, "blurry_level": 0.2},
        {"shift": "permute", "domains": 2},
        {"online": True},
    ],
)
def test_every_operator_keeps_which_answers_are_right(keys):
    """The names of the classes that are right for an image stay what they were."""
    before = many_answers()
    after = apply(many_answers(), Scenario(**keys), 0)

    def right(stream):
        found = {}
        for table in [t for e in stream.experiences for t in (e.train,)] + [
            ev.test for ev in stream.evals
        ]:
            rows = table.rows(torch.arange(len(table)))
            for x, a in zip(rows["x"], rows["answer"], strict=True):
                classes = stream.accepts[a].nonzero()[:, 0].tolist()
                names = frozenset(
                    stream.class_names[c].partition(":")[2] or stream.class_names[c]
                    for c in classes
                )
                found.setdefault(tuple(sorted(x.tolist())), set()).add(names)
        return found

    was, now = right(before), right(after)
    assert set(now) <= set(was)
    assert all(now[x] == was[x] for x in now)
    for ev in after.evals:
        seen = after.seen_classes(min(ev.learned_at))
        among = list(ev.classes) if after.experiences[0].task_label is not None else range(seen)
        share = after.accepts[ev.test.column("answer")][:, list(among)].double().mean()
        if "cycles" not in keys and "online" not in keys and "imbalance" not in keys:
            assert ev.chance == pytest.approx(float(share))


def test_arrival_accuracy_counts_what_is_accepted():
    stream = apply(many_answers(), Scenario(online=True), 0)
    loop = make_loop([Naive()], stream=stream, model=Fixed(), lr=1e-9, epochs=1)
    loop.run()
    rows = sum(n for _, n, _ in loop.prequential.windows)
    right = sum(r for _, _, r in loop.prequential.windows)
    first, second = (e.train for e in stream.experiences)
    # in experience 0 two classes can be answered, then all four
    expected = len(first) * by_hand(stream, first, (0, 1)) + len(second) * by_hand(stream, second)
    assert (rows, right) == (len(first) + len(second), pytest.approx(expected))


@pytest.mark.parametrize(
    ("accepts", "said"),
    [
        (torch.ones(3, 3, dtype=torch.bool), r"C=4"),
        (torch.ones(3, 4), "bool"),
        (torch.ones(2, 4, dtype=torch.bool), "within 0 to 1"),
    ],
)
def test_an_impossible_table_of_answers_is_refused(accepts, said):
    with pytest.raises(DataError, match=said):
        many_answers(accepts=accepts)


def test_a_table_without_kinds_of_truth_is_refused():
    stream = tiny_stream()
    with pytest.raises(DataError, match="answer"):
        Stream(
            "none",
            "vision",
            stream.experiences,
            stream.evals,
            stream.input_shape,
            stream.class_names,
            accepts=torch.ones(1, 4, dtype=torch.bool),
        )


def test_operators_that_contradict_each_other_are_still_refused():
    with pytest.raises(BadValue):
        apply(many_answers(), Scenario(task_labels=True, task_free=2), 0)
