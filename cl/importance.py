"""How much each weight matters to what was learned, and the penalty that holds it in place.

Shared by the methods that pull weights towards old values. Everything is {name: tensor} over
the model's parameters. When a parameter has grown, the old ones are its leading rows: new rows
have importance zero and are free.

A row of a text stream is a prompt with one response of T tokens, and its logits are the T that
predict them: log p(y|x) is log p(response | prompt), the sum over the response's tokens.

A row of environments is an observation and the action taken there; a Gaussian policy's spread is a
parameter as others are. Where a network values actions, Q(s, a) stands for log p(a|s): the square
of its gradient is the Fisher information of a Gaussian with spread 1 around the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cl.errors import RunError
from cl.models.policy import PolicyModel
from cl.objectives import _actions
from cl.seeding import global_state, restore_globals
from cl.toolbox import FEATURE_BATCH

if TYPE_CHECKING:
    from cl.loop import Loop

Named = dict[str, Tensor]
Rows = tuple[Tensor, Tensor, Tensor | None]
AT_ONCE = 2**24  # gradient elements held at once (64 MiB in float32)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode with gradients: batch-norm statistics rest, dropout is off.

    Modes and the global generators are restored on leaving.
    """
    modes = [(module, module.training) for module in model.modules()]
    state = global_state()
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        restore_globals(state)


def sensitivity(
    loop: Loop,
    n: int | None,
    rng: torch.Generator,
    value: Callable[..., Tensor],
    power: int,
    *,
    drawn: bool = False,
) -> Named:
    """Mean over rows of |d value / d theta|^power, for n random rows of what is trained on.

    value: as in `mean_gradient`; on text it gets logits [T, V] and ids [T] of the response.
    drawn: labels, or responses, come from the model's own distribution instead of the data.
    """
    if loop.stream.domain == "llm":
        return mean_text_gradient(loop.model, text_rows(loop, n, rng, drawn), value, power)
    rows = evaluation_rows(loop, n, rng)
    rows = with_drawn_labels(loop, rows, rng) if drawn else rows
    return mean_gradient(loop.model, rows, value, power)


def log_likelihood(loop: Loop) -> Callable[..., Tensor]:
    """What `sensitivity` takes as value for a Fisher: log p(y|x) of one row, among its task's
    classes where task labels are given; Q(s, a) where actions are valued."""

    def value(scores: Tensor, y: Tensor, task_id: Tensor | None, log_std: Tensor | None = None):
        if loop.valued:
            return scores.gather(-1, y[:, None]).sum()
        if log_std is not None:
            return _actions.logp(scores, y, log_std).sum()
        return -F.cross_entropy(loop.restricted(scores, task_id), y, reduction="sum")

    return value


def chosen(loop: Loop, n: int | None, rng: torch.Generator) -> Tensor:
    """Positions of n random rows of what is trained on, in order; of all for None."""
    table = loop.shown
    if n is None or n >= len(table):
        return torch.arange(len(table))
    return torch.randperm(len(table), generator=rng)[:n].sort().values


def evaluation_rows(loop: Loop, n: int | None, rng: torch.Generator) -> Iterator[Rows]:
    """(x, y, task labels or None) in batches: n random rows of what is trained on, None for all.

    The rows are prepared as for evaluation, without augmentation, and counted as samples.
    """
    table = loop.shown
    for index in chosen(loop, n, rng).to(table.device).split(FEATURE_BATCH):
        rows = table.rows(index)
        loop.samples_seen += len(index)
        yield loop.prepared(rows["x"]), rows["y"], rows.get("task_label")


def with_drawn_labels(loop: Loop, rows: Iterator[Rows], rng: torch.Generator) -> Iterator[Rows]:
    """The same rows, their labels drawn from the model's softmax, or actions from its policy."""
    for x, _, task_id in rows:
        if isinstance(loop.model, PolicyModel):
            noise = _actions.noise(loop.model.actions, (len(x),), rng, x.device)
            with torch.no_grad():
                yield x, _actions.draw(loop.model(x), noise, loop.model.log_std), task_id
            continue
        with torch.no_grad():
            p = loop.restricted(loop.model(x), task_id).softmax(1)  # [B, C]
        y = torch.multinomial(p.float().cpu(), 1, generator=rng)[:, 0]
        yield x, y.to(x.device), task_id


