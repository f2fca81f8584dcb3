"""Claims: what may be claimed, how it is judged, that a run goes on, that a swap never passes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy import stats

from cl.claims import Bar, claims, listed, load, located
from cl.cli import main
from cl.errors import BadValue, ContractError, DataError, UnknownName
from cl.ledger import Shown
from cl.measures import measure
from cl.reproduce import reproduce
from cl.statistics import RESAMPLES, estimate, holm, tail
from cl.verdict import judge

SMALL = {
    "paper": "a paper",
    "reported": "more",
    "claim": "replay keeps more than naive",
    "tag": "forgetting",
    "stream": "split_digits",
    "settings": {"stream.n_experiences": 2, "train.updates": 40},
    "seeds": [0, 1, 2, 3, 4],
    "quick": {"train.updates": 2},
    "arms": {"replay": {"strategy": "replay"}, "naive": {"strategy": "naive"}},
    "primary": {"measure": "average_accuracy", "of": "replay", "minus": "naive", "at_least": 0.1},
    "null_control": {
        "measure": "first_accuracy",
        "of": "replay",
        "minus": "naive",
        "at_least": 0.1,
    },
}


def written(tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text("# small: replay keeps more\n" + yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def results_of(scores, name="average_accuracy"):
    """{arm: {seed: results}} in which a measure has the given values and all else is equal."""
    return {
        arm: {
            seed: {
                "strategy": arm,
                "seed": seed,
                "metrics": {
                    "average_accuracy": float(v) if name == "average_accuracy" else 0.5,
                    "seen_accuracy": [float(v) if name == "first_accuracy" else 0.5],
                },
                "cost": {"train_seconds": float(v)},
            }
            for seed, v in enumerate(values)
        }
        for arm, values in scores.items()
    }


# -- statistics ---------------------------------------------------------------------------------


def test_below_ten_values_the_interval_is_students():
    x = [0.31, 0.35, 0.29, 0.40, 0.33]
    low, high = stats.t.interval(0.95, 4, np.mean(x), stats.sem(x))
    e = estimate(x)
    assert (e.mean, e.low, e.high, e.n) == pytest.approx((0.336, low, high, 5))


def test_from_ten_values_on_it_is_a_percentile_bootstrap():
    x = np.random.default_rng(3).exponential(size=12)
    e = estimate(x)
    by_scipy = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20000, rng=1)
    assert e.low == pytest.approx(by_scipy.confidence_interval.low, abs=0.03)
    assert e.high == pytest.approx(by_scipy.confidence_interval.high, abs=0.03)
    assert estimate(x) == e, "the same resamples every time"


def test_one_value_has_no_interval():
    e = estimate([0.4])
    assert (e.mean, e.low, e.high) == (0.4, -math.inf, math.inf)
    assert tail([0.4], 0.0, above=True) == 1.0


@pytest.mark.parametrize("above,alternative", [(True, "greater"), (False, "less")])
def test_a_tail_is_the_one_sided_t_test(above, alternative):
    x = [0.1, 0.3, 0.2, 0.15, 0.4]
    expected = stats.ttest_1samp(x, 0.12, alternative=alternative).pvalue
    assert tail(x, 0.12, above=above) == pytest.approx(expected)


def test_equal_values_leave_no_doubt_but_for_the_border_itself():
    assert tail([0.2] * 5, 0.1, above=True) == 0.0
    assert tail([0.2] * 5, 0.2, above=True) == 1.0
    assert tail(np.full(12, 0.2), 0.1, above=True) == pytest.approx(1 / (RESAMPLES + 1))


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# -- verdicts -----------------------------------------------------------------------------------

CLOSE, WIDE = [-0.01, 0.0, 0.01, 0.0, 0.0], [-0.3, 0.3, -0.2, 0.2, 0.0]


@pytest.mark.parametrize(
    "gain,spread,verdict",
    [
        (0.3, CLOSE, "reproduced"),
        (0.12, CLOSE, "reproduced"),
        (0.1, CLOSE, "inconclusive"),
        (0.02, CLOSE, "differs"),
        (-0.4, CLOSE, "differs"),
        (0.3, WIDE, "inconclusive"),
    ],
)
def test_the_interval_of_paired_differences_decides(gain, spread, verdict, tmp_path):
    claim = load(written(tmp_path))
    base = np.array([0.2, 0.5, 0.3, 0.6, 0.4])  # what seeds have in common cancels
    judged = judge(claim, results_of({"replay": base + gain + spread, "naive": base}))
    assert judged.verdict == judged.primary.verdict == verdict
    low, high = stats.t.interval(0.95, 4, gain, stats.sem(spread))
    assert (judged.primary.estimate.low, judged.primary.estimate.high) == pytest.approx((low, high))


def test_a_null_control_that_shows_the_effect_takes_the_verdict_away(tmp_path):
    claim = load(written(tmp_path, null_control=SMALL["primary"]))
    base = np.array([0.2, 0.5, 0.3, 0.6, 0.4])
    judged = judge(claim, results_of({"replay": base + 0.3 + CLOSE, "naive": base}))
    assert (judged.primary.verdict, judged.verdict) == ("reproduced", "inconclusive")
    assert "null control" in judged.reason


@pytest.mark.parametrize(
    "spread,said", [(CLOSE, "no effect, as it must be"), (WIDE, "undecided: wide interval")]
)
def test_what_is_shown_tells_a_null_control_without_effect_from_a_noisy_one(
    spread, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    claim = load(written(tmp_path))
    base = np.array([0.2, 0.5, 0.3, 0.6, 0.4])
    judged = judge(claim, results_of({"replay": base + spread, "naive": base}))
    null = replace(judged.primary, bar=claim.null_control)
    Shown(claim).judgement(replace(judged, null=null), tmp_path, {"train.lr": "0.1"})
    shown = capsys.readouterr().out
    assert said in shown and "not the claim as written: train.lr=0.1" in shown


def test_too_few_seeds_and_quick_are_not_attempted(tmp_path):
    claim = load(written(tmp_path))
    results = results_of({"replay": [0.9, 0.91, 0.92, 0.9], "naive": [0.1] * 4})
    assert judge(claim, results).verdict == "not attempted"
    results = results_of({"replay": [0.9, 0.91, 0.92, 0.9, 0.9], "naive": [0.1] * 5})
    assert judge(claim, results).verdict == "reproduced"
    assert judge(claim, results, quick=True).verdict == "not attempted"


def judged_bar(bar, first, second=(1.0,) * 5):
    claim = replace(load(claims()["fetril_digits"].stem), bars=[Bar(**bar)], controls=[])
    arms = dict.fromkeys(claim.arms, second)
    results = results_of({**arms, "fetril": first})
    own = replace(
        claim,
        primary=Bar("average_accuracy", "fetril", minus="naive", at_least=0.01),
        null_control=Bar("first_accuracy", "fetril", minus="naive", at_least=0.01),
    )
    return judge(own, results).bars[0]


@pytest.mark.parametrize(
    "shift,verdict", [(0.0, "reproduced"), (0.05, "differs"), (0.03, "inconclusive")]
)
def test_within_is_an_equivalence_test(shift, verdict):
    bar = {"measure": "average_accuracy", "of": "fetril", "minus": "naive", "within": 0.03}
    assert judged_bar(bar, 1.0 + shift + np.array(CLOSE)).verdict == verdict


def test_a_ratio_is_judged_on_a_log_scale():
    bar = {"measure": "train_seconds", "of": "fetril", "over": "naive", "at_most": 0.1}
    judged = judged_bar(bar, [0.04, 0.05, 0.06, 0.05, 0.05])
    logs = np.log([0.04, 0.05, 0.06, 0.05, 0.05])
    low, high = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
    expected = np.exp([logs.mean(), low, high])
    e = judged.estimate
    assert (e.mean, e.low, e.high) == pytest.approx(tuple(expected))
    assert judged.verdict == "reproduced"
    with pytest.raises(ContractError, match="above 0"):
        judged_bar(bar, [0.0, 0.05, 0.06, 0.05, 0.05])


def test_many_bars_are_corrected_for_their_number(tmp_path):
    values = 0.1 + np.array([0.002, 0.03, 0.015, 0.01, 0.04])  # p of about 0.04, two-sided
    bar = {"measure": "average_accuracy", "of": "replay", "at_least": 0.1}
    alone = load(written(tmp_path, bars=[bar]))
    many = load(written(tmp_path, bars=[bar] * 3))
    results = results_of({"replay": values, "naive": values})
    p = 2 * stats.ttest_1samp(values, 0.1, alternative="greater").pvalue
    assert 0.05 / 3 < p < 0.05
    assert [b.verdict for b in judge(alone, results).bars] == ["reproduced"]
    assert [b.verdict for b in judge(many, results).bars] == ["inconclusive"] * 3


@pytest.mark.parametrize("name", sorted(claims()))
def test_a_claim_with_its_labels_swapped_is_never_reproduced(name, monkeypatch):
    """Whatever comes out: a superiority can't hold both ways."""
    monkeypatch.setattr("cl.verdict.measure", lambda measure, found: found["metrics"][measure])
    claim = load(name)
    rng = np.random.default_rng(0)
    bar = claim.primary
    both = 0
    for gain in (-0.6, -0.1, 0.0, 0.1, 0.6):
        for _ in range(20):
            base = rng.uniform(0.2, 0.4, 5)
            own = base * 10 ** (-gain) if bar.over else base + gain
            scores = {arm: own + rng.normal(0, 0.01, 5) for arm in listed(bar.of)}
            scores |= dict.fromkeys(listed(bar.minus or bar.over), base)
            found = {
                arm: {
                    s: {"strategy": arm, "seed": s, "metrics": {bar.measure: v}, "cost": {}}
                    for s, v in enumerate(values)
                }
                for arm, values in scores.items()
            }
            plain, swapped = (verdict_of(b, found) for b in (bar, bar.exchanged()))
            assert not (plain == swapped == "reproduced")
            assert swapped != "reproduced" or np.mean(own - base) * (bar.at_least or -1) < 0
            both += plain == "reproduced"
    assert both, "the claim itself can be reproduced"


