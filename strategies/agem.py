"""agem: averaged gradient episodic memory, one constraint from a random batch of the past.

Source    Chaudhry et al., ICLR 2019, arXiv:1812.00420
Claim     one averaged constraint does what GEM's one per task does, at a fraction of the cost
Maths     g_ref: gradient of the loss on a batch drawn from the memory; if g.g_ref < 0,
          g~ = g - (g.g_ref / g_ref.g_ref) g_ref          (eq. 11), else g~ = g
State     the buffer "agem", class_balanced: raw rows of past experiences
Needs     a buffer; no boundaries but the end of each experience's data; task labels, where
          given, restrict the memory's loss row by row
Defaults  200 exemplars (ours), 256 rows in a reference batch (the authors' code on MNIST and
          CIFAR), all if fewer
Departs   memory: equal shares per class of `size` rows, rebalanced as classes come, instead of a
          fixed number per class. Without task labels every class seen competes (the paper's
          heads are one per task). g is over the parameters that are trained and have a gradient,
          before train.clip, and momentum and weight decay come after it (the paper: plain SGD).
          As in the authors' code the memory passes in training mode, before the batch: its
          batch-norm statistics and running averages, its dropout, augmented afresh
          Environments: with ppo and dqn the memory holds what the policy at each experience's end
          says on its latest observations, and its loss is the distance to that, as `cl describe
          cloning_replay` has it; with cloning that of the demonstrations. Both are a reservoir
Parameters
    size        exemplars stored in all [rows]
    batch_size  exemplars in each reference gradient [rows]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from cl.cloned import distance, said
from cl.config import Range
from cl.models.policy import PolicyModel
from cl.objectives._actions import cloning_loss
from cl.registry import register
from cl.strategy import Strategy


@register
class AGEM(Strategy):
    """One averaged gradient constraint."""

    needs = ("buffer",)
    domains = ("vision", "rl")
    instead = {"llm": "replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        batch_size: Annotated[int, Range(min=1)] = 256,
    ):
        self.size, self.batch_size = size, batch_size
        self.g_ref = None  # the running update's: one tensor or None per trained parameter

    def before_training_iteration(self, loop):
        """The reference gradient, at the weights that the update starts from."""
        buffer = self._buffer(loop)
        if len(buffer):
            rows = buffer.draw(self.batch_size, loop.rng("agem.draw"))
            self.g_ref = memory_gradient(loop, rows)

    def before_update(self, loop):
        """Project the gradient where it would raise the memory's loss."""
        if self.g_ref is None:
            return
        pairs = zip(trained(loop.model), self.g_ref, strict=True)
        pairs = [(p.grad, r) for p, r in pairs if p.grad is not None and r is not None]
        c = coefficient(*zip(*pairs, strict=True))
        for g, r in pairs:
            g.sub_(c * r)
        self.g_ref = None

    def after_training_exp(self, loop):
        """Offer the experience's rows and rebalance."""
        if loop.adapted_dataset is None:
            return
        data, rng = loop.experience.train, loop.rng("agem.store")
        if loop.acts:
            rows = said(loop, None, rng)
        else:
            rows = {name: data.column(name) for name in data.columns}
        self._buffer(loop).add(rows, rng)

    def _buffer(self, loop):
        policy = "reservoir" if isinstance(loop.model, PolicyModel) else "class_balanced"
        return loop.buffer("agem", self.size, policy)


def coefficient(g, r):
    """min(0, g.r) / r.r over lists of tensors, a scalar tensor: 0 where the constraint holds."""
    dot = sum((a * b).sum() for a, b in zip(g, r, strict=True))
    square = sum(b.pow(2).sum() for b in r)
    return torch.where(dot < 0, dot / square, torch.zeros_like(dot))


def memory_gradient(loop, rows):
    """Gradient of the mean loss on stored rows, one tensor or None per parameter."""
    rows = {name: column.to(loop.device) for name, column in rows.items()}
    loop.samples_seen += len(rows["y"])
    bf16 = loop.train.precision == "bf16"
    with torch.autocast(loop.device.type, torch.bfloat16, enabled=bf16):
        output = loop.model(loop.augmented(rows["x"]))
        if "scores" in rows:
            loss = distance(loop, output, rows)
        elif isinstance(loop.model, PolicyModel):
            loss = cloning_loss(output, rows["y"], loop.model.log_std)
        else:
            output = loop.restricted(output, rows.get("task_label"))
            loss = F.cross_entropy(output, rows["y"])
    return list(torch.autograd.grad(loss, trained(loop.model), allow_unused=True))


def trained(model):
    """The parameters that require grad."""
    return [p for p in model.parameters() if p.requires_grad]
