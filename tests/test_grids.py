"""Grids of settings: which one validation scores choose, and what is judged then."""

import json

import numpy as np
import pytest
import yaml

from cl.claims import load
from cl.errors import BadValue, ContractError, UnknownName
from cl.grids import chosen, members
from cl.measures import explained, measure
from cl.reproduce import reproduce
from cl.verdict import judge

LR = [0.001, 0.01, 0.1]
MATCHED = {"highest": "val:final:old", "where": {"measure": "val:final:new", "at_least": 0.95}}
CLAIM = {
    "paper": "a paper",
    "reported": "less",
    "claim": "the one forgets less than the other where both have learned as much",
    "tag": "forgetting",
    "stream": "split_digits",
    "settings": {"stream.n_experiences": 1, "train.updates": 3},
    "seeds": [0, 1, 2, 3, 4],
    "calibrated_on": [100],
    "choose": MATCHED,
    "arms": {
        "base": {"strategy": "naive"},
        "one": {"strategy": "naive", "from": "base", "grid": {"train.lr": LR}},
        "other": {"strategy": "replay", "from": "base", "grid": {"train.lr": LR}},
    },
    "primary": {"measure": "drop:old", "of": "one", "minus": "other", "at_most": -0.05},
    "bars": [{"measure": "r2:drop:old~probe:kl.new", "of": "*", "at_least": 0.8}],
    "null_control": {"measure": "final:new", "of": "one", "minus": "other", "at_most": -0.05},
}
EVALS = [
    {"name": "00_new", "kind": "stream", "learned_at": [0]},
    {"name": "old", "kind": "held_out", "learned_at": []},
]


