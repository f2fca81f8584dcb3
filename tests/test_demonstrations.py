"""Demonstrations by the base model, and the columns that the token objective computes."""

import json
import math
import warnings
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, bigram_model

import cl
from cl.data import Table
from cl.demonstrations import answers, demonstrations, nll, rendered, right_samples
from cl.errors import DataError
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build
from cl.objectives.token_cross_entropy import NOTHING, TokenCrossEntropy
from cl.runner import resume
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.stream import Eval as StreamEval
from cl.stream import Experience
from cl.text import Item, TextStream
from strategies.replay import Replay
from streams.skills import TASKS, skills

# after "=": a, b, c or ab; answers and their probabilities under the model
FOLLOWING = {
    "=": {"a": 0.5, "b": 0.3, "c": 0.2},
    "a": {"": 0.8, "b": 0.2},
    "b": {"": 1.0},
    "c": {"": 1.0},
}
SHARES = {"a": 0.4, "ab": 0.1, "b": 0.3, "c": 0.2}
RIGHT = ("ab", "b", "c")


def verify(right):
    return lambda prompts, completions, **columns: [float(text in right) for text in completions]


def stream_of(prompts, right=RIGHT, response="c", demonstrations="own", **fields):
    responses = () if response is None else (response,)
    items = [Item(prompt, responses, "t") for prompt in prompts]
    index = torch.arange(len(items))
    table = Table({"x": index, "y": index})
    return TextStream(
        "s",
        "llm",
        [Experience(0, "e0", (), table)],
        [StreamEval("e0", (), table.select(index[:2]), None, (0,))],
        (),
        [],
        items=items,
        verifiers={"t": verify(right)},
        max_new_tokens={"t": 4},
        demonstrations=demonstrations,
        **fields,
    )


def loop_of(stream, model=None, strategies=(), objective=None, **train):
    seed_globals(0)
    return Loop(
        stream=stream,
        strategies=list(strategies),
        model=model or bigram_model(FOLLOWING),
        objective=objective or TokenCrossEntropy(),
        train=Train(**{"batch_size": 4, "epochs": 1, "lr": 0.01, "momentum": 0.0} | train),
        evaluation=Eval(),
        seed=0,
        device=torch.device("cpu"),
    )


def close(counts, shares):
    """Pearson's statistic against the 99.9 % quantile for up to 3 degrees of freedom."""
    n = sum(counts.values())
    return sum((counts[k] - n * p) ** 2 / (n * p) for k, p in shares.items()) < 16.3


def given_right(right):
    total = sum(SHARES[text] for text in right)
    return {text: SHARES[text] / total for text in right}


def test_the_models_answers_have_the_probabilities_that_the_tests_count_on():
    costs = nll(bigram_model(FOLLOWING), [("q=", list(SHARES))])[0]
    assert [math.exp(-c) for c in costs] == pytest.approx(list(SHARES.values()), rel=1e-3)


def test_own_answers_are_right_and_follow_the_model_given_that_they_are():
    stream = stream_of([f"{k}=" for k in range(600)])
    made = demonstrations(bigram_model(FOLLOWING), stream, range(600), 0)
    assert {d.origin for d in made.values()} == {"own"}
    assert all(len(d.texts) == 1 for d in made.values())
    assert close(Counter(d.texts[0] for d in made.values()), given_right(RIGHT))


def test_own_answers_are_the_same_again_and_others_with_another_seed():
    stream, model = stream_of([f"{k}=" for k in range(40)]), bigram_model(FOLLOWING)
    first = demonstrations(model, stream, range(40), 0)
    assert first == demonstrations(model, stream, range(40), 0)
    assert first != demonstrations(model, stream, range(40), 1)


def test_oracle_draws_anew_at_every_visit_as_the_model_given_that_it_is_right():
    stream = stream_of([f"{k}=" for k in range(200)], demonstrations="oracle")
    loop = loop_of(stream)
    seen, first = Counter(), []
    for update in range(6):
        loop.clock.train_iterations = update
        loop.objective.load(loop, {"x": torch.arange(200)})
        said = [loop.model.tokenizer.decode(row[row >= 0].tolist()) for row in loop.mb_y]
        seen.update(said)
        first.append(said)
    assert set(seen) == set(RIGHT) and len({tuple(said) for said in first}) == 6
    shares = given_right(RIGHT)
    n = sum(seen.values())
    # visits share the 8 samples of a prompt: the error is that of 8 samples of 200 prompts
    assert all(
        abs(seen[k] / n - p) < 4 * math.sqrt(p * (1 - p) * (1 / n + 1 / 1600))
        for k, p in shares.items()
    )


