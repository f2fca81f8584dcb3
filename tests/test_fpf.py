"""fpf, k_fpf, module_sensitivity: against the tests' own calculations, and what stays as it was."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DropoutNet, Watcher, assert_same_weights, make_loop, tiny_stream, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_replay_family import plain, scenario
from torch import nn

import cl
from cl.board import _pixels
from cl.buffers import Buffer
from cl.bursts import distance, union
from cl.errors import BadValue, ContractError, NonFinite
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build
from cl.models.selection import at_random, by_score, modules, select
from cl.probes import hooks_of
from cl.probes.module_sensitivity import bars, looked_at
from cl.runner import resume
from cl.seeding import generator
from strategies.derpp import DERpp
from strategies.fetril import FeTrIL
from strategies.fpf import FPF
from strategies.joint import Joint
from strategies.k_fpf import KFPF
from strategies.naive import Naive
from strategies.replay import Replay

QUICK = {"stream.n_experiences": 3, "train.epochs": 2, "train.batch_size": 64, "train.momentum": 0}


# -- modules and their choice ----------------------------------------------------------------------


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head_policy, self.head_value = nn.Linear(16, 2), nn.Linear(16, 1)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def library(name, **kwargs):
    return lambda: build(name, (3, 32, 32), kwargs)


MODELS = {  # first, head, number of norms
    "small_cnn": (library("small_cnn"), ["backbone.layers.0.conv"], ["head"], 2),
    "resnet20": (library("resnet20"), ["backbone.stem"], ["head"], 19),
    "mlp": (library("mlp"), [], ["head"], 0),
    "vit": (
        library("timm:test_vit"),
        ["backbone.model.patch_embed.proj"],
        ["head"],
        None,
    ),
    "resnet": (library("timm:test_resnet"), ["backbone.model.conv1.0"], ["head"], None),
    "llama": (llama, ["model.embed_tokens"], ["lm_head"], 5),
    "actor_critic": (ActorCritic, [], ["head_policy", "head_value"], 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_modules_are_found_in_every_kind_of_model(name):
    make, first, heads, n_norms = MODELS[name]
    model = make()
    owners = dict(model.named_modules())
    norms = [path for path, m in owners.items() if "Norm" in type(m).__name__]
    norms = [path for path in norms if any(True for _ in owners[path].parameters(False))]
    assert n_norms is None or len(norms) == n_norms
    assert [m.path for m in select(model, ["first"])] == first
    assert [m.path for m in select(model, ["head"])] == heads
    assert [m.path for m in select(model, ["norm"])] == norms
    every = [n for module in modules(model) for n in module.names]
    assert sorted(every) == sorted(n for n, _ in model.named_parameters())
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert all(m.size == sum(sizes[n] for n in m.names) for m in modules(model))
    assert select(model, ["all"]) == modules(model) and select(model, ["none"]) == []
    assert {m.path for m in select(model, ["norm", *heads])} == {*norms, *heads}


def test_a_path_or_its_beginning_names_modules_and_another_name_is_refused():
    model = llama()
    names = [m.path for m in select(model, ["model.layers.1.mlp"])]
    assert names == [f"model.layers.1.mlp.{p}_proj" for p in ("gate", "up", "down")]
    with pytest.raises(BadValue, match=r"no module 'model.layer.1'; did you mean 'model.layers.1'"):
        select(model, ["model.layer.1"])
    with pytest.raises(BadValue, match="did you mean 'norm'"):
        select(model, ["norms"])


def test_parameters_beside_modules_are_units_of_their_own():
    paths = [m.path for m in modules(build("timm:test_vit", (3, 32, 32), {}))]
    assert "backbone.model.pos_embed" in paths and "backbone.model" not in paths
    attention = nn.Module()
    attention.attn = nn.MultiheadAttention(4, 2)
    assert [m.path for m in modules(attention)] == ["attn.in_proj", "attn.out_proj"]


def test_random_and_sensitive_choices_reach_the_budget_and_no_more_modules():
    model = build("resnet20", (3, 32, 32), {"width": 4})
    model.head.grow(4)
    sizes = {m.path: m.size for m in modules(model)}
    named = {m.path for m in select(model, ["head", "norm"])}
    wanted = {None: sum(sizes[p] for p in named), 0.3: 0.3 * sum(sizes.values())}
    scores = {path: float(k * 7 % 13) for k, path in enumerate(sizes) if path != "head"}
    for budget, elements in wanted.items():
        drawn = [m.path for m in at_random(model, ["head", "norm"], budget, generator(0, "a"))]
        ranked = [m.path for m in by_score(model, ["head", "norm"], budget, scores)]
        assert not named & set(drawn)
        for chosen in (drawn, ranked):
            total = sum(sizes[p] for p in chosen)
            assert total >= elements > total - sizes[chosen[-1]]
        assert ranked == sorted(scores, key=lambda p: -scores[p])[: len(ranked)]
    others = [at_random(model, ["head"], None, generator(s, "a"))[0].path for s in range(8)]
    assert len(set(others)) > 2
    assert {m.path for m in at_random(model, ["head"], 1.0, generator(0, "a"))} == set(sizes) - {
        "head"
    }


REFUSED = {
    "strategy.modules=hed": "fpf.modules: the model has no module 'hed'; did you mean 'head'",
    "strategy.modules=attention": "the model has no such module",
    "strategy.budget=0.1": "goes with choose=random or choose=sensitive",
    "strategy.modules=none strategy.statistics=false": "nothing to do",
    "strategy.modules=none strategy.choose=random": "needs modules to match",
    "strategy.size=0": "size must be int ≥ 1",
}


@pytest.mark.parametrize("given", REFUSED)
def test_bad_settings_end_in_one_line_before_training(given, tmp_path):
    settings = dict(pair.split("=") for pair in given.split())
    for name in ("fpf", "k_fpf"):
        with pytest.raises(BadValue) as caught:
            cl.run("split_digits", name, out=str(tmp_path), **QUICK, **settings)
        message = str(caught.value)
        assert REFUSED[given].replace("fpf.", f"{name}.") in message and "\n" not in message
    assert not list(tmp_path.rglob("results.json"))


def test_orders_lengths_and_loops_that_do_not_fit_are_refused(tmp_path):
    for strategies, words in (
        ("fpf+replay", r"name fpf last: replay\+fpf"),
        ("rft+fpf", "fpf tunes on stored rows, policy_gradient learns from what the policy does"),
        ("fetril+k_fpf", "claims the data; give k_fpf.every"),
        ("avalanche:LwFPlugin+fpf", "fpf can't run beside another library's plug-ins"),
    ):
        with pytest.raises(BadValue, match=words):
            cl.run("split_digits", strategies, out=str(tmp_path), **QUICK)


# -- one burst -------------------------------------------------------------------------------------


class Look(Naive):
    """Weights before the strategies that come after it act."""

    def __init__(self):
        self.before, self.model = [], []

    def after_training_exp(self, loop):
        self.before.append(weights(loop.model))
        self.model.append(copy.deepcopy(loop.model))


def one_burst(strategy, first=(), **train):
    """(loop, model before the last burst, the rows of the store) after a run."""
    look = Look()
    loop = make_loop([*first, look, strategy], **{"lr": 0.02, "momentum": 0.9, **train})
    loop.run()
    return loop, look


def drawn_rows(rows, name, n, before, seed=0):
    """What step `before` (0-based) of a run's bursts draws, by the documented generator."""
    rng = generator(seed, f"{name}.draw")
    for _ in range(before + 1):
        index = torch.randperm(len(rows["y"]), generator=rng)[:n]
    return {k: v[index] for k, v in rows.items()}


