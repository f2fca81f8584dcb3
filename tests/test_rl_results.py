"""What a run in environments records: published metrics, references, probes, pictures, verdicts."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import trim_mean
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cl
from cl import metrics, references, rl_results
from cl.board import matrix_figure, plane_figure
from cl.claims import Bar, load
from cl.errors import BadValue, ContractError
from cl.folder import comparable
from cl.models import build
from cl.models.policy import Actions
from cl.probes.dormant_units import dormant_units
from cl.probes.learning_speed import constant
from cl.runner import resume
from cl.verdict import judge

SMALL = {  # one rollout per experience, 16 updates
    "stream": {"steps": 256, "n_test": 3, "n_val": 2},
    "objective": {"n_steps": 32, "passes": 4},
    "train": {"batch_size": 64},
    "eval": {"every": 8},
}
SHOWN = {
    "stream": {"steps": 64, "n_test": 3, "n_val": 2},
    "objective": {"demonstrations": 256},
    "train": {"epochs": 4},
    "eval": {"every": 4},
}
NAN = float("nan")


def settings(base, **changes):
    return {k: {**base.get(k, {}), **changes.get(k, {})} for k in {**base, **changes}}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(out):
    """A run of PPO without references."""
    return cl.run("cartpole_actions", "naive", seed=100, out=out / "plain", **SMALL)


@pytest.fixture(scope="module")
def referred(out):
    """The same with them."""
    keys = settings(SMALL, eval={"references": True})
    return cl.run("cartpole_actions", "naive", seed=100, out=out, **keys)


@pytest.fixture(scope="module")
def cloned(out):
    """Imitation, which makes no environment step."""
    keys = settings(SHOWN, eval={"references": True})
    return cl.run("cartpole_actions", "sft", seed=100, out=out, **keys)


def lines(folder):
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


# -- metrics ------------------------------------------------------------------------------------


def test_continual_worlds_numbers_are_those_of_the_recorded_curves(plain):
    curves = [line for line in lines(plain.dir) if line["kind"] != "untrained"]
    first, last = ([line["test"] for line in curves if line["experience"] == i] for i in (0, 1))
    assert len(first) == len(last) == 2  # every 8 of 16 updates, the last one at the end
    final = np.mean(last[-5:], 0)
    m = plain.metrics
    assert m["cw_average_performance"] == pytest.approx(final.mean())
    assert m["cw_forgetting"] == pytest.approx((np.mean(first[-5:], 0)[0] - final[0] + 0) / 2)
    assert m["cora_zero_shot_transfer"] is not None and m["coom_average_performance"] is not None


def test_forward_transfer_compares_areas_with_the_tasks_trained_alone(referred):
    curves = [line for line in lines(referred.dir) if line["kind"] != "untrained"]
    found = []
    for w, entry in enumerate(referred.results["single_task"]):
        own = [line for line in curves if line["experience"] == w]
        folder = referred.dir.parents[2] / ".references" / entry["run"]
        alone = [line for line in lines(folder) if line["kind"] != "untrained"]
        assert [line["env_steps"] for line in alone] == [256, 256]
        a, b = area([line["test"][w] for line in own]), area([line["test"][0] for line in alone])
        assert entry["area"] == pytest.approx(b)
        assert entry["final"] == pytest.approx(np.mean([line["test"][0] for line in alone]))
        found.append((a - b) / (1 - b))
    assert referred.metrics["cw_forward_transfer"] == pytest.approx(np.mean(found))
    assert referred.metrics["fwt_cw"] == referred.metrics["cw_forward_transfer"]
    assert found[0] == 0, "the first task of fine-tuning is a reference itself"
    assert [e["task"] for e in referred.results["single_task"]] == ["normal", "exchanged"]


def area(scores):
    """One rollout in a window: the first evaluation stands for all of its steps."""
    return min(1.0, max(0.0, scores[0]))


def test_a_window_runs_from_the_end_of_the_last_experience_to_its_own():
    at, b = [(0,), (1,), ()], [0.0, 0.1, 0.9]
    moments = [(0, [0.2, 0.1, 0.8], 10), (0, [0.4, 0.1, 0.8], 20), (1, [0.3, 0.5, 0.7], 30)]
    moments += [(1, [0.1, 0.7, 0.7], 40), (2, [0.0, 0.0, 0.0], 50)]
    c = rl_results.course(at, b, moments, [100, 200, 300, 400, 500], 2)
    assert c.ends.tolist() == [200, 400] and c.order == (0, 1) and c.p.shape == (5, 2)
    assert c.rows(0).tolist() == [1, 2] and c.rows(1).tolist() == [3, 4]
    assert c.auc(0) == pytest.approx(0.3) and c.auc(1) == pytest.approx(0.6)
    ends = rl_results.course(at, b, moments[1:4:2], [200, 400], 2)  # without eval.every
    assert ends.auc(0) == pytest.approx(0.4) and ends.auc(1) == pytest.approx(0.7)
    by_updates = rl_results.course(at, b, moments, [0] * 5, 2)
    assert by_updates.ends.tolist() == [20, 40]
    with pytest.raises(BadValue, match="experience 2 teaches 0 tasks"):
        rl_results.course(at, b, moments, [100, 200, 300, 400, 500], 3)


def test_a_repeated_task_has_a_window_for_every_visit():
    moments = [(e, [0.1 * e, 0.5], 10 * (e + 1)) for e in range(4)]
    c = rl_results.course([(0, 2), (1, 3)], [0.0, 0.0], moments, [5, 10, 15, 20], 4)
    assert c.order == (0, 1, 0, 1) and c.ends.tolist() == [5, 10, 15, 20]


def test_imitation_counts_updates_and_joint_training_has_its_end_alone(cloned, tmp_path):
    assert cloned.results["cost"]["env_steps"] == 0
    assert cloned.metrics["cw_forward_transfer"] is not None
    joint = cl.run("cartpole_actions", "sft+joint", seed=100, out=tmp_path, **SHOWN)
    last = [line["test"] for line in lines(joint.dir) if line["experience"] == 1]
    assert joint.metrics["cw_average_performance"] == pytest.approx(np.mean(last[-5:]))
    assert joint.metrics["cw_forgetting"] is None
    why = joint.results["undefined"]
    assert why["metrics.cw_forgetting"] == "experience 0 makes no step of training"
    assert "metrics.cw_average_performance" not in why
    assert joint.results["raw"]["return"][0] == [None, None]
    assert None not in joint.results["raw"]["return"][1]


def test_the_constants_of_every_eval_are_written_down(plain):
    for e in plain.results["evals"]:
        assert (e["random"], e["reference"]) == (22.2, 500.0)
    raw = np.array(plain.results["raw"]["return"])
    assert np.allclose((raw - 22.2) / 477.8, plain.R)


def test_what_has_no_value_says_why(plain):
    why = plain.results["undefined"]
    assert why["metrics.forgetting_null_bias"] == "scores are no shares"
    assert "single-task references" in why["metrics.fwt_cw"] == why["metrics.cw_forward_transfer"]
    assert plain.results["single_task"] is None and "eval.references" in why["single_task"]
    blank = [name for name, value in plain.metrics.items() if value is None]
    assert blank and all(f"metrics.{name}" in why for name in blank)


def test_results_of_other_domains_have_none_of_it(tmp_path):
    r = cl.run("split_digits", "naive", seed=0, out=tmp_path, train={"updates": 1}).results
    assert "single_task" not in r and not [k for k in r["metrics"] if k.startswith("cw_")]
    assert all("random" not in e for e in r["evals"])
    assert r["metrics"]["fwt_cw"] is None


def test_stability_of_scores_below_zero_is_a_ratio_to_what_was_learned():
    R = np.array([[0.5, 0.0, 0.0], [-0.1, -0.2, 0.0], [1.5, 0.3, 0.9]])
    curve = metrics.stability(R, [(0,), (1,), (2,)], [0.0] * 3)
    assert curve == [None, pytest.approx(-0.1 / 0.5), pytest.approx(1.5 / 0.5)]


# -- references ---------------------------------------------------------------------------------


def test_a_run_is_the_same_bit_for_bit_with_and_without_references(plain, referred):
    assert (plain.dir / "curves.jsonl").read_text() == (referred.dir / "curves.jsonl").read_text()
    own, other = plain.model.state_dict(), referred.model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    a, b = comparable(plain.results), comparable(referred.results)
    assert {k for k in a if a[k] != b[k]} == {"metrics", "undefined", "single_task"}


def test_references_are_trained_once_for_all_strategies(out, referred, monkeypatch):
    keys = settings(SMALL, eval={"references": True})
    before = {p: p.stat().st_mtime_ns for p in out.glob(".references/*/*.json")}
    again = cl.run("cartpole_actions", "ewc", seed=100, probes=["weight_norm"], out=out, **keys)
    assert again.results["single_task"] == referred.results["single_task"]
    after = {p: p.stat().st_mtime_ns for p in out.glob(".references/*/*.json")}
    assert after == before and before
    assert not list(out.glob(".references/*/events*")), "TensorBoard shows runs alone"


def test_a_task_that_returns_has_one_reference(out, cloned):
    keys = settings(SHOWN, eval={"references": True}, stream={"cycles": 2})
    before = set(out.glob(".references/*/results.json"))
    r = cl.run("cartpole_actions", "sft", seed=100, out=out, **keys)
    assert [e["task"] for e in r.results["single_task"]] == ["normal", "exchanged"] * 2
    assert set(out.glob(".references/*/results.json")) == before
    other = settings(keys, train={"lr": 0.01})
    cl.run("cartpole_actions", "sft", seed=100, out=out, **other)
    assert len(set(out.glob(".references/*/results.json"))) == len(before) + 2


def test_a_run_that_was_stopped_at_its_references_goes_on(out, cloned, monkeypatch, tmp_path):
    def stopped(*args):
        raise KeyboardInterrupt

    keys = settings(SHOWN, eval={"references": True})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as stop:
        patched.setattr(references, "of", stopped)
        cl.run("cartpole_actions", "sft", seed=100, out=tmp_path, **keys)
    assert (stop.value.run_folder / "recipe.yaml").is_file()
    done = resume(stop.value.run_folder)
    assert comparable(done.results) == comparable(cloned.results)


def test_references_are_refused_where_there_is_no_task_to_train_alone(tmp_path):
    with pytest.raises(BadValue, match="eval.references=true is for environments"):
        cl.run("split_digits", "naive", out=tmp_path, eval={"references": True})
    model = build("actor_critic", (5,), {}, actions=Actions(2))
    with pytest.raises(BadValue, match="needs a model by name"):
        cl.run("cartpole_actions", "naive", out=tmp_path, model=model, eval={"references": True})


# -- probes -------------------------------------------------------------------------------------

MEASURED = ("dormant_units", "effective_rank", "entropy", "forward_kl", "learning_speed")
MEASURED += ("module_sensitivity", "relearning", "weight_norm")


def test_probes_measure_policies_and_change_nothing(plain, tmp_path):
    probed = cl.run(
        "cartpole_actions", "naive", seed=100, out=tmp_path, probes=list(MEASURED), **SMALL
    )
    strip = [{**line, "probes": None} for line in lines(probed.dir)]
    assert strip == [{**line, "probes": None} for line in lines(plain.dir)]
    own, other = plain.model.state_dict(), probed.model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    found = probed.results["probes"]
    assert 0 < found["entropy"][1]["new"] <= math.log(2)
    assert found["forward_kl"][0].keys() == {"by/00_normal", "new", "reverse_new"}
    assert found["forward_kl"][1]["old"] >= 0 and found["forward_kl"][1]["new"] > 0
    assert {"layer_0", "layer_1", "critic_0", "critic_1"} <= found["dormant_units"][0].keys()
    assert 0.3 < found["learning_speed"][1]["speed"] < 3
    assert {"before/00_normal", "after/00_normal", "lost"} <= found["relearning"][1].keys()


@pytest.mark.parametrize("name", ["pass_at_k", "fisher_risk"])
def test_a_probe_that_is_not_for_policies_says_so_before_training(name, tmp_path):
    with pytest.raises(BadValue, match=f"{name} is made for .* vision and llm; cartpole_actions"):
        cl.run("cartpole_actions", "naive", out=tmp_path, probes=[name], **SMALL)


def test_values_of_actions_are_no_policy(tmp_path):
    for name in ("entropy", "forward_kl"):
        with pytest.raises(BadValue, match=f"probe {name} needs a policy"):
            cl.run("cartpole_actions", "naive", objective="dqn", out=tmp_path, probes=[name])


def test_silent_units_of_both_towers_are_found():
    model = build("actor_critic", (3,), {"hidden": [4, 4]}, actions=Actions(2))
    with torch.no_grad():
        for side, row in (("actor", 1), ("critic", 2)):
            layer = model.backbone.layers[0][side]
            layer.weight[row] = 0
            layer.bias[row] = 0
        model.backbone.layers[1]["critic"].weight[:2] = 0
    experience = type("E", (), {})()
    experience.train = type("T", (), {"column": lambda self, name: torch.randn(50, 3)})()
    found = dormant_units(model, experience)
    assert found["layer_0"] == found["critic_0"] == 0.25
    assert (found["layer_1"], found["critic_1"]) == (0, 0.5)
    assert found["all"] == found["dead"] == 4 / 16


def test_a_network_of_dead_units_learns_slower_than_a_fresh_one(tmp_path):
    keys = {"train": {"updates": 20}, "model": "mlp", "stream": {"n_experiences": 2}}
    run = cl.run("split_digits", Deadened, out=tmp_path, probes=["learning_speed"], **keys)
    first, second = run.results["probes"]["learning_speed"]
    assert first["fresh"] > 0.01 and second["fresh"] > 0.01
    assert first["speed"] > 0.5 > second["speed"]


class Deadened(cl.Strategy):
    """Silences the hidden units in the second experience."""

    def after_training_exp(self, loop):
        if loop.experience.index == 1:
            with torch.no_grad():
                for layer in loop.model.backbone.layers:
                    layer.bias.fill_(-100.0)


def test_the_best_constant_answer_is_known():
    assert constant(torch.tensor([0, 0, 0, 1])) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    y = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert constant(y) == pytest.approx(0.5)


# -- pictures -----------------------------------------------------------------------------------


def test_the_board_has_returns_and_environment_steps(plain):
    events = EventAccumulator(str(plain.dir)).Reload()
    tags = set(events.Tags()["scalars"])
    for tag in ("acc/00_normal", "return/00_normal", "plasticity", "cw_average_performance"):
        assert {tag, f"by_env_steps/{tag}"} <= tags
    assert "train/episode_return" in tags
    shown = events.Scalars("by_env_steps/return/01_exchanged")
    assert shown[-1].step == 512
    assert shown[-1].value == pytest.approx(plain.results["raw"]["return"][-1][1], rel=1e-5)


def results_of(R, stability):
    names = [f"{k:02d}_task" for k in range(len(R[0]))]
    plasticity = [row[i] for i, row in enumerate(R)]
    named = {"stream": "s", "strategy": "naive", "seed": 0, "score": "normalized_return"}
    curves = {"plasticity": plasticity, "stability": stability}
    entries = [{"name": name} for name in names]
    return {**named, "R": R, "evals": entries, "experiences": entries, "metrics": curves}


def test_colours_follow_scores_below_zero_and_above_one():
    inside = matrix_figure(results_of([[0.2, 0.9], [0.1, 0.5]], [None, 0.5]))
    assert inside.axes[0].images[0].get_clim() == (0, 1)
    outside = matrix_figure(results_of([[1.4, -0.3], [None, 0.5]], [None, 0.5]))
    assert outside.axes[0].images[0].get_clim() == (-0.3, 1.4)
    far = matrix_figure(results_of([[9.0, -7.0], [0.1, 0.5]], [None, 0.5]))
    assert far.axes[0].images[0].get_clim() == (-1, 2)


def test_no_point_of_the_plane_is_cut_off():
    axes = plane_figure(results_of([[1.0, 0], [0.5, -0.4]], [None, -2.5])).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left < -0.4 and right > 1 and bottom < -2.5 and top > 1
    usual = plane_figure(results_of([[1.0, 0], [0.5, 0.4]], [None, 0.5])).axes[0]
    assert usual.get_xlim() == (-0.02, 1.04) and usual.get_ylim() == (-0.02, 1.06)


# -- verdicts -----------------------------------------------------------------------------------

CLAIM = {
    **dict.fromkeys(("paper", "reported", "claim"), "words"),
    "tag": "forgetting",
    "statistic": "iqm",
    "stream": "cartpole_actions",
    "seeds": list(range(12)),
    "arms": {
        name: {"strategy": "naive" if "b" in name else "ewc"} for name in ("a", "b", "a2", "b2")
    },
    "primary": {"measure": "cw_average_performance", "of": "a", "minus": "b", "at_least": 0.1},
    "null_control": {"measure": "cw_forgetting", "of": "a", "minus": "b", "at_least": 0.1},
}


def claim_of(tmp_path, **changes):
    path = tmp_path / "own.yaml"
    path.write_text("# own\n" + yaml.safe_dump({**CLAIM, **changes}))
    return load(str(path))


def scored(**arms):
    return {
        arm: {
            s: {
                "strategy": arm,
                "seed": s,
                "cost": {},
                "metrics": {"cw_average_performance": float(v), "cw_forgetting": 0.0},
            }
            for s, v in enumerate(values)
        }
        for arm, values in arms.items()
    }


def test_a_claim_may_be_about_interquartile_means(tmp_path):
    rng = np.random.default_rng(3)
    base = rng.normal(0.3, 0.02, 12)
    gain = rng.normal(0.2, 0.03, 12)
    gain[0] = -9.0  # one failed run, which would decide a mean
    runs = scored(a=base + gain, b=base, a2=base, b2=base)
    judged = judge(claim_of(tmp_path), runs)
    e = judged.primary.estimate
    assert e.mean == pytest.approx(trim_mean(gain, 0.25))
    drawn = [trim_mean(rng.choice(gain, 12), 0.25) for _ in range(4000)]
    assert (e.low, e.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert judged.verdict == "reproduced"
    assert judged.arms["a"].mean == pytest.approx(trim_mean(base + gain, 0.25))
    assert judge(claim_of(tmp_path, statistic="mean"), runs).verdict == "inconclusive"


def test_one_comparison_may_be_over_several_streams(tmp_path):
    rng = np.random.default_rng(4)
    runs = scored(**{arm: rng.normal(0.5, 0.1, 12) for arm in ("a", "b", "a2", "b2")})
    value = {
        arm: np.array([r["metrics"]["cw_average_performance"] for r in runs[arm].values()])
        for arm in runs
    }
    both = np.stack([value["a"] - value["b"], value["a2"] - value["b2"]], 1)  # [S, 2]
    bar = {**CLAIM["primary"], "of": ["a", "a2"], "minus": ["b", "b2"]}
    found = judge(claim_of(tmp_path, primary=bar), runs).primary
    assert found.estimate.mean == pytest.approx(trim_mean(both.ravel(), 0.25))
    drawn = []
    for _ in range(4000):  # seeds again, each stream for itself
        columns = [rng.choice(both[:, k], 12) for k in range(2)]
        drawn.append(trim_mean(np.concatenate(columns), 0.25))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high), abs=0.01)
    assert found.values == pytest.approx(both.mean(1).tolist())
    assert found.bar.title == "cw average performance: (a, a2) − (b, b2)"
    assert found.bar.exchanged().of == ["b", "b2"] and found.bar.arms == ["a", "a2", "b", "b2"]
    mean = judge(claim_of(tmp_path, primary=bar, statistic="mean"), runs).primary
    assert mean.estimate.mean == pytest.approx(both.mean())


def test_interquartile_means_need_ten_seeds_and_lists_of_one_length(tmp_path):
    with pytest.raises(ContractError, match=r"10 or more \(statistic: iqm\)"):
        claim_of(tmp_path, seeds=[0, 1, 2, 3, 4])
    with pytest.raises(ContractError, match="no statistic 'iqr'"):
        claim_of(tmp_path, statistic="iqr")
    with pytest.raises(ContractError, match="differ in length"):
        claim_of(tmp_path, primary={**CLAIM["primary"], "of": ["a", "a2"], "minus": ["b"]})
    runs = scored(**{arm: np.full(7, 0.5) for arm in ("a", "b", "a2", "b2")})
    judged = judge(claim_of(tmp_path), runs, seeds=range(7))
    assert judged.verdict == "not attempted"


def test_older_claims_are_the_same_experiments(tmp_path):
    """Their digests stand in the ledger."""
    assert claim_of(tmp_path).digest != claim_of(tmp_path, statistic="mean").digest
    without = {k: v for k, v in CLAIM.items() if k != "statistic"}
    path = tmp_path / "own.yaml"
    path.write_text("# own\n" + yaml.safe_dump(without))
    assert load(str(path)).digest == claim_of(tmp_path, statistic="mean").digest


def test_the_claim_about_rewards_and_imitation_can_be_run():
    claim = load("rl_rft_sft")
    assert claim.statistic == "iqm" and len(claim.seeds) >= 10
    assert claim.bars[0].at_most == 0.0 and claim.primary == Bar(
        "backward_transfer", ["rft", "rft_ice"], minus=["sft", "sft_ice"], at_least=0.05
    )
