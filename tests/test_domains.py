"""Domains: every strategy either learns from text or refuses it in one line; what text means to
those that are older than it."""

import math

import numpy as np
import pytest
import torch
from conftest import make_loop, start_of_a_run
from test_text import loop_of, stream_of

import cl
from cl.cli import main
from cl.errors import BadValue, ContractError, RunError
from cl.importance import values
from cl.parts import check_contract
from cl.registry import entries, find
from cl.strategy import Strategy
from strategies.ewc import EWC
from strategies.joint import Joint
from strategies.l2_init import L2Init
from strategies.mas import MAS
from strategies.replay import Replay

NAMES = list(entries("strategies"))
FOR_TEXT = [n for n in NAMES if "llm" in (find("strategies", n).domains or ("llm",))]
REWARDED = ("rft", "rif_rft")  # which an untrained model earns none of: tests/test_rft.py
SMALL = {
    "stream": {"tasks": ["above", "letter"], "skills": [], "n_train": 8, "n_test": 4, "n_val": 0},
    "model.pretrained": False,
    "train": {"updates": 2, "batch_size": 4},
}
BRIEF = {
    "fpf": {"steps": 2},
    "k_fpf": {"steps": 2},
}


@pytest.mark.parametrize("name", [n for n in FOR_TEXT if n not in REWARDED])
def test_a_strategy_for_text_learns_from_it(name, tmp_path):
    done = cl.run("skills", name, **SMALL, strategy=BRIEF.get(name, {}), out=str(tmp_path))
    last = done.results["R"][-1]
    assert all(0 <= score <= 1 for score in last)
    assert all(torch.isfinite(p).all() for p in done.model.parameters())
    start, end = start_of_a_run(), done.model.state_dict()
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*FOR_TEXT, "cloning_replay")])
def test_a_strategy_for_images_refuses_text_in_one_line(name, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "skills", name, "model.pretrained=false", f"out={tmp_path}"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1, err
    assert f"{name} is made for streams of the domain vision" in err and "skills is of" in err
    other = find("strategies", name).load().instead.get("llm")
    assert other is None or (other in NAMES and f"where {other} does its job" in err)
    assert not list(tmp_path.iterdir())


def test_describe_says_which_streams_a_strategy_is_for(capsys):
    for name, said in (("lwf", "domain: vision"), ("hft", "domain: any")):
        with pytest.raises(SystemExit):
            main(["describe", name])
        assert said in capsys.readouterr().out


def test_an_unknown_domain_is_refused():
    class Wrong(Strategy):
        domains = ("visoin",)

    with pytest.raises(ContractError, match="did you mean 'vision'"):
        check_contract(Wrong())


# -- importance on text ----------------------------------------------------------------------------


def by_rows(model, items, value):
    """[{name: gradient}] of value(logits [T, V], response [T]), one unpadded row at a time."""
    rows = []
    for item in items:
        prompt = model.tokenizer.prompt_ids(item.prompt)
        response = model.tokenizer.response_ids(item.responses[0])
        ids = torch.tensor([prompt + response])
        logits = model(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
        model.zero_grad()
        value(logits, torch.tensor(response)).backward()
        rows.append({n: p.grad.double().numpy().copy() for n, p in model.named_parameters()})
    model.zero_grad()
    return rows


def sum_of_logp(logits, response):
    return sum(logits[t].log_softmax(-1)[k] for t, k in enumerate(response))


def test_the_fisher_of_text_is_the_mean_square_of_one_responses_gradient():
    stream, strategy = stream_of(), EWC(fisher_samples=None)
    loop = loop_of(stream, strategies=[strategy])
    loop.experience = stream.experiences[0]
    loop.adapted_dataset = loop.experience.train
    strategy.after_training_exp(loop)
    rows = by_rows(loop.model, stream.items[:4], sum_of_logp)
    for name in ("lm.lm_head.weight", "lm.model.layers.1.mlp.up_proj.weight"):
        expected = np.mean([row[name] ** 2 for row in rows], 0)
        np.testing.assert_allclose(strategy.F[name].numpy(), expected, rtol=2e-3, atol=1e-9)
    assert strategy.F["lm.lm_head.weight"].dtype == torch.float32
    assert all(p.grad is None or not p.grad.any() for p in loop.model.parameters())


def test_mas_of_text_is_the_mean_gradient_of_the_responses_logits():
    stream, strategy = stream_of(), MAS(samples=None)
    loop = loop_of(stream, strategies=[strategy])
    loop.experience = stream.experiences[0]
    loop.adapted_dataset = loop.experience.train
    strategy.after_training_exp(loop)
    rows = by_rows(loop.model, stream.items[:4], lambda logits, _: (logits**2).sum())
    expected = np.mean([abs(row["lm.lm_head.weight"]) for row in rows], 0)
    np.testing.assert_allclose(strategy.Omega["lm.lm_head.weight"], expected, rtol=2e-3, atol=1e-7)


def test_sampled_fishers_take_the_models_own_answers_and_true_ones_need_gold():
    stream = stream_of()
    stream.items = [type(i)(i.prompt, (), i.task, i.meta) for i in stream.items]
    for fisher in ("sampled", "true"):
        strategy = EWC(fisher=fisher, fisher_samples=2)
        loop = make_text_loop(stream, strategy)
        if fisher == "true":
            with pytest.raises(RunError, match="fisher=sampled"):
                strategy.after_training_exp(loop)
        else:
            strategy.after_training_exp(loop)
            assert all(f.isfinite().all() for f in strategy.F.values())
            assert strategy.F["lm.lm_head.weight"].any()


class Anything:
    """An objective that is never asked."""

    name = "anything"


def make_text_loop(stream, strategy):
    loop = loop_of(stream, objective=Anything(), strategies=[strategy])
    loop.experience = stream.experiences[0]
    loop.adapted_dataset = loop.experience.train
    return loop


def test_ewc_pulls_a_language_model_towards_what_it_was():
    strategy = EWC(lam=2.0, fisher_samples=2)
    loop = loop_of(stream_of(), strategies=[strategy])
    loop.run()
    theta = values(loop.model)
    with torch.no_grad():
        for p in loop.model.parameters():
            p.add_(0.01)
    loop._loss, loop._loss_open = torch.zeros(()), True
    strategy.before_backward(loop)
    expected = sum(
        (f.double() * (theta[n] + 0.01 - strategy.mean[n]).double().square()).sum()
        for n, f in strategy.F.items()
    )
    assert loop.loss.item() == pytest.approx((expected + strategy.offset).item(), rel=1e-3)


def test_l2_init_pulls_a_language_model_to_where_it_started():
    strategy = L2Init(lam=0.5)
    loop = loop_of(stream_of(), strategies=[strategy])
    start = values(loop.model)
    loop.run()
    assert all(torch.equal(strategy.theta_0[name], t) for name, t in start.items())


# -- stored prompts ------------------------------------------------------------------------------


def skills_of(n_train):
    return find("streams", "skills").load()(
        tasks=["above", "letter", "even"], skills=[], n_train=n_train, n_test=2, n_val=0
    )


@pytest.mark.parametrize("size,rows", [(9, 9), (0.1, 3), (0.11, 4)])
def test_replay_keeps_equal_shares_of_the_tasks_also_when_asked_for_a_share(size, rows):
    stream, strategy = skills_of(10), Replay(size=size)
    loop = loop_of(stream, strategies=[strategy], updates=1)
    loop.run()
    held = loop.buffers["replay"].rows["x"].tolist()
    assert len(held) == rows == (size if size >= 1 else math.ceil(size * 30))
    tasks = [stream.items[k].task for k in held]
    numbers = sorted(tasks.count(task) for task in ("above", "letter", "even"))
    assert numbers[0] == rows // 3 and numbers[-1] == -(-rows // 3)


def test_a_share_needs_the_streams_length_and_lies_below_one(tmp_path):
    assert Replay(size=0.05).needs == ("buffer", "stream_length")
    assert Replay(size=200).needs == ("buffer",)
    for size in (0, -0.1, 1.5):
        with pytest.raises(BadValue, match="strategy.size"):
            cl.run("split_digits", "replay", strategy={"size": size}, out=str(tmp_path))


def test_a_share_of_images_is_that_of_all_training_rows():
    loop = make_loop([Replay(size=0.25)])
    loop.run()
    n = sum(len(e.train) for e in loop.stream.experiences)
    assert len(loop.buffers["replay"]) == math.ceil(n / 4)


def test_joint_learns_every_prompt_of_the_stream():
    seen = set()

    class Look(Strategy):
        def before_training_iteration(self, loop):
            rows = loop.adapted_dataset.rows(loop.batch_index)
            seen.update(rows["x"].tolist())

    stream = stream_of()
    loop_of(stream, strategies=[Joint(), Look()]).run()
    assert seen == set(range(len(stream.items)))
