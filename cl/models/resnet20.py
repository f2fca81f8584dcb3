"""resnet20: the CIFAR residual network of He et al. 2016 (arXiv:1512.03385, section 4.2).

Three stages of `blocks` residual blocks with widths w, 2w, 4w on full, half and quarter
resolution, then the mean over the image: 6 * blocks + 2 layers with the head, D = 4w. Shortcuts
that change shape drop every second pixel and pad channels with zeros (option A). For 32x32; any
size of 8 or more works.

Parameters
    blocks  residual blocks per stage: 3 is ResNet-20, 5 is ResNet-32 [blocks]
    width   channels of the first stage [channels]
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from cl.config import Range
from cl.registry import register


class ResidualBlock(nn.Module):
    """relu(x + conv-bn-relu-conv-bn(x)), [B, C, H, W] -> [B, C', H/s, W/s]."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """One residual unit with the parameter-free shortcut (option A)."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.stride != 1 or self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            half = self.extra // 2
            x = F.pad(x, (0, 0, 0, 0, half, self.extra - half))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """[B, C, H, W] -> [B, D]."""

    def __init__(self, channels: int, blocks: int, width: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        layers, c_in = [], width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(c_in, width * 2**stage, stride))
                c_in = width * 2**stage
        self.layers = nn.ModuleList(layers)
        self.n_features = c_in
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D], not negative."""
        x = F.relu(self.stem_norm(self.stem(x)))
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


@register
def resnet20(
    input_shape: tuple[int, ...],
    *,
    blocks: Annotated[int, Range(min=1)] = 3,
    width: Annotated[int, Range(min=1)] = 16,
) -> nn.Module:
    """A residual network for small images."""
    return CifarResNet(input_shape[0], blocks, width)
