"""`cl tune`: settings chosen on validation scores, with an equal number of trials per strategy.

    sibling_stream    the same stream with other data or another order: seeds that are not reported
    first_experience  the reported stream's beginning alone (`first` experiences), fixed afterwards
    whole_stream      the reported stream itself; privileged, as nobody sees a stream twice

A trial is a run in `<out>/.tune`; its score is the mean of V's last row over the evals that were
taught, averaged over seeds. Test scores are never read. The best trial of a strategy, all
trials and the protocol are written to `<out>/best/` (cl/tuned.py), where `best=true` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text

from cl.config import Range, parse, show
from cl.display import console
from cl.errors import BadValue, NonFinite, RunError, unknown
from cl.fleet import Workers
from cl.folder import label, read_results
from cl.registry import find
from cl.request import Request, flatten, split_arguments
from cl.sweeps import (
    Done,
    Planned,
    Shown,
    Watch,
    alternatives,
    carry_out,
    concerning,
    near,
    plan,
    take_workers,
)
from cl.tuned import conditions, keep

PROTOCOLS = {  # the seeds that are tuned on if none are given
    "sibling_stream": (100, 101),
    "first_experience": (0,),
    "whole_stream": (0,),
}
SCORE = "mean of V's last row"
TUNED = ("strategy", "train", "objective")  # prefixes of the keys that settings are chosen of
FIRST = Annotated[int, Range(min=1)]


@dataclass(frozen=True)
class Tuned:
    """What came out for a strategy: its best settings, all trials, and the file they are in."""

    strategy: str
    best: dict[str, Any]
    trials: list[dict[str, Any]]
    path: Path


def tune(stream: str, strategies: str | Sequence[str] | Mapping, /, **settings: Any) -> list[Tuned]:
    """Choose settings as `cl tune` does, and write them down. Raises RunError if a trial fails.

    strategies: names, or {name: {key: values}} with a grid for each; settings: any key, a list of
    values where it is to be chosen, and `seed protocol first workers backend cluster progress`.
    """
    progress, keys = settings.pop("progress", False), flatten(settings)
    workers = take_workers(keys)
    grids = strategies if isinstance(strategies, Mapping) else _grids(strategies, keys)
    search = Search.of(stream, {s: {**keys, **flatten(g)} for s, g in grids.items()})
    found, failed = search.chosen(search.run(workers, Shown() if progress else Watch()))
    if failed:
        raise RunError("; ".join(failed))
    return found


def from_arguments(arguments: list[str]) -> tuple[Search, Workers]:
    """What a command line asks for. Raises ClError, before anything is run."""
    names, keys = split_arguments(arguments)
    if len(names) != 2:
        shown = f": {' '.join(names)}" if names else ""
        raise BadValue(
            "cl tune takes STREAM STRATEGY[,STRATEGY...] key=v1,v2 [protocol=...], got "
            f"{len(names)} name{'s' * (len(names) != 1)}{shown}"
        )
    workers = take_workers(keys)
    return Search.of(names[0], _grids(names[1], keys)), workers


def _grids(strategies: str | Sequence[str], keys: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{strategy: the keys that are for it}."""
    names = strategies.split(",") if isinstance(strategies, str) else list(strategies)
    return concerning(keys, [name.strip() for name in names])


@dataclass(frozen=True)
class Search:
    """Trials by strategy; a trial is a planned run for every seed."""

    protocol: str
    first: int | None
    trials: dict[str, list[list[Planned]]]

    @staticmethod
    def of(stream: str, grids: dict[str, dict[str, Any]]) -> Search:
        """Plan the trials. Raises ClError for what can't be tuned, or not in this way."""
        trials = {}
        for strategy, keys in grids.items():
            keys = dict(keys)
            protocol, first = _protocol(keys)
            _check(keys, protocol, stream)
            keys.setdefault("seed", list(PROTOCOLS[protocol]))
            keys["out"] = str(Path(keys.get("out", "runs")) / ".tune")
            if first is not None:
                keys["stream.first"] = first
            by_arm: dict[str, list[Planned]] = {}
            for p in plan(stream, [strategy], keys):
                by_arm.setdefault(p.arm, []).append(p)
            trials[strategy] = list(by_arm.values())
        _check_equal({s: len(rows) for s, rows in trials.items()})
        return Search(protocol, first, trials)

    @property
    def out(self) -> Path:
        """Where trials are run."""
        return Path(next(iter(self.trials.values()))[0][0].request.top["out"])

    def run(self, workers: Workers, watch: Watch) -> dict[str, list[list[Done]]]:
        """What became of every trial, in the order of `trials`."""
        flat = [p for rows in self.trials.values() for row in rows for p in row]
        done = iter(carry_out(flat, workers, watch))
        return {s: [[next(done) for _ in row] for row in rows] for s, rows in self.trials.items()}

    def chosen(self, done: dict[str, list[list[Done]]]) -> tuple[list[Tuned], list[str]]:
        """(what came out for every strategy, written down; what went wrong for others)."""
        found, failed = [], []
        for strategy, rows in done.items():
            try:
                found.append(self._chosen(strategy, rows))
            except RunError as error:
                failed.append(str(error))
        return found, failed

    def _chosen(self, strategy: str, rows: list[list[Done]]) -> Tuned:
        trials = [
            {"settings": _settings(row[0].planned.request), "V": [_score(d) for d in row]}
            for row in rows
        ]
        best = max(trials, key=mean)
        if mean(best) == -math.inf:
            raise RunError(f"{label(strategy)}: every trial became non-finite")
        request = rows[0][0].planned.request
        request = replace(request, top={**request.top, "out": str(self.out.parent)})
        given = conditions(request)
        if self.first is not None:
            del given["stream.first"]
        selection = {
            "protocol": self.protocol,
            "data": "V",
            "seeds": [d.planned.request.top["seed"] for d in rows[0]],
            "score": SCORE,
            "settings": given,
        }
        selection |= {"first": self.first} if self.first is not None else {}
        selection |= {"privileged": True} if self.protocol == "whole_stream" else {}
        path = keep(request, given, best["settings"], trials, selection)
        return Tuned(strategy, best["settings"], trials, path)