def test_micro_batches_of_one_update_see_the_same_draws_of_the_oracle():
    ends = []
    for accumulate in (1, 3):
        stream = stream_of([f"{k}=" for k in range(12)], demonstrations="oracle")
        loop = loop_of(stream, accumulate=accumulate, batch_size=6, epochs=2)
        loop.run()
        ends.append({k: v.clone() for k, v in loop.model.state_dict().items()})
    for name, weight in ends[0].items():
        assert torch.allclose(weight, ends[1][name], atol=1e-5), name


def test_giving_up_what_can_not_be_right_changes_no_sample():
    model = bigram_model(FOLLOWING)
    prompts = [f"{k}=" for k in range(30)]
    plain = right_samples(model, stream_of(prompts, right=("ab",)), range(30), 8, 0)
    begins = {"t": lambda text: "ab".startswith(text)}
    early = stream_of(prompts, right=("ab",), begins=begins)
    asked = []
    early.verifiers["t"] = lambda prompts, completions: (
        asked.extend(completions) or [float(text == "ab") for text in completions]
    )
    assert right_samples(model, early, range(30), 8, 0) == plain and plain
    assert set(asked) <= {"a", "ab"}


def test_a_task_that_is_never_right_is_given_up_early(monkeypatch):
    calls = []
    real = cl.demonstrations.sample
    monkeypatch.setattr(
        cl.demonstrations, "sample", lambda *a, **k: calls.append(k["n"]) or real(*a, **k)
    )
    stream = stream_of([f"{k}=" for k in range(70)], right=())
    assert right_samples(bigram_model(FOLLOWING), stream, range(70), 1, 0) == {}
    assert sorted(set(calls)) == [4, 12]  # 70 * 16 samples are more than 1,000


def test_easy_prompts_are_sampled_once(monkeypatch):
    calls = []
    real = cl.demonstrations.sample
    monkeypatch.setattr(
        cl.demonstrations, "sample", lambda *a, **k: calls.append(k["n"]) or real(*a, **k)
    )
    right_samples(bigram_model(FOLLOWING), stream_of(["q="], right=SHARES), [0], 1, 0)
    assert calls == [4]


def test_answers_that_do_not_end_are_no_demonstrations():
    endless = bigram_model({"=": {"b": 1.0}, "b": {"b": 1.0}})
    stream = stream_of(["q="], right=("b" * 4,), response="b")
    assert demonstrations(endless, stream, [0], 0)[0].origin == "gold"


def offered(texts):
    return lambda index, k, rng: list(texts)[:k]


def test_a_prompt_without_right_samples_gets_the_likeliest_rendering():
    texts = ["ba", "cc", "aab"]  # what the model never says
    model = bigram_model(FOLLOWING | {"b": {"": 0.999999, "a": 1e-6}})
    stream = stream_of(["q=", "r="], right=texts, renderings=offered(texts))
    made = demonstrations(model, stream, [0, 1], 0)
    by_hand = {t: nll(model, [("q=", [t])])[0][0] for t in texts}
    assert min(by_hand, key=by_hand.get) == "ba"
    assert {d.texts for d in made.values()} == {("ba",)}
    assert {d.origin for d in made.values()} == {"rewritten"}


def test_the_oracle_weighs_renderings_by_their_probability():
    texts = ["ba", "bc", "wrong", "bcbcbc"]  # the third is not accepted, the fourth too long
    model = bigram_model(FOLLOWING | {"b": {"": 1 - 4e-6, "a": 1e-6, "c": 3e-6}, "a": {"": 1.0}})
    stream = stream_of(
        ["q="],
        right=("ba", "bc", "bcbcbc"),
        demonstrations="oracle",
        renderings=offered(texts),
    )
    (made,) = demonstrations(model, stream, [0], 0).values()
    assert made.texts == ("ba", "bc")
    assert made.shares == pytest.approx((0.25, 0.75), abs=1e-3)


def test_without_renderings_the_streams_answer_stands_in_and_the_user_is_told():
    stream = stream_of([f"{k}=" for k in range(8)], right=("x",), response="x")
    loop = loop_of(stream)
    with pytest.warns(UserWarning, match="of 8 own demonstrations 0 are right samples"):
        loop.run()
    assert loop.objective.origins(stream.experiences[0].train) == {
        "own": 0,
        "rewritten": 0,
        "gold": 8,
    }