@pytest.mark.parametrize("labels", [False, True])
def test_one_step_equals_sgd_by_hand(labels):
    strategy = FPF(modules=["head", "first"], steps=1, batch_size=12, lr=0.3, size=40)
    stream = scenario("labels") if labels else None
    loop, look = one_burst(strategy, stream=stream, model=plain)
    model, held = look.model[-1], loop.buffers["fpf"].rows
    rows = drawn_rows(held, "fpf", 12, before=1)  # the second of two bursts of a step
    h = model(rows["x"]).double()
    allowed = torch.ones_like(h, dtype=torch.bool)
    if labels:
        allowed = torch.arange(4) // 2 == rows["task_label"][:, None]
    e = h.exp() * allowed
    loss = -(e[torch.arange(12), rows["y"]] / e.sum(1)).log().mean()
    names = ["backbone.layers.0.conv.weight", "backbone.layers.0.conv.bias"]
    names += ["head.weight", "head.bias"]
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(loss, [named[n] for n in names])
    expected = look.before[-1]
    for name, slope in zip(names, slopes, strict=True):
        assert slope.abs().max() > 1e-6
        expected[name] = expected[name] - 0.3 * slope
    for name, value in loop.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
        if name not in names:
            assert torch.equal(value, expected[name])
    assert loop.extra_updates == 2


