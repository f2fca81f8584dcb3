"""Scores of text streams: greedy answers, the same token limits for every arm, the verifier's word.

An answer is right where its reward is 1. An answer that the verifier can't score (None) or fails on
(an exception) counts as wrong and is counted apart, as is one that did not end in time. Where other
answers than the stream's were shown (`own`, `oracle`, rewritten), the experience's eval also has
how many targets were the model's own, rewritten and gold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cl.evaluation import Evaluator, Scores
from cl.sampling import sample

if TYPE_CHECKING:
    from cl.loop import Loop

COUNTS = ("unscorable", "unfinished", "malformed")


class TextEvaluator(Evaluator):
    """Scores the evals of a loop's text stream."""

    def __init__(self, loop: Loop):
        super().__init__(loop)
        self._prompts: dict[int, list[int]] = {}

    def _score_group(self, group: tuple[int, ...], scores: Scores) -> None:
        loop = self.loop
        evals = loop.stream.evals
        for j in group:
            right, counts = self._answers(evals[j].test)
            scores.test[j] = right
            for name in COUNTS:
                row = scores.counts.setdefault(name, [None] * len(evals))
                row[j] = counts[name]
            if evals[j].val is not None:
                scores.val[j] = self._answers(evals[j].val)[0]
            scores.no_within[j] = "answers are text, not classes"
        self._targets(group, scores)

    def _targets(self, group: tuple[int, ...], scores: Scores) -> None:
        """Count what was shown in the experience just learned, where it was not the stream's."""
        loop, origins = self.loop, getattr(self.loop.objective, "origins", None)
        found = origins(loop.experience.train) if origins and loop.experience else None
        for name, count in (found or {}).items():
            row = scores.counts.setdefault(f"targets_{name}", [None] * len(loop.stream.evals))
            for j in group:
                if loop.experience.index in loop.stream.evals[j].learned_at:
                    row[j] = count

    def _answers(self, table) -> tuple[float, dict[str, int]]:
        """Share of right answers to a table's items, and what else there was."""
        stream, items = self.loop.stream, table.column("x").tolist()
        order = sorted(items, key=lambda k: len(self._ids(k)))
        size, rewards = self.loop.eval_mb_size, []
        counts = dict.fromkeys(COUNTS, 0)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            texts, finished = self._generate(part)
            found = stream.rewards(part, texts)
            # an answer that was cut off is none, as where rewards are learned from
            rewards += [r == 1 and ended for r, ended in zip(found, finished, strict=True)]
            counts["unscorable"] += sum(r is None for r in found)
            counts["unfinished"] += len(part) - sum(finished)
            pairs = zip(part, texts, strict=True)
            counts["malformed"] += sum(not stream.is_well_formed(k, t) for k, t in pairs)
        return sum(rewards) / len(rewards), counts

    def _generate(self, items: list[int]) -> tuple[list[str], list[bool]]:
        """Greedy completions, and whether they ended by themselves."""
        loop = self.loop
        tokenizer = loop.model.tokenizer
        limits = [loop.stream.max_new_tokens[loop.stream.items[k].task] for k in items]
        loop.fire("before_eval_iteration")
        loop.fire("before_eval_forward")
        prompts, rng = [self._ids(k) for k in items], torch.Generator()
        rollout = sample(loop.model, prompts, max_new_tokens=limits, greedy=True, rng=rng)
        loop.fire("after_eval_forward")
        loop.fire("after_eval_iteration")
        rows = zip(rollout.completion_ids.tolist(), rollout.completion_mask.tolist(), strict=True)
        texts = [tokenizer.decode([t for t, m in zip(ids, mask) if m]) for ids, mask in rows]
        return texts, (~rollout.truncated).tolist()

    def _ids(self, item: int) -> list[int]:
        if item not in self._prompts:
            text = self.loop.stream.items[item].prompt
            self._prompts[item] = self.loop.model.tokenizer.prompt_ids(text)
        return self._prompts[item]