def mean(trial: dict[str, Any]) -> float:
    """A trial's score; of one that became non-finite on a seed, below all others."""
    values = trial["V"]
    return -math.inf if None in values else sum(values) / len(values)


def _protocol(keys: dict[str, Any]) -> tuple[str, int | None]:
    """protocol and first, taken out of the keys."""
    protocol = keys.pop("protocol", "sibling_stream")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if protocol != "first_experience":
        if "first" in keys:
            raise BadValue(
                f"first={keys['first']} is for protocol=first_experience, not {protocol}"
            )
        return protocol, None
    return protocol, parse("first", keys.pop("first", 1), FIRST)


def _check(keys: dict[str, Any], protocol: str, stream: str) -> None:
    """Whether the keys can be tuned, and fit the protocol. Raises BadValue."""
    if "best" in keys:
        raise BadValue("cl tune chooses what best=true puts in: leave best out")
    if keys.get("stream.val") is not None and float(keys["stream.val"]) == 0:
        raise BadValue("cl tune reads validation scores, which stream.val=0 leaves none of")
    for key, value in keys.items():
        several = len(alternatives(key, value)) > 1
        if several and key != "seed" and key.partition(".")[0] not in TUNED:
            prefixes = ", ".join(f"{prefix}.*" for prefix in TUNED)
            raise BadValue(f"{key}={show(value)} can't be tuned; what can: {prefixes}")
    if protocol == "first_experience" and "stream.first" in keys:
        raise BadValue("protocol=first_experience: give first=N in place of stream.first")
    if protocol == "sibling_stream":
        if "stream.seed" in keys:
            raise BadValue(
                "protocol=sibling_stream draws other streams by seed: leave stream.seed out"
            )
        if "seed" not in find("streams", stream).params():
            raise BadValue(
                f"{stream} has no stream.seed, so it has no siblings; choose protocol="
                "first_experience or whole_stream"
            )


def _check_equal(counts: dict[str, int]) -> None:
    """As many trials for every strategy, but for those that have nothing to set."""
    if max(counts.values()) == 1:
        raise BadValue("nothing to choose from: give a key alternatives, like train.lr=0.01,0.1")
    if len(set(counts.values()) - {1}) > 1:
        shown = ", ".join(f"{label(name)} {n}" for name, n in counts.items())
        raise BadValue(f"unequal numbers of trials: {shown}; a comparison needs equal ones")


def _settings(request: Request) -> dict[str, Any]:
    """What is chosen by a trial: keys of the strategy, of training and of the objective."""
    several, found = len(request.strategies) > 1, {}
    for entry, settings in zip(request.strategies, request.strategy_settings, strict=True):
        prefix = f"strategy.{entry.slug}" if several else "strategy"
        found |= {f"{prefix}.{name}": value for name, value in settings.items()}
    for prefix in TUNED[1:]:
        found |= {f"{prefix}.{name}": value for name, value in request.given[prefix].items()}
    return found


def _score(done: Done) -> float | None:
    """Mean of V's last row; None if the run became non-finite. Raises RunError."""
    if done.outcome.kind == NonFinite.__name__:
        return None
    if done.folder is None:
        log = f" (log {done.outcome.log})" if done.outcome.log else ""
        raise RunError(f"{done.planned.name}: {done.outcome.error}{log}")
    results = read_results(done.folder)
    last = zip((results["V"] or [[]])[-1], results["evals"], strict=False)  # none without V
    last = [v for v, e in last if v is not None and e["learned_at"]]
    if not last:
        raise RunError(f"{done.planned.name} has no validation scores ({done.folder})")
    return round(sum(last) / len(last), 4)


# -- on the terminal --------------------------------------------------------------------------


def report(search: Search, done: dict[str, list[list[Done]]]) -> int:
    """Write down and print what came out; the exit code, 1 if a strategy could not be tuned."""
    found, failed = search.chosen(done)
    out = console()
    for tuned in found:
        out.print(_table(tuned))
        if len({mean(trial) for trial in tuned.trials}) == 1 < len(tuned.trials):
            where = f"first={search.first} looks no further; " if search.first else ""
            out.print(f"no trial scores better than another ({where}the first one was taken)")
        out.print(f"written  {near(tuned.path)}\n", soft_wrap=True)
    for line in failed:
        out.print(f"failed  {line}", style="red", markup=False, soft_wrap=True)
    if found:
        names = ",".join(tuned.strategy for tuned in found)
        request = search.trials[found[0].strategy][0][0].request
        out.print(
            f"use them  cl sweep {request.stream_name} {names} best=true seed=0,1,2,3,4",
            soft_wrap=True,
            markup=False,
        )
    return 1 if failed else 0


def _table(tuned: Tuned) -> Table:
    table = Table(
        title=f"{label(tuned.strategy)}: {SCORE}",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    table.add_column("settings")
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("by seed", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for trial in tuned.trials:
        named = " ".join(f"{key}={show(value)}" for key, value in trial["settings"].items())
        values = " ".join("–" if v is None else f"{v:.3f}" for v in trial["V"])
        average = "non-finite" if None in trial["V"] else f"{mean(trial):.3f}"
        chosen = "best" if trial["settings"] == tuned.best else ""
        table.add_row(Text(named), average, values, chosen)
    return table
