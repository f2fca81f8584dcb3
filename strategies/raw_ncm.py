"""raw_ncm: nearest class mean on the inputs themselves, without a model.

Claim     an honest floor: what a method must beat before a learned extractor has shown its use
Maths     predict argmin over classes c of || x - mean_c ||
State     sums float64 [C, F], counts int64 [C]; F input values
Needs     nothing: means are running sums, so classes may come back
Defaults  no parameters
"""

from __future__ import annotations

import torch

from cl.registry import register
from cl.strategy import Strategy


@register
class RawNCM(Strategy):
    """Nearest class mean in input space."""

    domains = ("vision",)

    def __init__(self):
        self.sums = None  # float64 [C, F]
        self.counts = None  # float64 [C]

    def data(self, loop, experience):
        """No gradient training."""
        return

    def after_training_exp(self, loop):
        """Add the experience's rows to the sums of their classes."""
        n_classes = loop.seen_classes
        for x, y in loop.inputs(loop.experience.train):
            flat = x.flatten(1).double()
            self._grow(n_classes, flat)
            self.sums.index_add_(0, y, flat)
            self.counts += torch.bincount(y, minlength=len(self.counts))

    def predict(self, loop, batch):
        """Scores [B, C]: -||x - mean||^2 without the part that all classes share."""
        return scores(batch.x.flatten(1).double(), self.sums / self.counts[:, None])

    def _grow(self, n_classes, flat):
        if self.sums is None:
            self.sums = flat.new_zeros(0, flat.shape[1])
            self.counts = flat.new_zeros(0)
        new = n_classes - len(self.counts)
        if new > 0:
            self.sums = torch.cat([self.sums, self.sums.new_zeros(new, self.sums.shape[1])])
            self.counts = torch.cat([self.counts, self.counts.new_zeros(new)])


def scores(x, means):
    """2 x.m - ||m||^2 for x [B, F], means [C, F]: the largest belongs to the nearest mean."""
    return 2 * x @ means.T - means.pow(2).sum(1)
