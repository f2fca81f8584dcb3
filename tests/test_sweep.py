"""Many runs: what is planned and refused, what is left out, gone on with, run again, reported."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fleet_tasks import always, once

import cl
from cl.cli import main
from cl.errors import BadValue, DataError, RunError, UnknownName
from cl.fleet import Workers, fleet
from cl.folder import comparable
from cl.identity import identity, recorded
from cl.reproduce import reproduce
from cl.request import Request
from cl.sweeps import alternatives, from_arguments, plan

ROOT = Path(__file__).parents[1]
QUICK = {"stream.n_experiences": 2, "train.updates": 2}
GIVEN = [f"{key}={value}" for key, value in QUICK.items()]


def names(*arguments):
    return [p.name for p in from_arguments(list(arguments))[0]]


def command(*arguments, check=True, **kwargs):
    """`cl ...` as a process of its own: (exit code, stdout, stderr)."""
    line = [sys.executable, "-m", "cl.cli", *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, **kwargs)
    assert not check or done.returncode == 0, done.stderr
    return done.returncode, done.stdout, done.stderr


def results_under(folder):
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(Path(folder).glob("[!.]*/*/seed*/results.json"))
    }


# -- what is planned ----------------------------------------------------------------------------


def test_strategies_seeds_and_keys_are_combined():
    planned = from_arguments(
        ["split_digits", "naive,replay+fpf", "train.lr=0.01,0.1", "seed=0,1,2", "threads=2"]
    )[0]
    expected = itertools.product(("naive", "replay+fpf"), (0.01, 0.1), (0, 1, 2))
    asked = [p.request for p in planned]
    found = [(r.strategy_name, r.given["train"]["lr"], r.top["seed"]) for r in asked]
    assert found == list(expected)
    assert planned[0].name == "naive,train.lr=0.01 seed 0"
    assert {p.request.top["threads"] for p in planned} == {2}


def test_a_strategys_own_key_varies_it_alone():
    found = names(
        *("split_digits", "naive,ewc,replay+ewc", "strategy.ewc.lam=1,10"),
        *("strategy.replay.size=5,7", "seed=3"),
    )
    assert found == [
        "naive seed 3",
        "ewc,lam=1 seed 3",
        "ewc,lam=10 seed 3",
        *(f"replay+ewc,lam={m},size={n} seed 3" for m in (1, 10) for n in (5, 7)),
    ]


def test_semicolons_separate_what_is_in_a_list():
    planned = from_arguments(
        [
            "split_digits",
            "naive",
            "train.augment=crop;flip,none",
            "probes=weight_norm,dormant_units",
        ]
    )[0]
    assert [p.request.given["train"]["augment"] for p in planned] == [["crop", "flip"], []]
    assert [p.request.top["probes"] for p in planned] == [["weight_norm", "dormant_units"]] * 2
    assert Request.of("split_digits", "naive", {"train.augment": "crop,flip"}).given["train"] == {
        "augment": ["crop", "flip"]
    }


def test_in_python_a_list_holds_alternatives():
    planned = plan("split_digits", ["naive"], {"train.lr": [0.1, 0.2], "seed": (4, 5)})
    found = [(p.request.given["train"]["lr"], p.request.top["seed"]) for p in planned]
    assert found == [(0.1, 4), (0.1, 5), (0.2, 4), (0.2, 5)]
    assert alternatives("train.lr", 0.1) == [0.1]


def test_a_recipe_is_varied_like_a_stream_and_a_strategy(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stream: split_digits\nstrategy: ewc\nseed: 7\ntrain.lr: 0.3\nexpect: null\n")
    planned = from_arguments([str(path), "strategy.lam=1,2"])[0]
    assert [p.name for p in planned] == ["ewc,lam=1 seed 7", "ewc,lam=2 seed 7"]
    assert all(p.request.given["train"]["lr"] == 0.3 for p in planned)
    assert names(str(path), "seed=0,1") == ["ewc seed 0", "ewc seed 1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["split_digits"], "cl sweep takes STREAM STRATEGY,STRATEGY"),
        (["split_digits", "naive,nave"], "did you mean 'naive'"),
        (["split_digits", "naive,naive"], "strategy naive is given twice"),
        (["split_digits", "naive", "seed=0,1,0"], "seed 0 is given twice"),
        (["split_digits", "naive", "seed=0,,1"], "lacks a value between its commas"),
        (["split_digits", "naive", "seed=0,x"], "seed must be int"),
        (["split_digits", "naive", "train.lr=0.1,-1"], "train.lr must be float > 0"),
        (["split_digits", "naive,ewc", "strategy.lam=1,2"], "strategy.NAME.lam is for the strat"),
        (["split_digits", "naive,ewc", "strategy.ewc.lm=1,2"], "did you mean 'lam'"),
        (["split_digits", "ewc", "strategy.lam=1", "strategy.ewc.lam=2"], "given twice"),
        (["split_digits", "ewc", "strategy.si.c=1,2"], "strategy.si.c"),
        (["split_digits", "ewc", "strategy.lam=1,1.0"], "are the same run"),
        (["split_digits", "naive", "workers=0"], "workers must be int ≥ 1"),
        (["split_digits", "naive", "backend=lokyy"], "did you mean 'loky'"),
        (["split_digits", "naive", "cluster=here:1"], "loky is this machine"),
        (["split_digits", "naive", "model=mlp,mpl"], "did you mean 'mlp'"),
        (["missing.yaml", "seed=1,2"], "no recipe missing.yaml"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *arguments, f"out={tmp_path}/runs"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_what_keys_tell_is_refused_without_torch(tmp_path):
    code, err = without("torch", "sweep", "split_digits", "naive,ewc", "strategy.lam=1,2")
    assert code == 2, err


def without(modules, *arguments):
    """(exit code, stderr) of a command; 99 if it imports one of the modules."""
    code = (
        "import sys; from cl.cli import main\n"
        f"try: main({list(map(str, arguments))!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        f"sys.exit(99 if set({modules.split()!r}) & set(sys.modules) else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_what_only_torch_can_tell_is_refused_before_anything_is_run(tmp_path, capsys):
    arguments = ["sweep", "split_digits", "naive,packnet", "seed=0,1", *GIVEN, "workers=1"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, f"out={tmp_path}"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "packnet: packnet needs task_id_train" in err and "Traceback" not in err
    assert not results_under(tmp_path) and not list(tmp_path.glob(".sweep-*"))


def test_a_thousand_runs_are_planned_in_a_second():
    started = time.process_time()
    rates = ",".join(str(k / 1000) for k in range(1, 101))
    planned = from_arguments(
        ["split_digits", "naive,ewc", f"train.lr={rates}", "seed=0,1,2,3,4"],
    )[0]
    assert len({p.known for p in planned}) == 1000
    assert time.process_time() - started < 1.5


# -- how a run is known -------------------------------------------------------------------------


def asked(strategy="ewc", stream="split_digits", **keys):
    return identity(
        Request.of(stream, strategy, {k.replace("__", "."): v for k, v in keys.items()})
    )


def test_a_run_is_known_by_what_changes_it_and_not_by_how_it_is_asked_for(tmp_path):
    same = [
        asked(),
        asked(strategy__lam=default_of("ewc", "lam")),
        asked(strategy__ewc__lam=default_of("ewc", "lam")),
        asked(stream__n_experiences=default_of("split_digits", "n_experiences", "streams")),
        asked(stream__cycles=1, out=str(tmp_path)),
    ]
    assert len(set(same)) == 1 and len(same[0]) == 16
    other = [
        asked(seed=1),
        asked(strategy="si"),
        asked(strategy__lam=0.123),
        asked(stream__cycles=2),
        asked(stream__seed=0),
        asked(threads=2),
        asked(probes="weight_norm"),
        asked(model="mlp"),
        asked(train__lr=0.3),
        asked(eval__every=5),
    ]
    assert len({same[0], *other}) == 1 + len(other)


def default_of(name, parameter, kind="strategies"):
    return cl.registry.find(kind, name).params()[parameter].default


def test_data_that_has_changed_makes_another_run(tmp_path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"one")
    path = {"stream": "image_folder", "stream__path": str(tmp_path / "photos")}
    before = asked(**path)
    assert asked(**path) == before
    (folder / "2.png").write_bytes(b"two")
    assert asked(**path) != before


def test_a_base_that_was_trained_again_makes_another_run(tmp_path):
    saved = tmp_path / "base" / "checkpoint" / "000000002-000001"
    saved.mkdir(parents=True)
    (saved / "checksums.json").write_text('{"model.safetensors": "1"}')
    before = asked(model__from=str(tmp_path / "base"))
    (saved / "checksums.json").write_text('{"model.safetensors": "2"}')
    assert asked(model__from=str(tmp_path / "base")) != before


# -- running ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by two workers: (its folder, what it printed)."""
    out = tmp_path_factory.mktemp("swept")
    arguments = ("sweep", "split_digits", "naive,replay", "seed=0,1", *GIVEN, "workers=2")
    return out, arguments, command(*arguments, f"out={out}")