def test_the_rate_falls_as_a_cosine_to_zero(monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def watch(self, *args, **kwargs):
        seen.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watch)
    make_loop([FPF(steps=4, lr=0.2)], lr=0.02).run()
    rates = [lr for lr, momentum in seen if momentum == 0]
    assert rates[:4] == pytest.approx([0.2, 0.1 * (1 + 2**-0.5), 0.1, 0.1 * (1 - 2**-0.5)])


class State(Naive):
    """Everything a burst must leave alone, before and after."""

    def __init__(self):
        self.found = []

    def after_training_iteration(self, loop):
        generators = {n: g.get_state().tolist() for n, g in loop.generators.items()}
        self.found.append(
            {
                "weights": weights(loop.model),
                "flags": {n: p.requires_grad for n, p in loop.model.named_parameters()},
                "grads": {
                    n: None if p.grad is None else p.grad.clone()
                    for n, p in loop.model.named_parameters()
                },
                "modes": [m.training for m in loop.model.modules()],
                "optimizer": copy.deepcopy(loop.optimizer.state_dict()),
                "generators": {n: g for n, g in generators.items() if not n.startswith("k_fpf.")},
                "torch": torch.get_rng_state().tolist(),
                "mb": [loop.mb_x, loop.mb_y, loop.mb_output, loop.mb_index, loop.mb_share],
            }
        )


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("augment", [[], ["crop", "flip"]])
def test_a_burst_leaves_everything_else_as_it_was(statistics, augment):
    before, after = State(), State()
    burst = KFPF(modules=["out"], every=3, steps=5, statistics=statistics, lam=0.1)

    class Freeze(Naive):
        def before_training_exp(self, loop):
            loop.model.conv.requires_grad_(False)

    loop = make_loop([Freeze(), before, burst, after], model=DropoutNet, augment=augment, lr=0.02)
    loop.run()
    tuned = {"out.weight", "out.bias"}
    bursts = 0
    for left, right in zip(before.found, after.found, strict=True):
        moved = {n for n, t in left["weights"].items() if not torch.equal(t, right["weights"][n])}
        bursts += bool(moved & tuned)
        statistic = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert moved in (set(), tuned | statistic if statistics else tuned)
        for key in ("flags", "modes", "generators", "torch"):
            assert left[key] == right[key], key
        assert all(a is b for a, b in zip(left["mb"], right["mb"], strict=True))
        pairs = zip(left["grads"].values(), right["grads"].values(), strict=True)
        assert all(a is b is None or torch.equal(a, b) for a, b in pairs)
        assert left["optimizer"]["param_groups"] == right["optimizer"]["param_groups"]
        for k, state in left["optimizer"]["state"].items():
            assert torch.equal(
                state["momentum_buffer"],
                right["optimizer"]["state"][k]["momentum_buffer"],
            )
    assert bursts == len(before.found) // 3


def test_statistics_alone_can_be_refreshed():
    loop, look = one_burst(FPF(modules=["none"], steps=4))
    moved = {
        n for n, t in loop.model.state_dict().items() if not torch.equal(t, look.before[-1][n])
    }
    assert moved and all("running" in n or "num_batches" in n for n in moved)
    rows = sum(len(e.train) for e in loop.stream.experiences)
    assert loop.extra_updates == 0 and loop.samples_seen == rows + 2 * 4 * 32


