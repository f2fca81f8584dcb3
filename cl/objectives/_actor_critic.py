"""The mathematics of actor and critic: returns, advantages, PPO's losses and what to watch.

Shapes   T steps of n environments, [T, n]; a minibatch holds rows of any shape [...]
Types    whatever comes in, float32 goes out; flags are bool
Ends     terminated: the task ended, nothing follows. truncated: the clock ended, what would have
         followed is worth V(final observation). Where both are set, the task ended.
Autoreset  SAME_STEP: the row after an end is the next episode's first; give `final_values`.
         NEXT_STEP (Gymnasium's default): the row after an end holds the final observation, its
         action is ignored, its reward 0; give `valid` of `valid_rows` and no `final_values`.
Valid    bool, shape of the rows; what is false there has no part in any mean, spread or gradient
Total    valid rows of the whole update, if these are one of its micro-batches: the parts' losses
         and gradients then add up to the whole's
Loss     policy + value_coef value - entropy_coef entropy; the value's has its 1/2 inside, so that
         value_coef=1 is the 0.5 of libraries that have not
Sources  GAE arXiv:1506.02438; PPO arXiv:1707.06347; time limits arXiv:1712.00378; the details:
         Huang et al., "The 37 Implementation Details of PPO", ICLR blog track 2022; k1, k3
         J. Schulman, joschu.net/blog/kl-approx.html
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cl.errors import ShapeMismatch
from cl.objectives._policy_gradient import LOG_RATIO, clipped, kl
from cl.objectives._tokens import aggregate

# ---------------------------------------------------------------- returns and advantages [T, n]


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    last_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
    final_values: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantages A and returns A + V, the critic's targets, both float32 [T, n].

    A_t = d_t + gamma lam A_{t+1}, the second term only within an episode, with
    d_t = r_t + gamma V(s_{t+1}) - V(s_t), V(s_{t+1}) as `successors` has it.
    rewards, values [T, n]: r_t and V(s_t); last_values [n]: of what follows the last row.
    Rows that are not valid get advantage 0 and return V.
    """
    rewards, values = rewards.float(), values.float()
    following = successors(values, last_values, terminated, truncated, final_values)
    found = rewards + gamma * following - values
    decay = gamma * lam * (~(terminated | truncated)).float()
    rows, decays = found.unbind(0), decay.unbind(0)
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(decays[t], rows[t + 1])  # in place, a row of `found`
    if valid is not None:
        found = found.masked_fill(~valid.bool(), 0)
    return found, found + values


def successors(
    values: Tensor,
    last_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor | None = None,
) -> Tensor:
    """V of what follows each step, float32 [T, n]: 0 where terminated.

    final_values [T, n]: V(final observation) where truncated, anything elsewhere; None with
    NEXT_STEP autoreset, whose next row is that observation.
    """
    if values.shape != terminated.shape or values.shape[1:] != last_values.shape:
        raise ShapeMismatch(
            f"values {list(values.shape)}, flags {list(terminated.shape)} and last values "
            f"{list(last_values.shape)}; expected [T, n], [T, n] and [n]"
        )
    following = torch.cat([values[1:], last_values[None].to(values)]).float()
    if final_values is not None:
        following = torch.where(truncated, final_values.float(), following)
    return following.masked_fill(terminated, 0)


