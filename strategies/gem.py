"""gem: gradient episodic memory, one gradient constraint per past experience.

Source    Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840
Claim     updates that raise no past task's loss allow learning with little forgetting, and
          backward transfer
Maths     g~ = argmin |g~ - g|^2 / 2 subject to g~.g_k >= 0 for every past experience k
          (eq. 8), solved in the dual: with G the rows g_k,
          min_v v'GG'v / 2 + g'G'v subject to v >= gamma, g~ = G'v + g          (eq. 11)
          only where some g.g_k < 0; g_k is the mean gradient over all of k's memory
State     buffers "gem.<k>": patterns_per_experience raw rows of each past experience
Needs     experience boundaries; a buffer; task labels, where given, restrict each row's loss
Defaults  the paper's gamma=0.5; 40 patterns: 200 after five experiences (the paper: 256 a task)
Departs   memory: a random sample of each experience instead of its last rows, which is the
          same for a shuffled stream. v >= gamma as in the authors' code; the paper's text adds
          gamma to v. A ridge of 1e-6 of the mean diagonal keeps G G' positive definite (the
          authors' code adds 1e-3). Without task labels every class seen competes (the authors, on
          CIFAR-100, mask to the task's). g is over the trained parameters that have a gradient,
          before train.clip, and momentum and weight decay come after it (the paper: plain SGD)
          A class or domain that returns keeps its old constraint and adds a new one.
          As in the authors' code each memory passes in training mode, before the batch: its
          batch-norm statistics and running averages, its dropout, augmented afresh
          Every update waits for the device: the problem is solved on the CPU in float64
Parameters
    patterns_per_experience  exemplars stored of each experience [rows]
    gamma                    least weight of each constraint once one is violated [1]
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import quadprog
import torch
import torch.nn.functional as F

from cl.config import Range
from cl.registry import register
from cl.strategy import Strategy

RIDGE = 1e-6


@register
class GEM(Strategy):
    """One gradient constraint per past experience."""

    needs = ("boundaries", "buffer")
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "agem"}

    def __init__(
        self,
        *,
        patterns_per_experience: Annotated[int, Range(min=1)] = 40,
        gamma: Annotated[float, Range(min=0)] = 0.5,
    ):
        self.patterns_per_experience, self.gamma = patterns_per_experience, gamma
        self.memories = []  # the experiences that have a buffer
        self.G = []  # the running update's g_k: one tensor or None per trained parameter

    def before_training_iteration(self, loop):
        """Every past experience's gradient, at the weights that the update starts from."""
        self.G = [memory_gradient(loop, self._buffer(loop, k).rows) for k in self.memories]

    def before_update(self, loop):
        """Project the gradient if it violates a constraint."""
        if not self.G:
            return
        held = [p.grad is not None for p in trained(loop.model)]
        grads = [p.grad for p in trained(loop.model) if p.grad is not None]
        G = torch.stack([flat(g_k, held, grads) for g_k in self.G])  # [t, P]
        g = torch.cat([grad.flatten() for grad in grads])  # [P]
        v = multipliers(G, g, self.gamma)
        if v is not None:
            step = torch.tensor(v).to(G) @ G
            for grad, part in zip(grads, step.split([p.numel() for p in grads]), strict=True):
                grad.add_(part.view_as(grad))
        self.G = []

    def after_training_exp(self, loop):
        """Keep some of the experience's rows."""
        data, k = loop.experience.train, loop.experience.index
        if loop.adapted_dataset is not None:
            rows = {name: data.column(name) for name in data.columns}
            self._buffer(loop, k).add(rows, loop.rng("gem.store"))
            self.memories.append(k)

    def _buffer(self, loop, k):
        return loop.buffer(f"gem.{k}", self.patterns_per_experience, "reservoir")


def multipliers(G, g, gamma):
    """v float64 [t] of the dual for G [t, P], g [P]; None if no constraint is violated."""
    G, g = G.double(), g.double()
    gram, dots = (G @ G.T).cpu().numpy(), (G @ g).cpu().numpy()
    if not (dots < 0).any() or not np.isfinite(gram).all():  # the loop reports what is not finite
        return None
    t = len(dots)
    gram = (gram + gram.T) / 2 + np.eye(t) * (RIDGE * gram.trace() / t)
    return quadprog.solve_qp(gram, -dots, np.eye(t), np.full(t, gamma))[0]


def memory_gradient(loop, rows):
    """Gradient of the mean cross-entropy on stored rows, one tensor or None per parameter."""
    rows = {name: column.to(loop.device) for name, column in rows.items()}
    loop.samples_seen += len(rows["y"])
    bf16 = loop.train.precision == "bf16"
    with torch.autocast(loop.device.type, torch.bfloat16, enabled=bf16):
        output = loop.restricted(loop.model(loop.augmented(rows["x"])), rows.get("task_label"))
        loss = F.cross_entropy(output, rows["y"])
    return list(torch.autograd.grad(loss, trained(loop.model), allow_unused=True))


def flat(parts, held, like):
    """The parts of one memory gradient that are `held`, as a vector [P]; None counts as 0."""
    parts = [part for part, kept in zip(parts, held, strict=True) if kept]
    pairs = zip(parts, like, strict=True)
    return torch.cat([(torch.zeros_like(g) if p is None else p).flatten() for p, g in pairs])


def trained(model):
    """The parameters that require grad."""
    return [p for p in model.parameters() if p.requires_grad]
