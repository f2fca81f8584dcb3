"""replay: mix stored items of earlier data into every batch (experience replay).

Claim     a few hundred exemplars keep most of what was learned
          (Rolnick et al. 2019, arXiv:1811.11682; Chaudhry et al. 2019, arXiv:1902.10486)
Loss      cross-entropy averaged over the batch and as many stored rows together
State     the shared buffer "replay": raw rows on the device
Needs     a buffer
Defaults  200 exemplars, equal shares per class
Departs   a row that arrives twice (recurring streams) may be held twice; ER's reservoir is
          policy=reservoir (filled during each experience's first epoch)
          Text: a row is a prompt, its class the task. Under sft its gold response is replayed,
          whatever the model would say. Rewards that refill batches do so with new prompts
          Environments: rows are demonstrations (cloning) or steps with what they led to (dqn, where
          objective.buffer=keep stores all: perfect memory), in equal shares per action; ppo can't
          learn from stored steps
Parameters
    size        exemplars stored in all [rows], or, below 1, their share of all training rows of the
                stream (0.01: one row in a hundred, rounded up; needs stream_length) [1]
    policy      class_balanced (filled at each experience's end) or reservoir
    batch_size  exemplars added to each batch; none is train.batch_size [rows]
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from cl.config import Range
from cl.errors import BadValue
from cl.registry import register
from cl.strategy import Strategy


@register
class Replay(Strategy):
    """Experience replay."""

    needs = ("buffer",)

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] | Annotated[float, Range(above=0, below=1)] = 200,
        policy: Literal["class_balanced", "reservoir"] = "class_balanced",
        batch_size: Annotated[int, Range(min=1)] | None = None,
    ):
        self.needs = ("buffer", "stream_length") if size < 1 else ("buffer",)
        self.size, self.policy, self.batch_size = size, policy, batch_size
        self.drawn = None  # the stored rows of the running update

    def check(self, loop):
        """Rows that can be stored and learned from again."""
        if loop.acts and not hasattr(loop.objective, "storable"):
            raise BadValue(
                f"replay adds stored rows to batches; {loop.objective.name} learns from steps of "
                "its own policy alone: cloning_replay does its job, or give objective=cloning"
            )
        continuous = loop.stream.domain == "rl" and loop.stream.actions.continuous
        if continuous and self.policy == "class_balanced":
            raise BadValue(
                "replay.policy=class_balanced has equal shares per action, and the actions of "
                f"{loop.stream.name} are continuous; give policy=reservoir"
            )

    def before_rollout(self, loop):
        """With rewards: stored prompts are answered anew, as many as new ones."""
        if loop.acts or loop.rollouts.further:
            return
        buffer, new = self._buffer(loop), dict(loop.rollouts.rows)
        if len(buffer):
            n = self.batch_size or loop.rollouts.n_prompts
            loop.rollouts.add_prompts(buffer.draw(n, loop.rng("replay")))
        if self.policy == "reservoir" and loop.clock.train_exp_epochs == 0:
            self._store(loop, new)

    def before_training_iteration(self, loop):
        """Draw the update's stored rows."""
        if loop.rollouts is not None and not loop.acts:
            return
        buffer = self._buffer(loop)
        n = self.batch_size or loop.train_mb_size
        self.drawn = buffer.draw(n, loop.rng("replay")) if len(buffer) else None

    def before_forward(self, loop):
        """Add them; of several micro-batches each gets its part."""
        if self.drawn is not None:
            part, parts = loop.mb_part
            loop.append_rows({name: column[part::parts] for name, column in self.drawn.items()})

    def after_training_iteration(self, loop):
        """Reservoir: offer each row once, in the first epoch."""
        self.drawn = None
        if loop.rollouts is not None:
            return
        if self.policy == "reservoir" and loop.clock.train_exp_epochs == 0:
            self._store(loop, loop.adapted_dataset.rows(loop.mb_index))

    def after_training_exp(self, loop):
        """Class-balanced: offer the experience's rows and rebalance."""
        data = loop.storable  # not the old rows that another strategy may have added
        at_end = self.policy == "class_balanced" or loop.acts
        if at_end and loop.adapted_dataset is not None:
            self._store(loop, {name: data.column(name) for name in data.columns})

    def _store(self, loop, rows):
        self._buffer(loop).add(rows, loop.rng("replay.store"))

    def _buffer(self, loop):
        size = self.size
        if size < 1:
            size = math.ceil(size * sum(len(e.train) for e in loop.stream.experiences) - 1e-9)
        return loop.buffer("replay", size, self.policy)
