"""feature_oracle: the features of all training data are kept, the best linear head is refitted.

Source    ours: the upper bound of every method that puts a linear head on a frozen backbone
Claim     what the backbone's features allow; the distance to it is the classifier's forgetting
Maths     multinomial logistic regression on standardised features of all rows so far,
          min 1/2 ||W||^2 + C sum_i -log softmax(W z_i + b)[y_i],  z = (f(x) - mean) / std,
          from scratch after every experience; mean and std go into the head
State     features float32 [N, D] and labels int64 [N] of all training rows so far
Needs     a buffer of everything; experience boundaries
Defaults  backbone as given; C=1 (scikit-learn's), lbfgs, at most 1000 iterations
Departs   nothing to depart from; a bound for linear heads with this much regularisation: ranpac
          and fecam are not linear in f(x) and may pass it
Parameters
    adapt  none (backbone as given) or first (experience 0 trains it, then it rests)
    C      inverse strength of the L2 penalty [1]
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from cl.config import Range
from cl.frozen_features import adaptation_data, needs_of, rest, write_head
from cl.registry import register
from cl.strategy import Strategy


@register
class FeatureOracle(Strategy):
    """Logistic regression on all features so far."""

    needs = ("buffer", "boundaries")
    requires = ("features", "head")
    domains = ("vision",)

    def __init__(
        self,
        *,
        adapt: Literal["none", "first"] = "none",
        C: Annotated[float, Range(above=0)] = 1.0,
    ):
        self.adapt, self.C = adapt, C
        self.needs = ("buffer", *needs_of(adapt))
        self.x = None  # float32 [N, D]
        self.y = None  # int64 [N]

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Keep the experience's features; refit the head on all that are kept."""
        x, y = loop.features(loop.experience.train), loop.experience.train.column("y")
        self.x = x if self.x is None else torch.cat([self.x, x])
        self.y = y if self.y is None else torch.cat([self.y, y])
        weight, bias = logistic(self.x.cpu().numpy(), self.y.cpu().numpy(), self.C)
        write_head(loop, torch.from_numpy(weight), torch.from_numpy(bias))


def logistic(x, y, C):
    """weight [C, D] and bias [C] for x [N, D] as it is; y [N] holds every class 0..C-1."""
    x = x.astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-8 * max(1e-300, std.max()), std, 1.0)
    if not y.any():  # one class: nothing to separate
        return np.zeros((1, x.shape[1])), np.zeros(1)
    machine = LogisticRegression(C=C, max_iter=1000).fit((x - mean) / std, y)
    weight, bias = machine.coef_, machine.intercept_
    if len(weight) == 1:  # two classes share one logit
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / std
    return weight, bias - weight @ mean
