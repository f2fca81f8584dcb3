"""Random changes of a whole batch of images at once, on its device, one draw per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_SHARE = 8  # padding is side/8: 4 pixels at 32x32, as is usual for CIFAR


def augment(x: Tensor, kinds: Sequence[str], rng: torch.Generator) -> Tensor:
    """`x` [B, C, H, W] of any dtype, cropped and/or flipped with an own draw for each image."""
    for kind in kinds:
        x = _CHANGES[kind](x, rng)
    return x


def crop(x: Tensor, rng: torch.Generator) -> Tensor:
    """Zero-pad by side/8 (1 pixel at least) and cut a random window of the old size."""
    b, c, h, w = x.shape
    pad_h, pad_w = max(1, h // CROP_SHARE), max(1, w // CROP_SHARE)
    dy = torch.randint(2 * pad_h + 1, (b,), generator=rng)
    dx = torch.randint(2 * pad_w + 1, (b,), generator=rng)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # [B, C, 2p+1, 2p+1, H, W], a view
    rows = torch.arange(b, device=x.device)
    return windows[rows, :, dy.to(x.device), dx.to(x.device)]


def flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    chosen = torch.rand(x.shape[0], generator=rng) < 0.5
    return torch.where(chosen.to(x.device)[:, None, None, None], x.flip(-1), x)


_CHANGES = {"crop": crop, "flip": flip}