def test_a_sweep_leaves_the_folders_and_the_numbers_of_single_runs(swept, tmp_path):
    out, _, (_, printed, err) = swept
    assert "4 runs: 4 run now" in printed and "[4/4] " in err and "4 runs by 2 workers" in err
    found = results_under(out)
    assert len(found) == 4
    for place, results in found.items():
        alone = cl.run(
            "split_digits", results["strategy"], seed=results["seed"], out=str(tmp_path), **QUICK
        )
        assert str(alone.dir.relative_to(tmp_path)) == place
        assert comparable(alone.results) == comparable(results)
        assert (alone.dir / "recipe.yaml").read_text() == (out / place / "recipe.yaml").read_text()
        known = recorded(alone.dir)
        assert known == recorded(out / place) and None not in known
    assert not list(out.glob(".sweep-*")) and not (out / ".old").exists()


def test_what_has_finished_is_not_run_again_and_torch_not_imported(swept):
    out, arguments, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    code, printed = without("torch joblib", *arguments, f"out={out}")
    assert code == 0 and printed.startswith("4 runs: 4 finished before"), printed
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_what_cl_run_has_finished_is_not_run_again(tmp_path):
    first = cl.run("split_digits", "naive", seed=1, out=str(tmp_path), **QUICK)
    written = (first.dir / "results.json").stat().st_mtime_ns
    found = cl.sweep("split_digits", "naive", seed=[0, 1], out=str(tmp_path), workers=1, **QUICK)
    assert [r.results["seed"] for r in found] == [0, 1]
    assert found[1].dir.samefile(first.dir)
    assert (first.dir / "results.json").stat().st_mtime_ns == written


