"""Running normalisation of what environments give: observations and rewards.

Mean and variance of everything seen so far, by Welford's update with whole batches at a time, in
float64; numpy, as environments are. Both are saved with a run (`state`, `load`), and what happens
to them when the task switches is always said: `reset` or `keep`.

Maths    with n rows of mean m and sum of squared distances M, and a batch of n', m', M':
         d = m' - m;  m + d n' / (n + n');  M + M' + d^2 n n' / (n + n')
Prior    a weight of rows with mean 0 and variance 1 to begin with [rows]; 1e-4 as in Gymnasium
         and Stable-Baselines3, 0 for none
Source   Chan, Golub, LeVeque 1983; VecNormalize of Stable-Baselines3 for the scale of rewards
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from cl.errors import ShapeMismatch, unknown

AtSwitch = Literal["reset", "keep"]


class Normaliser:
    """(x - mean) / sqrt(variance + eps), at most `clip` in size.

    count [rows], mean and squares float64 [*shape]; squares: sum of squared distances.
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        *,
        clip: float = 10.0,
        eps: float = 1e-8,
        prior: float = 1e-4,
    ):
        self.shape, self.clip, self.eps, self.prior = tuple(shape), clip, eps, prior
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.count = float(self.prior)
        self.mean = np.zeros(self.shape)
        self.squares = np.full(self.shape, float(self.prior))

    @property
    def variance(self) -> np.ndarray:
        """Of all rows, [*shape]; 1 before the first."""
        return self.squares / self.count if self.count else np.ones(self.shape)

    def update(self, batch: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Take in rows [..., *shape]; valid bool [...]: those that count. Raises ShapeMismatch."""
        batch = np.asarray(batch, dtype=np.float64)
        lead = batch.ndim - len(self.shape)
        if lead < 0 or batch.shape[lead:] != self.shape:
            raise ShapeMismatch(f"rows of shape {list(batch.shape)}, not [..., *{self.shape}]")
        rows = batch.reshape(-1, *self.shape)
        if valid is not None:
            rows = rows[np.asarray(valid, dtype=bool).reshape(-1)]
        if len(rows):
            mean = rows.mean(0)
            self._add(len(rows), mean, np.square(rows - mean).sum(0))

    def _add(self, n: float, mean: np.ndarray, squares: np.ndarray) -> None:
        both, far = self.count + n, mean - self.mean
        self.mean = self.mean + far * n / both
        self.squares = self.squares + squares + np.square(far) * self.count * n / both
        self.count = both

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Rows [..., *shape] normalised, float32; the statistics stay as they are."""
        return self._clipped((np.asarray(batch) - self.mean) / np.sqrt(self.variance + self.eps))

    def scaled(self, batch: np.ndarray) -> np.ndarray:
        """Rows divided by the spread alone, float32, at most `clip` in size."""
        return self._clipped(np.asarray(batch) / np.sqrt(self.variance + self.eps))

    def _clipped(self, rows: np.ndarray) -> np.ndarray:
        return np.clip(rows, -self.clip, self.clip).astype(np.float32)

    def switch(self, choice: AtSwitch) -> None:
        """What happens at an experience's start: `reset` forgets, `keep` goes on."""
        if choice not in get_args(AtSwitch):
            raise unknown("choice at a task switch", choice, get_args(AtSwitch))
        if choice == "reset":
            self.reset()

    def state(self) -> dict:
        """What a checkpoint holds."""
        mean, squares = np.array(self.mean), np.array(self.squares)  # also of numpy's scalars
        return {"count": float(self.count), "mean": mean, "squares": squares}

    def load(self, state: dict) -> None:
        """Put back what `state` returned. Raises ShapeMismatch."""
        if np.shape(state["mean"]) != self.shape:
            raise ShapeMismatch(
                f"saved statistics have shape {list(np.shape(state['mean']))}, "
                f"these {list(self.shape)}"
            )
        self.count = float(state["count"])
        self.mean = np.array(state["mean"], dtype=np.float64)
        self.squares = np.array(state["squares"], dtype=np.float64)


class RewardScale:
    """Rewards divided by the spread of discounted returns so far; their mean stays in.

    running float64 [n]: each environment's discounted return, sum of gamma^k r_{t-k}.
    """

    def __init__(self, n: int, *, gamma: float, clip: float = 10.0, prior: float = 1e-4):
        self.gamma, self.running = gamma, np.zeros(n)
        self.statistics = Normaliser((), clip=clip, prior=prior)

    def __call__(
        self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray | None = None
    ) -> np.ndarray:
        """One step's rewards [n], scaled, float32; ended bool [n]: terminated or truncated.

        valid bool [n]: rows that are steps; the others' rewards are in no statistic.
        """
        valid = np.ones(len(rewards), dtype=bool) if valid is None else np.asarray(valid)
        rewards = np.where(valid, rewards, 0.0)
        self.running = np.where(valid, self.running * self.gamma + rewards, self.running)
        self.statistics.update(self.running, valid)
        self.running = np.where(ended, 0.0, self.running)
        return self.statistics.scaled(rewards)

    def switch(self, choice: AtSwitch) -> None:
        """At an experience's start: `reset` or `keep` statistics; its episodes are new anyway."""
        self.statistics.switch(choice)
        self.running = np.zeros_like(self.running)

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {"running": self.running.copy(), **self.statistics.state()}

    def load(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.running = np.array(state["running"], dtype=np.float64)
        self.statistics.load(state)
