"""The mathematics of learning from rewards: advantages, clipped ratios, distance to a reference.

Pure functions of tensors, with named choices. What they return per token becomes a loss by
`aggregate` of `cl.objectives._tokens`.

Shapes   N = B completions, T tokens of each; group int64 [N]: which prompt a completion answers, by
         position, never by text, so that equal prompts stay apart
Loss     aggregate(clipped(logp, old_logp, A) + beta kl(logp, ref_logp)), A of `advantages`; rows
         that are not `counted` have an empty mask. In the first inner step of group-centred
         advantages its value is about 0 while its gradient is not: progress shows in the reward.
Sources  GRPO arXiv:2402.03300; Dr. GRPO arXiv:2503.20783; RLOO arXiv:2402.14740; ReMax
         arXiv:2310.10505; MaxRL arXiv:2602.02710; PPO's clip arXiv:1707.06347; dual clip
         arXiv:1912.09729; clip-higher DAPO arXiv:2503.14476; GSPO arXiv:2507.18071; k1-k3
         J. Schulman, joschu.net/blog/kl-approx.html
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from cl.errors import BadValue, ShapeMismatch, unknown

Advantage = Literal["grpo", "dr_grpo", "rloo", "max_rl", "remax", "reinforce"]
Spread = Literal["group", "batch"]
ZeroVariance = Literal["keep", "drop"]
Level = Literal["token", "sequence"]
Divergence = Literal["k1", "k2", "k3", "ratio_k3"]

COMPARING = ("grpo", "dr_grpo", "rloo", "max_rl")  # completions with others of their group
LOG_RATIO = 20.0  # largest size of a log-ratio that is exponentiated [nats]
NEARLY_EQUAL = 0.01  # a spread of rewards below which dividing by it makes much of nothing


def advantages(
    rewards: Tensor,
    group: Tensor,
    kind: Advantage,
    *,
    ddof: int = 1,
    eps: float = 1e-4,
    std_floor: float = 0.0,
    std: Spread = "group",
    baseline: Tensor | None = None,
    zero_variance: ZeroVariance = "keep",
) -> tuple[Tensor, Tensor]:
    """How much better each completion is than expected, float32 [N], and which count, bool [N].

    rewards [N], nan where a completion can't be scored: it has advantage 0, does not count, and
    is in no mean or spread. group int64 [N]. With m, s, n the mean, spread and number of a group:
    grpo       (r - m) / (s + eps), s at least std_floor
    dr_grpo    r - m
    rloo       r - mean of the others in the group = n / (n - 1) (r - m)
    max_rl     (r - m) / m, 0 if m is not above 0; for rewards of 0 and 1
    remax      r - baseline[group], the reward of the group's greedy completion [P], P > max(group);
               where that is nan the group does not count
    reinforce  r
    The first four need groups of at least two; a single scorable one among them gets 0.
    ddof: s is the root of squares / (n - ddof). std: of the group, or of all rewards in the call.
    zero_variance: whether groups that say nothing (all their advantages are 0) count; dropping
    them shrinks what the loss is divided by.
    """
    _check_choices(kind, std, zero_variance)
    rewards, counted = rewards.float(), ~rewards.isnan()
    _, place, sizes = group.unique(return_inverse=True, return_counts=True)
    own = place == torch.arange(len(sizes), device=group.device)[:, None]  # [P, N]
    if kind in COMPARING and len(rewards):
        if sizes.min() < 2:
            raise BadValue(f"advantage={kind} compares a prompt's completions; a prompt has only 1")
        found = _compared(rewards, own & counted, place, kind, ddof, eps, std_floor, std)
    elif kind == "remax":
        found = rewards - _of_group(baseline, group)
        counted = counted & ~found.isnan()
    else:
        found = rewards
    found = torch.where(counted, found, 0)
    if zero_variance == "drop":
        speaks = (own & (found != 0)).any(1)  # [P]
        counted = counted & speaks[place]
    return found, counted


def _check_choices(kind: str, std: str, zero_variance: str) -> None:
    """Refuse a name that does not exist."""
    given = (("advantage", kind, Advantage), ("std", std, Spread))
    for what, name, choices in (*given, ("zero_variance", zero_variance, ZeroVariance)):
        if name not in get_args(choices):
            raise unknown(what, name, get_args(choices))


def _of_group(baseline: Tensor | None, group: Tensor) -> Tensor:
    """The baseline [N] of each completion's group."""
    if baseline is None:
        raise BadValue("advantage=remax needs the reward of each prompt's greedy completion")
    if len(group) and len(baseline) <= int(group.max()):
        raise ShapeMismatch(f"{len(baseline)} baselines for a group numbered {int(group.max())}")
    return baseline.to(group.device).float()[group]


