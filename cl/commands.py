"""Commands that make many runs: `cl sweep` and `cl tune`; and how any command is stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from cl.errors import UsageError
from cl.stopping import Terminated

T = TypeVar("T")


@click.command(name="sweep")
@click.argument("arguments", nargs=-1, metavar="STREAM STRATEGY,STRATEGY,... [key=v1,v2 ...]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def sweep_command(arguments: tuple[str, ...], debug: bool) -> None:
    """Strategies x seeds x any keys, of which what has not finished is run.

    Commas separate alternatives (seed=0,1,2 train.lr=0.01,0.1), semicolons what is in a list;
    strategy.NAME.key=v1,v2 varies the strategy NAME alone. The first argument may be a recipe
    instead. Keys of its own: workers=N, backend=loky|ray|dask, cluster=ADDRESS; all others are
    those of cl run. The same command goes on where it was stopped.
    """
    from cl import sweeps

    planned, workers = sweeps.from_arguments(list(arguments))
    for out in {p.request.top["out"] for p in planned}:
        writable(Path(out))
    done = going_on(lambda: sweeps.carry_out(planned, workers, sweeps.Shown()))
    sys.exit(sweeps.report(done))


@click.command(name="tune")
@click.argument("arguments", nargs=-1, metavar="STREAM STRATEGY[,STRATEGY...] key=v1,v2 ...")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def tune_command(arguments: tuple[str, ...], debug: bool) -> None:
    """Choose settings on validation scores, with equal trials per strategy; best=true takes them.

    protocol=sibling_stream (the default) tries them on other seeds than those to be reported,
    seed=100,101; first_experience on the stream's beginning, first=N experiences; whole_stream on
    the reported stream itself, which is privileged. Keys with commas are chosen, others hold for
    all trials; strategy.NAME.key is for the strategy NAME alone. workers, backend and cluster are
    those of cl sweep.
    """
    from cl import tuning

    search, workers = tuning.from_arguments(list(arguments))
    writable(search.out)
    done = going_on(lambda: search.run(workers, tuning.Shown()))
    sys.exit(tuning.report(search, done))


def going_on(call: Callable[[], T]) -> T:
    """Call; if a signal stops it, say that the same command goes on, and exit 130 or 143."""
    try:
        return call()
    except (KeyboardInterrupt, Terminated) as stop:
        click.echo(f"cl: {stop_word(stop)}; the same command goes on from here", err=True)
        sys.exit(stop_code(stop))


def stop_word(stop: BaseException) -> str:
    """What ended the program."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


def stop_code(stop: BaseException) -> int:
    """128 + the signal's number."""
    return 143 if isinstance(stop, Terminated) else 130


def writable(out: Path) -> None:
    """Refuse an `out` that can't be written, before anything is built."""
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"out={out}: {existing} is a file; choose another out=")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"out={out} can't be written: no permission in {existing}")
