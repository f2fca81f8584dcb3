"""`cl compare`: folders of runs to tables, pictures, a page, and a view in TensorBoard.

read > arms > remarks > measured > match > tables, data, figures, page, events. Needs `results.json`
of each run (schema 1, `cl/schema.py`); `recipe.yaml` where there is one tells settings,
`curves.jsonl` what happened within experiences. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl.comparison.arms import sections_of
from cl.comparison.match import Matching, level_of, matching, unmatched
from cl.comparison.measured import Table, tables_of
from cl.comparison.read import Note, Run, given, runs_in, shown
from cl.comparison.remarks import capped, remark
from cl.errors import BadValue, DataError

DRAWN = 4  # streams that have pictures: each takes a second or two


@dataclass
class Comparison:
    """What was found in folders. matched: of every table, None without a level."""

    folders: list[Path]
    runs: list[Run]
    notes: list[Note]
    tables: list[Table]
    matched: list[Matching | None]

    @property
    def lines(self) -> list[str]:
        """What must be known, a line each."""
        return capped(self.notes)

    def data(self) -> dict[str, Any]:
        """All numbers as data that JSON can hold."""
        from cl.comparison.data import plain

        return {
            "schema": 1,
            "folders": [str(folder) for folder in self.folders],
            "notes": [{"kind": note.kind, "text": note.text} for note in self.notes],
            "sections": [plain(t, m) for t, m in zip(self.tables, self.matched, strict=True)],
        }


def compare(
    folders: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    match: str | None = None,
    baseline: str | None = None,
    within: float = 0.01,
) -> dict[str, Any]:
    """Compare runs; the same as `cl compare` on the command line.

    folders: run folders or folders of them. out: where page, pictures and tables go, none: nowhere.
    match: `new_task=0.9`. baseline: an arm, by its name in the table. within: the margin of
    equivalence. Returns notes, and by stream arms, values, differences. Raises UsageError and
    DataError.
    """
    several = [folders] if isinstance(folders, str | Path) else list(folders)
    found = compared(several, match=match, baseline=baseline, within=within)
    if not found.tables:
        raise nothing(found)
    if out is not None:
        from cl.comparison.files import write

        write(found, Path(out))
    return found.data()


def compared(
    folders: Sequence[str | Path],
    *,
    match: str | None = None,
    baseline: str | None = None,
    within: float = 0.01,
) -> Comparison:
    """Read, group, measure. Its tables are empty where nothing is left to compare."""
    level = level_of(match)
    if not within > 0:
        raise BadValue(f"--within must be above 0, got {within:g}")
    if not folders:
        raise BadValue("cl compare takes run folders or folders of them")
    places = list(dict.fromkeys(map(given, folders)))
    notes: list[Note] = []
    runs = runs_in(places, notes)
    sections = sections_of(runs, notes)
    remark(sections, notes)
    if len(sections) > DRAWN:
        text = f"pictures are drawn of the {DRAWN} streams with most runs; compare others alone"
        notes.append(Note("figures", text))
    found = tables_of(sections, baseline, within, notes)
    matched = []
    for t in found:
        of = None if level is None else matching(t.section, level, t.baseline)
        matched.append(of)
        where = f"{t.section.title}: " if len(found) > 1 else ""
        lines = [] if of is None else unmatched(t.section, of)
        notes += [Note("match", f"{where}not matched, {line}") for line in lines]
    return Comparison(places, runs, notes, found, matched)


def nothing(found: Comparison) -> DataError:
    """What is said where no finished run was found."""
    where = ", ".join(shown(folder) for folder in found.folders)
    return DataError(f"nothing to compare in {where}: no finished run")
