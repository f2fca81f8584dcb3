"""hft: what is frozen and how often, that it stays as it was, and that all else is the base's."""

import math
from collections import Counter

import pytest
import torch
from conftest import (
    assert_same_weights,
    make_loop,
    start_of_a_run,
    tiny_stream,
    weights,
)
from torch import nn

import cl
from cl.errors import BadValue
from cl.loop import Loop
from cl.models import build
from cl.models.anatomy import anatomy
from cl.objectives.cross_entropy import CrossEntropy
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from strategies.hft import HFT, chosen, units
from strategies.naive import Naive
from strategies.replay import Replay

DRAWS = 300


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def names_of(drawn):
    return {name for unit in drawn for name in unit.names}


def per_layer(model, names):
    """{(layer, category): frozen weights} counted from the anatomy, biases left out."""
    parts = [p for p in anatomy(model) if p.name in names and p.role != "bias"]
    return Counter((p.layer, p.category) for p in parts)


@pytest.fixture(scope="module")
def llama():
    return build("tiny", (), {"pretrained": False})


def gpt2(layers=4):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=layers, n_head=2)
    )


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(*body(), nn.Linear(8, 2))
        self.critic = nn.Sequential(*body(), nn.Linear(8, 1))


def body():
    return nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()


# -- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_llama_layer_freezes_two_attention_matrices_one_norm_and_one_or_two_of_three(llama, seed):
    names = names_of(chosen(units(llama), "category", 0.5, rng(seed)))
    counts = per_layer(llama, names)
    assert all(counts[layer, "attention"] == 2 for layer in range(4))
    assert all(counts[layer, "norm"] == 1 for layer in range(4))
    assert sorted(counts[layer, "feed_forward"] for layer in range(4)) == [1, 1, 2, 2]
    always = {p.name for p in anatomy(llama) if p.layer is None}
    assert len(always) == 3 and not names & always


def test_every_tensor_of_the_blocks_is_frozen_half_of_the_time_and_no_two_draws_agree(llama):
    found, generator = units(llama), rng()
    counts, seen = Counter(), set()
    for _ in range(DRAWS):
        names = names_of(chosen(found, "category", 0.5, generator))
        counts.update(names)
        seen.add(frozenset(names))
    inside = [p.name for p in anatomy(llama) if p.layer is not None]
    spread = 5 * math.sqrt(0.25 / DRAWS)
    assert all(abs(counts[name] / DRAWS - 0.5) < spread for name in inside)
    assert len(seen) == DRAWS


def test_gpt2_freezes_one_of_two_with_its_bias_and_an_odd_number_of_layers_is_rounded_both_ways():
    model = gpt2()
    names = names_of(chosen(units(model), "category", 0.5, rng()))
    counts = per_layer(model, names)
    kinds = ("attention", "feed_forward", "norm")
    assert all(counts[layer, kind] == 1 for layer in range(4) for kind in kinds)
    weighted = {name.removesuffix(".weight") for name in names if name.endswith("weight")}
    assert weighted == {name.removesuffix(".bias") for name in names if name.endswith("bias")}
    odd, generator, sizes = build("mlp", (4,), {"hidden": [3, 3, 3]}), rng(), Counter()
    for _ in range(DRAWS):
        sizes[len(chosen(units(odd), "category", 0.5, generator))] += 1
    assert set(sizes) == {1, 2} and abs(sizes[1] / DRAWS - 0.5) < 5 * math.sqrt(0.25 / DRAWS)


def test_blocks_without_attention_freeze_half_of_their_tensors_and_never_the_head():
    cnn = build("small_cnn", (1, 8, 8), {"width": 4, "depth": 3})
    cnn.head.grow(2)
    for seed in range(10):
        drawn = chosen(units(cnn), "category", 0.5, rng(seed))
        assert sorted(unit.layer for unit in drawn) == [0, 1, 2]
        assert not any(name.startswith("head") for name in names_of(drawn))
    both = ActorCritic()
    seen = set()
    for seed in range(30):
        seen |= names_of(chosen(units(both), "category", 0.5, rng(seed)))
    assert seen == {
        f"{net}.{k}.{p}" for net in ("actor", "critic") for k in (0, 2) for p in ("weight", "bias")
    }


@pytest.mark.parametrize("level", ["category", "layer", "model"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 1.0])
def test_any_share_is_frozen_on_average_at_every_level(llama, level, ratio):
    found, generator = units(llama), rng()
    numbers = [len(chosen(found, level, ratio, generator)) for _ in range(DRAWS)]
    n = len(found)
    assert n == 4 * 9
    assert abs(sum(numbers) / DRAWS - ratio * n) < 5 * 9 * 0.5 / math.sqrt(DRAWS)
    assert max(numbers) - min(numbers) <= {"category": 3, "layer": 9, "model": 1}[level]


def test_layers_are_frozen_whole_at_layer_level(llama):
    counts = per_layer(llama, names_of(chosen(units(llama), "layer", 0.5, rng())))
    assert len({layer for layer, _ in counts}) == 2 and sum(counts.values()) == 18


# -- in the loop ---------------------------------------------------------------------------------


class Look(Naive):
    """Flags and weights during every experience, those after it, and who has optimizer state."""

    def __init__(self):
        self.flags, self.first, self.last, self.held = [], [], [], []

    def before_training_epoch(self, loop):
        if loop.clock.train_exp_epochs == 0:
            self.flags.append({n: p.requires_grad for n, p in loop.model.named_parameters()})
            self.first.append(weights(loop.model))

    def after_training_exp(self, loop):
        self.last.append(weights(loop.model))
        named = loop.model.named_parameters()
        self.held.append({n for n, p in named if p in loop.optimizer.state})


