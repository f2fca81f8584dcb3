"""Probes of what a policy does, against numbers from hand-set models and sums written out here."""

import shutil
from itertools import combinations
from math import comb, log
from statistics import fmean, median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, make_loop, tiny_stream, weights
from scipy.stats import spearmanr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import cl
from cl.board import _pixels
from cl.data import Table
from cl.display import show_results
from cl.folder import comparable
from cl.loop import Loop
from cl.models.language import LanguageModel
from cl.objectives.token_cross_entropy import TokenCrossEntropy
from cl.probes import _looks as looks
from cl.probes import fisher_risk, relearning
from cl.probes._answers import gradient
from cl.probes.forward_kl import bars
from cl.probes.pass_at_k import unbiased
from cl.runner import resume
from cl.sampling import sample
from cl.seeding import derive, seed_globals
from cl.settings import Eval, Train
from cl.stream import Eval as StreamEval
from cl.stream import Experience
from cl.text import Item, TextStream

PROBES = ["forward_kl", "pass_at_k", "entropy", "relearning", "fisher_risk"]
PAD, EOS = 0, 1


class Letters:
    """a and b are 2 and 3."""

    pad_id, bos_id, eos_ids, vocab_size = PAD, None, (EOS,), 4

    def encode(self, text):
        return [2 + "ab".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("ab"[k - 2] for k in ids if k >= 2)

    prompt_ids = encode

    def response_ids(self, text):
        return [*self.encode(text), EOS]


class NoCache:
    def batch_repeat_interleave(self, n): ...
    def batch_select_indices(self, index): ...


class Bigram(nn.Module):
    """The next token depends on the last one alone: logits are a row of `table` [4, 4]."""

    config = SimpleNamespace()

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32))

    def forward(self, input_ids, logits_to_keep=0, **_):
        return SimpleNamespace(
            logits=self.table[input_ids][:, -logits_to_keep:], past_key_values=NoCache()
        )


TABLE = [[0.0] * 4, [0.0] * 4, [-9.0, 0.5, 1.0, -0.5], [-9.0, 0.2, -1.0, 0.8]]
MOVED = [[0.0] * 4, [0.0] * 4, [-8.0, 1.5, 0.0, 0.3], [-9.5, 0.0, 1.0, 0.1]]


def stream_of(n=12):
    """Answer a with b, then b with a; held out: ab with a. Prompts repeat, answers don't."""
    tasks = [("a", "b"), ("b", "a"), ("ab", "a")]
    items = [Item(p, (gold,), p, {"gold": gold}) for p, gold in tasks for _ in range(2 * n)]
    pool = dict.fromkeys(("x", "y"), torch.arange(len(items)))
    parts = torch.arange(len(items)).split(n)
    train, val = ([Table(pool, part) for part in parts[k::2]] for k in (0, 1))
    experiences = [Experience(k, f"e{k}", (), train[k]) for k in range(2)]
    evals = [StreamEval(f"e{k}", (), train[k], val[k], (k,)) for k in range(2)]
    evals.append(StreamEval("old", (), train[2], val[2], (), "held_out"))

    def verifier(prompts, completions, gold):
        return [float(c == g) for c, g in zip(completions, gold, strict=True)]

    names = [task for task, _ in tasks]
    return TextStream(
        *("letters", "llm", experiences, evals, (), []),
        items=items,
        verifiers=dict.fromkeys(names, verifier),
        max_new_tokens=dict.fromkeys(names, 3),
    )


def loop_of(table=TABLE, strategies=(), **train):
    seed_globals(0)
    return Loop(
        stream=stream_of(),
        strategies=list(strategies),
        model=LanguageModel(Bigram(table), Letters(), 8),
        objective=TokenCrossEntropy(),
        train=Train(**{"batch_size": 8, "epochs": 1, "lr": 0.3, "momentum": 0.0} | train),
        evaluation=Eval(),
        seed=0,
        device=torch.device("cpu"),
    )


def moved_loop(*names, at=1):
    """A loop that began with TABLE, now at MOVED after experience `at`; probes are attached."""
    loop = loop_of()
    for name in names:
        loop.attach(name)
    for experience in loop.stream.experiences[: at + 1]:
        loop.experience = experience
        loop.fire("before_training_exp")
    loop.model.lm.table.data = torch.tensor(MOVED)
    return loop


