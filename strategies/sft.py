"""sft: supervised fine-tuning, learning from gold answers: labels, responses or demonstrations.

Claim     the baseline of every comparison of paradigms: what is shown is imitated
Loss      by domain: token_cross_entropy (text), cross_entropy (images), cloning (environments)
State     nothing
Needs     nothing
Defaults  text: the response's tokens alone, every token of an update counting the same
Departs   nothing to depart from; on images it is naive
Parameters
    learn  text: the response's tokens, or all, the prompt's too
"""

from __future__ import annotations

from typing import Literal

from cl.errors import BadValue
from cl.objectives import imitation
from cl.registry import register
from cl.strategy import Strategy


@register
class SFT(Strategy):
    """Imitation of what the stream shows."""

    learns = "cloning"

    def __init__(self, *, learn: Literal["response", "all"] = "response"):
        self.learn = learn

    def check(self, loop):
        """Options must have a meaning."""
        if self.learn == "all" and loop.stream.domain != "llm":
            raise BadValue(f"strategy.learn=all needs a text stream, {loop.stream.name} is not one")

    def objective(self, loop):
        """The domain's own, with this strategy's options."""
        if loop.stream.domain == "rl":
            return loop.objective  # cloning, with the settings objective.*
        options = {"learn": self.learn} if loop.stream.domain == "llm" else {}
        return imitation(loop.stream.domain, **options)
