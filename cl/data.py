"""Tables: columns of equal length that live on one device, and views of their rows.

A batch is an index draw. Experiences and evals are views of one pool, so a stream is held once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Column(Protocol):
    """What stands in for a tensor where the rows do not fit into memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor) -> Tensor: ...
    def to(self, device: torch.device) -> Column: ...
    def digest(self) -> bytes: ...


class Gathered:
    """The column `source[index]` without a copy, for rows that stand in several places.

    source: [M, ...], held once; index: int64 [N], rows of it.
    """

    def __init__(self, source: Tensor, index: Tensor):
        self.source, self.index = source, index
        self.shape, self.dtype = (len(index), *source.shape[1:]), source.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Tensor:
        at = torch.index_select(self.index, 0, index.to(self.index.device))
        return torch.index_select(self.source, 0, at)

    def to(self, device: torch.device) -> Gathered:
        """The same rows on another device."""
        return Gathered(self.source.to(device), self.index.to(device))

    def digest(self) -> bytes:
        """Hash of the source and of the positions in it."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.source, self.index):
            digest.update(memoryview(part.cpu().contiguous().numpy()).cast("B"))
        return digest.digest()


class Table:
    """Columns of equal length, seen through an optional row index.

    columns: {name: tensor [N, ...] or Column}; "x" inputs and "y" int64 labels for vision.
    index: int64 [n], rows of the columns; None means all of them in order.
    """

    def __init__(self, columns: Mapping[str, Tensor | Column], index: Tensor | None = None):
        self.columns = dict(columns)
        self.index = index
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns must have equal length, got {lengths}")
        self._n = len(index) if index is not None else next(iter(lengths.values()), 0)

    def __len__(self) -> int:
        return self._n

    @property
    def device(self) -> torch.device:
        """Where the labels, and with them the batches, live."""
        return self.columns["y"].device

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at positions `index` (int64 [B]) of this view, column by column."""
        if self.index is not None:
            index = torch.index_select(self.index, 0, index)  # half the cost of self.index[index]
        return {name: _take(column, index) for name, column in self.columns.items()}

    def column(self, name: str) -> Tensor:
        """One whole column of this view."""
        column = self.columns[name]
        if self.index is not None:
            return _take(column, self.index)
        return column if isinstance(column, Tensor) else _take(column, torch.arange(len(self)))

    def select(self, index: Tensor) -> Table:
        """The view that holds the rows at positions `index` of this one."""
        return Table(self.columns, index if self.index is None else self.index[index])

    def to(self, device: torch.device) -> Table:
        """This table on another device (a pool shared by many views: see Stream.to)."""
        index = None if self.index is None else self.index.to(device)
        return Table({name: column.to(device) for name, column in self.columns.items()}, index)

    @property
    def nbytes(self) -> int:
        """Bytes of this view's rows, as stored."""
        return sum(
            len(self) * _row_elements(column) * column.dtype.itemsize
            for column in self.columns.values()
        )

    @staticmethod
    def concat(tables: list[Table]) -> Table:
        """All rows of `tables` in order: a view if they share their columns, else a copy."""
        first = tables[0]
        same = all(
            table.columns.keys() == first.columns.keys()
            and all(table.columns[name] is first.columns[name] for name in first.columns)
            for table in tables
        )
        if same:
            return Table(first.columns, torch.cat([table.positions() for table in tables]))
        names = first.columns.keys()
        return Table({name: torch.cat([t.column(name) for t in tables]) for name in names})

    def positions(self) -> Tensor:
        """The rows of the columns that this view shows, int64 [n]."""
        return torch.arange(len(self), device=self.device) if self.index is None else self.index


class Epochs:
    """The minibatches of one experience; each `iter` is a new epoch.

    Yields int64 [B] positions. Where an epoch stands is in attributes alone, not in a suspended
    frame: `state` takes it out between two batches, `load_state` puts it back, and `rest` goes on
    from there. A subclass writes `__len__`, `begin` and, where batches are not all known at the
    beginning, `more`; what else it holds it adds to `state` and `load_state`.

    parts: the batches that are known; at: how many of them have been given out.
    """

    def __init__(self):
        self.parts: Sequence[Tensor] = ()
        self.at = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start an epoch."""
        raise NotImplementedError

    def more(self) -> bool:
        """Put the next batches into `parts`, by `give`; False: the epoch is over."""
        return False

    def give(self, parts: Sequence[Tensor]) -> bool:
        """These batches come next."""
        self.parts, self.at = parts, 0
        return True

    def __iter__(self) -> Iterator[Tensor]:
        self.begin()
        return self.rest()

    def rest(self) -> Iterator[Tensor]:
        """What is left of the running epoch."""
        while self.at < len(self.parts) or self.more():
            self.at += 1
            yield self.parts[self.at - 1]

    def state(self) -> dict:
        """Where the epoch stands, for the checkpoint."""
        return {
            "order": torch.cat(list(self.parts)),
            "lengths": [len(part) for part in self.parts],
            "at": self.at,
        }

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned; `begin` is not called then."""
        self.give(state["order"].split(state["lengths"]))
        self.at = state["at"]

    def close(self) -> None:
        """The experience is over: let go of what is held outside of this object."""


class Batches(Epochs):
    """One experience's minibatches as index draws; each `iter` is one shuffled epoch.

    Yields int64 [B] positions into `table`; the last batch may be smaller, none is dropped.
    """

    def __init__(self, table: Table, batch_size: int, generator: torch.Generator):
        super().__init__()
        self.table, self.batch_size, self.generator = table, batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.table) // self.batch_size)

    def begin(self) -> None:
        """See Epochs."""
        order = torch.randperm(len(self.table), generator=self.generator)
        self.give(order.to(self.table.device).split(self.batch_size))


def _take(column: Tensor | Column, index: Tensor) -> Tensor:
    if isinstance(column, Tensor):
        return torch.index_select(column, 0, index)
    return column[index]


def _row_elements(column: Tensor | Column) -> int:
    n = 1
    for size in column.shape[1:]:
        n *= size
    return n
