"""`cl sweep`: strategies x seeds x any keys, of which what has not finished is run, many at a time.

Commas separate alternatives, semicolons what is in a list. A key `strategy.NAME.key` varies those
strategies alone that NAME is a part of; any other key holds for all. A run is left out if its
folder says that it has finished, of the same request and sources (cl/identity.py, without torch);
one that was stopped is gone on with. What can't work is refused before anything is run.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cl.config import Range, parse, show
from cl.display import Many, console
from cl.errors import BadValue, ClError, RunError, UnknownName, UsageError
from cl.fleet import Fleet, Outcome, Workers, fleet
from cl.folder import label, stream_folder
from cl.identity import finished, identity, sources_of
from cl.registry import find
from cl.request import Request, flatten, read_recipe, split_arguments

SEED = Annotated[int, Range(min=0)]
WORKERS = {"workers": Annotated[int, Range(min=1)] | None, "backend": str, "cluster": str | None}
SINGLE = ("out", "probes")  # keys without alternatives
TAKES = "STREAM STRATEGY,STRATEGY,... [key=v1,v2 ...] or recipe.yaml [key=v1,v2 ...]"


@dataclass(frozen=True)
class Planned:
    """One run of many: what is asked for, its name for people, and how it is known."""

    request: Request
    arm: str
    known: tuple[str, str]  # identity and hash of the sources

    @property
    def name(self) -> str:
        """The arm and the seed."""
        return f"{self.arm} seed {self.request.top['seed']}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What a finished run is found by."""
        return self.request.top["out"], *self.known


@dataclass(frozen=True)
class Done:
    """What became of a planned run. folder: None if it failed; ran: it was not there before."""

    planned: Planned
    folder: Path | None
    ran: bool
    outcome: Outcome = Outcome()


class Watch:
    """Told of what happens, from any thread."""

    def begin(self, left: int, there: int, workers: int) -> None:
        """So many runs are left to be run, by so many workers."""

    def ended(self, done: Done) -> None:
        """A run has ended."""

    def running(self, names: list[str]) -> None:
        """What is being run."""

    def close(self) -> None:
        """Nothing more will happen."""


def sweep(stream: str, strategies: str | Sequence[str], /, **settings: Any) -> list:
    """Run strategies x seeds x any keys, as `cl sweep` does; `cl.Result`s in the order planned.

    A list or tuple of values are alternatives: `seed=[0, 1, 2], train={"lr": [0.01, 0.1]}`.
    `workers`, `backend`, `cluster` as on the command line; `progress=True` shows it. Raises
    RunError when everything else is done, if a run has failed.
    """
    from cl.runner import load

    progress, keys = settings.pop("progress", False), flatten(settings)
    workers = take_workers(keys)
    chosen = strategies.split(",") if isinstance(strategies, str) else list(strategies)
    done = carry_out(plan(stream, chosen, keys), workers, Shown() if progress else Watch())
    failed = [f"{d.planned.name}: {d.outcome.error}" for d in done if d.folder is None]
    if failed:
        raise RunError(f"{len(failed)} of {len(done)} runs failed: {'; '.join(failed)}")
    return [load(d.folder) for d in done]


def from_arguments(arguments: list[str]) -> tuple[list[Planned], Workers]:
    """What a command line asks for. Raises ClError, before anything is run."""
    names, keys = split_arguments(arguments)
    workers = take_workers(keys)
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        recipe = read_recipe(Path(names[0]))
        return plan("", [recipe["strategy"]], keys, recipe), workers
    if len(names) != 2:
        shown = f": {' '.join(names)}" if names else ""
        raise BadValue(
            f"cl sweep takes {TAKES}, got {len(names)} name{'s' * (len(names) != 1)}{shown}"
        )
    return plan(names[0], names[1].split(","), keys), workers


def take_workers(keys: dict[str, Any]) -> Workers:
    """The keys that say who works, taken out of the others."""
    given = {key: keys.pop(key) for key in WORKERS if key in keys}
    parsed = {key: parse(key, value, WORKERS[key]) for key, value in given.items()}
    if "workers" in parsed:
        parsed["n"] = parsed.pop("workers")
    return Workers(**parsed)


