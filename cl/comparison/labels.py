"""Colours that colour-blind readers tell apart, labels beside what they name, not on each other.

Source  Okabe & Ito 2008, Color Universal Design; yellow and black are left out: one can't be seen
        on white, the other not on black
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INK, FAINT, PAPER = "#1a1b1c", "#8c8d8e", "#fdfefd"  # text and axes, grid, background
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS, LINES = ("o", "s", "^", "D"), ("-", "--", "-.", ":")
MOST = 12  # arms that one picture can tell apart
NAME = 30  # characters
RADII, ANGLES = (9, 15, 24, 36, 52, 72, 98, 130), 16  # of candidate places [pixels], around a point

Box = tuple[float, float, float, float]  # left, bottom, right, top [pixels]


@dataclass(frozen=True)
class Style:
    """How an arm is drawn in every picture."""

    colour: str
    line: str
    marker: str


def styles(labels: Sequence[str], baseline: str) -> dict[str, Style]:
    """The baseline in ink and dotted, others by colour, then by line and marker, too."""
    found = {baseline: Style(INK, (0, (1, 1.2)), "X")}
    for k, label in enumerate(name for name in labels if name != baseline):
        round_ = k // len(COLOURS) % len(LINES)
        colour = COLOURS[k % len(COLOURS)]
        found[label] = Style(colour, LINES[round_], MARKERS[round_])
    return found


def short(label: str) -> str:
    """A label that fits a picture; a dollar sign is no mathematics."""
    text = label if len(label) <= NAME else label[: NAME - 1] + "…"
    return text.replace("$", r"\$")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, in their order, `gap` apart, within [low, high].

    Least squares: what lies too close is pooled around its mean. A smaller gap where they would
    not fit.
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = np.argsort(wanted, kind="stable")
    pools: list[list[float]] = []  # [sum, count] of wanted - k * gap
    for k, j in enumerate(order):
        pools.append([wanted[j] - k * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    level = [total / count for total, count in pools for _ in range(int(count))]
    found = [0.0] * n
    for k, j in enumerate(order):
        found[j] = float(np.clip(level[k], low, high - (n - 1) * gap) + k * gap)
    return found


def near(points: np.ndarray, distance: float) -> list[list[int]]:
    """Positions of points [N, 2] in groups, each of them close to another one of its group.

    Within a group from top to bottom.
    """
    groups: list[list[int]] = []
    for k, point in enumerate(points):
        close = [g for g in groups if np.hypot(*(points[g] - point).T).min() < distance]
        groups = [g for g in groups if g not in close] + [sum(close, [k])]
    ordered = [sorted(group, key=lambda k: -points[k, 1]) for group in groups]
    return sorted(ordered, key=min)


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    lines: Sequence[tuple[float, float]] = (),
) -> list[tuple[float, float]]:
    """Lower left corners of one label (width, height) for each point, as near as there is room.

    No label lies on another or on a point if that can be had within `bounds`, and on as few of the
    dots of `lines` as may be; those with most neighbours choose first. All in pixels.
    """
    at = np.array(points, dtype=float).reshape(-1, 2)
    room = _Room(bounds, at, np.array(lines, dtype=float).reshape(-1, 2), [], [])
    crowd = [np.sum(np.abs(at - p).sum(1) < 120) for p in at]
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(at)
    for k in np.argsort(crowd, kind="stable")[::-1]:
        candidates = _candidates(at[k], sizes[k])
        costs = [room.cost(box, k) + radius / 10 for box, radius in candidates]
        box = candidates[int(np.argmin(costs))][0]
        room.taken.append(box)
        room.leads.append(_lead(at[k], box))
        found[k] = box[0], box[1]
    return found


@dataclass
class _Room:
    """What is there: points, dots of lines, boxes of labels and the lines to their points."""

    bounds: Box
    points: np.ndarray
    dots: np.ndarray
    taken: list[Box]
    leads: list[np.ndarray]

    def cost(self, box: Box, own: int) -> float:
        """How bad a place is: on a label or outside counts most, then lines across, then dots."""
        left, bottom, right, top = box
        cost = 0.0
        for a, b, c, d in self.taken:
            wide, high = min(right, c) - max(left, a), min(top, d) - max(bottom, b)
            if wide > -2 and high > -1:
                cost += 1000 + max(wide, 0) * max(high, 0)
        lead = _lead(self.points[own], box)
        cost += 150 * sum(bool(_inside(lead, other).any()) for other in self.taken)
        cost += 150 * sum(bool(_inside(other, box).any()) for other in self.leads)
        cost += 60 * int(_inside(self.points, box).sum())
        cost += min(8, int(_inside(self.dots, box).sum()))
        low, high = self.bounds[:2], self.bounds[2:]
        outside = max(low[0] - left, right - high[0], low[1] - bottom, top - high[1])
        return cost + 30 * self._misleads(box, own) + (2000 + outside if outside > 0 else 0)

    def _misleads(self, box: Box, own: int) -> bool:
        """Whether a box is nearer to another point than to its own."""
        far = np.hypot(*(self.points - np.clip(self.points, box[:2], box[2:])).T)
        return bool((np.delete(far, own) < far[own]).any())


def _lead(point: np.ndarray, box: Box) -> np.ndarray:
    """Dots from a point to what is nearest of its label [12, 2]."""
    return np.linspace(point, np.clip(point, box[:2], box[2:]), 12)


def _inside(dots: np.ndarray, box: Box) -> np.ndarray:
    """Which dots lie in a box or close to it."""
    return ((dots > (box[0] - 3, box[1] - 2)) & (dots < (box[2] + 3, box[3] + 2))).all(1)


def _candidates(point: np.ndarray, size: tuple[float, float]) -> list[tuple[Box, float]]:
    """Boxes around a point that touch a circle of each radius, right and left ones first."""
    (x, y), (w, h), found = point, size, []
    for radius in RADII:
        for k in range(ANGLES):
            turn = 2 * np.pi * k / ANGLES
            cx, cy = x + radius * np.cos(turn), y + radius * np.sin(turn)
            left = cx - w * (1 - np.cos(turn)) / 2
            bottom = cy - h * (1 - np.sin(turn)) / 2
            found.append(((left, bottom, left + w, bottom + h), radius + 2 * abs(np.sin(turn))))
    return found
