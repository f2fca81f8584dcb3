"""online_ewc: EWC with one Fisher that fades and one anchor, the latest weights.

Source    Schwarz et al., ICML 2018, arXiv:1805.06370 (section 4)
Claim     one decaying Fisher around the latest optimum replaces a penalty per task: constant
          cost, and old tasks are forgotten gracefully when capacity runs out
Loss      L + lam/2 sum_i gamma F*_i (theta_i - theta*_i)^2          (eq. 8), theta* after the
          last experience; then F* <- gamma F* + F                  (eq. 9), with F = mean over
          rows of (d log p(y|x) / d theta)^2
State     F, theta: {name: float32 tensor, parameter's shape}
Needs     experience boundaries; no task labels (with them F is taken among the task's classes)
Defaults  gamma=0.95 is the paper's on Omniglot (there with lam=17.5); lam, fisher_samples: ours.
          With SGD a pull is stable only while lr lam gamma F* < 2 (1 + momentum); before batch norm
          F* passes 10, hence lam=1. Without batch norm lam=10 to 100 at lr=0.05 protects far better
Departs   the paper pulls a knowledge base while an active column is distilled into it; here
          the penalty is added to the loss of learning itself; lam is not in eq. 8 (there it
          is 1); normalise=false, while the paper would have tasks count equally (true divides
          each F by its mean over all weights); new head rows are free; F in evaluation mode,
          without augmentation; fisher=true is the empirical Fisher. Text and policies: as `cl
          describe ewc`
Parameters
    lam             pull towards the latest weights; 0 is naive [1]
    gamma           share of the past Fisher that is kept per experience; 1 keeps all [1]
    fisher          labels, or responses, in F: true (the data's) or sampled (drawn from the model)
    fisher_samples  rows in each experience's F; none is all [rows]
    normalise       divide each experience's F by its mean
"""

from __future__ import annotations

from typing import Annotated, Literal

from cl.config import Range
from cl.importance import accumulated, log_likelihood, quadratic, sensitivity, values
from cl.registry import register
from cl.strategy import Strategy


@register
class OnlineEWC(Strategy):
    """EWC with a running Fisher."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 1.0,
        gamma: Annotated[float, Range(min=0, max=1)] = 0.95,
        fisher: Literal["true", "sampled"] = "true",
        fisher_samples: Annotated[int, Range(min=1)] | None = 512,
        normalise: bool = False,
    ):
        self.lam, self.gamma, self.normalise = lam, gamma, normalise
        self.fisher, self.fisher_samples = fisher, fisher_samples
        self.F = self.theta = None

    def before_backward(self, loop):
        """Add the penalty."""
        if self.lam and self.F is not None:
            pull = quadratic(loop.model, self.F, self.theta)
            loop.add_loss("online_ewc", self.lam / 2 * self.gamma * pull)

    def after_training_exp(self, loop):
        """F* <- gamma F* + F, and the anchor moves to the weights as they are."""
        if self.lam == 0 or loop.adapted_dataset is None:
            return
        rng = loop.rng("online_ewc.fisher")
        drawn = self.fisher == "sampled"
        fisher = sensitivity(loop, self.fisher_samples, rng, log_likelihood(loop), 2, drawn=drawn)
        fisher = of_mean_one(fisher) if self.normalise else fisher
        self.F, self.theta = accumulated(self.F, fisher, self.gamma), values(loop.model)


def of_mean_one(fisher):
    """The Fisher divided by its mean over all weights."""
    mean = sum(g.sum() for g in fisher.values()) / sum(g.numel() for g in fisher.values())
    return {name: g / mean.clamp_min(1e-30) for name, g in fisher.items()}
