"""The optimizer's upkeep: build it, keep it in step with the model, schedule its rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cl.settings import Train


def build(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """The optimizer that `train.*` asks for, over all parameters (`Synchroniser` trims it)."""
    params = list(model.parameters())
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            params, train.lr, momentum=train.momentum, weight_decay=train.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
    return kind(
        params, train.lr, eps=train.eps, weight_decay=train.weight_decay, fused=train.fused or None
    )


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, largest: float) -> None:
    """Scale all gradients so that their norm together is at most `largest`.

    What `torch.nn.utils.clip_grad_norm_` does, bit for bit, without its sorting by device.
    """
    held = (p.grad for group in optimizer.param_groups for p in group["params"])
    grads = [g for g in held if g is not None]
    if grads:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (largest / (norm + 1e-6)).clamp(max=1.0))


class Synchroniser:
    """Keeps an optimizer holding exactly the model's parameters that require grad.

    A parameter that was replaced by a larger one of the same name (a grown head) keeps the
    state of its old rows and gets zeros for the new ones; a frozen one loses its state, and
    goes back into its own group when it is trained again. Parameters that are not the model's
    stay where they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module):
        self.optimizer = optimizer
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.held = [p for group in optimizer.param_groups for p in group["params"]]
        self.home: dict[str, int] = {}  # the group that a parameter was first found in

    def sync(self, model: nn.Module) -> None:
        """Bring the optimizer into step with `model`."""
        wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        placed = set()
        groups = self.optimizer.param_groups
        for k, group in enumerate(groups):
            group.setdefault("initial_lr", group["lr"])
            kept = []
            for old in group["params"]:
                name = self.names.get(id(old))
                if name is None:
                    kept.append(old)
                    continue
                self.home.setdefault(name, k)
                new = wanted.get(name)
                if new is None or name in placed:
                    self.optimizer.state.pop(old, None)
                    continue
                if new is not old and old in self.optimizer.state:
                    state = self.optimizer.state.pop(old)
                    self.optimizer.state[new] = {k: _resized(v, old, new) for k, v in state.items()}
                kept.append(new)
                placed.add(name)
            group["params"] = kept
        added = [name for name in wanted if name not in placed]
        for name in added:
            groups[self.home.setdefault(name, 0)]["params"].append(wanted[name])
        if added:  # the model's order, whoever was frozen before: sums over gradients follow it
            order = {id(p): k for k, p in enumerate(model.parameters())}
            for group in groups:
                group["params"].sort(key=lambda p: order.get(id(p), len(order)))
        for p in model.parameters():
            if not p.requires_grad:
                p.grad = None  # an old gradient must not count where gradients are clipped
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.held = list(model.parameters())  # keeps the ids above from being used again

    def state(self) -> dict:
        """Optimizer state and group of each parameter by name, whatever their order."""
        named = {self.names[id(p)]: p for p in self.held}
        held = {
            n: dict(self.optimizer.state[p]) for n, p in named.items() if p in self.optimizer.state
        }
        return {"held": held, "home": dict(self.home)}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.home = dict(state["home"])
        for p in self.held:
            name = self.names[id(p)]
            if name in state["held"]:
                self.optimizer.state[p] = dict(state["held"][name])


def _resized(value: object, old: Tensor, new: Tensor) -> object:
    """Optimizer state of `old` for `new`, whose leading rows are those of `old`."""
    if not isinstance(value, Tensor) or value.shape != old.shape or value.dim() == 0:
        return value
    if old.shape == new.shape:
        return value
    grown = torch.zeros(new.shape, dtype=value.dtype, device=value.device)
    n = min(len(old), len(new))
    if old.shape[1:] == new.shape[1:]:
        grown[:n] = value[:n]
    return grown


def lr_factor(train: Train, step: int, total: int) -> float:
    """Share of the initial learning rate for update `step` (0-based) of `total`.

    Linear warm-up over `train.warmup` updates times the schedule, which ends at 0 just after
    the last update: linear 1 - s/T, cosine (1 + cos(pi s/T)) / 2.
    """
    rise = min(1.0, (step + 1) / (train.warmup + 1)) if train.warmup else 1.0
    if train.schedule == "linear":
        return rise * (1 - step / total)
    if train.schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / total)) / 2
    return rise


def set_lr(optimizer: torch.optim.Optimizer, train: Train, step: int, total: int) -> None:
    """Set every group's rate for update `step` (0-based) of the experience's `total`."""
    factor = lr_factor(train, step, max(1, total))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
