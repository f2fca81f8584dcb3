"""Pictures with a point for each arm: stability against plasticity, score against cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator

from cl.comparison.arms import Arm
from cl.comparison.drawing import (
    Picture,
    Scene,
    blank,
    inches,
    interval,
    name_points,
    panels_of,
)
from cl.comparison.labels import PAPER, Style
from cl.comparison.measured import SCORE, Column, Table
from cl.statistics import Estimate, ellipse

WORK = ("updates", "samples_seen", "tokens_seen", "env_steps")  # the first that differs is drawn
WIDE, NARROW = 20, 300  # ranges of a cost from which on its axis is logarithmic, has decades only


def plane_figure(scene: Scene) -> Picture | None:
    """Stability against plasticity, a confidence ellipse for each arm."""
    points = {}
    for arm in scene.arms:
        x, y = (scene.table.value(arm, name) for name in ("mean_plasticity", "stability"))
        if x.estimate is not None and y.estimate is not None:
            points[arm.label] = np.array([(x.by_seed[s], y.by_seed[s]) for s in arm.seeds])
    if not points:
        return None
    figure = blank(8.2, 5.2)
    axes = figure.add_axes(inches(figure, 0.75, 0.6, 7.2, 4.2))
    regions = {label: ellipse(p) for label, p in points.items()}
    _plane_limits(axes, np.concatenate(list(points.values())), regions)
    dots = [*points.values()]
    for label, p in points.items():
        style, region = scene.look[label], regions[label]
        if region is not None:
            dots.append(_draw_region(axes, *region, style))
        axes.plot(*p.T, ls="", marker=style.marker, ms=3, color=style.colour, alpha=0.45)
        axes.plot(*p.mean(0), marker=style.marker, ms=8, color=style.colour, mec=PAPER, mew=0.8)
    axes.set_xlabel(f"plasticity: {scene.score} on what was just learned, mean over experiences")
    axes.set_ylabel(f"stability: past {scene.score}, now ÷ when learned")
    means = np.array([p.mean(0) for p in points.values()])
    name_points(axes, list(points), means, scene.look, np.concatenate(dots))
    few = " No ellipse below four seeds." if None in regions.values() else ""
    caption = (
        "Up: more kept; right: more learned. Large marks are means, small ones seeds, ellipses "
        "95 % confidence regions of the mean (Hotelling)."
    )
    return Picture("plane", "Stability–plasticity plane", caption + few, figure)


def cost_figure(scene: Scene) -> Picture | None:
    """Score against what it cost."""
    value = scene.table.value
    arms = [arm for arm in scene.arms if value(arm, SCORE).estimate is not None]
    columns = _cost_columns(scene.table, arms)
    if not arms or not columns:
        return None
    figure, panels = panels_of(len(columns), 5.2, 3.5, ())
    for axes, column in zip(panels, columns, strict=True):
        known = [arm for arm in arms if value(arm, column.name).estimate is not None]
        pairs = [(value(arm, column.name).estimate, value(arm, SCORE).estimate) for arm in known]
        points = np.array([(x.mean, y.mean) for x, y in pairs])
        dots = [points]
        for arm, (x, y) in zip(known, pairs, strict=True):
            bars = (x if column.name == "train_seconds" else None, y)
            dots.append(_cross(axes, *bars, (x.mean, y.mean), scene.look[arm.label]))
        _cost_axis(axes, column, points[:, 0])
        labels = [arm.label for arm in known]
        name_points(axes, labels, points, scene.look, np.concatenate(dots))
    for axes in panels[::2]:
        axes.set_ylabel(f"average {scene.score} at the end")
    caption = f"Score at the end against what it cost; bars: {interval(arms)}."
    return Picture("cost", f"{scene.score.capitalize()} against cost", caption, figure)


def _draw_region(axes: Axes, centre, half, directions, style: Style) -> np.ndarray:
    """Its outline [73, 2]."""
    turn = np.linspace(0, 2 * np.pi, 73)
    ring = centre + (np.stack([np.cos(turn), np.sin(turn)], 1) * half) @ directions.T
    axes.add_patch(Polygon(ring, fc=style.colour, alpha=0.13, lw=0))
    axes.plot(*ring.T, color=style.colour, lw=1.1, ls=style.line, alpha=0.9)
    return ring


def _plane_limits(axes: Axes, points: np.ndarray, regions: dict) -> None:
    """All seeds, and as much of the ellipses as leaves them most of the room."""
    reach = [points]
    for centre, half, directions in filter(None, regions.values()):
        r = np.sqrt(((directions * half) ** 2).sum(1))
        reach.append(np.stack([centre - r, centre + r]))
    wide = np.concatenate(reach)
    for k, set_limits in enumerate((axes.set_xlim, axes.set_ylim)):
        low, high = points[:, k].min(), points[:, k].max()
        room = max(0.5 * (high - low), 0.02)
        low, high = max(wide[:, k].min(), low - room), min(wide[:, k].max(), high + room)
        pad = max(0.06 * (high - low), 0.01)
        set_limits(low - pad, high + pad)


def _cross(axes: Axes, x: Estimate | None, y: Estimate, point, style: Style) -> np.ndarray:
    """A mark with its intervals; dots along these [K, 2]."""
    bars, dots = [], [point]
    for k, e in enumerate((x, y)):
        if e is None or not np.isfinite(e.low):
            bars.append(None)
            continue
        bars.append([[e.mean - e.low], [e.high - e.mean]])
        along = np.linspace(e.low, e.high, 9)
        dots += [(v, point[1]) if k == 0 else (point[0], v) for v in along]
    look = {"color": style.colour, "marker": style.marker, "ms": 7, "mec": PAPER, "mew": 0.8}
    axes.errorbar(*point, xerr=bars[0], yerr=bars[1], lw=1.2, **look)
    return np.array(dots)


def _cost_columns(table: Table, arms: Sequence[Arm]) -> list[Column]:
    """Seconds; the first count of work that differs; what is stored, if that differs."""
    by_name = {column.name: column for column in table.columns}

    def differs(name: str) -> bool:
        found = [table.value(arm, name).estimate for arm in arms] if name in by_name else []
        return len({e.mean for e in found if e is not None}) > 1

    work = [name for name in WORK if differs(name)][:1]
    stored = [name for name in ("stored_bytes",) if differs(name)]
    return [by_name[name] for name in ("train_seconds", *work, *stored)]


def _cost_axis(axes: Axes, column: Column, values: np.ndarray) -> None:
    """Linear, logarithmic over a wide range, with 0 on its own if there is one."""
    positive = values[values > 0]
    low, high = positive.min(initial=np.inf), positive.max(initial=1.0)
    if high > WIDE * low:
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        if values.min() > 0:
            axes.set_xscale("log")
            axes.set_xlim(low / 2, high * 2)
            steps = (1, 2, 5) if high < NARROW * low else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=steps))
        else:
            axes.set_xscale("symlog", linthresh=low / 2, linscale=0.6)
            axes.set_xlim(-low / 4, high * 3)
            axes.xaxis.set_major_locator(FixedLocator([0, *decades[decades > low / 2]]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.12 * np.ptp(values) or 0.1 * high
        axes.set_xlim(values.min() - room, values.max() + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    plain = "{x:g}" if column.name == "train_seconds" else EngFormatter(sep="")
    axes.xaxis.set_major_formatter(plain)
    axes.set_xlabel(column.title + (f" [{column.unit}]" if column.unit else ""))
