"""token_cross_entropy: -log p(response | prompt) per token, averaged over a batch's tokens.

Shapes  x int64 [B, L] tokens, -1 where there is none (prompts begin at different columns and end
        at one, responses follow); y int64 [B, L] the tokens to be learned, -100 elsewhere; the
        output [B, K, V] is of the last K columns of x, from the last that no learned token is in
        on; at column t it is for the token at t + 1
Norm    all tokens of an update count the same, however it is split into micro-batches. Rows that a
        strategy appends to a micro-batch weigh as its own rows do
Shown   the first response of an item; where the stream's demonstrations are the base model's (own,
        oracle), what it answers when a run begins (`cl/demonstrations.py`), which is kept with the
        run's checkpoints; or what a strategy put in its place (`rewrite`)
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cl.data import Batches, Table
from cl.demonstrations import ORIGINS, Demonstration, demonstrations
from cl.errors import BadValue, DataError
from cl.objectives._tokens import IGNORE, token_cross_entropy
from cl.registry import register
from cl.seeding import generator
from cl.text import TextStream

if TYPE_CHECKING:
    from cl.loop import Loop

NOTHING = -1  # in x: no token; an id of its own, as some tokenizers pad with a token that counts


@register
class TokenCrossEntropy:
    """Learning from gold responses (SFT). learn: the response's tokens, or the prompt's too."""

    name = "token_cross_entropy"

    def __init__(self, learn: Literal["response", "all"] = "response"):
        self.learn = learn
        self.shown: dict[int, Demonstration] = {}  # of the base model, by item
        self.rewritten: dict[int, Demonstration] | None = None  # by a strategy
        self._tokenizer: _Remembering | None = None
        self._rows: _Rows | None = None
        self._block: tuple[Tensor | None, int, int, int] = None, 0, 0, 0
        self._total = 0.0  # tokens to be learned in the update's own rows

    def check(self, loop: Loop) -> None:
        """Whether the run's texts fit the model. Raises BadValue, DataError."""
        stream, model = loop.stream, loop.model
        if not isinstance(stream, TextStream):
            raise BadValue(f"{self.name} needs a stream of prompts, got {stream.name}")
        if not hasattr(model, "tokenizer"):
            raise BadValue(f"{stream.name} needs a language model: tiny, or hf:PATH")
        self._tokenizer = _Remembering(model.tokenizer)
        for k, item in enumerate(stream.items):
            stream.check_room(k, self._tokenizer, model.context, item.responses[:1])
        taught = [k for e in stream.experiences for k in e.train.column("x").tolist()]
        if stream.demonstrations in ("own", "oracle"):
            if loop.resumed:  # they were made when the run began
                self.shown = None
                return
            self.shown = demonstrations(model, stream, sorted(set(taught)), loop.seed)
        for k in taught:
            if not stream.items[k].responses and k not in self.shown:
                raise DataError(f"item {k} of {stream.name} has no response to learn from")

    def batches(self, loop: Loop, table: Table) -> Batches:
        """Shuffled index draws from the component generator "batches"."""
        return Shown(self, loop, table)

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Tokens of the rows' items."""
        held = self._held(loop)
        index = held.chosen(rows["x"].cpu(), loop)
        here = index.to(held.x.device)
        loop.mb_x, loop.mb_y = held.x.index_select(0, here), held.y.index_select(0, here)
        loop.mb_task_id = None
        # where the tokens are is known here without asking the device
        begin, end = held.first[index], held.last[index]
        first, last = int(begin.min()), int(end.max())
        loop.tokens_seen += int((end - begin).sum())
        self._block = loop.mb_x, first, last, last - held.answers

    def forward(self, loop: Loop) -> Tensor:
        """Logits [B, K, V]; columns without a token are dropped from `mb_x` and `mb_y` before."""
        held, first, last, keep = self._block
        if loop.mb_x is not held:  # rows were appended
            wide = loop.mb_x.shape[1] == self._held(loop).x.shape[1]
            used = (loop.mb_x != NOTHING).any(0).nonzero()[:, 0]
            first, last = int(used[0]), int(used[-1]) + 1
            keep = last - self._held(loop).answers if wide else last - first
        keep = min(keep, last - first)
        loop.mb_x, loop.mb_y = loop.mb_x[:, first:last], loop.mb_y[:, first:last]
        self._block = loop.mb_x, 0, last - first, keep
        return loop.model(loop.mb_x.clamp(min=0), loop.mb_x != NOTHING, keep)

    def loss(self, loop: Loop) -> Tensor:
        """Mean over the update's tokens, as this micro-batch's part of it."""
        if loop.mb_share == 1:  # the whole update is here
            return self.criterion(loop.mb_output, loop.mb_y)
        if loop.mb_part[0] == 0:
            self._total = self._tokens_of(loop)
        own = len(loop.mb_index) / len(loop.mb_y)  # rows that were appended weigh as its own do
        total = self._total * loop.mb_share / own
        return token_cross_entropy(*_aligned(loop.mb_output, loop.mb_y), total=total)

    @staticmethod
    def criterion(output: Tensor, y: Tensor) -> Tensor:
        """Mean over tokens; output [B, K, V] of the last K columns of y [B, L]."""
        return token_cross_entropy(*_aligned(output, y))

    def predict(self, loop: Loop, batch) -> Tensor:
        """Logits [B, L, V] for tokens [B, L]; answers are generated by the evaluator."""
        return loop.model(batch.x.clamp(min=0), batch.x != NOTHING)

    def evaluator(self, loop: Loop):
        """Scores by generated answers."""
        from cl.generation import TextEvaluator

        return TextEvaluator(loop)

    # -- what is shown -----------------------------------------------------------------------------

    def gold(self, loop: Loop, item: int) -> str:
        """What the stream shows for an item, whatever was rewritten."""
        shown = self.shown.get(item)
        return shown.texts[0] if shown else loop.stream.items[item].responses[0]

    def rewrite(self, targets: Mapping[int, tuple[str, str]]) -> None:
        """Show these texts from now on: {item: (text, origin)}; all others as the stream does."""
        self.rewritten = {
            k: Demonstration((text,), (1.0,), origin) for k, (text, origin) in targets.items()
        }
        self._rows = None

    def origins(self, table: Table) -> dict[str, int] | None:
        """How many items of a table show what; None where all show the stream's responses."""
        if not self.shown and self.rewritten is None:
            return None
        return _origins(table, self.shown | (self.rewritten or {}))

    def state(self) -> dict:
        """What is shown in place of the stream's responses."""
        held = {"shown": self.shown or None, "rewritten": self.rewritten}
        return {
            name: {k: (d.texts, d.shares, d.origin) for k, d in made.items()}
            for name, made in held.items()
            if made is not None
        }

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned. Raises DataError for an early version's."""
        read = {
            name: {k: Demonstration(*d) for k, d in made.items()} for name, made in state.items()
        }
        if self.shown is None and "shown" not in read:
            raise DataError("the checkpoint lacks the model's demonstrations: run it again")
        self.shown, self.rewritten = read.get("shown", {}), read.get("rewritten")
        self._rows = None

    def tell(self, loop: Loop, table: Table) -> None:
        """Log the shares, and warn where the model had no right answer."""
        found = _origins(table, self.shown)
        n = max(1, sum(found.values()))
        for name, count in found.items():
            loop.log(f"demonstrations_{name}", count / n)
        if found["own"] < sum(found.values()):
            warnings.warn(
                f"experience {loop.experience.name}: of {n} {loop.stream.demonstrations} "
                f"demonstrations {found['own']} are right samples of the base model, "
                f"{found['rewritten']} renderings, {found['gold']} the stream's answers",
                stacklevel=2,
            )

    def _tokens_of(self, loop: Loop) -> float:
        """Tokens to be learned in all own rows of the running update."""
        held = self._held(loop)
        items = loop.adapted_dataset.rows(loop.batch_index)["x"].cpu()
        return float(held.learned[held.chosen(items, loop)].sum())

    def _held(self, loop: Loop) -> _Rows:
        if self._rows is None:
            tokenizer = self._tokenizer or _Remembering(loop.model.tokenizer)
            shown = self.shown | (self.rewritten or {})
            self._rows = _Rows.of(loop.stream.items, shown, tokenizer, self.learn, loop.device)
        return self._rows


