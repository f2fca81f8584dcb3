"""Keys and values: what may be set, parsed against annotations before anything is imported.

The keyword-only constructor *is* the schema. Annotations are read from source, so an unknown
key, a wrong type or a value out of range is refused before torch is loaded.
"""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import annotated_types
from pydantic import ConfigDict, TypeAdapter, ValidationError

from cl.errors import BadValue, ContractError, nearest, unknown

REQUIRED = object()


@dataclass(frozen=True)
class Range(annotated_types.GroupedMetadata):
    """Bounds of a number: `Annotated[int, Range(min=1)]`; above/below exclude the bound."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    def __iter__(self) -> Iterator[annotated_types.BaseMetadata]:
        if self.min is not None:
            yield annotated_types.Ge(self.min)
        if self.max is not None:
            yield annotated_types.Le(self.max)
        if self.above is not None:
            yield annotated_types.Gt(self.above)
        if self.below is not None:
            yield annotated_types.Lt(self.below)

    def __str__(self) -> str:
        bounds = {"≥": self.min, "≤": self.max, ">": self.above, "<": self.below}
        return " and ".join(
            f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None
        )


@dataclass(frozen=True)
class Param:
    """One key: name, annotation, default (REQUIRED if none), description with its [unit]."""

    name: str
    annotation: Any
    default: Any
    doc: str = ""


@cache
def params_of_schema(schema: type) -> dict[str, Param]:
    """The keys of one of the dataclasses above."""
    hints = typing.get_type_hints(schema, include_extras=True)
    docs = parameter_docs(schema.__doc__)
    return {
        f.name: Param(
            f.name,
            hints[f.name],
            f.default if f.default is not MISSING else REQUIRED,
            docs.get(f.name, ""),
        )
        for f in fields(schema)
    }


@cache
def params_of_source(node: ast.AST, doc: str, where: str) -> dict[str, Param]:
    """The keyword-only parameters of a function, or of a class's `__init__`, from its source."""
    function = node
    if isinstance(node, ast.ClassDef):
        function = next(
            (f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None
        )
        if function is None:
            return {}
    docs = parameter_docs(doc)
    params = {}
    for arg, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        annotation = annotation_of(arg.annotation)
        value = REQUIRED
        if default is not None:
            try:
                value = ast.literal_eval(default)
            except ValueError as error:
                raise ContractError(
                    f"{where}: the default of {arg.arg!r} must be a literal, "
                    f"got {ast.unparse(default)}"
                ) from error
        params[arg.arg] = Param(arg.arg, annotation, value, docs.get(arg.arg, ""))
    return params


def parameter_docs(doc: str | None) -> dict[str, str]:
    """`{name: description}` from the "Parameters" block of a docstring."""
    docs, lines = {}, (doc or "").splitlines()
    starts = [k for k, line in enumerate(lines) if re.match(r"\s*Parameters\b", line)]
    if not starts:
        return docs
    indent = len(lines[starts[0]]) - len(lines[starts[0]].lstrip())
    name = None
    for line in lines[starts[0] + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        match = re.match(r"\s*([A-Za-z_]\w*)\s{2,}(\S.*)", line)
        if match:
            name = match[1]
            docs[name] = match[2].strip()
        elif name and line.strip():
            docs[name] += " " + line.strip()
    return docs


def parse(key: str, value: Any, annotation: Any) -> Any:
    """`value`, text from the command line or a Python object, as what `annotation` asks for.

    Raises BadValue naming the key, what was given and what is allowed.
    """
    if isinstance(annotation, str):
        raise ContractError(
            f"{key}: annotation {annotation!r} can't be parsed from text; use int, float, str, "
            "bool, Literal, list or Annotated[..., Range(...)]"
        )
    candidate = value
    if isinstance(value, str) and _is_union(annotation):
        return _parse_union(key, value, annotation)
    if isinstance(value, str) and typing.get_origin(annotation) is Literal:
        candidate = {str(a): a for a in typing.get_args(annotation)}.get(value, value)
    elif isinstance(value, str):
        empty = value.strip().lower() in ("none", "null")
        if annotation is Any:
            candidate = _literal(value)
        elif _list_item(annotation) is not None:
            # in a sweep commas separate alternatives, semicolons what is in a list
            items = (item.strip() for item in re.split("[,;]", value))
            candidate = [] if empty else [item for item in items if item]
    if isinstance(value, bool) and not _mentions(annotation, bool) and annotation is not Any:
        raise BadValue(f"{key} must be {type_name(annotation)}, got {value!r}")
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
        parsed = adapter.validate_python(candidate)
    except ValidationError as error:
        near = ""
        if typing.get_origin(annotation) is Literal:
            near = nearest(str(value).lower(), map(str, typing.get_args(annotation)))
        raise BadValue(f"{key} must be {type_name(annotation)}, got {value!r}{near}") from error
    if isinstance(parsed, Path):
        return _absolute(key, value)
    if type(parsed) is int and abs(parsed) >= 2**62:
        raise BadValue(f"{key} must be {type_name(annotation)}, got {value!r}: too large")
    return list(parsed) if isinstance(parsed, tuple) else parsed


def parse_all(prefix: str, given: dict[str, Any], params: dict[str, Param], owner: str) -> dict:
    """Parse every given key of one prefix; an unknown key raises UnknownName."""
    parsed = {}
    for name, value in given.items():
        if name not in params:
            raise unknown(f"key {prefix}{name}:", name, params, f" for {owner}")
        parsed[name] = parse(prefix + name, value, params[name].annotation)
    return parsed


def type_name(annotation: Any) -> str:
    """An annotation in words: `int ≥ 1`, `one of svm, fc`, `list of int, separated by commas`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return "any value"
    if origin is Annotated:
        bounds = [str(extra) for extra in args[1:] if isinstance(extra, Range)]
        if any(isinstance(extra, annotated_types.Predicate) for extra in args[1:]):
            return "all, own or sample:K"
        return " ".join([type_name(args[0]), *bounds])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin in (list, tuple):
        return f"a list of {type_name(args[0])} (separated by commas)"
    if _is_union(annotation):
        return " or ".join(type_name(arg) for arg in args)
    if annotation is type(None):
        return "none"
    if isinstance(annotation, str):
        return annotation
    return {str: "text", bool: "true or false", Path: "a path"}.get(
        annotation
    ) or annotation.__name__


def allows_none(annotation: Any) -> bool:
    """Whether `none` is a value of `annotation`."""
    return annotation is Any or _mentions(annotation, type(None))


def show(value: Any) -> str:
    """A value as one would write it on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(show, value))
    return str(value)


def _mentions(annotation: Any, kind: type) -> bool:
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return kind is bool and any(isinstance(arg, bool) for arg in args)
    return annotation is kind or any(_mentions(arg, kind) for arg in args)


def _list_item(annotation: Any) -> Any | None:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    return args[0] if origin in (list, tuple) else None


def _absolute(key: str, value: Any) -> str:
    """A path as absolute text, so that a recipe can be run from anywhere."""
    text = str(value)
    if not text or not text.isprintable():
        raise BadValue(f"{key} must be a path, got {text!r}")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise BadValue(f"{key}={text}: {error}") from error


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Union or isinstance(annotation, type(int | str))


def _parse_union(key: str, value: str, annotation: Any) -> Any:
    """The first alternative that takes the text; `none` first, plain text last."""
    if value.strip().lower() in ("none", "null") and allows_none(annotation):
        return None
    alternatives = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
    for alternative in sorted(alternatives, key=lambda arg: arg is str):
        try:
            return parse(key, value, alternative)
        except BadValue:
            continue
    raise BadValue(f"{key} must be {type_name(annotation)}, got {value!r}")


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


_NAMES = {
    "Annotated": Annotated,
    "Any": Any,
    "Literal": Literal,
    "List": list,
    "Optional": Optional,
    "Path": Path,
    "Range": Range,
    "Sequence": list,
    "Union": Union,
    "None": None,
    **{kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict)},
}


def annotation_of(node: ast.expr | None) -> Any:
    """An annotation's value; names that are not part of the schema language stay text."""
    if node is None:
        return Any
    source = ast.unparse(node)
    try:
        return eval(source, {"__builtins__": {}}, _NAMES)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return source
