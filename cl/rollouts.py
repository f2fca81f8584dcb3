"""Rollouts: a policy's own answers to prompts, with what they earned.

One batch of them is made before the updates that learn from it; `loop.rollouts` is the running
one. The hooks `before_rollout after_rollout after_reward after_advantage` fire in this order while
it is being filled, and what is filled by then may be changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cl.objectives._tokens import IGNORE

NO_TOKEN = -1


@dataclass
class Rollouts:
    """P prompts and N answers, those of a prompt next to each other; all on the loop's device.

    rows     {column: [P, ...]} raw rows of the prompts, as the training data holds them
    group    int64 [N]: the prompt of every answer, by position in `rows`
    x, y     text: tokens [N, L], -1 where none, and labels, the answer's tokens from column `left`
             on, -100 elsewhere. classes: the drawn class [N] as y; inputs stay in `rows`
    mask     bool [N, T]: the tokens of every answer; T = 1 for classes
    logp     float32 [N, T]: under the policy that drew them
    texts    the answers of a text stream
    unfinished  bool [N]: cut off by the token limit
    explored bool [N]: classes that were not drawn from the policy, None where all were
    rewards  float32 [N], nan where an answer can't be scored; right bool [N]: fully right
    baseline float32 [P]: reward of the greedy answer, for advantage=remax
    advantages float32 [N]; counted bool [N]: what the loss is made of
    further  drawn besides the epoch's prompts, in place of some that say nothing
    """

    rows: dict[str, Tensor]
    group: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    left: int = 0
    mask: Tensor | None = None
    logp: Tensor | None = None
    texts: list[str] = field(default_factory=list)
    unfinished: Tensor | None = None
    explored: Tensor | None = None
    rewards: Tensor | None = None
    right: Tensor | None = None
    baseline: Tensor | None = None
    advantages: Tensor | None = None
    counted: Tensor | None = None
    further: bool = False

    def __len__(self) -> int:
        return 0 if self.group is None else len(self.group)

    @property
    def n_prompts(self) -> int:
        """P."""
        return len(next(iter(self.rows.values())))

    def add_prompts(self, rows: dict[str, Tensor]) -> None:
        """Append prompts, in `before_rollout`; columns that the batch lacks are left out."""
        own = self.rows
        self.rows = {k: torch.cat([v, rows[k].to(v.device, v.dtype)]) for k, v in own.items()}

    def speaking(self) -> Tensor:
        """Prompts whose answers say something, bool [P]: an advantage that counts is not 0."""
        told = (self.advantages != 0) & self.counted
        found = torch.zeros(self.n_prompts, dtype=torch.bool, device=told.device)
        return found.index_fill(0, self.group[told], True)

    def of_prompts(self, keep: Tensor) -> Rollouts:
        """The part that belongs to the prompts at positions `keep` int64 [p], in that order."""
        place = torch.full((self.n_prompts,), -1, device=self.group.device)
        place[keep] = torch.arange(len(keep), device=place.device)
        order = [(self.group == k).nonzero()[:, 0] for k in keep.tolist()]
        order = torch.cat([self.group[:0], *order])
        part = Rollouts(
            {k: column[keep.to(column.device)] for k, column in self.rows.items()}, left=self.left
        )
        for name in PER_ANSWER:
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[order])
        part.group = place[self.group[order]]
        part.texts = [self.texts[k] for k in order.tolist()] if self.texts else []
        part.baseline = None if self.baseline is None else self.baseline[keep]
        return part


PER_ANSWER = (
    *("group", "x", "y", "mask", "logp", "unfinished", "explored"),
    *("rewards", "right", "advantages", "counted"),
)


def joined(parts: list[Rollouts]) -> Rollouts:
    """Several batches as one; token columns are aligned where the prompts end."""
    if len(parts) == 1:
        return parts[0]
    left = max(part.left for part in parts)
    width = max(part.mask.shape[1] for part in parts)
    total = Rollouts({k: torch.cat([p.rows[k] for p in parts]) for k in parts[0].rows}, left=left)
    before, groups = 0, []
    for part in parts:
        groups.append(part.group + before)
        before += part.n_prompts
    total.group = torch.cat(groups)
    for name in PER_ANSWER[1:]:
        columns = [_aligned(part, name, left, width) for part in parts]
        setattr(total, name, None if columns[0] is None else torch.cat(columns))
    total.texts = [text for part in parts for text in part.texts]
    if parts[0].baseline is not None:
        total.baseline = torch.cat([part.baseline for part in parts])
    return total


def _aligned(part: Rollouts, name: str, left: int, width: int) -> Tensor | None:
    """A column of `part` with `left` token columns for the prompt and `width` for the answer."""
    value = getattr(part, name)
    more = width - part.mask.shape[1]
    if value is None or (value.dim() == 1):
        return value
    if name in ("x", "y"):
        fill = NO_TOKEN if name == "x" else IGNORE
        return F.pad(value, (left - part.left, more), value=fill)
    return F.pad(value, (0, more))
