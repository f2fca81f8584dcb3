"""rft: reinforcement fine-tuning, learning from rewards for the model's own answers.

Source    Lai et al., ICML 2026, arXiv:2507.05386; GRPO arXiv:2402.03300, Dr. GRPO 2503.20783,
          RLOO 2402.14740, MaxRL 2602.02710, ReMax 2310.10505
Claim     fine-tuned task by task, a model forgets far less by rewards than by demonstrations, with
          neither replay nor regularisation (disputed: arXiv:2607.04364, 2609.35259)
Loss      aggregate(-min(w A, clip(w, 1 - clip, 1 + clip_high) A) + beta KL(policy, reference)) over
          the tokens of `group` answers to each prompt; w = exp(log p - log p when drawn), A by
          `advantage` from the rewards of a prompt's answers. On images an answer is one class,
          drawn from the softmax, and the reward is 1 if it is right
State     the reference's weights
Needs     a stream whose verifier rewards answers (or labels, on images); boundaries, with beta and
          reference=previous or ema
Defaults  the paper's: GRPO, 8 answers, beta=0.01 to the model before the task, token mean, clip 0.2
          and 0.3. 64 answers to 8 prompts per update, as sft learns from 64 demonstrations
Departs   its reward is 0.9 accuracy + 0.1 format, form=0.1 here; an answer that does not end in
          time earns 0. grpo divides by s + 1e-4, as TRL does, instead of s + 1e-6. KL by k2 has the
          gradient of KL(policy || reference); the paper's code adds k3, whose gradient is that of
          the other direction. Updates are on-policy (refresh=1); the paper's code makes 4 per batch
          of answers (refresh=4). A wrong task for rewards: see min_pass; images: a class that is
          new would never be drawn, hence explore, and refresh > 1 compares batch norm in two modes,
          give clip=none
Parameters
    group          answers to each prompt; train.batch_size counts answers, on images inputs
    advantage      grpo dr_grpo rloo max_rl (compare a prompt's answers), remax (with the greedy
                   one), reinforce (the reward as it is)
    std_floor      grpo: least spread of rewards that is divided by [reward]
    aggregate      token_mean, sequence_mean, fixed (by the longest answer allowed), sequence_sum
    beta           weight of the KL to the reference; 0: none [1]
    kl             k2, ratio_k3, k3, full (exact, over the vocabulary), k1 (in the reward)
    reference      previous (before the experience), base (before the stream), ema, none
    ema            share of the running mean that stays at every update [1]
    clip           ratios below 1 - clip and above 1 + clip_high have no gradient; none: no ratio
    clip_high      none: as clip [1]
    dual           bound of the ratio where an answer was worse than expected; none: no bound [1]
    ratio          of each token, or of the sequence (GSPO)
    refresh        updates between new answers: 1 on-policy; epoch: all prompts answered once an
                   epoch (with advantage=reinforce clip=none: iterative SFT on own right answers);
                   inf: once an experience (self-SFT) [updates]
    passes         passes over every batch of answers [passes]
    zero_variance  prompts whose answers earn the same: keep, drop, or refill by drawing others
    unfinished     answers without an end: zero reward, score them, or drop them
    form           share of the reward for the form of an answer, right or wrong [1]
    temperature    of the draws and of their probabilities [1]
    explore        images: share of answers drawn uniformly; none: 0.1 where classes come with the
                   stream, else 0 [1]
    min_pass       tasks of which a smaller share of prompts gets a right answer are refused; 0: no
"""

from __future__ import annotations

from typing import Annotated, Literal

from cl.config import Range
from cl.registry import register
from cl.rewarded import Rewarded


@register
class RFT(Rewarded):
    """Policy gradients on the stream's rewards."""

    learns = "ppo"
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        group: Annotated[int, Range(min=1)] = 8,
        advantage: Literal["grpo", "dr_grpo", "rloo", "max_rl", "remax", "reinforce"] = "grpo",
        std_floor: Annotated[float, Range(min=0)] = 0.0,
        aggregate: Literal["token_mean", "sequence_mean", "fixed", "sequence_sum"] = "token_mean",
        beta: Annotated[float, Range(min=0)] = 0.01,
        kl: Literal["k1", "k2", "k3", "ratio_k3", "full"] = "k2",
        reference: Literal["previous", "base", "ema", "none"] = "previous",
        ema: Annotated[float, Range(min=0, max=1)] = 0.99,
        clip: Annotated[float, Range(above=0)] | None = 0.2,
        clip_high: Annotated[float, Range(above=0)] | None = 0.3,
        dual: Annotated[float, Range(above=1)] | None = None,
        ratio: Literal["token", "sequence"] = "token",
        refresh: Annotated[int, Range(min=1)] | Literal["epoch", "inf"] = 1,
        passes: Annotated[int, Range(min=1)] = 1,
        zero_variance: Literal["keep", "drop", "refill"] = "keep",
        unfinished: Literal["zero", "score", "drop"] = "zero",
        form: Annotated[float, Range(min=0, below=1)] = 0.0,
        temperature: Annotated[float, Range(above=0)] = 1.0,
        explore: Annotated[float, Range(min=0, max=1)] | None = None,
        min_pass: Annotated[float, Range(min=0, max=1)] = 0.05,
    ):
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(**options)
