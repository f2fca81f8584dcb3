"""What makes two runs the same run, told from keys, sources and files, without importing torch.

`results.json` begins with its status, the identity of what was asked for and the hash of the
sources, so that a finished run is known by the file's first lines. Keys that are given at their
defaults don't count as far as these are known: what the stream's own defaults are, is not before
it is built, so that one run may be asked for in two ways; then `cl.runner.take` compares the
resolved recipes. `device=auto` is satisfied by a run on any device.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cl.errors import DataError
from cl.folder import read_results, stream_folder
from cl.registry import Entry, find
from cl.request import Request, differs
from cl.sources import source_hash
from cl.start import weights_stamp
from cl.tuned import offered

if TYPE_CHECKING:
    from cl.recipe import Recipe
    from cl.stream import Stream

HEAD = 1024  # characters of results.json that hold what is looked for


def identity(request: Request, stamps: dict[str, list] | None = None) -> str | None:
    """Sixteen characters that change with whatever is asked for; None with Python objects.

    stamps: those of files and folders that have been looked at already, kept by the caller.
    """
    if request.known_as is not None:
        return request.known_as
    if _entries(request) is None:
        return None
    stamps = {} if stamps is None else stamps
    for path in (paths := _paths(request)):
        if path not in stamps:
            stamps[path] = data_stamp(path)
    what = [request.stream_name, request.stream_changes(), request.stream_settings.get("seed")]
    what += [_strategies(request), request.given, request.expect]
    what += [request.start, weights_stamp(request.start)]
    what += [{k: v for k, v in request.top.items() if k != "out"}]
    what += [[stamps[path] for path in paths]]
    what += [request.selection or offered(request)] if request.top["best"] else []
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def sources_of(request: Request) -> str | None:
    """The hash of the sources that a run's numbers come from; None with Python objects."""
    entries = _entries(request)
    if entries is None:
        return None
    others = tuple(entry.path for entry in entries[1 + len(request.strategies) :])
    return source_hash(request.stream_name, request.strategy_name, others)


def finished(out: Path, stream_slug: str) -> dict[tuple[str, str], Path]:
    """{(identity, sources): folder} of the finished runs of a stream in `out`."""
    found = {}
    for path in stream_folder(out, stream_slug).glob("[!.]*/seed*/results.json"):
        status, known_as, sources = recorded(path.parent)
        if status == "finished" and known_as and sources:
            found[known_as, sources] = path.parent
    return found


def recorded(folder: Path) -> tuple[str | None, str | None, str | None]:
    """(status, identity, sources) by the beginning of `results.json`; None where not known."""
    try:
        with open(folder / "results.json", encoding="utf-8") as file:
            head = file.read(HEAD)
    except (OSError, UnicodeDecodeError):
        return None, None, None
    found = [re.search(rf'"{key}": "(\w+)"', head) for key in ("status", "request", "sources")]
    status, known_as, sources = (match and match[1] for match in found)
    return status, known_as, sources


def standing(folder: Path, recipe: Recipe, stream: Stream) -> str | None:
    """`finished` or `begun` if a folder holds this recipe's run, of the same data and sources."""
    try:
        if (folder / "recipe.yaml").read_text(encoding="utf-8") != recipe.text():
            return None
        if not (folder / "results.json").exists():  # stopped before the untrained model was scored
            return None if (folder / "checkpoint").exists() else "begun"
        results = read_results(folder)
    except (OSError, UnicodeDecodeError, DataError):
        return None
    if recipe.sources is None or results.get("sources") != recipe.sources:
        return None
    if results.get("stream_hash") != stream.content_hash():
        return None
    return "finished" if results["status"] == "finished" else "begun"


def data_stamp(path: str) -> list:
    """What tells a file or folder from a changed one: number of files, bytes, newest change."""
    files = [path] if os.path.isfile(path) else []
    files += [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
    stats = [os.lstat(file) for file in files]
    newest = max((s.st_mtime_ns for s in stats), default=None)
    return [path, len(stats), sum(s.st_size for s in stats), newest]


def _entries(request: Request) -> list[Entry] | None:
    """Stream, strategies, then model and probes that are named; None if one is no file's."""
    named = [request.stream, *request.strategies]
    named += [find("models", request.top["model"])] if request.top["model"] else []
    named += [find("probes", probe) for probe in request.top["probes"]]
    known = not request.objects and all(e is not None and e.path is not None for e in named)
    return named if known else None


def _paths(request: Request) -> list[str]:
    """Absolute paths among the settings, which parsing has made of every path."""
    given = [request.stream_settings, *request.strategy_settings, *request.given.values()]
    values = [value for settings in given for value in settings.values()]
    values += [entry.rest for entry in _entries(request)]
    return [value for value in values if isinstance(value, str) and os.path.isabs(value)]


def _strategies(request: Request) -> list:
    """Names with the settings that change something; tuned ones stand in for the defaults."""
    found = []
    for entry, settings in zip(request.strategies, request.strategy_settings, strict=True):
        params, best = entry.params(), request.top["best"]
        kept = {k: v for k, v in settings.items() if best or differs(v, params[k].default)}
        found.append([entry.name, kept])
    return found
