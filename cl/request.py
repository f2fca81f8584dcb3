"""What the user asked for, checked before anything is imported: names, keys, types, ranges."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cl.config import params_of_schema, parse_all, show
from cl.errors import BadValue, DataError, UnknownName, nearest, unknown
from cl.registry import Entry, find
from cl.settings import Checkpoint, Eval, Scenario, Top, Train
from cl.start import PARAMS as START

SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
SETTABLE = ("ppo", "dqn", "cloning")  # as objective, of environments
PREFIXES = ("stream", "strategy", "model", "objective", "train", "eval", "checkpoint")
SCHEMAS = {"train": Train, "eval": Eval, "checkpoint": Checkpoint}


@dataclass
class Request:
    """A checked request. `given` holds model, train and eval keys; objects those of Python.

    selection: how a recipe's tuned settings were chosen, and what they are; known_as: the identity
    of a recorded run that is gone on with (cl/identity.py), if it has one.
    """

    stream_name: str
    stream: Entry | None
    strategy_name: str
    strategies: list[Entry]
    top: dict[str, Any]
    stream_settings: dict[str, Any] = field(default_factory=dict)
    strategy_settings: list[dict[str, Any]] = field(default_factory=list)
    scenario: dict[str, Any] = field(default_factory=dict)
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    expect: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None
    known_as: str | None = None

    @staticmethod
    def of(
        stream: str, strategy: str, settings: dict[str, Any], objects: dict | None = None
    ) -> Request:
        """Check names, keys and values. Raises UnknownName, BadValue, DataError."""
        objects = objects or {}
        keys = flatten(settings)
        entry = None if "stream" in objects else find("streams", stream)
        parts = [] if "strategies" in objects else _composed(strategy)
        model = keys.get("model")
        model_entry = find("models", str(model)) if model is not None else None
        sections = _sections(keys, entry, parts, model_entry)
        top_params = params_of_schema(Top)
        top = {name: param.default for name, param in top_params.items()}
        top |= parse_all("", sections.pop(""), top_params, "a run")
        if not top["out"] or not top["out"].isprintable():
            raise BadValue(f"out must be a folder, got {top['out']!r}")
        for probe in top["probes"]:
            find("probes", probe)
        request = Request(
            entry.name if entry else stream,
            entry,
            "+".join(part.name for part in parts) or strategy,
            parts,
            top,
            objects=objects,
        )
        request.take_stream(sections["stream"])
        request.strategy_settings = _strategy_settings(sections["strategy"], parts)
        for prefix, schema in SCHEMAS.items():
            params = params_of_schema(schema)
            request.given[prefix] = parse_all(f"{prefix}.", sections[prefix], params, "a run")
        own = {name: value for name, value in sections["model"].items() if name not in START}
        start = {name: value for name, value in sections["model"].items() if name in START}
        request.start = parse_all("model.", start, START, "a model")
        request.given["model"] = own
        request.take_objective(sections["objective"])
        if model_entry is not None:
            top["model"] = model_entry.name  # a path of the user's own as an absolute one
            parse_all("model.", own, model_entry.params(), f"model {model}")
        return request

    @staticmethod
    def from_arguments(arguments: list[str]) -> Request:
        """`STREAM STRATEGY [key=value ...]` or `recipe.yaml [key=value ...]`."""
        names, keys = split_arguments(arguments)
        if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
            return Request.from_recipe(Path(names[0]), keys)
        if len(names) != 2:
            raise BadValue(
                f"cl run takes STREAM STRATEGY [key=value ...] or recipe.yaml [key=value ...], "
                f"got {len(names)} name{'s' * (len(names) != 1)}"
                + (f": {' '.join(names)}" if names else "")
            )
        return Request.of(names[0], names[1], keys)

    @staticmethod
    def from_recipe(path: Path, overrides: dict[str, Any]) -> Request:
        """A recipe file, keys of the command line on top; `stream=NAME` takes other data."""
        return Request.of_recipe(read_recipe(path), overrides)

    @staticmethod
    def of_recipe(recipe: dict[str, Any], overrides: dict[str, Any]) -> Request:
        """What `read_recipe` has read, other keys on top."""
        recipe, overrides = dict(recipe), dict(overrides)
        given = str(recipe.pop("stream"))
        stream = str(overrides.pop("stream", given))
        strategy = str(recipe.pop("strategy"))
        expect, selection = recipe.pop("expect", None), recipe.pop("selection", None)
        if stream != given:  # tuned for another one
            selection = None
        # a key of another model does not carry over when the model is replaced
        if "model" in overrides and overrides["model"] != recipe.get("model"):
            recipe = {k: v for k, v in recipe.items() if not k.startswith("model.")}
        request = Request.of(stream, strategy, {**flatten(recipe), **overrides})
        request.expect, request.selection = expect, selection
        return request

    def take_objective(self, given: dict[str, Any]) -> None:
        """Check objective.* keys as far as the objective is known yet."""
        self.given["objective"], name = given, self.top["objective"]
        if name not in (None, *SETTABLE):
            raise unknown("objective", name, SETTABLE)
        if name is not None:
            params = find("objectives", name).params()
            parse_all("objective.", given, params, f"objective {name}")

    def take_stream(self, given: dict[str, Any]) -> None:
        """Parse stream.* keys: the stream's own, and those of the scenario operators."""
        own = self.stream.params() if self.stream else {}
        operators = params_of_schema(Scenario)
        foreign = [name for name in given if name not in operators]
        if self.stream is None and foreign:
            raise BadValue(f"stream.{foreign[0]} can't be set: the stream is a Python object")
        values = parse_all("stream.", given, operators | own, f"stream {self.stream_name}")
        self.stream_settings = {name: v for name, v in values.items() if name in own}
        self.scenario = {name: v for name, v in values.items() if name not in own}

    @property
    def stream_slug(self) -> str:
        """The stream in folder names."""
        return _folder_name(self.stream) if self.stream else self.stream_name

    @property
    def strategy_slug(self) -> str:
        """The strategy in folder names."""
        return "+".join(_folder_name(e) for e in self.strategies) or self.strategy_name

    def stream_changes(self) -> dict[str, Any]:
        """stream.* keys that differ from their defaults."""
        changed = {}
        params = self.stream.params() if self.stream is not None else {}
        for name, value in self.stream_settings.items():
            default = self.top["seed"] if name == "seed" else params[name].default
            if differs(value, default):
                changed[f"stream.{name}"] = value
        for name, param in params_of_schema(Scenario).items():
            if name in self.scenario and differs(self.scenario[name], param.default):
                changed[f"stream.{name}"] = self.scenario[name]
        return changed

    def changed(self, default_model: str | None, tuned: dict[str, Any]) -> dict[str, Any]:
        """Stream, strategy and model keys that differ from their (tuned) defaults."""
        changed = {"best": True} if self.top["best"] else {}
        changed |= self.stream_changes()
        if "model" in self.objects:
            changed["model"] = type(self.objects["model"]).__name__
        elif self.top["model"] not in (None, default_model):
            changed["model"] = self.top["model"]
        changed |= {f"model.{name}": value for name, value in self.start.items() if value}
        for name, default in (("threads", 1), ("device", "auto")):
            if self.top[name] != default:
                changed[name] = self.top[name]
        for strategy in self.objects.get("strategies", ()):
            changed |= {
                name: value
                for name, value in vars(strategy).items()
                if isinstance(value, bool | int | float | str)
            }
        several = len(self.strategies) > 1
        for entry, settings in zip(self.strategies, self.strategy_settings, strict=True):
            params, prefix = entry.params(), f"{entry.slug}." if several else ""
            for name, value in settings.items():
                if differs(value, tuned.get(f"strategy.{prefix}{name}", params[name].default)):
                    changed[f"{prefix}{name}"] = value
        return changed


