"""mas: memory aware synapses, a pull towards old weights where the output is sensitive to them.

Source    Aljundi et al., ECCV 2018, arXiv:1711.09601
Claim     importance can be taken from how much the learned function moves, without labels and
          without the loss, and protects as well as loss-based importance
Loss      L + lam sum_i Omega_i (theta_i - theta*_i)^2, theta* after the last experience;
          Omega += mean over rows of |d ||f(x)||_2^2 / d theta|, f(x) the logits
State     Omega, theta: {name: float32 tensor, parameter's shape}
Needs     experience boundaries; no task labels (with them the logits of the row's task count)
Defaults  lam, samples: ours. The paper has lam=1 and all rows, which diverges on digits at
          train.lr=0.05: with SGD a pull is stable only while lr lam Omega < 1 + momentum
Departs   Omega of all that is trained, the growing head included (the paper shares layers and has
          a head per task); new head rows are free; Omega is summed over experiences, of which
          the paper says that it accumulates; in evaluation mode, without augmentation, on
          training rows (the paper also takes test rows); its local, Hebbian form is left out.
          Text: f(x) are the logits that predict the gold response's tokens, all of them together;
          policies: the scores of actions, or means, on the latest observations
Parameters
    lam      pull towards the latest weights; 0 is naive [1]
    samples  rows in each experience's Omega; none is all [rows]
"""

from __future__ import annotations

from typing import Annotated

from cl.config import Range
from cl.importance import accumulated, quadratic, sensitivity, values
from cl.registry import register
from cl.strategy import Strategy


@register
class MAS(Strategy):
    """Memory aware synapses."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 0.001,
        samples: Annotated[int, Range(min=1)] | None = 512,
    ):
        self.lam, self.samples = lam, samples
        self.Omega = self.theta = None

    def before_backward(self, loop):
        """Add the penalty."""
        if self.lam and self.Omega is not None:
            loop.add_loss("mas", self.lam * quadratic(loop.model, self.Omega, self.theta))

    def after_training_exp(self, loop):
        """Add this experience's sensitivities; the anchor moves to the weights as they are."""
        if self.lam == 0 or loop.adapted_dataset is None:
            return

        def squared_norm(logits, y, task_id, *_):
            own = loop.restricted(logits, task_id)  # -inf outside the row's task
            return own.masked_fill(own.isinf(), 0).square().sum()

        moved = sensitivity(loop, self.samples, loop.rng("mas.rows"), squared_norm, 1)
        self.Omega, self.theta = accumulated(self.Omega, moved), values(loop.model)
