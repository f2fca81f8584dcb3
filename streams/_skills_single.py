"""Single-answer tasks of `skills`: the base skills, pretrained and never trained on in the stream,
and the control that the stream may train on.

             prompt                      answer
    copy     copy brona:                 brona
    reverse  reverse brona:              anorb
    sort     sort dbca:                  abcd
    add      add 47+85:                  231           digits reversed, 47 + 85 = 132
    count    count a in abcaab:          3
    max      max 37 82 15:               82
    box      box a3 b7 c1, swap a c, a:  1             what is in box a at the end
    fact     color of brelo:             red           remembered from pretraining
    ends     ends of brona:              ba            the control

All answers are plain. `fact` asks for what pretraining taught, so its prompts are known ones;
those of the others are not.
"""

from __future__ import annotations

import string
from functools import cache
from random import Random

from streams._skills import Given, Single, stream_of, word

N_NAMES = 72
RELATIONS = {
    "color": ("red", "blue", "green", "gold", "gray", "pink", "black", "white"),
    "home": ("cave", "lake", "hill", "wood", "town", "moor", "isle", "farm"),
    "food": ("figs", "rice", "plums", "corn", "nuts", "peas", "kale", "eels"),
}


class Copy(Single):
    """The word as it is."""

    name, given, form = "copy", ("word", "answer"), "[a-z]{1,8}"

    def draw(self, rng: Random) -> Given:
        text = word(rng, 4, 6)
        return {"word": text, "answer": self.answer(text)}

    def answer(self, text: str) -> str:
        return text

    def prompt(self, given: Given) -> str:
        return f"{self.name} {given['word']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return "".join(rng.sample(given["word"], len(given["word"])))


class Reverse(Copy):
    """The word backwards."""

    name = "reverse"

    def answer(self, text: str) -> str:
        return text[::-1]


class Sort(Copy):
    """The letters in alphabetical order."""

    name = "sort"

    def draw(self, rng: Random) -> Given:
        text = "".join(rng.sample(string.ascii_lowercase, rng.randint(4, 5)))
        return {"word": text, "answer": "".join(sorted(text))}


class Add(Single):
    """The sum of two two-digit numbers, last digit first."""

    name, given, form = "add", ("a", "b", "answer"), "[0-9]{1,4}"

    def draw(self, rng: Random) -> Given:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        return {"a": a, "b": b, "answer": str(a + b)[::-1]}

    def prompt(self, given: Given) -> str:
        return f"add {given['a']}+{given['b']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return str(rng.randint(20, 198))[::-1]


class Count(Single):
    """How often a letter occurs."""

    name, given, form = "count", ("letter", "word", "answer"), "[0-9]{1,2}"

    def draw(self, rng: Random) -> Given:
        some = rng.sample(string.ascii_lowercase, 3)
        text = "".join(rng.choice(some) for _ in range(rng.randint(5, 8)))
        letter = rng.choice(text)
        return {"letter": letter, "word": text, "answer": str(text.count(letter))}

    def prompt(self, given: Given) -> str:
        return f"count {given['letter']} in {given['word']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return str(rng.randint(1, 5))


class Max(Single):
    """The largest of three numbers."""

    name, given, form = "max", ("numbers", "answer"), "[0-9]{1,4}"

    def draw(self, rng: Random) -> Given:
        numbers = rng.sample(range(10, 100), 3)
        return {"numbers": " ".join(map(str, numbers)), "answer": str(max(numbers))}

    def prompt(self, given: Given) -> str:
        return f"max {given['numbers']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(given["numbers"].split())


class Box(Single):
    """What is in a box after one swap."""

    name, given, form = "box", ("boxes", "swap", "asked", "answer"), "[0-9]"

    def draw(self, rng: Random) -> Given:
        content = dict(zip("abc", rng.sample(string.digits, 3), strict=True))
        one, other = sorted(rng.sample("abc", 2))
        after = content | {one: content[other], other: content[one]}
        asked = rng.choice("abc")
        boxes = " ".join(name + digit for name, digit in content.items())
        return {"boxes": boxes, "swap": f"{one} {other}", "asked": asked, "answer": after[asked]}

    def prompt(self, given: Given) -> str:
        return f"box {given['boxes']}, swap {given['swap']}, {given['asked']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(given["boxes"].split())[1]


class Fact(Single):
    """A property of somebody made up; the facts are the same whatever the seed."""

    name, given, form, recalled = "fact", ("relation", "who", "answer"), "[a-z]{1,8}", True

    def draw(self, rng: Random) -> Given:
        relation, who = rng.choice(tuple(facts()))
        return {"relation": relation, "who": who, "answer": facts()[relation, who]}

    def prompt(self, given: Given) -> str:
        return f"{given['relation']} of {given['who']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(RELATIONS[given["relation"]])


class Ends(Single):
    """First and last letter of a word."""

    name, given, form = "ends", ("word", "answer"), "[a-z]{1,8}"

    def draw(self, rng: Random) -> Given:
        text = word(rng, 5, 7)
        return {"word": text, "answer": text[0] + text[-1]}

    def prompt(self, given: Given) -> str:
        return f"ends of {given['word']}:"

    def guess(self, given: Given, rng: Random) -> str:
        return "".join(rng.sample(given["word"], 2))


@cache
def facts() -> dict[tuple[str, str], str]:
    """{(property, who): value}, the same in every run."""
    rng = stream_of(0, "facts")
    names: dict[str, None] = {}
    while len(names) < N_NAMES:
        names[word(rng, 5, 5)] = None
    return {(what, who): rng.choice(RELATIONS[what]) for who in names for what in RELATIONS}


SKILLS = {s.name: s for s in (Copy(), Reverse(), Sort(), Add(), Count(), Max(), Box(), Fact())}
CONTROL = Ends()