def test_a_rate_that_is_too_high_is_named():
    with pytest.raises(NonFinite, match=r"smaller fpf.lr \(now 1e\+30\)"):
        make_loop([FPF(lr=1e30, modules=["all"], steps=9)], lr=0.02).run()


def test_a_store_without_rows_changes_nothing():
    loop = make_loop([Naive(), FPF()])
    before = weights(loop.model)
    loop.plugins[-1].burst(loop)
    assert_same_weights(before, weights(loop.model))


# -- where rows and logits come from ---------------------------------------------------------------


def buffer_of(rows):
    buffer = Buffer(100, "reservoir")
    buffer.add(rows, torch.Generator().manual_seed(0))
    return buffer


def test_the_union_of_buffers_holds_all_rows_and_what_logits_are_known():
    a = buffer_of({"x": torch.arange(3.0)[:, None], "y": torch.arange(3)})
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    b = buffer_of({"x": torch.full((2, 1), 9.0), "y": torch.tensor([7, 8]), "logits": z})
    rows = union([Buffer(5, "reservoir"), a, b])
    assert sorted(rows["y"].tolist()) == [0, 1, 2, 7, 8]
    assert rows["logits"][:3].isnan().all() and set(rows["logits"][3:, 0].tolist()) == {1.0, 3.0}
    assert union([Buffer(5, "reservoir")]) is None
    assert union([a]).keys() == {"x", "y"}


def test_the_distance_is_over_known_logits():
    h, z = torch.randn(3, 4), torch.randn(3, 3)
    z[0], z[1, 2] = torch.nan, torch.nan
    total = [(h[i, j] - z[i, j]).item() ** 2 for i, j in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2))]
    assert distance(h, z).item() == pytest.approx(np.mean(total), rel=1e-5)
    assert distance(h, torch.full((3, 2), torch.nan)) == 0


def test_rows_come_from_the_other_strategies_buffers_or_from_its_own():
    shared, _ = one_burst(FPF(steps=2), [Replay(size=20)])
    assert set(shared.buffers) == {"replay"}
    both, _ = one_burst(FPF(steps=2), [KFPF(every=5, steps=1)])
    assert set(both.buffers) == {"k_fpf"}
    alone, _ = one_burst(FPF(steps=2, size=30))
    assert set(alone.buffers) == {"fpf"} and len(alone.buffers["fpf"]) == 30
    assert "logits" not in alone.buffers["fpf"].rows
    late, _ = one_burst(FPF(steps=1, when="stay", size=10), [Joint()])
    assert len(late.buffers["fpf"]) == 10


def test_its_own_reservoir_is_offered_each_row_once():
    stream = tiny_stream()
    n = sum(len(e.train) for e in stream.experiences)
    loop, _ = one_burst(FPF(steps=1, size=500), stream=stream, epochs=3, accumulate=2)
    held = loop.buffers["fpf"].rows
    assert len(held["y"]) == n == len({tuple(x.flatten().tolist()) for x in held["x"]})


