"""Sampling: what a language model answers, with the log-probability of every token it chose.

A prompt is run through the model once and its cache is expanded to its n samples; rows that have
ended are dropped. The model is in evaluation mode and no graph is kept. Draws are made for every
place of the block before the first token, from the caller's generator on the CPU, so that a row's
tokens depend neither on when its neighbours end nor on the device.

`Sampler` is the seam for other engines: an adapter of vLLM would load the policy's weights, hand
on prompts and limits, and return a Rollout with its own log-probabilities. They come from other
kernels, so whoever trains on them weighs tokens by exp(trained - sampled), capped, and never
takes that ratio as 1. Objectives call `sample` here and nothing of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cl.errors import BadValue
from cl.models._decoding import Decoder, decoder
from cl.models.language import LanguageModel
from cl.objectives._tokens import token_logp
from cl.seeding import frozen

DROP = 0.75  # rows that have ended are dropped once no more than this share is alive


@dataclass
class Rollout:
    """Samples of one call: N = prompts x n rows, those of a prompt next to each other.

    prompt_ids, prompt_mask [N, P]: padded on the left; completion_ids, completion_mask [N, T]:
    padded on the right, the mask ends with the first eos; logp float32 [N, T]: of the sampled
    tokens under the distribution they were drawn from, 0 where masked; truncated bool [N]: the
    limit came before an eos; group int64 [N]: position of the prompt in the call.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    logp: Tensor
    truncated: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.group)

    @property
    def ids(self) -> Tensor:
        """Prompt and completion in one row: int64 [N, P + T]."""
        return torch.cat([self.prompt_ids, self.completion_ids], 1)

    @property
    def mask(self) -> Tensor:
        """Mask of `ids`: bool [N, P + T]."""
        return torch.cat([self.prompt_mask, self.completion_mask], 1)

    def completions(self) -> list[list[int]]:
        """The ids of every completion, with its eos, without padding."""
        rows = zip(self.completion_ids.tolist(), self.completion_mask.sum(1).tolist(), strict=True)
        return [ids[:length] for ids, length in rows]


class Sampler(Protocol):
    """What `sample` is: any engine with this signature can stand in for it."""

    def __call__(
        self,
        model: LanguageModel,
        prompts: list[list[int]],
        *,
        n: int = 1,
        max_new_tokens: int | list[int],
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        rng: torch.Generator,
    ) -> Rollout:
        """n completions of every prompt."""


