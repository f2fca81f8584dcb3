"""Tuning: by validation scores alone, equal trials, a protocol that is kept with what it chose."""

import json
from pathlib import Path

import pytest
import yaml
from handmade import results_of

import cl
from cl import tuning
from cl.cli import main
from cl.errors import BadValue, RunError, UnknownName
from cl.fleet import Outcome
from cl.request import Request
from cl.sweeps import Done
from cl.tuning import Search, from_arguments

QUICK = {"stream.n_experiences": 2, "train.updates": 2}
GIVEN = [f"{key}={value}" for key, value in QUICK.items()]


def trials_of(*arguments):
    """{strategy: [names of a trial's runs]}."""
    search, _ = from_arguments(list(arguments))
    return {s: [[p.name for p in row] for row in rows] for s, rows in search.trials.items()}


def scored(tmp_path, monkeypatch, V, R=None):
    """Runs that end with the given last rows of V and R, by their names."""

    def carry_out(planned, workers, watch):
        done = []
        for k, p in enumerate(planned):
            if V[p.name] == "nan":
                outcome = Outcome(error="the loss is nan", kind="NonFinite", exit_code=1)
                done.append(Done(p, None, True, outcome))
                continue
            folder = tmp_path / "made" / str(k)
            folder.mkdir(parents=True)
            # of three evals the last one is never taught
            rows = [[1.0, None, 0.9], [*V[p.name], 0.9]] if V[p.name] is not None else None
            taught = [[0], [1], []]
            more = {"kind": "stream", "n": 10, "chance": 0.1}
            evals = [{"name": f"e{j}", "learned_at": t, **more} for j, t in enumerate(taught)]
            test = [[*row, None] for row in (R or {}).get(p.name, [])]
            test = [[None] * 3] * (2 - len(test)) + test
            scores = {"V": rows, "R": test, "b": [None] * 3}
            results = results_of(0.5, 0.5, 0.5, evals=evals, **scores)
            (folder / "results.json").write_text(json.dumps(results))
            done.append(Done(p, folder, True))
        return done

    monkeypatch.setattr(tuning, "carry_out", carry_out)


def best_of(tmp_path, name="naive"):
    return yaml.safe_load((tmp_path / "best" / "split_digits" / f"{name}.yaml").read_text())


# -- what is chosen -----------------------------------------------------------------------------


def test_the_mean_of_vs_last_row_over_seeds_decides_and_test_scores_do_not(tmp_path, monkeypatch):
    V = {
        "naive,train.lr=0.1 seed 100": [0.2, 0.4],
        "naive,train.lr=0.1 seed 101": [0.6, 0.6],
        "naive,train.lr=0.2 seed 100": [0.5, 0.5],
        "naive,train.lr=0.2 seed 101": [0.3, 0.8],  # 0.525 on average, the other 0.45
    }
    R = {name: [[0.9, 0.9]] if "0.1" in name else [[0.1, 0.1]] for name in V}
    scored(tmp_path, monkeypatch, V, R)
    (found,) = cl.tune("split_digits", "naive", train={"lr": [0.1, 0.2]}, out=str(tmp_path))
    assert found.best == {"train.lr": 0.2}
    assert found.trials == [
        {"settings": {"train.lr": 0.1}, "V": [0.3, 0.6]},
        {"settings": {"train.lr": 0.2}, "V": [0.5, 0.55]},
    ]
    written = best_of(tmp_path)
    assert written == {
        "stream": ["split_digits"],
        "given": {},
        "selection": {
            "protocol": "sibling_stream",
            "data": "V",
            "seeds": [100, 101],
            "score": "mean of V's last row",
            "settings": {},
        },
        "best": {"naive": {"train.lr": 0.2}},
        "trials": {"naive": found.trials},
    }


def test_a_trial_that_became_non_finite_on_a_seed_can_not_win(tmp_path, monkeypatch):
    V = {"naive,train.lr=9 seed 100": [0.9, 0.9], "naive,train.lr=9 seed 101": "nan"}
    V |= {f"naive,train.lr=0.1 seed {seed}": [0.1, -0.3] for seed in (100, 101)}
    scored(tmp_path, monkeypatch, V)
    (found,) = cl.tune("split_digits", "naive", train={"lr": [9, 0.1]}, out=str(tmp_path))
    assert found.best == {"train.lr": 0.1} and found.trials[0]["V"] == [0.9, None]
    scored(tmp_path / "all", monkeypatch, dict.fromkeys(V, "nan"))
    with pytest.raises(RunError, match="naive: every trial became non-finite"):
        cl.tune("split_digits", "naive", train={"lr": [9, 0.1]}, out=str(tmp_path))


