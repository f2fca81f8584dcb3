"""Plug-ins by name: found by reading source, imported only when used.

A file `strategies/fetril.py` whose top level holds one object decorated with `@register` *is*
the strategy `fetril`; the same holds for `streams/`, `cl/models/`, `cl/probes/` and
`cl/objectives/`. Besides these a name may be `path/to/file.py:Object`, `package.module:Object`,
an entry point of an installed package (groups `cl.strategies`, `cl.streams`, ...), or anything
decorated with `@register` in the running program.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path

from cl.adapters import PARAMS as ADAPTERS
from cl.config import Param, params_of_source
from cl.errors import ContractError, DataError, UnknownName, UsageError, unknown

ROOMS = {
    "streams": "streams",
    "strategies": "strategies",
    "models": "cl.models",
    "probes": "cl.probes",
    "objectives": "cl.objectives",
}
# `prefix:REST` names something of a library; the target is called with REST before its keywords
PREFIXES = {
    "models": {
        "timm": "cl.models._libraries:timm",
        "torchvision": "cl.models._libraries:vision",
        "hf": "cl.models._hf:hf",
    },
    "streams": {"torchvision": "streams._torchvision:data_set", "avalanche": "cl.avalanche:stream"},
    "strategies": {"avalanche": "cl.avalanche:strategy"},
}
FOLDERS = ("hf",)  # prefixes whose REST may be a folder
# modules that know a library's names from its source, without importing it
READERS = {"avalanche": "cl.avalanche_source"}
SINGULAR = {kind: kind[:-1] if kind != "strategies" else "strategy" for kind in ROOMS}
NAME = re.compile(r"[a-z][a-z0-9_]*")
MODELS = ("Module", "LanguageModel", "PolicyModel")  # what builders of models are annotated with

_registered: dict[tuple[str, str], object] = {}


@dataclass(frozen=True)
class Entry:
    """A plug-in that has been found, not imported.

    name: what the command line calls it; slug: its name in folders and key prefixes;
    module, attr: where the object is; path: the source file, None for objects of the program;
    rest: what follows the prefix in a name like `timm:resnet18`, else None.
    """

    kind: str
    name: str
    slug: str
    module: str
    attr: str
    path: Path | None
    rest: str | None = None

    @property
    def reader(self):
        """What reads the library's source for names like `avalanche:EWCPlugin`, else None."""
        if self.rest is None or self.name.partition(":")[0] not in READERS:
            return None
        return importlib.import_module(READERS[self.name.partition(":")[0]])

    @property
    def doc(self) -> str:
        """The documentation: the file's if the plug-in is what the file is for, else its own."""
        if self.reader is not None:
            return self.reader.doc(self.kind, self.rest)
        if self.path is None:
            return getattr(self.load(), "__doc__", None) or ""
        tree, node = _parsed(self.path, self.attr)
        own, module = ast.get_docstring(node), ast.get_docstring(tree)
        alone = sum(isinstance(n, ast.ClassDef | ast.FunctionDef) for n in tree.body) == 1
        in_room = self.module.rpartition(".")[0] == ROOMS[self.kind]
        return (module or own or "") if in_room or alone else (own or module or "")

    @property
    def summary(self) -> str:
        """The first line of the documentation, without a leading `name: `."""
        first = self.doc.strip().partition("\n")[0]
        return re.sub(r"^[\w ]{1,40}(:NAME[\w ]*)*: ", "", first)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a strategy declares to need, read from its source."""
        return () if self.reader is not None else self._declared("needs")

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the streams that a strategy declares to be made for; none: all."""
        return ("vision",) if self.reader is not None else self._declared("domains")

    def _declared(self, name: str) -> tuple[str, ...]:
        """A tuple that a class's body sets."""
        if self.path is None:
            return tuple(getattr(self.load(), name, ()))
        _, node = _parsed(self.path, self.attr)
        for item in getattr(node, "body", []):
            if isinstance(item, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name for target in item.targets
            ):
                return tuple(ast.literal_eval(item.value))
        return ()

    def params(self) -> dict[str, Param]:
        """Every keyword the constructor takes: annotation, default, description.

        A language model has the settings of adapters besides.
        """
        if self.reader is not None:
            return self.reader.params(self.kind, self.rest)
        path = self.path or Path(importlib.import_module(self.module).__file__)
        _, node = _parsed(path, self.attr)
        own = params_of_source(node, self.doc, str(path))
        speaks = self.kind == "models" and _returns(node).endswith("LanguageModel")
        return own | ADAPTERS if speaks else own

    def load(self) -> Callable:
        """Import the plug-in and return its class or function."""
        if (self.kind, self.name) in _registered and self.path is None:
            return _registered[self.kind, self.name]
        made = getattr(_import(self.module, self.path), self.attr)
        return made if self.rest is None else partial(made, self.rest)


