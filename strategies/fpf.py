"""fpf: forgetting-prioritised fine-tuning, a burst that tunes few modules on stored rows.

Source    Zhao et al., ICML 2023, arXiv:2304.04158 (no official code)
Claim     forgetting sits in few modules (the head, norms, the first convolution); tuning only
          them, once, on a small buffer at the end improves any continual-learning method
Loss      on `steps` minibatches of stored rows, for the parameters of the chosen modules alone:
          the run's objective + lam * mean (h(x') - z)^2,  z the stored logits
          by SGD without momentum, its rate a cosine from lr to 0
State     the modules chosen at random or by sensitivity; a buffer "fpf" (rows, with lam their
          logits) if no other strategy keeps one
Needs     a buffer: those of the other strategies together (`replay+fpf`), else its own reservoir,
          filled in each experience's first epoch. Name fpf last
Defaults  the paper's modules; 300 steps, 32 rows, lr 0.05 as recalled from it, unverified
Departs   when=once shows the tuned model at the end of every experience and goes on from the
          untuned one, as if the stream had ended there: the last burst is the paper's, all are
          counted as cost; when=end costs what the paper's does. With a base that claims the
          objective (er_ace, icarl), that is the loss
          Rows without stored logits get those of the model just before the burst. Own reservoir
          and lam: z as in DER, at insertion. Exemplars that a strategy keeps to itself (icarl,
          bic, wa, gdumb) are not seen. Modules are tuned even if the base has frozen them
          Sensitivity: see `cl describe module_sensitivity`, measured over the first two
          experiences; before that, what `modules` names. The weights that it is measured on
          (up to ten copies of the model on the CPU) are not part of stored_bytes
          Policies with ppo: rows are what the policy of each experience's end says on its latest
          observations, the loss KL(stored policy || policy), as `cl describe cloning_replay` has it
Parameters
    modules     head, norm, conv and other categories, first (convolution or embedding), all, none
                (batch-norm statistics alone), or the beginning of a module's path
    choose      named; sensitive: by falling sensitivity, or random: among the rest, both up to
                budget
    budget      share of all parameters to choose; none: as many as `modules` names [1]
    steps       updates of a burst; 0: none [updates]
    batch_size  stored rows per update [rows]
    lr          learning rate at the start of a burst [1]
    lam         weight of matching stored logits; 0: labels alone [1]
    statistics  batch-norm statistics follow during a burst; if not, it normalises by them
    size        rows of its own reservoir [rows]
    when        once: only scores are those of the tuned model; end: one burst, at the stream's end;
                stay: a burst after every experience whose weights are kept
"""

from __future__ import annotations

from typing import Annotated, Literal

from cl.bursts import Bursts
from cl.config import Range
from cl.errors import BadValue
from cl.registry import name_of, register


@register
class FPF(Bursts):
    """A burst at the end of the stream, or of every experience."""

    needs = ("buffer",)

    def __init__(
        self,
        *,
        modules: list[str] = ("head", "norm", "first"),
        choose: Literal["named", "sensitive", "random"] = "named",
        budget: Annotated[float, Range(above=0, max=1)] | None = None,
        steps: Annotated[int, Range(min=0)] = 300,
        batch_size: Annotated[int, Range(min=1)] = 32,
        lr: Annotated[float, Range(above=0)] = 0.05,
        lam: Annotated[float, Range(min=0)] = 0.0,
        statistics: bool = True,
        size: Annotated[int, Range(min=1)] = 200,
        when: Literal["once", "end", "stay"] = "once",
    ):
        super().__init__(modules, choose, budget, steps, batch_size, lr, lam, statistics, size)
        self.when = when

    def check(self, loop):
        """What `cl/bursts.py` refuses, and a strategy that would act on the tuned model."""
        super().check(loop)
        if loop.plugins[-1] is not self:
            names = "+".join(name_of(type(s)) for s in loop.plugins if s is not self)
            raise BadValue(f"name fpf last: {names}+fpf")

    def after_training_exp(self, loop):
        """Tune; with when=once the loop goes on from what was there before."""
        super().after_training_exp(loop)
        if self.when == "end":
            return
        if self.active and self.when == "once":
            if loop.no_score:
                return  # nobody would see it
            state = loop.model.state_dict()
            loop.put_back = {name: value.detach().clone() for name, value in state.items()}
        self.burst(loop)

    def after_training(self, loop):
        """The paper's single burst."""
        if self.when == "end":
            self.burst(loop)
