"""llm_speed: training a language model with cl's Loop, beside a bare PyTorch loop and TRL.

SFT     tokens per second (padding not counted) of `sft`, of a hand-written loop over the very
        batches, and of TRL's SFTTrainer on the same rows
RFT     seconds per update of `rft` and of TRL's GRPOTrainer: 8 prompts, 8 answers each of exactly
        16 tokens, their rewards and one step; no KL, temperature 1, no truncation
Model   tiny, 0.87 M parameters, drawn from a fixed seed, float32; AdamW, no clipping, for all
TRL     once as lean as it goes: no gradient checkpointing, clipping, logging or saving; once with
        its defaults, float32 apart. All are timed from their first step on (`rft` looks before
        whether tasks can be learned from rewards), and rows are tokenised before
Method  one process; contestants take turns, a different one first in every round; the first round
        is a warm-up. Times are medians over rounds of the process's own time (what it waits for a
        core is not counted), ratios medians of the ratios within a round, also by the clock
Needs   pip install -e '.[oracle]' for TRL; without it its lines are left out
Run     python benchmarks/llm_speed.py [--part sft|rft|both] [--rounds 7] [--write]
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from statistics import median

import torch
import torch.nn.functional as F
from _readme import put
from torch import Tensor, nn

from cl.loop import Loop
from cl.models import build
from cl.models.language import LanguageModel
from cl.objectives.token_cross_entropy import NOTHING, TokenCrossEntropy, encoded
from cl.registry import entries, find
from cl.seeding import generator, seed_globals
from cl.settings import Eval, Train
from cl.strategy import Strategy
from cl.text import TextStream
from strategies.sft import SFT
from streams._text import Part, text_stream
from streams.skills import skills

SEED, LR = 0, 1e-4
ROWS, BATCHES, EPOCHS = 1024, (16, 64), 2
ANSWERS, GROUP, ANSWER, STEPS = 64, 8, 16, 12
OURS, BARE = "cl", "bare PyTorch"
TRL = {"TRL, lean": True, "TRL, its defaults": False}
Timed = Callable[[], tuple[float, float]]  # says when its training began


# -- what all contestants get ----------------------------------------------------------------------


def parity(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """A reward that about half of all texts earn, so that answers to one prompt differ."""
    return [float(len(set(text)) % 2) for text in completions]


def prompts_stream() -> TextStream:
    """ROWS prompts of `skills` with their demonstrations as the one task of a stream."""
    made = skills(n_train=ROWS // 4, n_val=0, n_test=4)
    index = [k for e in made.experiences for k in e.train.column("x").tolist()]
    items = [replace(made.items[k], task="all", meta={}) for k in index]
    part = Part("all", train=items, test=items[:1])
    limits = {"all": ANSWER}
    return text_stream("speed", [part], verifiers={"all": parity}, max_new_tokens=limits)


def initial_model(endless: bool) -> LanguageModel:
    """tiny at random; `endless`: the end of an answer is never drawn."""
    seed_globals(SEED)
    model = build("tiny", (), {"pretrained": False})
    if endless:
        bias = torch.zeros(model.tokenizer.vocab_size)
        bias[list(model.tokenizer.eos_ids)] = -1e9
        model.lm.lm_head.bias = nn.Parameter(bias, requires_grad=False)
    return model


class Begin(Strategy):
    """Notes when training begins."""

    def __init__(self):
        self.begun = (0.0, 0.0)

    def before_training_epoch(self, loop: Loop) -> None:
        """The first one counts."""
        self.begun = self.begun if any(self.begun) else now()


def our_run(stream: TextStream, model: nn.Module, strategy: Strategy, **train) -> Timed:
    """cl's Loop with one strategy and no observer."""
    settings = {"optimizer": "adamw", "lr": LR, "weight_decay": 0.0}
    begin = Begin()
    loop = Loop(
        stream=stream,
        strategies=[strategy, begin],
        model=model,
        objective=TokenCrossEntropy(),
        train=Train(**settings | train),
        evaluation=Eval(),
        seed=SEED,
        device=torch.device("cpu"),
    )
    if isinstance(strategy, SFT):
        loop.objective.load(loop, stream.experiences[0].train.rows(torch.arange(1)))  # tokenises

    def run() -> tuple[float, float]:
        loop.run()
        return begin.begun

    return run


