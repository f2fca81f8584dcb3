"""shrink_perturb: shrink all weights towards zero and add fresh noise, again and again.

Source    Ash & Adams 2020, "On Warm-Starting Neural Network Training", NeurIPS 2020,
          arXiv:1910.08475; at every update: Dohare et al. 2024, Nature 632, arXiv:2306.13812
Claim     training on from a solution generalises worse than training afresh; shrunk and perturbed
          weights keep what was learned and learn like fresh ones. At every update it keeps
          plasticity over thousands of tasks
Maths     theta <- lam * theta + noise * theta'
          when=experience  theta' a newly initialised model, before each experience but the first
          when=update      theta' ~ N(0, 1), after every update
State     none
Needs     boundaries with when=experience. It works against plasticity loss, not forgetting: on
          class-incremental streams it keeps less than `naive`
Defaults  when=experience: lam=0.4, noise=0.1 (authors' code; their figures also 0.6 and 0.01);
          when=update: lam=1 - 1e-7, noise=1e-5 (Dohare's Continual ImageNet: lr 0.01 times weight
          decay 1e-5, which a momentum of 0.9 makes ten times as strong there)
Departs   experience: theta' is a model as in the authors' code (its text: normal noise), and
          statistics of batch norm and the optimizer's state are kept, both of which the code
          renews; train.reset_optimizer=true renews the latter. Head columns that come with the
          experience are not touched. update: the weights themselves are shrunk, where Dohare
          adds a penalty to the loss. Frozen parameters are left alone
Parameters
    when   before each experience or after each update
    lam    share of the weights that is kept; none: 0.4, or 1 - 1e-7 [1]
    noise  scale of what is added; none: 0.1, or 1e-5 [1]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy

DEFAULTS = {"experience": (0.4, 0.1), "update": (1 - 1e-7, 1e-5)}


@register
class ShrinkPerturb(Strategy):
    """Shrink and Perturb."""

    by_name = True
    needs = ("boundaries",)
    requires = ("architecture",)

    def __init__(
        self,
        *,
        when: Literal["experience", "update"] = "experience",
        lam: Annotated[float, Range(min=0, max=1)] | None = None,
        noise: Annotated[float, Range(min=0)] | None = None,
    ):
        usual = DEFAULTS[when]
        self.needs = ("boundaries",) if when == "experience" else ()
        self.when = when
        self.lam = usual[0] if lam is None else lam
        self.noise = usual[1] if noise is None else noise

    def before_train_dataset_adaptation(self, loop):
        """Between two experiences, before the head grows: mix with a new model."""
        if self.when == "experience" and loop.experience.index > 0:
            fresh = dict(loop.fresh_model("shrink_perturb.init", trained=False).named_parameters())
            for name, p in trained(loop.model):
                shrink_perturb(p, fresh[name].detach(), self.lam, self.noise)

    def after_update(self, loop):
        """Mix with normal noise."""
        if self.when == "update":
            rng = loop.rng("shrink_perturb.noise")
            for _, p in trained(loop.model):
                theta = torch.randn(p.shape, generator=rng).to(p.device)
                shrink_perturb(p, theta, self.lam, self.noise)


def trained(model) -> list[tuple[str, Tensor]]:
    """The parameters that require grad, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


@torch.no_grad()
def shrink_perturb(theta: Tensor, fresh: Tensor, lam: float, noise: float) -> None:
    """theta <- lam * theta + noise * fresh, in place."""
    theta.mul_(lam).add_(fresh, alpha=noise)
