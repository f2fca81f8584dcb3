"""cloning: behaviour cloning, learning from what an expert does in environments.

Source  Pomerleau 1991; noise in demonstrations: Laskey et al., DART, arXiv:1703.09327
Loss    -log p(expert's action | observation), averaged over the rows of a batch
Rows    x float32 [d] observations that the expert meets, y its actions: int64, or float32 [A]. A
        share of the steps is made with a random action, so that the expert shows how to get back;
        what is learned there is still what the expert would have done
Budget  train.epochs passes over `demonstrations` rows; an experience's budget of steps is for
        learning from rewards and has no meaning here
Shapes  output [B, A] scores; continuous actions have the Gaussian's likelihood
Parameters
    demonstrations  rows of every task [steps]
    random          share of the expert's steps that are made with a random action [1]
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from torch import Tensor

from cl.config import Range
from cl.data import Batches, Table
from cl.env_stream import EnvStream, EnvTask
from cl.errors import BadValue
from cl.objectives._acting import check_policy
from cl.objectives._actions import cloning_loss
from cl.registry import register
from cl.seeding import derive

if TYPE_CHECKING:
    from cl.loop import Loop

SIDE = 16  # environments that an expert shows itself in


@register
class Cloning:
    """Imitation of an expert's actions."""

    name = "cloning"
    domains = ("rl",)

    def __init__(
        self,
        *,
        demonstrations: Annotated[int, Range(min=1)] = 4096,
        random: Annotated[float, Range(min=0, below=1)] = 0.1,
    ):
        self.demonstrations, self.random = demonstrations, random

    def adapted(self, stream: EnvStream, seed: int, device: torch.device) -> EnvStream:
        """The stream with demonstrations as its training data. Raises BadValue without an expert.

        Experiences with the same budget of the same task, as in cycles, show the same rows.
        """
        if not isinstance(stream, EnvStream):
            return stream
        shown: dict[int, Table] = {}
        for e in stream.experiences:
            task = int(e.train.column("x")[0])
            if task not in shown:
                shown[task] = self._of(stream.tasks[task], seed).to(device)
        experiences = [
            replace(e, train=shown[int(e.train.column("x")[0])]) for e in stream.experiences
        ]
        return replace(stream, experiences=experiences)

    def _of(self, task: EnvTask, seed: int) -> Table:
        """Rows of one task."""
        env = task.build(SIDE)
        if task.expert is None:
            raise BadValue(f"{task.name} has no expert to learn from; objective=ppo needs none")
        act = task.expert(env)
        rng = np.random.default_rng(derive(seed, f"demonstrations/{task.name}"))
        seen, xs, ys = env.reset(rng), [], []
        for _ in range(-(-self.demonstrations // SIDE)):
            right, other = act(seen), env.sample(rng)
            xs.append(seen)
            ys.append(right)
            astray = rng.random(SIDE) < self.random
            shape = (SIDE, *[1] * (right.ndim - 1))
            seen = env.step(np.where(astray.reshape(shape), other, right)).observations
        env.close()
        x, y = (torch.from_numpy(np.concatenate(c)[: self.demonstrations]) for c in (xs, ys))
        return Table({"x": x, "y": y})

    def check(self, loop: Loop) -> None:
        """Raises BadValue for streams, models and settings that this can't be used with."""
        check_policy(loop, self.name)
        if loop.train.augment:
            raise BadValue("train.augment changes images; observations are taken as they are")

    def batches(self, loop: Loop, table: Table) -> Batches:
        """Shuffled index draws from the component generator "batches"."""
        return Batches(table, loop.train_mb_size, loop.rng("batches"))

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Observations and actions."""
        loop.mb_x, loop.mb_y, loop.mb_task_id = rows["x"], rows["y"], rows.get("task_label")

    def forward(self, loop: Loop) -> Tensor:
        """Scores [B, A]."""
        return loop.model(loop.mb_x)

    def loss(self, loop: Loop) -> Tensor:
        """Mean over the batch."""
        return cloning_loss(loop.mb_output, loop.mb_y, loop.model.log_std)

    def predict(self, loop: Loop, batch) -> Tensor:
        """Scores [B, A]."""
        return loop.model(batch.x)

    def evaluator(self, loop: Loop):
        """Episodes in environments of their own."""
        from cl.episodes import EpisodeEvaluator

        return EpisodeEvaluator(loop)
