"""What a language model says about single tokens, and how such values become one number.

Shapes    B sequences, T tokens of each, V the vocabulary; mask [B, T] is true where a token counts
          (a completion's first end token does, what follows it does not)
Position  everything is aligned: logits[b, t] are those that predict ids[b, t]. For ids [B, L] that
          a model has read, they are logits[:, :-1] and ids[:, 1:]; nothing here shifts.
Type      float32 at least, also of bfloat16 logits and under autocast; float64 stays float64
Total     a mean over an update's micro-batches is no mean of their means. Take `normaliser` of the
          whole update's mask and give it to each `aggregate` as `total`: values and gradients of
          the parts then add up to the whole's.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cl.errors import BadValue, unknown

Aggregate = Literal["sequence_mean", "token_mean", "fixed", "sequence_sum"]
Normalise = Literal["tokens", "sequences"]
IGNORE = -100  # a label that does not count, as in transformers


def token_logp(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[ids].

    logits [..., V]; ids int64 [...], IGNORE gives 0.
    Temperature divides the logits, as in sampling, so that both sides have one distribution.
    Returns [...], with a gradient.
    """
    scaled = _scaled(logits, temperature)
    rows = scaled.reshape(-1, scaled.shape[-1])
    loss = F.cross_entropy(rows, ids.reshape(-1), reduction="none", ignore_index=IGNORE)
    return -loss.view(ids.shape)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum_v p_v log p_v, p = softmax(logits / temperature); [..., V] to [...] [nats].

    A token of probability zero (logit -inf) adds nothing.
    """
    logp = _log_softmax(logits, temperature)
    return -(logp.exp() * logp).sum(-1)


def full_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p || p_ref) = sum_v p_v (log p_v - log p_ref,v), exact, with a gradient through both.

    logits, ref_logits [..., V]; returns [...] [nats]. It has no sampling noise and costs a second
    row of logits per token, which small vocabularies can afford. The forward KL of the base to
    the model is that of exchanged arguments.
    """
    logp, ref = _log_softmax(logits, temperature), _log_softmax(ref_logits, temperature)
    return (logp.exp() * (logp - ref)).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in float32, or in float64 if that is what they are."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits / temperature


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) [..., V], finite also where a probability is zero."""
    logp = _scaled(logits, temperature).log_softmax(-1)
    return logp.clamp(min=torch.finfo(logp.dtype).min)


def normaliser(mask: Tensor, kind: Aggregate, *, max_len: int | None = None) -> Tensor:
    """What `aggregate` divides by for this mask [B, T]; a scalar, which adds up over micro-batches.

    Sequences without a token that counts (unscorable, dropped) are not counted either.
    """
    _check(kind)
    if kind == "token_mean":
        return mask.bool().sum()
    sequences = mask.bool().any(1).sum()
    if kind != "fixed":
        return sequences
    if max_len is None or max_len < 1:
        raise BadValue(f"aggregate=fixed divides by max_len, at least 1 token; it is {max_len}")
    return sequences * max_len


def _check(kind: str) -> None:
    """Refuse a way of aggregating that does not exist."""
    if kind not in get_args(Aggregate):
        raise unknown("aggregate", kind, get_args(Aggregate))


def aggregate(
    values: Tensor,
    mask: Tensor,
    kind: Aggregate,
    *,
    max_len: int | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """One number of per-token values [B, T], of which those count where mask [B, T] is true.

    sequence_mean  mean over sequences of their tokens' mean     GRPO, arXiv:2402.03300; GSPO
    token_mean     mean over all tokens                          DAPO, arXiv:2503.14476
    fixed          sum over all tokens / (sequences max_len)     Dr. GRPO, arXiv:2503.20783
    sequence_sum   mean over sequences of their tokens' sum      REINFORCE

    They differ by factors of a sequence's length, so that a learning rate found with one is no
    learning rate of another. `sequences` are those with a token that counts.
    max_len: the longest a completion may be [tokens]; for `fixed` without a total.
    total: `normaliser` of the whole update's mask if this is a part of it, else None. What runs
    on several devices divides by all devices' total and sums gradients.
    Values that do not count may be anything, also nan. If none counts the result is 0.
    """
    _check(kind)
    if total is None:
        total = normaliser(mask, kind, max_len=max_len)
    mask = mask.bool()
    values = values.masked_fill(~mask, 0)
    if kind == "sequence_mean":
        values = values / mask.sum(1, keepdim=True).clamp(min=1)
    return values.sum() / torch.as_tensor(total, device=values.device).clamp(min=1)


def token_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    normalise: Normalise = "tokens",
    total: Tensor | float | None = None,
) -> Tensor:
    """-log softmax(logits)[labels], over the labels that are not IGNORE, as one number.

    logits [B, T, V], labels int64 [B, T], aligned.
    tokens     mean over all tokens of the update, so that each weighs the same
    sequences  mean over sequences of their tokens' mean, so that each answer weighs the same
    total: tokens or sequences in the whole update, if this is a part of it: `normaliser` of
    `labels != IGNORE` and kind `token_mean` or `sequence_mean`.
    """
    kinds = dict(zip(get_args(Normalise), ("token_mean", "sequence_mean")))
    if normalise not in kinds:
        raise unknown("normalise", normalise, kinds)
    loss = -token_logp(logits, labels)
    return aggregate(loss, labels != IGNORE, kinds[normalise], total=total)