def looked(*strategies, **settings):
    look = Look()
    settings = {"epochs": 2, "stream": tiny_stream(sizes=(2, 1, 1))} | settings
    loop = make_loop([look, *strategies], **settings)
    loop.run()
    return look, loop


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_tensors_do_not_move_not_even_by_decay_or_momentum(optimizer):
    hft = HFT()
    settings = {"optimizer": optimizer, "weight_decay": 0.5, "lr": 0.01}
    look, loop = looked(hft, **settings)
    for k in range(3):
        frozen = {name for name, flag in look.flags[k].items() if not flag}
        for name, flag in look.flags[k].items():
            same = torch.equal(look.first[k][name], look.last[k][name])
            assert same == (not flag), name
        assert look.held[k] == set(look.flags[k]) - frozen
        sizes = {name: p.numel() for name, p in look.first[k].items() if name in look.flags[k]}
        share = sum(sizes[name] for name in frozen) / sum(sizes.values())
        assert hft.shares[k] == pytest.approx(share) and 0 < share < 1
    assert all(p.requires_grad for p in loop.model.parameters())
    loop.prepare_optimizer()  # as the next experience does: all are back, in the model's order
    (group,) = loop.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in loop.model.parameters()]


def test_every_experience_draws_another_half():
    look, _ = looked(HFT(), model=lambda: build("small_cnn", (1, 8, 8), {"width": 4, "depth": 3}))
    frozen = [frozenset(n for n, flag in flags.items() if not flag) for flags in look.flags]
    assert all(a != b for a, b in zip(frozen, frozen[1:]))


def test_the_draw_follows_the_run_seed_alone_and_is_logged():
    one, loop = looked(HFT(), seed=3)
    two, _ = looked(HFT(), Replay(size=4), seed=3, lr=0.3)
    other, _ = looked(HFT(), seed=4)
    assert [f.items() for f in one.flags] == [f.items() for f in two.flags]
    assert one.flags != other.flags
    assert list(loop.reported["frozen_share"].values()) == loop.plugins[1].shares


def test_what_somebody_else_has_frozen_stays_frozen_and_is_not_drawn():
    class Freeze(Naive):
        def before_training_exp(self, loop):
            loop.model.backbone.layers[0].requires_grad_(False)

    hft = HFT(ratio=1.0)
    look, loop = looked(Freeze(), hft)
    named = dict(loop.model.named_parameters())
    flags = {name: p.requires_grad for name, p in named.items()}
    assert not any(flag for name, flag in flags.items() if ".layers.0." in name)
    assert all(flag for name, flag in flags.items() if ".layers.0." not in name)
    assert not any(look.flags[0][name] for name in named if name.startswith("backbone"))
    own = sum(p.numel() for name, p in named.items() if ".layers.1." in name)
    trained = own + look.first[0]["head.weight"].numel() + len(look.first[0]["head.bias"])
    assert hft.shares[0] == pytest.approx(own / trained)


@pytest.mark.parametrize("half_reset", [False, True])
def test_with_nothing_frozen_training_is_the_bases_bit_for_bit(half_reset):
    _, left = looked(Naive())
    _, right = looked(HFT(ratio=0.0, half_reset=half_reset))
    assert_same_weights(weights(left.model), weights(right.model))


def test_half_reset_trains_everything_and_puts_a_half_back():
    naive, _ = looked(Naive(), stream=tiny_stream(4, sizes=(4,)))
    hft = HFT(half_reset=True)
    look, loop = looked(hft, stream=tiny_stream(4, sizes=(4,)))
    assert_same_weights(naive.last[0], look.last[0])  # before it is put back
    after = weights(loop.model)
    named = dict(loop.model.named_parameters())
    back = {name for name in named if not torch.equal(after[name], naive.last[0][name])}
    assert back == names_of(chosen(units(loop.model), "category", 0.5, loop_rng()))
    assert all(torch.equal(after[name], look.first[0][name]) for name in back)
    assert all((named[name] in loop.optimizer.state) == (name not in back) for name in named)


def loop_rng():
    from cl.seeding import generator

    return generator(0, "hft")


def test_a_model_of_head_and_embeddings_alone_is_refused():
    stream = tiny_stream()
    seed_globals(0)
    with pytest.raises(BadValue, match="nothing to freeze"):
        Loop(
            stream=stream,
            strategies=[HFT()],
            model=nn.Sequential(nn.Flatten(), nn.Embedding(4, 4)),
            objective=CrossEntropy(),
            train=Train(),
            evaluation=Eval(),
            seed=0,
            device=torch.device("cpu"),
        )


def test_it_composes_with_sft_and_replay_on_text(tmp_path):
    settings = {
        "stream": {"tasks": ["above", "letter"], "skills": [], "n_train": 8, "n_test": 4},
        "model.pretrained": False,
        "train": {"updates": 2, "batch_size": 4, "weight_decay": 0.1},
        "out": str(tmp_path),
    }
    start = start_of_a_run()
    done = cl.run("skills", "hft+sft+replay", **settings, strategy={"hft": {"ratio": 1.0}})
    moved = {n for n, t in weights(done.model).items() if not torch.equal(t, start[n])}
    assert moved == {n for n in start if "layers" not in n}
