"""Anatomy: a total partition of a model's parameters, so that methods name parts, not modules.

Every parameter gets a layer (index in order of depth, None outside the repeated units), a
category (`attention feed_forward norm conv embedding head other`) and a role (`q k v qkv o gate
up down weight bias`). HFT draws its halves from it, FPF its modules, LiNeS its depths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

CATEGORIES = ("attention", "feed_forward", "norm", "conv", "embedding", "head", "other")
ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down", "weight", "bias")

_BY_TYPE = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "norm": (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    "embedding": (nn.Embedding,),
    "feed_forward": (nn.Linear,),
}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Part:
    """One parameter: name as in `named_parameters`, number of elements, and where it belongs."""

    name: str
    size: int
    layer: int | None
    category: str
    role: str


def anatomy(model: nn.Module) -> list[Part]:
    """One Part per parameter of `model`, in the order of `named_parameters`."""
    owners = dict(model.named_modules())
    parts = []
    for name, p in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer = _LAYER.search(name)
        category = "head" if _in_head(path) else _category(owners[path])
        role = "bias" if leaf == "bias" else "weight"
        index = int(layer[1]) if layer and category != "head" else None
        parts.append(Part(name, p.numel(), index, category, role))
    return parts


def _in_head(path: str) -> bool:
    return path == "head" or path.startswith("head.")


def _category(module: nn.Module) -> str:
    for category, types in _BY_TYPE.items():
        if isinstance(module, types):
            return category
    return "other"
