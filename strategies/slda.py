"""slda: streaming linear discriminant analysis on the features of a frozen backbone.

Source    Hayes and Kanan, CVPR workshops 2020, arXiv:1909.01520
Claim     running class means and one shared running covariance, one pass, no stored item, beat
          streaming and incremental-batch methods of their time
Maths     for the t-th feature z (t features came before) of class y, seen c_y times:
          Delta = t / (t + 1) (z - mu_y)(z - mu_y)^T,  Sigma <- (t Sigma + Delta) / (t + 1)
          mu_y <- (c_y mu_y + z) / (c_y + 1)
          Lambda = ((1 - eps) Sigma + eps I)^-1,  W = Lambda mu^T,  b_c = -mu_c^T Lambda mu_c / 2
State     sums float64 [C, D], counts float64 [C]; S = t Sigma float64 [D, D]; t
Needs     experience boundaries if adapt=first or covariance=fixed; sums and counts go on where a
          class comes back or its domain changes
Defaults  the paper's eps=1e-4, streaming covariance and, on CORe50, backbone as given (on ImageNet
          it is trained on the first 100 classes, as with adapt=first)
Departs   all of an experience's rows are taken at once in the order of its table, which gives what
          the recursion gives; the first feature of a class has no mean to differ from, so its Delta
          is 0 (the authors' code takes a mean of 0); no base initialisation (there the covariance
          of the first classes is an OAS estimate): the recursion starts with the first feature
Parameters
    adapt       none (backbone as given) or first (experience 0 trains it, then it rests)
    covariance  streaming (updated by every feature) or fixed after experience 0
    eps         shrinkage of the covariance towards I; 1 is the nearest class mean [1]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from cl.config import Range
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
class SLDA(Strategy):
    """Deep streaming LDA."""

    needs = ("boundaries",)
    requires = ("features", "head")
    domains = ("vision",)

    def __init__(
        self,
        *,
        adapt: Literal["none", "first"] = "none",
        covariance: Literal["streaming", "fixed"] = "streaming",
        eps: Annotated[float, Range(above=0, max=1)] = 1e-4,
    ):
        self.adapt, self.covariance, self.eps = adapt, covariance, eps
        self.needs = needs_of(adapt)
        self.sums = None  # float64 [C, D]
        self.counts = None  # float64 [C]
        self.S = None  # float64 [D, D], t * Sigma
        self.t = 0  # features in S

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Run the recursion over the experience's features; write the head."""
        z, y = experience_features(loop)
        C = loop.seen_classes
        sums = class_sums(z[:0], y[:0], C, self.sums)
        counts = class_sums(z[:0, 0], y[:0], C, self.counts)
        if self.S is None or self.covariance == "streaming":
            S = scatter(z, y, sums, counts, self.t)
            self.S = S if self.S is None else self.S + S
            self.t += len(z)
        self.sums = class_sums(z, y, C, sums)
        self.counts = class_sums(torch.ones_like(z[:, 0]), y, C, counts)
        mu = self.sums / self.counts[:, None]
        write_head(loop, *discriminant(mu, self.S / self.t, self.eps))


def scatter(z, y, sums, counts, t):
    """The sum of the Deltas that z [N, D], y [N] bring: by so much t Sigma grows.

    sums [C, D], counts [C]: of the features before z[0]; t: how many those were.
    """
    deviation = torch.zeros_like(z)
    for c in y.unique():
        rows = (y == c).nonzero()[:, 0]
        before = counts[c] + torch.arange(len(rows), device=z.device)  # [n] of this class so far
        mu = (sums[c] + z[rows].cumsum(0) - z[rows]) / before.clamp_min(1)[:, None]
        deviation[rows] = torch.where(before[:, None] > 0, z[rows] - mu, 0.0)
    past = t + torch.arange(len(z), device=z.device).double()
    return deviation.T @ (deviation * (past / (past + 1))[:, None])


def discriminant(mu, Sigma, eps):
    """W [C, D] and b [C] from means mu [C, D] and covariance Sigma [D, D]."""
    eye = torch.eye(len(Sigma), dtype=Sigma.dtype, device=Sigma.device)
    factor = torch.linalg.cholesky((1 - eps) * Sigma + eps * eye)
    W = torch.cholesky_solve(mu.T, factor).T
    return W, -(mu * W).sum(1) / 2
