"""results.json as text: a line per key, per row of a matrix, per reason.

Rows never change once they are recorded, so each is encoded once: what an experience adds to the
time of writing does not grow with the number of experiences before it (the bytes do).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl.stream import Stream

GROWING = ("experiences", "evals", "R", "V", "R_within")  # lists whose entries never change
NESTED = ("metrics", "cost", "probes", "versions")


class Document:
    """Encodes successive versions of one run's results."""

    def __init__(self):
        self.lines: dict[str, list[str]] = {name: [] for name in GROWING}

    def parts(self, results: dict) -> Iterator[str]:
        """The whole file in pieces: joined, they would be copied once more."""
        before = "{\n "
        for key, value in results.items():
            yield f"{before}{json.dumps(key)}: "
            yield from self._value(key, value)
            before = ",\n "
        yield "\n}\n"

    def _value(self, key: str, value: object) -> Iterator[str]:
        if key in GROWING and value:
            lines = self.lines[key]
            start = "[\n  " if not lines else ",\n  "
            for row in value[len(lines) :]:
                lines.append(start + _line(row))
                start = ",\n  "
            yield from lines
            yield "\n ]"
        elif key in NESTED and value:
            pairs = ",\n  ".join(f"{json.dumps(k)}: {_line(v)}" for k, v in value.items())
            yield "{\n  " + pairs + "\n }"
        elif key == "undefined" and value:
            flat = json.dumps(value, separators=(",\n  ", ": "))
            yield "{\n  " + flat[1:-1] + "\n }"
        else:
            yield _line(value)


def reasons(path: str, values: list, undefined: dict[int, str]) -> dict[str, str]:
    """Why values are None, positions of one reason joined: {`R[0][1:5]`: why}, `R[0][1,3:5]`."""
    spans: dict[str, list[list[int]]] = {}
    for j, value in enumerate(values):
        if value is None:
            found = spans.setdefault(undefined.get(j, "this eval has no validation data"), [])
            if found and found[-1][1] == j:
                found[-1][1] = j + 1
            else:
                found.append([j, j + 1])
    return {
        f"{path}[{','.join(str(a) if b == a + 1 else f'{a}:{b}' for a, b in found)}]": reason
        for reason, found in spans.items()
    }


def _line(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def by_experience(reported: dict[str, dict[int, float]], n: int) -> dict[str, list]:
    """{name: [number per experience, None where there is none]} for the first n experiences."""
    return {name: [row.get(k) for k in range(n)] for name, row in reported.items()}


def description(stream: Stream) -> dict:
    """The `experiences` and `evals` of results.json."""
    names = stream.class_names
    constants = stream.constants if stream.domain == "rl" else lambda e: {}
    experiences = [
        {
            "name": e.name,
            "n_train": len(e.train),
            "n_val": len(e.val) if e.val is not None else 0,
            "classes": [names[c] for c in e.classes],
        }
        for e in stream.experiences
    ]
    evals = [
        {
            "name": e.name,
            "kind": e.kind,
            "learned_at": list(e.learned_at),
            "n": len(e.test),
            "classes": [names[c] for c in e.classes],
            "chance": e.chance,
            **constants(e),
        }
        for e in stream.evals
    ]
    return {"experiences": experiences, "evals": evals}