def test_a_stream_that_has_no_answer_at_all_is_refused():
    for kind in ("canonical", "own"):
        stream = stream_of(["q="], right=("x",), response=None, demonstrations=kind)
        with pytest.raises(DataError, match="item 0 of s has no response to learn from"):
            loop_of(stream)


def test_a_task_with_one_right_answer_shows_it_and_samples_nothing(monkeypatch):
    monkeypatch.setattr(cl.demonstrations, "sample", None)
    stream = skills(tasks=["above"], control=True, demonstrations="oracle", n_train=5)
    items = stream.experiences[1].train.column("x").tolist()
    made = demonstrations(build("tiny", (), {"pretrained": False}), stream, items, 0)
    assert {k: d.texts for k, d in made.items()} == {k: stream.items[k].responses for k in items}
    assert {d.origin for d in made.values()} == {"only"}


def test_costs_are_those_of_every_response_alone():
    seed_globals(0)
    model = build("tiny", (), {"pretrained": False})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() > 1 else 1)
    asked = [("a", ["b", "cdef", ""]), ("copy: abc", ["x y"]), ("rev:", ["", "12"])]
    for (prompt, texts), found in zip(asked, nll(model, asked), strict=True):
        for text, cost in zip(texts, found, strict=True):
            start = model.tokenizer.prompt_ids(prompt)
            ids = torch.tensor([start + model.tokenizer.response_ids(text)])
            logp = model(ids, torch.ones_like(ids)).log_softmax(-1)[0]
            places = range(len(start), ids.shape[1])
            assert cost == pytest.approx(-sum(logp[t - 1, ids[0, t]].item() for t in places), 1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_renderings_are_different_right_answers_in_several_styles(name):
    task, rng = TASKS[name], Random(0)
    styled = 0
    for _ in range(50):
        given = task.draw(rng)
        texts = task.renderings(given, 16, rng)
        assert 4 <= len(texts) == len(set(texts)) <= 16
        assert all(task.reward(text, given) == 1.0 and len(text) <= 16 for text in texts)
        styled += sum(" " in text or "," in text or text[0] == "0" for text in texts)
        for text in texts:
            padded = f" {text} "
            assert all(task.begins(padded[:k]) for k in range(len(padded) + 1)), text
    assert styled >= 50
    assert not any(map(task.begins, ("-> 3", "'a'", "= 1", "(a", "[b]")))
    assert len(task.renderings(given, 2, rng)) == 2


# ------------------------------------------------------------------------------ in the objective


@pytest.mark.parametrize("learn", ["response", "all"])
def test_logits_are_those_of_the_needed_columns_alone(learn):
    items = ["q=", "abc=", "abcdefgh="]
    stream = stream_of(items, response="ca", demonstrations="canonical")
    loop = loop_of(stream, build("tiny", (), {"pretrained": False}), objective=None)
    loop.objective.learn = learn
    loop.objective.load(loop, {"x": torch.tensor([1, 0])})
    whole = loop.mb_x.clone()
    assert whole.shape[1] == 1 + 9 + 3
    output = loop.objective.forward(loop)
    # bos, four of the prompt, c, a, eos: the column before the answer and the answer's own
    assert loop.mb_x.shape == loop.mb_y.shape == (2, 8)
    assert output.shape[1] == (4 if learn == "response" else 8)
    full = loop.model(whole.clamp(min=0), whole != NOTHING)
    torch.testing.assert_close(output, full[:, -output.shape[1] :])
    again = loop.objective.forward(loop)  # of what is on the loop now
    assert torch.equal(again, output)


def test_rows_that_are_appended_widen_the_batch_to_what_they_need():
    stream = stream_of(["q=", "abcdefgh="], demonstrations="canonical")
    loop = loop_of(stream, build("tiny", (), {"pretrained": False}))
    loop.objective.load(loop, {"x": torch.tensor([0])})
    loop.append_rows({"x": torch.tensor([1]), "y": torch.tensor([1])})
    output = loop.objective.forward(loop)
    assert loop.mb_x.shape == (2, 12) and output.shape[:2] == (2, 3)
    alone = loop.criterion(output, loop.mb_y)
    full = loop.model(loop.mb_x.clamp(min=0), loop.mb_x != NOTHING)
    assert alone.item() == pytest.approx(loop.criterion(full, loop.mb_y).item(), abs=1e-6)


def test_replayed_rows_learn_what_their_items_show():
    stream = stream_of([f"{k}=" for k in range(12)], demonstrations="oracle")
    loop = loop_of(stream, strategies=[Replay(size=4, policy="reservoir")], batch_size=4)
    loop.run()
    assert loop.clock.train_iterations == 3


def test_g22_an_eos_that_also_pads_is_learned():
    """Labels go by where tokens are, never by their ids."""
    model = bigram_model(FOLLOWING)
    model.tokenizer.pad_id = model.tokenizer.eos_ids[0]
    stream = stream_of(["q=", "abc="], response="c", demonstrations="canonical")
    loop = loop_of(stream, model)
    loop.objective.load(loop, {"x": torch.tensor([0, 1])})
    eos = model.tokenizer.eos_ids[0]
    assert [(row == eos).sum().item() for row in loop.mb_y] == [1, 1]
    output = loop.objective.forward(loop)
    expected = -(math.log(0.2) + math.log(1.0)) / 2  # c and the end, the same of both prompts
    assert loop.criterion(output, loop.mb_y).item() == pytest.approx(expected, abs=1e-3)


def test_g16_sft_learns_the_token_after_each():
    """One step on c raises what follows "=" and what follows c, and of no other token."""
    loop = loop_of(stream_of(["q="], demonstrations="canonical"))
    before = nll(loop.model, [("q=", ["c"])])[0][0]
    loop.objective.load(loop, {"x": torch.tensor([0])})
    loss = loop.criterion(loop.objective.forward(loop), loop.mb_y)
    assert loss.item() == pytest.approx(before / 2, abs=1e-4)
    (grad,) = torch.autograd.grad(loss, loop.model.lm.lm_head.weight)
    tokenizer = loop.model.tokenizer
    (equals,), (c,) = tokenizer.encode("="), tokenizer.encode("c")
    size = tokenizer.vocab_size
    moved = grad[:, :size].abs().sum(0).nonzero()[:, 0].tolist()
    assert set(moved) <= {equals, c} and equals in moved
    scale = math.sqrt(loop.model.lm.config.hidden_size)
    assert grad[c, equals].item() == pytest.approx((0.2 - 1) / 2 * scale, abs=1e-3)


SMALL = {
    "stream": {
        "n_train": 12,
        "n_test": 4,
        "n_val": 2,
        "tasks": ["above", "letter"],
        "skills": ["copy"],
        "demonstrations": "oracle",
    },
    "model.pretrained": False,
    "train": {"updates": 2, "batch_size": 8},
}


def back_to_the_first_checkpoint(folder):
    last = sorted((folder / "checkpoint").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))


