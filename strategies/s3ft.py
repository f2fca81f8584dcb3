"""s3ft: fine-tuning on the model's own answers where they are right, else on rewritten gold ones.

Source    Gupta et al. 2025, Selective Self-to-Supervised Fine-Tuning (S3FT), arXiv:2502.08130; no
          official code. rewrite=all: SDFT, Yang et al. 2024, arXiv:2402.13669
Claim     no worse than SFT on the task and about half of its damage elsewhere, since what is
          learned is what the model is likely to say
Targets   1. the model's own answer, if the verifier takes it
          2. else a paraphrase of the gold answer by the model, if the verifier takes it
          3. else the gold answer
          with the model as it is before the experience. All else is sft: the same items in the
          same order, the same loss
State     {item: text} of what was rewritten, of this experience and of rows in buffers
Needs     boundaries; a text stream. On labelled images one answer is right and it is sft
Defaults  the paper's: greedy, one own answer, made once
Departs   of a stream with renderings (skills) the paraphrase is the likeliest right text, under the
          model, of the gold one and `renderings` others, which may give another right answer: a
          tiny model does not follow instructions. Other streams: the model is asked with
          `instruction`, its greedy answer judged; where this exceeds the context it stays gold.
          What decoding the paper has is not known
          `sft+s3ft` takes sft's options along
Parameters
    own          the model's answer: greedy, or one sampled at temperature 1
    paraphrase   rewrite gold answers where the own one is wrong
    rewrite      wrong: as above; all: no own answers, every gold one is paraphrased (SDFT)
    refresh      targets are made once, or anew in every epoch by the model as it is then
    renderings   texts to choose a paraphrase among, gold one aside [texts]
    instruction  what asks for a paraphrase, with {prompt} and {answer}
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Annotated, Literal

from cl.config import Range
from cl.demonstrations import ORIGINS, answers, nll, rendered
from cl.errors import BadValue, DataError
from cl.registry import register
from cl.strategy import Strategy
from cl.text import TextStream

INSTRUCTION = (
    "{prompt}\n\nThe right answer is: {answer}\n\nGive this answer in your own words, complete and "
    "in the same form, and nothing else."
)


@register
class S3FT(Strategy):
    """sft on targets that the model finds likely."""

    needs = ("boundaries",)
    domains = ("vision", "llm")
    instead = {"rl": "sft"}

    def __init__(
        self,
        *,
        own: Literal["greedy", "sampled"] = "greedy",
        paraphrase: bool = True,
        rewrite: Literal["wrong", "all"] = "wrong",
        refresh: Literal["once", "epoch"] = "once",
        renderings: Annotated[int, Range(min=1)] = 16,
        instruction: str | None = None,
    ):
        self.own, self.paraphrase, self.rewrite = own, paraphrase, rewrite
        self.refresh, self.renderings = refresh, renderings
        self.instruction = instruction or INSTRUCTION
        self.targets: dict[int, tuple[str, str]] = {}  # item: (text, origin)

    def check(self, loop):
        """Refuse options that contradict each other and objectives that show nothing."""
        if self.rewrite == "all" and not self.paraphrase:
            raise BadValue("s3ft: rewrite=all paraphrases every answer, paraphrase=false none")
        if not isinstance(loop.stream, TextStream):
            return
        if not hasattr(loop.objective, "rewrite"):
            raise BadValue(
                f"s3ft rewrites what is shown, the objective {loop.objective.name} shows nothing"
            )
        lacking = [name for name in ("{prompt}", "{answer}") if name not in self.instruction]
        if lacking:
            raise BadValue(f"strategy.instruction must hold {lacking[0]}, got {self.instruction!r}")

    def before_training_exp(self, loop):
        """Make the experience's targets; those of earlier ones go, but for what buffers hold."""
        if not isinstance(loop.stream, TextStream):
            return
        self.targets = self._held(loop)
        self._make(loop)

    def before_training_epoch(self, loop):
        """Make them anew, if asked to."""
        later = self.refresh == "epoch" and loop.clock.train_exp_epochs > 0
        if later and isinstance(loop.stream, TextStream):
            self._make(loop)

    def stored_bytes(self, loop):
        """What was put in place of the answers of rows in buffers; the rest belongs to the data."""
        return sum(len(text.encode()) for text, _ in self._held(loop).values())

    def _held(self, loop):
        """The targets of rows in buffers."""
        buffers = [b.rows["x"] for b in loop.buffers.values() if "x" in b.rows]
        held = {k for column in buffers for k in column.tolist()}
        return {k: target for k, target in self.targets.items() if k in held}

    def _make(self, loop):
        """Generate, judge, rewrite; log the shares and what the targets cost."""
        items = sorted(set(loop.adapted_dataset.column("x").tolist()))
        gold = {k: loop.objective.gold(loop, k) for k in items}
        before = self._nll(loop, gold)
        made = self._own(loop, items) if self.rewrite == "wrong" else {}
        rest = [k for k in items if k not in made]
        if self.paraphrase and rest:
            made |= self._paraphrased(loop, {k: gold[k] for k in rest}, before)
        self.targets = {k: v for k, v in self.targets.items() if k not in gold} | made
        loop.objective.rewrite(self.targets)
        after = before | self._nll(loop, {k: text for k, (text, _) in made.items()})
        origins = Counter(origin for _, origin in made.values())
        origins["gold"] = len(items) - len(made)
        for name in ORIGINS:
            loop.log(f"s3ft_{name}", origins[name] / len(items))
        loop.log("target_nll_gold", sum(before.values()) / len(items))
        loop.log("target_nll", sum(after.values()) / len(items))

    def _own(self, loop, items):
        """{item: (its own answer, "own")} where that is right."""
        greedy, rng = self.own == "greedy", loop.rng("s3ft.own")
        found = answers(loop.model, loop.stream, items, greedy=greedy, rng=rng)
        return {k: (texts[0], "own") for k, texts in found.items() if texts}

    def _paraphrased(self, loop, gold, before):
        """{item: (right text that the model finds likelier than gold, "rewritten")}."""
        model, stream = loop.model, loop.stream
        if stream.renderings is None:
            asked = self._asked(loop, gold)
            rng = loop.rng("s3ft.paraphrase")
            found = answers(model, stream, list(asked), greedy=True, rng=rng, prompts=asked)
            return {k: (texts[0], "rewritten") for k, texts in found.items() if texts}
        made = {}
        for k, found in rendered(model, stream, list(gold), self.renderings, loop.seed).items():
            cost, text = min(zip(*reversed(found), strict=True))
            if cost < before[k]:
                made[k] = text, "rewritten"
        return made

    def _asked(self, loop, gold):
        """{item: instruction}, of those that the model can read."""
        tokenizer, stream, asked = loop.model.tokenizer, loop.stream, {}
        for k, text in gold.items():
            prompt = stream.items[k].prompt
            text = self.instruction.replace("{answer}", text).replace("{prompt}", prompt)
            try:
                length = len(tokenizer.prompt_ids(text))
            except DataError:  # characters that it has not
                continue
            if length + stream.max_new_tokens[stream.items[k].task] <= loop.model.context:
                asked[k] = text
        if len(asked) < len(gold):
            n, name = len(gold), loop.experience.name
            warnings.warn(
                f"s3ft: {n - len(asked)} of {n} answers of {name} stay gold: the model can't read "
                "the instruction with them",
                stacklevel=2,
            )
        return asked

    def _nll(self, loop, texts):
        """{item: -log p of a text [nats]}."""
        asked = [(loop.stream.items[k].prompt, [text]) for k, text in texts.items()]
        costs = nll(loop.model, asked)
        return {k: cost for k, (cost,) in zip(texts, costs, strict=True)}
