"""lwf: learning without forgetting, new data must still get the old model's answers.

Source    Li & Hoiem, ECCV 2016, arXiv:1606.09282
Claim     distilling the old model's outputs on new data keeps old tasks without old data, better
          than fine-tuning does
Loss      L + lam L_old, L_old = -sum_c y'_c log yhat'_c             (eq. 2-4), y' and yhat' the
          old and new model's softmax with logits / T, over the old classes only; mean over rows;
          with task labels one such sum per old task, each over its own classes
State     old: the model after the last experience; groups: {task label, or -1 for all classes
          seen: int64 tensor of the classes in one softmax}
Needs     experience boundaries; no task labels (used where the scenario gives them)
Defaults  the paper's: lam=1, T=2
Departs   without task labels one head is shared: L is over all classes seen (the paper's new task
          has a head and a softmax of its own), L_old over those of earlier experiences; the old
          answers are recomputed for every batch, which augmentation changes; no warm-up of the
          new head before joint training; no factor T^2, as in the paper; rows that other
          strategies add to a batch are distilled too. In domain-incremental streams all classes
          are distilled
Parameters
    lam  weight of the old answers; 0 is naive [1]
    T    temperature of both softmaxes [1]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy


@register
class LwF(Strategy):
    """Learning without forgetting."""

    needs = ("boundaries",)
    domains = ("vision",)
    instead = {"llm": "distill", "rl": "distill"}

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 1.0,
        T: Annotated[float, Range(above=0)] = 2.0,
    ):
        self.lam, self.T = lam, T
        self.old, self.groups = None, {}

    def before_backward(self, loop):
        """Add the distance to the old answers."""
        if self.lam and self.old is not None:
            with torch.no_grad():
                old = self.old(loop.mb_x)
            both = ((old[:, g], loop.mb_output[:, g]) for g in self.groups.values())
            loop.add_loss("lwf", self.lam * sum(distillation(*pair, self.T) for pair in both))

    def after_training_exp(self, loop):
        """Keep the model and what it can tell apart now."""
        if self.lam == 0:
            return
        self.old = loop.snapshot()
        label, classes = loop.experience.task_label, loop.experience.classes
        if label is None:
            label, classes = -1, range(loop.seen_classes)
        self.groups[label] = torch.tensor(sorted(classes), device=loop.device)


def distillation(old, new, T):
    """-sum_c softmax(old / T)_c log softmax(new / T)_c, mean over rows; logits [B, C]."""
    old, new = old.float() / T, new.float() / T
    return -(old.softmax(1) * new.log_softmax(1)).sum(1).mean()
