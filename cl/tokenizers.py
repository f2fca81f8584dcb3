"""Tokenizers: text to ids and back, for the embedded model and for Hugging Face's.

A prompt begins with the tokenizer's bos (or its chat template's), a response ends with an eos, so
that a model can learn to stop. Padding is never told from text by its id: masks are made from
lengths, so a tokenizer whose pad and eos are one token loses no eos.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Protocol

from cl.errors import BadValue, DataError

SYMBOLS = " \n.,:;?!+-*/=<>()[]'_#|&%"
CHARACTERS = string.ascii_lowercase + string.digits + SYMBOLS


class Tokenizer(Protocol):
    """What models, samplers and objectives need of a tokenizer.

    pad_id: fills rows; bos_id: begins prompts, None where there is none; eos_ids: every id that
    ends a response, the first is what gold responses end with; vocab_size: ids are below it.
    """

    pad_id: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out; it does not stop at any of them."""

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids that a response follows: bos, or the chat template, and the prompt."""

    def response_ids(self, response: str) -> list[int]:
        """The ids of a whole response: its text and the eos."""


class CharTokenizer:
    """One id per character of a fixed set of 61, beside pad 0, bos 1 and eos 2.

    The set: a to z, 0 to 9, space, line feed and 23 signs (`SYMBOLS`).
    """

    pad_id, bos_id, eos_ids = 0, 1, (2,)
    vocab_size = 3 + len(CHARACTERS)

    def __init__(self):
        self._ids = {character: k for k, character in enumerate(CHARACTERS, 3)}

    def encode(self, text: str) -> list[int]:
        """Ids of the characters. Raises DataError naming the first that is not in the set."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise DataError(
                f"the character {error.args[0]!r} in {shown!r} is not in the model's vocabulary: "
                f"a to z, 0 to 9, space, line feed and {SYMBOLS[2:]}"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of ids; pad, bos and eos are left out."""
        return "".join(CHARACTERS[k - 3] for k in map(int, ids) if k >= 3)

    def prompt_ids(self, prompt: str) -> list[int]:
        """bos and the prompt."""
        return [self.bos_id, *self.encode(prompt)]

    def response_ids(self, response: str) -> list[int]:
        """The response and eos."""
        return [*self.encode(response), self.eos_ids[0]]


class HFTokenizer:
    """A tokenizer of transformers, with its chat template if it has one and `template` is set.

    pad: the token that pads, for a tokenizer that names none; eos_ids: further ids that end a
    response, as the model's generation settings name them. Raises BadValue, naming the model as
    `shown`.
    """

    def __init__(
        self,
        tokenizer,
        shown: str,
        *,
        pad: str | None = None,
        template: bool = True,
        eos_ids: Iterable[int] = (),
    ):
        self.hf, self.bos_id = tokenizer, tokenizer.bos_token_id
        first = tokenizer.eos_token_id
        self.eos_ids = tuple(dict.fromkeys(k for k in (first, *eos_ids) if k is not None))
        if not self.eos_ids:
            raise BadValue(f"the tokenizer of {shown} has no eos token, so no response could end")
        self.vocab_size = len(tokenizer)
        self.pad_id = self._pad(pad, shown)
        self._chat = template and tokenizer.chat_template is not None
        # does it put bos in front of its own accord?
        self._begins = self.bos_id is not None and tokenizer("a")["input_ids"][0] == self.bos_id

    def _pad(self, pad: str | None, shown: str) -> int:
        if pad is None:
            if self.hf.pad_token_id is None:
                eos = self.hf.convert_ids_to_tokens(self.eos_ids[0])
                raise BadValue(
                    f"the tokenizer of {shown} names no pad token; give model.pad=TOKEN with a "
                    f"token of its vocabulary, such as {eos}"
                )
            return self.hf.pad_token_id
        known = self.hf.get_vocab()
        if pad not in known:
            raise BadValue(f"model.pad={pad} is no token of the tokenizer of {shown}")
        return known[pad]

    def __deepcopy__(self, memo) -> HFTokenizer:
        return self  # it never changes, and a large vocabulary would be copied with every snapshot

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return self.hf(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens left out, spaces as they are."""
        ids = [int(k) for k in ids]
        return self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The chat template's turn of a user; else the text, after bos where it would put one."""
        if self._chat:
            turn = [{"role": "user", "content": prompt}]
            text = self.hf.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            return self.encode(text)  # the template has written bos itself
        return [self.bos_id] * self._begins + self.encode(prompt)

    def response_ids(self, response: str) -> list[int]:
        """The text and the first eos."""
        return [*self.encode(response), self.eos_ids[0]]
