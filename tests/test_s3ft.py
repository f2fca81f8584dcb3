"""s3ft: which targets are shown, what they cost, and that all else is sft."""

import pytest
import torch
from conftest import Watcher, assert_same_weights, bigram_model, make_loop
from test_demonstrations import FOLLOWING, back_to_the_first_checkpoint, loop_of, offered, stream_of

import cl
from cl.demonstrations import nll
from cl.errors import BadValue
from cl.folder import comparable
from cl.models import build
from cl.objectives import _tokens
from cl.runner import resume
from cl.stream import Experience
from strategies.naive import Naive
from strategies.s3ft import S3FT
from strategies.sft import SFT

# greedy answers of the model: "a" after "=", "b" after "+", "c" after "*"
MODEL = FOLLOWING | {"+": {"b": 0.6, "a": 0.4}, "*": {"c": 1.0}}
PROMPTS = ["1=", "2+", "3=", "4*", "5+", "6="]
GOLD = "ccc"  # right, and unlikely


def three_kinds(right=("b", "c", "ab", GOLD), **fields):
    return stream_of(PROMPTS, right=right, response=GOLD, demonstrations="canonical", **fields)


def made(strategy, stream, model=None):
    loop = loop_of(stream, model or bigram_model(MODEL), [strategy])
    loop.observer = Watcher()
    loop.experience = stream.experiences[0]
    loop.adapted_dataset = loop.experience.train
    strategy.before_training_exp(loop)
    return loop


def test_own_answers_come_first_then_likely_renderings_then_gold():
    stream = three_kinds(renderings=offered(["ab", "cc"]))
    strategy = S3FT()
    loop = made(strategy, stream)
    own = {1: ("b", "own"), 3: ("c", "own"), 4: ("b", "own")}
    assert strategy.targets == own | dict.fromkeys((0, 2, 5), ("ab", "rewritten"))
    assert loop.objective.origins(loop.adapted_dataset) == {"own": 3, "rewritten": 3, "gold": 0}


def test_without_renderings_or_with_worse_ones_gold_stays():
    stream = three_kinds(right=("b", "c", "cccc", GOLD), renderings=offered(["cccc"]))
    strategy = S3FT()
    loop = made(strategy, stream)
    assert set(strategy.targets) == {1, 3, 4}
    assert loop.objective.origins(loop.adapted_dataset) == {"own": 3, "rewritten": 0, "gold": 3}


def test_rewriting_all_uses_no_answer_of_its_own():
    strategy = S3FT(rewrite="all")
    loop = made(strategy, three_kinds(renderings=offered(["ab"])))
    assert strategy.targets == dict.fromkeys(range(6), ("ab", "rewritten"))
    assert loop.objective.origins(loop.adapted_dataset) == {"own": 0, "rewritten": 6, "gold": 0}


def test_a_sampled_answer_is_sometimes_right_where_the_greedy_one_is_not():
    prompts = [f"{k}=" for k in range(300)]
    stream = stream_of(prompts, right=("ab", "b", "c", GOLD), response=GOLD)
    stream.demonstrations = "canonical"
    strategy = S3FT(own="sampled", paraphrase=False)
    made(strategy, stream, bigram_model(FOLLOWING))
    assert len(strategy.targets) / 300 == pytest.approx(0.6, abs=0.1)  # 1 - 0.4 of "a"


def test_shares_and_costs_are_logged_and_the_targets_are_likelier_than_gold():
    loop = made(S3FT(), three_kinds(renderings=offered(["ab", "cc"])))
    logged = {name: values[0] for name, values in loop._watch.logged.items()}
    assert [logged[f"s3ft_{k}"] for k in ("own", "rewritten", "gold")] == [0.5, 0.5, 0]
    model = bigram_model(MODEL)
    gold = [nll(model, [(p, [GOLD])])[0][0] for p in PROMPTS]
    targets = ["ab", "b", "ab", "c", "b", "ab"]
    now = [nll(model, [(p, [t])])[0][0] for p, t in zip(PROMPTS, targets, strict=True)]
    assert logged["target_nll_gold"] == pytest.approx(sum(gold) / 6, rel=1e-5)
    assert logged["target_nll"] == pytest.approx(sum(now) / 6, rel=1e-5)
    assert logged["target_nll"] < 0.6 * logged["target_nll_gold"]  # the card's bar: 40 % less


def test_the_objective_shows_the_targets():
    loop = made(S3FT(), three_kinds(renderings=offered(["ab"])))
    loop.objective.load(loop, {"x": torch.arange(6)})
    decode = loop.model.tokenizer.decode
    shown = [decode(row[row != _tokens.IGNORE].tolist()) for row in loop.mb_y]
    assert shown == ["ab", "b", "ab", "c", "b", "ab"]
    assert [loop.objective.gold(loop, k) for k in range(6)] == [GOLD] * 6


def trained(strategies, stream, **train):
    seen = []

    class Watch(cl.Strategy):
        def before_forward(self, loop):
            seen.append(loop.adapted_dataset.rows(loop.mb_index)["x"].tolist())

    model = bigram_model(MODEL)
    loop = loop_of(stream, model, [*strategies, Watch()], epochs=3, lr=1e-4, **train)
    loop.run()
    return seen, loop.model.state_dict()


def test_with_nothing_rewritten_it_is_sft_bit_for_bit():
    stream = three_kinds(right=(GOLD,))
    seen, weights = trained([S3FT(paraphrase=False)], stream)
    other, expected = trained([SFT()], three_kinds(right=(GOLD,)))
    assert seen == other
    assert_same_weights(weights, expected)