def split_arguments(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """(names, {key: value}) of a command line. Raises BadValue for a key given twice."""
    names, keys = [], {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if not SETTING.match(argument):  # a path may hold an equals sign
            names.append(argument)
        elif key in keys:
            raise BadValue(f"{key} is given twice: {show(keys[key])} and {value}")
        else:
            keys[key] = value
    return names, keys


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, stream and strategy among them. Raises DataError."""
    path = _packaged(path)
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise DataError(f"recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"recipe {path} can't be used: {line}") from error
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise DataError(f"recipe {path} must hold `key: value` lines, stream and strategy first")
    missing = {"stream", "strategy"} - recipe.keys()
    if missing:
        raise DataError(f"recipe {path} lacks {' and '.join(sorted(missing))}")
    if "note" in recipe:
        raise DataError(f"recipe {path}: {recipe['note']}")
    chosen = recipe.get("selection")
    if chosen is not None and not {"best", "seeds", "protocol"} <= set(chosen):
        raise DataError(f"recipe {path}: selection must say how settings were chosen, by `cl tune`")
    return recipe | {"expect": _expected(path, recipe.get("expect")), "selection": chosen}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)


def recipes() -> dict[str, Path]:
    """{file name: path} of the recipes that are packaged, of published results."""
    spec = importlib.util.find_spec("strategies")
    folders = spec.submodule_search_locations if spec else []
    found = [path for folder in folders for path in Path(folder).glob("recipes/*.yaml")]
    return {path.name: path for path in sorted(found)}


def _packaged(path: Path) -> Path:
    """A recipe given by its bare name is a packaged one, unless a file lies there."""
    known = recipes()
    if path.exists() or path.name != str(path):
        return path
    if path.name not in known:
        raise DataError(f"no recipe {path}{nearest(path.name, known)} (see `cl list recipes`)")
    return known[path.name]


def _expected(path: Path, expect: Any) -> dict[str, Any] | None:
    """A recipe's published value: metric, value, tolerance, source."""
    keys = {"metric": str, "value": (int, float), "tolerance": (int, float), "source": str}
    if expect is None:
        return None
    if not isinstance(expect, dict) or expect.keys() != keys.keys():
        raise DataError(f"recipe {path}: expect must hold {', '.join(keys)}, got {expect!r}")
    for key, kind in keys.items():
        if not isinstance(expect[key], kind):
            raise DataError(f"recipe {path}: expect.{key} can't be {expect[key]!r}")
    return expect


def _folder_name(entry: Entry) -> str:
    """Two files may hold classes of one name: the path's hash tells them apart."""
    if entry.rest is not None:
        return f"{entry.name.partition(':')[0]}-{entry.slug}"
    if ":" not in entry.name:
        return entry.slug
    return f"{entry.slug}-{hashlib.sha256(entry.name.encode()).hexdigest()[:8]}"


def _composed(strategy: str) -> list[Entry]:
    parts = [find("strategies", part) for part in strategy.split("+")]
    slugs = [part.slug for part in parts]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise BadValue(f"strategy {slug!r} is given twice in {strategy!r}")
    return parts


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.lr": 0.1} of {"train": {"lr": 0.1}}; paths as text."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, os.PathLike):
            flat[prefix + key] = os.fspath(value)
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _sections(keys: dict, stream: Entry | None, parts: list[Entry], model: Entry | None) -> dict:
    """{prefix: {name: raw value}}, "" for keys without a prefix. Raises UnknownName."""
    top = params_of_schema(Top)
    sections: dict[str, dict] = {prefix: {} for prefix in ("", *PREFIXES)}
    for key, value in keys.items():
        prefix, dot, name = key.partition(".")
        if not dot and key in top:
            sections[""][key] = value
        elif dot and prefix in PREFIXES:
            sections[prefix][name] = value
        else:
            raise _unknown_key(key, top, stream, parts, model)
    return sections


def _unknown_key(key: str, top: dict, stream, parts: list[Entry], model) -> UnknownName:
    known = list(top)
    known += [f"{prefix}.{n}" for prefix, kind in SCHEMAS.items() for n in params_of_schema(kind)]
    known += [
        f"objective.{name}" for kind in SETTABLE for name in find("objectives", kind).params()
    ]
    known += [f"stream.{name}" for name in (stream.params() if stream else ())]
    known += [f"stream.{name}" for name in params_of_schema(Scenario)]
    for part in parts:
        prefix = f"strategy.{part.slug}." if len(parts) > 1 else "strategy."
        known += [prefix + name for name in part.params()]
    known += [f"model.{name}" for name in (*(model.params() if model else ()), *START)]
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"; did you mean {same[0]!r}?" if same else nearest(key, known)
    return UnknownName(
        f"no key {key!r}{hint}; allowed: {', '.join(top)}, and "
        f"{', '.join(f'{prefix}.*' for prefix in PREFIXES)} (see `cl describe run`)"
    )


def _strategy_settings(given: dict[str, Any], parts: list[Entry]) -> list[dict[str, Any]]:
    settings: list[dict[str, Any]] = [{} for _ in parts]
    slugs = [part.slug for part in parts]
    for key, value in given.items():
        owner, dot, name = key.partition(".")
        if not dot:
            owner, name = slugs[0] if len(parts) == 1 else "", key
        if owner in slugs:
            own = settings[slugs.index(owner)]
            if name in own:
                raise BadValue(f"strategy.{name} is given twice, once as strategy.{owner}.{name}")
            own[name] = value
        else:
            known = [f"strategy.{part.slug}.{n}" for part in parts for n in part.params()]
            same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
            hint = f"; did you mean {same[0]!r}?" if same else nearest(f"strategy.{key}", known)
            raise UnknownName(
                f"no key 'strategy.{key}'{hint}; allowed: {', '.join(known) or 'none'}"
            )
    return [
        parse_all(
            "strategy." if len(parts) == 1 else f"strategy.{part.slug}.",
            own,
            part.params(),
            f"strategy {part.name}",
        )
        for part, own in zip(parts, settings, strict=True)
    ]


def differs(value: Any, default: Any) -> bool:
    """Whether a parsed value is another one than the default, which may be a tuple."""
    if isinstance(default, tuple) and value is not None:
        return list(value) != list(default)
    return value != default
