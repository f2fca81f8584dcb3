"""Streams: ordered experiences, the evals that are scored, and the operators that make them.

A stream is a pure function of its arguments. All its rows live in one pool; experiences and
evals are views of it. Labels are positions in the order of arrival, so that the classes seen
so far are always 0..n-1 and a head grows at its end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from cl.data import Table
from cl.errors import BadValue, DataError
from cl.seeding import generator

DEFAULT_EXPERIENCES = 5
GIVES = ("boundaries", "task_id_train", "task_id_test", "stream_length", "future_data")


@dataclass
class Experience:
    """What arrives at once. `task_label` is None unless the scenario gives it to the model."""

    index: int
    name: str
    classes: tuple[int, ...]
    train: Table
    val: Table | None = None
    task_label: int | None = None

    @property
    def current_experience(self) -> int:
        """Avalanche's name for `index`."""
        return self.index

    @property
    def dataset(self) -> Table:
        """Avalanche's name for `train`."""
        return self.train

    @property
    def classes_in_this_experience(self) -> list[int]:
        """Avalanche's name for `classes`."""
        return list(self.classes)


@dataclass
class Eval:
    """One scored test set.

    learned_at: experiences that teach it, ascending; empty for held-out sets.
    chance: score of a uniform guess among the classes seen when it is first learned.
    """

    name: str
    classes: tuple[int, ...]
    test: Table
    val: Table | None = None
    learned_at: tuple[int, ...] = ()
    kind: str = "stream"
    chance: float = 0.0
    task_label: int | None = None


