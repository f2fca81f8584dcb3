"""README is true: its commands run, what it shows is what is printed, its lists are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cl
from cl.cli import main

ROOT = Path(__file__).parents[1]

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line.partition("#")[0].split("&& ")[-1].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if "cl " in line and "pytest" not in line
]


SMALL = {"train.updates": 5}  # that it runs is tested here, not what comes out
SMALL_ON = {
    "skills": {
        "train.updates": 2,
        "train.batch_size": 16,
        "stream.n_train": 32,
        "stream.n_test": 4,
        "stream.n_val": 2,
        "stream.skills": "copy",
    }
}


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_run(command, tmp_path, monkeypatch, capsys):
    if "stream.path=" in command or command.startswith("cl run recipe"):
        pytest.skip("needs the reader's own images")
    arguments = shlex.split(command)[1:]
    if arguments[0] in ("sweep", "tune"):
        arguments = [a for a in arguments if not a.startswith("seed=")]
        arguments += ["seed=0", "workers=1", "stream.n_experiences=2"]
    if arguments[0] in ("run", "sweep", "tune"):
        arguments.append(f"out={tmp_path}")
        whole = "train." in command or "online" in command
        small = SMALL_ON.get(arguments[1], {} if whole else SMALL)
        arguments += [f"{key}={value}" for key, value in small.items() if f"{key}=" not in command]
    if arguments[0] == "compare":
        for name in ("naive", "replay"):
            cl.run("split_digits", name, train={"updates": 2}, out=str(tmp_path / "runs"))
        arguments[1] = str(tmp_path / arguments[1])
    if arguments[0] == "reproduce" and "--list" not in arguments:
        arguments += ["--quick", "workers=1", f"out={tmp_path}"]
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0, capsys.readouterr().err


def test_the_readme_shows_what_the_first_command_prints(tmp_path):
    shown = next(block for kind, block in BLOCKS if not kind and "after learning" in block)
    done = subprocess.run(
        [sys.executable, "-m", "cl.cli", "run", "split_digits", "fetril", f"out={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    heads = [line for line in shown.splitlines() if line.startswith(("┃", "split_digits"))]
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert all(line in printed for line in heads)


def test_readme_python_runs_and_shows_the_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert blocks[1].strip() == (ROOT / "examples" / "my_strategy.py").read_text().strip()


def test_readme_python_about_avalanche_runs():
    block = next(b for kind, b in BLOCKS if kind == "python" and "avalanche" in b)
    code = f"{block}\nassert plugin"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_readme_tree_and_methods_are_complete():
    for path in sorted((ROOT / "strategies").glob("[!_]*.py")):
        assert f"| `{path.stem}` |" in README


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script and "pytest" not in script
    assert "pip install -e '.[test]' && pytest" in README
