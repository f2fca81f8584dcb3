"""Random changes of a whole batch of images at once, on its device, one draw per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_SHARE = 8  # padding is side/8: 4 pixels at 32x32, as is usual for CIFAR


def augment(x: Tensor, kinds: Sequence[str], rng: torch.Generator) -> Tensor:
    """`x` [B, C, H, W] of any dtype, cropped and/or mirrored with an own draw for each image.

    crop: zero-pad by side/8 (1 pixel at least) and cut a random window of the old size; flip:
    mirror left-right with probability 1/2. Both are one gather.
    """
    b, c, h, w = x.shape
    pad_h, pad_w = (max(1, h // CROP_SHARE), max(1, w // CROP_SHARE)) if "crop" in kinds else (0, 0)
    dy = torch.randint(2 * pad_h + 1, (b, 1), generator=rng)
    dx = torch.randint(2 * pad_w + 1, (b, 1), generator=rng)
    rows, columns = dy + torch.arange(h), torch.arange(w).expand(b, w)  # [B, H], [B, W]
    if "flip" in kinds:
        mirrored = torch.rand(b, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, w - 1 - columns, columns)
    columns = columns + dx
    window = rows[:, :, None] * (w + 2 * pad_w) + columns[:, None]  # [B, H, W] in padded pixels
    window = window.to(x.device).view(b, 1, h * w).expand(b, c, h * w)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h)) if pad_h or pad_w else x
    return padded.flatten(2).gather(2, window).view(b, c, h, w)