@pytest.mark.parametrize("accumulate", [1, 3])
def test_its_own_reservoir_keeps_the_logits_of_its_rows(accumulate):
    strategy = FPF(steps=1, size=500, lam=0.5, lr=1e-12)
    train = {"model": plain, "lr": 1e-12, "accumulate": accumulate}
    loop, _ = one_burst(strategy, [Replay(size=4, batch_size=3)], **train)
    assert set(loop.buffers) == {"replay"}
    loop, _ = one_burst(FPF(steps=1, size=500, lam=0.5, lr=1e-12), **train)
    held = loop.buffers["fpf"].rows
    with torch.no_grad():
        h = loop.model(held["x"])
    early = held["y"] < 2
    assert held["logits"][early, 2:].isnan().all()
    torch.testing.assert_close(held["logits"][~early], h[~early], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(held["logits"][early, :2], h[early, :2], atol=1e-5, rtol=1e-5)


def test_distillation_uses_the_logits_that_a_base_has_stored():
    strategy = FPF(modules=["head"], steps=1, batch_size=10, lr=0.1, lam=2.0)
    loop, look = one_burst(strategy, [DERpp(size=30)], model=plain)
    rows = drawn_rows(loop.buffers["derpp"].rows, "fpf", 10, before=1)
    model = look.model[-1]
    h = model(rows["x"])
    loss = F.cross_entropy(h, rows["y"]) + 2 * ((h - rows["logits"]) ** 2).mean()
    slope = torch.autograd.grad(loss, model.head.weight)[0]
    expected = look.before[-1]["head.weight"] - 0.1 * slope
    torch.testing.assert_close(loop.model.head.weight.detach(), expected, atol=1e-6, rtol=1e-5)


def test_rows_without_logits_get_those_of_the_model_before_the_burst():
    """At the first step the distance to them is then 0, so that lam does not matter."""
    found = []
    for lam in (0.0, 5.0):
        strategy = FPF(modules=["head"], steps=1, batch_size=10, lr=0.1, lam=lam)
        loop, _ = one_burst(strategy, [Replay(size=20)], model=plain)
        found.append(weights(loop.model))
        assert "logits" not in loop.buffers["replay"].rows
    torch.testing.assert_close(*(f["head.weight"] for f in found), atol=1e-6, rtol=1e-5)


# -- when ------------------------------------------------------------------------------------------

BASES = {
    "naive": list,
    "replay": lambda: [Replay(size=20)],
    "derpp": lambda: [DERpp(size=20)],
}
HARD = {"model": DropoutNet, "epochs": 2, "augment": ["crop", "flip"], "momentum": 0.9, "lr": 0.02}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "neutral",
    [lambda: FPF(steps=0), lambda: KFPF(k=0), lambda: KFPF(steps=0), lambda: KFPF(k=0, lam=1.0)],
)
def test_no_burst_equals_the_base_bit_for_bit(base, neutral):
    plain_loop = make_loop([Naive(), *BASES[base]()], **HARD)
    plain_loop.run()
    loop = make_loop([Naive(), *BASES[base](), neutral()], **HARD)  # seeds the global generators
    loop.run()
    assert_same_weights(weights(plain_loop.model), weights(loop.model))
    assert loop.samples_seen == plain_loop.samples_seen and not loop.extra_updates


@pytest.mark.parametrize("base", BASES)
def test_once_trains_as_the_base_does_and_ends_with_one_burst(base):
    stream = tiny_stream(6, (2, 2, 2))
    wide = {**HARD, "model": lambda: DropoutNet(6)}
    bare, burst, fpf = Look(), Look(), FPF(modules=["out", "norm"], steps=3)
    make_loop([Naive(), *BASES[base](), bare], stream, **wide).run()
    loop = make_loop([Naive(), *BASES[base](), burst, fpf], stream, observer=Watcher(), **wide)
    loop.run()
    for left, right in zip(bare.before, burst.before, strict=True):
        assert_same_weights(left, right)
    assert not torch.equal(loop.model.out.weight, bare.before[-1]["out.weight"])
    assert torch.equal(loop.model.conv.weight, bare.before[-1]["conv.weight"])
    assert loop.extra_updates == 9
    stay, fpf = Look(), FPF(modules=["out", "norm"], steps=3, when="stay")
    make_loop([Naive(), *BASES[base](), stay, fpf], stream, **wide).run()
    assert_same_weights(bare.before[0], stay.before[0])
    assert not torch.equal(bare.before[1]["out.weight"], stay.before[1]["out.weight"])


