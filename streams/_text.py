"""From the items of tasks to a stream of text: what the text streams have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cl.data import Table
from cl.stream import Eval, Experience
from cl.text import Item, TextStream

# fresh optimizer and a cap on updates for every task, as post-training is run
DEFAULTS = {
    "train.optimizer": "adamw",
    "train.lr": 1e-4,
    "train.batch_size": 64,
    "train.reset_optimizer": True,
}


@dataclass
class Part:
    """One task's items by split; chance: the score of knowing the form of an answer alone."""

    name: str
    train: list[Item] = field(default_factory=list)
    val: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)
    chance: float = 0.0


def text_stream(
    name: str, taught: Sequence[Part], held_out: Sequence[Part] = (), **fields
) -> TextStream:
    """A stream that teaches one task per experience; the held-out ones are scored beside it.

    fields: verifiers, max_new_tokens and other fields of TextStream.
    """
    items: list[Item] = []
    evals, experiences, indices = [], [], []

    def rows(part: list[Item]) -> torch.Tensor:
        items.extend(part)
        return torch.arange(len(items) - len(part), len(items))

    for part in (*taught, *held_out):
        indices.append([rows(part.train), rows(part.val), rows(part.test)])
    number = {task: k for k, task in enumerate(dict.fromkeys(item.task for item in items))}
    tasks = torch.tensor([number[item.task] for item in items])
    pool = {"x": torch.arange(len(items)), "y": tasks}
    for k, (part, index) in enumerate(zip((*taught, *held_out), indices, strict=True)):
        train, val, test = (Table(pool, i) for i in index)
        val = val if part.val else None
        learned = k < len(taught)
        title = f"{k:02d}_{_safe(part.name)}" if learned else part.name
        if learned:
            experiences.append(Experience(k, title, (), train, val))
        at, kind = ((k,), "stream") if learned else ((), "held_out")
        evals.append(Eval(title, (), test, val, at, kind, part.chance))
    fields["defaults"] = DEFAULTS | fields.get("defaults", {})
    return TextStream(
        name, "llm", experiences, evals, (), [], score="exact_match", items=items, **fields
    )


def _safe(name: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "+._-" else "-" for ch in name)[:40]
