"""der: dark experience replay, stored items keep the logits they were stored with.

Source    Buzzega et al., NeurIPS 2020, arXiv:2004.07211
Claim     matching past logits of replayed items forgets less than replaying their labels
Loss      L + alpha * mean (h(x') - z)^2          x' from the memory, z its logits
          at insertion; the mean is over the elements of the drawn [n, C], as in the authors' code
          (the equation's squared norm over C)
State     the buffer "der", a reservoir: raw rows and their logits z, float32 [n, C]
Needs     a buffer; no boundaries, no task labels
Defaults  200 exemplars, as many drawn as train.batch_size; alpha 0.3, the authors' for sequential
          CIFAR-10 with 200 exemplars
Departs   the paper's head has all classes from the start, and z is low for classes to come, which
          the cross-entropy has pushed down. Where the head grows (classes=none), the new columns
          of z are the row's least logit; leaving them out of the mean lets new classes take over
          (split_digits, alpha 0.5: 0.20 instead of 0.89)
          Under bf16, z has bf16's precision. alpha=0 replays nothing
          As in the paper: rows are offered at every update of every epoch, so that one row may be
          held twice; z belongs to the augmented view seen at insertion while x' is
          augmented afresh, with forward passes (and batch-norm statistics) of their own
          alpha / C counts: with few classes and a high train.lr, alpha of 1 is unstable
Parameters
    size        exemplars stored in all [rows]
    alpha       weight of matching the stored logits [1]
    batch_size  exemplars per update; none is train.batch_size [rows]
    classes     width of the head from the start, as in the paper; none: it grows [classes]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.registry import register
from cl.replayed import part_of
from cl.strategy import Strategy


@register
class DER(Strategy):
    """Replay of logits."""

    needs = ("buffer",)
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        alpha: Annotated[float, Range(min=0)] = 0.3,
        batch_size: Annotated[int, Range(min=1)] | None = None,
        classes: Annotated[int, Range(min=2)] | None = None,
    ):
        self.size, self.alpha, self.batch_size = size, alpha, batch_size
        self.classes = classes
        self.drawn = None  # the stored rows of the running update
        self.z = []  # the logits of its own rows, part by part

    def before_training(self, loop):
        """Make the head as wide as it will be."""
        if self.classes:
            loop.grow_to(self.classes)

    def before_training_iteration(self, loop):
        """Draw the update's stored rows."""
        buffer, n = self._buffer(loop), self.batch_size or loop.train_mb_size
        self.drawn = buffer.draw(n, loop.rng("der.draw")) if len(buffer) and self.alpha else None

    def after_forward(self, loop):
        """Keep the logits of the batch's own rows, which come first."""
        self.z.append(loop.mb_output.detach()[: len(loop.mb_index)].float())

    def before_backward(self, loop):
        """The distance to the stored logits; of several micro-batches each has its part."""
        rows, share = part_of(loop, self.drawn)
        if share:
            h = loop.model(loop.augmented(rows["x"]))
            loop.add_loss(
                "der",
                self.alpha * share * F.mse_loss(h.float(), widened(rows["logits"], h.shape[1])),
            )

    def after_training_iteration(self, loop):
        """Offer the update's rows with their logits from before the update."""
        z, buffer = torch.cat(self.z), self._buffer(loop)
        self.drawn, self.z = None, []
        if buffer.rows:
            buffer.rows["logits"] = widened(buffer.rows["logits"], z.shape[1])
        rows = {**loop.adapted_dataset.rows(loop.mb_index), "logits": z}
        buffer.add(rows, loop.rng("der.store"))

    def _buffer(self, loop):
        return loop.buffer("der", self.size, "reservoir")


def widened(z, width):
    """Logits z [n, C'] with new columns up to `width`, each row's least logit."""
    if z.shape[1] == width:
        return z
    return torch.cat([z, z.amin(1, keepdim=True).expand(-1, width - z.shape[1])], 1)