def plan(
    stream: str, strategies: list[str], keys: dict[str, Any], recipe: dict[str, Any] | None = None
) -> list[Planned]:
    """Every run of a sweep, checked as far as it can be without torch. Raises ClError.

    keys: text with commas between alternatives, or a list of them. recipe: what `read_recipe` has
    read, in place of stream and strategies.
    """
    strategies = _different("strategy", [name.strip() for name in strategies])
    choices = {key: alternatives(key, value) for key, value in keys.items()}
    seeds = _different("seed", [parse("seed", v, SEED) for v in choices.pop("seed", [])])
    planned, stamps = [], {}
    for strategy, own in concerning(choices, strategies).items():
        varied = [key for key, values in own.items() if len(values) > 1]
        for values in itertools.product(*own.values()):
            settings = dict(zip(own, values, strict=True))
            request = _request(stream, strategy, settings, recipe, len(strategies) > 1)
            arm = ",".join(
                [label(strategy), *(f"{_short(k)}={_shown(settings[k])}" for k in varied)]
            )
            planned += _seeded(request, arm, seeds, stamps)
    seen: dict[str, Planned] = {}
    for p in planned:
        twin = seen.setdefault(p.known[0], p)
        if twin is not p:
            raise BadValue(f"{twin.name} and {p.name} are the same run")
    return planned


def alternatives(key: str, value: Any) -> list[Any]:
    """What a key is varied over."""
    if key in SINGLE:
        return [value]
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if "," in value else [value]
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not found or (len(found) > 1 and "" in found):
        raise BadValue(f"{key}={show(value)} lacks a value between its commas")
    return _different(key, found)


def _different(key: str, values: list) -> list:
    for value in values:
        if values.count(value) > 1:
            raise BadValue(f"{key} {_shown(value)} is given twice")
    return values


def concerning(keys: dict[str, Any], strategies: list[str]) -> dict[str, dict[str, Any]]:
    """{strategy: the keys that are for it}: `strategy.NAME.key` is for those with NAME alone."""
    slugs = {s: [find("strategies", part).slug for part in s.split("+")] for s in strategies}
    names = {slug for own in slugs.values() for slug in own}

    def owner(key: str) -> str | None:
        first, name, rest, *_ = [*key.split(".", 2), "", ""]
        return name if first == "strategy" and rest and name in names else None

    owners = {key: owner(key) for key in keys}
    return {
        s: {k: v for k, v in keys.items() if owners[k] is None or owners[k] in own}
        for s, own in slugs.items()
    }


def _request(stream: str, strategy: str, settings: dict, recipe: dict | None, several: bool):
    if recipe is not None:
        return Request.of_recipe(recipe, settings)
    try:
        return Request.of(stream, strategy, settings)
    except UnknownName as error:
        lost = [key for key in settings if key.startswith("strategy.") and key.count(".") == 1]
        if not several or not any(f"{key}:" in str(error) for key in lost):
            raise
        name = lost[0].partition(".")[2]
        raise UnknownName(
            f"{error}; strategy.NAME.{name} is for the strategy NAME alone"
        ) from error


def _seeded(request: Request, arm: str, seeds: list[int], stamps: dict) -> list[Planned]:
    """The same with every seed, or its own one."""
    out = str(Path(request.top["out"]).absolute())  # workers may be anywhere
    sources = sources_of(request)
    if sources is None:
        raise BadValue(
            f"{arm}: what is defined in the running program can't be swept over; put it into a "
            "file, path/to/file.py:Object"
        )
    found = []
    for seed in seeds or [request.top["seed"]]:
        one = replace(request, top={**request.top, "seed": seed, "out": out})
        found.append(Planned(one, arm, (identity(one, stamps), sources)))
    return found


def _short(key: str) -> str:
    """A key as folder names have it."""
    return key.rpartition(".")[2] if key.startswith("strategy.") else key


def _shown(value: Any) -> str:
    return show(value).replace(",", ";")


# -- carrying out -----------------------------------------------------------------------------


def carry_out(
    planned: list[Planned],
    workers: Workers,
    watch: Watch,
    *,
    home: Path | None = None,
    check: bool = True,
) -> list[Done]:
    """Run what has not finished; what became of each, in the order given.

    home: a folder that all workers reach, `out` if not given; check: put every arm together once
    before anything is run. Raises UsageError for an arm that can't work.
    """
    there = _there(planned)
    done = {k: Done(p, there[p.key], False) for k, p in enumerate(planned) if p.key in there}
    left = _shuffled({k: p for k, p in enumerate(planned) if k not in done})
    if left:
        home = home or Path(planned[0].request.top["out"])
        home.mkdir(parents=True, exist_ok=True)
        threads = max(p.request.top["threads"] for p in left.values())
        with fleet(replace(workers, threads=threads), home) as team:
            watch.begin(len(left), len(done), min(team.n, len(left)))
            try:
                if check:
                    _check(list(left.values()), team)
                done |= _run_all(left, team, watch)
            finally:
                watch.close()
    return [done[k] for k in range(len(planned))]


