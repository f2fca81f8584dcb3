"""What all pictures share: style, axes at a place in inches, names beside what they name.

Text and background have colours of their own (`INK`, `PAPER`), which a page can replace.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cl.comparison.arms import Arm
from cl.comparison.labels import FAINT, INK, PAPER, Style, near, place, short, spread
from cl.comparison.measured import Table

DPI = 100
LINE = 14.5  # pixels that a name needs
NEAR = 6  # pixels between marks that can't be told apart
RC = {
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": FAINT,
    "grid.alpha": 0.28,
    "axes.grid": True,
    "svg.fonttype": "path",  # a reader's fonts are other ones: labels would overlap
}


@dataclass(frozen=True)
class Picture:
    """A figure, its file's name and what it shows, in a sentence or two."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Scene:
    """What is drawn: some arms of a section, each in its style."""

    table: Table
    arms: list[Arm]
    look: dict[str, Style]

    @property
    def n_experiences(self) -> int:
        """Of the stream."""
        return self.arms[0].first.n_experiences

    @property
    def is_share(self) -> bool:
        """Whether scores are shares of right answers."""
        return self.table.section.example["score"] in ("accuracy", "exact_match")

    @property
    def score(self) -> str:
        """The score's name."""
        score = self.table.section.example["score"]
        return {"normalized_return": "score", "exact_match": "exact match"}.get(score, score)


def png(figure: Figure) -> bytes:
    """A figure as a PNG on white."""
    return _written(figure, "png", dpi=130, facecolor="white")


def svg(figure: Figure, salt: str) -> str:
    """A figure as SVG, ids starting with `salt`, the background transparent."""
    text = _written(figure, "svg", transparent=True, metadata={"Date": None}, salt=salt).decode()
    text = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>\s*", "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{salt}-", text)
    return re.sub(r"\s+\n", "\n", text)


def _written(figure: Figure, kind: str, salt: str = "", **options) -> bytes:
    file = io.BytesIO()
    with rc_context({**RC, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in another script
        figure.savefig(file, format=kind, **options)
    return file.getvalue()


def blank(width: float, height: float) -> Figure:
    """A figure of that many inches."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def inches(figure: Figure, left: float, bottom: float, width: float, height: float) -> tuple:
    """A place in inches as shares of the figure."""
    wide, high = figure.get_size_inches()
    return left / wide, bottom / high, width / wide, height / high


def panels_of(n: int, width: float, height: float, arms: Sequence[Arm]) -> tuple:
    """(figure, n axes) of `width` inches each, two in a row, room for names right of each."""
    rows = -(-n // 2)
    figure = blank(min(n, 2) * width, rows * height)
    longest = max((_width(figure, arm.label) for arm in arms), default=0.0)
    names = longest + 0.3 if arms else 0.12
    panels = []
    for k in range(n):
        bottom = (rows - 1 - k // 2) * height + 0.62
        where = (k % 2) * width + 0.68, bottom, width - 0.68 - names, height - 0.95
        panels.append(figure.add_axes(inches(figure, *where)))
    return figure, panels


def name_ends(axes: Axes, ends: dict[str, tuple[float, float]], look: dict[str, Style]) -> None:
    """Each line's name right of the axes, beside its last point or as near as there is room."""
    right, box = axes.get_xlim()[1], axes.get_window_extent()
    wanted = [axes.transData.transform((right, y))[1] for _, y in ends.values()]
    places = spread(wanted, LINE, box.y0 + 4, box.y1 - 2)
    for (label, point), at in zip(ends.items(), places, strict=True):
        _name(axes, short(label), look[label], point, (box.x1 + 24, at), "left", (0, 0.5))


def name_points(
    axes: Axes, labels: list[str], points: np.ndarray, look: dict[str, Style], lines: np.ndarray
) -> None:
    """Names beside points [N, 2], none on another, off the dots `lines` [K, 2] if there is room.

    Points that can't be told apart have their names in one list, the upper one's first.
    """
    pixels = axes.transData.transform(points)
    groups = near(pixels, NEAR)
    names = ["\n".join(short(labels[k]) for k in group) for group in groups]
    texts = [axes.text(0, 0, name, transform=None) for name in names]
    renderer = axes.figure.canvas.get_renderer()
    sizes = [(b.width, b.height) for b in (t.get_window_extent(renderer) for t in texts)]
    for text in texts:
        text.remove()
    inside, dots = axes.get_window_extent(), axes.transData.transform(lines)
    bounds = inside.x0 + 2, inside.y0 + 2, inside.x1 - 2, inside.y1 - 2
    first = [group[0] for group in groups]
    for k, corner in zip(first, place(pixels[first], sizes, bounds, dots), strict=True):
        name, size = names[first.index(k)], np.array(sizes[first.index(k)])
        hold = tuple(np.clip((pixels[k] - corner) / size, 0, 1))  # the part of it that is nearest
        middle = np.array(corner) + size / 2
        _name(axes, name, look[labels[k]], points[k], middle, "center", hold)


def _name(axes: Axes, name: str, style: Style, point, pixels, side: str, hold: tuple) -> None:
    """A name at a place in pixels with a line to its point, from `hold` of its box.

    The place is kept in points from the point itself, so that it holds at any resolution.
    """
    offset = (np.array(pixels) - axes.transData.transform(point)) * 72 / DPI
    line = {"arrowstyle": "-", "color": style.colour, "lw": 0.9, "shrinkA": 1, "shrinkB": 4}
    axes.annotate(
        name,
        xy=point,
        xytext=tuple(offset),
        textcoords="offset points",
        ha=side,
        va="center",
        annotation_clip=False,
        arrowprops={**line, "relpos": hold},
        bbox={"boxstyle": "square,pad=0.05", "fc": PAPER, "alpha": 0.6, "lw": 0},
    )


def interval(arms: Sequence[Arm]) -> str:
    """What bands and bars are."""
    n = sorted({len(arm.runs) for arm in arms})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    return f"95 % intervals over {seeds} seed{'s' * (n[-1] != 1)}"


def _width(figure: Figure, label: str) -> float:
    """Of a name, in inches."""
    text = figure.text(0, 0, short(label))
    wide = text.get_window_extent(figure.canvas.get_renderer()).width / DPI
    text.remove()
    return wide
