"""What a policy says on observations that it has met, kept as rows, and how far it is from that.

Rows      x float32 [n, d]; y: its likeliest actions, int64 [n] or float32 [n, A]; scores [n, A];
          log_std [n, A] of a Gaussian policy; values [n] of its critic, where they are asked for
Distance  KL(stored policy || policy) on each row, mean over rows: but for a constant this is the
          mean over the stored policy's actions of -log p(action), behaviour cloning without the
          noise of drawing them. Where scores are values of actions, (Q - stored Q)^2, mean over
          rows and actions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl.importance import chosen
from cl.objectives import _actions
from cl.seeding import frozen
from cl.toolbox import FEATURE_BATCH

if TYPE_CHECKING:
    from cl.buffers import Rows
    from cl.loop import Loop


def said(loop: Loop, n: int | None, rng: torch.Generator, *, critic: bool = False) -> Rows | None:
    """n random rows of what has lately been met, all for None; None if nothing has been met."""
    table = loop.shown
    if table is None:
        return None
    x = table.rows(chosen(loop, n, rng).to(table.device))["x"]
    loop.samples_seen += len(x)
    with frozen(loop.model) as model:
        found = [model.outputs(part) for part in x.split(FEATURE_BATCH)]
        scores, *others = (torch.cat(column).float() for column in zip(*found, strict=True))
        rows = {"x": x, "y": _actions.greedy(scores, model.log_std), "scores": scores}
        if model.log_std is not None:
            rows["log_std"] = model.log_std.expand(len(x), -1).clone()
    return rows | ({"values": others[0]} if critic else {})


def distance(loop: Loop, scores: Tensor, rows: Rows) -> Tensor:
    """Between the model, with `scores` [n, A] on the rows' x, and what it said there; a scalar."""
    return between(loop, rows["scores"], scores, rows.get("log_std")).mean()


def between(
    loop: Loop, old: Tensor, new: Tensor, log_std: Tensor | None, *, reverse: bool = False
) -> Tensor:
    """The same for each row [n], of scores old and new; log_std: that of the old policy.

    reverse: KL(policy || stored policy).
    """
    if loop.valued:
        return (new.float() - old.float()).square().mean(-1)
    now = loop.model.log_std
    if reverse:
        return _actions.distance(new, old, now, log_std)
    return _actions.distance(old, new, log_std, now)