def register(obj):
    """Class or function decorator: make a plug-in known by name.

    In a plug-in room the name is the file's; elsewhere the object's own in snake case.
    Raises ContractError if another object already has the name.
    """
    kind = _kind_of(obj)
    in_room = obj.__module__.rpartition(".")[0] == ROOMS[kind]
    name = name_of(obj)
    if not NAME.fullmatch(name):
        raise ContractError(f"plug-in name {name!r} must match [a-z][a-z0-9_]*")
    known = _registered.get((kind, name))
    taken = known is not None and _identity(known) != _identity(obj)
    if taken or (not in_room and name in _in_room(kind)):
        raise ContractError(f"{SINGULAR[kind]} {name!r} is registered twice; rename one of the two")
    _registered[kind, name] = obj
    return obj


def name_of(obj) -> str:
    """The name of a class or function: its file's in a plug-in room, else its own in snake case."""
    package, _, module = obj.__module__.rpartition(".")
    return module if package in ROOMS.values() else snake(obj.__name__)


def entries(kind: str) -> dict[str, Entry]:
    """Every plug-in of a kind that has a name of its own, in alphabetical order."""
    found = dict(_in_room(kind))
    for point in _installed(kind):
        module, _, attr = point.value.partition(":")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        if point.name in found:
            raise ContractError(
                f"{SINGULAR[kind]} {point.name!r} of {point.value} is registered twice; "
                "uninstall one of the two packages"
            )
        found[point.name] = Entry(kind, point.name, point.name, module, attr, Path(spec.origin))
    for (registered_kind, name), obj in _registered.items():
        if registered_kind == kind and name not in found:
            found[name] = Entry(kind, name, name, obj.__module__, obj.__qualname__, None)
    return dict(sorted(found.items()))


