"""learning_speed: how fast the model learns something new, beside a freshly drawn one.

Source  Lyle et al., "Understanding Plasticity in Neural Networks", ICML 2023, arXiv:2303.01486:
        plasticity is how far the loss falls within a budget on targets that a random network gives,
        beside what always answering the same would have. Warm starts that learn slower: Ash and
        Adams 2020, arXiv:1910.08475
Maths   targets of a row x: argmax over outputs of a random network's scores, each output's mean
        over the rows taken off (so that answers are even); of continuous actions the scores
        themselves, with mean 0 and variance 1
        fallen(theta) = loss of the best constant answer - loss after 50 updates from theta
        speed = fallen(the model) / fallen(a fresh network of its architecture)
        means over 3 problems, a random and a fresh network for each
Unit    `model`, `fresh`: what fallen is [nats; continuous: squared standard deviations];
        `speed` [1]
Range   speed 1: as fast as a fresh network, above: what was learned helps, falling over a stream: a
        sign of lost plasticity; below 0: worse than a constant answer. Not there where a fresh
        network learns nothing either, nor where there is one answer only
Rows    up to 512 of the training rows, of a policy observations that it has lately met; 64 at a
        time
Departs Both begin with the fresh network's heads, so that neither has to forget confident answers
        (or large values: it serves Q-networks, too): it is the layers before them that are
        compared. The run's own kind of optimizer, rate and weight decay, started afresh, at a
        constant rate, without clipping: compare runs of one learning rate. Observations are
        normalised as the run does, in both
Cost    300 updates after every experience, on copies
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl import optim
from cl.errors import BadValue
from cl.models import rebuild
from cl.models.anatomy import anatomy
from cl.probes._copies import copied
from cl.registry import register
from cl.seeding import derive, generator

PROBLEMS, UPDATES, BATCH, LEAST = 3, 50, 64, 0.01


@register
class LearningSpeed:
    """It has no state: problems are drawn from (seed, experience)."""

    domains = ("vision", "rl")

    def check(self, loop) -> None:
        """Raises BadValue for models that can't be drawn afresh."""
        if getattr(loop.model, "architecture", None) is None:
            raise BadValue(
                "probe learning_speed draws the model afresh, which one given as a Python object "
                "can't be; name one"
            )

    def measure(self, loop) -> dict[str, float]:
        """Both falls and their ratio."""
        table = loop.shown if loop.stream.domain == "rl" else loop.experience.train
        if table is None:
            return {}
        x = loop.probed(table).column("x")
        found = [problem(loop, x, k) for k in range(PROBLEMS)]
        found = [pair for pair in found if pair is not None]
        if not found:
            return {}
        own, fresh = (fmean(column) for column in zip(*found, strict=True))
        speed = {"speed": own / fresh} if fresh > LEAST else {}
        return {"model": own, "fresh": fresh, **speed}


def problem(loop, x: Tensor, k: int) -> tuple[float, float] | None:
    """What the model's and a fresh network's loss have fallen on problem k; None without one."""
    name = f"probe.learning_speed/{loop.experience.index}/{k}"
    y = targets(drawn(loop, f"{name}/targets"), loop, x)
    if y.dtype == torch.int64 and len(y.unique()) < 2:
        return None
    fresh, own = drawn(loop, f"{name}/fresh"), copied(loop.model)
    values, heads = dict(own.named_parameters()), dict(fresh.named_parameters())
    with torch.no_grad():
        for part in anatomy(fresh):
            if part.category == "head":
                values[part.name].copy_(heads[part.name])
    best = constant(y)
    return tuple(best - after(loop, model, x, y, name) for model in (own, fresh))


def drawn(loop, name: str) -> nn.Module:
    """A network of the model's architecture, seeing inputs as it does. Global draws are put back
    by whoever measures."""
    torch.manual_seed(derive(loop.seed, name))
    made = rebuild(loop.model.architecture).to(loop.device).eval()
    if getattr(loop.model, "mean", None) is not None:
        made.mean, made.spread = loop.model.mean.clone(), loop.model.spread.clone()
    return made


def targets(teacher: nn.Module, loop, x: Tensor) -> Tensor:
    """What a random network would answer: int64 [N], or float32 [N, A] of continuous actions."""
    scores = answers(teacher, loop, x)
    scores = scores - scores.mean(0)
    if continuous(loop):
        return scores / scores.std(0, correction=0).clamp(min=1e-8)
    return scores.argmax(1)


def answers(model: nn.Module, loop, x: Tensor) -> Tensor:
    """Scores [N, A] of actions, or of the classes seen so far."""
    scores = model(x).float()
    return scores if loop.stream.domain == "rl" else scores[:, : loop.seen_classes]


def continuous(loop) -> bool:
    """Whether answers are numbers."""
    return loop.stream.domain == "rl" and loop.stream.actions.continuous


def constant(y: Tensor) -> float:
    """The least loss of an answer that is the same for all rows."""
    if y.dtype != torch.int64:
        return y.var(0, correction=0).mean().item()
    share = y.bincount().double() / len(y)
    return torch.special.entr(share).sum().item()


def after(loop, model: nn.Module, x: Tensor, y: Tensor, name: str) -> float:
    """Loss over all rows after the updates, which change the model."""
    loss = F.mse_loss if y.dtype != torch.int64 else F.cross_entropy
    optimizer = optim.build(model, replace(loop.train, warmup=0))
    rng, order = generator(loop.seed, f"{name}/order"), []
    torch.manual_seed(derive(loop.seed, f"{name}/dropout"))
    model.train()
    with torch.enable_grad():
        for _ in range(UPDATES):
            if not order:
                order = list(torch.randperm(len(x), generator=rng).to(x.device).split(BATCH))
            index = order.pop()
            optimizer.zero_grad()
            loss(answers(model, loop, x[index]), y[index]).backward()
            optimizer.step()
    model.eval()
    return loss(answers(model, loop, x), y).item()
