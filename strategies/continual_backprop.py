"""continual_backprop: a few of the least useful units start again, all the time.

Source    Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632:768-774,
          arXiv:2306.13812, algorithm 1
Claim     gradient descent alone loses the ability to learn over hundreds of tasks; with a small
          share of low-utility units reinitialised at each step it is kept indefinitely
Maths     per hidden unit i of layer l, after each update:
          a <- a + 1;  u <- eta u + (1 - eta) |h_i| * sum_k |w_ik|                     (eq. 1)
          c <- c + rho * #{i: a_i > m};  while c >= 1, the unit with a > m of the smallest
          u / (1 - eta^a) gets new input weights, output weights 0, u = a = 0, and c <- c - 1
State     u, f: utility and mean activation, [float32 [n_l] per layer]; a: ages, the same; t:
          updates; c: [float per layer]; reset_at: [[updates at which a unit of l was reset]]
Needs     nothing: no boundaries. It keeps plasticity, not memories: on class-incremental streams
          it is no better than `naive`
Models    mlp, actor_critic, q_network (units of every hidden layer) and small_cnn (channels); the
          last layer's consumer is the head, or policy and value. Others are refused
Defaults  rho=1e-4, eta=0.99, m=100 (authors' code; Continual ImageNet: rho=3e-4)
Departs   bias-corrected utility and the mean activation's way into the consumer's bias are of the
          authors' code (2306.13812 in its first version), not of the Nature text; |h| is a mean
          over the batch, a channel's over its positions too, with one weight magnitude each
          (summed over kernel positions). Consumers without bias (small_cnn with batch norm) get
          no mean. Input weights uniform in +-1/sqrt(fan-in) and bias 0, as in the code on Continual
          ImageNet; batch norm of a channel restarts at scale 1, shift 0. Optimizer state of the
          weights is zeroed, but Adam's step count, one number per tensor in torch, goes on
Parameters
    rho        share of mature units reset per update; 0 is naive [1]
    eta        decay of utility and mean activation [1]
    m          updates that protect a new unit [updates]
    keep_mean  add the mean of what a unit gave to its consumers' bias
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from cl.config import Range
from cl.errors import BadValue
from cl.models.units import KNOWN, Units, units_of
from cl.registry import register
from cl.strategy import Strategy


@register
class ContinualBackprop(Strategy):
    """Continual backpropagation."""

    requires = ("features",)
    domains = ("vision", "rl")

    def __init__(
        self,
        *,
        rho: Annotated[float, Range(min=0, max=1)] = 1e-4,
        eta: Annotated[float, Range(min=0, below=1)] = 0.99,
        m: Annotated[int, Range(min=0)] = 100,
        keep_mean: bool = True,
    ):
        self.rho, self.eta, self.m, self.keep_mean = rho, eta, m, keep_mean
        self.u, self.f, self.a = [], [], []
        self.c, self.reset_at, self.t = [], [], 0
        self.h, self.handles = {}, []  # only while the model runs: layer -> output, hooks
        self.seen = None  # per layer: mean h and mean |h| of the running update

    def check(self, loop):
        """Refuse models whose units are not known."""
        checked(loop.model)

    def before_training(self, loop):
        """Start the counts."""
        n = [layer.maker.weight.shape[0] for layer in units_of(loop.model)]
        self.u, self.f, self.a = ([torch.zeros(k, device=loop.device) for k in n] for _ in "ufa")
        self.c, self.reset_at = [0.0] * len(n), [[] for _ in n]

    def before_training_iteration(self, loop):
        """A new update: nothing has been seen."""
        self.seen = [[torch.zeros_like(u), torch.zeros_like(u)] for u in self.u]

    def before_forward(self, loop):
        """Watch what comes in at every layer's consumer."""
        for k, layer in enumerate(units_of(loop.model)):
            watch = partial(self._watch, k)
            self.handles.append(layer.door.register_forward_pre_hook(watch))

    def after_forward(self, loop):
        """Average it; of several micro-batches each counts by its share."""
        for handle in self.handles:
            handle.remove()
        for k, h in self.h.items():
            for total, value in zip(self.seen[k], (h, h.abs()), strict=True):
                total.add_(value.mean([d for d in range(h.dim()) if d != 1]), alpha=loop.mb_share)
        self.h, self.handles = {}, []

    def after_update(self, loop):
        """Age, judge, and reset the least useful mature units (algorithm 1)."""
        self.t += 1
        for k, layer in enumerate(units_of(loop.model)):
            (h, size), u, f, a = self.seen[k], self.u[k], self.f[k], self.a[k]
            a.add_(1)
            u.lerp_(size * sum(outgoing(r.weight) for r in layer.readers), 1 - self.eta)
            f.lerp_(h, 1 - self.eta)
            n = self._to_reset(k, len(u))
            if n:
                grown_up = 1 - self.eta**a
                index = torch.where(a > self.m, u / grown_up, torch.inf).topk(n, largest=False)[1]
                mean = (f / grown_up)[index] if self.keep_mean else None
                reset(layer, index, mean, loop.rng("continual_backprop"))
                forget(loop.optimizer, layer, index)
                for state in (u, f, a):
                    state[index] = 0
        self.seen = None

    def _to_reset(self, k: int, n_units: int) -> int:
        """How many units of layer k; counted here, so that no device is waited for."""
        recent = [at for at in self.reset_at[k] if self.t - at <= self.m]
        mature = n_units - len(recent) if self.t > self.m else 0
        self.c[k] += self.rho * mature
        n = min(int(self.c[k]), mature)
        self.c[k] -= n
        self.reset_at[k] = recent + [self.t] * n
        return n

    def _watch(self, k: int, door: nn.Module, inputs: tuple) -> None:
        self.h[k] = inputs[0].detach().float()


