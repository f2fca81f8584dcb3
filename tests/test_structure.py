"""The shape of the project: imports point one way, sizes are kept."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "cl": {"cl"},
    "streams": {"cl"},
    "strategies": {"cl"},
    "benchmarks": {"cl", "streams", "strategies"},
    "examples": {"cl", "streams", "strategies"},
}
OURS = {"cl", "streams", "strategies", "benchmarks", "examples", "tests"}
SOURCES = [p for room in MAY_IMPORT for p in sorted((ROOT / room).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    for module in imported(path):
        top = module.partition(".")[0]
        shared = module.startswith(f"{room}._")  # what several files of a room are made of
        if top in OURS and not shared:
            assert top in MAY_IMPORT[room], f"{path.name} imports {module}"
        adapter = path.name.startswith("avalanche")
        assert top != "avalanche" or (room == "cl" and adapter) or room == "benchmarks", (
            "avalanche is imported only when asked for"
        )


LIMITS = {"cl": 400, "streams": 200, "strategies": 200, "benchmarks": 500}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_functions_and_lines_keep_their_budgets(path):
    text = path.read_text()
    lines = text.splitlines()
    assert max(map(len, lines), default=0) <= 100
    assert len(lines) <= LIMITS.get(path.relative_to(ROOT).parts[0], 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            assert body <= 42, f"{node.name} has {body} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_and_classes_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.relative_to(ROOT).parts[0] == "examples":
        return
    for node in tree.body:
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        if public:
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_importing_plug_ins_has_no_effect_beyond_definitions():
    code = (
        "import os, random, threading, torch, numpy as np\n"
        "def state(): return (os.getcwd(), torch.get_rng_state().sum().item(), random.getstate(), "
        "np.random.get_state()[1].sum(), torch.get_num_threads(), threading.active_count())\n"
        "import sklearn.svm, sklearn.datasets, scipy.stats, pydantic\n"
        "before = state()\n"
        "import importlib, pkgutil, cl, streams, strategies, cl.models, cl.probes\n"
        "for package in (streams, strategies, cl.models, cl.probes, cl):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.startswith('cl.avalanche_'):  # imports all of Avalanche\n"
        "            importlib.import_module(module.name)\n"
        "assert state() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_public_names_exist():
    import cl

    assert all(getattr(cl, name) is not None for name in cl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cl.nothing


def test_the_example_has_at_most_15_lines_of_code():
    lines = (ROOT / "examples" / "my_strategy.py").read_text()
    tree = ast.parse(lines)
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    code = [
        line
        for k, line in enumerate(lines.splitlines(), 1)
        if k not in docstrings and line.strip() and not line.strip().startswith("#")
    ]
    assert len(code) <= 15
