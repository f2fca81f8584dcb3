"""actor_critic: a policy and its critic, fully connected on flattened observations.

Two towers of the same form, or one for both; a categorical policy, or a Gaussian one whose spread
does not depend on the observation. Layer k of the anatomy is that of both towers; policy and value
are its heads.

Source  the details of PPO that matter (Huang et al. 2022): separate 64-64 tanh networks, orthogonal
        weights with gains sqrt 2, 0.01 for the policy and 1 for the value, biases 0
Parameters
    hidden  width of each hidden layer [units]
    activation  after each hidden layer
    shared  one tower for policy and value instead of two
    log_std  logarithm of the spread that a Gaussian policy starts with [1]
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from cl.config import Range
from cl.models.policy import ACTIVATIONS, Actions, PolicyModel, orthogonal, widths
from cl.registry import register

POLICY_GAIN, VALUE_GAIN = 0.01, 1.0


class Towers(nn.Module):
    """[B, ...] -> [B, D] for the actor or the critic; layers: both towers', in order of depth."""

    def __init__(self, sizes: list[tuple[int, int]], activation: str, shared: bool):
        super().__init__()
        self.activation, self.shared = ACTIVATIONS[activation], shared
        gain = math.sqrt(2)
        if shared:
            self.layers = nn.ModuleList(orthogonal(a, b, gain) for a, b in sizes)
        else:
            self.layers = nn.ModuleList(
                nn.ModuleDict({side: orthogonal(a, b, gain) for side in ("actor", "critic")})
                for a, b in sizes
            )
        self.n_features = sizes[-1][1]

    def forward(self, x: Tensor, side: str = "actor") -> Tensor:
        """Features [B, D] of one tower."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.activation((layer if self.shared else layer[side])(x))
        return x


class ActorCritic(PolicyModel):
    """backbone: towers; policy: features -> scores [B, A]; value: critic's features -> [B, 1]."""

    def __init__(self, backbone: Towers, actions: Actions, log_std: float):
        super().__init__(actions)
        self.backbone = backbone
        self.policy = orthogonal(backbone.n_features, actions.n, POLICY_GAIN)
        self.value = orthogonal(backbone.n_features, 1, VALUE_GAIN)
        if actions.continuous:
            self.log_std = nn.Parameter(torch.full((actions.n,), float(log_std)))

    def features(self, x: Tensor) -> Tensor:
        """The actor's features [B, D]."""
        return self.backbone(self.seen(x))

    def classify(self, features: Tensor) -> Tensor:
        """Scores [B, A]."""
        return self.policy(features)

    def values(self, x: Tensor) -> Tensor:
        """V [B], without running the actor."""
        return self.value(self.backbone(self.seen(x), "critic"))[:, 0]

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, A] and values [B]."""
        x = self.seen(x)
        features = self.backbone(x)
        other = features if self.backbone.shared else self.backbone(x, "critic")
        return self.policy(features), self.value(other)[:, 0]


@register
def actor_critic(
    input_shape: tuple[int, ...],
    actions: Actions,
    *,
    hidden: list[Annotated[int, Range(min=1)]] = (64, 64),
    activation: Literal["tanh", "relu", "elu"] = "tanh",
    shared: bool = False,
    log_std: float = 0.0,
) -> PolicyModel:
    """A policy and its critic."""
    sizes = widths(input_shape, hidden)
    return ActorCritic(Towers(sizes, activation, shared), actions, log_std)
