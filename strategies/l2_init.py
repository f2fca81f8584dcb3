"""l2_init: a pull towards the initial weights (regenerative regularisation, L2 Init).

Source    Kumar, Marklund, Van Roy 2023, "Maintaining Plasticity in Continual Learning via
          Regenerative Regularization", CoLLAs 2024, arXiv:2308.11958
Claim     parameters that recent losses are insensitive to drift back to their initial values, from
          where they are quickly learned again: plasticity is kept over hundreds of tasks, as well
          as by resetting units and with one number to set
Loss      L + lam * ||theta - theta_0||^2      (section 3; no factor 1/2, which the authors' code
          has: its lam is half as strong)
State     theta_0: {name: tensor of the parameter's shape}, every parameter's initial values
Needs     nothing: boundaries are not used. What it gives up for plasticity it does not protect
          from forgetting: on class-incremental streams expect no more than `naive` keeps. Where
          the start is a trained model, l2sp holds it
Defaults  lam=0.001 (ours; the paper tunes over 1e-2, 1e-3, 1e-4, 1e-5)
Departs   head columns that are grown later are anchored at their own initial values (in the paper
          the head does not grow); frozen parameters are left out; layer norms count (not in the
          authors' code)
Parameters
    lam  pull towards theta_0 [1]
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy


@register
class L2Init(Strategy):
    """L2 Init."""

    by_name = True

    def __init__(self, *, lam: Annotated[float, Range(min=0)] = 1e-3):
        self.lam = lam
        self.theta_0: dict[str, Tensor] = {}

    def before_training_exp(self, loop):
        """Remember the initial values of what is new: all of the model, then new head columns."""
        self.theta_0 = anchored(self.theta_0, loop.model)

    def before_backward(self, loop):
        """Add the pull."""
        if self.lam:
            loop.add_loss("l2_init", self.lam * squared_distance(loop.model, self.theta_0))


def anchored(theta_0: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """theta_0 with the present values of parameters, and of rows of parameters, that it lacks."""
    return {
        name: torch.cat([known, p.detach()[len(known) :]])
        if (known := theta_0.get(name)) is not None and p.dim()
        else p.detach().clone()
        for name, p in model.named_parameters()
    }


def squared_distance(model: nn.Module, theta_0: dict[str, Tensor]) -> Tensor:
    """||theta - theta_0||^2 over the parameters that are trained."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return torch.stack([(p - theta_0[name]).square().sum() for name, p in trained]).sum()
