"""What the tasks of `skills` are made of: alphabet, prompts by seed, verifiers, formats.

A task draws what a prompt asks for (`given`, kept as the item's meta), writes the prompt and
judges answers. A quarter of all prompts, chosen by a hash of their text whatever the seed, is
kept for validation and test: neither the stream nor the pretraining corpus trains on them.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from cl.errors import BadValue
from cl.seeding import derive

ALPHABET = " " + string.ascii_lowercase + string.digits + ".,:;?!=+-*/<>()[]'_#|"
MAX_PROMPT, MAX_ANSWER = 32, 16  # characters
NUMBER = "[0-9]{1,8}"
LETTERS = "[a-z](?:[ ,]?[a-z]){0,7}"  # as one word, or apart
# of these forms: what an answer begins with, spaces around it aside; more ways to write a plain one
BEGINS = {NUMBER: r"[0-9]{0,8}\s*", LETTERS: rf"(?:{LETTERS},?)?\s*"}
STYLES: dict[str, tuple[Callable[[str], str], ...]] = {
    NUMBER: ("{:0>4}".format, "{:0>6}".format),
    LETTERS: (",".join, " ".join),
}

Given = dict[str, Any]


class Task:
    """One kind of prompt and what is right for it.

    given: names of what `draw` returns; form: what an answer looks like, a regular expression;
    single: exactly one answer is right; recalled: its prompts were all seen in pretraining.
    """

    name = ""
    given: tuple[str, ...] = ("answer",)
    form = ""
    single = False
    recalled = False

    def draw(self, rng: Random) -> Given:
        """What one prompt asks for."""
        raise NotImplementedError

    def prompt(self, given: Given) -> str:
        """The prompt's text."""
        raise NotImplementedError

    def right(self, answer: str, given: Given) -> bool:
        """Whether an answer that is well formed is right."""
        raise NotImplementedError

    def canonical(self, given: Given) -> str:
        """The right answer of a natural teacher, in the plain style the base model writes."""
        raise NotImplementedError

    def foreign(self, given: Given) -> str:
        """A right answer in a style that the base model never writes."""
        raise NotImplementedError

    def any(self, given: Given, rng: Random) -> str:
        """A right answer at random, plain style."""
        raise NotImplementedError

    def guess(self, given: Given, rng: Random) -> str:
        """A plain answer that is well formed and knows nothing more."""
        raise NotImplementedError

    def renderings(self, given: Given, k: int, rng: Random) -> list[str]:
        """Up to k different right answers, half of them plain."""
        found = dict.fromkeys([self.canonical(given), self.foreign(given)][:k])
        for trial in range(8 * k):
            if len(found) >= k or self.single:
                break
            style = str if trial % 2 else rng.choice(STYLES.get(self.form, (str,)))
            found.setdefault(style(self.any(given, rng)))
        return list(found)

    def begins(self, text: str) -> bool:
        """Whether a completion that begins so can still look like an answer."""
        begin = BEGINS.get(self.form)
        return begin is None or re.fullmatch(begin, text.lstrip()) is not None

    def well_formed(self, completion: str) -> bool:
        """Whether a completion looks like an answer at all; spaces around it don't matter."""
        return re.fullmatch(self.form, completion.strip()) is not None

    def reward(self, completion: str, given: Given) -> float:
        """1.0 for a right answer, 0.0 for any other text."""
        return float(self.well_formed(completion) and self.right(completion.strip(), given))

    def __repr__(self) -> str:
        return f"Task({self.name})"


class Single(Task):
    """A task with one right answer, kept in `given["answer"]`: no style is left to choose."""

    single = True

    def right(self, answer: str, given: Given) -> bool:
        return answer == given["answer"]

    def canonical(self, given: Given) -> str:
        return given["answer"]

    def foreign(self, given: Given) -> str:
        return given["answer"]

    def any(self, given: Given, rng: Random) -> str:
        return given["answer"]


@dataclass(frozen=True)
class Verify:
    """A task's reward function, with TRL's signature; columns that it does not know are ignored."""

    task: Task

    def __call__(self, prompts: list[str], completions: list[str], **columns) -> list[float]:
        rows = zip(*(columns[name] for name in self.task.given), strict=True)
        given = [dict(zip(self.task.given, row, strict=True)) for row in rows]
        return [self.task.reward(c, g) for c, g in zip(completions, given, strict=True)]


def held(prompt: str) -> bool:
    """Whether a prompt is kept for validation and test: a quarter of them, whatever the seed."""
    return hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] < 64


def draw(task: Task, n: int, *, kept: bool, rng: Random, key: str) -> list[Given]:
    """What n different prompts ask for, of those that are kept for tests or of the others.

    Raises BadValue naming `key` where there are fewer.
    """
    found: dict[str, Given] = {}
    misses = 0
    while len(found) < n:
        given = task.draw(rng)
        prompt = task.prompt(given)
        fits = task.recalled or held(prompt) == kept
        misses = 0 if fits and prompt not in found else misses + 1
        if misses > 20_000:
            kind = "test" if kept else "training"
            raise BadValue(
                f"{key}={n}: task {task.name!r} has about {len(found)} {kind} prompts; "
                f"give {len(found)} or fewer"
            )
        if fits:
            found.setdefault(prompt, given)
    return list(found.values())


def stream_of(seed: int, name: str) -> Random:
    """The random numbers of one component."""
    return Random(derive(seed, f"skills/{name}"))


def chance(task: Task, asked: list[Given], n: int = 32) -> float:
    """Share of right answers among n random well-formed ones per prompt; repeatable."""
    rng = stream_of(0, f"chance/{task.name}")
    rewards = [task.reward(task.guess(given, rng), given) for given in asked for _ in range(n)]
    return sum(rewards) / len(rewards)


def word(rng: Random, shortest: int, longest: int) -> str:
    """A made-up word of consonants and vowels in turn."""
    n, start = rng.randint(shortest, longest), rng.randrange(2)
    return "".join(rng.choice(("bcdfghjklmnprstvz", "aeiou")[(start + k) % 2]) for k in range(n))


def letters(answer: str) -> list[str]:
    """The letters of an answer without what sets them apart."""
    return [ch for ch in answer if ch not in " ,"]


def well_formed(tasks: Mapping[str, Task], task: str, completion: str) -> bool:
    """Whether a completion looks like an answer to `task`: else it is a format failure."""
    return tasks[task].well_formed(completion)
