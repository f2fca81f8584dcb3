"""What can go wrong, as one tree.

    ClError
      UsageError          the request can't be carried out as written      exit code 2
        UnknownName         a name or key that does not exist
        BadValue            wrong type, out of range, impossible combination
          MissingPackage      what is asked for needs a package that is not installed
        DataError           a path, folder, archive or image that can't be used
        ContractError       a plug-in that breaks the plug-in contract
      RunError            a run that had started and could not go on        exit code 1
        NonFinite           loss or weights became nan or inf
        ShapeMismatch       a tensor of another shape than promised
      NotKept            what goes on inside an experience can't be put into a checkpoint

Every message is one line: what was given, what is allowed, the nearest valid choice.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from traceback import walk_tb


class ClError(Exception):
    """Base of every error that `cl` raises on purpose."""

    exit_code = 1


class UsageError(ClError):
    """The request can't be carried out as written; nothing has been trained."""

    exit_code = 2


class UnknownName(UsageError):
    """A name or key that does not exist."""


class BadValue(UsageError):
    """A value of the wrong type or out of range, or an impossible combination."""


class MissingPackage(BadValue):
    """What is asked for needs a package that is not installed."""


class DataError(UsageError):
    """A path, folder, archive or image that can't be used."""


class ContractError(UsageError):
    """A plug-in that breaks the plug-in contract."""


class RunError(ClError):
    """A run that had started and could not go on."""


class NonFinite(RunError):
    """Loss or weights became nan or inf."""


class ShapeMismatch(RunError):
    """A tensor of another shape than promised."""


class NotKept(ClError):
    """What goes on inside an experience can't be put into a checkpoint; its end can."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `choices`, or the empty string."""
    close = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(what: str, name: str, choices: Iterable[str], hint: str = "") -> UnknownName:
    """An UnknownName that lists up to twenty valid choices and the nearest one."""
    choices = sorted(choices)
    shown = ", ".join(choices[:20]) + (f", … ({len(choices)} in all)" if len(choices) > 20 else "")
    allowed = f"; allowed: {shown}" if choices else ""
    return UnknownName(f"no {what} {name!r}{nearest(name, choices)}{allowed}{hint}")


def place(error: Exception) -> str:
    """Where an error was raised: the deepest frame outside installed libraries, if there is one."""
    frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    own = [found for found in frames if "site-packages" not in found[0].co_filename]
    code, line = (own or frames)[-1]
    return f"{code.co_qualname}, {code.co_filename}:{line}"
