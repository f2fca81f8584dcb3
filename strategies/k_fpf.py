"""k_fpf: plain training, and now and then a burst that tunes few modules on stored rows.

Source    Zhao et al., ICML 2023, arXiv:2304.04158 (no official code)
Claim     k short bursts over the stream reach the accuracy of replay in every step, at a much
          lower cost
Loss      updates: the objective on the batch alone. Bursts, every floor(U/k) of the stream's U
          updates whatever the boundaries, the last one at its end: `steps` minibatches of stored
          rows, for the parameters of the chosen modules alone:
          the objective + lam * mean (h(x') - z)^2,  z the stored logits
          by SGD without momentum, its rate a cosine from lr to 0
State     the modules chosen at random or by sensitivity, counts; a buffer "k_fpf" (rows, with lam
          their logits) if no other strategy keeps one
Needs     a buffer, as fpf; stream_length for U, unless `every` is given
Defaults  the paper's modules; k=9, 100 steps, 32 rows, lr 0.05 as recalled from it, unverified
Departs   U counts train.epochs over each experience's own rows: a strategy that claims the data
          needs `every`. Otherwise as fpf (`cl describe fpf`); with a base strategy it adds bursts
          to that
Parameters
    modules     head, norm, conv and other categories, first (convolution or embedding), all, none
                (batch-norm statistics alone), or the beginning of a module's path
    choose      named; sensitive: by falling sensitivity, or random: among the rest, both up to
                budget
    budget      share of all parameters to choose; none: as many as `modules` names [1]
    k           bursts over the stream; 0: none [bursts]
    every       updates from one burst to the next, instead of k [updates]
    steps       updates of a burst; 0: none [updates]
    batch_size  stored rows per update of a burst [rows]
    lr          learning rate at the start of a burst [1]
    lam         weight of matching stored logits; 0: labels alone [1]
    statistics  batch-norm statistics follow during a burst; if not, it normalises by them
    size        rows of its own reservoir [rows]
"""

from __future__ import annotations

from typing import Annotated, Literal

from cl.bursts import Bursts
from cl.config import Range
from cl.errors import BadValue
from cl.registry import register


@register
class KFPF(Bursts):
    """Bursts at equal distances."""

    needs = ("buffer", "stream_length")

    def __init__(
        self,
        *,
        modules: list[str] = ("head", "norm", "first"),
        choose: Literal["named", "sensitive", "random"] = "named",
        budget: Annotated[float, Range(above=0, max=1)] | None = None,
        k: Annotated[int, Range(min=0)] = 9,
        every: Annotated[int, Range(min=1)] | None = None,
        steps: Annotated[int, Range(min=0)] = 100,
        batch_size: Annotated[int, Range(min=1)] = 32,
        lr: Annotated[float, Range(above=0)] = 0.05,
        lam: Annotated[float, Range(min=0)] = 0.0,
        statistics: bool = True,
        size: Annotated[int, Range(min=1)] = 200,
    ):
        super().__init__(modules, choose, budget, steps, batch_size, lr, lam, statistics, size)
        self.needs = ("buffer",) if every else ("buffer", "stream_length")
        self.k, self.every = k, every
        self.distance = every  # updates from one burst to the next
        self.since = 0  # updates since the last burst
        self.done = 0  # bursts so far

    @property
    def active(self):
        """Whether there will be a burst at all."""
        return self.steps > 0 and (self.k > 0 or self.every is not None)

    def check(self, loop):
        """What `cl/bursts.py` refuses, and a stream whose length in updates is not known."""
        super().check(loop)
        if self.active and self.every is None and loop.claimed("data"):
            raise BadValue(
                "k_fpf can't tell how many updates there will be where a strategy claims the "
                "data; give k_fpf.every=..."
            )

    def before_training_exp(self, loop):
        """At the start: the distance between bursts."""
        if self.active and self.distance is None:
            self.distance = max(1, planned(loop) // self.k)

    def after_training_iteration(self, loop):
        """Store the rows; a burst when it is due, the last one being that of the stream's end."""
        super().after_training_iteration(loop)
        self.since += 1
        more = self.every is not None or self.done < self.k - 1
        if self.active and more and self.since == self.distance:
            self._burst(loop)

    def after_training(self, loop):
        """The last burst."""
        if self.active and self.since:
            self._burst(loop)

    def _burst(self, loop):
        self.burst(loop)
        self.since, self.done = 0, self.done + 1


def planned(loop) -> int:
    """The stream's updates: epochs over each experience's rows, or train.updates if fewer."""
    rows = [e.train for e in loop.stream.experiences]
    updates = [loop.train_epochs * len(loop.objective.batches(loop, table)) for table in rows]
    return sum(min(n, loop.train.updates or n) for n in updates)
