"""Policies: models that score actions, and what they are made of.

A builder is a function `name(input_shape, actions, *, ...)`, annotated `-> PolicyModel`.
What the stream says stands before the star, what the user sets behind it. Such a model has no head
of classes and does not grow: how many actions there are is known from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl.errors import BadValue

Activation = Literal["tanh", "relu", "elu"]
CLIP, EPS = 10.0, 1e-8  # of normalised observations, as in Stable-Baselines3's VecNormalize
ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "elu": F.elu}


@dataclass(frozen=True)
class Actions:
    """n actions to choose one from, or, if continuous, n numbers to give."""

    n: int
    continuous: bool = False

    def __post_init__(self):
        if self.n < 1:
            raise BadValue(f"a policy needs at least 1 action; there are {self.n}")

    def __str__(self) -> str:
        return f"{self.n} continuous actions" if self.continuous else f"{self.n} actions"


class PolicyModel(nn.Module):
    """backbone: x -> features [B, D]; last: features -> scores [B, A].

    Scores are logits, means of a Gaussian, or action values; `predict` of anything that reads
    logits takes them for such. log_std float32 [A] of a Gaussian policy, else None.
    architecture: what `cl.models.rebuild` makes it again from, put in by `cl.models.build`.
    """

    def __init__(self, actions: Actions):
        super().__init__()
        self.actions = actions
        self.architecture: dict | None = None
        self.register_parameter("log_std", None)
        self.register_buffer("mean", None)  # of observations, where they are normalised [d]
        self.register_buffer("spread", None)

    def features(self, x: Tensor) -> Tensor:
        """What the actions are chosen by, [B, D] of x [B, ...]."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Scores [B, A] of features [B, D]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, A] of x [B, ...]."""
        return self.classify(self.features(x))

    def see_normalised(self, mean: np.ndarray | None = None, variance: np.ndarray | None = None):
        """Normalise what is seen from now on: (x - mean) / sqrt(variance), at most CLIP in size.

        mean, variance [d]; none: 0 and 1, of what was not told yet.
        """
        shape = self.architecture["input_shape"]
        mean = np.zeros(shape) if mean is None else mean
        variance = np.ones(shape) if variance is None else variance
        device = next(self.parameters()).device
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=device)
        self.spread = torch.as_tensor(variance + EPS, dtype=torch.float32, device=device).sqrt()
        self.architecture["normalised"] = True

    def seen(self, x: Tensor) -> Tensor:
        """Observations as the network takes them."""
        if self.mean is None:
            return x
        return ((x - self.mean) / self.spread).clamp(-CLIP, CLIP)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Everything that the model says of x: scores [B, A] and what else there is."""
        return (self(x),)


def widths(input_shape: tuple[int, ...], hidden: list[int]) -> list[tuple[int, int]]:
    """(inputs, outputs) of each layer on flattened inputs."""
    sizes = [math.prod(input_shape), *hidden]
    return list(zip(sizes, sizes[1:], strict=False))


def orthogonal(n_inputs: int, n_outputs: int, gain: float) -> nn.Linear:
    """A linear layer with orthogonal weights times `gain` and no bias to begin with."""
    layer = nn.Linear(n_inputs, n_outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def reset_value(model: PolicyModel, generator: torch.Generator) -> None:
    """Start the value head anew, as `orthogonal` does with gain 1, from a generator's draws."""
    weight = torch.empty(model.value.weight.shape)
    nn.init.orthogonal_(weight, 1.0, generator=generator)
    with torch.no_grad():
        model.value.weight.copy_(weight)
        model.value.bias.zero_()
