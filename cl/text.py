"""Text streams: items (a prompt, its gold responses, what the verifier needs) and verifiers.

A text stream holds its items once; the tables of its experiences and evals hold their positions
as column "x" and the number of their task as "y", so that buffers, splits and scenario operators
work as on images: a buffer with equal shares per class has them per task. What tokens an item has
is the model's business: text is tokenised when a run begins.

A verifier has TRL's signature, so that reward functions carry over:
`f(prompts, completions, **columns) -> list[float | None]`; columns are the items' `meta`, each a
list as long as `prompts`. A reward lies in [0, 1] and an answer is right where it is 1; None: it
can't be scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from cl.errors import BadValue, ContractError, DataError
from cl.stream import Stream

if TYPE_CHECKING:
    from cl.tokenizers import Tokenizer

Verifier = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Item:
    """One prompt. responses: gold ones, the first is what demonstrations show; meta: {name: value}
    for the verifier. task: the name of its verifier in the stream."""

    prompt: str
    responses: tuple[str, ...]
    task: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class TextStream(Stream):
    """A stream of prompts.

    items: all of them; verifiers: {task: verifier}; max_new_tokens: what an answer may take, by
    task, the same for every arm of a comparison [tokens]; formats: {task: whether a completion has
    the task's form at all}, so that wrong answers and other text are told apart; begins: {task:
    whether a text can begin an answer that has the form}, which saves samples that can't be right;
    renderings: up to k different right answers to the item at an index, in any style that the
    verifier takes: one alone if no other is right.

    demonstrations: what SFT shows: the items' responses, or right answers that the base model
    gives, `own` one fixed one of an item, `oracle` another at every visit. The objective samples
    those when a run begins (`cl/demonstrations.py`); the items stay as they are, and a response is
    what is shown where the model finds no right answer and there are no renderings.
    """

    items: list[Item] = field(default_factory=list)
    verifiers: dict[str, Verifier] = field(default_factory=dict)
    max_new_tokens: dict[str, int] = field(default_factory=dict)
    formats: dict[str, Callable[[str], bool]] = field(default_factory=dict)
    begins: dict[str, Callable[[str], bool]] = field(default_factory=dict)
    renderings: Callable[[int, int, Random], list[str]] | None = None
    demonstrations: str = "canonical"
    failures: int = 0  # completions on which a verifier raised

    def __post_init__(self):
        super().__post_init__()
        for item in self.items:
            if item.task not in self.verifiers:
                raise DataError(f"stream {self.name!r}: task {item.task!r} has no verifier")

    def to(self, device: torch.device) -> TextStream:
        """This stream: positions of items stay on the CPU, where the items are."""
        return self

    def rewards(self, indices: Sequence[int], completions: Sequence[str]) -> list[float | None]:
        """The reward of one completion for each of the items at `indices`; None: unscorable."""
        rewards: list[float | None] = [None] * len(indices)
        by_task: dict[str, list[int]] = {}
        for k, index in enumerate(indices):
            by_task.setdefault(self.items[index].task, []).append(k)
        for task, places in by_task.items():
            items = [self.items[indices[k]] for k in places]
            names = items[0].meta.keys()
            columns = {name: [item.meta[name] for item in items] for name in names}
            found = self._scored(task, items, [completions[k] for k in places], columns)
            for k, reward in zip(places, found, strict=True):
                rewards[k] = reward
        return rewards

    def _scored(self, task: str, items, completions, columns) -> list[float | None]:
        """What the verifier says; where it raises, one by one, so that one text costs one score."""
        prompts = [item.prompt for item in items]
        try:
            found = self.verifiers[task](prompts, completions, **columns)
        except Exception:  # a user's function, on text that a model made up
            if len(items) == 1:
                self.failures += 1
                return [None]
            one = [
                {name: [values[k]] for name, values in columns.items()} for k in range(len(items))
            ]
            rows = zip(items, completions, one, strict=True)
            return [self._scored(task, [i], [text], own)[0] for i, text, own in rows]
        return _checked(found, len(items), task)

    def check_room(
        self, index: int, tokenizer: Tokenizer, context: int, shown: Sequence[str] = ()
    ) -> None:
        """BadValue if an item's prompt with its longest answer or text `shown` is too long."""
        item = self.items[index]
        n = len(tokenizer.prompt_ids(item.prompt))
        lengths = [len(tokenizer.response_ids(text)) for text in shown]
        answer = max([self.max_new_tokens[item.task], *lengths])
        if n + answer > context:
            raise BadValue(
                f"item {index} of {self.name} ({item.task}) takes {n} + {answer} tokens, the "
                f"model has room for {context}"
            )

    def is_well_formed(self, index: int, completion: str) -> bool:
        """Whether a completion has its task's form; True where the task has none."""
        form = self.formats.get(self.items[index].task)
        return form is None or form(completion)

    def content_hash(self) -> str:
        """Hash of the tables, of every item and of what the demonstrations are."""
        digest = hashlib.blake2b(super().content_hash().encode(), digest_size=16)
        digest.update(self.demonstrations.encode())
        for item in self.items:
            meta = sorted(item.meta.items())
            digest.update(repr((item.prompt, item.responses, item.task, meta)).encode())
        return digest.hexdigest()


def _checked(found, n: int, task: str) -> list[float | None]:
    """A verifier's rewards, nan as None. Raises ContractError if they are not n within 0 to 1."""
    if not isinstance(found, list | tuple) or len(found) != n:
        got = len(found) if isinstance(found, list | tuple) else type(found).__name__
        raise ContractError(
            f"the verifier of task {task!r} must return a list of {n} rewards, got {got}"
        )
    found = [None if r is None or r != r else r for r in found]
    bad = [r for r in found if r is not None and not 0 <= r <= 1]
    if bad:
        raise ContractError(f"the verifier of task {task!r} rewards {bad[0]}; allowed: 0 to 1")
    return found
