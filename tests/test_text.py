"""Text streams in the loop: the objective's numbers, scores by generated answers, bad input."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_same_weights

import cl
import cl.generation
from cl.cli import main
from cl.data import Table
from cl.errors import BadValue, DataError
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build
from cl.objectives.token_cross_entropy import NOTHING, TokenCrossEntropy, encoded
from cl.pretrain import Pretraining, rate
from cl.runner import resume
from cl.sampling import Rollout
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.stream import Eval as StreamEval
from cl.stream import Experience
from cl.text import Item, TextStream

WORDS = ["ab", "abcd", "c", "dca", "eb", "fghij", "k", "lm"]
SMALL = {
    "stream": {
        "n_train": 24,
        "n_test": 6,
        "n_val": 3,
        "tasks": ["above", "letter"],
        "skills": ["copy"],
    },
    "model.pretrained": False,
    "train": {"updates": 2, "batch_size": 8},
}


def exact(prompts, completions, gold):
    return [None if text == "?" else float(text == g) for text, g in zip(completions, gold)]


def stream_of(words=WORDS, verifier=exact, **fields):
    items = [Item(f"rev {w}=", (w[::-1],), "rev", {"gold": w[::-1]}) for w in words]
    index = torch.arange(len(items))
    pool = {"x": index, "y": index}
    half = len(items) // 2
    parts = [Table(pool, index[:half]), Table(pool, index[half:])]
    experiences = [Experience(k, f"e{k}", (), part) for k, part in enumerate(parts)]
    evals = [StreamEval(f"e{k}", (), part, None, (k,)) for k, part in enumerate(parts)]
    settings = {"verifiers": {"rev": verifier}, "max_new_tokens": {"rev": 8}, **fields}
    return TextStream("rev", "llm", experiences, evals, (), [], items=items, **settings)


def loop_of(stream, objective=None, strategies=(), **train):
    seed_globals(0)
    return Loop(
        stream=stream,
        strategies=list(strategies),
        model=build("tiny", (), {"pretrained": False}),
        objective=objective or TokenCrossEntropy(),
        train=Train(**{"batch_size": 4, "epochs": 1, "lr": 0.1, "momentum": 0.0} | train),
        evaluation=Eval(),
        seed=0,
        device=torch.device("cpu"),
    )


def by_hand(model, items, learn="response"):
    """Mean of -log p over tokens, one item at a time, nothing padded."""
    total = count = 0
    for item in items:
        prompt = model.tokenizer.prompt_ids(item.prompt)
        ids = prompt + model.tokenizer.response_ids(item.responses[0])
        block = torch.tensor([ids])
        logp = model(block, torch.ones_like(block)).log_softmax(-1)[0]
        for t in range(len(prompt) if learn == "response" else 1, len(ids)):
            total, count = total - logp[t - 1, ids[t]], count + 1
    return total / count


@pytest.mark.parametrize("learn", ["response", "all"])
def test_the_loss_is_the_mean_over_tokens_of_the_whole_batch(learn):
    stream = stream_of()
    loop = loop_of(stream, TokenCrossEntropy(learn))
    loop.adapted_dataset = stream.experiences[0].train
    loop._fetch(0, (torch.arange(4),), torch.arange(4))
    loop.mb_output = loop.objective.forward(loop)
    expected = by_hand(loop.model, stream.items[:4], learn)
    assert loop.objective.loss(loop).item() == pytest.approx(expected.item(), abs=1e-5)


def test_g10_micro_batches_of_unequal_length_add_up_to_the_whole_batch():
    ends = []
    for accumulate in (1, 2, 4):
        loop = loop_of(stream_of(), accumulate=accumulate, epochs=2)
        loop.run()
        ends.append({k: v.clone() for k, v in loop.model.state_dict().items()})
    for other in ends[1:]:
        for name, weight in ends[0].items():
            assert torch.allclose(weight, other[name], atol=2e-6), name


def test_rows_begin_where_their_prompts_do_and_share_a_column_for_the_answer():
    tokenizer = build("tiny", (), {"pretrained": False}).tokenizer
    items = stream_of().items
    x, y = encoded(items, tokenizer, "response")
    for k, item in enumerate(items):
        ids = tokenizer.prompt_ids(item.prompt) + tokenizer.response_ids(item.responses[0])
        assert x[k][x[k] != NOTHING].tolist() == ids
        assert y[k][y[k] != -100].tolist() == tokenizer.response_ids(item.responses[0])
    starts = [(row != -100).nonzero()[0].item() for row in y]
    assert len(set(starts)) == 1


def test_replay_mixes_stored_prompts_into_batches():
    from strategies.replay import Replay

    seen = []

    class Watch(cl.Strategy):
        def after_forward(self, loop):
            seen.append(len(loop.mb_y))

    loop = loop_of(stream_of(), strategies=[Replay(size=4, policy="reservoir"), Watch()])
    loop.run()
    assert seen == [4, 8]


def answers(texts):
    """A sampler that answers from a list, in the order of prompts."""

    def sample(model, prompts, *, max_new_tokens, greedy, rng):
        assert greedy
        said = [texts[model.tokenizer.decode(p)] for p in prompts]
        ids = [model.tokenizer.response_ids(text) for text in said]
        width = max(map(len, ids))
        block = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[k < len(row) for k in range(width)] for row in ids])
        ended = torch.tensor([text != "long" for text in said])
        empty = torch.zeros(len(ids), 1)
        return Rollout(empty.long(), empty.bool(), block, mask, mask.float(), ~ended, empty[:, 0])

    return sample


def test_answers_are_scored_by_the_verifier_and_other_text_is_counted_apart(monkeypatch):
    stream = stream_of(formats={"rev": str.isalpha})
    said = dict.fromkeys((i.prompt for i in stream.items), "wrong")
    said |= {"rev ab=": "ba", "rev abcd=": "?", "rev c=": "c", "rev lm=": "long"}
    monkeypatch.setattr(cl.generation, "sample", answers(said))
    loop = loop_of(stream)
    loop.experience = stream.experiences[0]
    scores = loop._evaluator.score("experience")
    assert scores.test == [2 / 4, 0.0]
    assert scores.counts["unscorable"] == [1, 0]
    assert scores.counts["malformed"] == [1, 0]
    assert scores.counts["unfinished"] == [0, 1]
    assert scores.within == [None, None]


def test_a_verifier_that_raises_costs_one_score_and_the_run_goes_on():
    def fragile(prompts, completions, gold):
        return [1 / len(text) for text in completions]

    stream = stream_of(verifier=fragile)
    assert stream.rewards([0, 1, 2], ["a", "", "b"]) == [1.0, None, 1.0]
    assert stream.failures == 1


def test_a_run_records_scores_and_counts_repeats_and_resumes_exactly(tmp_path):
    first = cl.run("skills", "sft", out=str(tmp_path / "a"), **SMALL)
    again = cl.run("skills", "sft", out=str(tmp_path / "b"), **SMALL)
    assert comparable(first.results) == comparable(again.results)
    results = first.results
    n_evals = len(results["evals"])
    assert np.array(results["R"]).shape == (2, n_evals)
    assert np.array(results["raw"]["malformed"]).shape == (2, n_evals)
    assert results["score"] == "exact_match" and results["domain"] == "llm"
    last = sorted((first.dir / "checkpoint").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    path = first.dir / "results.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    resumed = resume(first.dir)
    assert comparable(resumed.results) == comparable(again.results)
    assert_same_weights(resumed.model.state_dict(), again.model.state_dict())


def test_measuring_changes_nothing(tmp_path):
    quiet = cl.run("skills", "naive", out=str(tmp_path / "a"), **SMALL)
    loud = cl.run("skills", "naive", out=str(tmp_path / "b"), eval={"every": 1}, **SMALL)
    assert_same_weights(quiet.model.state_dict(), loud.model.state_dict())


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["skills", "fetril"], "fetril is made for streams of the domain vision"),
        (["skills", "sft", "stream.online=true"], "stream.online acts on classes"),
        (["skills", "sft", "stream.task_free=4"], "stream.task_free acts on classes"),
        (["skills", "s3ft", "strategy.rewrite=all", "strategy.paraphrase=false"], "rewrite=all"),
        (["skills", "sft", "model=small_cnn"], "language model"),
        (["split_digits", "naive", "model=tiny"], "language model"),
        (["split_digits", "sft", "strategy.learn=all"], "text stream"),
    ],
)
def test_bad_combinations_end_in_one_line(arguments, said, tmp_path, capsys):
    own = ["model.pretrained=false"] if "model=small_cnn" not in arguments[2:] else []
    own = own if arguments[0] == "skills" or "model=tiny" in arguments else []
    with pytest.raises(SystemExit) as end:
        main(["run", *arguments, *own, f"out={tmp_path / 'runs'}"])
    err = capsys.readouterr().err
    assert end.value.code == 2, err
    assert said in err and err.count("\n") == 1


def test_a_prompt_longer_than_the_models_context_is_refused():
    stream = stream_of(words=["a" * 90])
    stream.experiences = stream.experiences[1:]
    with pytest.raises(BadValue, match="room for 96"):
        loop_of(stream)


def test_an_item_without_a_verifier_is_refused():
    with pytest.raises(DataError, match="no verifier"):
        stream_of(verifiers={})


def test_the_pretraining_rate_warms_up_and_goes_to_zero():
    settings = Pretraining(updates=100, lr=0.5)
    rates = [rate(k, settings) for k in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[-1] < 0.001 and all(a >= b for a, b in zip(rates[4:], rates[5:]))


def test_pretraining_writes_weights_that_load_and_a_log(tmp_path, capsys):
    target = tmp_path / "own.safetensors"
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "tiny", "updates=2", "batch_size=4", "threads=1", f"out={target}"])
    assert end.value.code == 0, capsys.readouterr().err
    log = json.loads(target.with_suffix(".json").read_text())
    assert log["settings"]["updates"] == 2 and log["parameters"] > 800_000
    assert set(log["right"]["00_above"]) == {"greedy", "pass@1", "pass@8"}
    assert target.stat().st_size < 3 * 2**20


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["tinny"], "did you mean 'tiny'"),
        ([], "NAME of one model"),
        (["tiny", "updats=3"], "did you mean 'updates'"),
        (["tiny", "updates=0"], "updates must be"),
    ],
)
def test_bad_pretraining_requests_end_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["pretrain", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and said in err and err.count("\n") == 1


def test_an_answer_that_was_cut_off_is_wrong_whatever_the_verifier_says():
    def always(prompts, completions, gold):
        return [1.0] * len(completions)

    stream = stream_of(verifier=always, max_new_tokens={"rev": 1})
    loop = loop_of(stream)
    evaluator = cl.generation.TextEvaluator(loop)
    share, counts = evaluator._answers(stream.experiences[0].train)
    n = len(stream.experiences[0].train)
    assert share == 1 - counts["unfinished"] / n and counts["unfinished"] > 0
