"""rif_rft: reinforcement fine-tuning on the prompts that are not hopeless.

Source    Lai et al., ICML 2026, arXiv:2507.05386 (RIF-RFT: rollout-based instance filtering)
Claim     leaving out what the model can't answer at all keeps 37 to 82 % of the data, trains more
          cheaply and stably, and forgets little more than rewards on everything do
Loss      as rft; before each experience every training prompt is answered `samples` times, and
          those without a right answer are left out
State     as rft
Needs     as rft, on text: a classifier can't name classes that it has not been taught; boundaries
Defaults  8 samples, drop=all_wrong as in the first version of the paper; the rest as rft
Departs   rightness decides, not the reward, which form alone can raise. The paper's later text also
          drops prompts that are always answered rightly: drop=zero_variance. If no prompt is left
          the experience is not trained on, with a warning
Parameters
    samples    answers to each prompt before it is kept [answers]
    drop       all_wrong, or zero_variance: those that are always right, too
    group      answers to each prompt in training; train.batch_size counts answers
    advantage  grpo dr_grpo rloo max_rl remax reinforce: see `cl describe rft`
    beta       weight of the KL to the reference; 0: none [1]
    kl         k2, ratio_k3, k3, full, k1
    reference  previous (before the experience), base (before the stream), ema, none
    ema        share of the running mean that stays at every update [1]
    clip       ratios below 1 - clip and above 1 + clip_high have no gradient; none: no ratio
    clip_high  none: as clip [1]
    refresh    updates between new answers, epoch, or inf [updates]
    form       share of the reward for the form of an answer [1]
    min_pass   tasks of which a smaller share of prompts gets a right answer are refused; 0: no
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from cl.config import Range
from cl.registry import register
from cl.rewarded import Rewarded


@register
class RIFRFT(Rewarded):
    """Rewards on a filtered experience."""

    needs = ("boundaries",)
    domains = ("llm",)  # new classes can't be answered before they have been learned
    instead = {"vision": "rft", "rl": "rft"}

    def __init__(
        self,
        *,
        samples: Annotated[int, Range(min=1)] = 8,
        drop: Literal["all_wrong", "zero_variance"] = "all_wrong",
        group: Annotated[int, Range(min=1)] = 8,
        advantage: Literal["grpo", "dr_grpo", "rloo", "max_rl", "remax", "reinforce"] = "grpo",
        beta: Annotated[float, Range(min=0)] = 0.01,
        kl: Literal["k1", "k2", "k3", "ratio_k3", "full"] = "k2",
        reference: Literal["previous", "base", "ema", "none"] = "previous",
        ema: Annotated[float, Range(min=0, max=1)] = 0.99,
        clip: Annotated[float, Range(above=0)] | None = 0.2,
        clip_high: Annotated[float, Range(above=0)] | None = 0.3,
        refresh: Annotated[int, Range(min=1)] | Literal["epoch", "inf"] = 1,
        form: Annotated[float, Range(min=0, below=1)] = 0.0,
        min_pass: Annotated[float, Range(min=0, max=1)] = 0.05,
    ):
        own = ("self", "__class__", "samples", "drop")
        super().__init__(**{k: v for k, v in locals().items() if k not in own})
        self.needs = ("boundaries",)  # prompts are tried before each experience
        self.samples, self.drop = samples, drop

    def data(self, loop, experience):
        """The prompts that are kept."""
        right = self.tried(loop, experience.train, None, self.samples)
        keep = right.any(1)
        if self.drop == "zero_variance":
            keep &= ~right.all(1)
        loop.report("kept_share", float(keep.float().mean()))
        if not keep.any():
            warnings.warn(f"{experience.name}: no prompt is left to learn from", stacklevel=1)
            return None
        return experience.train.select(keep.nonzero()[:, 0].to(experience.train.device))