@dataclass
class Stream:
    """An ordered list of experiences and the evals that measure them.

    gives: what a strategy may rely on, a subset of `GIVES`; transform: raw inputs to model
    inputs (float32, normalised), None for identity; defaults: {key: value} that fit this stream.
    accepts: where several answers are right, bool [K, C]: class c is right for a row iff
    accepts[answer, c], with "answer", int64 in [0, K), a column of every table; "y" is then what
    a demonstration shows. None: class c is right iff c == y.
    """

    name: str
    domain: str
    experiences: list[Experience]
    evals: list[Eval]
    input_shape: tuple[int, ...]
    class_names: list[str]
    gives: frozenset[str] = frozenset({"boundaries", "stream_length"})
    jointly_solvable: bool = True
    transform: Callable[[Tensor], Tensor] | None = None
    defaults: dict = field(default_factory=dict)
    score: str = "accuracy"
    online: bool = False  # one pass, batches scored before they are learned
    accepts: Tensor | None = None

    def __post_init__(self):
        if not self.experiences:
            raise DataError(f"stream {self.name!r} has no experiences")
        unknown_gives = set(self.gives) - set(GIVES)
        if unknown_gives:
            raise BadValue(f"stream {self.name!r} gives {sorted(unknown_gives)}; known: {GIVES}")
        if self.accepts is not None:
            self._check_answers(self.accepts)

    def __len__(self) -> int:
        return len(self.experiences)

    @property
    def n_classes(self) -> int:
        """Classes over the whole stream."""
        return len(self.class_names)

    def seen_classes(self, index: int) -> int:
        """How many classes experiences 0..index have brought; they are 0..n-1."""
        return self._widths[index]

    @cached_property
    def _widths(self) -> list[int]:
        return list(accumulate((1 + max(e.classes, default=-1) for e in self.experiences), max))

    @cached_property
    def task_mask(self) -> Tensor:
        """Which classes each task label stands for: bool [labels, C]."""
        labels = [e.task_label for e in self.experiences if e.task_label is not None]
        mask = torch.zeros(1 + max(labels, default=-1), self.n_classes, dtype=torch.bool)
        for e in self.experiences:
            if e.task_label is not None:
                mask[e.task_label, list(e.classes)] = True
        return mask

    def is_right(self, rows: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Which of the classes [B, ...] are right answers to the rows [B]: bool of their shape."""
        truth = rows["y" if self.accepts is None else "answer"]
        truth = truth.view(-1, *[1] * (classes.dim() - 1)).expand_as(classes)
        return classes == truth if self.accepts is None else self.accepts[truth, classes]

    def chance(self, table: Table, classes: Sequence[int]) -> float:
        """The score on a table's rows of a uniform guess among `classes`, which hold the truth."""
        if self.accepts is None:
            return 1 / len(classes)
        right = self.accepts[:, list(classes)].double().mean(1)  # [K]
        return float(right[table.column("answer")].mean())

    def _check_answers(self, accepts: Tensor) -> None:
        """A column of `accepts` for every class, a kind of truth for every row."""
        if accepts.dtype != torch.bool or accepts.shape[1:] != (self.n_classes,):
            got = f"{accepts.dtype} {tuple(accepts.shape)}"
            raise DataError(f"{self.name}: accepts must be bool [K, C={self.n_classes}], got {got}")
        tables = [t for e in self.experiences for t in (e.train, e.val)]
        tables += [t for ev in self.evals for t in (ev.test, ev.val)]
        columns = {id(c): c for t in tables if t is not None for c in [t.columns.get("answer")]}
        for c in columns.values():
            if c is None or (len(c) and not 0 <= int(c.min()) <= int(c.max()) < len(accepts)):
                what = f"a column 'answer' within 0 to {len(accepts) - 1}"
                raise DataError(f"{self.name}: every table needs {what}, as accepts tells")

    def to(self, device: torch.device) -> Stream:
        """This stream with its pools on `device`; pools that were shared stay shared."""
        moved: dict[int, tuple] = {}  # the original is kept alive, so that no id is used twice

        def move(table: Table | None) -> Table | None:
            if table is None:
                return None
            for column in table.columns.values():
                if id(column) not in moved:
                    moved[id(column)] = column, column.to(device)
            index = None if table.index is None else table.index.to(device)
            return Table({k: moved[id(c)][1] for k, c in table.columns.items()}, index)

        for e in self.experiences:
            e.train, e.val = move(e.train), move(e.val)
        for ev in self.evals:
            ev.test, ev.val = move(ev.test), move(ev.val)
        if hasattr(self.transform, "to"):
            self.transform = self.transform.to(device)
        if self.accepts is not None:
            self.accepts = self.accepts.to(device)
        return self

    def content_hash(self) -> str:
        """Hash of every value, label, split and order: equal hashes are equal streams."""
        digest = hashlib.blake2b(digest_size=16)
        pools: dict[int, object] = {}

        def add(table: Table | None) -> None:
            if table is None:
                digest.update(b"none")
                return
            for name, column in table.columns.items():
                if id(column) not in pools:
                    pools[id(column)] = column
                    digest.update(f"{name}{tuple(column.shape)}{column.dtype}".encode())
                    digest.update(_bytes(column))
            digest.update(b"all" if table.index is None else _bytes(table.index))

        digest.update(repr((self.domain, self.class_names, self.score)).encode())
        if self.accepts is not None:
            digest.update(repr(tuple(self.accepts.shape)).encode() + _bytes(self.accepts))
        for e in self.experiences:
            digest.update(repr((e.index, e.classes, e.task_label)).encode())
            add(e.train)
            add(e.val)
        for ev in self.evals:
            digest.update(repr((ev.kind, ev.classes, ev.learned_at, ev.task_label)).encode())
            add(ev.test)
            add(ev.val)
        return digest.hexdigest()


@dataclass
class Labelled:
    """A labelled data set before any order is imposed.

    x: [N, ...] inputs; y: int64 [N] labels in [0, len(names)); train, test: int64 row indices.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    names: list[str]


@dataclass
class Normalise:
    """Raw inputs to model inputs: `x * scale + shift`, float32, per channel.

    scale, shift: float32 [C, 1, 1].
    """

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        # three times as fast on a CPU as addcmul, whose operands would all be broadcast
        return (x.to(torch.float32) * self.scale).add_(self.shift)

    def to(self, device: torch.device) -> Normalise:
        """The same constants on another device."""
        return Normalise(self.scale.to(device), self.shift.to(device))

    @staticmethod
    def fit(x: Tensor) -> Normalise:
        """Zero mean and unit variance per channel over x [N, C, H, W] of experience 0."""
        dims = (0, 2, 3)
        mean, square = 0.0, 0.0
        for part in x.split(4096):  # in parts: a float64 copy of everything would not fit
            part = part.double()
            mean, square = mean + part.sum(dims), square + part.pow(2).sum(dims)
        n = x.numel() / x.shape[1]
        mean = mean / n
        std = (square / n - mean**2).clamp_min(0).sqrt()
        std = torch.where(std > 1e-6 * max(1.0, float(mean.abs().max())), std, torch.ones(()))
        scale = (1 / std).float()[:, None, None]
        return Normalise(scale, (-mean / std).float()[:, None, None])


def split_sizes(
    n_classes: int,
    *,
    n_experiences: int | None = None,
    base: int | None = None,
    increment: int | None = None,
) -> list[int]:
    """Classes per experience: equal shares (five by default), or `base`, then `increment` each.

    No class is dropped: equal shares that do not divide give the first experiences one more
    (10 in 3: 4, 3, 3); a rest smaller than `increment` is the last experience.
    """
    if n_classes < 2:
        raise DataError(f"a class-incremental stream needs 2 or more classes, got {n_classes}")
    if base is not None or increment is not None:
        if n_experiences is not None:
            raise BadValue(
                "stream.n_experiences is for equal shares; give it or stream.base and "
                "stream.increment, not both"
            )
    else:
        n = DEFAULT_EXPERIENCES if n_experiences is None else n_experiences
        n = n_classes if n_experiences is None and n > n_classes else n
        if not 1 <= n <= n_classes:
            raise BadValue(f"stream.n_experiences must be 1 to {n_classes} (classes), got {n}")
        return [n_classes // n + (k < n_classes % n) for k in range(n)]
    increment = 1 if increment is None else increment
    base = increment if base is None else base
    if increment < 1:
        raise BadValue(f"stream.increment must be 1 or more, got {increment}")
    if not 1 <= base <= n_classes:
        raise BadValue(f"stream.base must be 1 to {n_classes} (classes), got {base}")
    rest = n_classes - base
    sizes = [base] + [increment] * (rest // increment)
    return sizes + ([rest % increment] if rest % increment else [])


def class_order(names: Sequence[str], order: str | Sequence[int], seed: int) -> list[int]:
    """The classes in order of arrival: `fixed` as listed, `seeded`, or a given permutation."""
    n = len(names)
    if order == "fixed":
        return list(range(n))
    if order == "seeded":
        return torch.randperm(n, generator=generator(seed, "class_order")).tolist()
    if sorted(order) != list(range(n)):
        raise BadValue(f"stream.class_order must hold each of 0..{n - 1} once, got {list(order)}")
    return list(order)


def class_incremental(
    name: str,
    data: Labelled,
    *,
    sizes: list[int],
    order: str | Sequence[int],
    val: float,
    seed: int,
    normalise: bool = True,
    defaults: dict | None = None,
) -> Stream:
    """New classes in every experience; every class is tested at the end of each later one.

    val: share of each class's training items carved out for validation, at least one item.
    """
    order = class_order(data.names, order, seed)
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[torch.tensor(order)] = torch.arange(len(order))
    pool = {"x": data.x, "y": rank[data.y]}
    names = [data.names[c] for c in order]
    parts = {
        "train": _by_class(pool["y"], data.train, names, "training"),
        "test": _by_class(pool["y"], data.test, names, "test"),
    }
    held = {c: _carve(items, val, names[c], seed) for c, items in enumerate(parts["train"])}
    experiences, evals, start = [], [], 0
    for index, size in enumerate(sizes):
        classes = tuple(range(start, start + size))
        start += size
        train = Table(pool, torch.cat([held[c][0] for c in classes]))
        validation = Table(pool, torch.cat([held[c][1] for c in classes])) if val else None
        test = Table(pool, torch.cat([parts["test"][c] for c in classes]))
        title = _title(index, [names[c] for c in classes])
        experiences.append(Experience(index, title, classes, train, validation))
        evals.append(Eval(title, classes, test, validation, (index,), chance=1 / start))
    transform = Normalise.fit(experiences[0].train.column("x")) if normalise else None
    return Stream(
        name,
        "vision",
        experiences,
        evals,
        tuple(data.x.shape[1:]),
        names,
        transform=transform,
        defaults=defaults or {},
    )


def hold_out(y: Tensor, share: float, seed: int, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Split rows into (train, test), stratified: `share` of each class, at least one item each."""
    train, test = [], []
    for c, name in enumerate(names):
        items = (y == c).nonzero()[:, 0]
        rest, held = _carve(items, share, name, seed, key="stream.test")
        train.append(rest)
        test.append(held)
    return torch.cat(train), torch.cat(test)


def _carve(items: Tensor, share: float, name: str, seed: int, key: str = "stream.val"):
    """(kept, held) of one class's rows, ascending; drawn by class name, whatever its position."""
    if not share:
        return items, items[:0]
    n = max(1, round(share * len(items)))
    if n >= len(items):
        instead = f"{key}=0" if key == "stream.val" else f"a smaller {key}"
        raise BadValue(
            f"{key}={share:g} leaves class {name!r} no training item of its {len(items)}; "
            f"give more items or {instead}"
        )
    shuffled = items[torch.randperm(len(items), generator=generator(seed, f"{key}/{name}"))]
    return shuffled[n:].sort().values, shuffled[:n].sort().values


def _by_class(y: Tensor, rows: Tensor, names: Sequence[str], split: str) -> list[Tensor]:
    grouped = [rows[y[rows] == c] for c in range(len(names))]
    empty = [names[c] for c, items in enumerate(grouped) if not len(items)]
    if empty:
        raise DataError(f"class {empty[0]!r} has no {split} item")
    return grouped


def _title(index: int, names: list[str]) -> str:
    inner = "+".join(names) if len(names) <= 3 else f"{names[0]}..{names[-1]}"
    safe = "".join(ch if ch.isalnum() or ch in "+._-" else "-" for ch in inner)
    return f"{index:02d}_{safe[:40]}"


def _bytes(column) -> bytes | memoryview:
    if isinstance(column, Tensor):
        return memoryview(column.detach().cpu().contiguous().numpy()).cast("B")
    return column.digest()