def softmax(table):
    e = np.exp(np.array(table, dtype=float))
    return e / e.sum(1, keepdims=True)


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


def answers_of(rollout):
    """[(the token that each answer token follows, the answer token)] per answer."""
    rows = zip(rollout.prompt_ids[:, -1].tolist(), rollout.completions(), strict=True)
    return [list(zip([last, *ids], ids)) for last, ids in rows]


# -- forward_kl ------------------------------------------------------------------------------------


def test_g34_forward_kl_is_exact_over_the_vocabulary_at_every_token():
    loop = moved_loop("forward_kl")
    found = loop.measure("forward_kl")
    p, q = softmax(TABLE), softmax(MOVED)
    drawn = loop.probes["forward_kl"].drawn
    for name in ("e0", "e1"):
        ((_, fields),) = drawn[name]
        rows = answers_of(SimpleNamespace(**fields, completions=lambda f=fields: ids_of(f)))
        sums = [sum(kl(p[last], q[last]) for last, _ in row) for row in rows]
        assert found[f"by/{name}"] == pytest.approx(fmean(sums), abs=1e-6)
    tokens = sum(map(len, rows))
    assert found["new"] == found["by/e1"] and found["old"] == found["by/e0"]
    assert found["new_per_token"] == pytest.approx(sum(sums) / tokens, abs=1e-6)
    assert found["reverse_new"] > 0 and "reverse_old" not in found


def ids_of(fields):
    mask = fields["completion_mask"]
    return [row[m].tolist() for row, m in zip(fields["completion_ids"], mask, strict=True)]


def test_forward_kl_of_answers_is_the_kl_of_the_enumerated_answers(monkeypatch):
    """The chain rule: E sum_t KL_t is sum_y p(y) log p(y) / q(y) over all answers y."""
    p, q = softmax(TABLE), softmax(MOVED)

    def enumerated(last, left):
        """(p, q) of every answer."""
        for k in range(4):
            ends = k == EOS or left == 1
            for a, b in [(1.0, 1.0)] if ends else enumerated(k, left - 1):
                yield p[last, k] * a, q[last, k] * b

    expected = sum(a * log(a / b) for a, b in enumerated(2, 3))
    loop = moved_loop("forward_kl", at=0)
    table = Table.concat([loop.stream.evals[0].val] * 300)
    monkeypatch.setattr(loop.stream.evals[0], "val", table)
    monkeypatch.setattr(looks, "PROMPTS", len(table))
    assert loop.measure("forward_kl")["new"] == pytest.approx(expected, rel=0.04)


def test_forward_kl_is_0_before_training_and_its_answers_stay_the_same():
    loop = moved_loop("forward_kl", at=0)
    first = loop.measure("forward_kl")
    assert loop.measure("forward_kl") == first
    loop.model.lm.table.data = torch.tensor(TABLE)
    still = loop.measure("forward_kl")
    assert all(abs(value) < 1e-9 for value in still.values())


def test_kl_of_a_classifier_is_over_the_classes_that_both_models_have():
    loop = make_loop([])
    loop.attach("forward_kl")
    loop.grow_to(2)
    start = []

    class Keep(cl.Strategy):
        def before_training_exp(self, loop):
            start.append({k: v.clone() for k, v in loop.model.state_dict().items()})

    keep = Keep()
    loop.hooks["before_training_exp"] = (
        keep.before_training_exp,
        *loop.hooks["before_training_exp"],
    )
    loop.run()
    found = loop.measure("forward_kl")
    old = loop.stream.experiences[0].train
    now = loop.model.eval()(old.column("x")).detach().double()[:, :2].numpy()
    model = cl.models.build("small_cnn", loop.stream.input_shape, {"width": 8})
    model.head.grow(2)
    model.load_state_dict(start[0])
    base = model.eval()(old.column("x")).detach().double().numpy()
    expected = fmean(kl(softmax([a])[0], softmax([b])[0]) for a, b in zip(base, now, strict=True))
    assert found["old"] == pytest.approx(expected, rel=1e-4)
    assert found["by/" + loop.stream.evals[0].name] == found["old"]


@pytest.mark.parametrize("n", [0, 1, 12])
def test_the_picture_of_kl_is_drawn_for_any_number_of_evals(n):
    assert _pixels(bars({f"{k:02d}_task": 0.1 * k for k in range(n)})).shape[0] > 100


# -- entropy and pass@k ----------------------------------------------------------------------------