def test_once_works_with_a_head_that_grows_and_what_acts_before_the_next_experience(tmp_path):
    settings = {"out": str(tmp_path), "strategy.fpf.steps": 5, **QUICK}
    with_burst = cl.run("split_digits", "shrink_perturb+replay+fpf", **settings)
    settings.pop("strategy.fpf.steps")
    base = cl.run("split_digits", "shrink_perturb+replay", **settings)
    untouched = ("backbone.layers.1.conv.weight",)  # not among the defaults: as the base has it
    for name in untouched:
        assert torch.equal(with_burst.model.state_dict()[name], base.model.state_dict()[name])
    assert with_burst.results["cost"]["updates"] == base.results["cost"]["updates"]
    assert with_burst.results["cost"]["extra_updates"] == 15


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # 12 updates: 2 experiences of 43 rows, 2 epochs of 3 batches; the clock counts those before
        ({"k": 3}, [3, 7, 12]),
        ({"k": 5}, [1, 3, 5, 7, 12]),
        ({"k": 1}, [12]),
        ({"k": 12}, [*range(11), 12]),
        ({"k": 50}, list(range(12))),
        ({"every": 5}, [4, 9, 12]),
        ({"every": 6, "k": 0}, [5, 11]),
        ({"every": 99}, [12]),
    ],
)
def test_bursts_come_at_equal_distances_and_at_the_end(settings, expected, monkeypatch):
    times = []
    burst = KFPF.burst

    def watch(self, loop):
        times.append(loop.clock.train_iterations)
        burst(self, loop)

    monkeypatch.setattr(KFPF, "burst", watch)
    loop = make_loop([KFPF(steps=2, **settings)], epochs=2, batch_size=16, lr=0.02)
    loop.run()
    assert loop.clock.train_iterations == 12
    assert times == expected
    assert loop.extra_updates == 2 * len(expected)


def test_needs_follow_from_what_is_given():
    assert KFPF().needs == ("buffer", "stream_length")
    assert KFPF(every=3).needs == ("buffer",)
    assert FPF().needs == ("buffer",)


def test_a_burst_brings_back_what_naive_forgets(tmp_path):
    settings = {"out": str(tmp_path), "train.momentum": 0, "stream.n_experiences": 3}
    found = {
        name: cl.run("split_digits", name, **settings).metrics["average_accuracy"]
        for name in ("naive", "fpf", "k_fpf")
    }
    assert found["naive"] < 0.4 and min(found["fpf"], found["k_fpf"]) > 0.75


RESUMED = {
    "once": ("replay+fpf", {"strategy.fpf.steps": 3}),
    "stay, own store, logits": (
        "fpf",
        {"strategy.steps": 3, "strategy.when": "stay", "strategy.lam": 0.5},
    ),
    "random": ("fpf", {"strategy.steps": 3, "strategy.choose": "random"}),
    "sensitive": (
        "naive+fpf",
        {"strategy.fpf.steps": 3, "strategy.fpf.choose": "sensitive", "train.augment": ["flip"]},
    ),
    "k_fpf": ("derpp+k_fpf", {"strategy.k_fpf.steps": 3, "strategy.k_fpf.lam": 0.5}),
    "k_fpf, sensitive, probed": (
        "k_fpf",
        {"strategy.steps": 3, "strategy.choose": "sensitive", "probes": ["module_sensitivity"]},
    ),
    "probe": ("naive", {"probes": ["module_sensitivity", "weight_norm"]}),
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("learned", [2, 3])
def test_resumed_equals_uninterrupted(case, learned, tmp_path):
    strategy, settings = RESUMED[case]
    settings = {**QUICK, "stream.n_experiences": 4, **settings, "out": str(tmp_path)}
    whole = cl.run("split_digits", strategy, **settings)
    again = resume(stopped_after(learned, strategy, {**settings, "out": str(tmp_path / "part")}))
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())


def stopped_after(learned, strategy, settings):
    """The folder of a run that is interrupted when so many experiences are learned."""
    learn = Loop._learn

    def stop(self, experience):
        if experience.index == learned:
            raise KeyboardInterrupt
        learn(self, experience)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(Loop, "_learn", stop)
        cl.run("split_digits", strategy, **settings)
    return caught.value.run_folder


# -- the probe -------------------------------------------------------------------------------------


class Films(Naive):
    """All weights at every experience's start and every epoch's end, as numpy arrays."""

    def __init__(self):
        self.film = []

    def take(self, loop):
        named = loop.model.named_parameters()
        return {n: p.detach().double().numpy().copy() for n, p in named}

    def before_training_exp(self, loop):
        self.film.append([self.take(loop)])

    def after_training_epoch(self, loop):
        self.film[-1].append(self.take(loop))


