"""Tables of a comparison as text, in the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cl.comparison.arms import Arm
from cl.comparison.match import Matching
from cl.comparison.measured import COSTS, SCORE, Column, Difference, Table, Value
from cl.comparison.remarks import listed, selection
from cl.display import bytes_text
from cl.statistics import Estimate

NONE = "—"


@dataclass(frozen=True)
class Cells:
    """A table as text: a title, what the columns are called, rows; the first column names them."""

    title: str
    head: list[str]
    rows: list[list[str]]


def scores_cells(table: Table) -> Cells:
    """The arms of a section, best first: scores, needs, how they were tuned, what they cost."""
    scores = [c for c in table.columns if c not in COSTS]
    costs = [c for c in table.columns if c in COSTS]
    first, rest = scores[:3], scores[3:]
    stored = [c for c in costs if c.name == "stored_bytes"]
    costs = [c for c in costs if c.name != "stored_bytes"]
    head = ["strategy", "seeds", *_titles(first), *_titles(stored), "needs", "tuned"]
    head += [*_titles(rest), *_titles(costs)]
    rows = []
    for arm in table.arms:
        of = [
            [cell(table.value(arm, c.name), c) for c in cs] for cs in (first, stored, rest, costs)
        ]
        start = [arm.label, str(len(arm.runs)), *of[0], *of[1], needs(arm), tuned(arm)]
        rows.append([*start, *of[2], *of[3]])
    n = len(table.arms)
    title = f"{table.section.title}: {n} arm{'s' * (n != 1)}, sorted by {scores[0].title}"
    return Cells(title, head, rows)


def differences_cells(table: Table) -> Cells | None:
    """What each arm gains over the baseline, seed by seed."""
    named = {c.name: c.title for c in table.columns if table.differences.get(c.name)}
    if not named:
        return None
    head = ["strategy", "seeds"]
    for name, title in named.items():
        head += [f"Δ {title}", "p"] + ([f"p within {table.within:g}", "says"] * (name == SCORE))
    rows = []
    by_arm = {n: {d.arm: d for d in table.differences[n]} for n in named}
    for arm in table.arms:
        found = {n: by_arm[n].get(arm.label) for n in named}
        if arm is table.baseline or not any(found.values()):
            continue
        n = max(d.estimate.n for d in found.values() if d is not None)
        row = [arm.label, str(n)]
        for name, d in found.items():
            row += _of_difference(d, extra=name == SCORE)
        rows.append(row)
    title = f"{table.section.title}: minus {table.baseline.label}, on shared seeds"
    return Cells(title, head, rows)


def matched_cells(table: Table, found: Matching, way: str) -> Cells:
    """Old tasks where the new one's validation score is at the level."""
    rows = []
    differences = {d.arm: d for d in found.differences.get(way, ())}
    for m in found.along(way):
        at = NONE if m.at is None else f"{m.at:.4g}"
        row = [m.label, str(len(m.old.by_seed)), at]
        row += [interval(v.estimate) for v in (m.new, m.old)]
        gain = _of_difference(differences.get(m.label), extra=False) if differences else []
        rows.append(row + gain)
    head = ["strategy", "seeds", f"at {way}", "new task (test)", "old tasks (test)"]
    head += [f"Δ from {found.base[way]}", "p"] if differences else []
    level = f"{found.level:g}"
    title = f"{table.section.title}: new task's validation score at {level}, along {way}"
    return Cells(title, head, rows)


def cell(value: Value, column: Column) -> str:
    """A number as it is read best."""
    if value.estimate is None:
        return NONE
    if column not in COSTS:
        return interval(value.estimate)
    mean = value.estimate.mean
    if column.unit == "B":
        return bytes_text(mean)
    return f"{mean:.1f} {column.unit}" if column.unit else f"{mean:,.0f}"


def interval(e: Estimate | None) -> str:
    """`mean ± half` where the interval is symmetric, else `mean [low, high]`; 1 seed: the mean."""
    if e is None:
        return NONE
    if not math.isfinite(e.low):
        return f"{e.mean:z.3f}"
    up, down = e.high - e.mean, e.mean - e.low
    if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-9):
        return f"{e.mean:z.3f} ± {up:.3f}"
    return str(e)


