"""The pictures of a comparison: matplotlib figures of one section, at most twelve arms in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cl.comparison.arms import Arm, cut
from cl.comparison.curves import Segment, gap_curve, mean_matrix, over_experiences
from cl.comparison.drawing import (
    RC,
    Picture,
    Scene,
    blank,
    inches,
    interval,
    name_ends,
    panels_of,
)
from cl.comparison.labels import FAINT, MOST, Style, short, styles
from cl.comparison.measured import Table
from cl.comparison.planes import cost_figure, plane_figure

SIDE, GAP, LEFT, BOTTOM = 2.25, 0.25, 0.7, 0.55  # of matrices [inches]
NUMBERED = 7  # evals that a matrix has numbers in its cells for


def pictures(table: Table) -> list[Picture]:
    """All that a section has the data for."""
    arms = drawn_arms(table)
    scene = Scene(table, arms, styles([arm.label for arm in arms], table.baseline.label))
    fewer = len(arms) < len(table.arms)
    rest = f" {len(arms)} of {len(table.arms)} arms: the best, the baseline." if fewer else ""
    makers = (curves_figure, plane_figure, gap_figure, cost_figure, matrices_figure)
    found = []
    with rc_context(RC):
        for make in makers:
            picture = make(scene)
            if picture is not None:
                title = short(table.section.title)
                picture.figure.text(0.995, 0.99, title, ha="right", va="top", size=8.5)
                found.append(replace(picture, caption=picture.caption + rest))
    return found


def drawn_arms(table: Table) -> list[Arm]:
    """Those that pictures show: the best, and the baseline."""
    arms = table.arms[:MOST]
    return arms if table.baseline in arms else [*arms[: MOST - 1], table.baseline]


def curves_figure(scene: Scene) -> Picture | None:
    """Plasticity and stability over experiences, with bands over seeds."""
    E = scene.n_experiences
    if E < 2:
        return None
    figure, panels = panels_of(2, 5.1, 3.5, scene.arms)
    for axes, name in zip(panels, ("plasticity", "stability"), strict=True):
        segments = {arm.label: [over_experiences(arm, name)] for arm in scene.arms}
        _lines(axes, segments, scene.look, marks=E <= 30)
        axes.set_title(name, loc="left", weight="bold")
        axes.set_xlabel("after experience")
        _experience_ticks(axes, _experience_names(scene.arms), np.arange(E))
        _limits(axes, segments, share=name == "plasticity" and scene.is_share)
        name_ends(axes, _ends(segments), scene.look)
    panels[0].set_ylabel(f"{scene.score} on what was just learned")
    panels[1].set_ylabel(f"past {scene.score}: now ÷ when learned")
    caption = (
        "Score on what was just learned, and share of past scores that is left (1: nothing lost), "
        f"after each experience; bands: {interval(scene.arms)}."
    )
    return Picture("curves", "Plasticity and stability over experiences", caption, figure)


def gap_figure(scene: Scene) -> Picture | None:
    """Past scores while each experience is learned."""
    segments = {arm.label: found for arm in scene.arms if (found := gap_curve(arm))}
    if not segments:
        return None
    arms = [arm for arm in scene.arms if arm.label in segments]
    E = scene.n_experiences
    figure, (axes,) = panels_of(1, 10.2, 3.5, arms)
    _lines(axes, segments, scene.look, marks=False)
    for i in range(1, E + 1):
        axes.axvline(i, color=FAINT, lw=0.8, alpha=0.6, zorder=1)
    axes.grid(False, axis="x")
    _limits(axes, segments, share=scene.is_share)
    _experience_ticks(axes, _experience_names(arms), np.arange(E) + 0.5)
    axes.set_xlim(1, E)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("while learning experience (width: its updates)")
    axes.set_ylabel(f"mean {scene.score} on past tasks")
    name_ends(axes, _ends(segments), scene.look)
    caption = (
        "Mean score on the tasks learned before, while the next one is learned: what drops at a "
        f"switch and comes back is the stability gap; bands: {interval(arms)}."
    )
    without = [arm.label for arm in scene.arms if arm.label not in segments]
    if without:
        caption += f" No evaluations within experiences (eval.every): {', '.join(without)}."
    return Picture("gap", "Stability gap", caption, figure)


def matrices_figure(scene: Scene) -> Picture | None:
    """R of every arm, mean over seeds."""
    matrices = [mean_matrix(arm) for arm in scene.arms]
    known = np.concatenate([R[np.isfinite(R)] for R in matrices])
    if not len(known):
        return None
    low, high = min(0.0, max(-1.0, known.min())), max(1.0, min(2.0, known.max()))
    (E, J), n = matrices[0].shape, len(matrices)
    columns, tall = min(n, 4), SIDE * min(max(E / J, 0.45), 1.2)
    rows, right = -(-n // columns), LEFT + columns * (SIDE + GAP)
    figure = blank(max(4.2, right + 0.9), rows * (tall + 0.45) + 0.65)
    for k, (arm, R) in enumerate(zip(scene.arms, matrices, strict=True)):
        row, column = divmod(k, columns)
        where = LEFT + column * (SIDE + GAP), BOTTOM + (rows - 1 - row) * (tall + 0.45)
        axes = figure.add_axes(inches(figure, *where, SIDE, tall))
        colours = {"vmin": low, "vmax": high, "cmap": "cividis"}
        image = axes.imshow(np.ma.masked_invalid(R), aspect="auto", **colours)
        _cells(axes, R, low, high)
        axes.grid(False)
        axes.set_title(short(arm.label), fontsize=9.5, loc="left")
        _matrix_ticks(axes, (E, J), first=column == 0, last=k + columns >= n)
    top = BOTTOM + (rows - 1) * (tall + 0.45)
    bar = figure.add_axes(inches(figure, right, top, 0.14, tall))
    figure.colorbar(image, cax=bar, label=scene.score)
    bar.grid(False)
    caption = (
        "Test score on each eval (columns) after each experience (rows), mean over seeds; blank: "
        "undefined."
    )
    return Picture("matrices", "Score matrices", caption, figure)


def _lines(axes: Axes, segments: dict[str, list[Segment]], look: dict, marks: bool) -> None:
    for label, parts in reversed(segments.items()):
        style: Style = look[label]
        line = {"color": style.colour, "ls": style.line, "lw": 1.7, "ms": 4}
        for s in parts:
            axes.fill_between(s.x, s.low, s.high, color=style.colour, alpha=0.13, lw=0)
            axes.plot(s.x, s.mean, marker=style.marker if marks else None, **line)


def _limits(axes: Axes, segments: dict[str, list[Segment]], share: bool) -> None:
    """All means, and as much of the bands as leaves the means most of the room.

    share: no score is below 0 or above 1, whatever an interval says.
    """
    parts = [s for own in segments.values() for s in own]
    means, lows, highs = (np.concatenate([getattr(s, n) for s in parts]) for n in Segment.VALUES)
    known = np.isfinite(means)
    if not known.any():
        axes.set_ylim(0, 1)
        return
    means, lows, highs = means[known], lows[known], highs[known]
    room = max(0.35 * np.ptp(means), np.median(highs - lows), 0.02)
    low = max(lows.min(), means.min() - room)
    high = min(highs.max(), means.max() + room)
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    pad = max(0.04 * (high - low), 0.005)
    axes.set_ylim(low - pad, high + pad)


def _ends(segments: dict[str, list[Segment]]) -> dict[str, tuple[float, float]]:
    """The last point of each line that has one."""
    ends = {}
    for label, parts in segments.items():
        x, y = (np.concatenate([getattr(s, name) for s in parts]) for name in ("x", "mean"))
        known = np.flatnonzero(np.isfinite(y))
        if len(known):
            ends[label] = float(x[known[-1]]), float(y[known[-1]])
    return ends


def _cells(axes: Axes, R: np.ndarray, low: float, high: float) -> None:
    """Numbers in the cells, where they can be read."""
    if max(R.shape) > NUMBERED:
        return
    for i, j in zip(*np.nonzero(np.isfinite(R)), strict=True):
        tone = "#000000" if R[i, j] - low > 0.6 * (high - low) else "#ffffff"
        text = f"{R[i, j]:.2f}".replace("0.", ".", 1) if abs(R[i, j]) < 0.995 else f"{R[i, j]:.1f}"
        axes.text(j, i, text, ha="center", va="center", color=tone, fontsize=8)


def _matrix_ticks(axes: Axes, shape: tuple[int, int], first: bool, last: bool) -> None:
    """first: leftmost of its row, last: nothing below it."""
    for axis, n in zip((axes.yaxis, axes.xaxis), shape, strict=True):
        if n <= 12:
            axis.set_ticks(range(n))
        else:
            axis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(labelsize=8, labelleft=first, labelbottom=last, length=2)
    axes.set_ylabel("after experience" if first else "")
    axes.set_xlabel("scored on eval" if last else "")


def _experience_names(arms: Sequence[Arm]) -> list[str]:
    """Names if all runs have the same, short enough to stand side by side; else numbers."""
    found = {tuple(run.experiences) for arm in arms for run in arm.runs.values()}
    names = [cut(name.partition("_")[2] or name) for name in next(iter(found))]
    fits = len(found) == 1 and len(names) <= 12 and sum(map(len, names)) <= 44
    return [short(n) for n in names] if fits else [str(k) for k in range(len(names))]


def _experience_ticks(axes: Axes, names: list[str], at: np.ndarray) -> None:
    every = -(-len(names) // 12)
    axes.set_xticks(at[::every], names[::every])
