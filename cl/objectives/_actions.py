"""Policies as distributions of actions: categorical or a diagonal Gaussian.

Shapes   scores [..., A]: logits of A actions, or means of A numbers; log_std [A] or [..., A]: given
         for a Gaussian, None for a categorical policy; actions int64 [...] or float [..., A]
Types    float32 at least, whatever the network computes in
Padding  an action that an environment has not: scores -inf (`restricted`); its probability is 0
         and it is in no entropy, distance or draw
Noise    draws are functions of given noise [..., A], so that an environment's actions need not
         depend on how many others run beside it
Sources  ClonEx arXiv:2209.13900 (distance to a stored policy on stored observations)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cl.models.policy import Actions
from cl.objectives import _tokens
from cl.objectives._actor_critic import mean

LOG_2_PI = math.log(2 * math.pi)
TINY = 2.0**-60  # of a uniform number: its logarithm must be finite


def logp(scores: Tensor, actions: Tensor, log_std: Tensor | None = None) -> Tensor:
    """Log-probability, or its density, of each action: [...] [nats]."""
    if log_std is None and scores.dim() == 2:  # the usual case, in fewer steps
        return -F.cross_entropy(_at_least_float32(scores), actions.long(), reduction="none")
    if log_std is None:
        return _tokens.token_logp(scores, actions.long())
    scores, log_std = _at_least_float32(scores), _at_least_float32(log_std)
    z = (actions.to(scores.dtype) - scores) * (-log_std).exp()
    return -(z.square() / 2 + log_std + LOG_2_PI / 2).sum(-1)


def entropy(scores: Tensor, log_std: Tensor | None = None) -> Tensor:
    """Entropy of each row's policy, [...] [nats]; a loss subtracts it, so that it grows."""
    if log_std is None:
        return _tokens.entropy(scores)
    found = (_at_least_float32(log_std) + (1 + LOG_2_PI) / 2).sum(-1)
    return found.expand(scores.shape[:-1])


def logp_and_entropy(
    scores: Tensor, actions: Tensor, log_std: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`logp` and `entropy` of each row, [...] both, with one softmax."""
    if log_std is not None:
        return logp(scores, actions, log_std), entropy(scores, log_std)
    return _Categorical.apply(_at_least_float32(scores), actions.long())


class _Categorical(torch.autograd.Function):
    """log p(a) and H of softmax(scores), [...] each of [..., A], as one step with its slopes."""

    @staticmethod
    def forward(ctx, scores, actions):
        """actions int64 [...]."""
        each = scores.log_softmax(-1)
        each = each.clamp(min=torch.finfo(each.dtype).min)  # finite where a probability is zero
        p, actions = each.exp(), actions[..., None]
        entropy = -(p * each).sum(-1)
        ctx.save_for_backward(p, each, actions, entropy)
        return each.gather(-1, actions)[..., 0], entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, by_logp, by_entropy):
        """d log p(a) / d s = [a] - p; d H / d s = -p (log p + H)."""
        p, each, actions, entropy = ctx.saved_tensors
        by_logp = by_logp[..., None]
        slope = (each + entropy[..., None]).mul_(by_entropy[..., None]).add_(by_logp).mul_(-p)
        return slope.scatter_add_(-1, actions, by_logp), None


def distance(
    scores: Tensor,
    ref_scores: Tensor,
    log_std: Tensor | None = None,
    ref_log_std: Tensor | None = None,
) -> Tensor:
    """KL(policy || reference) of each row, exact, [...] [nats], with a gradient through both.

    To clone a stored policy take KL(stored || policy): exchange the arguments.
    """
    if log_std is None:
        return _tokens.full_kl(scores, ref_scores)
    log_std, ref_log_std = _at_least_float32(log_std), _at_least_float32(ref_log_std)
    far = _at_least_float32(scores) - _at_least_float32(ref_scores)
    ratio = ((2 * log_std).exp() + far.square()) * (-2 * ref_log_std).exp()
    return (ref_log_std - log_std + (ratio - 1) / 2).sum(-1)


def noise(actions: Actions, lead: tuple[int, ...], rng: torch.Generator, device) -> Tensor:
    """What `draw` takes for actions of a leading shape: float32 [*lead, A], drawn on the CPU.

    Standard Gumbel, or standard normal for continuous actions.
    """
    shape = (*lead, actions.n)
    if actions.continuous:
        return torch.randn(shape, generator=rng).to(device)
    u = torch.rand(shape, generator=rng, dtype=torch.float64)
    return -(-(u.clamp(min=TINY).log())).log().float().to(device)


@torch.no_grad()
def draw(scores: Tensor, noise: Tensor, log_std: Tensor | None = None) -> Tensor:
    """One action per row, a function of its own row of scores and noise alone.

    noise [..., A]: as `noise` makes it. The largest of logits and Gumbel noise is a draw from
    their softmax (Gumbel 1954); actions with score -inf are never drawn.
    """
    if log_std is not None:
        scores = _at_least_float32(scores)
        return scores + log_std.to(scores).exp() * noise.to(scores)
    return (scores.float() + noise).argmax(-1)


def greedy(scores: Tensor, log_std: Tensor | None = None) -> Tensor:
    """The likeliest action of each row: the first best one, or the mean."""
    return scores.argmax(-1) if log_std is None else scores


def cloning_loss(
    scores: Tensor,
    actions: Tensor,
    log_std: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """Behaviour cloning: mean of -logp(demonstrated action), a scalar.

    Cross-entropy for a categorical policy, negative log-likelihood for a Gaussian one. valid and
    total as in `_actor_critic.py`.
    """
    return mean(-logp(scores, actions, log_std), valid, total)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
