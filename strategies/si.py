"""si: synaptic intelligence, a pull towards old weights that did the work of lowering the loss.

Source    Zenke et al., ICML 2017, arXiv:1703.04200
Claim     importance measured along the path of learning, at no extra pass over data, keeps old
          tasks about as well as EWC
Loss      L + c sum_k Omega_k (theta~_k - theta_k)^2                 (eq. 4)
Maths     omega_k -= g_k dtheta_k at every update; after an experience
          Omega_k += omega_k / (Delta_k^2 + xi)                      (eq. 5), Delta its movement
State     Omega: {name: float32 tensor, parameter's shape}; during an experience also omega and
          start, the weights at its beginning, which are theta~; during an update also
          step, {name: (g, the weights before it)}
Needs     experience boundaries; no task labels
Defaults  the paper's on permuted MNIST: c=0.1, xi=0.1
Departs   g is the gradient of everything but this penalty: the analytic gradient of the penalty
          is taken off the complete one, before clipping; terms of other strategies count as
          loss; weight decay does not count; negative omega (the loss rose) counts as 0, or the
          penalty would have no minimum (the authors' code clips the sum over tasks); new head
          rows are free.
          Avalanche 0.6.0's SI keeps views of the live weights where they are contiguous and on
          a CPU, so that every dtheta is 0 there and it never pulls; here the weights are copied
          With ppo the loss is that of new steps every time, whose fall says less of what matters
Parameters
    c   strength of the penalty; 0 is naive [1]
    xi  damping where a weight has hardly moved [1]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.importance import accumulated, quadratic, quadratic_gradient, values
from cl.registry import register
from cl.strategy import Strategy


@register
class SI(Strategy):
    """Synaptic intelligence."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        c: Annotated[float, Range(min=0)] = 0.1,
        xi: Annotated[float, Range(above=0)] = 0.1,
    ):
        self.c, self.xi = c, xi
        self.Omega = self.omega = self.start = self.step = None

    def before_training_exp(self, loop):
        """The path begins: theta~ is where the last one ended, the head's new rows included."""
        self.start = values(loop.model)
        self.omega = {name: torch.zeros_like(p) for name, p in self.start.items()}

    def before_backward(self, loop):
        """Add the penalty (eq. 4)."""
        if self.c and self.Omega is not None:
            loop.add_loss("si", self.c * quadratic(loop.model, self.Omega, self.start))

    def before_update(self, loop):
        """Keep the gradient without the penalty's part, and the weights before the update."""
        self.step = {}
        for name, p in loop.model.named_parameters():
            if p.grad is not None and p.requires_grad:
                g = p.grad.detach().clone()
                if self.c and self.Omega is not None:
                    g -= self.c * quadratic_gradient(name, p, self.Omega, self.start)
                self.step[name] = g, p.detach().clone()

    def after_update(self, loop):
        """omega_k -= g_k dtheta_k."""
        for name, p in loop.model.named_parameters():
            if name in self.step:
                g, before = self.step[name]
                self.omega[name].addcmul_(g, p.detach() - before, value=-1)
        self.step = None

    def after_training_exp(self, loop):
        """Fold the path into Omega."""
        new = strengths(self.omega, self.start, values(loop.model), self.xi)
        self.Omega = accumulated(self.Omega, new)
        self.omega = self.start = None


def strengths(omega, start, end, xi):
    """omega / (Delta^2 + xi), no less than 0 (eq. 5)."""
    return {k: w.clamp_min(0) / ((end[k] - start[k]).square() + xi) for k, w in omega.items()}
