"""TensorBoard: the curves of one run under the tags of the design, and its pictures.

Headline scalars have optimizer updates on the x-axis; `by_experience/`, `by_samples/` and, of text,
`by_tokens/`, of environments, `by_env_steps/` repeat them for strategies that make no updates and
for comparisons at equal data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cl.folder import title
from cl.metrics import held_out

if TYPE_CHECKING:
    from cl.evaluation import Scores
    from cl.loop import Loop

CURVES = ("plasticity", "stability", "seen_accuracy", "past_accuracy")
FINALS = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
OF_POLICIES = ("cw_average_performance", "cw_forgetting", "cw_forward_transfer")
LEAST, MOST = -1.0, 2.0  # scores that colours tell apart
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe-Ito: told apart by colour-blind readers


class Board:
    """Writes one run's events; a resumed run adds a file to those that were cut back."""

    def __init__(self, folder: Path, settings: dict, prequential_at: int = -1):
        self.folder, self.settings = folder, settings
        self.prequential_at = prequential_at  # updates of the last point drawn
        self.writer = SummaryWriter(str(folder))

    def sizes(self) -> dict[str, int]:
        """{event file: bytes} with everything written so far."""
        self.writer.flush()
        return {p.name: p.stat().st_size for p in self.folder.glob("events.out.tfevents*")}

    def losses(self, update: int, means: dict[str, float]) -> None:
        """`train/running_loss`, `train/loss_<term>`."""
        for name, value in means.items():
            self.writer.add_scalar(f"train/{name}", value, update)

    def periodic(self, loop: Loop, scores: Scores) -> None:
        """Scores before training and between the ends of experiences."""
        self._accuracies(loop, scores.test, scores.counts.get("return"))
        row = np.array([[np.nan if v is None else v for v in scores.test]], dtype=float)
        untaught = held_out(row, [e.learned_at for e in loop.stream.evals])
        self._scalar("held_out", untaught and untaught[0], loop.clock.train_iterations)
        self.writer.flush()

    def experience(self, loop: Loop, results: dict) -> None:
        """Everything that is known after an experience."""
        i, update = loop.experience.index, loop.clock.train_iterations
        returns = (results["raw"] or {}).get("return")
        self._accuracies(loop, results["R"][i], returns and returns[i])
        values = {name: results["metrics"][name][i] for name in CURVES}
        values["average_accuracy"] = results["metrics"]["average_accuracy"]
        values["held_out"] = (results["metrics"]["held_out"] or {i: None})[i]
        values["forgetting"] = results["metrics"]["forgetting"]
        values |= {name: results["metrics"].get(name) for name in OF_POLICIES}
        for name, value in values.items():
            self._scalar(name, value, update)
            self._scalar(f"by_experience/{name}", value, i)
            self._scalar(f"by_samples/{name}", value, loop.samples_seen)
            if loop.tokens_seen:
                self._scalar(f"by_tokens/{name}", value, loop.tokens_seen)
            if loop.env_steps:
                self._scalar(f"by_env_steps/{name}", value, loop.env_steps)
        total = right = 0
        for at, rows, hits in results["prequential"] or ():
            total, right = total + rows, right + hits
            if at > self.prequential_at:
                self._scalar("prequential_accuracy", right / total, at)
                self.prequential_at = at
        for name, value in results["cost"].items():
            last = value[-1] if isinstance(value, list) else value
            self._scalar(f"cost/{name}", last, update)
        for name, row in results["reported"].items():
            self._scalar(f"strategy/{name}", row[-1], update)
        for probe, rows in results["probes"].items():
            self._probe(probe, getattr(loop.attach(probe), "figure", None), rows[-1], update)
        if results["status"] == "finished":
            self._final(results, update)
        self.writer.flush()

    def _probe(self, probe: str, figure: Callable | None, values: dict, update: int) -> None:
        """A probe's values; where it draws them, those of parts are in its picture alone."""
        for name, value in values.items():
            if figure is None or "/" not in name:
                self._scalar(f"probe/{probe}/{name}", value, update)
        if figure is not None and values:
            picture = _pixels(figure(values))
            self.writer.add_image(f"probe/{probe}", picture, update, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()

    def _accuracies(self, loop: Loop, row: list, returns: list | None) -> None:
        """Scores of all evals and, of environments, their raw returns."""
        for kind, values in (("acc", row), ("return", returns or ())):
            for e, value in zip(loop.stream.evals, values, strict=bool(values)):
                self._scalar(f"{kind}/{e.name}", value, loop.clock.train_iterations)
                if loop.env_steps:
                    self._scalar(f"by_env_steps/{kind}/{e.name}", value, loop.env_steps)

    def _scalar(self, tag: str, value: float | None, step: int) -> None:
        if value is not None:
            self.writer.add_scalar(tag, value, step)

    def _final(self, results: dict, update: int) -> None:
        self.writer.add_image("R", _pixels(matrix_figure(results)), update, dataformats="HWC")
        plane = _pixels(plane_figure(results))
        self.writer.add_image("stability_plasticity", plane, update, dataformats="HWC")
        final = {f"final/{k}": results["metrics"].get(k) for k in (*FINALS, *OF_POLICIES)}
        final = {k: v for k, v in final.items() if v is not None}
        for summary in hparams(self.settings, final):
            self.writer.file_writer.add_summary(summary)
        for name, value in final.items():
            self.writer.add_scalar(name, value, update)


def matrix_figure(results: dict) -> Figure:
    """R as a heat map: rows are experiences learned, columns evals; white is undefined.

    Colours go from 0 to 1, and further, but not past LEAST and MOST, where scores do.
    """
    R = np.array([[np.nan if v is None else v for v in row] for row in results["R"]], dtype=float)
    E, J = R.shape
    figure = Figure(figsize=(min(14, 2.6 + 0.62 * J), min(11, 1.8 + 0.5 * E)), layout="constrained")
    axes = figure.subplots()
    least, most = _span(R)
    low, high = max(LEAST, least), min(MOST, most)
    image = axes.imshow(R, vmin=low, vmax=high, cmap="cividis", aspect="auto")
    every_i, every_j = max(1, -(-E // 25)), max(1, -(-J // 25))
    axes.set_xticks(range(0, J, every_j), _labels(results["evals"], every_j))
    axes.tick_params(axis="x", rotation=45 if 5 < J <= 25 else 0)
    axes.set_yticks(range(0, E, every_i), _labels(results["experiences"], every_i))
    axes.set_xlabel("scored on")
    axes.set_ylabel("after learning")
    if E <= 15 and J <= 15:
        for i, j in zip(*np.nonzero(~np.isnan(R)), strict=True):
            tone = "black" if R[i, j] - low > 0.6 * (high - low) else "white"
            axes.text(j, i, f"{R[i, j]:.2f}", ha="center", va="center", color=tone, fontsize=8)
    past = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    extend = past[least < low, most > high]
    figure.colorbar(image, ax=axes, extend=extend, label=results["score"].replace("_", " "))
    axes.set_title(title(results), fontsize=9)
    return figure


def plane_figure(results: dict) -> Figure:
    """Stability against plasticity, one point per experience from the second on."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    pairs = zip(results["metrics"]["plasticity"], results["metrics"]["stability"], strict=True)
    points = [(i, p, s) for i, (p, s) in enumerate(pairs) if p is not None and s is not None]
    if points:
        order, new, past = zip(*points, strict=True)
        axes.plot(new, past, color=BLUE, lw=1, alpha=0.6)
        axes.scatter(new, past, color=BLUE, s=22, zorder=3)
        axes.scatter(new[-1:], past[-1:], color=ORANGE, s=60, zorder=4)
        (left, right), (bottom, top) = _span(new), _span(past)
        ends = {points[0]: False, points[-1]: True}  # whether the text goes below
        for (i, x, y), below in ends.items():
            inner = -1 if x - left > 0.4 * (right - left) else 1  # away from the nearer edge
            place = {"xy": (x, y), "xytext": (7 * inner, -14 if below else 8)}
            place["ha"] = "right" if inner < 0 else "left"
            axes.annotate(f"after experience {i}", textcoords="offset points", fontsize=8, **place)
    else:
        none = "no experience has a past to keep" if len(results["R"]) < 2 else "no past was scored"
        axes.text(0.5, 0.5, none, ha="center")
        left, right, bottom, top = 0.0, 1.0, 0.0, 1.0
    wide, high = right - left, top - bottom
    axes.set_xlim(left - (0.06 if left < 0 else 0.02) * wide, right + 0.04 * wide)
    axes.set_ylim(bottom - (0.1 if bottom < 0 else 0.02) * high, top + 0.06 * high)
    axes.set_xlabel("plasticity: score on what was just learned")
    axes.set_ylabel("stability: past scores, now over when learned")
    axes.grid(alpha=0.25)
    axes.set_title(title(results), fontsize=9)
    return figure


def _span(values) -> tuple[float, float]:
    """From 0 to 1, and as far beyond as values go."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return min(0.0, known.min(initial=0.0)), max(1.0, known.max(initial=1.0))


def _labels(entries: list[dict], every: int) -> list[str]:
    """Names without their number, or, where not all find room, positions."""
    if len(entries) > 25:
        return [str(k) for k in range(0, len(entries), every)]
    return [(e["name"].partition("_")[2] or e["name"])[:16] for e in entries]


def _pixels(figure: Figure) -> np.ndarray:
    """A figure as uint8 [H, W, 3]."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