def test_a_run_asked_for_in_other_words_is_recognised_by_its_resolved_recipe(tmp_path):
    first = cl.run("split_digits", "naive", out=str(tmp_path), **QUICK)
    default = yaml.safe_load((first.dir / "recipe.yaml").read_text())["train.batch_size"]
    written = (first.dir / "results.json").stat().st_mtime_ns
    keys = {**QUICK, "train.batch_size": default}
    (again,) = cl.sweep("split_digits", "naive", out=str(tmp_path), workers=1, **keys)
    assert again.dir.samefile(first.dir) and not (tmp_path / ".old").exists()
    assert (again.dir / "results.json").stat().st_mtime_ns == written


SOURCE = '''
from cl import Strategy


class Nudge(Strategy):
    """Moves the head."""

    def after_training_exp(self, loop):
        loop.model.head.bias.data += 0.5
'''


def test_a_run_of_other_sources_is_made_again(tmp_path):
    path, out = tmp_path / "own.py", tmp_path / "runs"
    path.write_text(SOURCE)
    line = ("sweep", "split_digits", f"{path}:Nudge", *GIVEN, "workers=1", f"out={out}")
    assert "1 run: 1 run now" in command(*line)[1]
    assert "1 run: 1 finished before" in command(*line)[1]
    path.write_text(SOURCE.replace("0.5", "-0.5"))
    assert "1 run: 1 run now" in command(*line)[1]
    (old,) = out.glob(".old/**/results.json")
    (new,) = out.glob("split_digits/*/seed0/results.json")
    assert json.loads(old.read_text())["sources"] != json.loads(new.read_text())["sources"]


@pytest.mark.parametrize("learned", [0, 2])
def test_a_run_that_was_stopped_is_gone_on_with(learned, tmp_path):
    keys = {"stream.n_experiences": 3, "train.updates": 2, "out": str(tmp_path)}
    whole = cl.run("split_digits", "replay", **keys)
    kept = tmp_path / "kept"
    shutil.copytree(whole.dir, kept)
    for folder in (whole.dir / "checkpoint").iterdir():
        if int(folder.name.rpartition("-")[2]) != learned:
            shutil.rmtree(folder)
    results = whole.dir / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    assert len(list((whole.dir / "checkpoint").iterdir())) == (learned > 0)
    (again,) = cl.sweep("split_digits", "replay", workers=1, **keys)
    assert again.dir.samefile(whole.dir) and not (tmp_path / ".old").exists()
    assert (again.dir / "curves.jsonl").read_text() == (kept / "curves.jsonl").read_text()
    finished = json.loads((kept / "results.json").read_text())
    assert comparable(again.results) == comparable(finished)
    log = (again.dir / "log.txt").read_text()
    assert log.count("experience 0 ") == (1 if learned else 2), "what was learned is not repeated"


