"""Where a comparison goes: `index.html`, tables as Markdown and CSV, pictures, TensorBoard events.

By default `<out>/compare/<what>/` beside the runs' own folders, never inside one. What an earlier
comparison left there is replaced, file by file; `compare.json` is what it is known by.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from cl.comparison import DRAWN, Comparison
from cl.comparison.data import differences_csv, runs_csv, scores_csv
from cl.comparison.drawing import Picture, png, svg
from cl.comparison.events import write_events
from cl.comparison.figures import pictures
from cl.comparison.labels import PAPER
from cl.comparison.page import Drawn, Part, page
from cl.comparison.read import MARK, Run, nearby, shown
from cl.comparison.tables import (
    Cells,
    differences_cells,
    footnotes,
    legend,
    markdown,
    matched_cells,
    methods,
    scores_cells,
)
from cl.errors import DataError, UsageError
from cl.folder import label, slug
from cl.folder import write as write_file

OURS = ("figures", "tensorboard")  # folders in it that are made anew


def default_out(found: Comparison) -> Path:
    """`<out>/compare/<name>`: `out` holds the streams' folders, the name is what was given."""
    given = [Path(os.path.abspath(folder)) for folder in found.folders]
    common = Path(os.path.commonpath(given))
    homes = [_home(run) for run in found.runs]
    known = {home for home in homes if home is not None}
    root = next(iter(known)) if len(known) == 1 and None not in homes else common
    if not common.is_relative_to(root):  # a folder above the one that holds the streams
        root = common
    if (root / "results.json").exists():
        root = root.parent
    names = [str(folder.relative_to(root)) for folder in given]
    name = "+".join("all" if name == "." else name.replace(os.sep, "-") for name in names)
    return nearby(root / "compare" / slug(name))


def _home(run: Run) -> Path | None:
    """`out` of a run in `<out>/<stream>/<arm>/seed<k>`, None if it lies elsewhere."""
    folder = Path(os.path.abspath(run.folder))
    if not re.fullmatch(r"seed\d+", folder.name) or len(folder.parts) < 5:
        return None
    known = slug(label(run.results["stream"])) in folder.parents[1].name
    return folder.parents[2] if known else None


def check_out(out: Path) -> None:
    """Refuse a place that is a run's or can't be written. Raises UsageError."""
    if (out / "results.json").exists():
        raise UsageError(f"--out {out} is a run folder: choose another one")
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"--out {out}: {existing} is a file; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} can't be written: no permission in {existing}")


def write(found: Comparison, out: Path, tick: Callable[[str], None] = lambda what: None) -> None:
    """Everything into `out`; tick: what is being made. Raises UsageError, DataError."""
    check_out(out)
    try:
        _write(found, out, tick)
    except OSError as error:
        raise DataError(f"can't write to {out}: {error.strerror}; choose another --out") from error


def _write(found: Comparison, out: Path, tick: Callable[[str], None]) -> None:
    if (out / MARK).is_file():
        for name in OURS:
            shutil.rmtree(out / name, ignore_errors=True)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    write_file(out / MARK, json.dumps(found.data(), indent=1, allow_nan=False) + "\n")
    parts, images = [], {}
    for k, table in enumerate(found.tables):
        drawn = []
        if k < DRAWN:
            tick(f"drawing {table.section.title}")
            drawn, more = _draw(out, k, table.section.title, pictures(table))
            images |= more
        parts.append(_part(found, k, drawn))
    tick("writing the page")
    write_file(out / "index.html", _page(found, parts))
    write_file(out / "table.md", _markdown(found, parts))
    for name, of in (("arms", scores_csv), ("runs", runs_csv), ("differences", differences_csv)):
        write_file(out / f"{name}.csv", of(found.tables))
    tick("writing TensorBoard's events")
    write_events(out / "tensorboard", found.tables, images)


def _draw(
    out: Path, k: int, title: str, made: list[Picture]
) -> tuple[list[Drawn], dict[str, tuple[bytes, int, int]]]:
    """Write pictures of section k; what the page and what TensorBoard show of them."""
    drawn, images = [], {}
    for picture in made:
        name = f"{slug(title)}-{picture.name}"
        data = png(picture.figure)
        (out / "figures" / f"{name}.png").write_bytes(data)
        text = svg(picture.figure, f"s{k}{picture.name}")
        alone = text.replace("<svg", '<svg style="background:#ffffff"', 1)
        write_file(out / "figures" / f"{name}.svg", alone.replace(PAPER, "#ffffff"))
        width, height = struct.unpack(">II", data[16:24])  # of its header
        images[f"{title}/{picture.title}"] = data, width, height
        drawn.append(Drawn(picture.title, picture.caption, text))
    return drawn, images


def _part(found: Comparison, k: int, drawn: list[Drawn]) -> Part:
    table = found.tables[k]
    return Part(
        title=table.section.title,
        scores=scores_cells(table),
        baseline=table.baseline.label,
        footnotes=footnotes(table),
        methods=methods(table),
        legend=legend(table),
        tables=more_cells(found, k),
        pictures=drawn,
    )


def more_cells(found: Comparison, k: int) -> list[Cells]:
    """The tables of a section after its first one."""
    table, matched = found.tables[k], found.matched[k]
    cells = [c for c in [differences_cells(table)] if c is not None]
    ways = [] if matched is None else matched.ways
    return cells + [matched_cells(table, matched, way) for way in ways]


def summary(found: Comparison) -> str:
    """What was compared, in a line."""
    arms = sum(len(t.arms) for t in found.tables)
    runs = sum(len(arm.runs) for t in found.tables for arm in t.arms)
    folders = ", ".join(shown(folder) for folder in found.folders)
    n = len(found.tables)
    return (
        f"{runs} run{'s' * (runs != 1)}, {arms} arm{'s' * (arms != 1)}, "
        f"{n} stream{'s' * (n != 1)} in {folders}"
    )


def _page(found: Comparison, parts: list[Part]) -> str:
    titles = [part.title for part in parts]
    title = (
        f"Comparison: {titles[0]}" if len(titles) == 1 else f"Comparison of {len(titles)} streams"
    )
    files = (
        "the same as files: table.md, arms.csv, runs.csv, differences.csv, compare.json, figures/"
    )
    return page(title, [summary(found), files], found.lines, parts)


def _markdown(found: Comparison, parts: list[Part]) -> str:
    lines = [f"{summary(found)}\n"]
    lines += [f"- {line}" for line in found.lines]
    for part in parts:
        lines += [f"\n## {part.title}\n", markdown(part.scores)]
        lines += [f"- — {line}" for line in part.footnotes]
        lines += [f"- {line}" for line in (*part.methods, *part.legend)]
        lines += ["\n" + markdown(cells) for cells in part.tables]
    return "\n".join(lines) + "\n"
