"""q_network: the value of each action, fully connected on flattened observations.

Source  the network of DQN for small observations (rl-zoo: 256-256 on CartPole)
Parameters
    hidden  width of each hidden layer [units]
    activation  after each hidden layer
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from cl.config import Range
from cl.errors import BadValue
from cl.models.policy import ACTIVATIONS, Actions, PolicyModel, widths
from cl.registry import register


class Tower(nn.Module):
    """[B, ...] -> [B, D]; torch's own initialisation."""

    def __init__(self, sizes: list[tuple[int, int]], activation: str):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        self.n_features = sizes[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D]."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


class QNetwork(PolicyModel):
    """backbone: tower; value: features -> Q [B, A]."""

    def __init__(self, backbone: Tower, actions: Actions):
        super().__init__(actions)
        self.backbone = backbone
        self.value = nn.Linear(backbone.n_features, actions.n)

    def features(self, x: Tensor) -> Tensor:
        """Features [B, D]."""
        return self.backbone(x)

    def classify(self, features: Tensor) -> Tensor:
        """Q [B, A]."""
        return self.value(features)


@register
def q_network(
    input_shape: tuple[int, ...],
    actions: Actions,
    *,
    hidden: list[Annotated[int, Range(min=1)]] = (256, 256),
    activation: Literal["tanh", "relu", "elu"] = "relu",
) -> PolicyModel:
    """Action values. Raises BadValue for continuous actions, which have no list of values."""
    if actions.continuous:
        raise BadValue(
            f"q_network values a number of actions, the stream has {actions}; "
            "take model=actor_critic with a policy objective"
        )
    return QNetwork(Tower(widths(input_shape, hidden), activation), actions)
