"""`cl compare` in the terminal: what must be known, the tables, where the page is."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from cl.comparison import Comparison, compared, nothing
from cl.comparison.tables import (
    differences_cells,
    footnotes,
    matched_cells,
    methods,
    scores_cells,
    show,
)
from cl.display import console


def run(
    folders: tuple[str, ...],
    out: str | None,
    match: str | None,
    baseline: str | None,
    within: float,
) -> None:
    """Compare, show, write. Raises UsageError, DataError where there is nothing to compare."""
    if out is not None:
        from cl.comparison.files import check_out

        check_out(Path(out))
    found = compared(folders, match=match, baseline=baseline, within=within)
    screen, errors = console(), console(sys.stderr)
    for line in found.lines:
        _line(screen if found.tables else errors, line)
    if not found.tables:
        raise nothing(found)
    _tables(found, screen)
    from cl.comparison.files import default_out, write  # matplotlib, when the tables are out

    place = default_out(found) if out is None else Path(out)
    with errors.status("", spinner="line") as status:
        write(found, place, tick=status.update)
    _line(screen, f"page    {place / 'index.html'}")
    _line(
        screen, f"tables  {place / 'table.md'}, arms.csv, runs.csv, differences.csv, compare.json"
    )
    _line(screen, f"curves  tensorboard --logdir {place / 'tensorboard'}")


def _tables(found: Comparison, screen: Console) -> None:
    for table, matched in zip(found.tables, found.matched, strict=True):
        screen.print()
        show(scores_cells(table), screen)
        for line in footnotes(table):
            _line(screen, f"— {line}")
        gains = differences_cells(table)
        if gains is not None:
            show(gains, screen)
        for way in [] if matched is None else matched.ways:
            show(matched_cells(table, matched, way), screen)
        for line in methods(table):
            _line(screen, line)
    screen.print()


def _line(screen: Console, text: str) -> None:
    screen.print(text, markup=False, soft_wrap=True)