def test_without_validation_scores_nothing_is_chosen(tmp_path, monkeypatch):
    names = [f"naive,train.lr={lr} seed {seed}" for lr in (0.1, 0.2) for seed in (100, 101)]
    scored(tmp_path, monkeypatch, dict.fromkeys(names))
    with pytest.raises(RunError, match="no validation scores"):
        cl.tune("split_digits", "naive", train={"lr": [0.1, 0.2]}, out=str(tmp_path))
    assert not (tmp_path / "best").exists()


# -- what is planned, and refused ---------------------------------------------------------------


def test_a_trial_is_run_on_every_calibration_seed_apart_from_other_runs(tmp_path):
    search, _ = from_arguments(["split_digits", "ewc", "strategy.lam=1,2", f"out={tmp_path}"])
    assert search.protocol == "sibling_stream" and search.out == tmp_path / ".tune"
    runs = [[p.request.top["seed"] for p in row] for row in search.trials["ewc"]]
    assert runs == [[100, 101]] * 2
    other = trials_of("split_digits", "ewc", "strategy.lam=1,2", "seed=7,8,9")
    assert other["ewc"][1] == [f"ewc,lam=2 seed {seed}" for seed in (7, 8, 9)]


def test_the_first_experience_is_all_that_its_protocol_looks_at():
    line = ["split_digits", "naive", "train.lr=1,2", "protocol=first_experience"]
    for more, first in (([], 1), (["first=2"], 2)):
        search, _ = from_arguments([*line, *more])
        planned = search.trials["naive"][0]
        assert [p.request.scenario["first"] for p in planned] == [first]
        assert [p.request.top["seed"] for p in planned] == [0]


def test_keys_of_one_strategy_alone_make_grids_of_equal_size():
    found = trials_of(
        *("split_digits", "ewc,si,raw_ncm+naive", "seed=100"),
        *("strategy.ewc.lam=1,2", "strategy.si.c=0.1,0.5"),
    )
    assert {name: len(rows) for name, rows in found.items()} == {
        "ewc": 2,
        "si": 2,
        "raw_ncm+naive": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["ewc"], BadValue, "nothing to choose from"),
        (["ewc,si", "strategy.ewc.lam=1,2", "strategy.si.c=1,2,3"], BadValue, "ewc 2, si 3"),
        (["ewc", "strategy.lam=1,2", "protocol=sibling"], UnknownName, "'sibling_stream'"),
        (["ewc", "strategy.lam=1,2", "first=2"], BadValue, "is for protocol=first_experience"),
        (["ewc", "strategy.lam=1,2", "stream.seed=0"], BadValue, "leave stream.seed out"),
        (["ewc", "strategy.lam=1,2", "best=true"], BadValue, "leave best out"),
        (["ewc", "strategy.lam=1,2", "stream.val=0"], BadValue, "stream.val=0 leaves none"),
        (["ewc", "stream.n_experiences=2,5"], BadValue, "can't be tuned; what can: strategy"),
        (["ewc", "model=mlp,tiny"], BadValue, "model=mlp,tiny can't be tuned"),
        (["ewc", "strategy.lm=1,2"], UnknownName, "did you mean 'lam'"),
        (["ewc", "si", "strategy.lam=1,2"], BadValue, "cl tune takes STREAM STRATEGY"),
    ],
)
def test_what_can_not_be_tuned_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        from_arguments(["split_digits", *arguments])


def test_a_stream_without_a_seed_has_no_sibling(tmp_path):
    path = tmp_path / "fixed.py"
    path.write_text(
        "from cl import Stream\n\n\ndef fixed(*, size: int = 2) -> Stream:\n    '''Fixed.'''\n"
    )
    with pytest.raises(BadValue, match="no siblings"):
        from_arguments([f"{path}:fixed", "ewc", "strategy.lam=1,2"])
    assert trials_of(f"{path}:fixed", "ewc", "strategy.lam=1,2", "protocol=whole_stream")


# -- from end to end ----------------------------------------------------------------------------


def tuned(tmp_path, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["tune", "split_digits", *arguments, f"out={tmp_path}", "workers=1"])
    return stop.value.code


def run(tmp_path, strategy, **keys):
    return cl.run("split_digits", strategy, best=True, out=str(tmp_path), **keys)


