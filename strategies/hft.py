"""hft: half fine-tuning, a random half of the parameters is frozen, another one per experience.

Source    Hui et al., ACL 2025, arXiv:2404.18466 (no official code)
Claim     updating a random half of the parameters, redrawn at every stage, forgets far less than
          full fine-tuning at equal or better task performance, and trains faster
Loss      the run's; equivalently min L + lambda ||(1 - M)(theta - theta^0)||^2, lambda -> inf
Maths     level=category, in every transformer layer: 2 of 4 attention matrices are frozen, 1 of 2
          norms, and 2 of 3 feed-forward matrices in a random half of the layers, 1 of 3 in the
          others. In general: of a layer's n tensors of one category ratio n are; where that is no
          whole number, one more in some layers than in the others, drawn, so that it is in the
          mean over layers (if the number of such layers is none either, it is rounded at random).
          A block without attention (CNN, MLP, actor-critic) counts as one category, and so does
          what stands outside of all blocks. Final norm, embeddings and head are always trained,
          at every level
State     last: the names drawn last; frozen, start: what is frozen or to be put back in this
          experience; shares: for every experience the share of the elements which would be trained
          that is frozen (or put back), `reported` in results.json
Needs     nothing of the scenario; claims nothing: hft+sft, hft+replay. Experiences are the stages
Defaults  the paper's: half, by category
Departs   a bias goes with its matrix; fused projections (GPT-2's c_attn, in_proj) are one tensor
          of two, where a half of their rows could be frozen; level=layer takes the norms along,
          level=model draws among all tensors of the blocks (the paper's text could not be had). A
          draw that equals the last one, which only small models notice, is made again.
          A frozen tensor is neither updated nor decayed and loses its optimizer state; batch-norm
          statistics go on. What another strategy has frozen stays frozen and is not drawn. Where a
          policy has a critic of its own, both towers' layers are drawn from
Parameters
    level       what is drawn: tensors per category and layer, whole layers, or tensors of the model
    ratio       share that is frozen, in tensors; 0 is the base method [1]
    half_reset  freeze nothing; at the experience's end put the drawn half back to its start
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cl.config import Range
from cl.errors import BadValue
from cl.models.anatomy import anatomy
from cl.models.selection import modules
from cl.registry import register
from cl.strategy import Strategy

OUTSIDE = -1  # as a layer: what stands in no block
TRIES = 50  # for a draw that differs from the last one


@register
class HFT(Strategy):
    """Half fine-tuning."""

    by_name = True

    def __init__(
        self,
        *,
        level: Literal["category", "layer", "model"] = "category",
        ratio: Annotated[float, Range(min=0, max=1)] = 0.5,
        half_reset: bool = False,
    ):
        self.level, self.ratio, self.half_reset = level, ratio, half_reset
        self.last: list[str] = []
        self.frozen: list[str] = []
        self.start = {}
        self.shares: list[float] = []

    def check(self, loop):
        """There must be something to draw from."""
        if not units(loop.model):
            raise BadValue("hft finds nothing to freeze: the model is all head and embeddings")

    def before_training_exp(self, loop):
        """Draw this experience's half, and freeze it or remember it."""
        if not self.ratio:
            return
        trained = {name: p for name, p in loop.model.named_parameters() if p.requires_grad}
        names = self.last = self._drawn(units(loop.model), loop.rng("hft"))
        size = sum(trained[name].numel() for name in names)
        self.shares.append(size / max(1, sum(p.numel() for p in trained.values())))
        loop.report("frozen_share", self.shares[-1])
        if self.half_reset:
            self.start = {name: trained[name].detach().clone() for name in names}
            return
        self.frozen = names
        for name in names:
            trained[name].requires_grad_(False)

    def after_training_exp(self, loop):
        """Everything can be trained again; or the half goes back."""
        named = dict(loop.model.named_parameters())
        for name in self.frozen:
            named[name].requires_grad_(True)
        with torch.no_grad():
            for name, theta in self.start.items():
                named[name].copy_(theta)
                loop.optimizer.state.pop(named[name], None)  # momentum of what is undone
        self.frozen, self.start = [], {}

    def _drawn(self, found, rng) -> list[str]:
        """Another draw than the last one, where there is another one."""
        for _ in range(TRIES):
            drawn = chosen(found, self.level, self.ratio, rng)
            names = [name for unit in drawn for name in unit.names]
            if names != self.last:
                break
        return names


@dataclass
class Unit:
    """A tensor with its bias: what is drawn. layer: of the anatomy, or OUTSIDE."""

    names: list[str]
    layer: int
    category: str


def units(model) -> list[Unit]:
    """What can be frozen, in the model's order: tensors that are trained."""
    parts = {part.name: part for part in anatomy(model)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for module in modules(model):
        names = [name for name in module.names if name in trained]
        layer = parts[module.names[0]].layer
        always = module.category in ("head", "embedding") or (
            layer is None and module.category == "norm"
        )
        if names and not always:
            found.append(Unit(names, OUTSIDE if layer is None else layer, module.category))
    transformers = {unit.layer for unit in found if unit.category == "attention"} - {OUTSIDE}
    for unit in found:
        if unit.layer not in transformers:
            unit.category = "block"
    return found


def chosen(found, level, ratio, rng) -> list[Unit]:
    """The units to freeze."""
    if level == "model":
        return some(found, rounded(ratio * len(found), rng), rng)
    if level == "layer":
        layers = sorted({unit.layer for unit in found})
        taken = some(layers, rounded(ratio * len(layers), rng), rng)
        return [unit for unit in found if unit.layer in taken]
    cells: dict[tuple[int, str], list[Unit]] = {}
    for unit in found:
        cells.setdefault((unit.layer, unit.category), []).append(unit)
    alike: dict[tuple[str, int], list[int]] = {}  # layers with as many units of a category
    for (layer, category), members in cells.items():
        alike.setdefault((category, len(members)), []).append(layer)
    drawn = []
    for (category, n), layers in alike.items():
        least = int(ratio * n + 1e-9)
        more = some(layers, rounded((ratio * n - least) * len(layers), rng), rng)
        for layer in layers:
            drawn += some(cells[layer, category], least + (layer in more), rng)
    return drawn


def some(items: list, k: int, rng: torch.Generator) -> list:
    """k of the items, at random, in their order."""
    return [items[i] for i in sorted(torch.randperm(len(items), generator=rng)[:k].tolist())]


def rounded(x: float, rng: torch.Generator) -> int:
    """x rounded up with the probability of its fraction, else down."""
    least = int(x + 1e-9)
    up = torch.rand((), generator=rng, dtype=torch.float64).item() < x - least - 1e-9
    return least + up
