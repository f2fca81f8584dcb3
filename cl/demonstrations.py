"""Demonstrations by a model: right answers that it gives, and how likely it finds given ones.

A completion is right where its reward is 1 and it ended by itself. Right ones among samples at
temperature 1 are draws from the model's distribution given that the answer is right, so the first
of them serves `own` and several serve `oracle`. Prompts that have enough are not sampled further.

Where there is none among all samples, a stream that has renderings (right answers written down)
offers some: the likeliest is taken, or each with its probability among them. What is left falls
back on the item's own response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch

from cl.models.language import LanguageModel, positions
from cl.objectives._tokens import IGNORE, token_logp
from cl.sampling import left_padded, sample
from cl.seeding import derive, frozen, generator
from cl.text import TextStream

ROUNDS = (4, 12, 48)  # samples of a prompt in turn, 64 in all
KEPT = 8  # right samples of a prompt that `oracle` chooses among
RENDERINGS = 16
HOPELESS = 1000  # samples of a task without a right one after which no more are drawn
ROWS = 1024  # completions at a time

ORIGINS = ("own", "rewritten", "gold")


@dataclass(frozen=True)
class Demonstration:
    """Texts that may be shown for an item, with probabilities, and where they come from.

    origin: own, of the model; rewritten, a likely rendering; gold, the item's response; only, the
    one answer that is right.
    """

    texts: tuple[str, ...]
    shares: tuple[float, ...]
    origin: str


def demonstrations(
    model: LanguageModel, stream: TextStream, items: Sequence[int], seed: int
) -> dict[int, Demonstration]:
    """What a stream of `own` or `oracle` demonstrations shows for each of the items.

    Repeatable: drawn from the seed alone. An item without a right sample, renderings and response
    is left out.
    """
    several = stream.demonstrations == "oracle"
    made = {k: Demonstration((text,), (1.0,), "only") for k, text in _only(stream, items)}
    asked = [k for k in items if k not in made]
    found = right_samples(model, stream, asked, KEPT if several else 1, seed)
    for k, texts in found.items():
        made[k] = Demonstration(tuple(texts), (1 / len(texts),) * len(texts), "own")
    rest = [k for k in asked if k not in made]
    for k, (texts, costs) in rendered(model, stream, rest, RENDERINGS, seed).items():
        shares = torch.tensor(costs, dtype=torch.float64).neg().softmax(0).tolist()
        if not several:
            texts, shares = [texts[costs.index(min(costs))]], [1.0]
        made[k] = Demonstration(tuple(texts), tuple(shares), "rewritten")
    for k in rest:
        if k not in made and stream.items[k].responses:
            made[k] = Demonstration(stream.items[k].responses[:1], (1.0,), "gold")
    return made


def _only(stream: TextStream, items: Sequence[int]) -> list[tuple[int, str]]:
    """(item, text) where the stream says that one answer alone is right."""
    if stream.renderings is None:
        return []
    two = [(k, stream.renderings(k, 2, Random(0))) for k in items]
    return [(k, texts[0]) for k, texts in two if len(texts) == 1]


def right_samples(
    model: LanguageModel, stream: TextStream, items: Sequence[int], enough: int, seed: int
) -> dict[int, list[str]]:
    """Up to `enough` right samples of each item, in the order of drawing; items with none are out.

    At most sum(ROUNDS) samples are drawn of each; a task that is never right is given up early.
    """
    rng = generator(seed, "demonstrations")
    found: dict[int, list[str]] = {k: [] for k in items}
    left, drawn, right = list(items), Counter(), Counter()
    for n in ROUNDS:
        for k, texts in answers(model, stream, left, n=n, rng=rng).items():
            found[k] += texts
            drawn[stream.items[k].task] += n
            right[stream.items[k].task] += len(texts)
        hopeless = {task for task in drawn if not right[task] and drawn[task] >= HOPELESS}
        left = [k for k in left if len(found[k]) < enough and stream.items[k].task not in hopeless]
    return {k: texts[:enough] for k, texts in found.items() if texts}


def answers(
    model: LanguageModel,
    stream: TextStream,
    items: Sequence[int],
    *,
    n: int = 1,
    greedy: bool = False,
    rng: torch.Generator,
    prompts: Mapping[int, str] | None = None,
) -> dict[int, list[str]]:
    """The right ones among n completions of every item, in the order of drawing.

    prompts: {item: what to ask instead of its prompt}; the verifier sees the item as it is.
    """
    tokenizer = model.tokenizer
    texts = prompts or {k: stream.items[k].prompt for k in items}
    ids = {k: tokenizer.prompt_ids(texts[k]) for k in items}
    order = sorted(items, key=lambda k: len(ids[k]))
    found: dict[int, list[str]] = {k: [] for k in items}
    size = max(1, ROWS // n)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        limits = [stream.max_new_tokens[stream.items[k].task] for k in part]
        rollout = sample(
            model,
            [ids[k] for k in part],
            n=n,
            max_new_tokens=limits,
            greedy=greedy,
            rng=rng,
            viable=_viable(stream, part, n, tokenizer),
        )
        rows = zip(
            (k for k in part for _ in range(n)),
            rollout.completions(),
            rollout.truncated.tolist(),
            strict=True,
        )
        said = [(k, tokenizer.decode(tokens)) for k, tokens, cut in rows if not cut]
        rewards = stream.rewards([k for k, _ in said], [text for _, text in said])
        for (k, text), reward in zip(said, rewards, strict=True):
            if reward == 1:
                found[k].append(text)
    return found


def _viable(stream: TextStream, items: Sequence[int], n: int, tokenizer):
    """Whether rows of `sample` can still be right; None where the stream can't tell."""
    begins = [stream.begins.get(stream.items[k].task) for k in items]
    if not any(begins):
        return None

    def viable(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        pairs = zip(rows.tolist(), ids.tolist(), strict=True)
        known = ((begins[row // n], tokens) for row, tokens in pairs)
        good = [begin is None or begin(tokenizer.decode(tokens)) for begin, tokens in known]
        return torch.tensor(good, dtype=torch.bool, device=rows.device)

    return viable


def rendered(
    model: LanguageModel, stream: TextStream, items: Sequence[int], k: int, seed: int
) -> dict[int, tuple[list[str], list[float]]]:
    """(renderings, their -log p [nats]) of every item that has some within its token limit."""
    if stream.renderings is None:
        return {}
    tokenizer, offered = model.tokenizer, {}
    for item in items:
        rng = Random(derive(seed, f"renderings/{item}"))
        limit = stream.max_new_tokens[stream.items[item].task]
        texts = stream.renderings(item, k, rng)
        texts = [text for text in texts if len(tokenizer.response_ids(text)) <= limit]
        rewards = stream.rewards([item] * len(texts), texts)
        texts = [text for text, reward in zip(texts, rewards, strict=True) if reward == 1]
        if texts:
            offered[item] = texts
    costs = nll(model, [(stream.items[item].prompt, texts) for item, texts in offered.items()])
    return {item: (texts, cost) for (item, texts), cost in zip(offered.items(), costs, strict=True)}


def nll(model: LanguageModel, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
    """-log p(response | prompt) [nats] of each prompt's responses, summed, their eos included.

    asked: (prompt, responses); a prompt is read once for all of its responses.
    """
    tokenizer = model.tokenizer
    pairs = [
        (tokenizer.prompt_ids(prompt), [tokenizer.response_ids(text) for text in texts])
        for prompt, texts in asked
    ]
    order = sorted(range(len(pairs)), key=lambda k: len(pairs[k][0]))
    found: dict[int, list[float]] = {}
    size = max(1, ROWS // max((len(texts) for _, texts in asked), default=1))
    with frozen(model):
        for start in range(0, len(order), size):
            part = order[start : start + size]
            costs = iter(_block_nll(model, [pairs[k] for k in part]))
            found |= {k: [next(costs) for _ in pairs[k][1]] for k in part}
    return [found[k] for k in range(len(pairs))]


def _block_nll(model: LanguageModel, pairs: list[tuple[list[int], list[list[int]]]]) -> list[float]:
    device, pad = next(model.parameters()).device, model.tokenizer.pad_id
    ids, mask = left_padded([prompt for prompt, _ in pairs], pad, device)
    mask = mask.long()
    done = model.lm(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=True,
        logits_to_keep=1,
    )
    owner = torch.tensor([k for k, (_, texts) in enumerate(pairs) for _ in texts], device=device)
    responses = [response for _, texts in pairs for response in texts]
    width = max(map(len, responses))
    labels = torch.tensor([row + [IGNORE] * (width - len(row)) for row in responses]).to(device)
    logits = done.logits[owner].float()  # of the first token [rows, 1, V]
    if width > 1:
        cache = done.past_key_values
        cache.batch_select_indices(owner)
        rest = (labels[:, :-1] != IGNORE).long()
        both = torch.cat([mask[owner], rest], 1)
        more = model.lm(
            input_ids=labels[:, :-1].clamp(min=0),
            attention_mask=both,
            position_ids=positions(both)[:, mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, more.logits.float()], 1)
    return (-token_logp(logits, labels).sum(1)).tolist()