def test_a_run_with_the_models_demonstrations_counts_them_and_resumes_exactly(tmp_path):
    done = cl.run("skills", "sft", out=str(tmp_path), **SMALL)
    raw = done.results["raw"]
    shown = [raw[f"targets_{name}"] for name in ("own", "rewritten", "gold")]
    assert [sum(rows[e][e] for rows in shown) for e in (0, 1)] == [12, 12]
    assert all(rows[0][1:] == [None] * 2 and rows[1][2] is None for rows in shown)
    rendered, log = raw["targets_rewritten"][0][0], (done.dir / "log.txt").read_text()
    assert rendered > 0 and f"{rendered} renderings, 0 the stream's answers" in log
    weights = {k: v.clone() for k, v in done.model.state_dict().items()}
    before = json.loads((done.dir / "results.json").read_text())
    back_to_the_first_checkpoint(done.dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = resume(done.dir)
    assert comparable(resumed.results) == comparable(before)
    assert_same_weights(resumed.model.state_dict(), weights)


def test_the_streams_hash_knows_nothing_of_the_model():
    stream = skills(demonstrations="own", n_train=4, n_test=2, n_val=0, tasks=["above"], skills=[])
    before = stream.content_hash()
    loop_of(stream, build("tiny", (), {"pretrained": False}))
    assert stream.content_hash() == before


def test_asking_for_another_text_leaves_the_verifier_its_item():
    model = bigram_model(FOLLOWING | {"+": {"c": 1.0}})
    stream = stream_of(["q="], right=("c",))
    rng = torch.Generator()
    assert answers(model, stream, [0], greedy=True, rng=rng) == {0: []}
    found = answers(model, stream, [0], greedy=True, rng=rng, prompts={0: "say c+"})
    assert found == {0: ["c"]}
    assert rendered(model, stream, [0], 4, 0) == {}


def test_costs_agree_with_numpy_on_the_table():
    table = {"ab": 0.5 * 0.2, "c": 0.2}
    found = nll(bigram_model(FOLLOWING), [("z=", list(table)), ("=", ["c"])])
    np.testing.assert_allclose(found[0], -np.log(list(table.values())), atol=1e-3)
    np.testing.assert_allclose(found[1], [-np.log(0.2)], atol=1e-3)
