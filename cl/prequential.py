"""Prequential accuracy: every arriving batch is answered before it is learned (Dawid 1984).

Only online streams are scored so. Answers are the argmax over all classes seen so far, the
batch's own included; model in evaluation mode, inputs not augmented; nothing is changed. A strategy
that claims its data learns whole experiences: it is asked for each in random order, before it, and
in experience 0, as one that claims prediction, it has no answers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl.evaluation import InferenceBatch
from cl.seeding import frozen

if TYPE_CHECKING:
    from cl.data import Table
    from cl.loop import Loop

WINDOWS = 100  # at most, kept of one experience


class Prequential:
    """Right answers to rows on arrival.

    windows: [updates, rows, right answers] each, in order; pending rows lie on the device.
    """

    def __init__(self, loop: Loop):
        self.loop = loop
        self.windows: list[list[int]] = []
        self.seconds = 0.0
        self._right: list[Tensor] = []
        self._rows = 0

    def piece(self, table: Table) -> None:
        """Answer a whole experience, for strategies that do not learn it batch by batch."""
        order = torch.randperm(len(table), generator=self.loop.rng("prequential"))
        for index in order.to(table.device).split(self.loop.eval_mb_size):
            self.batch(table, index, learning=False)
        self.flush()

    def batch(self, table: Table, index: Tensor, learning: bool = True) -> None:
        """Answer the rows at positions `index` [B]; learning: as batches of a gradient training."""
        started = time.perf_counter()
        loop = self.loop
        rows = table.rows(index)
        task = rows.get("task_label")
        if loop.experience.index == 0 and (loop.claimed("predict") or not learning):
            right = index.new_zeros(())  # nothing has been learned that could answer
        else:
            with frozen(loop.model):
                output = loop.predict(InferenceBatch(loop.prepared(rows["x"]), task))
            output = loop.restricted(output[:, : loop.seen_classes], task)
            right = loop.stream.is_right(rows, output.argmax(1)).sum()
        self._right.append(right)
        self._rows += len(index)
        self.seconds += time.perf_counter() - started
        if len(self._right) >= -(-loop.exp_updates // WINDOWS) > 0:
            self.flush()

    def flush(self) -> None:
        """Close the running window."""
        if self._right:
            right = int(torch.stack(self._right).sum())
            self.windows.append([self.loop.clock.train_iterations, self._rows, right])
            self._right, self._rows = [], 0

    def state(self) -> dict:
        """Everything but the time it took, for the checkpoint."""
        right = torch.stack(self._right) if self._right else None
        return {"windows": self.windows, "right": right, "rows": self._rows}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.windows, self._rows = state["windows"], state["rows"]
        self._right = [] if state["right"] is None else list(state["right"])
