"""The command line: `cl run`, `sweep`, `compare`, `tune`, `reproduce`, `list`, `describe`, `check`.

Nothing here imports torch before a run has been found sound: names, keys, types and ranges are
checked against source.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from cl import __version__
from cl.claims import claims, load, summary
from cl.commands import (
    going_on,
    stop_code,
    stop_word,
    sweep_command,
    tune_command,
    writable,
)
from cl.config import REQUIRED, params_of_schema, show, type_name
from cl.errors import ClError, UsageError, unknown
from cl.registry import PREFIXES, READERS, ROOMS, SINGULAR, entries, find, located
from cl.request import Request, recipes, split_arguments
from cl.settings import SCHEMAS
from cl.start import PARAMS as START
from cl.stopping import Terminated, listen

EPILOG = """\b
Examples
  cl run split_digits fetril
  cl run split_digits replay strategy.size=500 train.epochs=20 seed=1
  cl run image_folder fetril stream.path=photos.zip stream.base=5 model=resnet20
  cl run split_digits examples/my_strategy.py:L2Anchor
  cl sweep split_digits naive,replay,fetril seed=0,1,2,3,4
  cl compare runs/split_digits
  cl reproduce fetril_digits
  tensorboard --logdir runs
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cl(debug: bool) -> None:
    """Continual learning: streams of tasks, strategies, stability-plasticity curves."""


