"""Copies of a run's model that a probe may train or put into environments; the run sees nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from cl import objectives
from cl.data import Table
from cl.stream import Eval

if TYPE_CHECKING:
    from cl.loop import Loop


def copied(model: nn.Module) -> nn.Module:
    """A copy without the hooks that strategies have hung on its modules."""
    made = copy.deepcopy(model)
    for module in made.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    if not any(p.requires_grad for p in made.parameters()):
        made.requires_grad_(True)
    return made


def bare(loop: Loop, model: nn.Module) -> Loop:
    """The same stream and settings with another model, without strategies and shared generators."""
    alone = copy.copy(loop)
    alone.generators, alone.hooks = {}, dict.fromkeys(loop.hooks, ())
    alone._claims, alone._model = {}, model
    return alone


def demonstrated(loop: Loop, e: Eval, n: int) -> Table | None:
    """Up to n demonstrations of an eval's task, of environments; None if nothing teaches it.

    Raises BadValue for a task without an expert.
    """
    if not e.learned_at:
        return None
    i = loop.experience.index if loop.experience is not None else 0
    at = max((k for k in e.learned_at if k <= i), default=e.learned_at[0])
    own = loop.stream.experiences[at].train
    imitating = objectives.imitation("rl", demonstrations=n)
    if type(loop.objective) is type(imitating):
        return own  # they are what is learned from
    stream = replace(loop.stream, experiences=[loop.stream.experiences[at]])
    return imitating.adapted(stream, loop.seed, loop.device).experiences[0].train


def played(loop: Loop, model: nn.Module, e: Eval) -> float:
    """Score of a policy's likeliest actions in an eval's validation episodes."""
    from cl.episodes import EpisodeEvaluator

    j = next(k for k, other in enumerate(loop.stream.evals) if other is e)
    task = loop.stream.tasks[int(e.val.column("x")[0])]
    raw = EpisodeEvaluator(bare(loop, model)).returns([(j, "val")], sampled=False)
    return task.score(raw[j, "val"])
