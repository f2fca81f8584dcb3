"""Modules of a model as units of choice: named, up to a share of the parameters, or at random.

A module is what owns parameters: a convolution, a norm (weight and bias together), a linear layer.
Parameters of a module that holds others (a class token, an attention's `in_proj_weight`) are
units of their own, named without `weight` and `bias`. `packed` sorts single parameters by what
becomes of them where several tasks are to live in one model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from cl.errors import BadValue, nearest
from cl.models.anatomy import CATEGORIES, CONVS, NORMS, anatomy

SPECIAL = ("first", "all", "none")


@dataclass
class Module:
    """One unit: path in the model, category of the anatomy, its parameters and their elements."""

    path: str
    category: str
    names: list[str] = field(default_factory=list)
    size: int = 0


def modules(model: nn.Module) -> list[Module]:
    """Every parameter's module, in the order of `named_parameters` (that of depth, as a rule)."""
    owners = dict(model.named_modules())
    found: dict[str, Module] = {}
    for part in anatomy(model):
        path, _, leaf = part.name.rpartition(".")
        if any(True for child in owners[path].children() for _ in child.parameters()):
            stem = re.sub(r"_?(weight|bias)$", "", leaf) or leaf
            path = f"{path}.{stem}" if path else stem
        module = found.setdefault(path or part.name, Module(path or part.name, part.category))
        module.names.append(part.name)
        module.size += part.size
    return list(found.values())


def select(model: nn.Module, names: Sequence[str]) -> list[Module]:
    """The modules that `names` name, in the model's order.

    A name is a category of the anatomy, `first` (the first convolution or embedding), `all`,
    `none`, or a module's path or the beginning of one. A category that the model lacks adds
    nothing. Raises BadValue for any other name.
    """
    known = modules(model)
    chosen = set()
    for name in names:
        chosen |= {module.path for module in _named(model, known, name)}
    return [module for module in known if module.path in chosen]


def _named(model: nn.Module, known: list[Module], name: str) -> list[Module]:
    if name in CATEGORIES:
        return [module for module in known if module.category == name]
    if name == "first":
        owners = dict(model.named_modules())
        kinds = (*CONVS, nn.Embedding)
        return [module for module in known if isinstance(owners.get(module.path), kinds)][:1]
    if name in ("all", "none"):
        return known if name == "all" else []
    under = [m for m in known if m.path == name or m.path.startswith(f"{name}.")]
    if not under:
        paths = {".".join(m.path.split(".")[: k + 1]) for m in known for k in range(20)}
        near = nearest(name, sorted({*CATEGORIES, *SPECIAL, *paths}))
        raise BadValue(
            f"the model has no module {name!r}{near}; allowed: {', '.join(CATEGORIES)}, "
            f"{', '.join(SPECIAL)}, or a module's path or its beginning, such as {known[0].path}"
        )
    return under


def up_to(ordered: Sequence[Module], elements: float) -> list[Module]:
    """The first of `ordered` that together have at least so many elements."""
    taken, total = [], 0
    for module in ordered:
        if total >= elements:
            break
        taken.append(module)
        total += module.size
    return taken


def elements_of(model: nn.Module, names: Sequence[str], budget: float | None) -> float:
    """`budget` as a share of the model's elements; None: as many as `names` name."""
    if budget is None:
        return sum(module.size for module in select(model, names))
    return budget * sum(module.size for module in modules(model))


def at_random(
    model: nn.Module, names: Sequence[str], budget: float | None, rng: torch.Generator
) -> list[Module]:
    """Modules that are not named, in random order, up to the budget."""
    named = {module.path for module in select(model, names)}
    others = [module for module in modules(model) if module.path not in named]
    order = torch.randperm(len(others), generator=rng).tolist()
    return up_to([others[k] for k in order], elements_of(model, names, budget))


def by_score(
    model: nn.Module, names: Sequence[str], budget: float | None, scores: dict[str, float]
) -> list[Module]:
    """Modules by falling score, those without one left out, up to the budget."""
    scored = [module for module in modules(model) if module.path in scores]
    ordered = sorted(scored, key=lambda module: -scores[module.path])
    return up_to(ordered, elements_of(model, names, budget))


@dataclass
class Packed:
    """Names of parameters that scores depend on and that are trained, by what they are.

    weights: matrices and kernels; rest: biases, norms, tokens; heads: also buffers outside of
    norms, as of observations.
    """

    weights: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


def packed(model: nn.Module, x: torch.Tensor) -> Packed:
    """Of a model that takes inputs such as x [1, ...], which is in evaluation mode."""
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        scores = model(x).sum()
        grads = torch.autograd.grad(scores, list(theta.values()), allow_unused=True)
    used = {name for name, g in zip(theta, grads, strict=True) if g is not None}
    found = Packed()
    for part in anatomy(model):
        if part.name not in used:
            continue
        pruned = theta[part.name].dim() > 1 and part.category != "norm"
        kinds = found.heads if part.category == "head" else found.weights if pruned else found.rest
        kinds.append(part.name)
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}
    for name, held in model.named_buffers():
        if name.rpartition(".")[0] not in norms and held.is_floating_point():
            found.heads.append(name)
    return found
