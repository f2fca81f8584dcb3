"""weight_norm: L2 norm of the weights, by category of the anatomy and in all.

Unit   [1]
Range  0 or more; steady growth is a sign of lost plasticity (Dohare et al. 2024)
"""

from __future__ import annotations

from torch import nn

from cl.models.anatomy import anatomy
from cl.registry import register


@register
def weight_norm(model: nn.Module, experience) -> dict[str, float]:
    """{category: norm} and {"all": norm}."""
    squares: dict[str, float] = {}
    values = dict(model.named_parameters())
    for part in anatomy(model):
        square = values[part.name].detach().double().pow(2).sum().item()
        squares[part.category] = squares.get(part.category, 0.0) + square
    squares["all"] = sum(squares.values())
    return {category: square**0.5 for category, square in squares.items()}