def _compared(rewards, own, place, kind, ddof, eps, std_floor, std) -> Tensor:
    """Advantages [N] within groups; own [P, N]: the scorable completions of each group."""
    n = own.sum(1)  # [P]
    mean = torch.where(own, rewards, 0).sum(1) / n.clamp(min=1)
    least = torch.where(own, rewards, torch.inf).amin(1)
    same = least == torch.where(own, rewards, -torch.inf).amax(1)  # whatever rounding says
    centred = torch.where(same[place], 0, rewards - mean[place])  # [N], nan where unscorable
    if kind == "dr_grpo":
        return centred
    if kind == "rloo":
        return centred * (n / (n - 1).clamp(min=1))[place]
    if kind == "max_rl":
        return torch.where(mean[place] > 0, centred / mean[place], 0)
    if std == "group":
        squares, free = torch.where(own, centred.square(), 0).sum(1), n - ddof
    else:
        scorable = own.any(0)
        far = rewards - torch.where(scorable, rewards, 0).sum() / scorable.sum()
        squares, free = torch.where(scorable, far.square(), 0).sum(), scorable.sum() - ddof
    spread = (squares / free.clamp(min=1)).sqrt().expand(len(n))  # [P]
    if std_floor == 0 and ((spread < NEARLY_EQUAL) & ~same & (n > 0)).any():
        warnings.warn(
            f"rewards of some groups differ by less than {NEARLY_EQUAL}; dividing by their "
            "spread makes them as loud as right and wrong: set std_floor, or use dr_grpo",
            stacklevel=3,
        )
    return centred / (spread.clamp(min=std_floor) + eps)[place]


def clipped(
    logp: Tensor,
    old_logp: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float,
    high: float,
    dual: float | None = None,
    level: Level = "token",
) -> tuple[Tensor, Tensor]:
    """PPO's loss per token [B, T], -min(w A, clip(w, 1 - low, 1 + high) A), and the share clipped.

    w = exp(logp - old_logp), its logarithm kept within +-20. logp [B, T] with a gradient; old_logp
    [B, T] that of the policy which sampled, taken as a constant (None: the policy of now, so that
    w is 1 and the gradient REINFORCE's, -A times that of logp); advantage [B] or [B, T]; mask
    [B, T].
    low, high: 0.2 and 0.2 in PPO; a larger high lets rare tokens grow (DAPO: 0.28).
    dual: where A < 0, w counts as at most this, above 1 (usual: 3); None has no such bound.
    level: sequence takes for all tokens of a sequence w = exp(mean over its tokens of logp -
    old_logp), as GSPO, which is meant for aggregate=sequence_mean and low, high around 3e-4, 4e-4.

    Clipped is what has no gradient for that reason. The share, a scalar without a gradient, is one
    of tokens, or of sequences at that level. Losses where mask is false mean nothing.
    """
    if level not in get_args(Level):
        raise unknown("level", level, get_args(Level))
    if dual is not None and dual <= 1:
        raise BadValue(f"dual={dual}: it bounds the ratio where the advantage is negative, above 1")
    mask = mask.bool()
    advantage = advantage if advantage.dim() == 2 else advantage[:, None]
    old_logp = logp if old_logp is None else old_logp
    log_w = (logp - old_logp.detach()).masked_fill(~mask, 0)  # [B, T]
    if level == "sequence":
        log_w = log_w.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # [B, 1]
        mask = mask.any(1, keepdim=True)
    w = log_w.clamp(-LOG_RATIO, LOG_RATIO).exp()
    loss = -torch.minimum(w * advantage, w.clamp(1 - low, 1 + high) * advantage)
    flat = ((advantage > 0) & (w > 1 + high)) | ((advantage < 0) & (w < 1 - low))
    if dual is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)
        flat = flat | ((advantage < 0) & (w > dual))
    share = flat.sum() / mask.expand_as(flat).sum().clamp(min=1)  # w is 1 where mask is false
    return loss.expand(logp.shape), share


def kl(
    logp: Tensor, ref_logp: Tensor, kind: Divergence, *, old_logp: Tensor | None = None
) -> Tensor:
    """A sampled distance per token [B, T] from the policy to a reference, to be added to a loss.

    With d = ref_logp - logp, both [B, T] of the sampled tokens, all but k2 are estimates of
    KL(policy || reference). What counts in a loss is the expected gradient on the policy's samples:
    k1        -d             none at all: only of use as a part of the reward, detached
    k2        d^2 / 2        that of KL(policy || reference)
    k3        e^d - d - 1    that of KL(reference || policy), the other direction
    ratio_k3  w k3           that of KL(policy || reference), w = exp(logp - old_logp) with its
                             gradient, per token whatever level the loss's own ratios have
    old_logp: of the policy which sampled; None: the policy of now, w is 1. Only for ratio_k3.
    ref_logp and old_logp are constants. e^d and w take d and log w up to +-20; all must be finite.
    """
    if kind not in get_args(Divergence):
        raise unknown("kl", kind, get_args(Divergence))
    d = ref_logp.detach() - logp
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    k3 = d.clamp(max=LOG_RATIO)  # far below, e^d is 0 and -d still pulls
    k3 = k3.exp() - k3 - 1
    if kind == "k3":
        return k3
    old_logp = logp if old_logp is None else old_logp
    return (logp - old_logp.detach()).clamp(-LOG_RATIO, LOG_RATIO).exp() * k3
