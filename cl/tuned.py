"""Tuned settings as data, which `best=true` puts in.

Packaged ones are in `strategies/best/*.yaml`; `cl tune` writes a user's own to
`<out>/best/<stream>/<strategy>.yaml`, which come before them. A file holds settings by strategy for
one stream and how they were chosen: on validation data, with equal trials per strategy. It fits the
stream by its classes and number of experiences wherever the data lie, or, a user's own (`given`),
by the keys of stream, model and objective.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cl.config import params_of_schema, parse_all, show
from cl.errors import BadValue, ContractError
from cl.folder import slug, stream_folder, write
from cl.request import Request
from cl.settings import Eval, Scenario, Train

if TYPE_CHECKING:
    from cl.stream import Stream


def settings_for(request: Request, stream: Stream) -> tuple[dict[str, Any], dict | None]:
    """({key: value} of the tuned settings, how they were chosen); ({}, None) without best=true.

    Raises BadValue where there are none for this strategy on this stream.
    """
    if not request.top["best"]:
        return {}, None
    if request.selection is not None:  # a recipe that says what was chosen
        return parsed(request.selection["best"], request), request.selection
    if "strategies" in request.objects:
        raise BadValue("best=true needs a strategy given by name, not as a Python object")
    fitting = [document for document in _own(request) if _asked(document, request)]
    document = next((d for d in fitting if request.strategy_name in d["best"]), None)
    document = document or _packaged(request, stream)
    name = request.strategy_name
    trials, best = document["trials"][name], document["best"][name]
    return parsed(best, request), {**document["selection"], "trials": len(trials), "best": best}


def _packaged(request: Request, stream: Stream) -> dict:
    plain, name = Scenario(), request.strategy_name
    for key, value in request.scenario.items():
        if value != getattr(plain, key):
            raise BadValue(f"best=true: nothing was tuned with stream.{key}; leave one of them out")
    document = next((d for d in _documents() if _fits(d, request, stream)), None)
    if document is None:
        known = "; ".join(
            f"{' or '.join(d['stream'])}: {d['experiences']} experiences of "
            f"{len(d['classes'])} classes"
            for d in _documents()
        )
        raise BadValue(
            f"best=true: nothing was tuned for {request.stream_name} with {len(stream)} "
            f"experiences of {stream.n_classes} classes; there is {known or 'nothing'} (your own: "
            "cl tune)"
        )
    if name not in document["best"]:
        raise BadValue(
            f"best=true: {name} was not tuned for {request.stream_name}; "
            f"there are {', '.join(sorted(document['best']))} (your own: cl tune)"
        )
    return document


def parsed(best: dict[str, Any], request: Request) -> dict[str, Any]:
    """Tuned settings with every value of the type that its key asks for."""
    params = {"train": params_of_schema(Train), "eval": params_of_schema(Eval)}
    several = len(request.strategies) > 1
    for entry in request.strategies:
        params[f"strategy.{entry.slug}" if several else "strategy"] = entry.params()
    values = {}
    for key, value in best.items():
        prefix, _, name = key.rpartition(".")
        if prefix == "objective":  # which it is, the stream may say; parsed when it was tried
            values[key] = value
            continue
        if prefix not in params:
            raise ContractError(f"tuned settings of {request.strategy_name}: {key} can't be tuned")
        one = parse_all(f"{prefix}.", {name: value}, params[prefix], request.strategy_name)
        values[key] = one[name]
    return values


def section(tuned: dict[str, Any], prefix: str) -> dict[str, Any]:
    """{name: value} of the keys under one prefix."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tuned.items() if k.startswith(start)}


def of_strategy(tuned: dict[str, Any], request: Request, k: int) -> dict[str, Any]:
    """{name: value} of those of the request's strategy k."""
    own = f".{request.strategies[k].slug}" if len(request.strategies) > 1 else ""
    return section(tuned, f"strategy{own}")


def conditions(request: Request) -> dict[str, Any]:
    """What a user's own settings are tuned for: keys of stream, model and objective."""
    found = {k: v for k, v in request.stream_changes().items() if k != "stream.seed"}
    found |= {k: request.top[k] for k in ("model", "objective") if request.top[k] is not None}
    given = {f"model.{k}": v for k, v in (request.given["model"] | request.start).items()}
    return found | {key: value for key, value in given.items() if value is not None}


def offered(request: Request) -> list:
    """All that `best=true` may put in, as it decides about a run's numbers."""
    name = request.strategy_name
    found = [*_own(request), *(d for d in _documents() if request.stream_name in d["stream"])]
    keys = ("given", "experiences", "classes", "selection")
    return [
        [[d.get(key) for key in keys], d["best"][name], len(d["trials"][name])]
        for d in found
        if name in d["best"]
    ]


def keep(
    request: Request, given: dict[str, Any], best: dict[str, Any], trials: list[dict], how: dict
) -> Path:
    """Write a user's own settings for a strategy; returns the file, whose former content goes.

    given: `conditions` that they were tuned under; trials, how: what was tried and by which rule.
    """
    changed = "".join(f",{key}={show(value)}" for key, value in given.items())
    folder = _folder(request)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(request.strategy_slug + changed)}.yaml"
    name = request.strategy_name
    document = {"stream": [request.stream_name], "given": given, "selection": how}
    document |= {"best": {name: best}, "trials": {name: trials}}
    write(path, f"# written by cl tune\n{as_yaml(document)}")
    return path


def as_yaml(document: dict) -> str:
    """A file of tuned settings as text."""
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=96)


class _Plain(yaml.SafeDumper):
    """Writes every value out, without references."""

    def ignore_aliases(self, data) -> bool:
        return True


def _asked(document: dict, request: Request) -> bool:
    return document["given"] == conditions(request)


def _fits(document: dict, request: Request, stream: Stream) -> bool:
    return (
        request.stream_name in document["stream"]
        and sorted(document["classes"]) == sorted(stream.class_names)
        and document["experiences"] == len(stream)
    )


def _own(request: Request) -> list[dict]:
    return [_read(path) for path in sorted(_folder(request).glob("*.yaml"))]


def _folder(request: Request) -> Path:
    return stream_folder(Path(request.top["out"]) / "best", request.stream_slug)


def _documents() -> list[dict]:
    spec = importlib.util.find_spec("strategies")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("best/*.yaml")) if spec else []
    return [_read(path) for path in files]


def _read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