def needs(arm: Arm) -> str:
    """What an arm's runs need of the scenario."""
    return ", ".join(dict.fromkeys(n for r in arm.results for n in r["needs"])) or "–"


def tuned(arm: Arm) -> str:
    """How its settings were chosen."""
    return "; ".join(dict.fromkeys(map(selection, arm.results)))


def p_text(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _of_difference(d: Difference | None, extra: bool) -> list[str]:
    if d is None:
        return [NONE] * (4 if extra else 2)
    more = [p_text(d.p_within_holm), d.says] if extra else []
    return [interval(d.estimate), p_text(d.p_holm), *more]


def _titles(columns: Sequence[Column]) -> list[str]:
    return [c.title for c in columns]


# -- as text ---------------------------------------------------------------------------------------


def show(cells: Cells, out: Console) -> None:
    """In the terminal; columns that do not fit go on below, under the same rows."""
    widths = [
        max(len(word) for word in _lines_of(head) + [row[k] for row in cells.rows])
        for k, head in enumerate(cells.head)
    ]
    parts, room = [[]], out.width - widths[0] - 4
    for k in range(1, len(widths)):
        if parts[-1] and sum(widths[j] + 3 for j in parts[-1]) + widths[k] + 3 > room:
            parts.append([])
        parts[-1].append(k)
    for n, part in enumerate(parts):
        title = cells.title if n == 0 else f"{cells.title}, continued"
        out.print(Text(title, style="bold"), soft_wrap=True)
        grid = Grid(header_style="bold")
        grid.add_column(Text(cells.head[0]), no_wrap=True, overflow="ellipsis")
        for k in part:
            head = Text("\n".join(_lines_of(cells.head[k])))
            grid.add_column(head, justify="left" if is_text(cells, k) else "right", no_wrap=True)
        for row in cells.rows:
            grid.add_row(Text(row[0]), *(Text(row[k]) for k in part))
        out.print(grid)


def is_text(cells: Cells, k: int) -> bool:
    """Whether a column holds words, not numbers."""
    words = [row[k] for row in cells.rows if row[k] != NONE]
    return any(not word.startswith(tuple("0123456789-<")) for word in words)


def _lines_of(head: str) -> list[str]:
    """A column's title on up to two lines."""
    words = head.split(" ")
    if len(head) <= 10 or len(words) < 2:
        return [head]
    cut = min(
        range(1, len(words)),
        key=lambda k: max(len(" ".join(words[:k])), len(" ".join(words[k:]))),
    )
    return [" ".join(words[:cut]), " ".join(words[cut:])]


def markdown(cells: Cells) -> str:
    """A GitHub table under its title."""
    rows = [cells.head, ["---"] * len(cells.head), *cells.rows]
    lines = ["| " + " | ".join(_escaped(word) for word in row) + " |" for row in rows]
    return f"**{_escaped(cells.title)}**\n\n" + "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|*_<`[" else c for c in text)


def footnotes(table: Table) -> list[str]:
    """Why a cell is empty, a line each."""
    return [
        f"{', '.join(titles)} of {listed(arms)}: {why}"
        for why, found in table.footnotes.items()
        for titles, arms in found.items()
    ]


def legend(table: Table) -> list[str]:
    """What the columns mean."""
    return [f"{c.title}: {c.meaning}" for c in table.columns if c.meaning]


def methods(table: Table) -> list[str]:
    """What the numbers are, a line each."""
    used = dict.fromkeys(
        table.value(arm, c.name).method
        for arm in table.arms
        for c in table.columns
        if c not in COSTS and table.value(arm, c.name).estimate is not None
    )
    lines = [f"numbers, over seeds: {'; '.join(used)}"]
    if any(table.differences.values()):
        tested = dict.fromkeys(d.method for ds in table.differences.values() for d in ds)
        of = "bootstrap" if any("interquartile" in m for m in tested) else "paired t-test"
        lines.append(
            f"Δ: paired differences on shared seeds ({'; '.join(tested)}); p: {of} of no "
            f"difference, p within {table.within:g}: equivalence (two one-sided tests), both "
            "corrected for the number of arms (Holm), — with one seed or without any spread; "
            "says: at 5 %"
        )
    return lines