@pytest.mark.parametrize("even", [True, False])
def test_entropy_is_that_of_the_distribution_at_the_models_own_tokens(even):
    table = [[0.0] * 4] * 4 if even else [[0.0] * 4] * 2 + [[-9.0, 0.0, 5.0, 1.0]] * 2
    loop = loop_of(table)
    loop.experience = loop.stream.experiences[1]
    p = softmax(table)[2]
    expected = float(-(p * np.log(p)).sum())  # all rows that are read are alike
    found = loop.measure("entropy")
    assert found == pytest.approx(dict.fromkeys(("by/e0", "by/e1", "old", "new"), expected))


def test_entropy_of_a_classifier_is_that_of_its_softmax():
    loop = make_loop([])
    loop.run()
    e = loop.stream.evals[1]
    p = softmax(loop.model.eval()(e.val.column("x")).detach().double().numpy())
    expected = -(p * np.log(p)).sum(1).mean()
    assert loop.measure("entropy")["new"] == pytest.approx(expected, rel=1e-5)


def test_pass_at_k_is_unbiased_over_the_enumerated_subsets():
    for n, c, k in [(5, 2, 3), (6, 0, 2), (6, 6, 2), (7, 5, 4), (4, 1, 1)]:
        right = [True] * c + [False] * (n - c)
        chosen = [any(right[i] for i in some) for some in combinations(range(n), k)]
        assert unbiased(n, c, k) == pytest.approx(fmean(chosen))


def test_pass_at_k_counts_the_verifiers_right_answers_of_learned_tasks_and_those_to_come():
    loop = loop_of()
    loop.experience = loop.stream.experiences[0]
    found = loop.measure("pass_at_k")
    counts = {}
    for k, e in enumerate(loop.stream.evals[:2]):
        prompts = [[2], [3]][k : k + 1] * len(e.val)
        rng = torch.Generator().manual_seed(derive(0, f"probe.pass_at_k/{e.name}"))
        rollout = sample(loop.model, prompts, n=16, max_new_tokens=3, rng=rng)
        gold = [[3, EOS], [2, EOS]][k]
        right = [ids == gold for ids in rollout.completions()]
        counts[e.name] = [sum(right[i : i + 16]) for i in range(0, len(right), 16)]
    for name, c in counts.items():
        assert found[f"pass_1/{name}"] == pytest.approx(sum(c) / 16 / len(c))
        assert found[f"none_right/{name}"] == sum(v == 0 for v in c) / len(c)
        misses = fmean(comb(16 - v, 8) / comb(16, 8) for v in c)
        assert found[f"pass_8/{name}"] == pytest.approx(1 - misses)
    assert found["pass_8_learned"] == found["pass_8/e0"]
    assert found["pass_8_ahead"] == found["pass_8/e1"]
    assert not any("old" in name for name in found)


def test_pass_at_k_of_a_classifier_is_exact_and_leaves_out_classes_not_seen():
    loop = make_loop([])
    loop.experience = loop.stream.experiences[0]
    loop.grow_to(2)
    first, second = loop.stream.evals
    p = softmax(loop.model.eval()(first.val.column("x")).detach().double().numpy())
    p = p[np.arange(len(p)), first.val.column("y").numpy()]
    found = loop.measure("pass_at_k")
    assert found[f"pass_8/{first.name}"] == pytest.approx((1 - (1 - p) ** 8).mean(), rel=1e-5)
    assert found[f"none_right/{first.name}"] == pytest.approx(((1 - p) ** 16).mean(), rel=1e-4)
    assert not any(name.endswith(second.name) for name in found)


# -- relearning ------------------------------------------------------------------------------------


def test_relearning_trains_a_copy_by_the_runs_optimizer_on_the_tasks_own_rows():
    loop = moved_loop()
    shown = looks.shown(loop, loop.stream.evals[0])
    model = relearning.relearned(loop, shown, "e0")
    by_hand = torch.tensor(MOVED, requires_grad=True)
    for _ in range(relearning.UPDATES):  # every batch holds all rows: a -> b, b -> eos
        logp = by_hand.log_softmax(1)
        loss = -(logp[2, 3] + logp[3, EOS]) / 2
        (g,) = torch.autograd.grad(loss, by_hand)
        by_hand = (by_hand - 0.3 * g).detach().requires_grad_()
    assert torch.allclose(model.lm.table, by_hand, atol=1e-5)
    assert torch.equal(loop.model.lm.table, torch.tensor(MOVED))
    assert loop.generators == {} and loop.mb_x is None


