"""l2sp: a pull towards the weights that training started from (L2 with a starting point).

Source    Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with
          Convolutional Networks", ICML 2018, arXiv:1802.01483
Claim     a pretrained model is the better origin of weight decay: what it knows is kept, and the
          new task is learned at least as well
Loss      L + lam/2 ||theta_S - theta_S^0||^2 + beta/2 ||theta_new||^2, S what the reference has,
          new the head's rows that it lacks
State     theta_0: {name: tensor of the parameter's shape}, the reference
Needs     reference=base: nothing; reference=previous: experience boundaries
Defaults  lam, beta: ours (the paper searches both; beta=0.01 is recalled from it, unverified)
Departs   the paper has one transfer: reference=base pulls to the run's start throughout,
          reference=previous to the last experience's end. All that is trained is pulled, norms and
          biases too, and frozen parameters are left out. With base and a model drawn at random it
          pulls to random weights, which is what l2_init is for: there every head row is
          held at its own first value and the factor is lam, not lam/2; here the start is trained
          and new rows have none
Parameters
    lam        pull towards the reference; 0 with beta=0 is the base method [1]
    beta       weight decay of head rows that the reference lacks [1]
    reference  base (the model that the run starts from) or previous (the last experience's end)
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from cl.config import Range
from cl.importance import Named, values
from cl.models import GrowingHead
from cl.registry import register
from cl.strategy import Strategy


@register
class L2SP(Strategy):
    """L2 with a starting point."""

    by_name = True

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 0.1,
        beta: Annotated[float, Range(min=0)] = 0.0,
        reference: Literal["base", "previous"] = "base",
    ):
        self.needs = ("boundaries",) if reference == "previous" else ()
        self.lam, self.beta, self.reference = lam, beta, reference
        self.theta_0: Named = {}

    def before_training(self, loop):
        """The start. A head that grows starts anew, unless it was kept: it has no reference."""
        self.theta_0 = values(loop.model)
        if isinstance(getattr(loop.model, "head", None), GrowingHead) and not kept_head(loop.model):
            del self.theta_0["head.weight"], self.theta_0["head.bias"]

    def before_backward(self, loop):
        """Add the pull."""
        if self.lam or self.beta:
            near, new = squares(loop.model, self.theta_0)
            loop.add_loss("l2sp", self.lam / 2 * near + self.beta / 2 * new)

    def after_training_exp(self, loop):
        """The reference moves on, if it is to."""
        if self.reference == "previous":
            self.theta_0 = values(loop.model)


def kept_head(model) -> bool:
    """Whether the head's first rows come from another run."""
    start = (getattr(model, "architecture", None) or {}).get("start") or {}
    return bool(start.get("keep_head"))


def squares(model, theta_0):
    """(||theta - theta_0||^2 over what theta_0 has, ||theta||^2 of the rows that it lacks)."""
    near, new = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            old = theta_0.get(name)
            if old is None:
                new.append(p.square().sum())
            elif old.shape == p.shape:
                near.append((p - old).square().sum())
            else:  # the head has grown since
                near.append((p[: len(old)] - old).square().sum())
                new.append(p[len(old) :].square().sum())
    none = next(model.parameters()).new_zeros(1)
    return torch.stack([none[0], *near]).sum(), torch.stack([none[0], *new]).sum()
