"""cumulative: at every experience, train on the union of all experiences so far.

Claim     the upper bound at every point of a stream: storing everything, nothing is forgotten
Loss      the objective's, over the union of the training data of experiences 0..t
State     none; every training item so far counts as stored
Needs     a buffer of everything; no boundaries beyond the arrival of data, no task labels
Defaults  ours: go on from the last weights
Departs   no paper. As many epochs over each union as an experience gets, so that updates grow
          with the stream (train.updates caps them); a class that came twice weighs twice.
          Without restart the weights go on and so does the optimizer's state. Environments: all
          tasks so far side by side, their steps together; their tables of steps count as stored
Parameters
    restart  start every experience from a fresh model and fresh optimizer state
"""

from __future__ import annotations

from cl.data import Table
from cl.registry import register
from cl.strategy import Strategy


@register
class Cumulative(Strategy):
    """Training on everything that has arrived."""

    needs = ("buffer",)

    def __init__(self, *, restart: bool = False):
        self.restart = restart

    def stored_bytes(self, loop) -> int:
        """All training data of the experiences so far."""
        if loop.acts:  # environments are no data
            return 0
        return sum(e.train.nbytes for e in so_far(loop))

    def data(self, loop, experience):
        """The union of the experiences up to and including this one."""
        return Table.concat([e.train for e in so_far(loop)])

    def before_training_exp(self, loop):
        """With restart: new weights, and no momentum of the old ones."""
        if self.restart:
            fresh = loop.fresh_model("cumulative.model")
            loop.optimizer.state.clear()
            loop.model = fresh


def so_far(loop):
    """The experiences that have arrived."""
    return loop.stream.experiences[: loop.experience.index + 1]
