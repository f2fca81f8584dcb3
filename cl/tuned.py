"""Tuned settings, packaged as data in `strategies/best/*.yaml`, which `best=true` puts in.

A file holds settings by strategy for one stream (by name, classes and number of experiences),
and how they were chosen: on validation data of calibration seeds, equal trials per strategy.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from cl.config import params_of_schema, parse_all
from cl.errors import BadValue, ContractError
from cl.request import Request
from cl.settings import Eval, Scenario, Train
from cl.stream import Stream


def settings_for(request: Request, stream: Stream) -> tuple[dict[str, Any], dict | None]:
    """({key: value} of the tuned settings, how they were chosen); ({}, None) without best=true.

    Raises BadValue where there are none for this strategy on this stream.
    """
    if not request.top["best"]:
        return {}, None
    if "strategies" in request.objects:
        raise BadValue("best=true needs a strategy given by name, not as a Python object")
    plain = Scenario()
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
            f"experiences of {stream.n_classes} classes; there is {known or 'nothing'}"
        )
    best = document["best"].get(request.strategy_name)
    if best is None:
        raise BadValue(
            f"best=true: {request.strategy_name} was not tuned for {request.stream_name}; "
            f"there are {', '.join(sorted(document['best']))}"
        )
    trials = document["trials"][request.strategy_name]
    return parsed(best, request), {**document["selection"], "trials": len(trials)}


def parsed(best: dict[str, Any], request: Request) -> dict[str, Any]:
    """Tuned settings with every value of the type that its key asks for."""
    params = {"train": params_of_schema(Train), "eval": params_of_schema(Eval)}
    params["strategy"] = request.strategies[0].params()
    values = {}
    for key, value in best.items():
        prefix, _, name = key.partition(".")
        if prefix not in params:
            raise ContractError(f"tuned settings of {request.strategy_name}: {key} can't be tuned")
        one = parse_all(f"{prefix}.", {name: value}, params[prefix], request.strategy_name)
        values[key] = one[name]
    return values


def section(tuned: dict[str, Any], prefix: str) -> dict[str, Any]:
    """{name: value} of the keys under one prefix."""
    return {k.partition(".")[2]: v for k, v in tuned.items() if k.startswith(f"{prefix}.")}


def _fits(document: dict, request: Request, stream: Stream) -> bool:
    return (
        request.stream_name in document["stream"]
        and sorted(document["classes"]) == sorted(stream.class_names)
        and document["experiences"] == len(stream)
    )


def _documents() -> list[dict]:
    spec = importlib.util.find_spec("strategies")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("best/*.yaml")) if spec else []
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