def test_what_goes_on_with_other_sources_has_none(tmp_path):
    keys = {"stream.n_experiences": 3, "train.updates": 2, "out": str(tmp_path)}
    whole = cl.run("split_digits", "naive", **keys)
    for folder in sorted((whole.dir / "checkpoint").iterdir()):
        if not folder.name.endswith("-000002"):
            shutil.rmtree(folder)
    results = whole.dir / "results.json"
    text = results.read_text().replace('"finished"', '"running"')
    results.write_text(text.replace(recorded(whole.dir)[2], "0" * 8))
    again = cl.runner.resume(whole.dir)
    assert again.results["sources"] is None and "several sources" in str(again.results["undefined"])
    cl.sweep("split_digits", "naive", workers=1, **keys)
    assert len(list(tmp_path.glob(".old/**/results.json"))) == 1


def test_a_failed_run_is_reported_with_its_log_and_the_others_go_on(tmp_path, capsys):
    arguments = ["split_digits", "naive", "train.lr=1e30,0.05", "seed=0,1", *GIVEN, "workers=1"]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *arguments, f"out={tmp_path}"])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "4 runs: 2 run now, 2 failed" in out and "Traceback" not in out + err
    lines = [line for line in out.splitlines() if line.startswith("failed")]
    assert len(lines) == 2 and all("train.lr=1e30 seed" in line for line in lines)
    for line in lines:
        assert "the run failed" in Path(line.rpartition("; log ")[2]).read_text()
    good = [r for r in results_under(tmp_path).values() if r["status"] == "finished"]
    assert sorted(r["seed"] for r in good) == [0, 1]
    with pytest.raises(RunError, match=r"2 of 4 runs failed: naive,train.lr=1e\+30 seed 0"):
        keys = {**QUICK, "train.lr": [1e30, 0.05], "seed": [0, 1]}
        cl.sweep("split_digits", "naive", workers=1, out=str(tmp_path), **keys)


# -- workers that die ---------------------------------------------------------------------------


def test_a_worker_that_dies_costs_only_what_it_was_doing(tmp_path):
    items = [str(tmp_path / f"{k}{'.dies' if k in (1, 4) else ''}") for k in range(8)]
    ended = []
    with fleet(Workers(2), tmp_path) as team:
        found = team.carry_out(once, items, lambda k, outcome: ended.append(k))
    assert [outcome.value for outcome in found] == [Path(item).name for item in items]
    assert sorted(ended) == list(range(8)), "each one is told of once"
    assert not list(tmp_path.glob(".sweep-*"))


def test_a_task_that_kills_every_worker_fails_and_takes_no_other_with_it(tmp_path):
    items = ["a", "dies", "b", "fails", "c", "breaks"]
    with fleet(Workers(2), tmp_path) as team:
        found = team.carry_out(always, items)
    assert [outcome.value for outcome in found] == ["a", None, "b", None, "c", None]
    assert found[1].error == "its worker died 3 times"
    assert (found[3].error, found[3].exit_code) == ("as it was told", 2)
    assert "ZeroDivisionError" in found[5].error and "always" in found[5].error


