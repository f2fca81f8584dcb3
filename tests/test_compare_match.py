"""--match: equal plasticity, chosen on validation scores, reported on test scores, by hand."""

import pytest
from handmade import line, results_of, run, written

import cl
from cl.cli import main
from cl.comparison import compared
from cl.comparison.match import level_of

RECIPE = {"train.lr": 0.1, "eval.every": 10}


def within(tmp_path, strategy, rows, seed=0, start=((0.9, None), (0.9, None))):
    """A run whose second experience is evaluated at rows of (updates, test, val)."""
    made = results_of(0.9, 0.5, 0.95, strategy=strategy, seed=seed)
    made["metrics"]["eval_every"] = 10
    lines = [
        line("untrained", None, 0, [0.5, None], [0.5, None]),
        line("periodic", 0, 10, [0.7, None], [0.7, None]),
        line("experience", 0, 20, *map(list, start)),
    ]
    lines += [line("periodic", 1, at, test, val) for at, test, val in rows[:-1]]
    lines += [line("experience", 1, *rows[-1])]
    return written(tmp_path / "made" / strategy / f"seed{seed}", made, RECIPE, lines)


def rows_of(data, along):
    (section,) = data["sections"]
    return {row["label"]: row for row in section["matched"]["rows"] if row["along"] == along}


# -- along updates ---------------------------------------------------------------------------------


def test_the_first_crossing_of_the_validation_score_decides_and_test_scores_are_told(tmp_path):
    rows = [
        (30, [0.8, 0.50], [0.8, 0.60]),
        (40, [0.6, 0.70], [0.6, 0.80]),
        (50, [0.4, 0.90], [0.4, 1.00]),  # V crosses 0.9 half-way from 40 to 50
        (60, [0.3, 0.92], [0.3, 0.85]),
        (70, [0.2, 0.95], [0.2, 0.95]),  # and again here, which is later
    ]
    within(tmp_path, "naive", rows)
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "updates")["naive"]
    assert row["at"] == pytest.approx(25), "updates since the experience began at 20"
    assert row["old"]["mean"] == pytest.approx(0.5)
    assert row["new"]["mean"] == pytest.approx(0.8), "the test score there, not the level"


def test_another_level_lies_elsewhere_on_the_line(tmp_path):
    rows = [(30, [0.8, 0.5], [0.8, 0.6]), (40, [0.6, 0.7], [0.6, 0.8])]
    within(tmp_path, "naive", rows)
    row = rows_of(cl.compare(tmp_path, match="new_task=0.65"), "updates")["naive"]
    assert row["at"] == pytest.approx(12.5)
    assert row["old"]["mean"] == pytest.approx(0.75)
    assert row["new"]["mean"] == pytest.approx(0.55)


def test_what_is_there_at_the_first_evaluation_counts_from_it(tmp_path):
    within(tmp_path, "naive", [(30, [0.8, 0.9], [0.8, 0.95]), (40, [0.1, 1.0], [0.1, 1.0])])
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "updates")["naive"]
    assert row["at"] == pytest.approx(10) and row["old"]["mean"] == pytest.approx(0.8)


def test_a_task_that_could_be_scored_before_is_followed_from_the_end_of_the_one_before(tmp_path):
    start = [0.9, 0.1], [0.9, 0.2]
    within(tmp_path, "naive", [(40, [0.5, 0.9], [0.5, 1.0])], start=start)
    row = rows_of(cl.compare(tmp_path, match="new_task=0.6"), "updates")["naive"]
    assert row["at"] == pytest.approx(10), "half of 20 updates"
    assert row["old"]["mean"] == pytest.approx(0.7)


def test_means_and_differences_are_over_seeds(tmp_path):
    for seed, kept in enumerate((0.5, 0.6, 0.7)):
        within(tmp_path, "naive", [(30, [kept, 0.9], [kept, 0.9])], seed)
        within(tmp_path, "keeps", [(30, [kept + 0.1 + seed / 100, 0.9], [0.1, 0.9])], seed)
    data = cl.compare(tmp_path, match="new_task=0.9")
    rows = rows_of(data, "updates")
    assert rows["naive"]["old"]["mean"] == pytest.approx(0.6)
    assert rows["keeps"]["old"]["mean"] == pytest.approx(0.71)
    (gain,) = data["sections"][0]["matched"]["differences"]["updates"]
    assert gain["arm"] == "keeps" and gain["mean"] == pytest.approx(0.11) and gain["n"] == 3


