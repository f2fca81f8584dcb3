"""On an accelerator: the same science, data and buffers on the device."""

import pytest
import torch
from conftest import assert_same_weights

import cl

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