def _origins(table: Table, made: Mapping[int, Demonstration]) -> dict[str, int]:
    """How many items of a table show what; those that are not in `made` the stream's response."""
    items = set(table.column("x").tolist())
    found = Counter(made[k].origin if k in made else "gold" for k in items)
    return {name: found[name] for name in ORIGINS}


class Shown(Batches):
    """Batches of rows whose targets come from several places, which is said once."""

    def __init__(self, objective: TokenCrossEntropy, loop: Loop, table: Table):
        super().__init__(table, loop.train_mb_size, loop.rng("batches"))
        self.objective, self.loop = objective, loop

    def begin(self) -> None:
        """See Epochs."""
        if self.objective.shown and self.loop.clock.train_exp_epochs == 0:
            self.objective.tell(self.loop, self.table)
        super().begin()


def _aligned(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the same tokens: column t of output is for the token at t + 1."""
    return output[:, :-1], y[:, y.shape[1] - output.shape[1] + 1 :]


@dataclass
class _Rows:
    """Tokens of everything that may be shown: x, y [R, L] on the device, the rest on the CPU.

    first, last int64 [R]: columns that a row's tokens begin at and end before; learned [R]: how
    many are learned; answers: first column that the output is needed of; rows [N, M] and upto
    [N, M]: of every item the rows it may show, and their cumulative shares; None if it is row k
    for item k.
    """

    x: Tensor
    y: Tensor
    first: Tensor
    last: Tensor
    learned: Tensor
    answers: int
    rows: Tensor | None
    upto: Tensor | None

    @staticmethod
    def of(items, shown: Mapping[int, Demonstration], tokenizer, learn: str, device) -> _Rows:
        """The rows of all items."""
        pairs, places = list(items), {}
        for k, found in shown.items():
            made = [replace(items[k], responses=(text,)) for text in found.texts]
            pairs[k], places[k] = made[0], [k, *range(len(pairs), len(pairs) + len(made) - 1)]
            pairs += made[1:]
        x, y = encoded(pairs, tokenizer, learn)
        used, width = x != NOTHING, x.shape[1]
        first = used.int().argmax(1)
        last = width - used.flip(1).int().argmax(1)
        counts = y[:, 1:] != IGNORE
        answers = int(counts.any(0).int().argmax())  # the column before the first learned token
        most = max((len(p) for p in places.values()), default=1)
        rows = upto = None
        if most > 1:
            rows = torch.arange(len(items)).unsqueeze(1).repeat(1, most)
            upto = torch.full((len(items), most), 2.0)
            for k, own in places.items():
                rows[k, : len(own)] = torch.tensor(own)
                upto[k, : len(own) - 1] = torch.tensor(shown[k].shares[:-1]).cumsum(0)
        return _Rows(x.to(device), y.to(device), first, last, counts.sum(1), answers, rows, upto)

    def chosen(self, items: Tensor, loop: Loop) -> Tensor:
        """The rows that these items [B] show in the running update.

        The draw depends on seed and update alone, so that micro-batches, a resumed run and who
        counts tokens beforehand see the same.
        """
        if self.rows is None:
            return items
        update = f"{loop.clock.train_iterations}/{loop.extra_updates}"
        draws = torch.rand(len(self.rows), generator=generator(loop.seed, f"oracle/{update}"))
        at = (draws[items].unsqueeze(1) >= self.upto[items]).sum(1, keepdim=True)
        return self.rows[items].gather(1, at).squeeze(1)


class _Remembering:
    """A tokenizer that reads a text once."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._prompts: dict[str, list[int]] = {}
        self._responses: dict[str, list[int]] = {}

    def prompt_ids(self, text: str) -> list[int]:
        """As the tokenizer has it."""
        if text not in self._prompts:
            self._prompts[text] = self.tokenizer.prompt_ids(text)
        return self._prompts[text]

    def response_ids(self, text: str) -> list[int]:
        """As the tokenizer has it."""
        if text not in self._responses:
            self._responses[text] = self.tokenizer.response_ids(text)
        return self._responses[text]


def encoded(items, tokenizer, learn: str) -> tuple[Tensor, Tensor]:
    """x, y [N, L] of all items, first responses; an item without one has its prompt alone."""
    pairs = [
        (
            tokenizer.prompt_ids(item.prompt),
            tokenizer.response_ids(item.responses[0]) if item.responses else [],
        )
        for item in items
    ]
    left = max(len(prompt) for prompt, _ in pairs)
    width = left + max(len(response) for _, response in pairs)
    x = torch.full((len(pairs), width), NOTHING)
    y = torch.full((len(pairs), width), IGNORE)
    for k, (prompt, response) in enumerate(pairs):
        x[k, left - len(prompt) : left + len(response)] = torch.tensor(prompt + response)
        y[k, left : left + len(response)] = torch.tensor(response, dtype=torch.int64)
    if learn == "all":  # but the first token, which follows nothing
        begins = (x != NOTHING).int().argmax(1, keepdim=True)
        y = x.masked_fill(x == NOTHING, IGNORE).scatter_(1, begins, IGNORE)
    return x, y
