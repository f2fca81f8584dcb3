"""Pendulum-v1: a torque in [-2, 2] swings a pendulum up and holds it there.

Source   Gymnasium's classic_control
Sees     cos and sin of the angle, 0 upright; angular speed [-8, 8]
Reward   -(angle^2 + 0.1 speed^2 + 0.001 torque^2) for every step; never terminates; 200 steps
"""

from __future__ import annotations

import numpy as np

from cl.environments._base import Simulated

SECONDS, FASTEST, STRONGEST = 0.05, 8.0, 2.0


class Pendulum(Simulated):
    """Every parameter: one number, or one per environment [n].

    gravity [m/s^2]; mass [kg]; length [m] (Gymnasium's g, m, l); limit: steps per episode
    """

    id = "Pendulum-v1"
    action_low = np.array([-STRONGEST], np.float32)
    action_high = np.array([STRONGEST], np.float32)
    observation_size = 3
    width = draws = 2

    def __init__(self, n: int, *, gravity=10.0, mass=1.0, length=1.0, limit: int | None = 200):
        super().__init__(n, limit)
        self._set(("mass", "length"), gravity=gravity, mass=mass, length=length)
        self._fall = 3 * self.gravity / (2 * self.length)
        self._push = 3.0 / (self.mass * self.length**2)

    def _begin(self, which, u):
        return np.array([[np.pi], [1.0]]) * (2 * u.T - 1)

    def _advance(self, x, actions):
        angle, speed = x
        torque = np.clip(actions[:, 0], -STRONGEST, STRONGEST)
        turned = (angle + np.pi) % (2 * np.pi) - np.pi
        costs = turned**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = speed + (self._fall * np.sin(angle) + self._push * torque) * SECONDS
        speed = np.clip(speed, -FASTEST, FASTEST)
        return np.stack([angle + speed * SECONDS, speed]), -costs, np.zeros(self.n, bool)

    def _seen(self, x):
        return np.stack([np.cos(x[0]), np.sin(x[0]), x[1]], axis=1).astype(np.float32)