@pytest.mark.parametrize(
    "rows,said",
    [
        ([(30, [0.8, 0.99], [0.8, 0.6])], "seed 0: experience 1 never reaches 0.9, its best is"),
        ([(30, [0.8, 0.99], [0.8, None])], "seed 0: experience 1 has no validation scores"),
        ([(30, [None, 0.9], [0.8, 0.95])], "experience 1 has no test scores where it reaches 0.9"),
    ],
)
def test_an_arm_that_does_not_get_there_is_said_and_has_no_number(rows, said, tmp_path):
    within(tmp_path, "naive", rows)
    data = cl.compare(tmp_path, match="new_task=0.9")
    row = rows_of(data, "updates")["naive"]
    assert row["old"]["mean"] is None and said in row["old"]["undefined"]
    assert any(n["kind"] == "match" and said in n["text"] for n in data["notes"])


def test_one_seed_that_does_not_get_there_leaves_its_arm_unmatched(tmp_path):
    within(tmp_path, "naive", [(30, [0.8, 0.9], [0.8, 0.95])], 0)
    within(tmp_path, "naive", [(30, [0.8, 0.9], [0.8, 0.5])], 1)
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "updates")["naive"]
    assert row["old"]["mean"] is None and row["old"]["undefined"].startswith("seed 1: ")


def test_damaged_curves_are_no_curves(tmp_path):
    folder = within(tmp_path, "naive", [(30, [0.8, 0.9], [0.8, 0.95])])
    with open(folder / "curves.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "experience", "exp')
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "updates")["naive"]
    assert "no lines in curves.jsonl" in row["old"]["undefined"]


def test_arms_that_can_not_be_matched_are_named(tmp_path):
    run(tmp_path, "plain", 0, (0.9, 0.5, 0.9), {"train.lr": 0.1})
    found = compared([tmp_path], match="new_task=0.9")
    assert found.lines[-1] == (
        "not matched, plain: no evaluations within experiences (eval.every), no sibling with "
        "another number"
    )


# -- along a setting -------------------------------------------------------------------------------


def family(tmp_path, scores, seeds=(0,), strategy="keeps"):
    """{size: (V, R)} of (first, kept, new): V chooses, R is told."""
    for size, (V, R) in scores.items():
        for seed in seeds:
            made = results_of(*R, strategy=strategy, seed=seed)
            made["V"] = [[V[0], None], [V[1], V[2]]]
            recipe = {"strategy.size": size, "train.lr": 0.1}
            written(tmp_path / "made" / f"{strategy},size={size}" / f"seed{seed}", made, recipe)


def test_between_two_settings_scores_are_interpolated_by_validation_plasticity(tmp_path):
    family(
        tmp_path,
        {
            10: ((0.8, 0.9, 0.8), (0.7, 0.80, 0.5)),  # V of new tasks 0.8
            20: ((0.8, 0.5, 0.9), (0.7, 0.60, 0.7)),  # 0.85
            40: ((1.0, 0.2, 0.9), (0.9, 0.20, 0.9)),  # 0.95
        },
    )
    rows = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "size")
    row = rows["keeps size=10,20,40"]
    assert row["at"] == pytest.approx(30) and row["old"]["mean"] == pytest.approx(0.4)
    assert row["new"]["mean"] == pytest.approx((0.7 + 0.9) / 2), "mean of R's diagonal, between"


