"""gdumb: fill a class-balanced memory greedily, then train from scratch on it alone.

Source    Prabhu et al., ECCV 2020 (ecva.net, paper 3587; not on arXiv)
Claim     a learner that ignores the stream but for a memory is hard to beat, which asks whether
          other methods make use of what passes by
Maths     algorithm 1, for each row of class y, with k_c = size / |classes seen|: if y is new or
          the memory holds fewer than k_c rows of y, store the row; if the memory was full, drop a
          random row of its largest class (the first of several). At each experience's end: new
          weights, trained on the memory's rows alone
State     rows: the memory, raw columns [n, ...] on the device; seen: the classes seen
Needs     a buffer; no boundaries (it trains when it is to be scored), no task labels
Defaults  200 exemplars; train.epochs passes (ours; the paper: 256)
Departs   trained with the objective and settings of train.*, instead of the paper's batch 16,
          cosine rate with warm restarts from 0.05 to 0.0005 and cutmix; train.updates caps it
          The paper trains once, when asked, here at the end of every experience. The rows of
          an experience arrive in random order. The authors' code stores size / (all classes) of
          each class; this is the algorithm in print, which knows the classes seen only
          The memory is not the shared class_balanced buffer: that holds a uniform sample of each
          class, this one the first rows to come, less what was dropped
          Weights and optimizer state start anew also in experience 0; a run that was given weights
          (model.from, pretrained) starts from them each time
Parameters
    size    exemplars stored in all [rows]
    epochs  passes over the memory; none is train.epochs [epochs]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.data import Table
from cl.registry import register
from cl.strategy import Strategy


@register
class GDumb(Strategy):
    """Greedy sampler and dumb learner."""

    needs = ("buffer",)
    requires = ("architecture",)
    domains = ("vision", "llm")

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        epochs: Annotated[int, Range(min=1)] | None = None,
    ):
        self.size, self.epochs = size, epochs
        self.rows = {}  # columns of the memory
        self.seen = []  # classes, in order of arrival

    def data(self, loop, experience):
        """The memory, after every row of the experience has been offered once."""
        if self.epochs is not None:
            loop.train_epochs = self.epochs
        self._offer(experience.train, loop.rng("gdumb.store"))
        return Table(self.rows)

    def before_training_exp(self, loop):
        """New weights, and no momentum of the old ones."""
        fresh = loop.fresh_model("gdumb.model")
        loop.optimizer.state.clear()
        loop.model = fresh

    def _offer(self, table, rng):
        order = torch.randperm(len(table), generator=rng)
        y = table.column("y").cpu()[order].tolist()
        held = self.rows["y"].tolist() if self.rows else []
        keep = torch.tensor(greedy(held, y, self.seen, self.size, rng))
        stay, enter = keep[keep < len(held)], keep[keep >= len(held)] - len(held)
        new = table.rows(order[enter].to(table.device))
        old = self.rows or {name: column[:0] for name, column in new.items()}
        stay = stay.to(new["y"].device)
        self.rows = {name: torch.cat([old[name][stay], column]) for name, column in new.items()}
        self.seen += sorted(set(y) - set(self.seen))


def greedy(held, arriving, seen, size, rng):
    """Algorithm 1 on labels: ascending positions in `held + arriving` that the memory keeps.

    held, arriving: labels of the rows in the memory and of those that come; seen: classes so far.
    """
    members = {c: [] for c in seen}  # positions by class
    for position, c in enumerate(held):
        members[c].append(position)
    n = len(held)
    for position, c in enumerate(arriving, len(held)):
        if c in members and len(members[c]) * len(members) >= size:
            continue
        if n == size:
            largest = max(members.values(), key=len)
            largest.pop(int(torch.randint(len(largest), (), generator=rng)))
            n -= 1
        members.setdefault(c, []).append(position)
        n += 1
    return sorted(position for of_class in members.values() for position in of_class)