def _run_all(left: dict[int, Planned], team: Fleet, watch: Watch) -> dict[int, Done]:
    done, places = {}, list(left)

    def ended(i: int, outcome: Outcome) -> None:
        found = outcome.value or {}
        folder = Path(found["folder"]) if found else None
        k = places[i]
        done[k] = Done(left[k], folder, found.get("ran", True), outcome)
        watch.ended(done[k])

    def running(found: list[int]) -> None:
        watch.running([left[places[i]].name for i in found])

    team.carry_out(_run, [p.request for p in left.values()], ended, running)
    return done


def _there(planned: list[Planned]) -> dict[tuple[str, str, str], Path]:
    """Folders of runs that have finished, by key."""
    places = {(p.request.top["out"], p.request.stream_slug) for p in planned}
    return {
        (out, *known): folder
        for out, slug in places
        for known, folder in finished(Path(out), slug).items()
    }


def _shuffled(planned: dict[int, Planned]) -> dict[int, Planned]:
    """Seed by seed, or a stopped sweep has all seeds of some arms alone; shuffled within a seed, or
    the noise of the machine would follow the arms."""
    seeds = list(dict.fromkeys(p.request.top["seed"] for p in planned.values()))
    order = list(planned)
    random.Random(0).shuffle(order)
    order.sort(key=lambda k: seeds.index(planned[k].request.top["seed"]))
    return {k: planned[k] for k in order}


def _check(left: list[Planned], team: Fleet) -> None:
    """Put one run of every arm together. Every worker gets a share, to import what it needs."""
    arms = list({p.arm: p for p in left}.values())
    arms.sort(key=lambda p: repr(p.request.stream_changes()))  # a share builds few streams
    size = -(-len(arms) // team.n)
    shares = [arms[k * size : (k + 1) * size] for k in range(team.n)]
    asked = [[(p.arm, p.request) for p in share] for share in shares]
    for outcome in team.carry_out(_look_at, asked):
        if outcome.error is not None:
            raise (UsageError if outcome.exit_code == 2 else RunError)(outcome.error)


def _look_at(arms: list[tuple[str, Request]]) -> None:
    """In a worker: whether runs can begin."""
    from cl.runner import check

    streams: dict[str, tuple] = {}
    for name, request in arms:
        try:
            check(request, streams)
        except ClError as error:
            raise type(error)(f"{name}: {error}") from error


def _run(request: Request) -> dict[str, Any]:
    """In a worker: one run."""
    from cl.runner import take

    result, there = take(request)
    return {"folder": str(result.dir), "ran": not there}


def report(done: list[Done]) -> int:
    """Print what became of a sweep; the exit code, 1 if a run has failed."""
    out = console()
    failed = [d for d in done if d.folder is None]
    before = sum(d.folder is not None and not d.ran for d in done)
    counts = {"run now": len(done) - before - len(failed), "finished before": before}
    counts |= {"failed": len(failed)} if failed else {}
    total = f"{len(done)} run{'s' * (len(done) != 1)}"
    out.print(f"{total}: {', '.join(f'{n} {what}' for what, n in counts.items() if n)}")
    for d in failed:
        log = f"; log {d.outcome.log}" if d.outcome.log else ""
        line = f"failed  {d.planned.name}: {d.outcome.error}{log}"
        out.print(line, style="red", markup=False, soft_wrap=True)
    request = done[0].planned.request
    runs = stream_folder(Path(request.top["out"]), request.stream_slug)
    out.print(f"\ncompare  cl compare {near(runs)}", soft_wrap=True)
    out.print(f"curves   tensorboard --logdir {near(runs.parent)}", soft_wrap=True)
    return 1 if failed else 0


def near(folder: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


# -- on the terminal --------------------------------------------------------------------------


class Shown(Watch):
    """Progress on stderr."""

    def begin(self, left: int, there: int, workers: int) -> None:
        self.many = Many(left, workers)
        before = f", {there} have finished before" if there else ""
        by = f"{workers} worker{'s' * (workers != 1)}"
        self.many.out.print(f"{left} run{'s' * (left != 1)} by {by}{before}", soft_wrap=True)

    def ended(self, done: Done) -> None:
        self.many.ended(done.planned.name, done.outcome.seconds, done.outcome.error)

    def running(self, names: list[str]) -> None:
        self.many.running(names)

    def close(self) -> None:
        self.many.close()
