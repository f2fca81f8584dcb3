"""Scores of policies: whole episodes in environments of their own, all evals side by side.

Every evaluation plays the same episodes: the k-th one of an eval begins with the same random
numbers each time, so that scores differ because policies do. Actions are the likeliest ones; at the
end of an experience the episodes are played again with drawn actions, and both raw returns are kept
(`raw` in results.json: return, sampled_return).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cl.environments import Environment
from cl.errors import NonFinite
from cl.evaluation import Evaluator, InferenceBatch, Scores
from cl.objectives._actions import draw, noise
from cl.seeding import generator

if TYPE_CHECKING:
    from cl.loop import Loop

RAW, SAMPLED = "return", "sampled_return"


@dataclass
class _Play:
    """The episodes of one table, one per environment. tag: (eval, split)."""

    tag: tuple[int, str]
    env: Environment
    seen: np.ndarray
    sums: np.ndarray
    running: np.ndarray
    label: int | None


class EpisodeEvaluator(Evaluator):
    """Plays episodes without changing model, random state or the environments in training."""

    def __init__(self, loop: Loop):
        super().__init__(loop)
        self._envs: dict[tuple[int, str], Environment] = {}

    def score(self, kind: str) -> Scores:
        """As of any evaluator."""
        self._kind = kind
        return super().score(kind)

    def _score_group(self, group: tuple[int, ...], scores: Scores) -> None:
        loop, evals = self.loop, self.loop.stream.evals
        for name in (RAW, SAMPLED):
            scores.counts.setdefault(name, [None] * len(evals))
        tags = [(j, "test") for j in group]
        if self._kind == "experience" or loop.train.until is not None:  # when it may decide
            tags += [(j, "val") for j in group if evals[j].val is not None]
        for (j, split), raw in self.returns(tags, sampled=False).items():
            score = loop.stream.tasks[self._task(j)].score(raw)
            getattr(scores, split)[j] = score
            if split == "test":
                scores.counts[RAW][j] = raw
                scores.no_within[j] = "a policy chooses among the same actions in every task"
        if self._kind == "experience":
            for (j, _), raw in self.returns(tags[: len(group)], sampled=True).items():
                scores.counts[SAMPLED][j] = raw

    def _task(self, j: int) -> int:
        return int(self.loop.stream.evals[j].test.column("x")[0])

    def returns(self, tags: list[tuple[int, str]], sampled: bool) -> dict:
        """{(eval, split): mean undiscounted return of its episodes}."""
        loop = self.loop
        plays = [self._begin(tag) for tag in tags]
        rng = generator(loop.stream.seed, "evaluation") if sampled else None
        loop.fire("before_eval_iteration")
        active = plays
        while active:
            self._step(active, rng)
            active = [play for play in active if play.running.any()]
        loop.fire("after_eval_iteration")
        return {play.tag: float(play.sums.mean()) for play in plays}

    def _begin(self, tag: tuple[int, str]) -> _Play:
        (j, split), stream = tag, self.loop.stream
        table, task = getattr(stream.evals[j], split), self._task(j)
        n = len(table)
        if tag not in self._envs:
            self._envs[tag] = stream.tasks[task].build(n)
        env = self._envs[tag]
        seen = env.reset(stream.episodes(table, task))
        label = stream.evals[j].task_label
        return _Play(tag, env, seen, np.zeros(n), np.ones(n, bool), label)

    def _step(self, plays: list[_Play], rng: torch.Generator | None) -> None:
        loop = self.loop
        model, actions = loop.model, loop.stream.actions
        x = torch.from_numpy(np.concatenate([play.seen for play in plays])).to(loop.device)
        labels = None
        if all(play.label is not None for play in plays):
            each = [torch.full((play.env.n,), play.label) for play in plays]
            labels = torch.cat(each).to(loop.device)
        loop.mb_x, loop.mb_task_id = x, labels
        loop.fire("before_eval_forward")
        loop.mb_output = scores = loop.predict(InferenceBatch(x, labels))
        loop.fire("after_eval_forward")
        if scores.isnan().any():
            raise NonFinite(f"scores became nan, after update {loop.clock.train_iterations}")
        if rng is not None:
            drawn = noise(actions, (len(x),), rng, loop.device)
            chosen = draw(scores, drawn, model.log_std)
        else:
            chosen = scores if actions.continuous else scores.argmax(1)
        parts = np.split(chosen.cpu().numpy(), np.cumsum([p.env.n for p in plays])[:-1])
        for play, part in zip(plays, parts, strict=True):
            low, high = play.env.action_low, play.env.action_high
            step = play.env.step(part if low is None else part.clip(low, high))
            play.sums += step.rewards * play.running
            play.running &= ~(step.terminated | step.truncated)
            play.seen = step.observations
