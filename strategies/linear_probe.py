"""linear_probe: train the head alone, on a frozen backbone, experience by experience.

Source    ours: the usual linear probe, trained in sequence
Claim     how much of naive's forgetting is the head's own: features can't change, and still the
          columns of old classes are pushed down by the new ones
Loss      the objective's
State     none
Needs     experience boundaries if adapt=first
Defaults  backbone as given
Departs   nothing to depart from; batch norm uses its stored statistics and dropout is off while
          the backbone is frozen
Parameters
    adapt  none (backbone as given) or first (experience 0 trains it with the head, as naive does)
"""

from __future__ import annotations

from typing import Literal

from cl.frozen_features import adaptation_data, needs_of
from cl.registry import register
from cl.strategy import Strategy


@register
class LinearProbe(Strategy):
    """Naive training of the head."""

    needs = ("boundaries",)
    requires = ("features", "head")
    domains = ("vision",)

    def __init__(self, *, adapt: Literal["none", "first"] = "none"):
        self.adapt = adapt
        self.needs = needs_of(adapt)

    def before_training_exp(self, loop):
        """Freeze all but the head, unless this experience adapts the backbone."""
        if adaptation_data(self.adapt, loop.experience) is None:
            loop.model.requires_grad_(False).eval()
            loop.model.head.requires_grad_(True).train()
