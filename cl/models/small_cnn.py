"""small_cnn: 3x3 convolutions with ReLU and pooling, for any image of 8x8 or more.

Each layer: convolution, optional batch norm, ReLU, 2x2 max-pooling; widths double. Features are
the mean over what is left of the image, so D = width * 2^(depth-1).

Parameters
    width  channels of the first layer [channels]
    depth  layers [1]
    norm   normalisation after each convolution
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cl.config import Range
from cl.errors import BadValue
from cl.registry import register


class ConvLayer(nn.Module):
    """[B, C, H, W] -> [B, C', H/2, W/2]."""

    def __init__(self, c_in: int, c_out: int, norm: str):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=norm == "none")
        self.norm = nn.BatchNorm2d(c_out) if norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, pool, rectify (pooling first: the same values, a quarter to do)."""
        return F.relu(F.max_pool2d(self.norm(self.conv(x)), 2))


class SmallCNN(nn.Module):
    """[B, C, H, W] -> [B, D]."""

    def __init__(self, channels: int, width: int, depth: int, norm: str):
        super().__init__()
        widths = [channels] + [width * 2**k for k in range(depth)]
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nn.ModuleList(ConvLayer(a, b, norm) for a, b in pairs)
        self.n_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D], not negative."""
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


@register
def small_cnn(
    input_shape: tuple[int, ...],
    *,
    width: Annotated[int, Range(min=1)] = 32,
    depth: Annotated[int, Range(min=1, max=8)] = 2,
    norm: Literal["none", "batch"] = "batch",
) -> nn.Module:
    """A small convolutional network."""
    channels, *sides = input_shape
    if min(sides) < 2:
        raise BadValue(f"small_cnn needs images of 2x2 or more, got {sides[0]}x{sides[1]}")
    if min(sides) < 2**depth:
        raise BadValue(
            f"model.depth={depth} halves the image {depth} times, but it is {sides[0]}x{sides[1]}; "
            f"allowed: 1 to {min(sides).bit_length() - 1}"
        )
    return SmallCNN(channels, width, depth, norm)
