"""cloning_replay: the policy of now says on stored observations what the policies of then said.

Source    behaviour cloning of the actor in ClonEx-SAC, Wolczyk et al., NeurIPS 2022,
          arXiv:2209.13900; before it CLEAR, Rolnick et al. 2019, arXiv:1811.11682
Claim     stored observations with the policy's own distributions keep old tasks better than pulls
          on weights or masks, and leave the most freedom to learn: best in Continual World
Loss      L + weight KL(stored policy || policy) + critic (V - stored V)^2 / 2, both means over
          `batch_size` stored observations, as many of every past experience
State     buffers "cloning_replay.<k>", size rows each: observations, likeliest actions, scores (log
          standard deviations, values) of the policy as it was at the end of experience k
Needs     experience boundaries, a buffer
Defaults  no cloning of the critic, as the paper found best; 128 rows a batch as in the authors'
          code, which stores 10,000 of each task; weight: ours (COOM: 100 with SAC)
Departs   the half of ClonEx that explores with old policies is left out. Rows are from the latest
          4,096 steps that the policy has made (cloning: the demonstrations). A task that comes
          back is one more experience: what was said at its first visit goes on being cloned.
          objective=dqn has no policy: (Q - stored Q)^2, mean over actions, instead of the KL
Parameters
    size        rows of each experience; none is all that there are [rows]
    batch_size  stored rows in each update [rows]
    weight      of the distance to the stored policies; 0 is naive [1]
    critic      of the distance to the stored critics, ppo alone; 0: none [1]
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.cloned import distance, said
from cl.config import Range
from cl.errors import BadValue
from cl.registry import register
from cl.strategy import Strategy


@register
class CloningReplay(Strategy):
    """Behaviour cloning of past policies."""

    needs = ("boundaries", "buffer")
    domains = ("rl",)
    instead = {"vision": "derpp", "llm": "replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] | None = None,
        batch_size: Annotated[int, Range(min=1)] = 128,
        weight: Annotated[float, Range(min=0)] = 1.0,
        critic: Annotated[float, Range(min=0)] = 0.0,
    ):
        self.size, self.batch_size, self.weight, self.critic = size, batch_size, weight, critic
        self.past = []  # the experiences that have a buffer
        self.drawn = None  # the running update's rows

    def check(self, loop):
        """A critic that is trained."""
        if self.critic and not (loop.acts and hasattr(loop.model, "values")):
            raise BadValue(
                f"cloning_replay.critic={self.critic:g} needs a critic, which objective=ppo trains "
                f"and {loop.objective.name} does not"
            )

    def before_training_iteration(self, loop):
        """Draw the update's stored rows."""
        if self.past:
            rng = loop.rng("cloning_replay.draw")
            buffers = [loop.buffers[name(k)] for k in self.past]
            counts = zip(buffers, shares(self.batch_size, len(buffers), rng), strict=True)
            parts = [buffer.draw(n, rng) for buffer, n in counts]
            self.drawn = {c: torch.cat([part[c] for part in parts]) for c in parts[0]}

    def before_backward(self, loop):
        """Add the distance to what was said on them."""
        rows = self.drawn
        if rows is None:
            return
        with loop.autocast():
            scores, *others = loop.model.outputs(rows["x"])
        loop.samples_seen += len(scores)
        if self.weight:
            loop.add_loss("cloning_replay", self.weight * distance(loop, scores, rows))
        if self.critic:
            off = (others[0].float() - rows["values"]).square().mean() / 2
            loop.add_loss("cloning_replay_critic", self.critic * off)

    def after_training_iteration(self, loop):
        """Let go of them."""
        self.drawn = None

    def after_training_exp(self, loop):
        """Keep observations with what the policy says to them now."""
        if loop.adapted_dataset is None or not (self.weight or self.critic):
            return
        k, rng = loop.experience.index, loop.rng("cloning_replay.store")
        rows = said(loop, self.size, rng, critic=self.critic > 0)
        loop.buffer(name(k), len(rows["y"]), "reservoir").add(rows, rng)
        self.past.append(k)


def name(k):
    """The buffer of experience k."""
    return f"cloning_replay.{k}"


def shares(n, parts, rng):
    """n in whole numbers that differ by one at most, which are larger drawn at random: [parts]."""
    least, rest = divmod(n, parts)
    larger = set(torch.randperm(parts, generator=rng)[:rest].tolist())
    return [least + (k in larger) for k in range(parts)]
