"""er_ace: experience replay whose incoming rows compete only among classes of their batch.

Source    Caccia et al., ICLR 2022, arXiv:2104.05025
Claim     plain replay pushes the features of old classes away when new ones arrive; an
          asymmetric cross-entropy leaves them where they are, and forgets less
Loss      CE(X_in; C_curr) + CE(X_bf; C_old + C_curr)          (the paper's L_ace)
          C_curr: classes present in the incoming batch, over which alone its softmax runs;
          replayed rows compete among all columns of the head, that is all classes seen
State     the buffer "er_ace", a reservoir of raw rows
Needs     a buffer; no boundaries; task labels, where given, restrict both terms as well
Defaults  200 exemplars, as many replayed as train.batch_size (the paper: 10 and 10)
Departs   the paper is one pass over the stream; of several epochs the first alone is offered to
          the reservoir, so that a row is held once. With train.accumulate > 1, C_curr is that of
          the micro-batch. The authors' code also keeps columns of classes not yet met in the
          incoming softmax; the equation, and this file, do not
          As in the paper: rehearsal begins at once, also of rows of the current experience, in a
          forward pass (and with batch-norm statistics) of its own, augmented afresh
Parameters
    size        exemplars stored in all [rows]
    batch_size  exemplars per update; none is train.batch_size [rows]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.objectives.cross_entropy import CrossEntropy
from cl.registry import register
from cl.replayed import part_of
from cl.strategy import Strategy


@register
class ERACE(Strategy):
    """Experience replay with asymmetric cross-entropy."""

    needs = ("buffer",)
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        batch_size: Annotated[int, Range(min=1)] | None = None,
    ):
        self.size, self.batch_size = size, batch_size
        self.drawn = None  # X_bf of the running update

    def objective(self, loop):
        """The incoming rows' part of the loss."""
        return Incoming()

    def before_training_iteration(self, loop):
        """Draw the update's stored rows."""
        buffer, n = self._buffer(loop), self.batch_size or loop.train_mb_size
        self.drawn = buffer.draw(n, loop.rng("er_ace.draw")) if len(buffer) else None

    def before_backward(self, loop):
        """The replayed rows' part; of several micro-batches each has its share."""
        rows, share = part_of(loop, self.drawn)
        if share:
            output = loop.model(loop.augmented(rows["x"]))
            output = loop.restricted(output, rows.get("task_label"))
            loop.add_loss("replay", share * F.cross_entropy(output, rows["y"]))

    def after_training_iteration(self, loop):
        """Offer each row once, in the first epoch."""
        self.drawn = None
        if loop.clock.train_exp_epochs == 0:
            rows = loop.adapted_dataset.rows(loop.mb_index)
            self._buffer(loop).add(rows, loop.rng("er_ace.store"))

    def _buffer(self, loop):
        return loop.buffer("er_ace", self.size, "reservoir")


class Incoming(CrossEntropy):
    """Cross-entropy among the classes present in the batch."""

    name = "incoming"

    def loss(self, loop):
        """Mean over the batch; task labels, where given, restrict it further."""
        output = loop.restricted(loop.mb_output, loop.mb_task_id)
        return self.criterion(among_present(output, loop.mb_y), loop.mb_y)


def among_present(output, y):
    """Logits [B, C] with -inf for classes that no row of y [B] has."""
    present = torch.zeros(output.shape[1], dtype=torch.bool, device=output.device)
    present[y] = True
    return output.masked_fill(~present, float("-inf"))