def test_of_several_crossings_that_with_the_most_kept_on_validation_data_is_taken(tmp_path):
    family(
        tmp_path,
        {
            1: ((0.8, 0.1, 0.8), (0.8, 0.9, 0.8)),  # 0.8, V keeps 0.1 and R 0.9
            2: ((1.0, 0.1, 1.0), (0.8, 0.9, 0.8)),  # 1.0
            3: ((0.8, 0.7, 0.8), (0.8, 0.3, 0.8)),  # 0.8 again, V keeps more and R less
        },
    )
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "size")["keeps size=1,2,3"]
    assert row["at"] == pytest.approx(2.5), "V decides"
    assert row["old"]["mean"] == pytest.approx(0.6), "R is told"


def test_the_setting_is_one_for_all_seeds(tmp_path):
    V = {0: {1: 0.7, 2: 0.9}, 1: {1: 0.9, 2: 1.0}}  # means 0.8 and 0.95: 0.875 is half-way
    for size in (1, 2):
        for seed in (0, 1):
            made = results_of(0.8, 0.2 * size + 0.1 * seed, 0.8, strategy="keeps", seed=seed)
            made["V"] = [[V[seed][size], None], [0.5, V[seed][size]]]
            recipe = {"strategy.size": size, "train.lr": 0.1}
            written(tmp_path / "made" / f"keeps,size={size}" / f"seed{seed}", made, recipe)
    row = rows_of(cl.compare(tmp_path, match="new_task=0.875"), "size")["keeps size=1,2"]
    assert row["at"] == pytest.approx(1.5)
    assert row["old"]["by_seed"] == pytest.approx({"0": 0.3, "1": 0.4})


@pytest.mark.parametrize(
    "level,said", [(0.5, "all are above, from 0.800"), (0.99, "its best is 0.900")]
)
def test_a_family_that_does_not_cross_the_level_is_said(level, said, tmp_path):
    family(tmp_path, {1: ((0.8, 0, 0.8), (1, 0, 1)), 2: ((0.9, 0, 0.9), (1, 0, 1))})
    data = cl.compare(tmp_path, match=f"new_task={level}")
    row = rows_of(data, "size")["keeps size=1,2"]
    assert row["old"]["mean"] is None and said in row["old"]["undefined"]


def test_without_validation_data_nothing_is_matched(tmp_path):
    family(tmp_path, {1: ((0.8, 0, 0.8), (1, 0, 1)), 2: ((1, 0, 1), (1, 0, 1))})
    for path in tmp_path.rglob("results.json"):
        text = path.read_text()
        start = text.index('"V": ')
        path.write_text(text[:start] + '"V": null, ' + text[text.index('"R_within"') :])
    row = rows_of(cl.compare(tmp_path, match="new_task=0.9"), "size")["keeps size=1,2"]
    assert row["old"]["mean"] is None and "validation data" in row["old"]["undefined"]


def test_arms_that_differ_in_two_settings_are_no_family(tmp_path):
    for size, rate in ((1, 0.1), (2, 0.2)):
        recipe = {"strategy.size": size, "train.lr": rate}
        run(tmp_path, "keeps", 0, (0.9, 0.5, 0.9), recipe, arm=f"keeps,size={size}")
    data = cl.compare(tmp_path, match="new_task=0.9")
    assert data["sections"][0]["matched"]["rows"] == []


# -- the table -------------------------------------------------------------------------------------


def test_the_table_says_where_each_arm_is_and_what_it_keeps(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    within(tmp_path, "naive", [(30, [0.8, 0.9], [0.8, 0.9])])
    within(tmp_path, "keeps", [(30, [0.85, 0.9], [0.8, 0.4]), (40, [0.65, 0.8], [0.8, 0.9])])
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path), "--match", "new_task=0.9"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "made: new task's validation score at 0.9, along updates" in out
    part = out[out.index("along updates") :].splitlines()
    cells = [[c.strip() for c in row.split("│")[1:-1]] for row in part if row.startswith("│")]
    assert cells[0] == ["naive", "1", "10", "0.900", "0.800", "—", "—"], "what others are minus"
    assert cells[1] == ["keeps", "1", "20", "0.800", "0.650", "-0.150", "—"]
    assert "along updates" in (tmp_path / "compare" / "all" / "table.md").read_text()


def test_levels_are_scores():
    assert level_of("new_task=0.9") == 0.9 and level_of("new_task=1") == 1.0
    assert level_of(None) is None
