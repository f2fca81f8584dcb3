"""ewc: elastic weight consolidation, a pull towards old weights where the Fisher is large.

Source    Kirkpatrick et al., PNAS 2017, arXiv:1612.00796
Claim     weights that the Fisher information calls important for earlier tasks can be slowed
          down selectively, so that old tasks are kept while new ones are learned
Loss      L + lam/2 sum_t sum_i F_{t,i} (theta_i - theta*_{t,i})^2      (eq. 3, one term per past
          experience t), F_t = mean over rows of (d log p(y|x) / d theta)^2 at theta*_t
State     F, mean: {name: float32 tensor, parameter's shape}, offset: float32 scalar.
          The sum over experiences is kept exactly as one quadratic, which the paper notes it is:
          F = sum_t F_t, mean = sum_t F_t theta*_t / F, offset = what is left over; memory and
          time per update do not grow with the number of experiences
Needs     experience boundaries; no task labels (with them F is taken among the task's classes)
Defaults  lam, fisher_samples: ours; the paper's lam is 400 on Atari. With SGD a pull is stable only
          while lr lam F < 2 (1 + momentum); before batch norm F reaches 10, hence lam=1. Without
          batch norm lam=10 to 100 at lr=0.05 protects far better. Policies are sure of what they
          do, and their F is small. With ppo on cartpole_actions, whose tasks want opposite actions,
          it is one or the other: up to lam=1000 the first task is lost, from 3000 the second is
          not learned (Continual World: 1e4); on physics and maps 300 to 1000 hold much of both
Departs   F of parameters that are trained at the experience's end, the growing head included (the
          paper's tasks have heads of their own or share all outputs); new head rows are free;
          F in evaluation mode, without augmentation (the paper does not say); fisher=true is the
          empirical Fisher, fisher=sampled one draw of y from the model per row. Text: p(y|x) is
          p(response | prompt), its log the sum over the response's tokens; a row is a prompt with
          its gold response, or, sampled, with an answer of the model's (one row at a time).
          Policies: rows are the latest observations with the actions taken there, at most 4,096; a
          critic of its own is free, as in Continual World; dqn: (dQ(s, a) / d theta)^2
Parameters
    lam             pull towards old weights; 0 is naive [1]
    fisher          labels, or responses, in F: true (the data's) or sampled (drawn from the model)
    fisher_samples  rows in each experience's F; none is all [rows]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from cl.config import Range
from cl.importance import accumulated, grown, log_likelihood, quadratic, sensitivity, values
from cl.registry import register
from cl.strategy import Strategy


@register
class EWC(Strategy):
    """Elastic weight consolidation."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 1.0,
        fisher: Literal["true", "sampled"] = "true",
        fisher_samples: Annotated[int, Range(min=1)] | None = 512,
    ):
        self.lam, self.fisher, self.fisher_samples = lam, fisher, fisher_samples
        self.F = self.mean = self.offset = None

    def before_backward(self, loop):
        """Add the penalty of all past experiences."""
        if self.lam and self.F is not None:
            held = quadratic(loop.model, self.F, self.mean) + self.offset
            loop.add_loss("ewc", self.lam / 2 * held)

    def after_training_exp(self, loop):
        """Fold this experience's F and theta* into the sum."""
        if self.lam == 0 or loop.adapted_dataset is None:
            return
        rng = loop.rng("ewc.fisher")
        drawn = self.fisher == "sampled"
        fisher = sensitivity(loop, self.fisher_samples, rng, log_likelihood(loop), 2, drawn=drawn)
        if self.F is None:
            self.F, self.mean, self.offset = {}, {}, torch.zeros((), device=loop.device)
        self.F, self.mean, more = folded(self.F, self.mean, fisher, values(loop.model))
        self.offset = self.offset + more


def folded(F1, mean1, F2, theta):
    """F1 (theta - mean1)^2 + F2 (theta - theta*)^2 = F (theta - mean)^2 + offset, exactly.

    F = F1 + F2, mean = (F1 mean1 + F2 theta*) / F, offset = sum F1 F2 (mean1 - theta*)^2 / F.
    """
    total, mean, offset = accumulated(F1, F2), dict(mean1), 0.0
    for name, new in F2.items():
        share = (new / total[name]).nan_to_num(1.0)  # of F2 in F; where F is zero: 1
        old = grown(mean1[name], new) if name in mean1 else torch.zeros_like(new)
        gap = theta[name] - old
        mean[name] = torch.where(share == 1, theta[name], old + share * gap)
        offset = offset + ((1 - share) * new * gap.square()).sum()
    return total, mean, offset
