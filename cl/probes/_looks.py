"""What probes of behaviour look at: rows, sampled answers, distributions over tokens and classes.

Rows   never test rows: an eval's validation rows, else training rows of the experience that taught
       it last, or that will teach it first; so many at most, spread evenly
Draws  from generators derived from the run's seed and a name of their own, so that nothing else
       that is drawn in the run moves, nor what another probe draws
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl.data import Table
from cl.sampling import Rollout, sample
from cl.seeding import generator
from cl.stream import Eval
from cl.text import TextStream

if TYPE_CHECKING:
    from cl.loop import Loop

PROMPTS = 64  # of an eval, at most
ROWS = 512  # of an eval of a classifier, at most
AT_ONCE = 2**24  # logits held at once


def is_text(loop: Loop) -> bool:
    """Whether the model answers in text."""
    return isinstance(loop.stream, TextStream)


def taught(loop: Loop) -> tuple[list[Eval], list[Eval]]:
    """The evals that the current experience teaches, and those that were taught before it alone."""
    i, evals = loop.experience.index, loop.stream.evals
    new = [e for e in evals if i in e.learned_at]
    return new, [e for e in evals if i not in e.learned_at and min(e.learned_at, default=i) < i]


def looked_at(loop: Loop, e: Eval, n: int | None = None, *, training: bool = False) -> Table | None:
    """At most n rows of an eval (none: PROMPTS or ROWS), None if it has no row for looking at.

    training: its training rows, also where there are validation rows.
    """
    n = (PROMPTS if is_text(loop) else ROWS) if n is None else n
    table = e.val if e.val is not None and not training else _training(loop, e)
    return None if table is None or not len(table) else spread(table, n)


def _training(loop: Loop, e: Eval) -> Table | None:
    if not e.learned_at:
        return None
    i = loop.experience.index
    at = max((k for k in e.learned_at if k <= i), default=e.learned_at[0])
    table = loop.stream.experiences[at].train
    if not e.classes:
        return table
    y = table.column("y")
    own = torch.isin(y, torch.tensor(e.classes, device=y.device))
    return table.select(own.nonzero()[:, 0])


def shown(loop: Loop, e: Eval) -> Table | None:
    """All training rows of an eval that say what is right, None if there is none."""
    table = _training(loop, e)
    if table is not None and is_text(loop):
        said = [gold(loop, k) is not None for k in table.column("x").tolist()]
        table = table.select(torch.tensor(said, device=table.device).nonzero()[:, 0])
    return table if table is not None and len(table) else None


def spread(table: Table, n: int) -> Table:
    """At most n rows of a table, spread evenly."""
    n = min(n, len(table))
    return table.select(torch.arange(n, device=table.device) * len(table) // n)


def own_rng(loop: Loop, name: str) -> torch.Generator:
    """A generator that nothing else draws from."""
    return generator(loop.seed, f"probe.{name}")


# -- classifiers -----------------------------------------------------------------------------------


def class_logits(loop: Loop, model: nn.Module, table: Table) -> Tensor:
    """What a model says about rows in evaluation: float64 [N, C] on the CPU."""
    order = torch.arange(len(table), device=table.device)
    parts = order.split(loop.eval_mb_size)
    return torch.cat([model(loop.prepared(table.rows(k)["x"])).cpu().double() for k in parts])


def scored_logits(loop: Loop, model: nn.Module, e: Eval, table: Table) -> Tensor:
    """Of the classes that may be answered: seen so far, and the task's where it is told."""
    found = class_logits(loop, model, table)[:, : loop.seen_classes]
    told = None if e.task_label is None else torch.full((len(table),), e.task_label)
    return loop.restricted(found, told)


def right_classes(loop: Loop, table: Table, n_classes: int) -> Tensor:
    """Which answers are right for each row: bool [N, C] on the CPU."""
    rows = {name: table.column(name) for name in ("y", "answer") if name in table.columns}
    every = torch.arange(n_classes, device=table.device).expand(len(table), n_classes)
    return loop.stream.is_right(rows, every).cpu()


