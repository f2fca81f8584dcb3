"""Signals: a run that is asked to end does so between two updates, when it has made a checkpoint.

`listen` is for programs (`cl run` and the like); a library leaves signals to its caller. Within
`patience` the first SIGINT or SIGTERM is only noted, and whoever makes checkpoints asks `asked`;
the second one ends the program at once, as does the first outside of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(BaseException):
    """SIGTERM arrived."""


class _Noted:
    patient = False
    signal: int | None = None


def listen() -> None:
    """Take SIGTERM, and SIGINT unless it is ignored, as where a shell runs a background job."""
    signal.signal(signal.SIGTERM, _arrived)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _arrived)


@contextmanager
def patience() -> Iterator[None]:
    """Go on after a first signal, which `asked` then tells of."""
    _Noted.patient, _Noted.signal = True, None
    try:
        yield
    finally:
        _Noted.patient, _Noted.signal = False, None


def asked() -> BaseException | None:
    """What to raise if the program has been asked to end."""
    return None if _Noted.signal is None else stop(_Noted.signal)


def stop(number: int) -> BaseException:
    """The exception that a signal ends a program with."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _arrived(number: int, frame) -> None:
    if not _Noted.patient or _Noted.signal is not None:
        raise stop(number)
    _Noted.signal = number
    text = f"cl: {WORDS[number]}: ends with a checkpoint after this update; again: at once\n"
    os.write(2, text.encode())  # print may be in the middle of something
