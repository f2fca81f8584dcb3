"""On an accelerator: the same science, data and buffers on the device."""

import pytest
import torch
from conftest import assert_same_weights
from test_hf_runs import few_steps

import cl
from cl.registry import entries

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


ON_BOTH = (
    *(
        "naive",
        "joint",
        "replay",
        "raw_ncm",
        "fetril",
        "deesil",
        "derpp",
        "ewc",
        "lwf",
        "gem",
        "icarl",
    ),
    *("slda", "ranpac", "fecam", "continual_backprop", "replay+fpf", "k_fpf"),
)


@pytest.mark.parametrize("strategy", ON_BOTH)
def test_a_run_on_cuda_scores_like_one_on_the_cpu(strategy, tmp_path):
    runs = [
        cl.run("split_digits", strategy, device=device, out=str(tmp_path / device))
        for device in ("cpu", "cuda")
    ]
    on_cpu, on_cuda = (run.metrics["average_accuracy"] for run in runs)
    assert on_cuda == pytest.approx(on_cpu, abs=0.08)
    assert runs[1].results["device"] == torch.cuda.get_device_name()


def test_measuring_changes_nothing_on_cuda(tmp_path):
    settings = {"device": "cuda", "train.epochs": 2, "train.augment": ["crop"]}
    quiet = cl.run("split_digits", "replay", out=str(tmp_path / "a"), **settings)
    loud = cl.run("split_digits", "replay", out=str(tmp_path / "b"), **settings, eval={"every": 1})
    assert_same_weights(quiet.model.state_dict(), loud.model.state_dict())


def test_bf16_learns_on_cuda(tmp_path):
    result = cl.run(
        "split_digits", "joint", device="cuda", out=str(tmp_path), **{"train.precision": "bf16"}
    )
    assert result.metrics["average_accuracy"] > 0.9


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("method", ["sft", "rft"])
def test_half_a_billion_parameters_train_a_few_steps_in_bf16_on_cuda(method, adapters, tmp_path):
    """Qwen2-0.5B's sizes, weights at random; run with -s to see tokens/s and peak memory."""
    if method not in entries("strategies"):
        pytest.skip(f"no strategy {method} here")
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=256,
    )
    own = {"model.lora.rank": 8, "model.dtype": "bfloat16"} if adapters else {}
    torch.cuda.reset_peak_memory_stats()
    done = few_steps(method, tmp_path / "model", tmp_path, config=config, device="cuda", **own)
    cost = done.results["cost"]
    assert 480e6 < cost["total_parameters"] < 510e6
    assert cost["peak_memory_bytes"] < (4 if adapters else 16) * 2**30
