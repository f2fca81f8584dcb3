"""mlp: fully connected layers with ReLU on flattened inputs.

Parameters
    hidden  width of each hidden layer; the last is D [units]
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from cl.config import Range
from cl.registry import register


class MLP(nn.Module):
    """[B, ...] -> [B, D]."""

    def __init__(self, n_inputs: int, hidden: list[int]):
        super().__init__()
        widths = [n_inputs, *hidden]
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.n_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D], not negative."""
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


@register
def mlp(
    input_shape: tuple[int, ...], *, hidden: list[Annotated[int, Range(min=1)]] = (256, 256)
) -> nn.Module:
    """A multilayer perceptron."""
    return MLP(math.prod(input_shape), list(hidden))