def checked(model: nn.Module) -> list[Units]:
    """The model's hidden layers. Raises BadValue where they are not known."""
    found = units_of(model)
    if found is None:
        name = getattr(model, "architecture", {}).get("name", type(model).__name__)
        raise BadValue(
            f"continual_backprop knows the units of {', '.join(KNOWN)}, not of {name}; "
            f"give model={KNOWN[0]} or another of them"
        )
    return found


def outgoing(weight: Tensor) -> Tensor:
    """sum_k |w_ik| of each unit [n] that a weight [C, n, ...] reads."""
    return weight.detach().abs().transpose(0, 1).flatten(1).sum(1)


@torch.no_grad()
def reset(layer: Units, index: Tensor, mean: Tensor | None, rng: torch.Generator) -> None:
    """New input weights, output weights 0; `mean` of what is lost goes to the readers' bias."""
    maker, norm = layer.maker, layer.norm
    shape = (len(index), *maker.weight.shape[1:])
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    new = torch.rand(shape, generator=rng) * 2 * bound - bound
    maker.weight[index] = new.to(maker.weight)
    if maker.bias is not None:
        maker.bias[index] = 0
    if norm is not None:
        for values, start in zip(
            (norm.weight, norm.bias, norm.running_mean, norm.running_var), (1, 0, 0, 1), strict=True
        ):
            values[index] = start
    for reader in layer.readers:
        if mean is not None and reader.bias is not None:
            lost = reader.weight[:, index].reshape(len(reader.bias), len(index), -1).sum(2)
            reader.bias.add_(lost @ mean)
        reader.weight[:, index] = 0


def forget(optimizer: torch.optim.Optimizer, layer: Units, index: Tensor) -> None:
    """Zero the optimizer's state of the units' input and output weights."""
    held = [(p, 0) for module in (layer.maker, layer.norm) if module for p in module.parameters()]
    for p, dim in [*held, *((reader.weight, 1) for reader in layer.readers)]:
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, Tensor) and value.shape == p.shape:
                value.index_fill_(dim, index, 0)
