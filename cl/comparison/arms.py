"""Runs to arms, arms to sections.

Arm       one strategy with one set of settings on one stream; its runs differ in the seed alone
Section   the arms of one stream: for every seed that two of them share, the data are the same
          (`stream_hash`); arms of different streams are never put into one table
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl.comparison.read import Note, Run, shown
from cl.config import show
from cl.folder import label as plain_label

LONGEST = 48  # characters of an arm's name
OF_THE_MACHINE = ("threads",)
NOT_OF_A_STREAM = ("stream.path", "stream.seed", "stream.download")  # what is in it decides


@dataclass
class Arm:
    """Runs by seed. label: its name in its section."""

    strategy: str
    settings: dict[str, Any]
    known: bool
    runs: dict[int, Run]
    label: str = ""

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return list(self.runs)

    @property
    def results(self) -> list[dict]:
        """Of every seed, in order."""
        return [run.results for run in self.runs.values()]

    @property
    def first(self) -> Run:
        """Its first run: what all of them have in common."""
        return next(iter(self.runs.values()))

    @property
    def hashes(self) -> dict[int, str]:
        """Stream hash by seed."""
        return {seed: run.results["stream_hash"] for seed, run in self.runs.items()}

    @property
    def own(self) -> dict[str, Any]:
        """Settings that are not the stream's."""
        return {k: v for k, v in self.settings.items() if not k.startswith("stream.")}

    @property
    def of_stream(self) -> dict[str, Any]:
        """Settings of the stream."""
        return {k: v for k, v in self.settings.items() if k.startswith("stream.")}


