"""The command line: grammar, errors in one line, exit codes, speed of import."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cl.cli import main

ROOT = Path(__file__).parents[1]
QUICK = ["stream.n_experiences=2", "train.updates=2"]


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_run_prints_the_table_and_where_things_are(call, tmp_path):
    code, out, err = call("run", "split_digits", "fetril", *QUICK)
    assert code == 0
    for part in (
        "split_digits · fetril · seed 0",
        "average accuracy",
        "tensorboard --logdir runs",
        "results.json",
        "stability",
    ):
        assert part in out
    assert "small_cnn · seed 0 · cpu · 1 thread" in err
    assert list((tmp_path / "runs" / "split_digits").iterdir())


def test_a_recipe_file_runs_with_keys_on_top(call, tmp_path):
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "stream": "split_digits",
                "strategy": "naive",
                "train.epochs": 1,
                "stream.n_experiences": 2,
                "train": {"batch_size": 64},
            }
        )
    )
    code, *_ = call("run", "r.yaml", "seed=3", "train.epochs=2")
    assert code == 0
    recipe = yaml.safe_load(next((tmp_path / "runs").rglob("recipe.yaml")).read_text())
    assert (recipe["seed"], recipe["train.epochs"], recipe["train.batch_size"]) == (3, 2, 64)
    assert "stream.seed" not in recipe  # it follows the seed


def test_a_recipe_is_found_by_a_path_that_holds_equals_signs(call, tmp_path):
    assert call("run", "split_digits", "naive", *QUICK)[0] == 0
    recipe = next((tmp_path / "runs").rglob("recipe.yaml"))
    assert "=" in str(recipe)
    assert call("run", recipe.relative_to(tmp_path), "seed=1")[0] == 0


def test_the_table_never_cuts_digits_on_a_narrow_terminal(call, monkeypatch):
    from rich.console import Console

    import cl
    from cl.display import _table

    result = cl.run("split_digits", "naive", **{"train.updates": 1, "out": "r"})
    for width in (60, 80, 100, 140):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(_table(result.results, width))
        text = console.export_text()
        assert "…" not in text and "stability" in text
        assert ("2+3 ┃" in text) == (width >= 100)


def test_two_runs_can_not_write_to_one_folder(call, tmp_path):
    import cl
    from cl.folder import locked

    result = cl.run("split_digits", "naive", out=str(tmp_path / "runs"), **{"train.updates": 1})
    with locked(result.dir):
        code, _, err = call("run", "split_digits", "naive", "train.updates=1")
    assert code == 2 and "another run is writing" in err
    assert (result.dir / "results.json").is_file()


def test_composed_strategies_take_prefixed_keys(call, tmp_path):
    own = ROOT / "examples" / "my_strategy.py"
    code, *_ = call(
        "run",
        "split_digits",
        f"replay+{own}:L2Anchor",
        "strategy.replay.size=10",
        "strategy.l2_anchor.strength=0.5",
        *QUICK,
    )
    assert code == 0
    recipe = yaml.safe_load(next((tmp_path / "runs").rglob("recipe.yaml")).read_text())
    assert recipe["strategy.replay.size"] == 10 and recipe["strategy.l2_anchor.strength"] == 0.5


ERRORS = {
    "stream": (["split_digit", "fetril"], "no stream 'split_digit'; did you mean 'split_digits'?"),
    "strategy": (["split_digits", "fetrill"], "no strategy 'fetrill'; did you mean 'fetril'?"),
    "part": (["split_digits", "replay+naiv"], "did you mean 'naive'?"),
    "twice": (["split_digits", "replay+replay"], "'replay' is given twice"),
    "key": (["split_digits", "fetril", "sed=1"], "no key 'sed'; did you mean 'seed'?"),
    "bare key": (["split_digits", "fetril", "epochs=3"], "did you mean 'train.epochs'?"),
    "train key": (["split_digits", "fetril", "train.lrr=1"], "did you mean 'lr'?"),
    "strategy key": (["split_digits", "replay", "strategy.sizes=1"], "did you mean 'size'?"),
    "unprefixed": (
        ["split_digits", "replay+naive", "strategy.size=1"],
        "did you mean 'strategy.replay.size'?",
    ),
    "type": (
        ["split_digits", "fetril", "train.epochs=few"],
        "train.epochs must be int ≥ 1, got 'few'",
    ),
    "fraction": (["split_digits", "fetril", "train.epochs=1.5"], "must be int ≥ 1"),
    "range": (["split_digits", "fetril", "train.lr=0"], "train.lr must be float > 0, got '0'"),
    "nan": (["split_digits", "fetril", "train.lr=nan"], "train.lr must be float > 0"),
    "choice": (["split_digits", "fetril", "strategy.head=tree"], "one of svm, fc, got 'tree'"),
    "negative": (
        ["split_digits", "replay", "strategy.size=-1"],
        "float > 0 and < 1, got '-1'",
    ),
    "no exemplars": (
        ["split_digits", "replay", "strategy.size=0"],
        "float > 0 and < 1, got '0'",
    ),
    "bool": (["split_digits", "naive", "train.reset_optimizer=maybe"], "true or false"),
    "past": (["split_digits", "naive", "eval.past=sample:0"], "all, own or sample:K"),
    "augment": (["split_digits", "naive", "train.augment=blur"], "crop, flip"),
    "seed": (["split_digits", "naive", "seed=-1"], "seed must be int ≥ 0"),
    "order": (["split_digits", "naive", "stream.class_order=1,2"], "each of 0..9 once"),
    "experiences": (["split_digits", "naive", "stream.n_experiences=11"], "1 to 10"),
    "device": (["split_digits", "naive", "device=cuda:99"], "device must be auto or one of cpu"),
    "model": (["split_digits", "naive", "model=resnet"], "did you mean 'resnet20'?"),
    "model key": (["split_digits", "naive", "model=mlp", "model.width=3"], "allowed: hidden"),
    "default model key": (["split_digits", "naive", "model.hidden=3"], "allowed: depth, norm"),
    "depth": (["split_digits", "naive", "model.depth=5"], "allowed: 1 to 3"),
    "probe": (["split_digits", "naive", "probes=weight_nrm"], "did you mean 'weight_norm'?"),
    "missing": (["image_folder", "naive"], "needs stream.path=..."),
    "path": (["image_folder", "naive", "stream.path=nowhere.zip"], "no file or folder"),
    "recipe": (["nowhere.yaml"], "no recipe nowhere.yaml"),
    "recipe path": (["no/where.yaml"], "recipe no/where.yaml: No such file"),
    "file": (["split_digits", "nowhere.py:X"], "no file nowhere.py"),
    "module": (["split_digits", "no.such.module:X"], "no module 'no.such.module'"),
    "nothing": ([], "cl run takes STREAM STRATEGY"),
    "one": (["split_digits"], "got 1 name: split_digits"),
    "duplicate": (["split_digits", "naive", "seed=1", "seed=2"], "seed is given twice"),
    "empty out": (["split_digits", "naive", "out="], "out must be a folder"),
    "empty path": (["image_folder", "naive", "stream.path="], "must be a path"),
    "no home": (["image_folder", "naive", "stream.path=~nosuch/x"], "stream.path=~nosuch/x"),
    "no file module": (["split_digits", "os:getcwd"], "no module 'os'"),
    "threads": (["split_digits", "naive", "threads=1000000"], "and ≤ 1024"),
    "too large": (["split_digits", "naive", f"train.batch_size={10**23}"], "too large"),
    "near choice": (["split_digits", "naive", "train.optimizer=SDG"], "did you mean 'sgd'?"),
    "both": (["split_digits", "naive", "stream.base=4", "stream.n_experiences=5"], "not both"),
    "out": (["split_digits", "naive", "out=/proc/nothing"], "choose another out="),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_bad_request_is_one_line_exit_2_and_writes_nothing(case, call, tmp_path):
    arguments, expected = ERRORS[case]
    code, out, err = call("run", *arguments)
    lines = err.splitlines()
    assert code == 2 and expected in lines[-1], err
    assert len(lines) == 1 and lines[0].startswith("cl: ")
    assert not (tmp_path / "runs").exists()


BROKEN = {
    "syntax": ("class S(:", "invalid syntax"),
    "class": ("class T: pass", "no class or function 'S'; allowed: T"),
    "no strategy": ("class S: pass", "is no strategy"),
    "import": (
        "import nowhere_at_all\nfrom cl import Strategy\nclass S(Strategy): pass",
        "No module named 'nowhere_at_all'",
    ),
    "hook": (
        "from cl import Strategy\nclass S(Strategy):\n    def before_updte(self, loop): pass",
        "did you mean 'before_update'?",
    ),
    "annotation": (
        "from cl import Strategy\nclass S(Strategy):\n"
        "    def __init__(self, *, a: 'Foo' = 1): self.a = a",
        "a must be",
    ),
    "computed default": (
        "from cl import Strategy\nclass S(Strategy):\n"
        "    def __init__(self, *, a: int = 1 + n): self.a = a",
        "default of 'a' must be a literal",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plug_in_is_one_line_exit_2(case, call, tmp_path):
    source, expected = BROKEN[case]
    (tmp_path / f"broken_{case.replace(' ', '_')}.py").write_text(source)
    name = f"broken_{case.replace(' ', '_')}.py:S"
    settings = ["strategy.a=x"] if case == "annotation" else []
    code, _, err = call("run", "split_digits", name, *settings)
    assert code == 2 and len(err.splitlines()) == 1, err
    if case != "annotation":
        assert expected in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


TWICE = "stream: split_digits\nstrategy: naive\ntrain.lr: 1\ntrain.lr: 2"


def test_a_recipe_that_is_no_recipe_is_one_line(call, tmp_path):
    for text in ("{", "- a", "stream: split_digits", TWICE, "a: !!python/object:os.system x", ""):
        (tmp_path / "bad.yaml").write_text(text)
        code, _, err = call("run", "bad.yaml")
        assert code == 2 and len(err.splitlines()) == 1, (text, err)


def test_a_nan_loss_ends_in_one_line_exit_1_and_keeps_the_folder(call, tmp_path):
    code, _, err = call("run", "split_digits", "naive", "train.lr=1e30")
    assert code == 1
    assert "at update" in err.splitlines()[-1] and "experience 0" in err.splitlines()[-1]
    assert '"failed"' in next((tmp_path / "runs").rglob("results.json")).read_text()


def test_debug_shows_the_traceback(call):
    _, _, err = call("run", "--debug", "split_digits", "nothing")
    assert "Traceback" in err


def test_list_and_describe_answer_from_source(call):
    code, out, _ = call("list")
    assert code == 0 and all(name in out for name in ("split_digits", "fetril", "resnet20"))
    code, out, _ = call("list", "strategies")
    assert "fetril" in out and "split_digits" not in out
    code, out, _ = call("describe", "fetril")
    assert "arXiv:2211.13131" in out and "one of svm, fc; default svm" in out
    for name in ("run", "train", "eval", "image_folder", "small_cnn", "weight_norm"):
        assert call("describe", name)[0] == 0
    assert "train.lr" in call("describe", "train")[1]
    code, _, err = call("describe", "fetrl")
    assert code == 2 and "did you mean 'fetril'?" in err
    code, _, err = call("list", "stream")
    assert code == 2 and "did you mean 'streams'?" in err


def test_check_prints_findings_and_fails_on_a_bad_plug_in(call, tmp_path):
    code, out, _ = call("check", ROOT / "examples" / "my_strategy.py")
    assert code == 0 and "resumed equals uninterrupted" in out and "FAIL" not in out
    (tmp_path / "bad.py").write_text(
        "from cl import Strategy\nclass S(Strategy):\n    def before_updte(self, loop): pass"
    )
    code, out, _ = call("check", "bad.py:S")
    assert code == 1 and "FAIL" in out


@pytest.mark.parametrize("command", [["--help"], ["list"], ["describe", "fetril"]])
def test_quick_commands_never_import_torch(command):
    code = (
        "import sys; from cl.cli import main\n"
        f"try: main({command!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'avalanche', 'sklearn', 'matplotlib', 'scipy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bad_request_is_refused_without_importing_torch():
    code = (
        "import sys; from cl.cli import main\n"
        "try: main(['run', 'split_digits', 'fetril', 'train.lr=x'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_that_can_be_resumed(number, code, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cl.cli",
        "run",
        "split_digits",
        "naive",
        "train.epochs=400",
        f"out={tmp_path}",
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # as from a terminal, also where the tests run in the background
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if line.startswith("experience 1/5"):
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert (
        process.wait() == code
        and f"--resume {tmp_path}/split_digits/naive" in rest
        and "Traceback" not in rest
    )
    folder = next(tmp_path.rglob("results.json")).parent
    assert '"running"' in (folder / "results.json").read_text()
    assert list((folder / "checkpoint").iterdir())


@pytest.mark.slow
def test_quick_commands_answer_in_half_a_second():
    times = []
    for command in ("--help", "list", "describe fetril"):
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "cl.cli", *command.split()],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                check=True,
                env=os.environ,
            )
            times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.5


def test_a_recipe_runs_on_another_stream_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stream: split_digits\nstrategy: naive\ntrain.updates: 2\n")
    with pytest.raises(SystemExit) as stop:
        main(["run", str(recipe), "stream=rotated_digits"])
    assert stop.value.code == 0
    assert list((tmp_path / "runs" / "rotated_digits").glob("naive*"))