def written(tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text("# small: a grid\n" + yaml.safe_dump({**CLAIM, **changes}))
    return str(path)


def run_of(new, old, val_new=None, val_old=None, kl=None, seed=0):
    """Results of one experience: `new` is taught, `old` was at 0.9 before."""
    return {
        "strategy": "made_up",
        "seed": seed,
        "evals": EVALS,
        "b": [0.5, 0.9],
        "R": [[new, old]],
        "V": [[new if val_new is None else val_new, old if val_old is None else val_old]],
        "metrics": {},
        "cost": {},
        "probes": {"kl": [{"new": kl}]} if kl is not None else {},
    }


def results_of(one, other, seeds=5):
    """{member: {seed: results}}; one, other: [(new, old) of each rate], all seeds a bit apart."""
    found = {"base": {s: run_of(0.5, 0.9, seed=s) for s in range(seeds)}}
    for arm, pairs in {"one": one, "other": other}.items():
        for lr, (new, old) in zip(LR, pairs, strict=True):
            kl = (0.9 - old) * 2
            found[f"{arm}[lr={lr:g}]"] = {
                s: run_of(new, old + 0.001 * s, kl=kl + 0.01 * s, seed=s) for s in range(seeds)
            }
    return found


GOOD = [(0.7, 0.89), (0.96, 0.85), (0.99, 0.6)]  # it needs the middle rate
BAD = [(0.9, 0.8), (0.94, 0.7), (0.97, 0.3)]  # it needs the largest


def test_a_grid_is_every_combination_of_its_values():
    arm = {"strategy": "x", "grid": {"train.lr": [0.1, 1], "strategy.beta": [0, 2]}, "from": "b"}
    assert members("a", arm) == {
        "a[lr=0.1,beta=0]": {"strategy": "x", "train.lr": 0.1, "strategy.beta": 0},
        "a[lr=0.1,beta=2]": {"strategy": "x", "train.lr": 0.1, "strategy.beta": 2},
        "a[lr=1,beta=0]": {"strategy": "x", "train.lr": 1, "strategy.beta": 0},
        "a[lr=1,beta=2]": {"strategy": "x", "train.lr": 1, "strategy.beta": 2},
    }
    assert members("a", {"strategy": "x"}) == {"a": {"strategy": "x"}}


def test_what_a_grid_varies_can_not_be_set_for_all(tmp_path):
    claim = load(written(tmp_path))
    claim.check({"train.epochs": 2})
    with pytest.raises(BadValue, match=r"train\.lr can't be set: arm one of small"):
        claim.check({"train.lr": 0.1})
    with pytest.raises(BadValue, match=r"train\.lr can't be set"):
        load(written(tmp_path, quick={"train.lr": 0.1}))


def test_arms_are_compared_where_they_have_learned_as_much(tmp_path):
    """At its own best rate each, of those that reach 0.95: 0.05 against 0.6 lost."""
    judged = judge(load(written(tmp_path)), results_of(GOOD, BAD))
    assert set(judged.chosen.member["one"].values()) == {"one[lr=0.01]"}
    assert set(judged.chosen.member["other"].values()) == {"other[lr=0.1]"}
    assert judged.primary.values == pytest.approx([0.05 - 0.6] * 5)
    assert judged.verdict == "reproduced"


def test_what_chooses_is_validation_and_what_is_reported_is_not(tmp_path):
    """The middle rate is better on test rows; validation rows say the largest."""
    results = results_of(GOOD, BAD)
    for s in range(5):
        results["one[lr=0.1]"][s] = run_of(0.99, 0.6, 0.97, 0.88)
        results["one[lr=0.01]"][s] = run_of(0.96, 0.85, 0.96, 0.5)
    judged = judge(load(written(tmp_path)), results)
    assert set(judged.chosen.member["one"].values()) == {"one[lr=0.1]"}
    assert judged.primary.values == pytest.approx([0.3 - 0.6] * 5, abs=0.01)


def test_an_arm_that_reaches_the_level_nowhere_decides_nothing(tmp_path):
    short = [(0.5, 0.9), (0.94, 0.8), (0.7, 0.85)]
    judged = judge(load(written(tmp_path)), results_of(GOOD, short))
    assert set(judged.chosen.member["other"].values()) == {"other[lr=0.01]"}, "the nearest one"
    assert judged.chosen.unmatched == {"other": [0, 1, 2, 3, 4]}
    assert judged.verdict == judged.primary.verdict == "inconclusive"
    assert "other: no setting of its grid reaches val:final:new ≥ 0.95" in judged.reason
    assert judged.bars[0].verdict != "inconclusive", "the fit speaks of no arm"


def test_each_seed_may_choose_its_own(tmp_path):
    claim = load(written(tmp_path, choose={**MATCHED, "by": "seed"}))
    results = results_of(GOOD, BAD)
    results["one[lr=0.01]"][3] = run_of(0.94, 0.85, kl=0.1)
    picked = chosen(claim, results, range(5))
    assert picked.member["one"] == {s: f"one[lr={0.1 if s == 3 else 0.01:g}]" for s in range(5)}
    assert picked.unmatched == {}
    together = chosen(load(written(tmp_path)), results, range(5))
    assert set(together.member["one"].values()) == {"one[lr=0.01]"}, "0.956 on average"


def test_calibration_seeds_may_choose_for_all(tmp_path):
    claim = load(written(tmp_path, choose={**MATCHED, "by": "calibration"}))
    results = results_of(GOOD, BAD)
    for name, by_seed in results.items():
        by_seed[100] = run_of(0.99, 0.88) if name.endswith("[lr=0.1]") else run_of(0.99, 0.1)
    for name in ("one[lr=0.01]", "one[lr=0.001]"):
        results[name] = {100: results[name][100]}  # not run on the seeds
    picked = chosen(claim, results, range(5))
    assert picked.member["one"] == dict.fromkeys(range(5), "one[lr=0.1]")
    assert 100 not in picked.results["one"]


def test_the_lowest_may_be_the_best(tmp_path):
    lowest = {"lowest": "val:drop:new", "where": {"measure": "val:final:old", "at_most": 0.8}}
    claim = load(written(tmp_path, choose=lowest))
    picked = chosen(claim, results_of(GOOD, BAD), range(5))
    assert set(picked.member["one"].values()) == {"one[lr=0.1]"}


# -- measures -----------------------------------------------------------------------------------

SEQUENCE = {
    "strategy": "x",
    "seed": 0,
    "evals": [
        {"name": "00_a", "kind": "stream", "learned_at": [0, 2]},
        {"name": "01_b", "kind": "stream", "learned_at": [1]},
        {"name": "skill", "kind": "held_out", "learned_at": []},
        {"name": "fact", "kind": "held_out", "learned_at": []},
    ],
    "b": [0.1, 0.2, 0.9, 0.7],
    "R": [[0.8, 0.2, 0.8, 0.6], [0.5, 0.9, 0.7, 0.6], [0.85, 0.6, 0.5, 0.5]],
    "V": [[0.7, 0.2, 0.8, None], [0.4, 0.8, 0.7, None], [0.75, 0.5, 0.4, None]],
    "metrics": {},
    "cost": {},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final:a", 0.85),
        ("final:01_b", 0.6),
        ("final", (0.85 + 0.6) / 2),
        ("final:held_out", 0.5),
        ("drop:a", 0.0),
        ("drop:b", 0.9 - 0.6),
        ("drop:skill", 0.9 - 0.5),
        ("drop:held_out", (0.4 + 0.2) / 2),
        ("diagonal", (0.8 + 0.9 + 0.85) / 3),
        ("val:final:a", 0.75),
        ("val:drop:b", 0.3),
        ("val:diagonal", (0.7 + 0.8 + 0.75) / 3),
    ],
)
def test_measures_of_single_evals(name, value):
    assert measure(name, SEQUENCE) == pytest.approx(value)


