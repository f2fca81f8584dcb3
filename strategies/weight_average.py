"""weight_average: after every experience, the mean of the model before it and the one after it.

Source    the control that cards ask for, (1 - alpha) theta^0 + alpha theta; two points of one
          fine-tuning: Wortsman et al., WiSE-FT, CVPR 2022, arXiv:2109.01903
Claim     between a model and its fine-tuned self there are models that have nearly learned the
          new and nearly kept the old, at no cost in training
Maths     theta <- (1 - alpha) theta_before + alpha theta, after an experience's training; what is
          scored, and what the next experience starts from
State     before: state_dict of the experience's start, during the experience
Needs     experience boundaries
Defaults  alpha=0.5 (ours)
Departs   batch-norm statistics are averaged in the same way, which is not what the averaged model
          would measure (those could be had by another pass over the data); counts of batches, and
          head rows that come with the experience, are those of the trained model. The optimizer's
          state is kept. Experience 0 is averaged with the model that the run starts from: use
          first=false where that is drawn at random
Parameters
    alpha  share of the trained model; 1 is the base method [1]
    first  whether the first experience is averaged, too
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy


@register
class WeightAverage(Strategy):
    """Averaging over each experience."""

    by_name = True
    needs = ("boundaries",)

    def __init__(self, *, alpha: Annotated[float, Range(min=0, max=1)] = 0.5, first: bool = True):
        self.alpha, self.first = alpha, first
        self.before = None

    def before_train_dataset_adaptation(self, loop):
        """Keep the start, before the head grows."""
        if self.alpha < 1 and (self.first or loop.experience.index > 0):
            state = loop.model.state_dict()
            self.before = {name: t.clone() for name, t in state.items() if t.is_floating_point()}

    def after_training_exp(self, loop):
        """The mean, in place."""
        if self.before is not None:
            average(loop.model, self.before, self.alpha)
        self.before = None


@torch.no_grad()
def average(model, before, alpha):
    """theta <- (1 - alpha) before + alpha theta, of the rows that `before` has."""
    pairs = [(theta, before[n]) for n, theta in model.state_dict().items() if n in before]
    pairs = [(theta[: len(old)] if theta.dim() else theta, old) for theta, old in pairs]
    means = [torch.lerp(old, theta, alpha) for theta, old in pairs]
    for (theta, _), mean in zip(pairs, means, strict=True):  # not before: some may be tied
        theta.copy_(mean)