def text_rows(
    loop: Loop, n: int | None, rng: torch.Generator, drawn: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """(ids of the prompt, ids of the response) of n random rows; the first gold one, or sampled.

    Raises RunError for an item without a gold response.
    """
    from cl.sampling import sample

    table, tokenizer = loop.adapted_dataset, loop.model.tokenizer
    index = chosen(loop, n, rng).to(table.device)
    for part in table.rows(index)["x"].split(FEATURE_BATCH):
        items = [loop.stream.items[k] for k in part.tolist()]
        prompts = [tokenizer.prompt_ids(item.prompt) for item in items]
        loop.samples_seen += len(items)
        if drawn:
            limits = [loop.stream.max_new_tokens[item.task] for item in items]
            said = sample(loop.model, prompts, max_new_tokens=limits, rng=rng).completions()
        else:
            if not all(item.responses for item in items):
                raise RunError(
                    "importance needs responses, and some items have none: fisher=sampled takes "
                    "the model's own"
                )
            said = [tokenizer.response_ids(item.responses[0]) for item in items]
        yield from zip(prompts, said, strict=True)


def mean_text_gradient(
    model: nn.Module,
    rows: Iterator[tuple[list[int], list[int]]],
    value: Callable[..., Tensor],
    power: int,
) -> Named:
    """Mean over rows of |d value(logits [T, V], response [T], None) / d theta|^power, in float32.

    One row at a time: what transformers does inside can't be mapped over rows. `.grad`, modes and
    the global generators stay as they are.
    """
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in theta.items()}
    device, count = next(model.parameters()).device, 0
    with evaluating(model):
        for prompt, response in rows:
            count += 1
            ids = torch.tensor([prompt + response], device=device)
            kept = len(response) + 1
            logits = model(ids, torch.ones_like(ids), kept)[0, :-1]  # [T, V]
            of_row = value(logits, ids[0, len(prompt) :], None)
            found = torch.autograd.grad(of_row, list(theta.values()), allow_unused=True)
            for name, g in zip(theta, found, strict=True):
                if g is not None:
                    total[name] += g.float().abs().pow(power)
    return {name: g / max(1, count) for name, g in total.items()}


def mean_gradient(
    model: nn.Module, batches: Iterator[Rows], value: Callable[..., Tensor], power: int
) -> Named:
    """Mean over rows of |d value(f(x), y, task label) / d theta|^power, theta what is trained.

    value: maps logits [1, C], y [1] and task label [1] (or None) of one row to a scalar, and
    log_std [A] where the model is a Gaussian policy. `.grad`, modes, batch-norm statistics and the
    global generators stay as they are.
    """
    theta = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rest = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    rest |= dict(model.named_buffers())

    def of_row(theta, x, y, task_id=None):
        logits = functional_call(model, (theta, rest), (x[None],))
        spread = [named["log_std"] for named in (theta, rest) if "log_std" in named]
        return value(logits, y[None], None if task_id is None else task_id[None], *spread)

    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    n, chunk = 0, max(1, AT_ONCE // max(1, sum(p.numel() for p in theta.values())))
    with evaluating(model):
        for x, y, task_id in batches:
            n += len(y)
            given = (x, y) if task_id is None else (x, y, task_id)
            for args in zip(*(column.split(chunk) for column in given), strict=True):
                by_row = vmap(grad(of_row), (None,) + (0,) * len(args))(theta, *args)
                for name, g in by_row.items():  # [chunk, *shape]
                    total[name] += g.abs().pow(power).sum(0)
    return {name: g / max(1, n) for name, g in total.items()}


def quadratic(model: nn.Module, importance: Named, anchor: Named) -> Tensor:
    """sum_i importance_i (theta_i - anchor_i)^2 over old rows of parameters that are trained."""
    terms = []
    for name, p in model.named_parameters():
        if p.requires_grad and name in importance:
            held, old = importance[name], anchor[name]
            if held.shape != p.shape:  # the head has grown since
                p, old = p[: len(held)], old[: len(held)]
            terms.append((held * (p - old).square()).sum())
    return torch.stack(terms).sum() if terms else next(model.parameters()).new_zeros(())


def quadratic_gradient(name: str, p: Tensor, importance: Named, anchor: Named) -> Tensor:
    """The gradient of `quadratic` in parameter `name`, zero in new rows."""
    if name not in importance:
        return torch.zeros_like(p)
    held = grown(importance[name], p)
    return 2 * held * (p.detach() - grown(anchor[name], p))


def values(model: nn.Module) -> Named:
    """A copy of every parameter as it is now."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def grown(held: Tensor, like: Tensor) -> Tensor:
    """`held` with the shape of `like`: zeros in rows that it does not have."""
    if held.shape == like.shape:
        return held
    wide = torch.zeros_like(like, dtype=held.dtype)
    wide[: len(held)] = held
    return wide


def accumulated(old: Named | None, new: Named, decay: float = 1.0) -> Named:
    """decay * old + new, name by name; a parameter that `new` lacks keeps what is left of it."""
    old = old or {}
    total = {name: decay * held for name, held in old.items() if name not in new}
    for name, g in new.items():
        total[name] = g + decay * grown(old[name], g) if name in old else g
    return total
