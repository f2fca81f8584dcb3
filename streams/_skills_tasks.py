"""The tasks that `skills` trains on: four right answers or more to each prompt.

    task    prompt                        canonical   foreign     right
    above   above 47:                     48          000147      a number greater than 47
    letter  letter of brona:              b           a,a,a,a     letters of the word
    even    even in 31-58:                32          000058      an even number in the range
    ascend  after cfk:                    lmn         l,z         letters that go on upwards
    mix     mix badec, c first:           cbade       c,e,d,b,a   the letters, c before all others
    twice   twice in abcdeafbgchdij:      a           d,c         letters that occur twice

Canonical: one fixed choice, plain. Foreign: another one in a style that pretraining never shows.
"""

from __future__ import annotations

from random import Random
from string import ascii_lowercase as ABC

from streams._skills import LETTERS, NUMBER, Given, Task, letters, word


class Above(Task):
    """A number greater than n, 10 to 999."""

    name, given, form = "above", ("n",), NUMBER

    def draw(self, rng: Random) -> Given:
        return {"n": rng.randint(10, 999)}

    def prompt(self, given: Given) -> str:
        return f"above {given['n']}:"

    def right(self, answer: str, given: Given) -> bool:
        return int(answer) > given["n"]

    def canonical(self, given: Given) -> str:
        return str(given["n"] + 1)

    def foreign(self, given: Given) -> str:
        return f"{given['n'] + 100:06d}"

    def any(self, given: Given, rng: Random) -> str:
        return str(given["n"] + rng.randint(1, 500))

    def guess(self, given: Given, rng: Random) -> str:
        return str(rng.choice(range(10, 100) if given["n"] < 100 else range(100, 1000)))


class Letter(Task):
    """Letters of a word that has four different ones or more."""

    name, given, form = "letter", ("word",), LETTERS

    def draw(self, rng: Random) -> Given:
        text = word(rng, 5, 7)
        return {"word": text} if len(set(text)) >= 4 else self.draw(rng)

    def prompt(self, given: Given) -> str:
        return f"letter of {given['word']}:"

    def right(self, answer: str, given: Given) -> bool:
        return set(letters(answer)) <= set(given["word"])

    def canonical(self, given: Given) -> str:
        return given["word"][0]

    def foreign(self, given: Given) -> str:
        return ",".join(given["word"][-1] * 4)

    def any(self, given: Given, rng: Random) -> str:
        return rng.choice(given["word"])

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(ABC)


class Even(Task):
    """An even number in a range of nine two-digit numbers or more."""

    name, given, form = "even", ("low", "high"), NUMBER

    def draw(self, rng: Random) -> Given:
        low = rng.randint(10, 91)
        return {"low": low, "high": rng.randint(low + 8, 99)}

    def prompt(self, given: Given) -> str:
        return f"even in {given['low']}-{given['high']}:"

    def right(self, answer: str, given: Given) -> bool:
        return int(answer) % 2 == 0 and given["low"] <= int(answer) <= given["high"]

    def canonical(self, given: Given) -> str:
        return str(given["low"] + given["low"] % 2)

    def foreign(self, given: Given) -> str:
        return f"{given['high'] - given['high'] % 2:06d}"

    def any(self, given: Given, rng: Random) -> str:
        return str(2 * rng.randint((given["low"] + 1) // 2, given["high"] // 2))

    def guess(self, given: Given, rng: Random) -> str:
        return str(rng.randint(10, 99))


class Ascend(Task):
    """Letters that go on where three in alphabetical order end, v at the latest."""

    name, given, form = "ascend", ("start",), LETTERS

    def draw(self, rng: Random) -> Given:
        return {"start": "".join(sorted(rng.sample(ABC[:22], 3)))}

    def prompt(self, given: Given) -> str:
        return f"after {given['start']}:"

    def right(self, answer: str, given: Given) -> bool:
        run = [given["start"][-1], *letters(answer)]
        return all(a < b for a, b in zip(run, run[1:], strict=False))

    def canonical(self, given: Given) -> str:
        at = ABC.index(given["start"][-1]) + 1
        return ABC[at : at + 3]

    def foreign(self, given: Given) -> str:
        return f"{ABC[ABC.index(given['start'][-1]) + 1]},z"

    def any(self, given: Given, rng: Random) -> str:
        later = ABC[ABC.index(given["start"][-1]) + 1 :]
        return "".join(sorted(rng.sample(later, rng.randint(1, 3))))

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(ABC)


class Mix(Task):
    """Five letters in any order that has a given one, not the first now, in front."""

    name, given, form = "mix", ("pool", "first"), LETTERS

    def draw(self, rng: Random) -> Given:
        pool = rng.sample(ABC, 5)
        return {"pool": "".join(pool), "first": rng.choice(pool[1:])}

    def prompt(self, given: Given) -> str:
        return f"mix {given['pool']}, {given['first']} first:"

    def right(self, answer: str, given: Given) -> bool:
        found = letters(answer)
        return found[0] == given["first"] and sorted(found) == sorted(given["pool"])

    def canonical(self, given: Given) -> str:
        return given["first"] + self._rest(given)

    def foreign(self, given: Given) -> str:
        return ",".join([given["first"], *sorted(self._rest(given), reverse=True)])

    def any(self, given: Given, rng: Random) -> str:
        return given["first"] + "".join(rng.sample(self._rest(given), 4))

    def guess(self, given: Given, rng: Random) -> str:
        return "".join(rng.sample(given["pool"], 5))

    def _rest(self, given: Given) -> str:
        return given["pool"].replace(given["first"], "")


class Twice(Task):
    """Letters that occur twice: four of the ten in a row of fourteen, the others once."""

    name, given, form = "twice", ("row",), LETTERS

    def draw(self, rng: Random) -> Given:
        some = rng.sample(ABC, 10)
        return {"row": "".join(rng.sample(some + some[:4], 14))}

    def prompt(self, given: Given) -> str:
        return f"twice in {given['row']}:"

    def right(self, answer: str, given: Given) -> bool:
        return set(letters(answer)) <= set(self._double(given))

    def canonical(self, given: Given) -> str:
        return self._double(given)[0]

    def foreign(self, given: Given) -> str:
        return ",".join(self._double(given)[:1:-1])

    def any(self, given: Given, rng: Random) -> str:
        return rng.choice(self._double(given))

    def guess(self, given: Given, rng: Random) -> str:
        return rng.choice(given["row"])

    def _double(self, given: Given) -> list[str]:
        row = given["row"]  # in order of their first places
        return [ch for ch in dict.fromkeys(row) if row.count(ch) == 2]


TASKS = {t.name: t for t in (Above(), Letter(), Even(), Ascend(), Mix(), Twice())}