GROUPS = {
    "backbone.layers.0.conv": ["weight"],
    "backbone.layers.0.norm": ["weight", "bias"],
    "backbone.layers.1.conv": ["weight"],
    "backbone.layers.1.norm": ["weight", "bias"],
    "head": ["weight", "bias"],
}


def mean_change(old, new, module):
    """Mean |new - old| of one module over the rows that both have, in loops."""
    moved = []
    for leaf in GROUPS[module]:
        a, b = old[f"{module}.{leaf}"], new[f"{module}.{leaf}"]
        for row in range(min(len(a), len(b))):
            moved += np.abs(np.atleast_1d(b[row] - a[row])).ravel().tolist()
    return sum(moved) / len(moved)


class Measure(Watcher):
    def __init__(self):
        super().__init__()
        self.values = []

    def scores(self, loop, kind, scores, seconds):
        if kind == "experience":
            self.values.append(loop.measure("module_sensitivity"))


def probed(strategies, **train):
    watch, films = Measure(), Films()
    loop = make_loop([films, *strategies], tiny_stream(6, (2, 2, 2)), observer=watch, **train)
    loop.attach("module_sensitivity")
    loop.run()
    return watch.values, films.film, loop


@pytest.mark.parametrize("epochs", [1, 4])
def test_changes_and_sensitivity_equal_loops_over_saved_weights(epochs):
    values, film, _ = probed([Replay(size=20)], epochs=epochs, lr=0.02)
    for t in range(3):
        for g in GROUPS:
            pairs = [(n - 1, n) for n in range(2 if epochs > 1 else 1, epochs + 1)]
            within = np.mean([mean_change(film[t][a], film[t][b], g) for a, b in pairs])
            assert values[t][f"within/{g}"] == pytest.approx(within, rel=1e-9)
            if t == 0:
                assert f"across/{g}" not in values[t] and f"S/{g}" not in values[t]
                continue
            across = np.mean(
                [mean_change(film[t - 1][n], film[t][n], g) for n in range(1, epochs + 1)]
            )
            assert values[t][f"across/{g}"] == pytest.approx(across, rel=1e-9)
            assert values[t][f"S/{g}"] == pytest.approx(across / within, rel=1e-9)
        if t:
            s = [values[t][f"S/{g}"] for g in GROUPS]
            assert values[t]["max_over_median"] == pytest.approx(max(s) / np.median(s))
            assert values[t]["head_rank"] == pytest.approx(np.mean([x > s[-1] for x in s]))


def test_at_most_ten_epochs_evenly_spaced_are_looked_at():
    assert looked_at(4) == {0, 1, 2, 3} and looked_at(1) == {0}
    assert looked_at(50) == {4, 9, 14, 19, 24, 29, 34, 39, 44, 49}
    assert all(len(looked_at(n)) == 10 and n - 1 in looked_at(n) for n in range(10, 200))
    values, film, loop = probed([], epochs=12, batch_size=48, lr=0.02)
    chosen = sorted(looked_at(12))
    assert len(loop.attach("module_sensitivity").held) == 10
    across = np.mean([mean_change(film[1][n + 1], film[2][n + 1], "head") for n in chosen])
    assert values[2]["across/head"] == pytest.approx(across, rel=1e-9)


def test_modules_that_do_not_move_have_no_sensitivity():
    class Freeze(Naive):
        def before_training_exp(self, loop):
            loop.model.backbone.layers[0].conv.requires_grad_(False)

    values, *_ = probed([Freeze()], epochs=2, lr=0.02)
    assert values[1]["within/backbone.layers.0.conv"] == 0
    assert "S/backbone.layers.0.conv" not in values[1] and "S/head" in values[1]
    json.dumps(values, allow_nan=False)


def test_an_experience_without_gradient_training_has_no_changes():
    values, *_ = probed([FeTrIL()], epochs=2, lr=0.02)
    assert "within/head" in values[0] and values[1] == values[2] == {}


