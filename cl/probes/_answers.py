"""A model's own answers one prompt at a time, and gradients of their log-probabilities.

`.grad`, `requires_grad` and modes stay as they are: gradients are taken of a functional call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl.data import Table
from cl.probes import _looks as looks
from cl.sampling import Rollout, completion_logp

if TYPE_CHECKING:
    from cl.loop import Loop

Named = dict[str, Tensor]
LogP = Callable[[Callable], Tensor]  # a model, or what is called like it -> log p of answers [n]


@dataclass
class Case:
    """One prompt or row. logp: of the model's own answers; rewards [n]: of those, nan where they
    can't be scored; gold: log p of the gold answer [1], None without one."""

    logp: LogP
    rewards: Tensor
    gold: LogP | None


def cases(
    loop: Loop, table: Table, task_label: int | None, n: int, rng: torch.Generator
) -> Iterator[Case]:
    """n own answers to each row of a table."""
    if looks.is_text(loop):
        yield from _text(loop, table, n, rng)
        return
    right = looks.right_classes(loop, table, loop.seen_classes)
    for k in range(len(table)):
        rows = table.rows(torch.tensor([k], device=table.device))
        logp = _of_classes(loop, loop.prepared(rows["x"]), task_label)
        drawn = torch.multinomial(logp(loop.model).exp().cpu(), n, True, generator=rng)
        yield Case(_chosen(logp, drawn), right[k, drawn].float(), _chosen(logp, rows["y"].cpu()))


def _of_classes(loop: Loop, x: Tensor, task_label: int | None) -> LogP:
    told = None if task_label is None else torch.tensor([task_label], device=x.device)

    def logp(model) -> Tensor:
        return loop.restricted(model(x)[:, : loop.seen_classes], told).log_softmax(1)[0]

    return logp


def _chosen(logp: LogP, answers: Tensor) -> LogP:
    return lambda model: logp(model)[answers]


def _text(loop: Loop, table: Table, n: int, rng: torch.Generator) -> Iterator[Case]:
    for items, rollout in looks.answered(loop, loop.model, table, n, rng):
        found = looks.rewards(loop, items, rollout)
        for start in range(0, len(items), n):
            rows = slice(start, start + n)
            own = Rollout(**{name: field[rows] for name, field in vars(rollout).items()})
            rewards = torch.tensor([torch.nan if r is None else r for r in found[rows]])
            yield Case(_summed(own), rewards, _gold(loop, items[start]))


def _summed(rollout: Rollout) -> LogP:
    return lambda model: completion_logp(model, rollout).sum(1)


def _gold(loop: Loop, item: int) -> LogP | None:
    asked, tokenizer = loop.stream.items[item], loop.model.tokenizer
    text = looks.gold(loop, item)
    if text is None:
        return None
    ids = [tokenizer.prompt_ids(asked.prompt), tokenizer.response_ids(text)]
    prompt, answer = (torch.tensor([part], device=loop.device) for part in ids)
    alone = torch.zeros(1, dtype=torch.int64, device=loop.device)
    given, said = torch.ones_like(prompt).bool(), torch.ones_like(answer).bool()
    return _summed(Rollout(prompt, given, answer, said, said.float(), alone.bool(), alone))


def gradient(model: nn.Module, logp: LogP, weights: Sequence[float], names: set[str]) -> Named:
    """d sum_i weights_i log p_i / d theta, theta the parameters of these names.

    In float32 and row after row, as a checkpoint keeps it, so that sums add in one order.
    """
    theta = {
        name: p.detach().requires_grad_() for name, p in model.named_parameters() if name in names
    }
    if not theta:
        return {}
    with torch.enable_grad():
        found = logp(lambda *args, **options: functional_call(model, theta, args, options))
        value = (found * torch.tensor(weights, device=found.device)).sum()
        grads = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    pairs = zip(theta, grads, strict=True)
    return {name: g.float().contiguous() for name, g in pairs if g is not None}