@dataclass
class Section:
    """Arms of one stream, in the order in which they were found.

    data: {seed: stream hash}; keys: what is equal in all seeds of a stream.
    """

    arms: list[Arm] = field(default_factory=list)
    title: str = ""
    data: dict[int, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    @property
    def example(self) -> dict:
        """Results of one run: domain, score, evals are those of all."""
        return self.arms[0].first.results

    @property
    def seeds(self) -> list[int]:
        """Of any arm."""
        return sorted(self.data)

    def fits(self, arm: Arm) -> bool:
        """Whether an arm has this data: no shared seed with others, and some evidence."""
        theirs = arm.hashes
        if _shape(self.arms[0].first) != _shape(arm.first):
            return False
        if any(self.data.get(seed, known) != known for seed, known in theirs.items()):
            return False
        shared = not set(theirs.values()).isdisjoint(self.data.values())
        return shared or _stream_key(arm.first) in self.keys

    def take(self, arm: Arm) -> None:
        """One more arm."""
        self.arms.append(arm)
        self.data |= arm.hashes
        self.keys.add(_stream_key(arm.first))


def sections_of(runs: Iterable[Run], notes: list[Note]) -> list[Section]:
    """Runs in sections, those with most runs first; what is left out is noted."""
    sections: list[Section] = []
    arms = _arms(runs, notes)
    for arm in sorted(arms, key=lambda a: -len(a.runs)):  # what has most seeds is matched best
        home = next((s for s in sections if s.fits(arm)), None)
        if home is None:
            sections.append(home := Section())
        home.take(arm)
    sections.sort(key=lambda s: -sum(len(arm.runs) for arm in s.arms))
    place = {id(arm): k for k, arm in enumerate(arms)}
    for section in sections:
        section.arms.sort(key=lambda arm: place[id(arm)])
        _name_arms(section.arms)
    _title(sections)
    return sections


def _arms(runs: Iterable[Run], notes: list[Note]) -> list[Arm]:
    """One arm for each strategy with its settings, every seed once.

    Runs in one folder belong together: where two folders of an arm have other data for a seed, they
    are two arms, and the larger one is the one that others are added to.
    """
    groups: dict[str, dict[Path, list[Run]]] = {}
    for run in runs:
        if (run.results["selection"] or {}).get("calibration_seed"):
            text = f"{shown(run.folder)}: its settings were chosen on seed {run.seed}, left out"
            notes.append(Note("calibration", text))
            continue
        key = json.dumps([_stream_key(run), run.results["strategy"], run.settings], default=str)
        groups.setdefault(key, {}).setdefault(run.folder.parent, []).append(run)
    found = []
    for folders in groups.values():
        variants: list[Arm] = []
        for own in sorted(folders.values(), key=len, reverse=True):
            _sort_in(own, variants, notes)
        found += variants
    for arm in found:
        arm.runs = dict(sorted(arm.runs.items()))
    return found


def _sort_in(runs: list[Run], variants: list[Arm], notes: list[Note]) -> None:
    """Runs of one folder into the first arm that has no other data for any of their seeds."""
    theirs: dict[int, str] = {}
    for run in runs:
        theirs.setdefault(run.seed, run.results["stream_hash"])
    fits = (a for a in variants if all(a.hashes.get(s, d) == d for s, d in theirs.items()))
    arm = next(fits, None)
    if arm is None:
        arm = Arm(runs[0].results["strategy"], runs[0].settings, runs[0].known, {})
        variants.append(arm)
    rest = []
    for run in runs:
        if run.results["stream_hash"] != theirs[run.seed]:
            rest.append(run)
        elif run.seed in arm.runs:
            notes.append(_twice(arm.runs[run.seed], run))
        else:
            arm.runs[run.seed] = run
    if rest:
        _sort_in(rest, variants, notes)


def _twice(known: Run, run: Run) -> Note:
    same = all(known.results[name] == run.results[name] for name in ("R", "V"))
    what = "the same numbers as" if same else "other numbers than"
    text = f"{shown(run.folder)}: seed {run.seed} again, {what} {shown(known.folder)}, left out"
    return Note("duplicate", text)


def _shape(run: Run) -> tuple:
    return run.results["domain"], run.results["score"], run.n_experiences, len(run.results["evals"])


def _stream_key(run: Run) -> str:
    """What is equal in all seeds of a stream."""
    r = run.results
    evals = [(e["kind"], e["learned_at"]) for e in r["evals"]]
    settings = {k: v for k, v in run.settings.items() if k.startswith("stream.")}
    own = {k: v for k, v in sorted(settings.items()) if k not in NOT_OF_A_STREAM}
    what = [r["stream"], r["domain"], r["score"], run.n_experiences, evals, own]
    return json.dumps(what, default=str)


def _name_arms(arms: Sequence[Arm]) -> None:
    """Labels: the strategy, and the settings that tell it from others of that strategy."""
    kinds = {(arm.strategy, arm.known) for arm in arms}
    varying = {
        kind: differing([arm.own for arm in arms if (arm.strategy, arm.known) == kind])
        for kind in kinds
    }
    taken: set[str] = set()
    for arm in arms:
        given = {key: arm.own.get(key) for key in varying[arm.strategy, arm.known]}
        parts = [f"{_short(k)}={_value(v)}" for k, v in given.items() if v is not None]
        arm.label = _free(cut(" ".join([plain_label(arm.strategy), *parts])), taken)


def _title(sections: Sequence[Section]) -> None:
    """Titles: the stream, and the settings that tell it from others of that name."""
    own: dict[str, list[dict]] = {}
    for section in sections:
        own.setdefault(section.example["stream"], []).append(section.arms[0].of_stream)
    varying = {name: differing(settings) for name, settings in own.items()}
    taken: set[str] = set()
    for section in sections:
        name, mine = section.example["stream"], section.arms[0].of_stream
        given = {key: mine[key] for key in varying[name] if key in mine}
        parts = [f"{key.partition('.')[2]}={_value(value)}" for key, value in given.items()]
        title = cut(" ".join([plain_label(name), *parts]))
        if title in taken:
            title = f"{title} (data {cut(section.example['stream_hash'])[:8]})"
        section.title = _free(title, taken)


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys of which not all have the same value, in order."""
    keys = dict.fromkeys(key for own in settings for key in own)
    return [key for key in keys if len({_frozen(own.get(key)) for own in settings}) > 1]


def cut(text: str) -> str:
    """One printable line that is not too long."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split())) or "?"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken yet, and now is."""
    free, k = name, 2
    while free in taken:
        free, k = f"{name} ({k})", k + 1
    taken.add(free)
    return free


def _short(key: str) -> str:
    return key.removeprefix("strategy.")


def _value(value: Any) -> str:
    text = show(value)
    return text.rstrip("/").rpartition("/")[2] if "/" in text else text


def _frozen(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
