"""Objectives: what is minimised on which batches, and what counts as a score.

An objective is chosen by the stream's domain, or claimed by a strategy's `objective(loop)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from cl.data import Batches, Table
from cl.registry import find

if TYPE_CHECKING:
    from cl.loop import Loop

DEFAULTS = {"vision": "cross_entropy", "llm": "token_cross_entropy", "rl": "ppo"}


def default(domain: str) -> Objective:
    """The domain's plain objective."""
    return find("objectives", DEFAULTS[domain]).load()()


def imitation(domain: str, **options) -> Objective:
    """The domain's objective for learning from gold answers; options are its constructor's."""
    name = {**DEFAULTS, "rl": "cloning"}[domain]
    return find("objectives", name).load()(**options)


class Objective(Protocol):
    """Batches, forward pass, loss and inference of one learning paradigm."""

    name: str

    def batches(self, loop: Loop, table: Table) -> Batches:
        """One experience's minibatches; each iteration over it is one epoch."""

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Put raw rows on the loop as `mb_x`, `mb_y`, `mb_task_id`."""

    def forward(self, loop: Loop) -> Tensor:
        """Model outputs for `loop.mb_x`."""

    def loss(self, loop: Loop) -> Tensor:
        """Scalar loss of `loop.mb_output` against `loop.mb_y`."""

    def predict(self, loop: Loop, batch) -> Tensor:
        """Scores [B, C] for `batch.x`; sees `batch.task_label` only if the scenario gives one."""
