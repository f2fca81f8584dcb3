"""Bounded stores of training rows, kept as tensors on the device, shared by name.

Rows are stored as they came (not augmented, not normalised), so that a byte image costs a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rows = dict[str, Tensor]
POLICIES = ("reservoir", "class_balanced")


class Buffer:
    """A uniform sample of the rows offered so far, over all of them or class by class.

    Every offered row draws a key ~ U[0, 1) once; the rows with the smallest keys are held.
    `reservoir` holds the `capacity` smallest of all, so after n offers each row is held with
    probability min(1, capacity / n), as in algorithm R (Vitter 1985). `class_balanced` holds, of
    each of the C classes seen, the capacity // C smallest (one more for the first capacity % C
    classes); a class with fewer rows leaves the rest of its share unused.

    rows: {column: tensor [n, ...]}; keys: float64 [n] on the CPU.
    """

    def __init__(self, capacity: int, policy: str):
        self.capacity, self.policy = capacity, policy
        self.rows: Rows = {}
        self.keys = torch.empty(0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes held, keys included."""
        return self.keys.nbytes + sum(column.nbytes for column in self.rows.values())

    def add(self, rows: Rows, rng: torch.Generator) -> None:
        """Offer rows: columns of equal length B; column "y" [B] holds the classes."""
        keys = torch.rand(len(rows["y"]), generator=rng, dtype=torch.float64)
        if self.capacity == 0:
            return
        if not self.rows:
            self.rows = {name: column[:0] for name, column in rows.items()}
        held, both = len(self), torch.cat([self.keys, keys])
        keep = self._chosen(both, rows["y"])
        stay, enter = keep[keep < held], keep[keep >= held] - held
        if not len(enter) and len(stay) == held:
            return
        if len(stay) + len(enter) == held:  # same size: overwrite the rows that leave
            leave = torch.ones(held, dtype=torch.bool)
            leave[stay] = False
            slots = leave.nonzero()[:, 0]
            self.keys[slots] = keys[enter]
            for name, column in self.rows.items():
                column[slots.to(column.device)] = _take(rows[name], enter)
            return
        self.keys = torch.cat([self.keys[stay], keys[enter]])
        self.rows = {
            name: torch.cat([_take(column, stay), _take(rows[name], enter)])
            for name, column in self.rows.items()
        }

    def draw(self, n: int, rng: torch.Generator) -> Rows:
        """min(n, len) different rows, uniformly."""
        index = torch.randperm(len(self), generator=rng)[:n]
        return {name: _take(column, index) for name, column in self.rows.items()}

    def state(self) -> dict:
        """Everything, for the checkpoint."""
        return {
            "capacity": self.capacity,
            "policy": self.policy,
            "rows": self.rows,
            "keys": self.keys,
        }

    @staticmethod
    def from_state(state: dict) -> Buffer:
        """What `state` returned, as a buffer; rows that come back on the CPU are moved by use."""
        buffer = Buffer(state["capacity"], state["policy"])
        buffer.rows, buffer.keys = state["rows"], state["keys"].cpu()
        return buffer

    def _chosen(self, keys: Tensor, y_new: Tensor) -> Tensor:
        """Positions of the rows to hold among held and offered ones; `keys` [held + B]."""
        if self.policy == "reservoir":
            return keys.argsort()[: self.capacity]
        y = torch.cat([self.rows["y"], y_new.to(self.rows["y"].device)]).cpu()
        classes = y.unique().tolist()
        share, rest = divmod(self.capacity, len(classes))
        chosen = []
        for k, c in enumerate(classes):
            of_class = (y == c).nonzero()[:, 0]
            chosen.append(of_class[keys[of_class].argsort()[: share + (k < rest)]])
        return torch.cat(chosen)


def _take(column: Tensor, index: Tensor) -> Tensor:
    return column[index.to(column.device)]