def test_the_probe_changes_nothing():
    loops = [make_loop([Naive()], **HARD) for _ in range(2)]
    loops[0].run()
    loops = [loops[0], make_loop([Naive()], observer=Measure(), **HARD)]
    loops[1].attach("module_sensitivity")
    loops[1].run()
    assert_same_weights(weights(loops[0].model), weights(loops[1].model))


@pytest.mark.parametrize("strategy", [FPF, KFPF])
def test_the_most_sensitive_modules_of_the_first_two_experiences_are_tuned(strategy):
    more = {"every": 4} if strategy is KFPF else {}
    burst = strategy(choose="sensitive", budget=0.25, steps=1, lr=0.01, **more)
    values, _, loop = probed([burst], epochs=2, lr=0.02)
    scores = {k[2:]: v for k, v in values[1].items() if k.startswith("S/")}
    ranked = sorted(scores, key=lambda g: -scores[g])
    assert burst.chosen == ranked[: len(burst.chosen)] and len(burst.chosen) < len(ranked)
    sizes = {m.path: m.size for m in modules(loop.model)}
    assert sum(sizes[g] for g in burst.chosen) >= 0.2 * sum(sizes.values())


def test_the_random_choice_is_drawn_once():
    burst = FPF(choose="random", steps=1, modules=["head"])
    loop, look = one_burst(burst)
    moved = {
        n.rpartition(".")[0]
        for n, p in loop.model.named_parameters()
        if not torch.equal(p, look.before[-1][n])
    }
    assert moved == set(burst.chosen) and "head" not in moved


# -- probes with a history, and their pictures -----------------------------------------------------


class Misspelt:
    def before_training_expp(self, loop): ...
    def measure(self, loop): ...


class NoMeasure:
    def before_training_exp(self, loop): ...


class BadState:
    def __init__(self):
        self.f = open

    def measure(self, loop): ...


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Misspelt, "did you mean 'before_training_exp'"),
        (NoMeasure, r"without measure\(loop\)"),
        (BadState, "BadState.f holds"),
    ],
)
def test_a_probe_that_breaks_its_contract_is_refused(kind, words):
    with pytest.raises(ContractError, match=words):
        hooks_of(kind())


def test_a_users_probe_with_a_history_runs_by_path_and_resumes(tmp_path):
    path = tmp_path / "count.py"
    path.write_text(
        "class Count:\n    def __init__(self):\n        self.n = 0\n\n"
        "    def after_update(self, loop):\n        self.n += 1\n\n"
        "    def measure(self, loop):\n        return {'updates': float(self.n)}\n"
    )
    name = f"{path}:Count"
    run = cl.run("split_digits", "naive", out=str(tmp_path / "o"), **QUICK, probes=[name])
    (rows,) = run.results["probes"].values()
    assert rows[-1]["updates"] == run.results["cost"]["updates"] > rows[0]["updates"] > 0


def test_the_picture_is_in_tensorboard_and_parts_are_no_scalars(tmp_path):
    run = cl.run(
        "split_digits",
        "naive",
        out=str(tmp_path),
        **QUICK,
        probes=["module_sensitivity", "weight_norm"],
    )
    reader = EventAccumulator(str(run.dir))
    reader.Reload()
    tags = reader.Tags()
    assert "probe/module_sensitivity" in tags["images"]
    scalars = {t for t in tags["scalars"] if t.startswith("probe/")}
    assert {t for t in scalars if "module" in t} == {
        "probe/module_sensitivity/max_over_median",
        "probe/module_sensitivity/head_rank",
    }
    assert "probe/weight_norm/head" in scalars
    assert "cost/extra_updates" in tags["scalars"]


@pytest.mark.parametrize("n", [1, 60])
@pytest.mark.parametrize("kinds", [("within",), ("within", "across", "S"), ()])
def test_bars_are_drawn_for_any_number_of_modules(n, kinds):
    paths = [f"backbone.layers.{k}.conv" for k in range(n)]
    values = {f"{kind}/{p}": 0.5 + k for kind in kinds for k, p in enumerate(paths)}
    pixels = _pixels(bars(values))
    assert pixels.shape[0] > (1000 if n == 60 and kinds else 100)
    _pixels(bars({f"within/{p}": 0.0 for p in paths}))
