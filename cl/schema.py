"""`results.json`, schema 1, as every reader expects it; what is written beside that is ignored.

E experiences are trained on in order, J evals are scored. A score is a number or null.

    R, V, R_within   [[J] per finished experience], V null without validation data
    b                [J] of the untrained model
    metrics          {name: number, or null, or a list with one of them per experience};
                     empty before the first experience has been learned
    undefined        {path: why it is null}
    cost             {name: number, or several of them, or null where it can't be had}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # as pydantic asks for below Python 3.12

from cl.errors import DataError

SCHEMA = 1

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Score = Number | None
Row = list[Score]


class Learned(TypedDict):
    """An experience."""

    name: str
    n_train: Count


class Scored(TypedDict):
    """An eval; learned_at: the experiences that teach it, none of what is held out."""

    name: str
    kind: Literal["stream", "held_out", "ood"]
    learned_at: list[Count]
    n: Count
    chance: Number


class Selection(TypedDict):
    """How settings were chosen."""

    protocol: str
    trials: NotRequired[Any]
    seeds: NotRequired[list[int]]


class Results(TypedDict):
    """The file."""

    schema: Literal[1]
    status: Literal["running", "finished", "failed"]
    stream: str
    stream_hash: str
    strategy: str
    needs: list[str]
    domain: str
    seed: int
    score: str
    experiences: list[Learned]
    evals: list[Scored]
    b: Row
    R: list[Row]
    V: list[Row] | None
    R_within: list[Row] | None
    raw: NotRequired[dict[str, Any] | None]
    metrics: dict[str, Score | Row]
    undefined: dict[str, str]
    cost: dict[str, Score | Row | dict[str, Score]]
    selection: Selection | None
    probes: dict[str, Any]
    versions: dict[str, str]
    device: str
    threads: Annotated[int, Field(ge=1)]


_ADAPTER = TypeAdapter(Results)


def checked(results: Any, where: str) -> dict:
    """`results` as it is, if it follows the schema. Raises DataError in one line.

    where: the file, for the message.
    """
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise DataError(f"{where} has {_foreign(results)}; this version reads schema {SCHEMA}")
    try:
        _ADAPTER.validate_python(results, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = _path(first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        wrong = f"{place}: {first['msg'].lower()}{more}"
        raise DataError(f"{where} does not follow schema {SCHEMA}: {wrong}") from error
    wrong = _shapes(results)
    if wrong:
        raise DataError(f"{where} does not follow schema {SCHEMA}: {wrong}")
    return results


def _foreign(results: Any) -> str:
    """What another file says of itself."""
    if not isinstance(results, dict) or "schema" not in results:
        return "no schema"
    versions = results.get("versions")
    by = versions.get("cl") if isinstance(versions, dict) else None
    return f"schema {results['schema']!r}"[:40] + (f", written by cl {by}"[:40] if by else "")


def _shapes(results: dict) -> str | None:
    """What does not fit together; None if all does."""
    E, J = len(results["experiences"]), len(results["evals"])
    done = len(results["R"])
    if len(results["b"]) != J:
        return f"b has {len(results['b'])} scores for {J} evals"
    for name in ("R", "V", "R_within"):
        rows = results[name]
        if rows is None:
            continue
        if len(rows) != done or len(rows) > E:
            return f"{name} has {len(rows)} rows, R {done}, of {E} experiences"
        for i, row in enumerate(rows):
            if len(row) != J:
                return f"{name}[{i}] has {len(row)} scores for {J} evals"
    if results["status"] == "finished" and (done != E or E == 0):
        return f"finished with {done} of {E} experiences"
    for j, e in enumerate(results["evals"]):
        if any(i >= E for i in e["learned_at"]):
            return f"evals[{j}] is learned at {e['learned_at']} of {E} experiences"
    return None


def _path(location: tuple) -> str:
    """`R[0][3]` of ("R", 0, 3, "float"); what pydantic adds of its own types is left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text or part.isidentifier() and part not in ("float", "int", "str", "none"):
            text += f".{part}" if text else part
    return text
