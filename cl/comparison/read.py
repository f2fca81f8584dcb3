"""Folders to runs: whatever lies in them, what is no finished run is said and left out.

A run is a folder that holds `results.json`; `recipe.yaml` beside it tells its settings, without it
the folder's name does. Hidden folders (`.old`, `.references`) and earlier comparisons are passed
over, links are followed once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cl.errors import DataError, UsageError, nearest
from cl.folder import MOST_BYTES, read_results

MARK = "compare.json"  # what an earlier comparison is known by
MOST_RECIPE = 2**20  # bytes
NO_SETTING = {
    *("stream", "strategy", "seed", "device", "out", "probes", "note", "expect", "selection"),
}
KEPT = (  # of results.json; matrices that nothing here looks at would only fill the memory
    *("status", "stream", "stream_hash", "strategy", "needs", "domain", "seed", "score"),
    *("evals", "R", "V", "metrics", "undefined", "cost", "selection", "versions", "device"),
    *("threads", "jointly_solvable"),
)
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Note:
    """One line on something that a reader of the comparison must know; kinds are summed up."""

    kind: str
    text: str


@dataclass
class Run:
    """A finished run. settings: {key: value}, resolved if `known`, else as the folder tells."""

    folder: Path
    results: dict
    settings: dict[str, Any]
    known: bool
    n_experiences: int = 0
    experiences: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.results["seed"]


def runs_in(folders: Sequence[Path], notes: list[Note]) -> list[Run]:
    """All finished runs under `folders`, in order; the others are noted."""
    recipes: dict[str, dict[str, Any]] = {}
    found = []
    for folder in _run_folders(folders, notes):
        try:
            results = read_results(folder)
        except DataError as error:
            notes.append(Note("unreadable", _shown(str(error))))
            continue
        n, of = len(results["R"]), len(results["experiences"])
        if results["status"] != "finished":
            failed = results["status"] == "failed"
            what = "failed" if failed else "unfinished"
            hint = f"see {shown(folder)}/log.txt" if failed else f"cl run --resume {shown(folder)}"
            text = f"{shown(folder)}: {what} after {n} of {of} experiences, left out; {hint}"
            notes.append(Note(what, text))
            continue
        settings, known = _settings(folder, results, recipes, notes)
        names = [e["name"] for e in results["experiences"]]
        kept = {key: results[key] for key in KEPT if key in results}
        found.append(Run(folder, kept, settings, known, of, names))
    return found


def shown(path: Path) -> str:
    """A path for people: relative where that is shorter, one printable line."""
    return _shown(str(nearby(path)))


def nearby(path: Path) -> Path:
    """The same path, relative where it lies in the current folder."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return Path(absolute if relative.startswith("..") else relative)


def curve_lines(run: Run) -> list[dict]:
    """The lines of `curves.jsonl`, one for each evaluation; damaged or missing: none."""
    path = run.folder / "curves.jsonl"
    try:
        if path.stat().st_size > MOST_BYTES:
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return []
    J = len(run.results["evals"])
    return found if all(_is_line(line, J, run.n_experiences) for line in found) else []


def _is_line(line: Any, J: int, E: int) -> bool:
    """Whether a line has what is read here: kind, experience, updates, test [J] and val [J]."""
    if not isinstance(line, dict) or line.get("kind") not in (
        "untrained",
        "periodic",
        "experience",
    ):
        return False
    rows = [line.get("test"), line.get("val")]
    numbers = all(
        isinstance(row, list)
        and len(row) == J
        and all(v is None or isinstance(v, int | float) for v in row)
        for row in rows
    )
    i = line.get("experience")
    placed = line["kind"] == "untrained" or isinstance(i, int) and 0 <= i < E
    return numbers and placed and isinstance(line.get("updates"), int)


def given(path: str | Path) -> Path:
    """A folder that a user named; a results.json stands for its own. Raises UsageError."""
    path = Path(path)
    if path.is_dir():
        return path
    if path.name == "results.json" and path.is_file():
        return path.parent
    if path.exists():
        raise UsageError(f"cl compare takes run folders or folders of them, {path} is a file")
    try:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()]
    except OSError:
        beside = []
    raise UsageError(f"no folder {str(path)!r}{nearest(path.name, beside)}")


def _run_folders(roots: Sequence[Path], notes: list[Note]) -> Iterator[Path]:
    """Every folder with a results.json, each once."""
    seen: set[str] = set()
    stack = [(root, ()) for root in reversed(roots)]
    while stack:
        folder, above = stack.pop()
        real = os.path.realpath(folder)
        if real in above:
            text = f"{shown(folder)} is a link that leads back to {shown(Path(real))}: not followed"
            notes.append(Note("loop", text))
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda e: _natural(e.name))
            below = [Path(e.path) for e in entries if not e.name.startswith(".") and _leads_on(e)]
        except OSError as error:
            why = error.strerror or str(error)
            notes.append(Note("unreadable", f"{shown(folder)} can't be read: {why}"))
            continue
        names = {e.name for e in entries}
        if "results.json" in names:
            yield folder
        elif MARK in names:
            continue
        elif "recipe.yaml" in names:
            notes.append(Note("unfinished", f"{shown(folder)}: begun, no results.json, left out"))
        elif not below:
            what = "is empty" if not names else "holds no results.json"
            notes.append(Note("empty", f"{shown(folder)} {what}"))
        else:
            stack += [(path, (*above, real)) for path in reversed(below)]


def _leads_on(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _settings(
    folder: Path, results: dict, recipes: dict[str, dict], notes: list[Note]
) -> tuple[dict[str, Any], bool]:
    """({key: value}, whether they are all of them); recipes: those parsed before, by text."""
    path = folder / "recipe.yaml"
    try:
        if path.is_file():
            if path.stat().st_size > MOST_RECIPE:
                raise ValueError("it is too large")
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"(?m)^seed: .*$", "", text)  # one parse for all seeds of an arm
            if text not in recipes:
                recipe = yaml.load(text, Loader)  # a safe one
                if not isinstance(recipe, dict) or not all(isinstance(k, str) for k in recipe):
                    raise ValueError("it holds no `key: value` lines")
                recipes[text] = recipe
            return _of_recipe(recipes[text], results["seed"]), True
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = _shown(str(error))[:120]
        said = "settings as the folder's name tells"
        notes.append(Note("recipe", f"{shown(path)} can't be used ({why}): {said}"))
    return _of_name(folder, results), False


def _of_recipe(recipe: dict, seed: int) -> dict[str, Any]:
    """Settings that tell arms apart; a path into another run of the same seed is that of any."""
    settings = {key: value for key, value in recipe.items() if key not in NO_SETTING}
    for key, value in settings.items():
        if isinstance(value, str) and "/" in value:
            settings[key] = re.sub(rf"(?<=/)seed{seed}(?=/|$)", "seed*", value)
    return settings


def _of_name(folder: Path, results: dict) -> dict[str, Any]:
    """Settings in the name of `<arm>/seed<k>`: `replay,size=50`; another name is one itself."""
    if not re.fullmatch(r"seed\d+", folder.name):
        return {}
    name = folder.absolute().parent.name
    first, *rest = name.split(",")
    pairs = [part.partition("=") for part in rest]
    if rest and all(key and equals for key, equals, _ in pairs):
        return {key if "." in key else f"strategy.{key}": value for key, _, value in pairs}
    return {} if first == results["strategy"] else {"folder": name}


def _natural(name: str) -> list:
    """Sorts seed2 before seed10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _shown(text: str) -> str:
    """One line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
