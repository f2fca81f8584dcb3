"""sampler: cl.sampling beside transformers' generate, on the embedded model drawn at random.

Cases   16 tokens for every rollout (no id ends one); and an eos that comes with probability 0.2
        at every token, so that answers have 4.9 tokens on average, at most 16
Method  8 prompts of 6 to 34 characters, 8 samples each; temperature 1, no truncation, both. One
        process; the two take turns, the other one first in every second round; the first round
        is a warm-up. Times are medians over rounds of the thread's own time (what it waits for a
        core is not counted) and of the clock, ratios medians of the ratios within a round
Run     python benchmarks/sampler.py [--rounds 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from cl.models import build
from cl.models.language import LanguageModel
from cl.sampling import left_padded, sample
from cl.seeding import seed_globals

SAMPLES, TOKENS = 8, 16
PROMPTS = ["copy:", *(f"reverse: {'abcd ' * k}=" for k in range(7))]
NEVER = 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| case | generate, ms | cl, ms | ratio | ratio by the clock |")
    print("|---|---:|---:|---:|---:|")
    for name, ends in {"16 tokens each": NEVER, "ends with p = 0.2": 0.2}.items():
        ours, theirs, ratio, clock = compare(ends, args.rounds)
        print(f"| {name} | {theirs:.1f} | {ours:.1f} | {ratio:.2f} | {clock:.2f} |")


def compare(ends: float, rounds: int) -> tuple[float, float, float, float]:
    """(ms of cl's sampler, ms of generate, ratio, ratio by the clock)."""
    seed_globals(0)
    model = build("tiny", (), {"pretrained": False}).eval()
    _end_with(model, ends)
    prompts = [model.tokenizer.prompt_ids(prompt) for prompt in PROMPTS]
    rng = torch.Generator().manual_seed(0)

    def ours() -> None:
        sample(model, prompts, n=SAMPLES, max_new_tokens=TOKENS, rng=rng)

    ids, mask = left_padded(prompts, model.tokenizer.pad_id, "cpu")

    def theirs() -> None:
        model.lm.generate(
            ids,
            attention_mask=mask.long(),
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=TOKENS,
            eos_token_id=model.tokenizer.eos_ids[0],
            pad_token_id=model.tokenizer.pad_id,
        )

    taken = []
    for k in range(rounds + 1):
        order = (ours, theirs) if k % 2 else (theirs, ours)
        times = {run: _timed(run) for run in order}
        taken.append((*times[ours], *times[theirs]))
    rows = taken[1:]
    return (
        median(own for own, _, _, _ in rows) * 1e3,
        median(own for _, _, own, _ in rows) * 1e3,
        median(theirs / ours for ours, _, theirs, _ in rows),
        median(theirs / ours for _, ours, _, theirs in rows),
    )


def _timed(run: Callable[[], None]) -> tuple[float, float]:
    """(process time, time by the clock) of one call [s]."""
    own, clock = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - own, time.perf_counter() - clock


def _end_with(model: LanguageModel, probability: float) -> None:
    """Give eos this probability everywhere, about: the drawn model's logits are near 0."""
    size = model.tokenizer.vocab_size
    odds = probability / (1 - probability) * (size - 1)
    bias = torch.zeros(size)
    bias[model.tokenizer.eos_ids[0]] = math.log(odds) if odds else -1e9
    model.lm.lm_head.bias = nn.Parameter(bias)


if __name__ == "__main__":
    main()