DIES = '''
import os
import signal
from pathlib import Path

from cl import Strategy


class Dies(Strategy):
    """Takes its process with it after the first experience, once."""

    def __init__(self, *, marker: str):
        self.marker = marker

    def after_training_exp(self, loop):
        marker = Path(f"{self.marker}{loop.seed}")
        if loop.experience.index == 1 and not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_run_whose_worker_died_goes_on_and_ends_the_same(tmp_path):
    path = tmp_path / "dies.py"
    path.write_text(DIES)
    (tmp_path / "known0").write_text("")
    strategy, keys = f"{path}:Dies", {**QUICK, "stream.n_experiences": 3}
    whole = cl.run(
        "split_digits",
        strategy,
        strategy={"marker": f"{tmp_path}/known"},
        out=f"{tmp_path}/a",
        **keys,
    )
    (tmp_path / "killed1").write_text("")  # the other one's worker does not die of itself
    own = {"strategy": {"marker": f"{tmp_path}/killed"}, "out": f"{tmp_path}/b", **keys}
    first, second = cl.sweep("split_digits", strategy, seed=[0, 1], workers=2, **own)
    assert (tmp_path / "killed0").exists()
    assert first.results["R"] == whole.results["R"]
    assert second.results["status"] == "finished"
    assert not (tmp_path / "b" / ".old").exists()


@pytest.mark.slow
def test_a_worker_that_dies_does_not_lose_a_claim(tmp_path):
    from test_reproduce import SMALL

    path = tmp_path / "dies.py"
    path.write_text(DIES)
    dying = {"strategy": f"{path}:Dies", "strategy.marker": f"{tmp_path}/m"}
    bar = {"measure": "average_accuracy", "of": "naive", "minus": "dies", "at_least": 0.1}
    claim = {**SMALL, "arms": {"naive": {"strategy": "naive"}, "dies": dying}, "primary": bar}
    claim |= {"null_control": bar, "settings": {**QUICK, "stream.n_experiences": 3}}
    (tmp_path / "small.yaml").write_text("# small: dies\n" + yaml.safe_dump(claim))
    seen = []
    loaded = cl.claims.load(str(tmp_path / "small.yaml"))
    reproduce(loaded, out=tmp_path, workers=2, seeds=[0, 1], progress=lambda *a: seen.append(a))
    assert (tmp_path / "m0").exists() and (tmp_path / "m1").exists()
    assert sorted((arm, seed) for _, _, arm, seed, _ in seen) == [
        ("dies", 0),
        ("dies", 1),
        ("naive", 0),
        ("naive", 1),
    ]


def stopped_in_the_middle(line, number, done=1):
    """A sweep that is sent a signal when so many runs have ended: (exit code, stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cl.cli", *line],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for text in process.stderr:
        if text.startswith(f"[{done}/"):
            process.send_signal(number)
            break
    rest = process.stderr.read()
    return process.wait(), rest


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_sweep_goes_on_by_the_same_command(number, code, workers, tmp_path):
    line = ["sweep", "split_digits", "naive", "seed=0,1,2,3,4", "train.epochs=2"]
    line += [f"workers={workers}", f"out={tmp_path}"]
    got, err = stopped_in_the_middle(line, number)
    assert got == code and "the same command goes on from here" in err and "Traceback" not in err
    statuses = [r["status"] for r in results_under(tmp_path).values()]
    assert "finished" in statuses and statuses.count("finished") < 5
    assert "5 runs:" in command(*line)[1]
    assert [r["status"] for r in results_under(tmp_path).values()] == ["finished"] * 5


def killed_now_and_then(line, out, kills):
    """A sweep whose workers are killed, one after every second run that ends: how many were."""
    process = subprocess.Popen([sys.executable, "-m", "cl.cli", *line], cwd=ROOT)
    killed, after = 0, 1
    while process.poll() is None:
        time.sleep(0.05)
        finished = sum(r["status"] == "finished" for r in read_as_they_are(out))
        if killed == kills or finished < after:
            continue
        for note in out.glob(".sweep-*/*.begun"):
            if note.with_suffix(".json").exists():
                continue
            try:
                os.kill(int(note.read_text()), signal.SIGKILL)
            except (ProcessLookupError, FileNotFoundError, ValueError):
                continue
            killed, after = killed + 1, finished + 2
            break
    return process.returncode, killed


def read_as_they_are(out):
    for path in out.glob("split_digits/*/seed*/results.json"):
        try:
            yield json.loads(path.read_text())
        except (OSError, ValueError):
            continue


TWELVE = ("split_digits", "naive,replay,ewc", "seed=0,1,2,3", "train.epochs=2", "workers=2")


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve runs that nobody has disturbed."""
    out = tmp_path_factory.mktemp("twelve")
    command("sweep", *TWELVE, f"out={out}")
    return out


def assert_same_runs(left, right):
    """Bit by bit, but for times, memory, versions, device."""
    first, second = results_under(left), results_under(right)
    assert first.keys() == second.keys() and len(first) == 12
    for place in first:
        assert comparable(first[place]) == comparable(second[place])
        curves = ((out / place / "curves.jsonl").read_text() for out in (left, right))
        assert len(set(curves)) == 1


@pytest.mark.slow
def test_twelve_runs_whose_workers_are_killed_four_times_all_end_the_same(twelve, tmp_path):
    code, killed = killed_now_and_then(["sweep", *TWELVE, f"out={tmp_path}"], tmp_path, 4)
    assert (code, killed) == (0, 4)
    assert_same_runs(twelve, tmp_path)


# -- clusters -----------------------------------------------------------------------------------

SMALL_RAY = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]


class Processes:
    """Started for a test, ended with it, whole groups of them."""

    def __init__(self, tmp_path):
        self.started, self.log = [], open(tmp_path / "cluster.log", "w")  # noqa: SIM115
        path = {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.env = {**os.environ, **path}

    def start(self, *line):
        self.started.append(
            subprocess.Popen(
                line,
                stdout=self.log,
                stderr=self.log,
                env=self.env,
                start_new_session=True,
                cwd="/",
            )
        )

    def end(self):
        for process in reversed(self.started):
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.log.close()


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.end()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(ready, seconds=120):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "the cluster does not come up"
        time.sleep(1)


@pytest.mark.slow
def test_on_two_ray_nodes_with_a_killed_worker_results_are_those_of_this_machine(
    twelve, tmp_path, processes
):
    pytest.importorskip("ray", reason="needs the extra ray")
    address = f"127.0.0.1:{free_port()}"
    head = ["ray", "start", "--head", f"--port={address.rpartition(':')[2]}", *SMALL_RAY]
    processes.start(*head, "--include-dashboard=false", f"--temp-dir={tmp_path}/r")
    count = f"import ray; ray.init('{address}', logging_level='ERROR'); print(len(ray.nodes()))"

    def nodes():
        done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True)
        return int(done.stdout) if done.returncode == 0 else 0

    wait_until(lambda: nodes() == 1)
    processes.start("ray", "start", f"--address={address}", *SMALL_RAY)
    wait_until(lambda: nodes() == 2)
    out = tmp_path / "runs"
    line = ["sweep", *TWELVE, f"out={out}", "backend=ray", f"cluster={address}"]
    assert killed_now_and_then(line, out, 1) == (0, 1)
    assert_same_runs(twelve, out)


@pytest.mark.slow
def test_on_two_dask_workers_of_which_one_is_killed_results_are_those_of_this_machine(
    twelve, tmp_path, processes
):
    pytest.importorskip("distributed", reason="needs the extra dask")
    file = tmp_path / "scheduler.json"
    at = ["--host", "127.0.0.1", "--port", str(free_port()), "--no-dashboard"]
    processes.start("dask", "scheduler", *at, "--scheduler-file", str(file))
    wait_until(file.exists)
    for _ in range(2):
        more = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
        processes.start("dask", "worker", "--scheduler-file", str(file), *more)
    out = tmp_path / "runs"
    line = ["sweep", *TWELVE, f"out={out}", "backend=dask", f"cluster={file}"]
    assert killed_now_and_then(line, out, 1) == (0, 1)
    assert_same_runs(twelve, out)


@pytest.mark.parametrize(
    ("backend", "said"),
    [("ray", "no Ray cluster at 127.0.0.1:1"), ("dask", "no Dask cluster with workers at 127")],
)
def test_a_cluster_that_is_not_there_is_said_in_one_line(backend, said, tmp_path):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend], reason=f"extra {backend}")
    line = ("sweep", "split_digits", "naive", f"backend={backend}", "cluster=127.0.0.1:1")
    code, _, err = command(*line, f"out={tmp_path}", check=False)
    assert code == 2 and said in err and "Traceback" not in err
    assert not results_under(tmp_path)


def test_a_backend_that_is_not_installed_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    for backend in ("ray", "dask"):
        monkeypatch.setitem(sys.modules, backend, None)
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "split_digits", "naive", f"backend={backend}", f"out={tmp_path}"])
        assert stop.value.code == 2
        assert f"pip install 'cl-simulator[{backend}]'" in capsys.readouterr().err


def test_what_is_asked_for_in_python_is_checked_in_the_same_way(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'epochs'"):
        cl.sweep("split_digits", "naive", out=str(tmp_path), train={"epocs": [1, 2]})
    with pytest.raises(BadValue, match="lacks a value"):
        cl.sweep("split_digits", "naive", out=str(tmp_path), seed=[])
    with pytest.raises(DataError, match="no file"):
        cl.sweep("split_digits", ["naive", "nowhere.py:Mine"], out=str(tmp_path))
