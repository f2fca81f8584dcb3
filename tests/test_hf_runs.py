"""Models of Hugging Face in runs: learning, adapters, precision, checkpoints, memory."""

import gc
import json
import math
import shutil
import time

import pytest
import torch
from conftest import assert_same_weights, weights
from test_language import byte_tokenizer, config_of, saved

import cl
from cl.folder import comparable
from cl.machine import peak_memory
from cl.models import build
from cl.models.lora import adapters_of
from cl.registry import entries, find
from cl.runner import resume
from cl.seeding import seed_globals

VERIFIER = """
def verify(prompts, completions, answer):
    pairs = zip(completions, answer)
    return [1.0 if text == gold else 0.5 * (len(text) % 2) for text, gold in pairs]
"""


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Most of a small run's time is drawing its last figures."""
    monkeypatch.setattr("cl.board.Board._final", lambda *args: None)


def tasks(folder, n_tasks=2, n=8, words=("ab", "cde")):
    """A folder of tasks: a word, or something like it, backwards."""
    for k in range(n_tasks):
        (folder / f"t{k}").mkdir(parents=True)
        rows = [
            {"prompt": f"{k} {word}{j}=", "answer": f"{word}{j}"[::-1]}
            for j in range(n // 2)
            for word in words
        ]
        (folder / f"t{k}" / "train.json").write_text(json.dumps(rows))
        (folder / f"t{k}" / "test.json").write_text(json.dumps(rows[:2]))
    (folder / "verifier.py").write_text(VERIFIER)
    return folder


def settings(data, model, out, **more):
    return {
        "stream": {"path": str(data), "max_new_tokens": 6, "val": 0.0},
        "model": f"hf:{model}",
        "out": str(out),
        "train.updates": 2,
        "train.batch_size": 4,
        **more,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: saved(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "qwen2", "gpt2")}


# bf16: the weights in float32, products in bfloat16; bfloat16: the weights themselves
CASES = [
    ("llama", "float32", "float32", None),
    ("llama", "bf16", "float32", 2),
    ("llama", "float32", "bfloat16", None),
    ("llama", "float32", "bfloat16", 2),
    ("qwen2", "bf16", "float32", None),
    ("qwen2", "float32", "float32", 2),
    ("qwen2", "bf16", "bfloat16", 2),
    ("gpt2", "float32", "float32", None),
    ("gpt2", "bf16", "float32", 2),
]


@pytest.mark.parametrize(("kind", "precision", "dtype", "rank"), CASES)
def test_a_saved_checkpoint_learns_in_every_precision_with_and_without_adapters(
    kind, precision, dtype, rank, data, folders, tmp_path
):
    own = {"train.precision": precision, "model.dtype": dtype, "train.lr": 0.01}
    own |= {"model.lora.rank": rank} if rank else {}
    done = cl.run("jsonl", "sft", **settings(data, folders[kind], tmp_path, **own))
    assert done.results["status"] == "finished" and done.R.shape == (2, 2)
    start = build(f"hf:{folders[kind]}", (), {"dtype": dtype}).state_dict()
    model = done.model
    total = sum(p.numel() for p in model.parameters())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert done.results["cost"]["trained_parameters"] == sum(p.numel() for p in trained.values())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if rank:
        assert set(trained) == {n for n, _ in model.named_parameters() if ".lora_" in n}
        now = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items()}
        assert_same_weights({n: now[n] for n in start}, start)
        assert {p.dtype for p in trained.values()} == {torch.float32}
        assert all(m.lora_B.default.weight.any() for m in adapters_of(model).values())
    else:
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
        assert not any(torch.equal(model.state_dict()[n], start[n]) for n in start)
    assert_same_weights(weights(cl.load(done.dir).model), weights(model))
    # checkpoints: every weight once, and two moments of what is trained
    width = 2 if dtype == "bfloat16" else 4
    n_trained = sum(p.numel() for p in trained.values())
    last = sorted((done.dir / "checkpoint").iterdir())[-1]
    size = (last / "model.safetensors").stat().st_size
    assert size < width * total + (4 - width) * n_trained * bool(rank) + 16_000
    moments = (last / "state.safetensors").stat().st_size
    assert moments < (8 if rank else 2 * width) * n_trained + 40_000


def test_a_run_of_an_hf_model_resumes_exactly_and_another_begins_where_it_ended(
    data, folders, tmp_path
):
    own = {"model.lora.rank": 2, "train.precision": "bf16", "train.reset_optimizer": False}
    made = [
        cl.run("jsonl", "sft", **settings(data, folders["qwen2"], tmp_path / part, **own))
        for part in "ab"
    ]
    first, again = made
    shutil.rmtree(sorted((first.dir / "checkpoint").iterdir())[-1])
    path = first.dir / "results.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    resumed = resume(first.dir)
    assert comparable(resumed.results) == comparable(again.results)
    assert_same_weights(weights(resumed.model), weights(again.model))
    keys = settings(data, folders["qwen2"], tmp_path / "c") | {"model.from": str(again.dir)}
    onwards = cl.run("jsonl", "sft", **{k: v for k, v in keys.items() if k != "model"})
    ended, now = weights(again.model), weights(onwards.model)
    assert ended.keys() == now.keys()
    moved = {n for n in ended if not torch.equal(ended[n], now[n])}
    assert moved and all(".lora_" in n for n in moved)