def verdict_of(bar, results):
    from cl.verdict import _judged

    return _judged(bar, results).verdict


# -- what may be claimed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"seeds": [0, 1, 2]}, "5 or more"),
        ({"seeds": [0, 1, 2, 3, 3]}, "all different"),
        ({"calibrated_on": [4, 100]}, "reported seeds"),
        ({"tag": "forgeting"}, "did you mean 'forgetting'"),
        ({"barz": []}, "did you mean 'bars'"),
        ({"bars": [{"measure": "average_accuracy", "of": "replay"}]}, "one number"),
        ({"bars": [{"measure": "accuracy", "of": "replay", "at_least": 0}]}, "no measure"),
        ({"bars": [{"measure": "val:drop:held_out", "of": "replay", "at_least": 0}]}, "before"),
        ({"bars": [{"measure": "average_accuracy", "of": "rply", "at_least": 0}]}, "no arm 'rply'"),
        ({"bars": [{"measure": "average_accuracy", "of": "replay", "atleast": 0}]}, "at_least"),
        ({"bars": ["replay > naive"]}, "measure and of"),
        ({"controls": [{**SMALL["primary"]}]}, "no bound"),
        ({"primary": {**SMALL["primary"], "at_least": 0.0}}, "above 0"),
        ({"primary": {**SMALL["primary"], "at_least": -0.02}}, "above 0"),
        ({"primary": {"measure": "average_accuracy", "of": "replay", "at_least": 0.5}}, "above 0"),
        ({"primary": {**SMALL["primary"], "over": "naive"}}, "one of them"),
        ({"arms": {"replay": {}, "naive": {"strategy": "naive"}}}, "names no strategy"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(changes, said, tmp_path):
    with pytest.raises((ContractError, UnknownName), match=said):
        load(written(tmp_path, **changes))


def test_arms_are_checked_before_anything_runs(tmp_path):
    arms = {"replay": {"strategy": "replay", "strategy.sice": 3}, "naive": {"strategy": "naive"}}
    with pytest.raises(UnknownName, match="did you mean 'size'"):
        load(written(tmp_path, arms=arms))


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'fetril_digits'"):
        load("fetril_digit")


def test_data_are_looked_for_in_the_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="CL_DATA"):
        located("photos.zip")
    (tmp_path / "photos.zip").write_text("x")
    assert located("photos.zip") == tmp_path / "photos.zip"


