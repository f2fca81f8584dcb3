"""Maps of cells: what FrozenLake and GridWorld are made of.

A map is a list of equally long rows of letters; cells are numbered row by row, S of them.
Directions are Gymnasium's: 0 left, 1 down, 2 right, 3 up; the border stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cl.environments._base import Simulated
from cl.errors import BadValue

Map = Sequence[str]
TRIES = 10_000  # random maps until one has a way


class Grid(Simulated):
    """Positions on maps of one shape, seen one-hot; x [1, n] is the cell.

    cells    letters [n, S], of maps of `rows` times `columns` cells
    """

    number = np.int64
    n_actions, observation_kind = 4, "one_hot"
    width = 1

    def __init__(self, n: int, maps: Map | Sequence[Map], letters: str, limit: int | None):
        super().__init__(n, limit)
        self.cells, (self.rows, self.columns) = read_maps(self.id, n, maps, letters)
        self.observation_size = self.rows * self.columns
        self._first = np.arange(n) * self.observation_size  # a map's place in flat tables
        self._cells = self.cells.ravel()

    def _starting(self, letter: str) -> None:
        """Episodes begin in a cell with this letter, each as likely."""
        found = self.cells == letter
        self._choices = np.argsort(~found, axis=1, kind="stable")  # theirs first, in order
        self._n_choices = found.sum(1)

    def _begin(self, which, u):
        drawn = (u[:, 0] * self._n_choices[which]).astype(np.int64)
        return self._choices[which, drawn][None]

    def _seen(self, x):
        return np.equal.outer(x[0], np.arange(self.observation_size)).astype(np.float32)

    def planes(self, letters: str) -> np.ndarray:
        """Which cells hold each of these letters, float32 [n, len(letters) S]: a map as context."""
        return np.concatenate([self.cells == letter for letter in letters], 1).astype(np.float32)


def read_maps(
    name: str, n: int, maps: Map | Sequence[Map], letters: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """(letters [n, S], (rows, columns)) of one map or of n. Raises BadValue."""
    several = [maps] * n if len(maps) and isinstance(maps[0], str) else list(maps)
    if len(several) != n:
        raise BadValue(f"{name} takes one map or one per environment ({n}), got {len(several)}")
    shapes = {(len(rows), *(len(row) for row in rows)) for rows in several}
    shape = min(shapes)
    if len(shapes) > 1 or len(set(shape[1:])) != 1 or not shape[1]:
        raise BadValue(f"{name} takes maps of rows of one length, all of one size; got {several}")
    cells = np.array([list("".join(rows)) for rows in several])
    for k, rows in enumerate(cells):
        found = set(rows.tolist())
        if not found <= set(letters) or not set("SG") <= found:
            raise BadValue(
                f"{name} map {k} must be made of the letters {letters}, S and G among them; "
                f"it has {''.join(sorted(found))}"
            )
    return cells, shape[:2]


def neighbours(rows: int, columns: int) -> np.ndarray:
    """The cell in every direction, int64 [S, 4]; the cell itself at the border."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    left, right = np.maximum(column - 1, 0), np.minimum(column + 1, columns - 1)
    down, up = np.minimum(row + 1, rows - 1), np.maximum(row - 1, 0)
    at = row * columns
    return np.stack([at + left, down * columns + column, at + right, up * columns + column], 1)


def reachable(cells: np.ndarray, shape: tuple[int, int], closed: str) -> np.ndarray:
    """Which cells [S] have a way from S around those with the letter `closed`, bool [S]."""
    around, free = neighbours(*shape), cells != closed
    found = cells == "S"
    while True:
        more = found.copy()
        more[around[found].ravel()] = True
        more &= free
        if (more == found).all():
            return found
        found = more


def drawn(draw: Callable[[], np.ndarray], shape: tuple[int, int], closed: str, all_free: bool):
    """The first map drawn with a way from S to G, or to every cell that is not `closed`."""
    for _ in range(TRIES):
        cells = draw()
        found = reachable(cells, shape, closed)
        wanted = (cells != closed) if all_free else (cells == "G")
        if found[wanted].all():
            return ["".join(row) for row in cells.reshape(shape)]
    raise BadValue(f"no map of {shape[0]} x {shape[1]} with a way in {TRIES} draws: close fewer")