def test_what_was_tuned_is_what_best_puts_in(tmp_path, capsys):
    line = ["replay", "strategy.size=20,50", "train.lr=0.02", "stream.n_experiences=2"]
    assert tuned(tmp_path, *line, "train.updates=2", "seed=100") == 0
    printed = capsys.readouterr().out
    assert "replay: mean of V's last row" in printed and "best" in printed
    file = tmp_path / "best" / "split_digits" / "replay,stream.n_experiences=2.yaml"
    document = yaml.safe_load(file.read_text())
    size = document["best"]["replay"]["strategy.size"]
    assert document["best"]["replay"] == {
        "strategy.size": size,
        "train.lr": 0.02,
        "train.updates": 2,
    }
    result = run(tmp_path, "replay", **{"stream.n_experiences": 2})
    recipe = yaml.safe_load((result.dir / "recipe.yaml").read_text())
    assert (recipe["strategy.size"], recipe["train.lr"], recipe["train.updates"]) == (size, 0.02, 2)
    assert result.results["selection"] == {
        **document["selection"],
        "trials": 2,
        "best": document["best"]["replay"],
    }
    assert result.dir.parent.name == "replay,best=true,stream.n_experiences=2"
    # the trials by hand: runs of the same settings on the calibration seed
    for trial in document["trials"]["replay"]:
        alone = cl.run(
            "split_digits",
            "replay",
            seed=100,
            out=str(tmp_path / "alone"),
            **trial["settings"],
            **{"stream.n_experiences": 2},
        )
        last = alone.results["V"][-1]
        assert trial["V"] == [pytest.approx(sum(last) / len(last), abs=5e-5)]
    # a calibration seed is none to report, and a recipe repeats what was chosen, whatever is now
    assert run(tmp_path, "replay", seed=100, **{"stream.n_experiences": 2}).results["selection"][
        "calibration_seed"
    ]
    file.unlink()
    again = cl.runner.execute(
        Request.from_recipe(result.dir / "recipe.yaml", {"out": str(tmp_path / "again")}),
        progress=False,
    )
    assert again.results["R"] == result.results["R"]
    assert again.results["selection"] == result.results["selection"]
    assert again.dir.parent.name == f"{result.dir.parent.name},device=cpu", (
        "nothing else is changed"
    )


def test_ones_own_settings_come_before_packaged_ones_where_they_fit(tmp_path):
    packaged = run(tmp_path / "other", "replay", **{"train.updates": 2})
    own = {"strategy.size": 33, "train.lr": 0.01}
    request = Request.of("split_digits", "replay", {"out": str(tmp_path)})
    how = {"protocol": "whole_stream", "data": "V", "seeds": [0], "privileged": True}
    cl.tuned.keep(request, {}, own, [{"settings": own, "V": [0.5]}] * 3, how)
    result = run(tmp_path, "replay", **{"train.updates": 2})
    assert result.results["selection"]["protocol"] == "whole_stream"
    assert result.results["selection"]["privileged"] is True
    assert "calibration_seed" not in result.results["selection"], "it is meant to be this stream"
    assert packaged.results["selection"]["protocol"] != "whole_stream"
    with pytest.raises(BadValue, match="nothing was tuned"):
        run(tmp_path, "replay", **{"stream.n_experiences": 2})
    other = Request.of("split_digits", "replay", {"out": str(tmp_path), "model": "mlp"})
    cl.tuned.keep(other, {"model": "mlp"}, {"train.lr": 0.5}, [{"settings": {}, "V": [1]}], how)
    assert run(tmp_path, "replay", model="mlp").results["selection"]["best"] == {"train.lr": 0.5}
    assert run(tmp_path, "replay", **{"train.updates": 2}).results["selection"]["best"] == own


def test_settings_of_a_composed_strategy_are_each_ones_own(tmp_path):
    best = {"strategy.replay.size": 20, "strategy.ewc.lam": 3.0}
    request = Request.of("split_digits", "replay+ewc", {"out": str(tmp_path)})
    how = {"protocol": "sibling_stream", "data": "V", "seeds": [100]}
    cl.tuned.keep(request, {}, best, [{"settings": best, "V": [0.5]}], how)
    result = run(tmp_path, "replay+ewc", **{"train.updates": 2})
    recipe = yaml.safe_load((result.dir / "recipe.yaml").read_text())
    assert (recipe["strategy.replay.size"], recipe["strategy.ewc.lam"]) == (20, 3.0)
    assert result.dir.parent.name == "replay+ewc,best=true,train.updates=2"


def test_trials_that_have_finished_are_not_run_again(tmp_path, capsys):
    line = ["naive", "train.lr=0.02,0.05", *GIVEN, "seed=100", "protocol=first_experience"]
    assert tuned(tmp_path, *line) == 0
    assert "2 runs by 1 worker" in capsys.readouterr().err
    for folder in Path(tmp_path / ".tune" / "split_digits").iterdir():
        results = json.loads((folder / "seed100" / "results.json").read_text())
        assert len(results["experiences"]) == 1
    assert tuned(tmp_path, *line) == 0
    out, err = capsys.readouterr()
    assert not err and "written" in out
    document = best_of(tmp_path, "naive,stream.n_experiences=2")
    assert document["given"] == {"stream.n_experiences": 2}
    assert document["selection"]["first"] == 1


def test_a_grid_of_its_own_for_every_strategy():
    grids = {"ewc": {"strategy.lam": [1, 2]}, "naive": {"train.lr": [0.1, 0.2]}, "raw_ncm": {}}
    search = Search.of("split_digits", grids)
    assert {name: len(rows) for name, rows in search.trials.items()} == {
        "ewc": 2,
        "naive": 2,
        "raw_ncm": 1,
    }