# -- SFT -------------------------------------------------------------------------------------------


def sft_contestants(stream: TextStream, batch: int) -> tuple[dict[str, Callable], int, dict]:
    """What makes each contestant ready, tokens that one run learns from, and models that ended."""
    initial, ended = initial_model(endless=False), {}
    x, y = encoded(stream.items[:ROWS], initial.tokenizer, "response")

    def copied(name: str) -> LanguageModel:
        ended[name] = copy.deepcopy(initial)
        return ended[name]

    def ours() -> Timed:
        return our_run(stream, copied(OURS), SFT(), batch_size=batch, epochs=EPOCHS)

    makers = {BARE: lambda: bare_sft(copied(BARE), x, y, batch), OURS: ours}
    for name, lean in TRL.items() if has_trl() else ():
        makers[name] = lambda name=name, lean=lean: trl_sft(copied(name), x, y, batch, lean)
    return makers, EPOCHS * int((x != NOTHING).sum()), ended


def bare_sft(model: LanguageModel, x: Tensor, y: Tensor, batch: int) -> Callable[[], None]:
    """Draw, cut empty columns, forward, cross-entropy, backward, step; batches are cl's own."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.0)
    rng = generator(SEED, "batches")

    def run() -> None:
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x), generator=rng).split(batch):
                ids, labels = x[index], y[index]
                used = (ids != NOTHING).any(0).nonzero()[:, 0]
                ids = ids[:, used[0] : used[-1] + 1]
                labels = labels[:, used[0] : used[-1] + 1]
                mask = (ids != NOTHING).long()
                where = (mask.cumsum(1) - 1).clamp(min=0) * mask
                optimizer.zero_grad()
                output = model.lm(
                    input_ids=ids.clamp(min=0),
                    attention_mask=mask,
                    position_ids=where,
                    use_cache=False,
                ).logits
                F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
                optimizer.step()

    return run


def trl_sft(model: LanguageModel, x: Tensor, y: Tensor, batch: int, lean: bool) -> Timed:
    """TRL's trainer on rows without padding, which it pads itself."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = {"input_ids": [], "labels": []}
    for ids, labels in zip(x, y, strict=True):
        here = ids != NOTHING
        rows["input_ids"].append(ids[here].tolist())
        rows["labels"].append(labels[here].tolist())
    settings = SFTConfig(
        **common_settings(batch, lean), num_train_epochs=EPOCHS, max_length=None, packing=False
    )
    trainer = SFTTrainer(
        model=model.lm,
        args=settings,
        train_dataset=Dataset.from_dict(rows),
        processing_class=fast_tokenizer(),
    )
    return timed_training(trainer)


# -- RFT -------------------------------------------------------------------------------------------


def rft_contestants(stream: TextStream) -> dict[str, Callable]:
    """What makes each contestant ready for STEPS updates."""
    initial = initial_model(endless=True)
    made = find("strategies", "rft").load()

    def ours() -> Timed:
        choices = {"advantage": "grpo", "beta": 0.0, "reference": "none", "unfinished": "score"}
        strategy = made(group=GROUP, min_pass=0.0, **choices)
        train = {"batch_size": ANSWERS, "updates": STEPS, "epochs": 9}
        return our_run(stream, copy.deepcopy(initial), strategy, **train)

    makers = {OURS: ours}
    for name, lean in TRL.items() if has_trl() else ():
        makers[name] = lambda lean=lean: trl_grpo(copy.deepcopy(initial), stream, lean)
    return makers