@pytest.mark.parametrize("name", ["val:drop:skill", "val:final:fact", "val:final:held_out"])
def test_what_was_not_scored_is_no_number(name):
    with pytest.raises(ContractError, match="undefined"):
        measure(name, SEQUENCE)


def test_an_eval_that_does_not_exist_is_named():
    with pytest.raises(ContractError, match="no eval 'skil'; did you mean 'skill'"):
        measure("final:skil", SEQUENCE)


def test_the_fit_is_least_squares_of_a_quadratic():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 3, 30)
    y = 0.3 * x**2 - 0.2 * x + 0.1 + rng.normal(0, 0.2, 30)
    A = np.stack([np.ones(30), x, x**2], 1)
    left = y - A @ np.linalg.solve(A.T @ A, A.T @ y)
    assert explained(x, y) == pytest.approx(1 - left @ left / ((y - y.mean()) ** 2).sum())
    assert explained(x, 2 * x**2 + 1) == pytest.approx(1)
    with pytest.raises(ContractError, match="four or more"):
        explained([1, 2, 3], [1, 2, 3])


def test_a_fit_takes_every_run_of_a_seed(tmp_path):
    results = results_of(GOOD, BAD)
    judged = judge(load(written(tmp_path)), results)
    expected = []
    for s in range(5):
        pairs = [
            (r[s]["probes"]["kl"][-1]["new"], 0.9 - r[s]["R"][0][1])
            for name, r in results.items()
            if name != "base"
        ]
        x, y = np.array(pairs).T
        left = y - np.polyval(np.polyfit(x, y, 2), x)
        expected.append(1 - (left**2).sum() / ((y - y.mean()) ** 2).sum())
    assert judged.bars[0].values == pytest.approx(expected)
    assert judged.bars[0].bar.title == "r2:drop:old~probe:kl.new: all runs"


# -- what may be claimed ------------------------------------------------------------------------

