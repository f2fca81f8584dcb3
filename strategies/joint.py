"""joint: wait for the last experience, then train once on everything.

Claim     the upper bound of training: what one model learns from all data at once
Loss      the objective's, over the union of all training data
State     none; every training item counts as stored
Needs     stream length (to know the last experience); a buffer of everything
Departs   scores before the last experience are undefined, not those of earlier joint models
          (that is `cumulative`); as many epochs over the union as any experience gets.
          Environments: all tasks side by side, the steps of all; their tables of steps count as
          stored
"""

from cl.data import Table
from cl.registry import register
from cl.strategy import Strategy


@register
class Joint(Strategy):
    """One training on the union of all experiences."""

    needs = ("stream_length", "buffer")

    def data(self, loop, experience):
        """Everything at the last experience, nothing before."""
        if experience.index < len(loop.stream) - 1:
            loop.skip_score("joint trains once, on everything, at the last experience")
            return None
        return Table.concat([e.train for e in loop.stream.experiences])

    def stored_bytes(self, loop) -> int:
        """All training data of the experiences so far; environments are no data."""
        if loop.acts:
            return 0
        return sum(e.train.nbytes for e in loop.stream.experiences[: loop.experience.index + 1])
