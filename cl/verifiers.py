"""Verifiers that streams of text share, and those of a user's file.

    exact    the answer, letter by letter; spaces around it don't matter
    numeric  the last number of the completion is that of the answer: 1,000 = 1000.0 = $1000
    marked   the number after the first `####` is that of the answer (GSM8K)

All take TRL's arguments and the column `answer`; any text is scored 0.0 or 1.0.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from cl.errors import BadValue, ContractError, DataError, nearest

_NUMBER = r"-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBERS = re.compile(_NUMBER)
_MARKED = re.compile(r"####\s*(" + _NUMBER + ")")


def exact(prompts: list[str], completions: list[str], *, answer: list[str], **_) -> list[float]:
    """1.0 where the completion is the answer."""
    return [float(c.strip() == a.strip()) for c, a in zip(completions, answer, strict=True)]


def numeric(prompts: list[str], completions: list[str], *, answer: list[str], **_) -> list[float]:
    """1.0 where the last number is the answer's."""
    return _equal(last_number, completions, answer)


def marked(prompts: list[str], completions: list[str], *, answer: list[str], **_) -> list[float]:
    """1.0 where the number after `####` is the answer's."""
    return _equal(marked_number, completions, answer)


def last_number(text: str) -> Decimal | None:
    """The last number in a text."""
    found = _NUMBERS.findall(text)
    return _value(found[-1]) if found else None


def marked_number(text: str) -> Decimal | None:
    """The number after the first `####` that has one."""
    found = _MARKED.search(text)
    return _value(found[1]) if found else None


# what a completion must hold to be an answer at all
FORMATS: dict[str, Callable[[str], bool]] = {
    "exact": lambda text: bool(text.strip()),
    "numeric": lambda text: last_number(text) is not None,
    "marked": lambda text: marked_number(text) is not None,
}
VERIFIERS = {"exact": exact, "numeric": numeric, "marked": marked}


def user_verifier(name: str) -> Callable[..., list[float | None]]:
    """The function `path/to/file.py:function`. Raises BadValue, DataError or ContractError."""
    location, colon, attr = name.rpartition(":")
    path = Path(location).expanduser()
    if not colon or path.suffix != ".py":
        near = nearest(Path(name).name, VERIFIERS)
        raise BadValue(
            f"stream.verifier must be {', '.join(VERIFIERS)} or path/to/file.py:function, "
            f"got {Path(name).name!r}{near}"
        )
    if not path.is_file():
        raise DataError(f"stream.verifier: no file {location}")
    module = f"cl_verifier_{path.stem}"
    spec = importlib.util.spec_from_file_location(module, path)
    loaded = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:  # a user's code
        del sys.modules[module]
        raise ContractError(f"stream.verifier: {path}: {type(error).__name__}: {error}") from error
    found = getattr(loaded, attr, None)
    if not callable(found):
        names = [n for n, v in vars(loaded).items() if callable(v) and not n.startswith("_")]
        raise BadValue(
            f"stream.verifier: {path} has no function {attr!r}{nearest(attr, names)}; it has "
            f"{', '.join(names) or 'none'}"
        )
    return found


def _equal(read, completions: list[str], answers: list[str]) -> list[float]:
    pairs = [(read(c), last_number(a)) for c, a in zip(completions, answers, strict=True)]
    return [float(found is not None and found == wanted) for found, wanted in pairs]


def _value(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("$", ""))
