"""relearning: how much of a past task comes back in a few updates: spurious loss or real.

Source  Zheng et al. 2025, "Spurious Forgetting in Continual Learning of Language Models",
        arXiv:2501.13453: scores fall by lost alignment and return at once, knowledge does not
Maths   on a copy of the model, for each past eval: 20 updates on its training rows with what the
        stream shows (labels, gold responses, in environments an expert's actions), then its
        score again
        regained = mean over past evals of (after - before) / (learned - before), where the loss
        learned - before is above 0.05;  learned: the score when it was last taught
Unit    [1]: `before/<eval>`, `after/<eval>` shares of right answers; `lost`: mean of learned -
        before; `regained` [share of the loss]
Range   regained 0: real loss, 1: all of it was spurious, above 1: better than ever, below 0: worse
        still. Not there before something is past, or where nothing was lost
Rows    scores by up to 256 validation rows, else training ones, in environments by validation
        episodes; never test rows
Cost    it trains: 20 updates and two scorings for each past eval after every experience
Departs The run's own kind of optimizer, rate and weight decay, started afresh, at a constant rate
        and without clipping, 64 rows at a time: compare runs of one learning rate. What the model
        itself answers is scored, not a strategy's own prediction. Weights that the run does not
        train rest, unless it trains none
"""

from __future__ import annotations

import copy
from statistics import fmean

import torch
from torch import nn

from cl import objectives, optim
from cl.data import Batches, Table
from cl.errors import BadValue
from cl.probes import _looks as looks
from cl.probes._copies import bare, copied, demonstrated, played
from cl.registry import register
from cl.seeding import derive

UPDATES, BATCH, LOSS, SCORED = 20, 64, 0.05, 256


@register
class Relearning:
    """learned: {eval: its score when it was last taught}."""

    def __init__(self):
        self.learned = {}

    def check(self, loop) -> None:
        """In environments somebody must show what is right. Raises BadValue."""
        for task in loop.stream.tasks if loop.stream.domain == "rl" else ():
            if task.expert is None:
                raise BadValue(f"probe relearning: {task.name} has no expert to learn from")

    def after_training_exp(self, loop):
        """Score what has just been learned."""
        for e in looks.taught(loop)[0]:
            table = looked_at(loop, e)
            if table is not None:
                self.learned[e.name] = score(loop, loop.model, e, table)

    def measure(self, loop) -> dict[str, float]:
        """Scores before and after, and what has been regained of what was lost."""
        values, lost, regained = {}, [], []
        for e in looks.taught(loop)[1]:
            table, shown = looked_at(loop, e), to_learn(loop, e)
            if table is None or shown is None or e.name not in self.learned:
                continue
            before = score(loop, loop.model, e, table)
            after = score(loop, relearned(loop, shown, e.name), e, table)
            values |= {f"before/{e.name}": before, f"after/{e.name}": after}
            lost.append(self.learned[e.name] - before)
            if lost[-1] > LOSS:
                regained.append((after - before) / lost[-1])
        values |= {"lost": fmean(lost)} if lost else {}
        return values | ({"regained": fmean(regained)} if regained else {})


def looked_at(loop, e) -> Table | None:
    """Rows, or episodes, to score by."""
    return e.val if loop.stream.domain == "rl" else looks.looked_at(loop, e, SCORED)


def score(loop, model: nn.Module, e, table: Table) -> float:
    """Of what the model itself answers."""
    in_environments = loop.stream.domain == "rl"
    return played(loop, model, e) if in_environments else looks.score(loop, model, e, table)


def to_learn(loop, e) -> Table | None:
    """Rows that show what is right."""
    if loop.stream.domain == "rl":
        return demonstrated(loop, e, UPDATES * BATCH)
    return looks.shown(loop, e)


def relearned(loop, table: Table, name: str) -> nn.Module:
    """A copy of the model after a few updates on a table; the loop and its model stay as they are.

    The copy is trained through a loop of its own: the same stream and settings, but no strategy,
    no shared generator, and the domain's objective for learning from gold answers.
    """
    alone = bare(loop, copied(loop.model))
    alone.seed = derive(loop.seed, f"probe.relearning/{name}/{loop.experience.index}")
    imitating = objectives.imitation(loop.stream.domain)
    same = type(loop.objective) is type(imitating)
    alone.objective = copy.copy(loop.objective) if same else imitating
    alone._criterion = getattr(alone.objective, "criterion", None)
    alone.adapted_dataset, alone.mb_share, alone.mb_part = table, 1.0, (0, 1)
    optimizer = optim.build(alone.model, loop.train)
    batches = Batches(table, BATCH, alone.rng("batches"))
    torch.manual_seed(alone.seed)  # dropout; what it was is put back after measuring
    alone.model.train()
    done = 0
    with torch.enable_grad():
        while done < UPDATES:
            for index in batches:
                step(alone, optimizer, index)
                done += 1
                if done == UPDATES:
                    break
    return alone.model.eval()


def step(alone, optimizer, index) -> None:
    """One update on the rows at positions `index`."""
    alone.mb_index = alone.batch_index = index
    alone.objective.load(alone, alone.adapted_dataset.rows(index))
    optimizer.zero_grad()
    with alone.autocast():
        alone.mb_output = alone.objective.forward(alone)
        loss = alone.objective.loss(alone)
    loss.backward()
    optimizer.step()
