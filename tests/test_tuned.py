"""Tuned settings and recipes of published results: data that a run can start from."""

import json

import pytest
import yaml

import cl
from cl import tuned
from cl.cli import main
from cl.errors import BadValue, DataError
from cl.registry import find
from cl.request import Request, recipes
from cl.runner import execute
from cl.tuned import parsed

QUICK = {"train.updates": 2}


def document(**best):
    return {
        "stream": ["split_digits"],
        "experiences": 5,
        "classes": [str(d) for d in range(10)],
        "selection": {"protocol": "calibration_seeds", "seeds": [100], "data": "V"},
        "best": best,
        "trials": {name: [{"settings": s, "V": [0.5]}] * 4 for name, s in best.items()},
    }


@pytest.fixture
def best(monkeypatch):
    settings = {"strategy.size": 50, "train.lr": 0.02}
    monkeypatch.setattr(tuned, "_documents", lambda: [document(replay=settings)])
    return settings


def run(tmp_path, strategy="replay", **keys):
    return cl.run("split_digits", strategy, out=str(tmp_path), **{**QUICK, **keys})


def test_best_puts_tuned_settings_under_what_is_given(best, tmp_path):
    result = run(tmp_path, best=True)
    recipe = yaml.safe_load((result.dir / "recipe.yaml").read_text())
    assert recipe["strategy.size"] == 50 and recipe["train.lr"] == 0.02 and recipe["best"] is True
    assert result.results["selection"]["trials"] == 4
    assert result.results["selection"]["overridden"] == ["train.updates"]
    assert result.dir.parent.name == "replay,best=true,train.updates=2"
    by_hand = run(tmp_path, **{"strategy.size": 50, "train.lr": 0.02})
    assert by_hand.results["R"] == result.results["R"] and by_hand.results["selection"] is None
    over = run(tmp_path, best=True, **{"train.lr": 0.1})
    assert set(over.results["selection"]["overridden"]) == {"train.lr", "train.updates"}
    other = run(tmp_path, best=True, seed=100, model="mlp")
    assert "model" in other.results["selection"]["overridden"]
    assert other.results["selection"]["calibration_seed"] is True
    assert yaml.safe_load((over.dir / "recipe.yaml").read_text())["train.lr"] == 0.1


def test_a_run_with_tuned_settings_repeats_from_its_recipe(best, tmp_path):
    result = run(tmp_path, best=True)
    again = Request.from_recipe(result.dir / "recipe.yaml", {"out": str(tmp_path / "again")})
    repeated = execute(again, progress=False)
    assert repeated.results["R"] == result.results["R"]
    assert repeated.results["selection"] == result.results["selection"]


@pytest.mark.parametrize(
    ("strategy", "keys", "message"),
    [
        ("naive", {}, "naive was not tuned for split_digits; there are replay"),
        ("replay", {"stream.n_experiences": 2}, "nothing was tuned for split_digits with 2"),
        ("replay", {"stream.cycles": 2}, "nothing was tuned with stream.cycles"),
    ],
)
def test_without_tuned_settings_best_is_refused(strategy, keys, message, best, tmp_path):
    with pytest.raises(BadValue, match=message):
        run(tmp_path, strategy, best=True, **keys)


def test_the_packaged_settings_fit_their_strategies_and_were_chosen_with_equal_trials():
    for packaged in tuned._documents():
        name = packaged["stream"][0]
        assert packaged["best"].keys() == packaged["trials"].keys()
        counts = {len(rows) for rows in packaged["trials"].values() if rows[0]["settings"]}
        assert len(counts) == 1, f"{name}: trials per strategy {counts}"
        assert set(packaged["selection"]["seeds"]).isdisjoint(range(10))
        for strategy, settings in packaged["best"].items():
            request = Request.of(name, strategy, {"best": True})
            assert parsed(settings, request).keys() == settings.keys()
            rows = packaged["trials"][strategy]
            means = [sum(row["V"]) / len(row["V"]) for row in rows]
            chosen = next(
                m for m, row in zip(means, rows, strict=True) if row["settings"] == settings
            )
            assert chosen == max(means)


# -- recipes of published results ------------------------------------------------------------------


def test_every_packaged_recipe_names_what_exists_and_says_what_is_expected():
    for path in recipes().values():
        request = Request.from_recipe(path, {})
        if request.expect is None:
            assert "no expected value" in path.read_text().splitlines()[0]
            continue
        assert request.expect["source"] and 0 < request.expect["tolerance"] <= 0.05
        assert find("streams", request.stream_name)
        assert path.read_text().startswith("# ")


def write_recipe(path, **expect):
    path.write_text(
        yaml.safe_dump(
            {"stream": "split_digits", "strategy": "naive", "train.updates": 1, "expect": expect}
        )
    )
    return path


def test_a_recipe_compares_the_measured_value_with_the_published_one(tmp_path, capsys):
    known = {"metric": "seen_accuracy", "value": 0.2, "tolerance": 0.2, "source": "a paper"}
    path = write_recipe(tmp_path / "r.yaml", **known)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(path), f"out={tmp_path / 'runs'}"])
    assert stop.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "published seen accuracy 0.2 ± 0.2 (a paper): measured" in printed
    (found,) = (tmp_path / "runs").rglob("results.json")
    results = json.loads(found.read_text())
    measured = results["metrics"]["seen_accuracy"][-1]
    assert results["expected"] == {**known, "measured": measured, "within": True}


def test_a_broken_expectation_is_refused(tmp_path):
    path = write_recipe(tmp_path / "r.yaml", metric="seen_accuracy", value="high")
    with pytest.raises(DataError, match="expect must hold metric, value, tolerance, source"):
        Request.from_recipe(path, {})
    path = write_recipe(tmp_path / "r.yaml", metric="b", value="high", tolerance=1, source="x")
    with pytest.raises(DataError, match="expect.value can't be 'high'"):
        Request.from_recipe(path, {})
