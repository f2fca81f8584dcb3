"""derpp: dark experience replay++, stored logits and, on a second draw, stored labels.

Source    Buzzega et al., NeurIPS 2020, arXiv:2004.07211
Claim     labels of replayed items on top of their logits help where logits were stored around
          a sudden shift; forgets less than der and than replaying labels alone
Loss      L + alpha * mean (h(x') - z)^2 + beta * CE(h(x''), y'')
          x' and x'' are two independent draws from the memory, z the logits at insertion; the
          first mean is over the elements of the drawn [n, C], as in the authors' code (the
          equation's squared norm over C)
State     the buffer "derpp", a reservoir: raw rows and their logits z, float32 [n, C]
Needs     a buffer; no boundaries; task labels, where given, restrict both cross-entropies
Defaults  200 exemplars, as many in each draw as train.batch_size; alpha 0.1, beta 0.5, the
          authors' for sequential CIFAR-10 with 200 exemplars
Departs   the paper's head has all classes from the start, and z is low for classes to come, which
          the cross-entropy has pushed down. Where the head grows (classes=none), the new columns
          of z are the row's least logit; leaving them out of the mean lets new classes take over
          Under bf16, z has bf16's precision. A term of weight 0 draws nothing
          As in the paper: rows are offered at every update of every epoch, so that one row may be
          held twice; z belongs to the augmented view seen at insertion while x' and x'' are
          augmented afresh, with forward passes (and batch-norm statistics) of their own
          alpha / C counts: with few classes and a high train.lr, alpha of 1 is unstable
Parameters
    size        exemplars stored in all [rows]
    alpha       weight of matching the stored logits [1]
    beta        weight of the cross-entropy on stored labels [1]
    batch_size  exemplars per draw; none is train.batch_size [rows]
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
class DERpp(Strategy):
    """Replay of logits and labels."""

    needs = ("buffer",)
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        alpha: Annotated[float, Range(min=0)] = 0.1,
        beta: Annotated[float, Range(min=0)] = 0.5,
        batch_size: Annotated[int, Range(min=1)] | None = None,
        classes: Annotated[int, Range(min=2)] | None = None,
    ):
        self.size, self.alpha, self.beta, self.batch_size = size, alpha, beta, batch_size
        self.classes = classes
        self.dark = None  # x' of the running update
        self.labelled = None  # x'' of the running update
        self.z = []  # the logits of its own rows, part by part

    def before_training(self, loop):
        """Make the head as wide as it will be."""
        if self.classes:
            loop.grow_to(self.classes)

    def before_training_iteration(self, loop):
        """Two independent draws."""
        buffer, n = self._buffer(loop), self.batch_size or loop.train_mb_size
        if len(buffer) and self.alpha:
            self.dark = buffer.draw(n, loop.rng("derpp.dark"))
        if len(buffer) and self.beta:
            self.labelled = buffer.draw(n, loop.rng("derpp.labelled"))

    def after_forward(self, loop):
        """Keep the logits of the batch's own rows, which come first."""
        self.z.append(loop.mb_output.detach()[: len(loop.mb_index)].float())

    def before_backward(self, loop):
        """Both terms; of several micro-batches each has its part."""
        for drawn, term in ((self.dark, self._match), (self.labelled, self._classify)):
            rows, share = part_of(loop, drawn)
            if share:
                term(loop, rows, loop.model(loop.augmented(rows["x"])), share)

    def after_training_iteration(self, loop):
        """Offer the update's rows with their logits from before the update."""
        z, buffer = torch.cat(self.z), self._buffer(loop)
        self.dark, self.labelled, self.z = None, None, []
        if buffer.rows:
            buffer.rows["logits"] = widened(buffer.rows["logits"], z.shape[1])
        rows = {**loop.adapted_dataset.rows(loop.mb_index), "logits": z}
        buffer.add(rows, loop.rng("derpp.store"))

    def _match(self, loop, rows, h, share):
        distance = F.mse_loss(h.float(), widened(rows["logits"], h.shape[1]))
        loop.add_loss("derpp_logits", self.alpha * share * distance)

    def _classify(self, loop, rows, h, share):
        loss = F.cross_entropy(loop.restricted(h, rows.get("task_label")), rows["y"])
        loop.add_loss("derpp_labels", self.beta * share * loss)

    def _buffer(self, loop):
        return loop.buffer("derpp", self.size, "reservoir")


def widened(z, width):
    """Logits z [n, C'] with new columns up to `width`, each row's least logit."""
    if z.shape[1] == width:
        return z
    return torch.cat([z, z.amin(1, keepdim=True).expand(-1, width - z.shape[1])], 1)