def test_the_items_and_their_order_are_sfts_whatever_is_rewritten():
    seen, weights = trained([S3FT(refresh="epoch", own="sampled")], three_kinds())
    other, expected = trained([SFT()], three_kinds())
    assert seen == other
    assert any(not torch.equal(weights[k], expected[k]) for k in weights)


def test_sfts_options_go_with_it():
    loop = loop_of(three_kinds(), bigram_model(MODEL), [SFT(learn="all"), S3FT()])
    assert loop.objective.learn == "all"


def test_targets_are_made_once_or_in_every_epoch(monkeypatch):
    calls, real = [], S3FT._make
    monkeypatch.setattr(S3FT, "_make", lambda self, loop: calls.append(self) or real(self, loop))
    for refresh, expected in (("once", 1), ("epoch", 3)):
        strategy = S3FT(refresh=refresh)
        loop_of(three_kinds(), bigram_model(MODEL), [strategy], epochs=3).run()
        assert calls.count(strategy) == expected


def test_a_refreshed_epoch_asks_the_model_as_it_is_then():
    strategy = S3FT(refresh="epoch", paraphrase=False)
    stream = stream_of(["1="], right=("b", GOLD), response=GOLD, demonstrations="canonical")
    loop = made(strategy, stream)
    assert strategy.targets == {}
    loop.model.load_state_dict(
        bigram_model(MODEL | {"=": {"b": 0.9, "a": 0.1}}).state_dict()
    )  # what training might have done
    loop.clock.train_exp_epochs = 1
    strategy.before_training_epoch(loop)
    assert strategy.targets == {0: ("b", "own")}


def test_a_model_is_asked_for_a_paraphrase_where_the_stream_has_no_renderings():
    stream = stream_of(["1=", "2+"], right=("c",), response="c", demonstrations="canonical")
    strategy = S3FT(instruction="say {answer} not {prompt}*")
    made(strategy, stream)
    assert strategy.targets == {0: ("c", "rewritten"), 1: ("c", "rewritten")}
    asked = strategy._asked(loop_of(stream, bigram_model(MODEL)), {1: "c"})
    assert asked == {1: "say c not 2+*"}


def test_what_the_model_can_not_read_stays_gold_and_is_told():
    stream = stream_of(["1=", "2+"], right=("c",), response="c", demonstrations="canonical")
    strategy = S3FT()  # the instruction has capital letters, and is too long
    with pytest.warns(UserWarning, match="2 of 2 answers of e0 stay gold"):
        made(strategy, stream)
    assert strategy.targets == {}


def test_targets_of_rows_in_buffers_are_kept_and_counted():
    stream = three_kinds()
    table = stream.experiences[0].train
    stream.experiences = [
        Experience(0, "e0", (), table.select(torch.tensor([1, 3, 4]))),
        Experience(1, "e1", (), table.select(torch.tensor([0, 2, 5]))),
    ]
    from strategies.replay import Replay

    for size, kept in ((0, set()), (6, {1, 3, 4})):
        strategy = S3FT(paraphrase=False)
        strategies = [strategy, Replay(size=size, policy="reservoir")] if size else [strategy]
        loop = loop_of(stream, bigram_model(MODEL), strategies, lr=1e-6)
        loop.run()
        assert set(strategy.targets) == kept
        assert strategy.stored_bytes(loop) == len(kept)
        assert set(loop.objective.rewritten) == kept


def test_on_labelled_images_it_is_naive():
    ends = []
    for strategy in (S3FT(), Naive()):
        loop = make_loop([strategy])
        loop.run()
        ends.append(loop.model.state_dict())
    assert_same_weights(*ends)


def test_what_can_not_be_meant_is_refused_in_one_line():
    with pytest.raises(BadValue, match="paraphrase=false none"):
        loop_of(three_kinds(), None, [S3FT(rewrite="all", paraphrase=False)])
    with pytest.raises(BadValue, match="must hold {answer}"):
        loop_of(three_kinds(), None, [S3FT(instruction="again: {prompt}")])

    class Blind:
        name = "blind"

    class Claims(cl.Strategy):
        def objective(self, loop):
            return Blind()

    with pytest.raises(BadValue, match="the objective blind shows nothing"):
        loop_of(three_kinds(), None, [Claims(), S3FT()])


def test_a_run_repeats_counts_its_targets_and_resumes_exactly(tmp_path):
    settings = {
        "stream": {
            "n_train": 12,
            "n_test": 4,
            "n_val": 2,
            "tasks": ["above", "letter"],
            "skills": ["copy"],
        },
        "train": {"updates": 2, "batch_size": 8},
        "strategy": {"own": "sampled", "refresh": "epoch"},
    }
    done = cl.run("skills", "s3ft", out=str(tmp_path), **settings)
    raw = done.results["raw"]
    shown = [[raw[f"targets_{k}"][e][e] for e in (0, 1)] for k in ("own", "rewritten", "gold")]
    assert [sum(column) for column in zip(*shown, strict=True)] == [12, 12]
    assert shown[1][0] > 0
    weights = {k: v.clone() for k, v in done.model.state_dict().items()}
    back_to_the_first_checkpoint(done.dir)
    resumed = resume(done.dir)
    assert comparable(resumed.results) == comparable(done.results)
    assert_same_weights(resumed.model.state_dict(), weights)


def test_an_untrained_model_has_nothing_right_and_rewrites_what_it_can():
    stream = three_kinds(renderings=offered(["ab", "c"]))
    strategy = S3FT()
    made(strategy, stream, build("tiny", (), {"pretrained": False}))
    assert all(origin == "rewritten" for _, origin in strategy.targets.values())
