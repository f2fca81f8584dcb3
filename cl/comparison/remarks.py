"""What a reader must know before believing a comparison: one line each.

Missing seeds, streams that differ, settings, versions, devices that differ between arms, arms that
were tuned differently. Nothing is averaged over any of it in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cl.comparison.arms import Arm, Section, cut, differing
from cl.comparison.read import Note
from cl.config import show

SHARED = ("train.", "model", "objective", "eval.", "threads")  # not the strategy's own settings
NAMED = 5  # arms that are named in a line
OF_ONE_KIND = 20  # lines


def remark(sections: Sequence[Section], notes: list[Note]) -> None:
    """Add what is to be said of the sections and their arms."""
    if len(sections) > 1:
        named = "; ".join(f"{s.title}: {_count(len(s.arms), 'arm')}" for s in sections[:NAMED])
        more = f"; and {len(sections) - NAMED} more" if len(sections) > NAMED else ""
        notes.append(Note("streams", f"{len(sections)} streams, compared apart: {named}{more}"))
    for section in sections:
        where = f"{section.title}: " if len(sections) > 1 else ""
        for kind, text in _lines(section):
            notes.append(Note(kind, where + text))


def _lines(section: Section) -> list[tuple[str, str]]:
    lines = [("seeds", text) for text in _missing(section)]
    if len(section.arms) == 1:
        lines.append(("single", f"only one arm, {section.arms[0].label}: nothing to compare with"))
    unknown = [arm.label for arm in section.arms if not arm.known]
    if unknown:
        said = "settings are known from folder names at best"
        lines.append(("recipe", f"no recipe.yaml of {listed(unknown)}: {said}"))
    lines += [("settings", text) for text in _settings(section.arms)]
    lines += [("selection", text) for text in _differs(section, "selection", selection, "tuned")]
    if len(found := grids(section)) > 1:
        text = f"evaluated every {listed(found)} updates: min-ACC, WC-ACC, anytime scores differ by"
        lines.append(("grid", f"{text} that alone and are left out"))
    for name in ("cl", "torch", "numpy"):
        lines += [
            ("versions", text)
            for text in _differs(section, name, lambda r, n=name: r["versions"].get(n), "version")
        ]
    lines += [("device", text) for text in _differs(section, "device", lambda r: r["device"], "")]
    return lines


def selection(results: dict) -> str:
    """How a run's settings were chosen, in a few words."""
    chosen = results["selection"]
    if chosen is None:
        return "–"
    trials = chosen.get("trials")
    trials = len(trials) if isinstance(trials, list | dict) else trials
    text = chosen["protocol"] + (f", {trials} trials" if trials is not None else "")
    changed = chosen.get("overridden")
    return f"{text}, then {', '.join(map(str, changed))} changed" if changed else text


def grids(section: Section) -> list[int]:
    """The `eval.every` of those runs that have one."""
    found = {r["metrics"].get("eval_every") for arm in section.arms for r in arm.results}
    return sorted(found - {None})


def capped(notes: Sequence[Note]) -> list[str]:
    """Their lines; of many of a kind the first few, and how many more there are."""
    by_kind: dict[str, list[str]] = {}
    for note in notes:
        by_kind.setdefault(note.kind, []).append(note.text)
    lines = []
    for kind, texts in by_kind.items():
        lines += texts[:OF_ONE_KIND]
        if len(texts) > OF_ONE_KIND:
            lines.append(f"and {len(texts) - OF_ONE_KIND} more lines on: {KINDS[kind]}")
    return lines


KINDS = {
    "unreadable": "files that can't be read",
    "unfinished": "unfinished runs",
    "failed": "failed runs",
    "empty": "folders without results",
    "loop": "links",
    "recipe": "unknown settings",
    "duplicate": "seeds that are there twice",
    "calibration": "seeds that settings were chosen on",
    "streams": "streams",
    "seeds": "missing seeds",
    "single": "single arms",
    "settings": "settings that differ",
    "selection": "tuning that differs",
    "grid": "evaluation grids",
    "versions": "versions",
    "device": "devices",
    "baseline": "baselines",
    "match": "matching",
    "figures": "figures",
}


def listed(names: Sequence[Any]) -> str:
    """The first few, and how many more there are."""
    first = ", ".join(map(str, names[:NAMED]))
    return first if len(names) <= NAMED else f"{first} and {len(names) - NAMED} more"


def _missing(section: Section) -> list[str]:
    """Seeds that only other arms have; arms that lack the same ones in one line."""
    lacking: dict[tuple[int, ...], list[str]] = {}
    for arm in section.arms:
        missing = tuple(seed for seed in section.seeds if seed not in arm.runs)
        if missing:
            lacking.setdefault(missing, []).append(arm.label)
    return [
        f"{listed(labels)} without seed{'s' * (len(missing) > 1)} {listed(missing)}: "
        f"mean over {_count(len(section.seeds) - len(missing), 'seed')}, differences over shared"
        for missing, labels in lacking.items()
    ]


def _settings(arms: Sequence[Arm]) -> list[str]:
    """Settings of training and evaluation that go with the strategy, so that both differ."""
    lines = []
    known = [arm for arm in arms if arm.known]
    for key in differing([arm.own for arm in known]):
        if not key.startswith(SHARED):
            continue
        by_strategy: dict[str, set[str]] = {}
        by_value: dict[str, list[str]] = {}
        for arm in known:
            if key in arm.own:
                value = show(arm.own[key])
                by_strategy.setdefault(arm.strategy, set()).add(value)
                by_value.setdefault(value, []).append(arm.label)
        if len(by_value) > 1 and len({frozenset(v) for v in by_strategy.values()}) > 1:
            lines.append(f"{key} differs: {_grouped(by_value)}")
    return lines


def _differs(section: Section, what: str, of: Callable[[dict], Any], kind: str) -> list[str]:
    """One line if not all runs have the same."""
    by_value: dict[str, list[str]] = {}
    for arm in section.arms:
        for value in dict.fromkeys(json.dumps(of(r), default=str) for r in arm.results):
            by_value.setdefault(value, []).append(arm.label)
    if len(by_value) < 2:
        return []
    shown = {_plain(value): labels for value, labels in by_value.items()}
    if kind == "tuned":
        shown = {"not tuned" if v == "–" else v: labels for v, labels in shown.items()}
        return [f"arms are tuned differently: {_grouped(shown)}"]
    return [f"{' '.join([what, kind]).strip()} differs: {_grouped(shown)}"]


def _plain(value: str) -> str:
    return cut(show(json.loads(value)))


def _grouped(by_value: dict[str, list[str]]) -> str:
    return "; ".join(f"{value} ({listed(labels)})" for value, labels in by_value.items())


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
