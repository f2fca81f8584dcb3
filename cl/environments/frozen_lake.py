"""FrozenLake-v1: over slippery ice to the goal, around holes; left, down, right, up (0 to 3).

Source   Gymnasium's toy_text
Sees     the cell, one-hot, row by row
Reward   `rewards` for reaching goal, hole, ice: 1, 0, 0; ends at goal and hole; 100 steps
Maps     rows of S (start), F (ice), H (hole), G (goal); "4x4" and "8x8" are Gymnasium's, for the
         larger one it has limit=200
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cl.environments._base import uniform
from cl.environments._grids import Grid, Map, drawn, neighbours
from cl.errors import BadValue, unknown

MAPS = {
    "4x4": ["SFFF", "FHFH", "FFFH", "HFFG"],
    "8x8": [
        *("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF"),
        *("FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
    ],
}


class FrozenLake(Grid):
    """Every parameter but limit: one for all, or one per environment.

    maps: a name, a map, or n maps of one size; is_slippery; success_rate: probability of the
    direction that was meant, the rest goes evenly to both sides; reward_schedule [3] or [n, 3]
    """

    id = "FrozenLake-v1"
    draws = 1

    def __init__(
        self,
        n: int,
        *,
        maps: str | Map | Sequence[Map] = "4x4",
        is_slippery=True,
        success_rate=1 / 3,
        reward_schedule=(1, 0, 0),
        limit: int | None = 100,
    ):
        if isinstance(maps, str):
            if maps not in MAPS:
                raise unknown("map of FrozenLake", maps, MAPS)
            maps = MAPS[maps]
        super().__init__(n, maps, "SFHG", limit)
        self._set(is_slippery=is_slippery, success_rate=success_rate)
        if (self.success_rate < 0).any() or (self.success_rate > 1).any():
            raise BadValue(f"{self.id} success_rate={success_rate} is no probability")
        rewards = np.asarray(reward_schedule, np.float32)
        if rewards.shape not in ((3,), (n, 3)):
            raise BadValue(f"{self.id} reward_schedule is of goal, hole, ice, got {rewards.shape}")
        self.reward_schedule = np.broadcast_to(rewards, (n, 3))
        side = (1 - self.success_rate) / 2
        slippery = self.is_slippery != 0
        self._below = np.where(slippery, side, 0)  # u below: one direction before
        self._above = np.where(slippery, side + self.success_rate, 1)  # from here on: one after
        self._around = neighbours(self.rows, self.columns)
        kind = np.select([self.cells == "G", self.cells == "H"], [0, 1], 2)
        self._rewards = np.take_along_axis(self.reward_schedule, kind, 1).ravel()
        self._ends = (kind < 2).ravel()
        self._shares = np.where(slippery, [side, self.success_rate, side], [[0], [1], [0]]).T
        self._starting("S")
        self._all = np.arange(n)

    def outcomes(self, k: int = 0) -> tuple[np.ndarray, ...]:
        """Environment k as a table: what planning needs.

        Cells [S, 4, 3] that an action can lead to from each, the probabilities [3] of these, and,
        of every cell, the reward [S] of coming there and whether that ends the episode, bool [S].
        """
        ways = (np.arange(4)[:, None] + [-1, 0, 1]) % 4
        own = slice(k * self.observation_size, (k + 1) * self.observation_size)
        return self._around[:, ways], self._shares[k], self._rewards[own], self._ends[own]

    def _advance(self, x, actions):
        u = uniform(self.streams, self._all, 1)[:, 0]
        slip = (u >= self._below).astype(np.int64) + (u >= self._above)
        cell = self._around[x[0], (actions + slip - 1) % 4]
        at = self._first + cell
        return cell[None], self._rewards[at], self._ends[at]


def random_map(rng: np.random.Generator, size: int = 4, frozen: float = 0.8) -> list[str]:
    """A random square map with a way from S, top left, to G; share `frozen` is ice."""

    def draw() -> np.ndarray:
        cells = np.where(rng.random(size * size) < frozen, "F", "H")
        cells[[0, -1]] = "S", "G"
        return cells

    return drawn(draw, (size, size), "H", all_free=False)
