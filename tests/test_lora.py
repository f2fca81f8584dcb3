"""LoRA: adapters in language models, by model.lora.* and by the strategy that merges them."""

import ast
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import assert_same_weights, weights
from test_language import ids_of, livelier, rng, saved

import cl
from cl import checkpoint
from cl.adapters import Adapters, joined, split
from cl.errors import BadValue
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build, rebuild
from cl.models.lora import adapters_of, merge, put, targets_of
from cl.objectives.token_cross_entropy import TokenCrossEntropy
from cl.runner import resume
from cl.sampling import left_padded, sample
from cl.seeding import global_state, seed_globals
from cl.settings import Eval, Train
from strategies.lora import LoRA

ROOT = Path(__file__).parents[1]
LORA = {"lora.rank": 4, "lora.alpha": 8.0, "lora.targets": ["q", "v"]}
SMALL = {
    "stream": {
        "n_train": 24,
        "n_test": 4,
        "n_val": 0,
        "tasks": ["above", "letter"],
        "skills": ["copy"],
    },
    "model.pretrained": False,
    "train": {"updates": 2, "batch_size": 8, "lr": 0.01},
}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Most of a small run's time is drawing its last figures."""
    monkeypatch.setattr("cl.board.Board._final", lambda *args: None)


def tiny(**settings):
    seed_globals(0)
    return build("tiny", (), {"pretrained": False, **settings})


def block(model):
    return left_padded(ids_of(model), model.tokenizer.pad_id, "cpu")


@torch.no_grad()
def logits(model):
    return model.eval()(*block(model))


def moved(model):
    """The model with B drawn, so that its adapters say something."""
    for k, layer in enumerate(adapters_of(model).values()):
        b = layer.lora_B["default"].weight
        with torch.no_grad():
            b.copy_(torch.randn(b.shape, generator=rng(k)) * 0.1)
    return model


def loop_of(strategies, model=None, **train):
    from streams.skills import skills

    model = model or tiny()
    stream = skills(tasks=["above", "letter"], skills=["copy"], n_train=16, n_val=0, n_test=4)
    settings = {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
    return Loop(
        stream=stream,
        strategies=list(strategies),
        model=model,
        objective=TokenCrossEntropy(),
        train=Train(**settings | train),
        evaluation=Eval(),
        seed=0,
        device=torch.device("cpu"),
    )


class Watch(cl.Strategy):
    """Keeps what a function of the loop says, at one hook."""

    def __init__(self, **looks):
        self.seen = {hook: [] for hook in looks}
        self._looks = looks

    def _look(self, hook, loop):
        if hook in self._looks:
            self.seen[hook].append(self._looks[hook](loop))

    def before_training_exp(self, loop):
        self._look("before_training_exp", loop)

    def before_update(self, loop):
        self._look("before_update", loop)

    def after_update(self, loop):
        self._look("after_update", loop)

    def after_training_exp(self, loop):
        self._look("after_training_exp", loop)


# -- adapters in a model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: saved(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "qwen2", "gpt2")}


@pytest.mark.parametrize("kind", ["tiny", "llama", "qwen2", "gpt2"])
def test_a_model_with_new_adapters_answers_bit_for_bit_as_before_and_trains_nothing_else(
    kind, folders
):
    name = kind if kind == "tiny" else f"hf:{folders[kind]}"
    model = build(name, (), {})
    before = logits(model)
    put(model, Adapters(rank=2), rng())
    assert torch.equal(logits(model), before)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in n or ".lora_B." in n for n in trained)
    ins_outs = {
        "tiny": 4 * 4 * (128 + 128),
        "llama": 2 * (2 * (32 + 32) + 2 * (32 + 16)),
        "gpt2": 2 * ((32 + 96) + (32 + 32)),
    }
    expected = 2 * ins_outs.get(kind, ins_outs["llama"])
    assert sum(p.numel() for p in trained.values()) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_and_their_merge_are_w_plus_alpha_over_rank_b_a(kind, folders):
    model = build(f"hf:{folders[kind]}", (), {})
    before = {n: t.double().numpy() for n, t in weights(model).items()}
    put(model, Adapters(rank=3, alpha=12.0, targets=["attention", "down"]), rng())
    layers = adapters_of(moved(model))
    parts = {
        f"{path}.weight": [
            m.weight.detach().double().numpy() for m in (m.lora_A.default, m.lora_B.default)
        ]
        for path, m in layers.items()
    }
    live = logits(model)
    merge(model)
    after = weights(model)
    assert after.keys() == before.keys() and not adapters_of(model)
    assert all(p.requires_grad for p in model.parameters())
    for name, old in before.items():
        wanted = old
        if name in parts:
            a, b = parts[name]
            wanted = old + (12 / 3) * (b @ a if kind == "llama" else (b @ a).T)
        np.testing.assert_allclose(after[name], wanted, atol=1e-5)
    torch.testing.assert_close(logits(model), live, atol=1e-3, rtol=1e-4)
    plain = build(f"hf:{folders[kind]}", (), {})
    assert plain.architecture == model.architecture