ARMS = CLAIM["arms"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"choose": {"highest": "final:old"}}, "val:final:old"),
        ({"choose": {"highest": "val:final:old", "lowest": "val:final:old"}}, "highest or lowest"),
        ({"choose": {**MATCHED, "by": "seeds"}}, "did you mean 'seed'"),
        ({"choose": {**MATCHED, "were": {}}}, "did you mean 'where'"),
        ({"choose": {**MATCHED, "where": {"measure": "val:final"}}}, "at_least or at_most"),
        ({"choose": None}, "a grid and no choose"),
        (
            {"choose": {**MATCHED, "by": "calibration"}, "calibrated_on": []},
            "chosen by calibration, on no seeds",
        ),
        ({"arms": {**ARMS, "base": {**ARMS["base"], "choose": MATCHED}}}, "a choose and no grid"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "grid": {}}}}, "lists of values"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "grid": {"train.lr": 0.1}}}}, "lists of values"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "grid": {"train.lr": [1, 1]}}}}, "twice"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "from": "bas"}}}, "did you mean 'base'"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "from": "other"}}}, "without grid and from"),
        ({"arms": {**ARMS, "one": {**ARMS["one"], "grid": {"train.rl": [1]}}}}, "did you mean"),
        ({"bars": [{"measure": "r2:final~cost", "of": "*", "at_least": 0}]}, "no measure"),
        ({"bars": [{"measure": "r2:final", "of": "*", "at_least": 0}]}, "two measures"),
        ({"bars": [{"measure": "r2:final~diagonal", "of": "one", "at_least": 0}]}, "all|measure"),
        ({"bars": [{"measure": "final", "of": "*", "at_least": 0}]}, "measure of"),
    ],
)
def test_a_grid_that_cannot_be_followed_is_refused(changes, said, tmp_path):
    with pytest.raises((ContractError, UnknownName), match=said):
        load(written(tmp_path, **changes))


def test_the_digest_knows_how_is_chosen(tmp_path):
    plain = load(written(tmp_path)).digest
    assert load(written(tmp_path, choose={**MATCHED, "by": "seed"})).digest != plain


# -- running ------------------------------------------------------------------------------------


def test_arms_start_from_the_same_base_and_only_the_chosen_is_run(tmp_path):
    claim = load(
        written(
            tmp_path,
            choose={"highest": "val:final", "by": "calibration"},
            arms={
                "base": {"strategy": "naive"},
                "one": {
                    "strategy": "naive",
                    "from": "base",
                    "model.keep_head": True,
                    "grid": {"train.lr": [1e-9, 0.05]},
                },
                "other": {"strategy": "naive", "from": "base", "model.keep_head": True},
            },
            primary={"measure": "final", "of": "one", "minus": "other", "at_least": 0.05},
            null_control={"measure": "final", "of": "base", "minus": "base", "at_least": 0.05},
            bars=[],
        )
    )
    judgement, path = reproduce(claim, out=tmp_path, workers=1, seeds=[0, 1])
    document = json.loads(path.read_text())
    assert document["verdict"] == "not attempted"
    named = document["arms"]["one"]["chosen"]
    assert set(named) == {"0", "1"} and len(set(named.values())) == 1
    files = list(path.parent.glob("runs/**/results.json"))
    is_base = [f.relative_to(path.parent / "runs").parts[0].startswith("base-") for f in files]
    found = [json.loads(f.read_text()) for f in files]
    ends = {(r["seed"], tuple(r["R"][0])) for r, base in zip(found, is_base, strict=True) if base}
    starts = {
        (r["seed"], tuple(r["b"])) for r, base in zip(found, is_base, strict=True) if not base
    }
    assert starts == ends, "they begin where it ended"
    assert len(found) == 3 + 2 + 2 + 2, "base, grid on the calibration seed, chosen, other"
    again, _ = reproduce(claim, out=tmp_path, workers=1, seeds=[0, 1])
    assert again == judgement, "a second time nothing is run"


def test_a_bar_may_take_a_part_of_the_other_arm_off():
    from cl.claims import Bar
    from cl.verdict import values

    def run(score):
        return {0: {"metrics": {"forgetting": score}, "cost": {}}}

    results = {"a": run(0.1), "b": run(0.4)}
    bar = Bar("forgetting", "a", minus="b", times=0.5, at_most=0.0)
    assert values(bar, results) == pytest.approx([0.1 - 0.5 * 0.4])
    assert bar.title == "forgetting: a − 0.5 b" and not bar.is_superiority