def test_regained_is_the_share_of_the_loss_that_came_back(monkeypatch):
    loop = moved_loop("relearning")
    probe = loop.attach("relearning")
    probe.learned = {"e0": 0.9}
    said = iter([0.4, 0.8])
    monkeypatch.setattr(looks, "score", lambda *a: next(said))
    found = loop.measure("relearning")
    assert found == pytest.approx({"before/e0": 0.4, "after/e0": 0.8, "lost": 0.5, "regained": 0.8})
    probe.learned, said = {"e0": 0.44}, iter([0.4, 0.8])
    monkeypatch.setattr(looks, "score", lambda *a: next(said))
    assert "regained" not in loop.measure("relearning")  # nothing was lost


def test_what_a_bigram_has_lost_by_another_answer_is_regained():
    table = [[0.0] * 4, [0.0] * 4, [-9.0, -1.0, 0.0, 1.0], [-9.0, 1.0, 0.0, -1.0]]
    loop = loop_of(table, lr=1.0, epochs=20)
    loop.attach("relearning")
    loop.run()
    found = loop.measure("relearning")
    assert loop.probes["relearning"].learned["e0"] == 1.0 and found["before/e0"] == 0.0
    assert found["after/e0"] == 1.0 and found["regained"] == 1.0


# -- fisher_risk -----------------------------------------------------------------------------------


def score_of(p, pairs):
    """d log p(answer) / d table of a bigram: sum over tokens of onehot - p."""
    g = np.zeros((4, 4))
    for last, token in pairs:
        g[last] += np.eye(4)[token] - p[last]
    return g


def test_the_fisher_risk_is_that_of_sums_written_out():
    loop = loop_of()
    loop.attach("fisher_risk")
    loop.experience = loop.stream.experiences[0]
    loop.fire("before_training_exp")
    found, p = loop.measure("fisher_risk"), softmax(TABLE)

    def drawn(table, n, name):
        ((_, rollout),) = looks.answered(loop, loop.model, table, n, looks.own_rng(loop, name))
        return answers_of(rollout)

    held = drawn(loop.stream.evals[2].val, 1, "fisher_risk/F/old/0")
    F = np.mean([score_of(p, row) ** 2 for row in held], 0)
    rows = drawn(loop.stream.experiences[0].train, 8, "fisher_risk/g/0")
    gold = float((F * score_of(p, [(2, 3), (3, EOS)]) ** 2).sum())
    rloo, variances = [], []
    for start in range(0, len(rows), 8):
        group = rows[start : start + 8]
        r = np.array([float([t for _, t in row] == [3, EOS]) for row in group])
        others = (r.sum() - r) / 7
        g = np.mean([a * score_of(p, row) for a, row in zip(r - others, group, strict=True)], 0)
        rloo.append(float((F * g**2).sum()))
        variances.append(r.var())
    assert found["R_sft"] == pytest.approx(gold, rel=1e-4)
    assert found["R_rloo"] == pytest.approx(fmean(rloo), rel=1e-4)
    assert found["ratio"] == pytest.approx(median(rloo) / gold, rel=1e-4)
    spoken = [r / gold for r in rloo if r]
    assert found["ratio_varied"] == pytest.approx(median(spoken), rel=1e-4)
    assert found["varied"] == fmean(v > 0 for v in variances)
    assert found["spearman"] == pytest.approx(spearmanr(rloo, variances).statistic, rel=1e-4)


def test_the_fisher_of_earlier_tasks_is_their_mean_and_a_classifier_has_none_before_the_first():
    loop = make_loop([])
    probe = loop.attach("fisher_risk")
    loop.run()
    assert probe.tasks == 2
    assert {"ratio", "R_sft", "R_rloo", "varied"} <= set(probe.values)
    other = make_loop([], stream=tiny_stream(sizes=(4,)))
    other.attach("fisher_risk")
    other.run()
    assert other.measure("fisher_risk") == {}


