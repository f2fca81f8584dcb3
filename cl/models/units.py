"""Hidden units of our own models: what computes them and what reads them, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cl.models.actor_critic import ActorCritic
from cl.models.mlp import MLP
from cl.models.q_network import QNetwork
from cl.models.small_cnn import SmallCNN

KNOWN = ("mlp", "small_cnn", "actor_critic", "q_network")


@dataclass
class Units:
    """One hidden layer: what computes its units, their batch norm, and what reads them."""

    maker: nn.Module
    norm: nn.Module | None
    readers: list[nn.Module]
    door: nn.Module  # whose input the units' output is


def units_of(model: nn.Module) -> list[Units] | None:
    """The hidden layers in order, those of a critic behind the actor's; None if not known."""
    backbone = getattr(model, "backbone", None)
    if isinstance(model, ActorCritic | QNetwork):
        return _of_policy(model)
    if not isinstance(backbone, MLP | SmallCNN):
        return None
    layers, doors = list(backbone.layers), [*backbone.layers[1:], model.head]
    if isinstance(backbone, MLP):
        return [Units(a, None, [b], b) for a, b in zip(layers, doors, strict=True)]
    found = []
    for layer, door in zip(layers, doors, strict=True):
        norm = layer.norm if isinstance(layer.norm, nn.BatchNorm2d) else None
        found.append(Units(layer.conv, norm, [getattr(door, "conv", door)], door))
    return found


def _of_policy(model: ActorCritic | QNetwork) -> list[Units]:
    layers, ends = list(model.backbone.layers), {"value": [model.value]}
    if isinstance(model, ActorCritic):
        ends = {"actor": [model.policy], "critic": [model.value]}
        if model.backbone.shared:
            ends = {"both": [model.policy, model.value]}
    found = []
    for side, heads in ends.items():
        tower = [m[side] if isinstance(m, nn.ModuleDict) else m for m in layers]
        readers = [*([layer] for layer in tower[1:]), heads]
        found += [Units(m, None, r, r[0]) for m, r in zip(tower, readers, strict=True)]
    return found
