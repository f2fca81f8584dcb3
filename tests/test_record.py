"""The run folder: recipe, results, curves, checkpoint, TensorBoard, resume."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import DropoutNet, assert_same_weights, tiny_stream
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cl
from cl.checkpoint import found, pack, unpack
from cl.errors import BadValue, ContractError, DataError, NonFinite, RunError
from cl.folder import comparable
from cl.runner import resume
from cl.strategy import Strategy
from strategies.naive import Naive

QUICK = {"stream.n_experiences": 3, "train.epochs": 1}
KEYS = [
    "schema",
    "status",
    "request",
    "sources",
    "stream",
    "stream_hash",
    "strategy",
    "needs",
    "domain",
    "seed",
    "score",
    "gives",
    "jointly_solvable",
    "experiences",
    "evals",
    "b",
    "R",
    "V",
    "R_within",
    "raw",
    "prequential",
    "metrics",
    "undefined",
    "cost",
    "selection",
    "expected",
    "probes",
    "reported",
    "versions",
    "device",
    "threads",
]
METRICS = [
    "average_accuracy",
    "seen_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "forgetting_null_bias",
    "fwt_gem",
    "fwt_cw",
    "zero_shot",
    "plasticity",
    "stability",
    "past_accuracy",
    "min_acc",
    "wc_acc",
    "eval_every",
    "anytime_accuracy",
    "prequential_accuracy",
    "prequential_area",
    "held_out",
    "held_out_before",
]
COST = [
    "train_seconds",
    "eval_seconds",
    "experience_seconds",
    "updates",
    "extra_updates",
    "samples_seen",
    "tokens_seen",
    "env_steps",
    "peak_memory_bytes",
    "trained_parameters",
    "total_parameters",
    "stored_bytes",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return cl.run(
        "split_digits",
        "replay",
        out=str(out),
        **QUICK,
        probes=["weight_norm"],
        eval={"every": 5},
        strategy={"size": 50},
    )


def test_the_folder_is_named_by_stream_strategy_changes_and_seed(finished):
    parts = finished.dir.parts[-3:]
    assert parts[0] == "split_digits" and parts[2] == "seed0"
    assert parts[1] == "replay,stream.n_experiences=3,size=50,train.epochs=1,eval.every=5"
    files = {p.name for p in finished.dir.iterdir() if not p.name.startswith((".", "events"))}
    assert files == {"recipe.yaml", "results.json", "curves.jsonl", "checkpoint", "log.txt"}


def test_results_hold_schema_1(finished):
    results = json.loads((finished.dir / "results.json").read_text())
    assert list(results) == KEYS
    assert list(results["metrics"]) == METRICS and list(results["cost"]) == COST
    assert results["schema"] == 1 and results["status"] == "finished"
    assert results["experiences"][0]["classes"] == ["0", "1", "2", "3"]
    assert results["evals"][2]["learned_at"] == [2]
    assert [e["chance"] for e in results["evals"]] == [1 / 4, 1 / 7, 1 / 10]
    batches = [-(-e["n_train"] // 32) for e in results["experiences"]]
    assert results["cost"]["updates"] == sum(batches)


def test_every_null_has_a_reason(finished):
    results, undefined = finished.results, finished.results["undefined"]

    def covered(name, i, j):
        for path in undefined:
            row, _, span = path.rpartition("[")
            if row == (name if i is None else f"{name}[{i}]"):
                low, _, high = span.rstrip("]").partition(":")
                if int(low) <= j < int(high or int(low) + 1):
                    return True
        return False

    for name in ("R", "V", "R_within"):
        for i, row in enumerate(results[name]):
            assert all(v is not None or covered(name, i, j) for j, v in enumerate(row))
    assert all(v is not None or covered("b", None, j) for j, v in enumerate(results["b"]))
    for name, value in results["metrics"].items():
        assert value is not None or undefined[f"metrics.{name}"]
        for i, entry in enumerate(value if isinstance(value, list) else []):
            assert entry is not None or undefined[f"metrics.{name}[{i}]"]


def test_metrics_can_be_recomputed_from_the_raw_matrices(finished):
    R, results = finished.R, finished.results
    assert results["metrics"]["average_accuracy"] == pytest.approx(np.mean(R[-1]))
    assert results["metrics"]["plasticity"] == pytest.approx(list(np.diag(R)))
    n = [e["n"] for e in results["evals"]]
    assert results["metrics"]["seen_accuracy"][-1] == pytest.approx(np.average(R[-1], weights=n))


def test_scores_equal_an_independent_evaluation_of_the_saved_model(finished):
    stream = cl.registry.find("streams", "split_digits").load()(n_experiences=3)
    model = cl.load(finished.dir).model
    for j, e in enumerate(stream.evals):
        with torch.no_grad():
            logits = model(e.test.column("x"))
        y = e.test.column("y")
        assert finished.results["R"][-1][j] == (logits.argmax(1) == y).double().mean().item()
        own = torch.full_like(logits, -torch.inf)
        own[:, list(e.classes)] = logits[:, list(e.classes)]
        within = (own.argmax(1) == y).double().mean().item()
        assert finished.results["R_within"][-1][j] == within
        with torch.no_grad():
            right = model(e.val.column("x")).argmax(1) == e.val.column("y")
        assert finished.results["V"][-1][j] == right.double().mean().item()


def test_curves_hold_one_line_per_evaluation_and_the_ends_of_experiences(finished):
    lines = [json.loads(line) for line in (finished.dir / "curves.jsonl").open()]
    assert [line["kind"] for line in lines].count("experience") == 3
    assert lines[0]["kind"] == "untrained" and lines[0]["updates"] == 0
    ends = [line["test"] for line in lines if line["kind"] == "experience"]
    assert ends == finished.results["R"]
    assert all(line["updates"] % 5 == 0 for line in lines if line["kind"] == "periodic")
    lows = []
    for j, learned in ((0, 0), (1, 1)):
        later = [line for line in lines[1:] if line["experience"] > learned]
        lows.append(min(line["test"][j] for line in later))
    metrics = finished.results["metrics"]
    assert metrics["min_acc"] == pytest.approx(np.mean(lows))
    assert metrics["wc_acc"] == pytest.approx(np.mean([*lows, finished.R[2, 2]]))


def test_the_recipe_repeats_the_run_exactly(finished, tmp_path):
    recipe = finished.dir / "recipe.yaml"
    assert yaml.safe_load(recipe.read_text())["strategy.size"] == 50
    request = cl.runner.Request.from_recipe(recipe, {"out": str(tmp_path)})
    again = cl.runner.execute(request, progress=False)
    assert comparable(again.results) == comparable(finished.results)
    assert_same_weights(again.model.state_dict(), finished.model.state_dict())
    assert (again.dir / "curves.jsonl").read_text() == (finished.dir / "curves.jsonl").read_text()
    assert (again.dir / "recipe.yaml").read_text() == recipe.read_text()


def events(folder):
    reader = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    reader.Reload()
    return reader


def test_tensorboard_holds_the_tags_of_the_design(finished):
    reader = events(finished.dir)
    tags = set(reader.Tags()["scalars"])
    for tag in (
        "plasticity",
        "stability",
        "average_accuracy",
        "seen_accuracy",
        "forgetting",
        "train/running_loss",
        "cost/updates",
        "probe/weight_norm/all",
    ):
        assert tag in tags
    names = [e["name"] for e in finished.results["evals"]]
    assert {f"acc/{name}" for name in names} <= tags
    assert set(reader.Tags()["images"]) == {"R", "stability_plasticity"}
    seen = reader.Scalars("seen_accuracy")
    assert [p.value for p in seen] == pytest.approx(finished.metrics["seen_accuracy"])
    assert seen[-1].step == finished.results["cost"]["updates"]
    by_experience = reader.Scalars("by_experience/seen_accuracy")
    assert [p.step for p in by_experience] == [0, 1, 2]
    accuracy = reader.Scalars(f"acc/{names[0]}")
    assert len(accuracy) == sum(1 for _ in (finished.dir / "curves.jsonl").open())


def test_tensorboard_shows_hparams_with_final_metrics(finished):
    content = events(finished.dir).summary_metadata
    assert "_hparams_/session_start_info" in content
    final = events(finished.dir).Scalars("final/average_accuracy")
    assert final[0].value == pytest.approx(finished.metrics["average_accuracy"])


def test_a_repeated_run_moves_its_predecessor_to_old(tmp_path):
    for _ in range(3):
        result = cl.run("split_digits", "raw_ncm", out=str(tmp_path), **QUICK)
    old = list((tmp_path / ".old").rglob("results.json"))
    assert len(old) == 2 and (result.dir / "results.json").is_file()


def rewind(folder: Path, to: Path) -> Path:
    """A copy of a finished run as it was before its last experience."""
    shutil.copytree(folder, to)
    shutil.rmtree(found(to / "checkpoint")[-1])
    results = to / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    return to


@pytest.mark.parametrize("strategy", ["replay", "fetril", "examples/my_strategy.py:L2Anchor"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    settings = {**QUICK, "model": "small_cnn", "train.optimizer": "adam", "eval.every": 5}
    whole = cl.run("split_digits", strategy, out=str(tmp_path), **settings)
    part = rewind(whole.dir, tmp_path / "part")
    again = resume(part)
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())
    assert (part / "curves.jsonl").read_text() == (whole.dir / "curves.jsonl").read_text()


def test_resume_of_a_finished_run_just_loads_it(finished):
    before = (finished.dir / "results.json").stat().st_mtime_ns
    assert resume(finished.dir).results["status"] == "finished"
    assert (finished.dir / "results.json").stat().st_mtime_ns == before


def test_resume_without_a_checkpoint_starts_over(finished, tmp_path):
    part = rewind(finished.dir, tmp_path / "part")
    shutil.rmtree(part / "checkpoint")
    assert comparable(resume(part).results) == comparable(finished.results)


def test_a_damaged_checkpoint_is_refused_with_its_file(finished, tmp_path):
    part = rewind(finished.dir, tmp_path / "part")
    file = found(part / "checkpoint")[-1] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="model.safetensors does not match its checksum"):
        resume(part)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', ""])
def test_damaged_results_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match="damaged|schema"):
        cl.load(tmp_path)
    with pytest.raises(DataError, match="no run folder"):
        cl.load(tmp_path / "nowhere")


def test_a_failed_run_keeps_what_was_learned(tmp_path):
    class Explode(Strategy):
        def before_backward(self, loop):
            if loop.experience.index == 2:
                loop.add_loss("boom", loop.mb_output.sum() * math.inf)

    with pytest.raises(NonFinite, match="experience 2"):
        cl.run("split_digits", Explode(), out=str(tmp_path), **QUICK)
    folder = next(tmp_path.rglob("results.json")).parent
    results = cl.load(folder).results
    assert results["status"] == "failed" and len(results["R"]) == 2
    assert found(folder / "checkpoint") and "became" in (folder / "log.txt").read_text()


def test_an_error_of_a_plug_in_is_one_line_with_its_kind(tmp_path):
    class Broken(Strategy):
        def before_update(self, loop):
            raise KeyError("oops")

    with pytest.raises(RunError, match="KeyError: 'oops' in .*before_update, .*test_record.py"):
        cl.run("split_digits", Broken(), out=str(tmp_path), **QUICK)


def test_state_survives_a_checkpoint_bit_for_bit():
    state = {
        "none": None,
        "flag": True,
        "n": 3,
        "x": 0.1,
        "bad": float("nan"),
        "text": "ü",
        "tensor": torch.randn(3, 2),
        "empty": torch.empty(0, 4),
        "array": np.arange(5.0),
        "set": {1, 2},
        "tuple": (1, (2.5, "a")),
        4: [None, {"deep": torch.ones(1)}],
        "generator": torch.Generator().manual_seed(3),
    }
    tensors = {}
    packed = json.loads(json.dumps(pack(state, tensors, "s")))
    back = unpack(packed, tensors, torch.device("cpu"))
    assert list(back) == list(state)
    assert math.isnan(back["bad"]) and back["set"] == {1, 2} and back["tuple"] == (1, (2.5, "a"))
    assert torch.equal(back["tensor"], state["tensor"]) and back["empty"].shape == (0, 4)
    assert np.array_equal(back["array"], state["array"])
    expected = torch.rand(3, generator=state["generator"])
    assert torch.equal(torch.rand(3, generator=back["generator"]), expected)


def test_state_that_can_not_be_saved_is_refused_at_start(tmp_path):
    class Holds(Strategy):
        def __init__(self):
            self.file = object()

    with pytest.raises(ContractError, match="Holds.file holds a object"):
        cl.run("split_digits", Holds(), out=str(tmp_path), **QUICK)
    assert not list(tmp_path.iterdir())


def test_python_objects_run_and_their_recipe_says_so(tmp_path):
    model = DropoutNet()
    state = torch.get_rng_state()
    result = cl.run(tiny_stream(), Naive(), model=model, out=str(tmp_path), train={"epochs": 2})
    assert result.R.shape == (2, 2)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random state is left alone
    with pytest.raises(DataError, match="Python objects"):
        cl.runner.Request.from_recipe(result.dir / "recipe.yaml", {})


def test_needs_that_the_stream_does_not_give_are_refused(tmp_path):
    class Tasks(Strategy):
        needs = ("task_id_test",)

    with pytest.raises(BadValue, match="needs task_id_test .* does not give; it gives boundaries"):
        cl.run("split_digits", Tasks(), out=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_stream_val_0_gives_no_validation_scores(tmp_path):
    result = cl.run("split_digits", "raw_ncm", out=str(tmp_path), **{**QUICK, "stream.val": 0})
    assert result.results["V"] is None and "stream.val=0" in result.results["undefined"]["V"]


def test_eval_past_own_leaves_past_cells_null_with_the_reason(tmp_path):
    result = cl.run("split_digits", "naive", out=str(tmp_path), **QUICK, eval={"past": "own"})
    assert np.isnan(result.R[2, :2]).all() and not np.isnan(np.diag(result.R)).any()
    assert result.results["undefined"]["R[2][0:2]"] == "not scored: eval.past=own"


def test_the_feature_cache_gives_the_same_scores_as_none(tmp_path):
    class Watching(Strategy):
        def before_eval_forward(self, loop):  # a per-batch hook switches the cache off
            pass

    cached = cl.run("split_digits", "fetril", out=str(tmp_path / "a"), **QUICK)
    from strategies.fetril import FeTrIL

    plain = cl.run("split_digits", [FeTrIL(), Watching()], out=str(tmp_path / "b"), **QUICK)
    assert cached.results["R"] == plain.results["R"]
    assert cached.results["R_within"] == plain.results["R_within"]


@pytest.mark.parametrize("model", ["mlp", "small_cnn", "resnet20"])
def test_every_model_trains_on_digits(model, tmp_path):
    result = cl.run("split_digits", "joint", model=model, out=str(tmp_path), **{"train.epochs": 8})
    assert result.metrics["average_accuracy"] > 0.9
