"""hft_time: what an update costs with half of the parameters frozen, beside full fine-tuning.

Cases   `tiny` as it is shipped, batch 64; a Llama of 6 layers of width 256 (FFN 688, drawn at
        random), batch 32: one task of `skills` under `sft` and `hft+sft`, AdamW, float32
Method  one process; the two take turns, the other one first in every second round; the first round
        is a warm-up. A round is UPDATES updates of a fresh loop, hft drawing another half in every
        round; its time is the median from one update's end to the next one's (batch, forward,
        backward, optimizer), in time of the process (what it waits for a core is not counted) and
        by the clock. Ratios are medians of the ratios within a round. At most 1/6 of the
        arithmetic can be saved: a matrix costs three products per update (forward, gradient of its
        input, gradient of itself), of which freezing it saves the last
Bar     ratio at most 0.92, on one thread on a quiet machine
Run     python benchmarks/hft_time.py [--rounds 15] [--threads 1] [--write]
"""

from __future__ import annotations

import argparse
import platform
import time
from statistics import median

import torch
import transformers
from _readme import put
from torch import nn

from cl.loop import Loop
from cl.models import build
from cl.models.language import LanguageModel
from cl.objectives import imitation
from cl.registry import find
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.strategy import Strategy
from cl.tokenizers import CharTokenizer
from strategies.hft import HFT
from strategies.sft import SFT

UPDATES = 12
FULL, HALF = "sft", "hft+sft"


class Stopwatch(Strategy):
    """When every update was over, by the process and by the clock [s]."""

    def __init__(self):
        self.ends: list[tuple[float, float]] = []

    def after_training_iteration(self, loop):
        """Note the time."""
        self.ends.append((time.process_time(), time.perf_counter()))

    @property
    def update(self) -> tuple[float, float]:
        """Seconds of an update, process and clock; the first two are not counted."""
        pairs = list(zip(self.ends[1:], self.ends[2:]))
        own, clock = ([b[k] - a[k] for a, b in pairs] for k in (0, 1))
        return median(own), median(clock)


def tiny() -> nn.Module:
    """The embedded model."""
    return build("tiny", (), {})


def larger() -> nn.Module:
    """A Llama of 4.8 M parameters over the same characters."""
    tokenizer = CharTokenizer()
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    return LanguageModel(transformers.LlamaForCausalLM(config), tokenizer, 96)


CASES = {"tiny, 0.87 M, batch 64": (tiny, 64), "Llama 6 x 256, 4.8 M, batch 32": (larger, 32)}


def measured(make, batch: int, strategies: list, stream, seed: int) -> tuple:
    """((seconds of an update, by the clock), shares that were frozen)."""
    seed_globals(0)
    watch = Stopwatch()
    train = Train(
        optimizer="adamw", lr=1e-4, batch_size=batch, epochs=100, updates=UPDATES, clip=1.0
    )
    loop = Loop(
        stream=stream,
        strategies=[*strategies, watch],
        model=make(),
        objective=imitation("llm"),
        train=train,
        evaluation=Eval(),
        seed=seed,
        device=torch.device("cpu"),
    )
    loop.run()
    return watch.update, [share for s in strategies if isinstance(s, HFT) for share in s.shares]


def compare(make, batch: int, rounds: int) -> tuple[list[dict[str, tuple]], list[float]]:
    """(`Stopwatch.update` of both for every round, shares that were frozen)."""
    stream = find("streams", "skills").load()(tasks=["ascend"], skills=[], n_test=1, n_val=0)
    taken, shares = [], []
    for k in range(rounds + 1):
        times = {}
        for name in (FULL, HALF) if k % 2 else (HALF, FULL):
            strategies = [SFT()] if name == FULL else [HFT(), SFT()]
            times[name], frozen = measured(make, batch, strategies, stream, seed=k)
            shares += frozen
        taken.append(times)
    return taken[1:], shares


def table(args: argparse.Namespace) -> str:
    """Everything as Markdown."""
    lines = [
        "| case | sft, ms | hft+sft, ms | ratio | of rounds | by the clock | frozen share |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for title, (make, batch) in CASES.items():
        taken, shares = compare(make, batch, args.rounds)
        full, half = (median(t[name][0] for t in taken) * 1e3 for name in (FULL, HALF))
        ratios, clock = (sorted(t[HALF][k] / t[FULL][k] for t in taken) for k in (0, 1))
        spread = f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        share = sum(shares) / len(shares)
        cells = [f"{full:.1f}", f"{half:.1f}", f"{median(ratios):.3f}", spread]
        cells += [f"{median(clock):.3f}", f"{share:.3f}"]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": platform.machine(),
        "threads": args.threads,
        "rounds": args.rounds,
    }
    said = ", ".join(f"{key} {value}" for key, value in about.items())
    return "\n".join([*lines, "", f"({said})"])


def main() -> None:
    """Print the table; write it into the README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = table(args)
    print(text)
    if args.write:
        put("hft_time", text)


if __name__ == "__main__":
    main()
