"""ncm: nearest class mean on the features of a frozen backbone.

Source    Janson et al. 2022, arXiv:2210.04428 (means of frozen features); the cosine metric is
          that of iCaRL's classifier (Rebuffi et al., CVPR 2017, arXiv:1611.07725, alg. 1)
Claim     on a pretrained backbone that is never trained, class means reach or beat most methods
          that continue to train one
Maths     euclidean: argmin_c ||f(x) - mu_c||, mu_c the mean of the class's features; written as a
          linear head, W_c = mu_c, b_c = -||mu_c||^2 / 2
          cosine: every feature is divided by its L2 norm, and so is their mean; W_c = mu_c, b_c = 0
State     sums float64 [C, D], counts float64 [C]
Needs     experience boundaries if adapt=first; means are sums, so classes may come back and domains
          may change: all rows of a class count the same
Defaults  the paper's: backbone as given, euclidean
Departs   cosine averages all rows of a class, where iCaRL averages exemplars
Parameters
    adapt   none (backbone as given) or first (experience 0 trains it, then it rests)
    metric  euclidean or cosine
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from cl.frozen_features import (
    adaptation_data,
    class_sums,
    experience_features,
    needs_of,
    rest,
    write_head,
)
from cl.registry import register
from cl.strategy import Strategy


@register
class NCM(Strategy):
    """Nearest class mean in feature space."""

    needs = ("boundaries",)
    requires = ("features", "head", "normalize")
    domains = ("vision",)

    def __init__(
        self,
        *,
        adapt: Literal["none", "first"] = "none",
        metric: Literal["euclidean", "cosine"] = "euclidean",
    ):
        self.adapt, self.metric = adapt, metric
        self.needs = needs_of(adapt)
        self.sums = None  # float64 [C, D]
        self.counts = None  # float64 [C]

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Add the experience's features to the sums of their classes; write the head."""
        x, y = experience_features(loop)
        if self.metric == "cosine":
            x = F.normalize(x)
            loop.model.normalize = True
        self.sums = class_sums(x, y, loop.seen_classes, self.sums)
        self.counts = class_sums(torch.ones_like(x[:, 0]), y, loop.seen_classes, self.counts)
        write_head(loop, *linear(self.sums / self.counts[:, None], self.metric))


def linear(mu, metric):
    """The linear classifier (W [C, D], b [C]) that finds the nearest of the means mu [C, D]."""
    if metric == "cosine":
        return F.normalize(mu), mu.new_zeros(len(mu))
    return mu, -mu.pow(2).sum(1) / 2
