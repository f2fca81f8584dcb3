"""rwalk: Riemannian walk, a running Fisher plus how much each weight lowered the loss per KL.

Source    Chaudhry et al., ECCV 2018, arXiv:1801.10112
Claim     EWC++ (a Fisher that runs along with training) joined to a path score over distances in
          KL keeps more and learns more than either alone
Loss      L + lam sum_i (F_i + s_i) (theta_i - theta*_i)^2, both in [0, 1], theta* after the last
          experience
Maths     every `interval` updates F <- alpha g^2 + (1 - alpha) F, g^2 its mean over the interval;
          s += max(0, -sum g dtheta / (F Delta^2 / 2 + xi)), Delta the movement in the interval;
          after an experience s is averaged with what the earlier ones left: (old + s) / 2
State     F, score, held = F / max F + s / max s: {name: float32 tensor, parameter's shape};
          during an experience also start (theta*), the path (now, drop, square, since, n: score,
          fall of the loss, sum of g^2, weights at the interval's start, its updates) and step
Needs     experience boundaries; no task labels, and no exemplars (see Departs)
Defaults  of the authors' code (A-GEM's): alpha=0.9, interval=50 (10 on MNIST), xi=0.001; lam: ours
Departs   the paper replays exemplars too: here that is replay+rwalk; g is the batch's gradient of
          everything but this penalty, whose analytic gradient is taken off, before clipping; F
          starts as the first interval's g^2, and is renewed before the score that it divides; an
          interval that an experience cuts short counts; new head rows are free. Negative scores
          count as 0 interval by interval, as in the code; the half in the divisor is the paper's,
          the code has none, and takes off the smallest value before it divides by the largest
Parameters
    lam       pull towards the latest weights; 0 is naive [1]
    alpha     share of the newest interval in the Fisher [1]
    interval  updates between two renewals of Fisher and score [updates]
    xi        damping where a weight has hardly moved [1]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.importance import grown, quadratic, quadratic_gradient, values
from cl.registry import register
from cl.strategy import Strategy


@register
class RWalk(Strategy):
    """Riemannian walk."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 1.0,
        alpha: Annotated[float, Range(above=0, max=1)] = 0.9,
        interval: Annotated[int, Range(min=1)] = 50,
        xi: Annotated[float, Range(above=0)] = 1e-3,
    ):
        self.lam, self.alpha, self.interval, self.xi = lam, alpha, interval, xi
        self.F = self.score = self.held = self.start = self.step = None
        self.now = self.drop = self.square = self.since = None
        self.n = 0

    def before_training_exp(self, loop):
        """The path begins; theta* is where the last one ended."""
        self.start = values(loop.model)
        self.now = zeros(self.start)
        self._open(self.start)

    def before_backward(self, loop):
        """Add the penalty."""
        if self.lam and self.held is not None:
            loop.add_loss("rwalk", self.lam * quadratic(loop.model, self.held, self.start))

    def before_update(self, loop):
        """Keep the gradient without the penalty's part, and the weights before the update."""
        self.step = {}
        for name, p in loop.model.named_parameters():
            if p.grad is not None and p.requires_grad:
                g = p.grad.detach().clone()
                if self.lam and self.held is not None:
                    g -= self.lam * quadratic_gradient(name, p, self.held, self.start)
                self.step[name] = g, p.detach().clone()

    def after_update(self, loop):
        """One step of the path; the last one of an interval renews Fisher and score."""
        for name, p in loop.model.named_parameters():
            if name in self.step:
                g, before = self.step[name]
                self.drop[name].addcmul_(g, p.detach() - before, value=-1)
                self.square[name].addcmul_(g, g)
        self.step, self.n = None, self.n + 1
        if self.n == self.interval:
            self._close(values(loop.model))

    def after_training_exp(self, loop):
        """Average the scores and bring both importances to [0, 1]."""
        if self.n:
            self._close(values(loop.model))
        if self.F is not None and loop.adapted_dataset is not None:
            self.score = averaged(self.score, self.now)
            F, s = to_one(self.F), to_one(self.score)
            self.held = {name: grown(F[name], s[name]) + s[name] for name in s}
        self.start = self.now = self.drop = self.square = self.since = None

    def _open(self, theta):
        self.drop, self.square = zeros(theta), zeros(theta)
        self.since, self.n = theta, 0

    def _close(self, theta):
        new = {name: g / self.n for name, g in self.square.items()}
        old = self.F or new
        self.F = {k: self.alpha * f + (1 - self.alpha) * grown(old[k], f) for k, f in new.items()}
        for name, drop in self.drop.items():
            Delta = theta[name] - self.since[name]
            self.now[name] += per_distance(drop, self.F[name], Delta, self.xi)
        self._open(theta)


def per_distance(drop, F, Delta, xi):
    """max(0, drop / (F Delta^2 / 2 + xi)): the fall of the loss per KL between the two models."""
    return (drop / (F * Delta.square() / 2 + xi)).clamp_min(0)


def averaged(old, new):
    """The mean of two scores; rows that are new to the head had a score of 0."""
    return new if old is None else {k: (grown(old[k], s) + s) / 2 for k, s in new.items()}


def to_one(named):
    """Divided by the largest of all values."""
    largest = torch.stack([t.max() for t in named.values()]).max().clamp_min(1e-30)
    return {name: t / largest for name, t in named.items()}


def zeros(like):
    """{name: zeros of the same shape}."""
    return {name: torch.zeros_like(p) for name, p in like.items()}