def test_an_undefined_measure_is_no_number():
    results = {"strategy": "joint", "seed": 3, "metrics": {"stability": [None]}, "cost": {}}
    with pytest.raises(ContractError, match="stability is undefined"):
        measure("stability", results)


# -- running ------------------------------------------------------------------------------------


def test_runs_are_judged_kept_and_gone_on_with(tmp_path):
    claim = load(written(tmp_path))
    judgement, path = reproduce(claim, out=tmp_path, workers=1)
    document = json.loads(path.read_text())
    assert judgement.verdict == document["verdict"] == "reproduced"
    values = document["primary"]["values"]
    by_hand = {}
    for file in (path.parent / "runs").glob("*/*/*/seed*/results.json"):
        results = json.loads(file.read_text())
        R, n = np.array(results["R"], dtype=float), len(results["evals"])
        by_hand[results["strategy"], results["seed"]] = R[-1].mean()
        assert len(results["cost"]["experience_seconds"]) == n
        assert sum(results["cost"]["experience_seconds"]) <= results["cost"]["train_seconds"]
    assert values == pytest.approx([by_hand["replay", s] - by_hand["naive", s] for s in range(5)])
    before = {f: f.stat().st_mtime_ns for f in path.parent.glob("runs/**/curves.jsonl")}
    seen = []
    again, _ = reproduce(claim, out=tmp_path, workers=1, progress=lambda *a: seen.append(a))
    assert again == judgement and len(seen) == 10
    after = {f: f.stat().st_mtime_ns for f in path.parent.glob("runs/**/curves.jsonl")}
    assert after == before, "nothing was run again"
    folder = next(path.parent.glob("runs/replay-*/*/*/seed3"))
    (folder / "results.json").write_text(
        (folder / "results.json").read_text().replace('"finished"', '"running"')
    )
    last = sorted((folder / "checkpoint").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    third, _ = reproduce(claim, out=tmp_path, workers=1)
    assert third.primary == judgement.primary, "a stopped run goes on and ends the same"


def test_the_command_ends_with_its_verdict(tmp_path, capsys, monkeypatch):
    file = written(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", file, "--quick", "workers=1"])
    assert end.value.code == 0
    out = capsys.readouterr().out.rstrip().splitlines()
    assert out[-1] == "verdict: not attempted"
    assert json.loads((tmp_path / "runs/reproduce/small-quick/verdict.json").read_text())["seeds"]


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["fetrl_digits"], "did you mean 'fetril_digits'"),
        ([], "NAME of one claim, --all or --list"),
        (["fetril_digits", "--all"], "NAME of one claim"),
        (["fetril_digits", "workers=0"], "workers must be"),
        (["fetril_digits", "seeds=1,1,2"], "different"),
        (["fetril_digits", "seeds=100,1,2,3,4"], "chosen on"),
        (["fetril_digits", "train.epocs=3"], "did you mean 'epochs'"),
        (["fetril", "stream.path=nowhere.zip"], "no data nowhere.zip"),
        (["fetril_digits", "workers=2", "workers=3"], "given twice"),
    ],
)
def test_bad_requests_end_in_one_line_before_anything_is_run(
    arguments, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_claims_are_listed_without_importing_torch():
    import subprocess
    import sys

    code = (
        "import sys; from cl.cli import main\n"
        "try: main(['reproduce', '--list'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert {line.split()[0] for line in done.stdout.splitlines()[:-1]} == set(claims())


@pytest.mark.slow
def test_the_swapped_digits_claim_is_not_reproduced_on_real_runs(tmp_path):
    claim = load("fetril_digits")
    judgement, _ = reproduce(claim, out=tmp_path, workers=1)
    assert judgement.verdict in ("reproduced", "inconclusive", "differs")
    swapped, _ = reproduce(claim.exchanged(), out=tmp_path, workers=1)
    assert swapped.verdict == "differs"
    assert swapped.primary.estimate.mean == pytest.approx(-judgement.primary.estimate.mean)


def test_other_seeds_of_the_users_own_are_used(tmp_path):
    claim = load(written(tmp_path))
    judgement, path = reproduce(claim, out=tmp_path, workers=1, seeds=[7, 8], over={})
    assert json.loads(path.read_text())["seeds"] == [7, 8]
    assert judgement.verdict == "not attempted" and "2 seeds" in judgement.reason
    with pytest.raises(BadValue):
        from cl.ledger import settle

        settle([claim], {"seeds": "-1"}, quick=False, every=False)


def test_describe_names_a_strategys_claim(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "fetril"])
    assert "cl reproduce fetril" in capsys.readouterr().out