def trl_grpo(model: LanguageModel, stream: TextStream, lean: bool) -> Timed:
    """TRL's trainer on the same prompts and rewards; generation is transformers' own."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        **common_settings(ANSWERS, lean),
        max_steps=STEPS,
        num_generations=GROUP,
        max_completion_length=ANSWER,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        steps_per_generation=1,
    )
    trainer = GRPOTrainer(
        model=model.lm,
        reward_funcs=parity,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [item.prompt for item in stream.items[:ROWS]]}),
        processing_class=fast_tokenizer(),
    )
    return timed_training(trainer)


# -- TRL -------------------------------------------------------------------------------------------


def has_trl() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


def common_settings(batch: int, lean: bool) -> dict:
    """Settings of both trainers: the same updates for all, and `lean`: nothing but training."""
    same = {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": LR,
        "optim": "adamw_torch",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": SEED,
    }
    nothing_else = {
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
    }
    return same | (nothing_else if lean else {})


def fast_tokenizer():
    """tiny's characters as a tokenizer of transformers, which puts bos as `prompt_ids` does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from cl.tokenizers import CHARACTERS

    ids = {name: k for k, name in enumerate(["<pad>", "<s>", "</s>", *CHARACTERS])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def timed_training(trainer) -> Timed:
    """`trainer.train` as a function that returns when it began: before the first step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        begun = (0.0, 0.0)

        def on_train_begin(self, *args, **kwargs):
            self.begun = now()

    clock = Clock()
    trainer.add_callback(clock)

    def run() -> tuple[float, float]:
        trainer.train()
        return clock.begun

    return run


# -- timing and output -----------------------------------------------------------------------------


def now() -> tuple[float, float]:
    """(time of this process on all of its threads, time by the clock) [s]."""
    return time.process_time(), time.perf_counter()


def interleave(makers: dict[str, Callable], rounds: int, threads: int) -> dict[str, list[tuple]]:
    """{contestant: (own time, by the clock) per round}, from where a contestant says it began."""
    names, times = list(makers), {name: [] for name in makers}
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                run = makers[name]()
                torch.set_num_threads(threads)  # a trainer may have changed it
                gc.collect()
                start = now()
                start = run() or start
                took = tuple(end - begun for end, begun in zip(now(), start, strict=True))
            if k:
                times[name].append(took)
    return times


def require_same_training(ended: dict[str, nn.Module], initial: nn.Module) -> None:
    """The bare loop and cl's must have learned the same, up to rounding."""
    for name, start in initial.state_dict().items():
        ours, bare = (ended[who].state_dict()[name] for who in (OURS, BARE))
        moved = (ours - start).abs().mean()
        if not moved > 0 or (ours - bare).abs().mean() > 0.05 * moved:
            raise AssertionError(f"{name} differs between cl's loop and the bare loop")


def lines_of(times: dict[str, list[tuple]], case: str, of: Callable, unit: str) -> list[list[str]]:
    """Table lines; a ratio says how many times as fast cl is as the contestant."""
    lines = []
    for name, taken in times.items():
        pairs = list(zip(taken, times[OURS], strict=True))
        own, clock = ([other[k] / ours[k] for other, ours in pairs] for k in (0, 1))
        value = median(of(seconds) for seconds, _ in taken)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        span = f"[{min(own):.2f}, {max(own):.2f}]"
        ratios = [f"{median(own):.2f}", span, f"{median(clock):.2f}"]
        lines.append([case, name, shown, unit, *ratios])
    return lines


def table(lines: list[list[str]]) -> str:
    """The lines as a Markdown table."""
    head = ["case", "contestant", "median", "unit", "cl is as fast x", "of rounds", "by the clock"]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)


def about(args: argparse.Namespace) -> str:
    """What the numbers depend on."""
    named = {"python": platform.python_version(), "torch": torch.__version__}
    named |= {p: version(p) for p in ("transformers", *(["trl"] if has_trl() else []))}
    named |= {"device": platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    return ", ".join(f"{key} {value}" for key, value in (named | {"rounds": args.rounds}).items())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("sft", "rft", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.rounds < 1 or (args.write and args.rounds < 5):
        parser.error(f"--rounds must be 1 or more, 5 with --write, got {args.rounds}")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    stream, lines = prompts_stream(), []
    for batch in BATCHES if args.part != "rft" else ():
        makers, tokens, ended = sft_contestants(stream, batch)
        times = interleave(makers, args.rounds, args.threads)
        require_same_training(ended, initial_model(endless=False))
        lines += lines_of(times, f"SFT, batch {batch}", lambda s, n=tokens: n / s, "tokens/s")
    if args.part != "sft" and "rft" in entries("strategies"):
        times = interleave(rft_contestants(stream), args.rounds, args.threads)
        case = f"RFT, {ANSWERS} answers of {ANSWER} tokens"
        lines += lines_of(times, case, lambda s: 1e3 * s / STEPS, "ms/update")
    text = f"{table(lines)}\n\n({about(args)})"
    print(text)
    if args.write:
        put("llm_speed", text)


if __name__ == "__main__":
    main()