def is_seen(loop: Loop, e: Eval) -> bool:
    """Whether the model has an output for every class of an eval."""
    return max(e.classes, default=-1) < loop.seen_classes


# -- text ------------------------------------------------------------------------------------------


def answered(
    loop: Loop, model, table: Table, n: int, rng: torch.Generator, *, greedy: bool = False
) -> Iterator[tuple[list[int], Rollout]]:
    """n answers at temperature 1 to each item of a table: (item of each row, rows), part by part.

    Parts have no more rows than an evaluation's batches.
    """
    items = table.column("x").tolist()
    size = max(1, loop.eval_mb_size // n)
    for start in range(0, len(items), size):
        part = items[start : start + size]
        asked = [loop.stream.items[k] for k in part]
        prompts = [model.tokenizer.prompt_ids(item.prompt) for item in asked]
        limits = [loop.stream.max_new_tokens[item.task] for item in asked]
        made = sample(model, prompts, n=n, max_new_tokens=limits, greedy=greedy, rng=rng)
        yield [k for k in part for _ in range(n)], made


def score(loop: Loop, model, e: Eval, table: Table) -> float:
    """Share of rows that a model answers rightly: by the likeliest class, or greedily in text."""
    if not is_text(loop):
        logits = scored_logits(loop, model, e, table)
        right = right_classes(loop, table, logits.shape[1]).gather(
            1, logits.argmax(1, keepdim=True)
        )
        return right.double().mean().item()
    found = []
    for items, rollout in answered(loop, model, table, 1, torch.Generator(), greedy=True):
        found += [r == 1 for r in rewards(loop, items, rollout)]
    return sum(found) / len(found)


def gold(loop: Loop, item: int) -> str | None:
    """What an item shows, None where it shows nothing."""
    said = loop.stream.items[item].responses
    shown = getattr(loop.objective, "gold", None)  # own and oracle are the objective's
    return shown(loop, item) if said and shown is not None else next(iter(said), None)


def rewards(loop: Loop, items: Sequence[int], rollout: Rollout) -> list[float | None]:
    """The verifier's word on answers; what it fails on is not counted as the run's.

    An answer that was cut off earns nothing, as in evaluation and in training.
    """
    stream, decode = loop.stream, loop.model.tokenizer.decode
    failures = stream.failures
    found = stream.rewards(items, [decode(ids) for ids in rollout.completions()])
    stream.failures = failures
    cut = rollout.truncated.tolist()
    return [0.0 if c and r is not None else r for r, c in zip(found, cut, strict=True)]


def per_token(
    value: Callable[..., Tensor], models: Sequence[nn.Module], rollout: Rollout
) -> Tensor:
    """value(each model's logits [b, T, V]) for every answer token, 0 where there is none.

    float64 [N, T] on the CPU, exact over the vocabulary.
    """
    ids, mask, width = rollout.ids, rollout.mask, rollout.completion_ids.shape[1]
    size = max(1, AT_ONCE // ((width + 1) * models[0].tokenizer.vocab_size))
    parts = []
    for start in range(0, len(ids), size):
        rows = slice(start, start + size)
        said = [model(ids[rows], mask[rows], keep=width + 1)[:, :-1] for model in models]
        parts.append(value(*(logits.cpu().double() for logits in said)))
    return torch.cat(parts).masked_fill(~rollout.completion_mask.cpu(), 0.0)


def joined(parts: Iterable[tuple[list[int], Rollout]], value: Callable) -> tuple[float, float]:
    """(sum per answer, mean per token) of value(rollout) [N, T] over parts of answers."""
    total = answers = tokens = 0.0
    for _, rollout in parts:
        total += value(rollout).sum().item()
        answers += len(rollout)
        tokens += rollout.completion_mask.sum().item()
    return total / answers, total / tokens
