"""The mathematics of DQN: targets, loss, exploration, and the network that targets come from.

Shapes   B transitions drawn from a buffer; Q values [B, A]; actions int64 [B]
Ends     a target bootstraps from what follows unless the task *ended* there: (1 - terminated). A
         truncated episode goes on as far as values are concerned; its next observation is the
         final one, not the next episode's first. No function here takes `done`.
Experience  `step` counts from the start of the experience: exploration starts anew with each
Sources  DQN Mnih et al. 2015 (Huber, target network); double DQN arXiv:1509.06461; time limits
         arXiv:1712.00378
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl.objectives._actor_critic import mean


@torch.no_grad()
def q_target(
    rewards: Tensor,
    next_q: Tensor,
    terminated: Tensor,
    *,
    gamma: float,
    next_online: Tensor | None = None,
) -> Tensor:
    """r + gamma (1 - terminated) max_a Q(s', a), float32 [B].

    next_q [B, A]: of the target network in s'; actions that do not exist are -inf.
    next_online [B, A]: of the network in training; given, it chooses the action that the target
    network values (double DQN).
    rewards may be sums of n discounted ones; gamma is then gamma^n.
    """
    next_q = next_q.float()
    if next_online is None:
        best = next_q.amax(-1)
    else:
        best = next_q.gather(-1, next_online.argmax(-1, keepdim=True))[..., 0]
    return rewards.float() + gamma * best.masked_fill(terminated.bool(), 0)


def q_loss(
    q: Tensor,
    actions: Tensor,
    target: Tensor,
    *,
    delta: float = 1.0,
    valid: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """Mean Huber distance of Q(s, a) to its target, a scalar: quadratic up to delta, then linear.

    q [B, A] with a gradient; target [B] is a constant. valid, total as in `_actor_critic.py`.
    """
    chosen = q.float().gather(-1, actions.long()[..., None])[..., 0]
    target = target.detach().float()
    if valid is not None:
        target = torch.where(valid.bool(), target, chosen.detach())
    return mean(F.huber_loss(chosen, target, reduction="none", delta=delta), valid, total)


def epsilon(step: int, *, steps: int, first: float = 1.0, last: float = 0.05) -> float:
    """Share of random actions at `step` of an experience: linear to `last` within `steps`."""
    if steps <= 0:
        return last
    return first + (last - first) * min(step / steps, 1.0)


@torch.no_grad()
def explore(q: Tensor, noise: Tensor, share: float) -> Tensor:
    """The best action of each row, or with probability `share` any: int64 [n].

    q [n, A], actions that do not exist -inf and never chosen; noise uniform in [0, 1) [n, 2].
    """
    allowed = q > -torch.inf
    nth = (noise[:, 1].double() * allowed.sum(-1)).long()  # which of the allowed ones
    any_of = ((allowed.cumsum(-1) > nth[:, None]) & allowed).int().argmax(-1)
    return torch.where(noise[:, 0] < share, any_of, q.argmax(-1))


def sync_is_due(updates: int, every: int) -> bool:
    """Whether the target network is set after this many updates of the experience, from 1 on."""
    return updates > 0 and updates % every == 0


@torch.no_grad()
def synchronise(target: nn.Module, online: nn.Module, tau: float = 1.0) -> None:
    """Move the target's weights by `tau` towards the online network's; 1 copies them.

    Buffers, as of batch norm, are copied.
    """
    for theirs, ours in zip(target.parameters(), online.parameters(), strict=True):
        theirs.copy_(ours) if tau == 1 else theirs.lerp_(ours, tau)
    for theirs, ours in zip(target.buffers(), online.buffers(), strict=True):
        theirs.copy_(ours)