def sample(
    model: LanguageModel,
    prompts: list[list[int]],
    *,
    n: int = 1,
    max_new_tokens: int | list[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    rng: torch.Generator,
    viable: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Rollout:
    """n completions of every prompt, drawn from softmax(logits / temperature).

    prompts: ids, of any lengths; max_new_tokens: eos included, for all or by prompt; top_k: draw
    among the k likeliest, 0 all; top_p: among the likeliest that together reach this probability;
    greedy: take the likeliest, draw nothing from rng (logp is that of temperature and no
    truncation); viable(rows [b], ids [b, t]) -> bool [b]: rows that are not are given up, and count
    as truncated, so that who rejects them anyway saves their other tokens. Raises BadValue where
    a prompt and its limit exceed the model's context.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    _check(model, prompts, limits, n, temperature, top_k, top_p)
    device = next(model.parameters()).device
    ids, mask = left_padded(prompts, model.tokenizer.pad_id, device)
    limit = torch.tensor(limits, device=device).repeat_interleave(n)  # [N]
    steps = max(limits)
    draws = None
    if not greedy:
        draws = torch.rand(len(limit), steps, generator=rng, dtype=torch.float64)
        draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
    choice = _Choice(temperature, top_k, top_p, draws)
    ends = torch.tensor(model.tokenizer.eos_ids, device=device)
    with frozen(model):
        state = decoder(model, ids, mask, n, steps)
        tokens, logp, lost = _decode(state, limit, ends, choice, viable)
    length, truncated = _lengths(tokens, limit, ends)
    truncated |= lost
    width = int(length.max())
    kept = torch.arange(width, device=device) < length.unsqueeze(1)
    return Rollout(
        prompt_ids=ids.repeat_interleave(n, 0),
        prompt_mask=mask.repeat_interleave(n, 0),
        completion_ids=tokens[:, :width].masked_fill(~kept, model.tokenizer.pad_id),
        completion_mask=kept,
        logp=logp[:, :width].masked_fill(~kept, 0.0),
        truncated=truncated,
        group=torch.arange(len(prompts), device=device).repeat_interleave(n),
    )


def left_padded(rows: Sequence[Sequence[int]], pad: int, device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one block: int64 [B, L] and its bool mask, padding on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    mask = torch.arange(width) >= width - lengths
    return ids.to(device), mask.to(device)


def completion_logp(model: LanguageModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Log-probability of every completion token under the model, with gradients: [N, T].

    At the sampler's temperature and without truncation this is the sampler's `logp`. 0 where
    masked.
    """
    width = rollout.completion_ids.shape[1]
    logits = model(rollout.ids, rollout.mask, keep=width + 1)[:, :-1]
    found = token_logp(logits, rollout.completion_ids, temperature)
    return found.masked_fill(~rollout.completion_mask, 0.0)


@dataclass
class _Choice:
    """How a token is taken from logits. draws: uniform [N, steps], None for greedy."""

    temperature: float
    top_k: int
    top_p: float
    draws: Tensor | None

    def take(self, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(tokens [b], logp [b]) for logits [b, V] of the rows at positions `rows` [b]."""
        scaled = logits.float() / self.temperature
        if self.draws is None:
            tokens = scaled.argmax(-1)
            return tokens, token_logp(scaled, tokens)
        logp = truncate(scaled, self.top_k, self.top_p).log_softmax(-1)
        total = logp.exp().cumsum(-1, dtype=self.draws.dtype)
        # the first token whose cumulative probability exceeds the draw; one of probability 0
        # never is, since its cumulative probability is that of the token before
        point = self.draws[rows, step].unsqueeze(1) * total[:, -1:]
        tokens = torch.searchsorted(total, point, right=True)
        return tokens.squeeze(1), logp.gather(1, tokens).squeeze(1)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """logits [b, V] with -inf outside the k likeliest and outside the nucleus of top_p."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # of those that are likelier
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return logits


def _decode(
    state: Decoder,
    limit: Tensor,
    ends: Tensor,
    choice: _Choice,
    viable: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [N, steps], logp [N, steps], given up [N]); after its end a row has no meaning.

    limit [N]: new tokens of each row; ends [k]: ids that end one.
    """
    steps = int(limit.max())
    tokens = limit.new_zeros(len(limit), steps)
    logp = torch.zeros(len(limit), steps, device=limit.device)
    rows = torch.arange(len(limit), device=limit.device)  # of those still in the decoder
    alive = torch.ones_like(rows, dtype=torch.bool)
    lost = torch.zeros_like(alive)
    for step in range(steps):
        taken, chance = choice.take(state.logits, rows, step)
        tokens[rows, step], logp[rows, step] = taken, chance
        alive &= (taken.unsqueeze(1) != ends).all(1) & (limit[rows] > step + 1)
        if viable is not None:
            going = rows[alive]
            good = viable(going, tokens[going, : step + 1])
            lost[going[~good]] = True
            alive[alive.clone()] = good
        left = int(alive.sum())
        if left == 0:
            break
        if left <= DROP * len(rows):
            state.select(alive.nonzero().squeeze(1))
            rows, taken, alive = rows[alive], taken[alive], alive[alive]
        state.advance(taken)
    return tokens, logp, lost


def _lengths(tokens: Tensor, limit: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """(length [N], truncated [N]): a row goes to its first end, that included, or to its limit."""
    steps = tokens.shape[1]
    places = torch.arange(steps, device=tokens.device).expand_as(tokens)
    first = places.masked_fill(~torch.isin(tokens, ends), steps).min(1).values
    return torch.minimum(first + 1, limit), first >= limit


def _check(
    model: LanguageModel,
    prompts: list[list[int]],
    limits: list[int],
    n: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """Raises BadValue for what can't be sampled."""
    if not prompts or n < 1 or not temperature > 0 or top_k < 0 or not 0 < top_p <= 1:
        raise BadValue(
            f"sampling needs prompts, n >= 1, temperature > 0, top_k >= 0 and 0 < top_p <= 1; got "
            f"{len(prompts)} prompts, n={n}, temperature={temperature:g}, top_k={top_k}, "
            f"top_p={top_p:g}"
        )
    if len(limits) != len(prompts):
        raise BadValue(f"{len(limits)} limits of new tokens for {len(prompts)} prompts")
    for k, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt or limit < 1:
            raise BadValue(f"prompt {k} has {len(prompt)} tokens and may get {limit}; both need 1")
        if len(prompt) + limit > model.context:
            raise BadValue(
                f"prompt {k} has {len(prompt)} tokens and may get {limit} more, the model's "
                f"context is {model.context}"
            )
