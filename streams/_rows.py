"""Rows of prompts and answers from JSON files; what is wrong with one names file and row."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from cl.errors import BadValue, DataError
from cl.seeding import derive

Row = dict[str, Any]


def read(path: Path) -> dict[int, Row]:
    """{place from 1 on: object} of a .json list, {line: object} of a .jsonl file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}") from error
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)  # no other character ends a line of JSON
        found = {k: _parsed(line, f"{path}: row {k}") for k, line in lines if line.strip()}
    else:
        whole = _parsed(text, str(path))
        if not isinstance(whole, list):
            raise DataError(f"{path} must hold a list of rows, it holds {_kind(whole)}")
        found = dict(enumerate(whole, 1))
    if not found:
        raise DataError(f"{path} has no rows")
    for k, row in found.items():
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {k} must be an object, it is {_kind(row)}")
    return found


def text_of(rows: dict[int, Row], key: str, path: Path) -> list[str]:
    """One field of every row as text."""
    for k, row in rows.items():
        value = row.get(key)
        if key not in row:
            raise DataError(f"{path}: row {k} has no {key!r}; it has {', '.join(row) or 'nothing'}")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{path}: row {k}: {key!r} must be text, it is {_kind(value)}")
        if not str(value).strip():
            raise DataError(f"{path}: row {k}: {key!r} is empty")
    return [str(row[key]) for row in rows.values()]


def carve(items: list, share: float, seed: int, name: str) -> tuple[list, list]:
    """(training, validation): a share drawn by seed, one item at least, both in file order."""
    if not share:
        return items, []
    n = max(1, round(share * len(items)))
    if n >= len(items):
        raise BadValue(
            f"stream.val={share:g} leaves task {name!r} no training row of its {len(items)}; "
            "give more rows or stream.val=0"
        )
    held = set(Random(derive(seed, f"val/{name}")).sample(range(len(items)), n))
    kept = [item for k, item in enumerate(items) if k not in held]
    return kept, [items[k] for k in sorted(held)]


def at_most(items: list, n: int | None, seed: int, name: str) -> list:
    """n of them drawn by seed, in file order; all if there are no more."""
    if n is None or n >= len(items):
        return items
    chosen = Random(derive(seed, f"at_most/{name}")).sample(range(len(items)), n)
    return [items[k] for k in sorted(chosen)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = "" if ": row " in where else f" line {error.lineno}"
        raise DataError(f"{where}{at} is not JSON: {error.msg}, column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number too long
        raise DataError(f"{where} can't be used: {error}") from error


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "an object", list: "a list", str: "text"}
    return kinds.get(type(value), "a number")