def valid_rows(ended_before: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """Which rows are steps with NEXT_STEP autoreset, bool [T, n]: not those that follow an end.

    ended_before bool [n]: whether the step before the first row was an end.
    """
    ended = terminated | truncated
    return ~torch.cat([ended_before[None].bool(), ended[:-1]])


def normalised(advantages: Tensor, valid: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """(A - mean) / (spread + eps) of a minibatch, float32; rows that are not valid get 0.

    The spread has n - 1 in it. A single row stays as it is; equal ones are 0.
    """
    rows = advantages.float()
    if valid is not None:
        counted = valid.bool()
        return torch.zeros_like(rows).masked_scatter(counted, normalised(rows[counted], eps=eps))
    if rows.numel() < 2:
        return rows
    spread, mean = torch.std_mean(rows)
    least, most = rows.aminmax()
    return ((rows - mean) / (spread + eps)).masked_fill(least == most, 0)  # whatever rounding says


# ---------------------------------------------------------------- losses of a minibatch [...]


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    *,
    clip: float,
    high: float | None = None,
    dual: float | None = None,
    valid: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """PPO's clipped loss, a scalar: mean of -min(w A, clip(w, 1 - clip, 1 + high) A).

    w = exp(logp - old_logp); high: clip if None. logp of the chosen actions, with a gradient;
    old_logp and advantages are constants. dual: see `clipped` of `_policy_gradient.py`.
    """
    high = clip if high is None else high
    rows = (logp.float(), old_logp.detach().float(), advantages.detach().float())
    if valid is None and dual is None:  # the usual case: a third of the time
        return mean(_Clipped.apply(*rows, 1 - clip, 1 + high), None, total)
    mask = torch.ones_like(logp, dtype=torch.bool) if valid is None else valid.bool()
    flat = (x.reshape(1, -1) for x in rows)
    values, _ = clipped(*flat, mask.reshape(1, -1), low=clip, high=high, dual=dual)
    return mean(values.reshape(mask.shape), valid, total)


class _Clipped(torch.autograd.Function):
    """-min(w A, clip(w, least, most) A) [...], what `clipped` has, as one step with its slope."""

    @staticmethod
    def forward(ctx, logp, old_logp, advantages, least, most):
        """logp, old_logp, advantages [...]; least, most numbers."""
        log_w, lost = logp - old_logp, -advantages
        w = log_w.clamp(-LOG_RATIO, LOG_RATIO).exp()
        free, bound = w * lost, w.clamp(least, most) * lost
        flat = (free < bound) | (log_w.abs() > LOG_RATIO)
        ctx.save_for_backward(free.masked_fill(flat, 0))
        return torch.maximum(free, bound)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """d (w A) / d logp is w A itself."""
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None, None


def value_loss(
    values: Tensor,
    returns: Tensor,
    *,
    old_values: Tensor | None = None,
    clip: float | None = None,
    valid: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """Mean of (V - R)^2 / 2, a scalar.

    clip: V may be at most that far from old_values, those of the rollout: the larger of the two
    squares, with V as it is and with V clipped, counts. None has no such bound.
    """
    if valid is None and clip is None:  # the usual case, in fewer steps
        far = F.mse_loss(values.float(), returns.detach().float(), reduction="sum")
        return far / (2 * (max(values.numel(), 1) if total is None else total))
    squares = _kept(values.float() - returns.detach().float(), valid).square()
    if clip is not None:
        old = old_values.detach().float()
        near = old + (values.float() - old).clamp(-clip, clip)
        other = _kept(near - returns.detach().float(), valid)
        squares = torch.maximum(squares, other.square())
    return mean(squares / 2, valid, total)


def mean(
    values: Tensor, valid: Tensor | None = None, total: Tensor | float | None = None
) -> Tensor:
    """Mean over the valid rows, or their sum / total; 0 if none is valid."""
    if valid is None:  # the usual case: a quarter of the time
        usual = total is None and values.numel()
        return values.mean() if usual else values.sum() / (1 if total is None else total)
    mask = valid.bool().reshape(1, -1)
    return aggregate(values.reshape(1, -1), mask, "token_mean", total=total)


def _kept(values: Tensor, valid: Tensor | None) -> Tensor:
    """Values, 0 where not valid: neither these nor their gradients may be nan there."""
    return values if valid is None else values.masked_fill(~valid.bool(), 0)


# ---------------------------------------------------------------- what to watch


@torch.no_grad()
def approximate_kl(
    logp: Tensor,
    old_logp: Tensor,
    kind: Literal["k1", "k3"] = "k3",
    valid: Tensor | None = None,
) -> Tensor:
    """KL(policy that sampled || policy of now) in the mean of the rows, a scalar [nats].

    With d = logp - old_logp: k1 is -d, k3 is e^d - d - 1, never negative and less noisy.
    """
    return mean(kl(old_logp.float(), logp.float(), kind), valid)


@torch.no_grad()
def clip_fraction(
    logp: Tensor, old_logp: Tensor, clip: float, valid: Tensor | None = None
) -> Tensor:
    """Share of rows whose ratio is further than `clip` from 1, whatever their advantage."""
    far = ((logp.float() - old_logp.float()).exp() - 1).abs() > clip
    return mean(far.float(), valid)


@torch.no_grad()
def explained_variance(
    values: Tensor, returns: Tensor, valid: Tensor | None = None
) -> float | None:
    """1 - Var(R - V) / Var(R): 1 is a perfect critic, 0 one that says the same of all.

    None where the returns do not vary: then it has no meaning.
    """
    values, returns = values.double().flatten(), returns.double().flatten()
    if valid is not None:
        values, returns = values[valid.flatten().bool()], returns[valid.flatten().bool()]
    if not len(returns) or returns.min() == returns.max():
        return None
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread)
