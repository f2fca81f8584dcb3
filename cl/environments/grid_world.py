"""grid_world: to the goal around obstacles; left, down, right, up (0 to 3).

Sees     the cell, one-hot, row by row; not the map: append `planes("#G")` by `with_context`
Reward   1 - 0.9 t / limit at the goal, reached in step t (as MiniGrid has it), 0 elsewhere; ends
         at the goal; 50 steps
Maps     rows of S (an episode may begin here), . (free), # (obstacle), G (goal)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cl.environments._grids import Grid, Map, drawn, neighbours
from cl.errors import BadValue

MAP = ["S....", ".###.", ".....", ".#.#.", "...#G"]


class GridWorld(Grid):
    """maps: one, or n of one size; limit: steps per episode."""

    id = "grid_world"
    draws = 1

    def __init__(self, n: int, *, maps: Map | Sequence[Map] = MAP, limit: int = 50):
        super().__init__(n, maps, "S.#G", limit)
        if limit is None:
            raise BadValue(f"{self.id} needs a limit: its reward is made of it")
        size = self.observation_size
        around = neighbours(self.rows, self.columns)
        blocked = (self.cells == "#")[:, around]  # [n, S, 4]
        here = np.arange(size)[None, :, None]
        self._around = np.where(blocked, here, around[None]).ravel()
        self._starting("S")

    def _advance(self, x, actions):
        cell = self._around[(self._first + x[0]) * 4 + actions]
        reached = self._cells[self._first + cell] == "G"
        rewards = np.where(reached, 1 - 0.9 * (self.clock + 1) / self.limit, 0)
        return cell[None], rewards, reached


def random_grid(rng: np.random.Generator, size: int = 5, obstacles: int = 5) -> list[str]:
    """A random square map: S, G and obstacles anywhere, every other cell within reach of S."""
    if not 0 <= obstacles <= size * size - 2:
        raise BadValue(f"obstacles={obstacles} leaves no room for S and G in {size} x {size}")

    def draw() -> np.ndarray:
        cells = np.full(size * size, ".")
        places = rng.permutation(size * size)[: obstacles + 2]
        cells[places] = ["S", "G", *"#" * obstacles]
        return cells

    return drawn(draw, (size, size), "#", all_free=True)
