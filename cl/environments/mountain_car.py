"""MountainCar-v0: a car too weak for the hill swings up: push left (0), none (1), right (2).

Source   Gymnasium's classic_control (Moore 1990)
Sees     position [-1.2, 0.6], speed [-0.07, 0.07]
Reward   -1 for every step; ends at 0.5; 200 steps
"""

from __future__ import annotations

import numpy as np

from cl.environments._base import Simulated

LEFT, RIGHT, GOAL, FASTEST = -1.2, 0.6, 0.5, 0.07


class MountainCar(Simulated):
    """Every parameter: one number, or one per environment [n].

    force, gravity [per step^2]; goal_velocity: least speed at the goal; limit: steps per episode
    """

    id = "MountainCar-v0"
    n_actions, observation_size = 3, 2
    width, draws = 2, 1

    def __init__(
        self,
        n: int,
        *,
        force=0.001,
        gravity=0.0025,
        goal_velocity=0.0,
        limit: int | None = 200,
    ):
        super().__init__(n, limit)
        self._set(force=force, gravity=gravity, goal_velocity=goal_velocity)

    def _begin(self, which, u):
        return np.stack([-0.6 + 0.2 * u[:, 0], np.zeros(len(u))])

    def _advance(self, x, actions):
        position, speed = x
        speed = speed + ((actions - 1) * self.force + np.cos(3 * position) * -self.gravity)
        speed = np.clip(speed, -FASTEST, FASTEST)
        position = np.clip(position + speed, LEFT, RIGHT)
        speed[(position == LEFT) & (speed < 0)] = 0
        terminated = (position >= GOAL) & (speed >= self.goal_velocity)
        return np.stack([position, speed]), np.full(self.n, -1, np.float32), terminated

    def _seen(self, x):
        return x.T.astype(np.float32, order="C")