def test_a_gradient_is_taken_of_the_chosen_parameters_and_leaves_no_trace():
    model = LanguageModel(Bigram(TABLE), Letters(), 8)
    model.lm.table.requires_grad_(False)
    ids = torch.tensor([[2, 3]])

    def logp(called):
        return called(ids, torch.ones_like(ids)).log_softmax(-1)[0, :1, 3]

    g = gradient(model, logp, [2.0], {"lm.table"})["lm.table"]
    assert np.allclose(g, 2 * score_of(softmax(TABLE), [(2, 3)]), atol=1e-6)
    assert model.lm.table.grad is None and not model.lm.table.requires_grad
    assert gradient(model, logp, [2.0], set()) == {}


# -- all of them -----------------------------------------------------------------------------------


def test_no_probe_looks_at_test_rows():
    loop = moved_loop()
    for e in loop.stream.evals:
        assert looks.looked_at(loop, e).column("x").tolist() == e.val.column("x").tolist()
        e.val = None
    shown = [looks.looked_at(loop, e) for e in loop.stream.evals]
    assert shown[2] is None  # a held-out eval has test rows alone
    for table, experience in zip(shown[:2], loop.stream.experiences, strict=True):
        assert table.column("x").tolist() == experience.train.column("x").tolist()


@pytest.mark.parametrize("make", [loop_of, lambda: make_loop([])])
def test_measuring_leaves_weights_random_numbers_and_the_loop_alone(make):
    ends = []
    for names in ((), PROBES):
        loop = make()
        for name in names:
            loop.attach(name)
        loop.run()
        before = weights(loop.model), torch.get_rng_state(), loop.samples_seen
        held = {name: id(value) for name, value in vars(loop).items()}
        for name in names:
            loop.measure(name)
        assert_same_weights(before[0], weights(loop.model))
        assert torch.equal(before[1], torch.get_rng_state()) and loop.samples_seen == before[2]
        assert {name: id(value) for name, value in vars(loop).items()} == held
        assert all(p.requires_grad for p in loop.model.parameters())
        draws = {name: g.get_state() for name, g in loop.generators.items()}
        ends.append((before, draws))
    assert_same_weights(ends[0][0][0], ends[1][0][0])
    assert torch.equal(ends[0][0][1], ends[1][0][1]) and ends[0][0][2] == ends[1][0][2]
    assert ends[0][1].keys() == ends[1][1].keys()
    assert all(torch.equal(state, ends[1][1][name]) for name, state in ends[0][1].items())


SMALL = {
    "stream": {"tasks": ["above", "letter"], "skills": ["copy"]},
    "stream.n_train": 16,
    "stream.n_val": 4,
    "stream.n_test": 4,
    "model.pretrained": False,
    "train": {"updates": 2, "batch_size": 8},
}


def test_g39_adding_evaluations_and_probes_changes_no_training_and_resumes(
    tmp_path, capsys, monkeypatch
):
    for module, name in [(relearning, "UPDATES"), (looks, "PROMPTS"), (fisher_risk, "PROMPTS")]:
        monkeypatch.setattr(module, name, 3)
    monkeypatch.setattr(fisher_risk, "FISHER", 3)
    quiet = cl.run("skills", "sft", out=str(tmp_path / "a"), **SMALL)
    loud = {**SMALL, "probes": PROBES, "eval.every": 1}
    full = cl.run("skills", "sft", out=str(tmp_path / "b"), **loud)
    assert_same_weights(quiet.model.state_dict(), full.model.state_dict())
    assert quiet.results["R"] == full.results["R"]
    assert quiet.results["cost"]["stored_bytes"] == full.results["cost"]["stored_bytes"]
    assert all(full.results["probes"][name][-1] for name in PROBES)

    reader = EventAccumulator(str(full.dir))
    reader.Reload()
    scalars = set(reader.Tags()["scalars"])
    assert "probe/forward_kl" in reader.Tags()["images"]
    assert {"probe/forward_kl/new", "probe/pass_at_k/pass_8_learned", "held_out"} <= scalars
    curve = [point.value for point in reader.Scalars("held_out")]
    metrics = full.metrics
    assert curve[0] == metrics["held_out_before"] and curve[-1] == metrics["held_out"][-1]
    show_results(full.results, "folder", "out")
    assert "held out 0.000, before training 0.000" in " ".join(capsys.readouterr().out.split())

    part = tmp_path / "part"
    shutil.copytree(full.dir, part)
    shutil.rmtree(sorted((part / "checkpoint").iterdir())[-1])
    results = part / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    again = resume(part)
    assert comparable(again.results) == comparable(full.results)
