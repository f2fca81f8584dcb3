"""Scores: every eval in one pass over concatenated rows, test and validation together.

Class-incremental prediction is the argmax over all classes seen so far; `within` masks the same
scores to the eval's own classes, which takes head bias out of the number. What a right answer is
the stream says (`Stream.is_right`), here as to those who learn from rewards.

While the backbone is frozen, test rows pass it once: their features are kept for as long as a
hash over the backbone's weights and statistics stays the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl.data import Table
from cl.errors import NonFinite, ShapeMismatch
from cl.models import Classifier
from cl.seeding import frozen
from cl.stream import Eval, Stream

if TYPE_CHECKING:
    from cl.loop import Loop

PER_BATCH = (
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
)
CACHE_BYTES = 2**30  # of features, at most


@dataclass
class InferenceBatch:
    """What inference may see: inputs [B, ...], and task labels [B] if the scenario gives them."""

    x: Tensor
    task_label: Tensor | None = None


@dataclass
class Scores:
    """One evaluation; None where undefined, the reason under the eval's position.

    test, val, within: [J] shares of right answers; counts: {what: [J] answers} besides.
    """

    test: list[float | None]
    val: list[float | None]
    within: list[float | None]
    undefined: dict[int, str]
    no_within: dict[int, str] = field(default_factory=dict)
    counts: dict[str, list[int | None]] = field(default_factory=dict)

    @property
    def within_undefined(self) -> dict[int, str]:
        """Reasons for `within`."""
        return self.no_within | self.undefined


class Evaluator:
    """Scores the evals of a loop's stream without changing model or random state."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.one_by_one = bool(loop.hooks["before_eval_exp"] or loop.hooks["after_eval_exp"])
        self._joined: dict[tuple[int, ...], list[_Pass]] = {}
        self._cache: dict[int, Tensor] = {}
        self._cache_key: bytes | None = None

    def score(self, kind: str) -> Scores:
        """Score all evals that have a meaning now; `kind` is untrained, periodic, experience."""
        loop = self.loop
        undefined = self._undefined(kind)
        chosen = [j for j in range(len(loop.stream.evals)) if j not in undefined]
        blank: list[float | None] = [None] * len(loop.stream.evals)
        scores = Scores(list(blank), list(blank), list(blank), undefined)
        if not chosen:
            return scores
        with frozen(loop.model):
            loop.fire("before_eval")
            for group in [[j] for j in chosen] if self.one_by_one else [chosen]:
                loop.fire("before_eval_exp")
                self._score_group(tuple(group), scores)
                loop.fire("after_eval_exp")
            loop.fire("after_eval")
        return scores

    def _undefined(self, kind: str) -> dict[int, str]:
        loop, undefined = self.loop, {}
        seen = loop.seen_classes
        index = loop.experience.index if loop.experience is not None else -1
        for j, e in enumerate(loop.stream.evals):
            if max(e.classes, default=-1) >= seen:
                undefined[j] = "its classes have not been seen: the head has no column for them"
            elif kind == "untrained" and loop.claimed("predict"):
                undefined[j] = "nothing has been learned: prediction does not use the model"
            elif loop.no_score:
                undefined[j] = loop.no_score
        others = [
            j
            for j, e in enumerate(loop.stream.evals)
            if j not in undefined and index not in e.learned_at and index >= 0
        ]
        for j in set(others) - set(self._past(others, index)):
            undefined[j] = f"not scored: eval.past={loop.eval.past}"
        return undefined

    def _past(self, others: list[int], index: int) -> list[int]:
        """Those of the evals `others`, which experience `index` does not teach, to be scored."""
        mode, _, k = self.loop.eval.past.partition(":")
        if mode == "all":
            return others
        if mode == "own":
            return []
        evals = self.loop.stream.evals  # evals still to come are no past ones
        past = [j for j in others if not evals[j].learned_at or evals[j].learned_at[0] < index]
        order = torch.randperm(len(past), generator=self.loop.rng("eval.past"))
        return [past[p] for p in order[: int(k)].tolist()]

    def _score_group(self, group: tuple[int, ...], scores: Scores) -> None:
        if group not in self._joined:
            self._joined = {} if len(self._joined) > 8 else self._joined
            self._joined[group] = self._passes(group)
        loop = self.loop
        seen = loop.seen_classes
        own = self._own_classes(seen)
        right: list[Tensor] = []
        tags: list[Tensor] = []
        cached = self._frozen_backbone()
        for part in self._joined[group]:
            features = self._features(part) if cached else None
            order = torch.arange(len(part.table), device=part.table.device)
            for index in order.split(loop.eval_mb_size):
                right.append(self._batch(part, index, own, seen, features))
                tags.append(part.tags[index])
        answers = torch.cat(right).cpu()  # [n, 3]: right, right within own classes, nan
        if answers[:, 2].any():
            raise NonFinite(
                f"predictions became nan: {int(answers[:, 2].sum())} of {len(answers)} rows, after "
                f"update {loop.clock.train_iterations}"
            )
        self._count(answers, torch.cat(tags).cpu(), scores)

    def _frozen_backbone(self) -> bool:
        """Whether features may be kept, and drop those of another state of the backbone."""
        loop, model = self.loop, self.loop.model
        plain = type(model) is Classifier and not loop.claimed("predict", "objective")
        plain = plain and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        plain = plain and "forward" not in vars(model)
        if (
            not plain
            or any(loop.hooks[name] for name in PER_BATCH)
            or any(p.requires_grad for p in model.backbone.parameters())
        ):
            return False
        digest = hashlib.blake2b(str(id(model.backbone)).encode())
        for module in model.backbone.modules():
            plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float)}
            digest.update(repr(sorted(plain.items())).encode())
            for tensor in (*module.parameters(False), *module.buffers(False)):
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        if digest.digest() != self._cache_key:
            self._cache, self._cache_key = {}, digest.digest()
        return True

    def _features(self, part: _Pass) -> Tensor:
        """Features [n, D] of a pass, segment by segment, so that they depend on nothing else."""
        found = []
        for tag, table in part.segments:
            features = self._cache.get(tag)
            if features is None:
                order = torch.arange(len(table), device=table.device)
                features = torch.cat(
                    [
                        self.loop.model.features(self.loop.prepared(table.rows(index)["x"]))
                        for index in order.split(self.loop.eval_mb_size)
                    ]
                )
                if sum(f.nbytes for f in self._cache.values()) + features.nbytes <= CACHE_BYTES:
                    self._cache[tag] = features
            found.append(features)
        return torch.cat(found)

    def _batch(
        self, part: _Pass, index: Tensor, own: Tensor, seen: int, features: Tensor | None
    ) -> Tensor:
        loop = self.loop
        if features is not None:
            loop.mb_y = part.y[index]
            output = loop.model.classify(features[index])
        else:
            output = self._predict(part, index)
        if output.dim() != 2 or len(output) != len(index) or output.shape[1] < seen:
            raise ShapeMismatch(
                f"predictions must be [B={len(index)}, C>={seen}], got {tuple(output.shape)}"
            )
        output = output[:, :seen]  # only classes seen so far can be answered
        if part.task_labels is not None:  # and of those only the task's, where it is told
            output = loop.restricted(output, part.task_labels[index])
        within = output.masked_fill(~own[part.tags[index] // 2], float("-inf"))
        broken = output.isnan().any(1)  # looked at when all rows are in: no device is kept waiting
        answers = torch.stack([output.argmax(1), within.argmax(1)], 1)  # [B, 2]
        truth = {"y": loop.mb_y}
        if part.answer is not None:
            truth["answer"] = part.answer[index]
        right = torch.cat([loop.stream.is_right(truth, answers), broken[:, None]], 1)
        if features is None:
            loop.fire("after_eval_iteration")
        return right

    def _predict(self, part: _Pass, index: Tensor) -> Tensor:
        loop = self.loop
        rows = part.table.rows(index)
        loop.mb_x, loop.mb_y = loop.prepared(rows["x"]), rows["y"]
        loop.mb_task_id = part.task_labels[index] if part.task_labels is not None else None
        loop.fire("before_eval_iteration")
        loop.fire("before_eval_forward")
        loop.mb_output = loop.predict(InferenceBatch(loop.mb_x, loop.mb_task_id))
        loop.fire("after_eval_forward")
        return loop.mb_output

    def _own_classes(self, seen: int) -> Tensor:
        own = torch.zeros(len(self.loop.stream.evals), seen, dtype=torch.bool)
        for j, e in enumerate(self.loop.stream.evals):
            own[j, [c for c in e.classes if c < seen]] = True
        return own.to(self.loop.device)

    def _passes(self, group: tuple[int, ...]) -> list[_Pass]:
        """Test and validation rows of the evals, joined; one pass per pool they lie in."""
        evals = self.loop.stream.evals
        pieces = [(2 * j, evals[j], evals[j].test) for j in group]
        pieces += [(2 * j + 1, evals[j], evals[j].val) for j in group if evals[j].val is not None]
        pools: dict[tuple[int, bool], list] = {}
        for piece in pieces:
            key = id(piece[2].columns["x"]), piece[1].task_label is None
            pools.setdefault(key, []).append(piece)
        return [_Pass.join(pool) for pool in pools.values()]

    def _count(self, answers: Tensor, tags: Tensor, scores: Scores) -> None:
        for tag in tags.unique().tolist():
            share = answers[tags == tag].double().mean(0).tolist()
            j, is_val = divmod(tag, 2)
            if is_val:
                scores.val[j] = share[0]
            else:
                scores.test[j] = share[0]
                if len(self.loop.stream.evals[j].classes) > 1:
                    scores.within[j] = share[1]
                else:
                    scores.no_within[j] = "one class: there is nothing to choose within it"


@dataclass
class _Pass:
    """Rows scored together; tags [n] = 2 * eval + (1 if validation), y [n] labels.

    answer [n]: kinds of truth, None where there is one right answer.
    """

    table: Table
    segments: list[tuple[int, Table]]
    y: Tensor
    tags: Tensor
    task_labels: Tensor | None
    answer: Tensor | None = None

    @staticmethod
    def join(pieces: list[tuple[int, Eval, Table]]) -> _Pass:
        table = Table.concat([piece[2] for piece in pieces])
        tags = torch.cat([torch.full((len(t),), tag) for tag, _, t in pieces])
        labels = None
        if all(e.task_label is not None for _, e, _ in pieces):
            labels = torch.cat([torch.full((len(t),), e.task_label) for _, e, t in pieces])
            labels = labels.to(table.device)
        segments = [(tag, t) for tag, _, t in pieces]
        answer = table.column("answer") if "answer" in table.columns else None
        return _Pass(table, segments, table.column("y"), tags.to(table.device), labels, answer)


def reward_of_classes(stream: Stream, rows: Mapping[str, Tensor], actions: Tensor) -> Tensor:
    """What answering rows [B] with the classes `actions` [B, n] earns: 1 if right, 0 if not.

    rows: as a table or a buffer gives them. Returns float32 [B, n].
    """
    return stream.is_right(rows, actions).float()