@cl.command(name="run")
@click.argument("arguments", nargs=-1, metavar="STREAM STRATEGY[+STRATEGY...] [key=value ...]")
@click.option("--resume", "resume_in", metavar="RUN_DIR", help="Go on where a run stopped.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def run_command(arguments: tuple[str, ...], resume_in: str | None, debug: bool) -> None:
    """Train, evaluate and record; print the table and where the curves are.

    The first argument may be a recipe instead: cl run recipe.yaml [key=value ...]. Every run
    folder holds the recipe that repeats it. All keys: cl describe run, cl describe STREAM,
    cl describe STRATEGY.
    """
    if resume_in is not None:
        if arguments:
            raise UsageError(f"--resume takes the run folder alone, got {' '.join(arguments)} too")
        from cl.runner import resume

        if not resume_in:
            raise UsageError("--resume takes a run folder, got ''")
        result = _interruptible(lambda: resume(Path(resume_in), progress=True))
        out = str(Path(resume_in))
    else:
        request = Request.from_arguments(list(arguments))
        out = request.top["out"]
        writable(Path(out))
        from cl.runner import execute

        result = _interruptible(lambda: execute(request, progress=True))
    from cl.display import show_results

    show_results(result.results, str(result.dir), out)


cl.add_command(sweep_command)
cl.add_command(tune_command)


@cl.command(name="reproduce")
@click.argument("arguments", nargs=-1, metavar="NAME [key=value ...]")
@click.option("--list", "listed", is_flag=True, help="Name the claims.")
@click.option("--all", "every", is_flag=True, help="All claims, one after the other.")
@click.option("--quick", is_flag=True, help="Two seeds, little training: does it run? No verdict.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def reproduce_command(
    arguments: tuple[str, ...], listed: bool, every: bool, quick: bool, debug: bool
) -> None:
    """Run a paper's claim at laptop scale: claim, measured, verdict.

    Its arms run in parallel, one process for each core; the same command goes on where it was
    stopped. Keys: workers=N, out=FOLDER, seeds=5,6,7,8,9 and every key of `cl run`, which then
    holds for all arms and is noted as changed.
    """
    names, keys = split_arguments(list(arguments))
    if listed:
        width = max(map(len, claims()))
        for name, path in claims().items():
            click.echo(f"{name:{width}}  {summary(path)}")
        return
    if every == bool(names) or len(names) > 1:
        raise UsageError("cl reproduce takes the NAME of one claim, --all or --list")
    from cl.ledger import settle

    known = [load(name) for name in (claims() if every else names)]
    writable(Path(keys.get("out", "runs")))
    sys.exit(going_on(lambda: settle(known, keys, quick=quick, every=every)))


@cl.command(name="compare")
@click.argument("folders", nargs=-1, metavar="RUN_OR_FOLDER...")
@click.option("--out", metavar="DIR", help="Where page, tables and pictures go.")
@click.option("--match", metavar="new_task=0.9", help="Compare where new tasks score that much.")
@click.option("--baseline", metavar="NAME", help="What others are compared with.")
@click.option("--within", default=0.01, show_default=True, help="Margin of equivalence.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def compare_command(
    folders: tuple[str, ...],
    out: str | None,
    match: str | None,
    baseline: str | None,
    within: float,
    debug: bool,
) -> None:
    """Compare finished runs: tables with intervals and tests, pictures, one HTML page.

    What can't be compared (unfinished runs, other streams, damaged files) is said and left out.
    """
    from cl.comparison.command import run

    run(folders, out, match, baseline, within)


@cl.command(name="pretrain")
@click.argument("arguments", nargs=-1, metavar="NAME [key=value ...]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def pretrain_command(arguments: tuple[str, ...], debug: bool) -> None:
    """Make a shipped model's weights again: cl pretrain tiny.

    Keys: updates, batch_size, lr, threads, seed, and out=FILE.safetensors for weights of your own;
    without it the installed ones are replaced.
    """
    from cl.pretrain import from_arguments

    from_arguments(*split_arguments(list(arguments)))


@cl.command(name="list")
@click.argument("kind", required=False, metavar="[" + "|".join([*ROOMS, "recipes"]) + "]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def list_command(kind: str | None, debug: bool) -> None:
    """Names with their first line."""
    if kind is not None and kind not in (*ROOMS, "recipes"):
        raise unknown("kind", kind, (*ROOMS, "recipes"))
    if kind == "recipes":
        for name, path in recipes().items():
            first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            click.echo(f"{name}  {first}")
        return
    for k in [kind] if kind else ROOMS:
        found = entries(k)
        width = max((len(name) for name in found), default=0)
        click.echo(click.style(k, bold=True))
        for name, entry in found.items():
            click.echo(f"  {name:{width}}  {entry.summary}")
        for prefix in PREFIXES.get(k, {}):
            if prefix in READERS:
                names = ", ".join(import_module(READERS[prefix]).names(k))
                click.echo(f"  {prefix}:NAME  of the library, NAME one of {names}")
            else:
                click.echo(f"  {prefix}:NAME  {find(k, prefix + ':NAME').summary}")


@cl.command(name="describe")
@click.argument("name")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def describe_command(name: str, debug: bool) -> None:
    """Source, claim, needs, and every parameter of a NAME.

    NAME is anything that `cl list` shows, your own path/to/file.py:Object, or run, train, eval,
    checkpoint, scenario for the keys that every run has.
    """
    if name in SCHEMAS:
        prefix = {"run": "", "scenario": "stream."}.get(name, f"{name}.")
        click.echo(SCHEMAS[name].__doc__.partition("\n")[0])
        _show_params(prefix, params_of_schema(SCHEMAS[name]))
        if name == "run":
            _show_params("model.", START)
            click.echo(
                "\nand train.*, eval.*, checkpoint.* (cl describe train and so on), stream.*,"
            )
            click.echo("strategy.*, model.* (cl describe NAME of the stream, strategy, model)")
        return
    matches = _everywhere(name)
    for k, entry in enumerate(matches):
        if k:
            click.echo()
        click.echo(click.style(f"{entry.name}", bold=True) + f"  ({SINGULAR[entry.kind]})")
        doc = entry.doc.strip().splitlines()
        click.echo("\n".join(_without_parameters(doc)).rstrip())
        prefix = {"streams": "stream.", "strategies": "strategy.", "models": "model."}
        params = entry.params()
        if params:
            click.echo()
            _show_params(prefix.get(entry.kind, ""), params)
        elif entry.kind in prefix:
            click.echo("\nno parameters")
        if entry.kind == "streams":
            click.echo("\nand the scenario operators, stream.* too (cl describe scenario)")
        if entry.kind == "strategies":
            click.echo(f"\nstreams of the domain: {', '.join(entry.domains) or 'any'}")
        if entry.kind == "strategies" and entry.name in claims():
            click.echo(f"\nits claim as an experiment: cl reproduce {entry.name}")
        if entry.path is not None:
            click.echo(f"\nsource file: {entry.path}")


@cl.command(name="check")
@click.argument("name", metavar="FILE_OR_NAME")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def check_command(name: str, debug: bool) -> None:
    """Lint and smoke-test a strategy, stream or model against the plug-in contract."""
    from cl.check import check

    ok = True
    for passed, what, detail in check(name):
        ok &= passed
        mark = click.style("ok  ", fg="green") if passed else click.style("FAIL", fg="red")
        click.echo(f"{mark}  {what}" + (f": {detail}" if detail else ""))
    if not ok:
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 1 a run failed, 2 usage, 130/143 SIGINT/SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that can't show a character
    try:
        listen()
        code = cl.main(arguments, prog_name="cl", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except ClError as error:
        _fail(str(error), error.exit_code, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        sys.exit(0)
    except click.UsageError as error:
        _fail(" ".join(error.format_message().split()), 2, debug)
    except (click.Abort, KeyboardInterrupt, Terminated) as stop:
        _fail(f"{stop_word(stop)} before anything was learned", stop_code(stop), debug)
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1, debug)
    except Exception as error:  # the last boundary: a bug of ours still ends in one line
        _fail(f"internal error, {type(error).__name__}: {error}; --debug shows where", 1, debug)


def _interruptible(run):
    """Run until done; a signal ends it with the command that goes on, exit 130 or 143."""
    try:
        return run()
    except (KeyboardInterrupt, Terminated) as stop:
        folder = getattr(stop, "run_folder", None)
        if folder is None:
            raise
        click.echo(f"cl: {stop_word(stop)}; go on with: cl run --resume {folder}", err=True)
        sys.exit(stop_code(stop))


def _everywhere(name: str) -> list:
    """The plug-ins of any kind called `name`."""
    if ":" in name or name.endswith(".py"):
        return located(name)
    by_kind = {kind: entries(kind) for kind in ROOMS}
    matches = [found[name] for found in by_kind.values() if name in found]
    if not matches:
        known = {n for found in by_kind.values() for n in found} | set(SCHEMAS)
        raise unknown(
            "stream, strategy, model, probe or objective", name, known, " (see `cl list`)"
        )
    return matches


def _without_parameters(lines: list[str]) -> list[str]:
    for k, line in enumerate(lines):
        if line.startswith("Parameters"):
            return lines[:k]
    return lines


def _show_params(prefix: str, params: dict) -> None:
    width = max(len(prefix + name) for name in params)
    for name, param in params.items():
        default = "required" if param.default is REQUIRED else f"default {_shown(param.default)}"
        key = click.style(f"{prefix}{name:{width - len(prefix)}}", bold=True)
        click.echo(f"  {key}  {param.doc}")
        click.echo(f"  {'':{width}}  {type_name(param.annotation)}; {default}")


def _shown(value: object) -> str:
    return "none" if value in ((), []) else show(value)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"cl: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