def test_updates_at_a_small_rate_are_lost_in_bfloat16_weights_and_not_under_autocast(
    data, folders, tmp_path
):
    """What README says: full fine-tuning keeps weights in float32 and multiplies in bfloat16."""
    share = {}
    for precision, dtype in (("bf16", "float32"), ("float32", "bfloat16")):
        own = {"train.precision": precision, "model.dtype": dtype, "train.lr": 1e-6}
        keys = settings(data, folders["llama"], tmp_path / dtype, **own)
        model = cl.run("jsonl", "sft", **keys).model
        start = build(f"hf:{folders['llama']}", (), {"dtype": dtype}).state_dict()
        parts = [n for n in start if "_proj" in n]
        moved = sum(int((model.state_dict()[n] != start[n]).sum()) for n in parts)
        share[dtype] = moved / sum(start[n].numel() for n in parts)
    assert share["float32"] > 0.95
    assert share["bfloat16"] < 0.02


# -- memory -------------------------------------------------------------------------------------


class Held(cl.Strategy):
    """Bytes of all live tensors at the end of every experience."""

    def __init__(self):
        self.bytes = []

    def after_training_exp(self, loop):
        if loop.experience.index in (1, 5):
            loop.observer.keeper.finish()  # a checkpoint is held until it has been written
            gc.collect()
            found = {}
            for o in gc.get_objects():
                if issubclass(type(o), torch.Tensor):
                    storage = o.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
            self.bytes.append(sum(found.values()))


@pytest.fixture
def young():
    """What was there before is left out of what is looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("strategy", ["sft", "lora+sft", "rft"])
def test_an_llm_run_does_not_grow_over_experiences(strategy, folders, tmp_path, young):
    if strategy not in ("lora+sft", *entries("strategies")):
        pytest.skip(f"no strategy {strategy} here")
    data = tasks(tmp_path / "six", n_tasks=6)
    made = {name: find("strategies", name).load() for name in strategy.split("+")}
    options = {"lora": {"rank": 2}, "rft": {"min_pass": 0.0, "group": 4}}
    held = Held()
    plugins = [*(kind(**options.get(name, {})) for name, kind in made.items()), held]
    cl.run("jsonl", plugins, **settings(data, folders["llama"], tmp_path / "runs"))
    second, last = held.bytes
    assert last < 1.01 * second + 4096, held.bytes


# -- a larger one, in bfloat16: here in the small, on an accelerator by tests/test_gpu.py --------


class Meter(cl.Strategy):
    """Tokens per second of training from the first update's end on."""

    def __init__(self):
        self.tokens, self.begun, self.ended, self.updates = 0, 0.0, 0.0, 0

    def after_backward(self, loop):
        if self.begun:
            self.tokens += int((loop.mb_x != -1).sum())

    def after_update(self, loop):
        if loop.device.type == "cuda":
            torch.cuda.synchronize(loop.device)
        self.ended = time.perf_counter()
        self.begun = self.begun or self.ended
        self.updates += 1

    def rate(self):
        return self.tokens / (self.ended - self.begun)


def few_steps(method, folder, tmp_path, *, config, device, **more):
    """A few bf16 updates of a random model by `method`; prints tokens/s and peak memory."""
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    data = tasks(tmp_path / "tasks", n_tasks=1, n=16, words=("ab", "cdefgh"))
    keys = settings(data, folder, tmp_path / "runs", **{"train.updates": 4, "train.epochs": 8})
    keys |= {"device": device, "train.precision": "bf16", "model.pretrained": False}
    keys["stream"] |= {"verifier": f"{data / 'verifier.py'}:verify"}
    keys |= {"train.batch_size": 8, "train.lr": 1e-5, **more}
    meter = Meter()
    options = {"min_pass": 0.0, "group": 4} if method == "rft" else {}
    strategy = find("strategies", method).load()(**options)
    done = cl.run("jsonl", [strategy, meter], **keys)
    peak = done.results["cost"]["peak_memory_bytes"]
    print(
        f"\n{method}, {done.results['cost']['total_parameters'] / 1e6:,.1f} M parameters on "
        f"{done.results['device']}: {meter.rate():,.0f} tokens/s, peak {peak / 2**30:.2f} GiB"
    )
    assert meter.updates == 4 and meter.rate() > 0 and math.isfinite(meter.rate())
    assert peak <= peak_memory(torch.device(device))
    layers = adapters_of(done.model)
    if layers:
        assert all(torch.isfinite(m.lora_B.default.weight).all() for m in layers.values())
        assert all(m.lora_B.default.weight.any() for m in layers.values())
        return done
    seed_globals(0)
    start = build(f"hf:{folder}", (), {"pretrained": False}).state_dict()
    state = {n: t.cpu() for n, t in done.model.state_dict().items()}
    assert all(torch.isfinite(t).all() for t in state.values())
    assert not [n for n in start if "_proj.weight" in n and torch.equal(state[n], start[n])]
    return done


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("method", ["sft", "rft"])
def test_a_random_model_trains_a_few_steps_in_bf16(method, adapters, tmp_path):
    if method not in entries("strategies"):
        pytest.skip(f"no strategy {method} here")
    config = config_of("qwen2", tie_word_embeddings=True)
    own = {"model.lora.rank": 2, "model.dtype": "bfloat16"} if adapters else {}
    done = few_steps(method, tmp_path / "model", tmp_path, config=config, device="cpu", **own)
    assert done.R.shape == (1, 1)
    assert len(adapters_of(done.model)) == 8 * adapters
