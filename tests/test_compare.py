"""cl compare: what is read, how it is grouped, what is said, numbers known beforehand."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from handmade import results_of, run, written
from scipy import stats

import cl
from cl.cli import main
from cl.comparison import compared
from cl.comparison.files import default_out
from cl.errors import BadValue, DataError, UnknownName, UsageError
from cl.folder import read_results, slug

ROOT = Path(__file__).parents[1]
PLAIN = [(0.9, 0.2, 0.8), (0.8, 0.1, 0.9), (1.0, 0.3, 0.8)]  # (first, kept, new) of seeds 0, 1, 2
KEEPS = [(0.9, 0.7, 0.8), (0.8, 0.7, 0.8), (1.0, 0.8, 0.8)]
AVERAGE = {"naive": [0.5, 0.5, 0.55], "keeps": [0.75, 0.75, 0.8]}


@pytest.fixture
def two_arms(tmp_path):
    for seed, (plain, keeps) in enumerate(zip(PLAIN, KEEPS)):
        run(tmp_path, "naive", seed, plain)
        run(tmp_path, "keeps", seed, keeps, needs=["buffer"])
    return tmp_path


def command(*arguments, capsys):
    """(exit code, stdout, stderr) of `cl compare`."""
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, arguments)])
    return end.value.code, *capsys.readouterr()


def arm(data, label, section=0):
    return next(a for a in data["sections"][section]["arms"] if a["label"] == label)


def rows_of(path):
    """Rows of a CSV file."""
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- numbers ---------------------------------------------------------------------------------------


def test_a_folder_made_by_hand_is_compared_exactly(two_arms):
    data = cl.compare(two_arms)
    (section,) = data["sections"]
    assert [a["label"] for a in section["arms"]] == ["keeps", "naive"], "best first"
    assert section["baseline"] == "naive"
    for label, x in AVERAGE.items():
        got = arm(data, label)["values"]["average_accuracy"]
        low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
        assert (got["mean"], got["low"], got["high"]) == pytest.approx((np.mean(x), low, high))
        assert got["n"] == 3 and got["method"] == "mean, 95 % t-interval"
    values = arm(data, "keeps")["values"]
    assert values["mean_plasticity"]["mean"] == pytest.approx((0.85 + 0.8 + 0.9) / 3)
    assert values["stability"]["mean"] == pytest.approx((7 / 9 + 7 / 8 + 8 / 10) / 3)
    assert values["forgetting"]["mean"] == pytest.approx(0.5 / 3)
    assert values["backward_transfer"]["mean"] == pytest.approx(-0.5 / 3)
    assert values["stored_bytes"]["mean"] == 2048 and values["updates"]["mean"] == 40
    found = {d["measure"]: d for d in section["differences"]}
    assert {d["arm"] for d in found.values()} == {"keeps"}
    d = found["stability"]
    x = [7 / 9 - 2 / 9, 7 / 8 - 1 / 8, 8 / 10 - 3 / 10]
    assert d["p"] == pytest.approx(stats.ttest_1samp(x, 0).pvalue) == d["p_holm"]
    low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
    assert (d["mean"], d["low"], d["high"]) == pytest.approx((np.mean(x), low, high))
    assert found["average_accuracy"]["p"] is None, "0.25 in every seed: no spread to test against"


def test_p_values_are_corrected_for_the_number_of_arms(tmp_path):
    rng = np.random.default_rng(0)
    kept = {name: 0.5 + rng.normal(0, 0.05, 5) + g for name, g in zip("abc", (0.0, 0.1, 0.2))}
    plain = 0.5 + rng.normal(0, 0.05, 5)
    for seed in range(5):
        run(tmp_path, "naive", seed, (0.9, plain[seed], 0.8))
        for name, x in kept.items():
            run(tmp_path, name, seed, (0.9, x[seed], 0.8))
    (section,) = cl.compare(tmp_path)["sections"]
    found = {d["arm"]: d for d in section["differences"] if d["measure"] == "average_accuracy"}
    p = {name: stats.ttest_rel(x / 2, plain / 2).pvalue for name, x in kept.items()}
    order = sorted(p, key=p.get)
    largest = 0.0
    for rank, name in enumerate(order):
        largest = max(largest, min(1.0, (3 - rank) * p[name]))
        assert found[name]["p"] == pytest.approx(p[name])
        assert found[name]["p_holm"] == pytest.approx(largest)


@pytest.mark.parametrize(
    "gaps,within,says",
    [
        ([0.001, -0.001, 0.002, 0.0, -0.002], 0.01, "within"),
        ([0.03, -0.02, 0.02, 0.0, -0.02], 0.01, "undecided"),
        ([0.2, 0.21, 0.19, 0.22, 0.2], 0.01, "above"),
        ([-0.2, -0.21, -0.19, -0.22, -0.2], 0.01, "below"),
        ([0.02, 0.021, 0.019, 0.022, 0.02], 0.1, "above, within"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 0.01, "equal"),
    ],
)
def test_a_difference_is_said_in_a_word(gaps, within, says, tmp_path):
    base = [0.4, 0.5, 0.45, 0.6, 0.55]
    for seed, (b, gap) in enumerate(zip(base, gaps)):
        run(tmp_path, "naive", seed, (0.9, b, 0.5))
        run(tmp_path, "other", seed, (0.9, b + 2 * gap, 0.5))
    (section,) = cl.compare(tmp_path, within=within)["sections"]
    found = [d for d in section["differences"] if d["measure"] == "average_accuracy"]
    assert [d["says"] for d in found] == [says]
    assert found[0]["mean"] == pytest.approx(np.mean(gaps))


def test_from_ten_policies_on_the_interquartile_mean_is_taken_and_named(tmp_path):
    for seed in range(10):
        of = {"domain": "rl", "score": "normalized_return"}
        run(tmp_path, "naive", seed, (1.0, 0.1 * seed if seed < 9 else 90.0, 1.0), **of)
    data = cl.compare(tmp_path)
    got = arm(data, "naive")["values"]["average_accuracy"]
    assert got["method"] == "interquartile mean, 95 % stratified bootstrap"
    assert got["mean"] == pytest.approx(np.mean([(0.1 * s + 1) / 2 for s in range(2, 8)]))
    seconds = arm(data, "naive")["values"]["train_seconds"]
    assert seconds["method"] == "mean, 95 % stratified bootstrap", "costs are plain means"


def test_the_baseline_can_be_chosen(two_arms):
    assert cl.compare(two_arms, baseline="keeps")["sections"][0]["baseline"] == "keeps"
    with pytest.raises(UnknownName, match="no arm 'kept'; did you mean 'keeps'"):
        cl.compare(two_arms, baseline="kept")


# -- what can't be averaged ------------------------------------------------------------------------


def test_an_undefined_measure_is_a_dash_with_its_reason(two_arms, capsys):
    for seed in range(3):
        late = results_of(*PLAIN[seed], strategy="late", seed=seed)
        late["metrics"] |= {"stability": [None, None], "plasticity": [None, 0.8]}
        late["undefined"] |= {
            "metrics.stability[1]": "scored at the end only",
            "metrics.plasticity[0]": "scored at the end only",
        }
        written(two_arms / "made" / "late" / f"seed{seed}", late)
    code, out, _ = command(two_arms, capsys=capsys)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("│ late"))
    assert row.split("│")[4].strip() == row.split("│")[5].strip() == "—"
    assert "— plasticity, stability of late: scored at the end only" in out
    table = (two_arms / "compare" / "all" / "table.md").read_text()
    assert "- — plasticity, stability of late: scored at the end only" in table


def test_a_measure_that_some_seeds_lack_is_not_averaged_over_the_others(two_arms):
    path = two_arms / "made" / "keeps" / "seed1" / "results.json"
    results = json.loads(path.read_text())
    results["metrics"]["stability"] = [None, None]
    results["undefined"]["metrics.stability[1]"] = "at or below chance"
    path.write_text(json.dumps(results))
    data = cl.compare(two_arms)
    got = arm(data, "keeps")["values"]["stability"]
    assert got["mean"] is None
    assert got["undefined"] == "undefined in seeds 1 of 3: at or below chance"
    assert "stability" not in {d["measure"] for d in data["sections"][0]["differences"]}


def test_streams_are_compared_apart(two_arms):
    for seed in range(3):
        run(two_arms / "more", "naive", seed, (0.5, 0.5, 0.5), stream_hash=f"other{seed}")
        recipe = {"stream.cycles": 2, "train.lr": 0.1}
        run(two_arms / "again", "naive", seed, (0.4, 0.4, 0.4), recipe, stream_hash=f"third{seed}")
    data = cl.compare(two_arms)
    titles = [s["title"] for s in data["sections"]]
    assert len(titles) == len(set(titles)) == 3
    means = [arm(data, "naive", k)["values"]["average_accuracy"]["mean"] for k in range(3)]
    assert sorted(means) == pytest.approx([0.4, 0.5, np.mean(AVERAGE["naive"])])
    (said,) = (n["text"] for n in data["notes"] if n["kind"] == "streams")
    assert said.startswith("3 streams, compared apart: ")


def test_one_run_of_other_data_does_not_take_the_place_of_an_arms_own(two_arms):
    odd = results_of(0.1, 0.1, 0.1, strategy="keeps", seed=0, stream_hash="odd")
    written(two_arms / "a_first" / "keeps" / "seed0", odd)
    data = cl.compare(two_arms)
    got = arm(data, "keeps")["values"]["average_accuracy"]
    assert got["mean"] == pytest.approx(np.mean(AVERAGE["keeps"])) and got["n"] == 3
    assert len(data["sections"]) == 2 and arm(data, "keeps", 1)["seeds"] == [0]


def test_the_same_stream_under_another_path_is_the_same_stream(tmp_path):
    for name, place in (("naive", "/a/x.zip"), ("keeps", "/b/x.zip")):
        for seed in range(2):
            run(tmp_path, name, seed, PLAIN[seed], {"stream.path": place, "train.lr": 0.1})
    data = cl.compare(tmp_path)
    assert len(data["sections"]) == 1 and len(data["sections"][0]["arms"]) == 2


def test_settings_make_arms_and_name_them(tmp_path):
    for size in (20, 50):
        for seed in range(2):
            recipe = {"strategy.size": size, "train.lr": 0.1, "device": f"cuda:{seed}"}
            run(tmp_path, "keeps", seed, KEEPS[seed], recipe, arm=f"keeps,size={size}")
    run(tmp_path, "naive", 0, PLAIN[0], {"train.lr": 0.1})
    data = cl.compare(tmp_path)
    labels = {a["label"]: a["seeds"] for a in data["sections"][0]["arms"]}
    assert labels == {"keeps size=20": [0, 1], "keeps size=50": [0, 1], "naive": [0]}


def test_without_a_recipe_the_folders_name_tells_the_settings(tmp_path):
    for size in (20, 50):
        run(tmp_path, "keeps", 0, KEEPS[0], arm=f"keeps,size={size},train.lr=0.1")
    data = cl.compare(tmp_path)
    assert {a["label"] for a in data["sections"][0]["arms"]} == {"keeps size=20", "keeps size=50"}
    assert any("no recipe.yaml" in n["text"] for n in data["notes"])


def test_runs_that_start_from_the_run_of_their_own_seed_are_one_arm(tmp_path):
    for seed in range(3):
        recipe = {"model.from": f"/base/made/naive/seed{seed}"}
        run(tmp_path, "keeps", seed, KEEPS[seed], recipe)
    (section,) = cl.compare(tmp_path)["sections"]
    assert [a["seeds"] for a in section["arms"]] == [[0, 1, 2]]


SAID = {
    "missing seeds": (
        lambda tmp: run(tmp, "short", 0, KEEPS[0]),
        "short without seeds 1, 2: mean over 1 seed, differences over shared",
    ),
    "settings": (
        lambda tmp: [
            run(tmp, "slow", 0, KEEPS[0], {"train.lr": 0.01}),
            run(tmp, "fast", 0, KEEPS[0], {"train.lr": 0.5}),
        ],
        "train.lr differs: 0.5 (fast); 0.01 (slow)",
    ),
    "version": (
        lambda tmp: run(tmp, "old", 0, KEEPS[0], versions={"cl": "0.1.0", "torch": "2.0"}),
        "torch version differs: 2.4 (keeps, naive); 2.0 (old)",
    ),
    "device": (
        lambda tmp: run(tmp, "quick", 0, KEEPS[0], device="cuda"),
        "device differs: cpu (keeps, naive); cuda (quick)",
    ),
    "tuned": (
        lambda tmp: run(tmp, "well", 0, KEEPS[0], selection={"protocol": "sibling", "trials": 4}),
        "arms are tuned differently: not tuned (keeps, naive); sibling, 4 trials (well)",
    ),
    "calibration": (
        lambda tmp: run(
            *(tmp, "well", 0, KEEPS[0]),
            selection={"protocol": "sibling", "trials": 4, "calibration_seed": True},
        ),
        "made/well/seed0: its settings were chosen on seed 0, left out",
    ),
    "again": (
        lambda tmp: run(tmp / "copy", "keeps", 1, KEEPS[1]),
        "seed 1 again, the same numbers as",
    ),
    "otherwise": (
        lambda tmp: run(tmp / "copy", "keeps", 1, PLAIN[1]),
        "seed 1 again, other numbers than",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_differs_is_said_in_one_line(case, two_arms):
    make, said = SAID[case]
    make(two_arms)
    found = compared([two_arms])
    assert len([line for line in found.lines if said in line]) == 1, found.lines
    got = arm(found.data(), "keeps")["values"]["average_accuracy"]
    assert got["mean"] == pytest.approx(np.mean(AVERAGE["keeps"])), "over its own three runs"


def test_scores_on_different_grids_are_not_compared(tmp_path):
    for name, every in (("naive", 5), ("keeps", 10)):
        made = results_of(*PLAIN[0], strategy=name)
        made["metrics"] |= {"min_acc": 0.1, "wc_acc": 0.2, "eval_every": every}
        written(tmp_path / "made" / name / "seed0", made)
    data = cl.compare(tmp_path)
    assert "min_acc" not in arm(data, "naive")["values"]
    assert any(n["kind"] == "grid" and "every 5, 10" in n["text"] for n in data["notes"])


# -- garbage ---------------------------------------------------------------------------------------


def _spoil(change):
    def make(folder):
        made = results_of(*KEEPS[0], strategy="keeps", seed=7)
        change(made)
        written(folder, made)

    return make


def _raw(content):
    def make(folder):
        folder.mkdir(parents=True)
        (folder / "results.json").write_bytes(content)

    return make


def _huge(folder):
    folder.mkdir(parents=True)
    with open(folder / "results.json", "wb") as file:
        file.truncate(2**30)


def _loop(folder):
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.parent.parent)


def _pipe(folder):
    folder.mkdir(parents=True)
    os.mkfifo(folder / "results.json")


def _begun(folder):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("stream: made\n")


GARBAGE = {
    "truncated": (_raw(b'{"schema": 1, "status": "fin'), "results.json is damaged"),
    "binary": (_raw(bytes(range(256)) * 20), "results.json is damaged"),
    "deep": (_raw(b"[" * 100_000), "damaged: nested too deeply"),
    "no object": (_raw(b"[]"), "has no schema; this version reads schema 1"),
    "huge": (_huge, "too large to be results: 1,073,741,824 bytes"),
    "another schema": (
        _spoil(lambda r: r.update(schema=2, versions={"cl": "7.1"})),
        "has schema 2, written by cl 7.1; this version reads schema 1",
    ),
    "a missing key": (_spoil(lambda r: r.pop("R")), "does not follow schema 1: R: field required"),
    "a wrong type": (
        _spoil(lambda r: r["R"][1].__setitem__(0, "0.9")),
        "R[1][0]: input should be a valid number",
    ),
    "not a number": (
        _spoil(lambda r: r["R"][1].__setitem__(0, float("nan"))),
        "R[1][0]: input should be a finite number",
    ),
    "too few scores": (
        _spoil(lambda r: r["R"][1].pop()),
        "does not follow schema 1: R[1] has 1 scores for 2 evals",
    ),
    "unfinished": (
        _spoil(lambda r: r.update(status="running", R=r["R"][:1], V=r["V"][:1])),
        "unfinished after 1 of 2 experiences, left out; cl run --resume",
    ),
    "failed": (
        _spoil(lambda r: r.update(status="failed")),
        "failed after 2 of 2 experiences, left out; see",
    ),
    "empty": (lambda folder: folder.mkdir(parents=True), "is empty"),
    "begun": (_begun, "begun, no results.json, left out"),
    "a loop": (_loop, "is a link that leads back to"),
    "a pipe": (_pipe, "holds no results.json"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_said_in_one_line_and_never_averaged(case, two_arms):
    make, said = GARBAGE[case]
    place = two_arms / "zz_spoiled" / "arm"
    make(place)
    found = compared([two_arms])
    (line,) = (line for line in found.lines if str(place) in line)
    assert said in line and "\n" not in line
    data = found.data()
    for label, x in AVERAGE.items():
        got = arm(data, label)["values"]["average_accuracy"]
        assert got["mean"] == pytest.approx(np.mean(x)) and got["n"] == 3
    assert len(data["sections"][0]["arms"]) == 2


def test_all_garbage_at_once_is_said_on_the_terminal_and_the_rest_compared(two_arms, capsys):
    for k, (make, _) in enumerate(GARBAGE.values()):
        make(two_arms / f"spoiled{k}" / "arm")
    code, out, err = command(two_arms, capsys=capsys)
    assert code == 0 and not err
    for k, (_, said) in enumerate(GARBAGE.values()):
        assert len([s for s in out.splitlines() if said in s and f"spoiled{k}/" in s]) == 1
    assert "│ keeps    │     3 │ 0.767 ± 0.072 │" in out


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_alone_is_nothing_to_compare(case, tmp_path, capsys):
    make, said = GARBAGE[case]
    make(tmp_path / "spoiled" / "arm")
    code, out, err = command(tmp_path, capsys=capsys)
    assert code == 2 and not out
    *notes, last = err.splitlines()
    assert len(notes) == 1 and said in notes[0]
    assert last == f"cl: nothing to compare in {tmp_path}: no finished run"


def test_a_damaged_recipe_is_said(two_arms):
    (two_arms / "made" / "keeps" / "seed0" / "recipe.yaml").write_text("{{{")
    (said,) = (line for line in compared([two_arms]).lines if "can't be used" in line)
    assert "seed0/recipe.yaml" in said


def test_much_of_a_kind_is_summed_up(two_arms):
    for k in range(40):
        (two_arms / f"empty{k}").mkdir()
    found = compared([two_arms])
    assert sum(line.endswith(" is empty") for line in found.lines) == 20
    assert "and 20 more lines on: folders without results" in found.lines
    assert sum(note.kind == "empty" for note in found.notes) == 40


def test_names_of_any_kind_stay_in_one_piece(tmp_path, capsys):
    name = "<b>[red]x[/red] | $a_b$\n\x1b[31m"
    made = results_of(*PLAIN[0], strategy=name)
    written(tmp_path / "arm" / "seed0", made)
    code, out, _ = command(tmp_path, capsys=capsys)
    assert code == 0 and "<b>[red]x[/red] | $a_b$" in out and "\x1b[31m" not in out
    page = (tmp_path / "compare" / "all" / "index.html").read_text()
    assert "&lt;b&gt;[red]x[/red] | $a_b$" in page and "<b>[red]" not in page
    table = (tmp_path / "compare" / "all" / "table.md").read_text()
    assert "\\<b>\\[red]x\\[/red] \\| $a\\_b$" in table


def test_500_runs_and_garbage_among_them_take_less_than_ten_seconds(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(50):
        for seed in range(10):
            scores = rng.uniform(0.2, 0.9, 3).round(3).tolist()
            run(tmp_path, f"arm{k}", seed, scores, {"train.lr": 0.1})
    for k in range(20):
        _raw(b'{"schema"')(tmp_path / f"broken{k}" / "seed0")
    started = time.process_time()
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path)])
    assert end.value.code == 0
    assert time.process_time() - started < 10
    data = json.loads((tmp_path / "compare" / "all" / "compare.json").read_text())
    assert [len(a["seeds"]) for a in data["sections"][0]["arms"]] == [10] * 50
    assert sum(n["kind"] == "unreadable" for n in data["notes"]) == 20


# -- the command -----------------------------------------------------------------------------------


def test_tables_are_written_and_agree(two_arms, capsys):
    code, out, err = command(two_arms / "made", capsys=capsys)
    place = two_arms / "compare" / "made"
    assert code == 0 and not err
    assert out.rstrip().splitlines()[-3:] == [
        f"page    {place}/index.html",
        f"tables  {place}/table.md, arms.csv, runs.csv, differences.csv, compare.json",
        f"curves  tensorboard --logdir {place}/tensorboard",
    ]
    rows = rows_of(place / "runs.csv")
    assert len(rows) == 6
    got = {(r["strategy"], int(r["seed"])): float(r["average_accuracy"]) for r in rows}
    assert got == pytest.approx({(n, s): AVERAGE[n][s] for n in AVERAGE for s in range(3)})
    rows = rows_of(place / "arms.csv")
    means = {r["strategy"]: float(r["mean"]) for r in rows if r["measure"] == "average_accuracy"}
    assert means == pytest.approx({n: np.mean(x) for n, x in AVERAGE.items()})
    rows = rows_of(place / "differences.csv")
    assert {(r["strategy"], r["minus"]) for r in rows} == {("keeps", "naive")}
    table = (place / "table.md").read_text()
    assert (
        "| keeps | 3 | 0.767 ± 0.072 | 0.850 ± 0.124 | 0.818 ± 0.127 | 2.0 KiB | buffer |" in table
    )


def test_comparing_again_gives_the_same_and_leaves_runs_as_they_are(two_arms, capsys):
    before = {p: p.stat().st_mtime_ns for p in two_arms.rglob("*")}
    _, first, _ = command(two_arms, capsys=capsys)
    files = sorted(p for p in two_arms.rglob("*") if "tfevents" not in p.name)
    _, second, _ = command(two_arms, capsys=capsys)
    assert first == second, "the first one's own files are no runs"
    assert files == sorted(p for p in two_arms.rglob("*") if "tfevents" not in p.name)
    events = list((two_arms / "compare").rglob("events.out.tfevents*"))
    assert len(events) == 3, "one for each arm and one for all of them"
    after = {p: p.stat().st_mtime_ns for p in before}
    assert after == before and {p.name for p in two_arms.iterdir()} == {"made", "compare"}


@pytest.mark.parametrize(
    "given,place",
    [
        (["made"], "compare/made"),
        (["."], "compare/all"),
        (["made/naive"], "compare/made-naive"),
        (["made/naive", "made/keeps"], "compare/made-naive+made-keeps"),
        (["made/keeps/seed0"], "compare/made-keeps-seed0"),
        (["made/keeps/seed0/results.json"], "compare/made-keeps-seed0"),
        (["other place/é"], None),
    ],
)
def test_the_default_place_is_beside_the_runs(given, place, two_arms, monkeypatch):
    monkeypatch.chdir(two_arms)
    written(two_arms / "other place" / "é", results_of(*PLAIN[0]))
    assert default_out(compared(given)) == Path(place or f"other place/compare/{slug('é')}")


REFUSED = {
    "nowhere": (["nope"], "no folder"),
    "nearly": (["mede"], "did you mean 'made'"),
    "a file": (["made/naive/seed0/notes.txt"], "takes run folders or folders of them"),
    "nothing": ([], "takes run folders or folders of them"),
    "baseline": (["made", "--baseline", "nave"], "no arm 'nave'; did you mean 'naive'"),
    "match": (["made", "--match", "newtask=0.9"], "did you mean 'new_task'"),
    "level": (["made", "--match", "new_task=90"], "above 0 and up to 1, got '90'"),
    "no level": (["made", "--match", "new_task"], "takes new_task=SCORE"),
    "within": (["made", "--within", "0"], "--within must be above 0"),
    "within what": (["made", "--within", "x"], "not a valid float"),
    "in a run": (["made", "--out", "made/naive/seed0"], "is a run folder"),
    "on a file": (["made", "--out", "made/naive/seed0/notes.txt"], "is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_in_one_line(case, two_arms, capsys, monkeypatch):
    monkeypatch.chdir(two_arms)
    (two_arms / "made" / "naive" / "seed0" / "notes.txt").write_text("x")
    arguments, said = REFUSED[case]
    code, out, err = command(*arguments, capsys=capsys)
    assert code == 2 and not out and said in err and len(err.splitlines()) == 1
    assert not (two_arms / "compare").exists()


def test_from_python_it_is_data_and_writes_nothing_unless_asked(two_arms, tmp_path_factory):
    data = cl.compare([two_arms / "made" / "naive", two_arms / "made" / "keeps"])
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert {p.name for p in two_arms.iterdir()} == {"made"}
    place = tmp_path_factory.mktemp("out") / "deep" / "er"
    cl.compare(two_arms, out=place)
    assert (place / "index.html").is_file()
    assert {p.name for p in two_arms.iterdir()} == {"made"}
    written_down = json.loads((place / "compare.json").read_text())
    assert written_down["sections"] == cl.compare(two_arms)["sections"]
    with pytest.raises(DataError, match="nothing to compare"):
        cl.compare(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UsageError, match="no folder"):
        cl.compare(two_arms / "nope")
    with pytest.raises(BadValue, match="--within"):
        cl.compare(two_arms, within=-1)


def test_comparing_never_imports_torch(two_arms):
    code = (
        "import sys, cl.comparison.command, cl.comparison.files, cl\n"
        "cl.compare(sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(two_arms)], check=True, cwd=ROOT)


def test_hidden_folders_are_passed_over(two_arms):
    run(two_arms / ".old", "naive", 0, (0.1, 0.1, 0.1))
    found = compared([two_arms])
    assert len(found.runs) == 6 and not [n for n in found.notes if n.kind == "duplicate"]


def test_overlapping_folders_count_every_run_once(two_arms):
    found = compared([two_arms, two_arms / "made" / "naive", two_arms])
    assert len(found.runs) == 6 and not [n for n in found.notes if n.kind == "duplicate"]


def test_links_to_runs_are_followed(two_arms, tmp_path_factory):
    chosen = tmp_path_factory.mktemp("chosen")
    (chosen / "one").symlink_to(two_arms / "made" / "naive")
    (chosen / "two").symlink_to(two_arms / "made" / "keeps" / "seed0")
    assert len(compared([chosen]).runs) == 4


def test_real_runs_are_compared(tmp_path):
    settings = {"out": str(tmp_path), "train": {"updates": 3}, "stream": {"n_experiences": 2}}
    runs = {
        (name, seed): cl.run("split_digits", name, seed=seed, **settings)
        for name in ("naive", "replay")
        for seed in (0, 1)
    }
    data = cl.compare(tmp_path)
    for name in ("naive", "replay"):
        finals = [runs[name, seed].R[-1].mean() for seed in (0, 1)]
        got = arm(data, name)["values"]["average_accuracy"]
        assert got["mean"] == pytest.approx(np.mean(finals))
        assert arm(data, name)["runs"] == [str(runs[name, seed].dir) for seed in (0, 1)]
    assert arm(data, "replay")["needs"] == ["buffer"]
    assert not [n for n in data["notes"] if n["kind"] in ("settings", "recipe", "unreadable")]


@pytest.mark.parametrize("case", [c for c in GARBAGE if c.startswith(("a ", "tr", "too", "no"))])
def test_every_reader_refuses_what_does_not_follow_the_schema(case, tmp_path):
    make, said = GARBAGE[case]
    if case in ("a loop", "a pipe"):
        pytest.skip("no results.json")
    make(tmp_path / "run")
    with pytest.raises(DataError) as error:
        read_results(tmp_path / "run")
    assert said in str(error.value)


def test_keys_that_a_later_version_adds_are_ignored(two_arms):
    path = two_arms / "made" / "keeps" / "seed0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": {"x": [1, None]}}))
    assert read_results(path.parent)["later"] == {"x": [1, None]}
