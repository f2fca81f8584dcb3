"""oracle_sft: imitation of right answers that the model itself would give, the least it must move.

Source    the oracle distribution of RL's Razor, Shenfeld et al. 2025, arXiv:2509.04259
Claim     what reinforcement saves from forgetting is its choice of answers: supervised on the
          right answers nearest to the old model, fine-tuning forgets as little as it, or less
Loss      the objective's on labels y ~ q, drawn anew for every row and update:
          q(c) = p0(c) [c is right] / sum over right classes of p0, p0 the softmax of the model at
          the experience's start (evaluation mode); q minimises KL(q || p0) among all distributions
          over right answers
State     base: the model at the experience's start, dropped at its end
Needs     experience boundaries
Defaults  begin=1: experience 0 is learned as it is shown, for nothing has been learned that could
          be an oracle; with a model that starts trained (model.from) take begin=0
Departs   labels are drawn, not q itself taken as a soft target (the same in expectation); rows
          that other strategies add to a batch keep their labels. On streams with one right answer
          it is naive
Parameters
    begin  first experience in which answers are drawn [1]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy


@register
class OracleSFT(Strategy):
    """Supervised fine-tuning on the base model's own right answers."""

    needs = ("boundaries",)
    domains = ("vision",)
    instead = {"llm": "sft", "rl": "sft"}

    def __init__(self, *, begin: Annotated[int, Range(min=0)] = 1):
        self.begin = begin
        self.base = None

    def before_training_exp(self, loop):
        """Keep the oracle."""
        if loop.stream.accepts is not None and loop.experience.index >= self.begin:
            self.base = loop.snapshot()

    def before_forward(self, loop):
        """Draw the labels of the batch's own rows, which come first."""
        if self.base is None:
            return
        n = len(loop.mb_index)
        answer = loop.adapted_dataset.rows(loop.mb_index)["answer"]
        with torch.no_grad():
            logits = self.base(loop.mb_x[:n])
        right = loop.stream.accepts[answer, : logits.shape[1]]
        drawn = drawn_among(logits, right, loop.rng("oracle_sft.draw")).to(loop.mb_y.device)
        loop.mb_y = torch.cat([drawn, loop.mb_y[n:]])

    def after_training_exp(self, loop):
        """The next experience has another one."""
        self.base = None


def drawn_among(logits, right, rng):
    """A class for each row, int64 [B] on the CPU, from softmax(logits) renormalised on `right`.

    logits [B, C]; right bool [B, C], at least one class of each row.
    """
    q = logits.float().masked_fill(~right, float("-inf")).softmax(1).cpu()
    return torch.multinomial(q, 1, generator=rng)[:, 0]