def test_a_is_drawn_from_the_given_generator_alone():
    models = [tiny() for _ in range(3)]
    before = global_state()
    for model, seed in zip(models, (3, 3, 4), strict=True):
        put(model, Adapters(rank=5), rng(seed))
    assert torch.equal(before["torch"], global_state()["torch"])
    assert_same_weights(weights(models[0]), weights(models[1]))
    first = next(iter(adapters_of(models[0]).values())).lora_A.default.weight
    expected = (torch.rand(5, 128, generator=rng(3)) * 2 - 1) / 128**0.5
    torch.testing.assert_close(first.detach(), expected)
    other = next(iter(adapters_of(models[2]).values())).lora_A.default.weight
    assert not torch.equal(first, other)


def test_the_runs_seed_draws_model_loras_adapters():
    one, same = (build_seeded(1) for _ in range(2))
    assert_same_weights(weights(one), weights(same))
    layers = [
        next(iter(adapters_of(m).values())).lora_A.default.weight for m in (one, tiny(**LORA))
    ]
    assert not torch.equal(*layers)


def build_seeded(seed):
    seed_globals(seed)
    return build("tiny", (), {"pretrained": True, **LORA})


@pytest.mark.parametrize(
    ("kind", "names", "found"),
    [
        ("llama", ["q", "v"], ["self_attn.q_proj", "self_attn.v_proj"]),
        ("llama", ["feed_forward"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("llama", ["down_proj", "lm.lm_head"], ["mlp.down_proj", "lm_head"]),
        ("llama", ["lm.model.layers.0.mlp"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("gpt2", ["attention", "up"], ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]),
    ],
)
def test_targets_are_categories_roles_names_and_paths(kind, names, found, folders):
    paths = targets_of(build(f"hf:{folders[kind]}", (), {}), names)
    assert {".".join(p.split(".")[-2:]).removeprefix("lm.") for p in paths} == set(found)
    heads = [p for p in paths if p == "lm.lm_head"]
    layers = 1 if "layers.0" in names[0] else 2
    assert len(paths) == layers * len([f for f in found if f != "lm_head"]) + len(heads)


@pytest.mark.parametrize(
    ("kind", "names", "said"),
    [
        ("llama", ["q_porj"], "did you mean 'q_proj'"),
        ("llama", ["norm"], "no linear layer 'norm'"),
        ("llama", ["embedding"], "allowed: attention, feed_forward, head, q, k, v, o, gate"),
        ("gpt2", ["q"], "allowed: attention, feed_forward, qkv, o, up, down"),
        ("gpt2", ["lm_head"], "no linear layer 'lm_head'"),  # the embedding's own matrix
        ("llama", [], "names no layer"),
    ],
)
def test_targets_that_a_model_lacks_are_refused_in_one_line(kind, names, said, folders):
    with pytest.raises(BadValue, match="model.lora.targets") as caught:
        build(f"hf:{folders[kind]}", (), {"lora.rank": 2, "lora.targets": names})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_settings_of_adapters_without_a_rank_are_refused_or_leave_no_trace():
    with pytest.raises(BadValue, match="model.lora.alpha goes with model.lora.rank"):
        tiny(**{"lora.alpha": 3.0})
    for off in (None, 0):
        settings = {"lora.rank": off, "lora.alpha": 16.0, "lora.targets": ["attention"]}
        model = tiny(**settings)
        assert model.architecture == tiny().architecture and not adapters_of(model)
    own, adapters = split({"pretrained": False, **LORA})
    assert joined(own, adapters) == {"pretrained": False, **LORA}


def test_adapters_are_float32_on_bfloat16_weights(folders):
    model = build(f"hf:{folders['llama']}", (), {"dtype": "bfloat16", **LORA})
    kinds = {n.rpartition(".lora_")[1]: p.dtype for n, p in model.named_parameters()}
    assert kinds == {"": torch.bfloat16, ".lora_": torch.float32}
    assert logits(model).dtype == torch.float32
    again = rebuild(model.architecture)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


def test_the_fast_decoder_reads_adapters(monkeypatch):
    from cl.models import _decoding

    model = moved(livelier(tiny(**LORA)))
    rollouts, names = [], _decoding.LLAMAS
    for known in (names, ()):
        monkeypatch.setattr(_decoding, "LLAMAS", known)
        ids, mask = block(model)
        rollouts.append(type(_decoding.decoder(model, ids, mask, 1, 2)).__name__)
        rollouts.append(sample(model, ids_of(model), n=4, max_new_tokens=12, rng=rng()))
    fast, ours, slow, theirs = rollouts
    assert (fast, slow) == ("LlamaDecoder", "Decoder")
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    torch.testing.assert_close(ours.logp, theirs.logp, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
def test_snapshots_checkpoints_and_fresh_models_have_the_adapters(kind, folders, tmp_path):
    name = kind if kind == "tiny" else f"hf:{folders[kind]}"
    model = moved(build(name, (), {"lora.rank": 2}))
    loop = loop_of([], model) if kind == "tiny" else None
    snapshot = checkpoint.as_snapshot(loop.snapshot() if loop else copy.deepcopy(model))
    tensors = {}
    packed = json.loads(json.dumps(checkpoint.pack({"old": snapshot}, tensors, "state")))
    restored = checkpoint.unpack(packed, tensors, torch.device("cpu"))["old"]
    assert torch.equal(logits(restored), logits(model))
    kept = checkpoint.save(tmp_path, "000000001-00", checkpoint.content(model, {"a": 1}))
    held, document, _ = checkpoint.load(kept, torch.device("cpu"))
    fresh = rebuild(document["model"]["architecture"])
    fresh.load_state_dict(held)
    assert torch.equal(logits(fresh), logits(model))
    if loop:
        made = loop.fresh_model("a.fresh", trained=False)
        assert len(adapters_of(made)) == len(adapters_of(model))
        assert not any(m.lora_B.default.weight.any() for m in adapters_of(made).values())


def test_tied_weights_are_stored_once(folders, tmp_path):
    model = build(f"hf:{folders['gpt2']}", (), {})
    kept = checkpoint.save(
        tmp_path, "000000001-00", checkpoint.content(model, {"old": loop_snapshot(model)})
    )
    size = sum(4 * p.numel() for p in model.parameters())
    assert (kept / "model.safetensors").stat().st_size < size + 8000
    assert (kept / "state.safetensors").stat().st_size < size + 8000
    held, document, tensors = checkpoint.load(kept, torch.device("cpu"))
    assert_same_weights(held, dict(model.state_dict()))
    state = checkpoint.unpack(document["state"], tensors, torch.device("cpu"))
    assert torch.equal(logits(state["old"]), logits(model))


def loop_snapshot(model):
    return checkpoint.as_snapshot(copy.deepcopy(model))


def test_peft_is_imported_only_when_adapters_are_asked_for():
    for path in [p for room in ("cl", "strategies") for p in (ROOT / room).rglob("*.py")]:
        tree = ast.parse(path.read_text())
        at_top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not any("peft" in ast.unparse(node) for node in at_top), path


# -- model.lora.* in runs -----------------------------------------------------------------------


def test_a_run_with_model_lora_trains_adapters_and_comes_back_whole(tmp_path):
    keys = {f"model.{name}": value for name, value in LORA.items()}
    done = cl.run("skills", "sft", out=str(tmp_path), **SMALL, **keys)
    recipe = yaml.safe_load((done.dir / "recipe.yaml").read_text())
    assert {key: recipe[key] for key in keys} == keys
    cost = done.results["cost"]
    assert cost["trained_parameters"] == 4 * 2 * 4 * (128 + 128)
    assert cost["total_parameters"] == 869_504 + cost["trained_parameters"]
    seed_globals(0)
    start = build("tiny", (), {"pretrained": False})
    for name, tensor in start.state_dict().items():
        path, _, leaf = name.rpartition(".")
        own = done.model.state_dict()
        now = own.get(name, own.get(f"{path}.base_layer.{leaf}"))
        assert torch.equal(now, tensor), name
    assert any(m.lora_B.default.weight.any() for m in adapters_of(done.model).values())
    loaded = cl.load(done.dir).model
    assert_same_weights(weights(loaded), weights(done.model))
    files = sorted((done.dir / "checkpoint").iterdir())[-1]
    assert (files / "state.safetensors").stat().st_size < 16 * cost["trained_parameters"] + 60_000
    onwards = cl.run(
        "skills", "sft", out=str(tmp_path / "on"), **{"model.from": str(done.dir), **SMALL}
    )
    assert len(adapters_of(onwards.model)) == 8
    frozen = "lm.model.layers.0.self_attn.q_proj.base_layer.weight"
    assert torch.equal(onwards.model.state_dict()[frozen], done.model.state_dict()[frozen])
    with pytest.raises(BadValue, match="model.lora.rank=2 can't be combined with model.from"):
        cl.run("skills", "sft", **{"model.from": str(done.dir), **SMALL, "model.lora.rank": 2})


def test_a_plain_runs_model_can_be_given_adapters(tmp_path):
    plain = cl.run("skills", "sft", out=str(tmp_path / "a"), **SMALL)
    settings = {**SMALL, "model.from": str(plain.dir), "model.lora.rank": 2}
    done = cl.run("skills", "sft", out=str(tmp_path / "b"), **settings)
    own = done.model.state_dict()
    for name, tensor in plain.model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        assert torch.equal(own.get(name, own.get(f"{path}.base_layer.{leaf}")), tensor), name
    assert len(adapters_of(done.model)) == 16
    assert_same_weights(weights(cl.load(done.dir).model), weights(done.model))


def test_the_optimizer_holds_adapters_alone_and_weight_decay_moves_nothing_else():
    model = tiny(**LORA)
    before = weights(model)
    held = Watch(
        after_update=lambda loop: {
            name
            for name, p in loop.model.named_parameters()
            if any(p is q for g in loop.optimizer.param_groups for q in g["params"])
            or p in loop.optimizer.state
        }
    )
    loop_of([held], model).run()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert held.seen["after_update"] and all(s == trained for s in held.seen["after_update"])
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == trained


# -- the strategy -------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [True, False])
def test_lora_trains_low_rank_changes_and_merges_them_at_an_experiences_end(merged):
    model = tiny()
    before = weights(model)
    kept = Watch(
        before_training_exp=lambda loop: weights(loop.model),
        after_training_exp=lambda loop: weights(loop.model),
    )
    loop_of([kept, LoRA(rank=3, targets=["q"], merge=merged), kept], model).run()
    ends = kept.seen["after_training_exp"]  # before and after lora's own hook, two experiences
    if not merged:
        first, second = ends[1], ends[3]
        assert "lm.model.layers.0.self_attn.q_proj.lora_A.default.weight" in first
        a = "lm.model.layers.0.self_attn.q_proj.lora_A.default.weight"
        assert not torch.equal(first[a], second[a])
        base = {n.replace(".base_layer", ""): t for n, t in second.items() if ".lora_" not in n}
        assert_same_weights(base, before)
        return
    for start, live, end in ((before, ends[0], ends[1]), (ends[1], ends[2], ends[3])):
        assert end.keys() == before.keys()
        for name in before:
            change = (end[name] - start[name]).double().numpy()
            if not name.endswith("q_proj.weight"):
                assert not change.any(), name
                continue
            path = name.removesuffix(".weight")
            a, b = (live[f"{path}.lora_{x}.default.weight"].double().numpy() for x in "AB")
            np.testing.assert_allclose(change, 16 / 3 * b @ a, atol=1e-6)
            assert np.linalg.matrix_rank(change, tol=1e-5 * np.linalg.norm(change)) == 3
    assert all(p.requires_grad for p in model.parameters())


def test_each_experience_begins_with_new_adapters_at_the_weights_before_it():
    watch = Watch(
        before_training_exp=lambda loop: (logits(loop.model), weights(loop.model)),
        after_training_exp=lambda loop: logits(loop.model),
    )
    loop = loop_of([LoRA(rank=2), watch])
    start = logits(loop.model)
    loop.run()
    (first, one), (second, two) = watch.seen["before_training_exp"]
    assert torch.equal(first, start)
    assert torch.equal(second, watch.seen["after_training_exp"][0])
    a = "lm.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.equal(one[a], two[a])
    assert not any(t.any() for n, t in two.items() if ".lora_B." in n)


def test_the_optimizer_follows_adapters_in_and_out():
    def held(loop):
        names = {id(p): n for n, p in loop.model.named_parameters()}
        groups = loop.optimizer.param_groups
        return {names.get(id(p), "gone") for g in groups for p in g["params"]}

    watch = Watch(before_update=held, after_training_exp=held)
    loop = loop_of([LoRA(rank=2), watch])
    loop.run()
    assert all(n.split(".")[-3][:5] == "lora_" for s in watch.seen["before_update"] for n in s)
    everything = {n for n, _ in loop.model.named_parameters()}
    assert watch.seen["after_training_exp"] == [everything] * 2
    assert not loop.optimizer.state


def test_rank_0_is_the_base_bit_for_bit():
    ends = []
    for strategies in ([], [LoRA(rank=0)]):
        loop = loop_of(strategies)
        loop.run()
        ends.append(weights(loop.model))
    assert_same_weights(*ends)


@pytest.mark.parametrize("strategy", ["lora+sft", "sft+lora merge=false"])
def test_a_run_with_lora_repeats_and_resumes_exactly(strategy, tmp_path):
    names, _, keeps = strategy.partition(" ")
    settings = SMALL | ({"strategy.lora.merge": False} if keeps else {})
    first = cl.run("skills", names, out=str(tmp_path / "a"), **settings)
    again = cl.run("skills", names, out=str(tmp_path / "b"), **settings)
    assert comparable(first.results) == comparable(again.results)
    assert_same_weights(weights(first.model), weights(again.model))
    assert bool(adapters_of(first.model)) == bool(keeps)
    assert first.results["cost"]["trained_parameters"] == 16 * 8 * 256
    shutil.rmtree(sorted((first.dir / "checkpoint").iterdir())[-1])
    path = first.dir / "results.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    resumed = resume(first.dir)
    assert comparable(resumed.results) == comparable(again.results)
    assert_same_weights(weights(resumed.model), weights(again.model))
    assert_same_weights(weights(cl.load(resumed.dir).model), weights(again.model))


def test_g35_a_snapshot_of_the_previous_model_survives_the_merge():
    snapshots = Watch(before_training_exp=lambda loop: (loop.snapshot(), logits(loop.model)))
    loop_of([LoRA(rank=2), snapshots]).run()
    for snapshot, before in snapshots.seen["before_training_exp"]:
        assert torch.equal(logits(snapshot), before)


def test_g37_adapters_switched_off_are_the_base_only_until_something_was_merged():
    def without(loop):
        layers = adapters_of(loop.model).values()
        for layer in layers:
            layer.enable_adapters(False)
        found = logits(loop.model)
        for layer in layers:
            layer.enable_adapters(True)
        for layer in layers:
            layer.set_adapter("default")
        return found

    watch = Watch(
        before_training_exp=lambda loop: (loop.snapshot(), without(loop)),
        after_update=without,
    )
    model = tiny()
    base = logits(model)
    loop_of([LoRA(rank=2), watch], model).run()
    (first, _), (previous, _) = watch.seen["before_training_exp"]
    off = watch.seen["after_update"]
    half = len(off) // 2
    assert all(torch.equal(found, base) for found in off[:half])
    assert torch.equal(logits(first), base)  # what a reference of ours is
    assert not any(torch.equal(found, base) for found in off[half:])
    assert all(torch.equal(found, logits(previous)) for found in off[half:])


@pytest.mark.parametrize(
    ("stream", "strategy", "settings", "said"),
    [
        ("skills", "lora", {"model.lora.rank": 2}, "leave one of them out"),
        ("skills", "lora", {"strategy.targets": "atention"}, "did you mean 'attention'"),
        ("skills", "sft", {"model.lora.targets": "norm", "model.lora.rank": 2}, "no linear layer"),
        ("skills", "sft", {"model.lora.rank": -1}, "model.lora.rank must be int ≥ 0"),
        ("skills", "sft", {"model.lora.alpha": 0}, "model.lora.alpha must be float > 0"),
        ("skills", "sft", {"model.lora.rnk": 2}, "did you mean 'lora.rank'"),
        ("split_digits", "lora", {}, "made for streams of the domain llm"),
        ("skills", "lora+ewc", {}, "give model.lora.rank=8 with ewc in place of lora"),
        ("skills", "hft+lora+sft", {}, "hft keeps weights by name"),
        ("split_digits", "naive", {"model": "small_cnn", "model.lora.rank": 2}, "lora.rank"),
    ],
)
def test_what_cant_work_is_refused_in_one_line(stream, strategy, settings, said, tmp_path):
    own = {"model.pretrained": False} if stream == "skills" else {}
    with pytest.raises(cl.ClError) as caught:
        cl.run(stream, strategy, out=str(tmp_path), **own, **settings)
    assert caught.value.exit_code == 2
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
