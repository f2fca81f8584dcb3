"""lora: low-rank adaptation, adapters per experience that are merged into the weights (Hu et al.
2021, arXiv:2106.09685).

Claim     fine-tuning needs a change of low rank only, at no cost in inference; as a baseline of
          forgetting: it learns less and forgets less than full fine-tuning (arXiv:2405.09673)
Maths     W + alpha / rank * B A (section 4.1); A [rank, in] and B [out, rank] are trained, all else
          is frozen; A is drawn, B = 0, so that an experience starts from the weights before it
State     nothing: adapters are the model's, and after a merge there are none
Needs     nothing with merge=false, else boundaries; a language model. Not with a method that keeps
          weights by name (ewc, l2sp, hft...): these go with model.lora.rank
Defaults  rank=8, alpha=16, all matrices of attention; the optimizer's settings are the stream's
          (adapters want rates about ten times as high as full fine-tuning)
Departs   A is uniform in +-1/sqrt(in), as in the authors' code, not Gaussian; no dropout; the
          stream (train, merge, new adapters) is ours, the paper has single tasks. A reference
          model is a snapshot, not the model with its adapters switched off: after a merge those
          two differ. Without a stream's strategy, `model.lora.rank` does the same as merge=false
Parameters
    rank     rows of A; 0 trains everything, as if lora were not there [1]
    alpha    scale: B A counts alpha / rank times [1]
    targets  matrices that get adapters: categories or roles of the anatomy (attention,
             feed_forward, head; q, k, v, qkv, o, gate, up, down), modules' names or paths
    merge    at every experience's end adapters are merged and new ones begin; false: one set of
             adapters goes on through the stream
"""

from __future__ import annotations

from typing import Annotated

from cl.adapters import Adapters
from cl.config import Range
from cl.errors import BadValue
from cl.models.lora import adapters_of, merge, put, targets_of
from cl.registry import name_of, register
from cl.strategy import Strategy

KEY = "lora's targets"


@register
class LoRA(Strategy):
    """Adapters while an experience is learned."""

    needs = ("boundaries",)
    domains = ("llm",)

    def __init__(
        self,
        *,
        rank: Annotated[int, Range(min=0, max=65536)] = 8,
        alpha: Annotated[float, Range(above=0)] = 16.0,
        targets: list[str] = ("attention",),
        merge: bool = True,
    ):
        self.rank, self.alpha, self.targets, self.merge = rank, alpha, list(targets), merge
        if not merge:
            self.needs = ()

    def check(self, loop):
        """A model without adapters, targets that it has, nobody who holds weights by name."""
        if adapters_of(loop.model):
            raise BadValue(
                "the strategy lora and model.lora.rank both put adapters in; leave one of them out"
            )
        targets_of(loop.model, self.targets, KEY)
        for other in loop.plugins if self.rank else ():
            if type(other).by_name:
                name = name_of(type(other))
                raise BadValue(
                    f"{name} keeps weights by name, and lora's adapters rename them: give "
                    f"model.lora.rank={self.rank} with {name} in place of lora"
                )

    def before_training_exp(self, loop):
        """New adapters, unless those of the last experience go on."""
        if self.rank and not adapters_of(loop.model):
            made = Adapters(self.rank, self.alpha, self.targets)
            put(loop.model, made, loop.rng("lora.adapters"), KEY)

    def after_training_exp(self, loop):
        """What was learned becomes part of the weights."""
        if self.rank and self.merge:
            merge(loop.model)
            loop.model = loop.model  # the optimizer lets the adapters go