def find(kind: str, name: str) -> Entry:
    """The plug-in called `name`. Raises UnknownName, DataError or ContractError in one line."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PREFIXES.get(kind, {}):
        return _find_prefixed(kind, prefix, rest)
    if colon:
        return _find_located(kind, name)
    found = entries(kind)
    if name not in found:
        hint = f" (see `cl list {kind}`; your own: path/to/file.py:Object)"
        if name.endswith(".py"):
            hint = f"; an object in a file is written {name}:Object"
        raise unknown(SINGULAR[kind], name, found, hint)
    return found[name]


def located(name: str) -> list[Entry]:
    """What `path.py`, `path.py:Object`, `package.module:Object` or `prefix:REST` is."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"no file {name}")
        nodes = [n for n in _tree(path).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
        kinds = {node.name: _kind_of_source(node) for node in nodes}
        found = [find(kind, f"{name}:{attr}") for attr, kind in kinds.items() if kind]
        if not found:
            raise ContractError(
                f"{name} holds no plug-in: a strategy is a class derived from cl.Strategy, "
                "a stream a function annotated `-> Stream`"
            )
        return found
    kinds = [kind for kind in ROOMS if name.partition(":")[0] in PREFIXES.get(kind, {})]
    if kinds:
        return [_prefixed(kinds, name)]
    entry = find("strategies", name)
    kind = _kind_of_source(_parsed(entry.path, entry.attr)[1]) or "strategies"
    return [find(kind, name)]


def _prefixed(kinds: list[str], name: str) -> Entry:
    """`prefix:REST` as the first of `kinds` that has it."""
    prefix, _, rest = name.partition(":")
    if prefix not in READERS:  # torchvision: data sets are written with a capital, models without
        wanted = "streams" if rest[:1].isupper() else "models"
        kinds = [kind for kind in kinds if kind == wanted] or kinds
    errors = []
    for kind in kinds:
        try:
            return find(kind, name)
        except UsageError as error:
            errors.append(error)
    # a name that is known but can't be used says more than one that is not, and a near one helps
    raise max(errors, key=lambda e: (not isinstance(e, UnknownName), "did you mean" in str(e)))


def _kind_of_source(node: ast.AST) -> str | None:
    """The kind of a class or function by its bases or its return annotation."""
    if isinstance(node, ast.ClassDef):
        return "strategies" if node.bases else None
    returns = _returns(node)
    if returns.endswith("Stream"):
        return "streams"
    return "models" if returns.endswith(MODELS) else None


def _returns(node: ast.AST) -> str:
    """A function's return annotation as text; empty without one, and for a class."""
    returns = getattr(node, "returns", None)
    return ast.unparse(returns) if returns is not None else ""


def snake(name: str) -> str:
    """`MyStrategy` -> `my_strategy`, `FeTrIL` -> `fe_tr_il`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return name.lower().strip("_")


def _find_prefixed(kind: str, prefix: str, rest: str) -> Entry:
    """`prefix:REST`; without a reader the library says when loaded whether it knows REST."""
    if not rest or not rest.isprintable():
        raise UnknownName(f"{SINGULAR[kind]} {prefix}:{rest} lacks a name after the colon")
    module, _, attr = PREFIXES[kind][prefix].partition(":")
    package, *parts = module.split(".")  # a submodule's spec would import what is above it
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    path = folder.joinpath(*parts).with_suffix(".py")
    if prefix in READERS:
        reader = importlib.import_module(READERS[prefix])
        reader.check(kind, rest)
        path = reader.path(kind, rest)
    if prefix in FOLDERS and Path(rest).expanduser().is_dir():
        rest = str(Path(rest).expanduser().absolute())  # a recipe can be run from anywhere
    slug = re.sub(r"[^a-z0-9]+", "_", snake(rest)).strip("_")
    return Entry(kind, f"{prefix}:{rest}", slug, module, attr, path, rest)


def _find_located(kind: str, name: str) -> Entry:
    location, _, attr = name.rpartition(":")
    path = Path(location).expanduser()
    if location.endswith(".py") or "/" in location:
        if not path.is_file():
            raise DataError(f"{SINGULAR[kind]} {name!r}: no file {location}")
        path, module = path.resolve(), ""
    else:
        try:
            spec = importlib.util.find_spec(location)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not Path(spec.origin or "").is_file():
            raise UnknownName(
                f"{SINGULAR[kind]} {name!r}: no module {location!r} on the Python path"
            )
        path, module = Path(spec.origin), location
    _parsed(path, attr)  # raises a clear error if the object is missing
    shown = f"{path}:{attr}" if not module else name
    return Entry(kind, shown, snake(attr), module or f"cl_user_{path.stem}", attr, path)


@cache
def _installed(kind: str) -> tuple:
    """Entry points of installed packages; reading what is installed takes milliseconds."""
    return tuple(entry_points(group=f"cl.{kind}"))


@cache
def _in_room(kind: str) -> dict[str, Entry]:
    package = ROOMS[kind]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return {}
    found = {}
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("[!_]*.py")):
            attr = _registered_name(path)
            if attr:
                found[path.stem] = Entry(
                    kind, path.stem, path.stem, f"{package}.{path.stem}", attr, path
                )
    return found


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except OSError as error:
        raise ContractError(f"{path} can't be read: {error.strerror}") from error
    except SyntaxError as error:
        raise ContractError(f"{path}:{error.lineno}: {error.msg}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise ContractError(f"{path}: not a Python source file ({error})") from error


def _parsed(path: Path, attr: str) -> tuple[ast.Module, ast.AST]:
    tree = _tree(path)
    nodes = {
        node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    if attr not in nodes:
        raise unknown("class or function", attr, nodes, f" in {path}")
    return tree, nodes[attr]


def _registered_name(path: Path) -> str | None:
    names = [node.name for node in _tree(path).body if _decorated(node)]
    if len(names) > 1:
        raise ContractError(f"{path} registers {', '.join(names)}; one plug-in per file")
    return names[0] if names else None


def _decorated(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef) and any(
        isinstance(decorator, ast.Name) and decorator.id == "register"
        for decorator in node.decorator_list
    )


def _import(module: str, path: Path | None):
    if path is None or not module.startswith("cl_user_"):
        return importlib.import_module(module)
    known = sys.modules.get(module)
    if known is not None and Path(known.__file__) == path:
        return known
    spec = importlib.util.spec_from_file_location(module, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    except ImportError as error:
        del sys.modules[module]
        raise ContractError(f"{path}: {error}") from error
    return loaded


def _kind_of(obj) -> str:
    room = obj.__module__.rpartition(".")[0]
    for kind, package in ROOMS.items():
        if room == package:
            return kind
    bases = {base.__name__ for base in getattr(obj, "__mro__", ())}
    returns = str(getattr(obj, "__annotations__", {}).get("return", ""))
    if "Strategy" in bases:
        return "strategies"
    if "Stream" in returns:
        return "streams"
    if any(name in returns for name in MODELS) or "Module" in bases:
        return "models"
    raise ContractError(
        f"can't tell what {obj.__name__} is: a strategy is a class derived from cl.Strategy, "
        "a stream a function annotated `-> Stream`, a model one annotated `-> nn.Module`"
    )


def _identity(obj) -> tuple[str, str]:
    return obj.__module__, obj.__qualname__
