"""distill: stay close to the answers of the model as the experience found it.

Source    Hinton et al. 2015, arXiv:1503.02531; as a leash in continual post-training: learning
          without forgetting, arXiv:1606.09282, and the KL to a reference policy
Claim     new data is learned within reach of what the old model says to it; a soft leash in
          outputs, where l2sp, ewc and cpo have one in weights
Loss      L + lam KL(p_old || p) (forward) or lam KL(p || p_old) (reverse), p and p_old the softmax
          of logits / T, mean over positions:
          text    the tokens to be learned: the response's, or what a rollout has answered
          images  the rows, over the classes that were known before the experience
          policies  the rows, over actions, exactly (dqn: mean square of the values' difference)
State     old: the model as the experience found it, during the experience; nothing is stored
Needs     experience boundaries
Defaults  ours
Departs   images: lwf is this in forward direction without the entropy of p_old, which moves no
          weight, at T=2 and with a softmax per old task where task labels are given; distill has
          one over all known classes. No factor T^2. Positions of
          a micro-batch weigh the same: with train.accumulate parts of unequal length weigh by
          their rows. Rows that other strategies add are distilled, too
Parameters
    lam        weight of the old answers; 0 is the base method [1]
    direction  forward covers all that the old model says, reverse forbids what it would not say
    T          temperature of both softmaxes [1]
    first      text: in experience 0, too, whose model was pretrained; elsewhere: never
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from cl.cloned import between
from cl.config import Range
from cl.errors import BadValue
from cl.objectives._tokens import IGNORE, full_kl
from cl.registry import register
from cl.strategy import Strategy


@register
class Distill(Strategy):
    """Distillation from the previous model."""

    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 1.0,
        direction: Literal["forward", "reverse"] = "forward",
        T: Annotated[float, Range(above=0)] = 1.0,
        first: bool = True,
    ):
        self.lam, self.direction, self.T, self.first = lam, direction, T, first
        self.old = None

    def check(self, loop):
        """A Gaussian, and values, have no temperature."""
        policies = loop.stream.domain == "rl"
        if policies and self.T != 1 and (loop.valued or loop.stream.actions.continuous):
            raise BadValue(f"distill.T={self.T:g} needs a policy that chooses among actions")

    def before_train_dataset_adaptation(self, loop):
        """Keep the model, before its head grows."""
        first = self.first and loop.stream.domain == "llm"
        if self.lam and (first or loop.experience.index > 0):
            self.old = loop.snapshot()

    def before_backward(self, loop):
        """Add the distance to the old answers."""
        if self.old is None:
            return
        text = loop.stream.domain == "llm"
        bf16 = loop.train.precision == "bf16"
        with torch.no_grad(), torch.autocast(loop.device.type, torch.bfloat16, enabled=bf16):
            width = loop.mb_output.shape[1]
            old = answers(self.old, loop.mb_x, width) if text else self.old(loop.mb_x)
        if loop.stream.domain == "rl":
            T, reverse = self.T, self.direction == "reverse"
            new = loop.mb_output / T
            gap = between(loop, old / T, new, self.old.log_std, reverse=reverse).mean()
        else:
            pair = (
                at_tokens(old, loop.mb_output, loop.mb_y)
                if text
                else both_know(old, loop.mb_output, loop.known_classes)
            )
            gap = distance(*pair, self.direction, self.T)
        loop.add_loss("distill", self.lam * gap)

    def after_training_exp(self, loop):
        """Let go of it."""
        self.old = None


def answers(model, x, width):
    """Logits [B, K, V] of the last `width` columns of tokens x [B, L], -1 where there is none."""
    return model(x.clamp(min=0), x >= 0, width)


def at_tokens(old, new, y):
    """The pair where a token is to be learned, [N, V] each; old, new [B, K, V], y [B, L], K <= L.

    Column t of the logits is for the token at t + 1.
    """
    learned = y[:, -new.shape[1] :][:, 1:] != IGNORE
    return old[:, :-1][learned], new[:, :-1][learned]


def both_know(old, new, n_classes):
    """The pair over the first classes, [B, C] each."""
    return old[:, :n_classes], new[:, :n_classes]


def distance(old, new, direction, T):
    """KL(old || new) or KL(new || old), mean over rows [N, C] of logits; 0 without a row."""
    kl = full_kl(old, new, T) if direction == "forward" else full_kl(new, old, T)
    return kl.sum() / max(1, len(kl))
