"""CartPole-v1: a pole on a cart is kept upright by pushes to the left (0) and to the right (1).

Source   Gymnasium's classic_control (Barto, Sutton and Anderson 1983), Euler's method
Sees     position [m], speed, angle [rad], angular speed of the pole
Reward   1 for every step; ends beyond 2.4 m or 12 degrees; 500 steps
"""

from __future__ import annotations

import math

import numpy as np

from cl.environments._base import Simulated

FAR, STEEP = 2.4, 12 * 2 * math.pi / 360  # [m], [rad]: where an episode ends


class CartPole(Simulated):
    """Every parameter: one number, or one per environment [n].

    gravity [m/s^2]; masscart, masspole [kg]; length: half the pole's [m]; force_mag [N]; tau:
    seconds per step; limit: steps per episode
    """

    id = "CartPole-v1"
    n_actions, observation_size = 2, 4
    width = draws = 4

    def __init__(
        self,
        n: int,
        *,
        gravity=9.8,
        masscart=1.0,
        masspole=0.1,
        length=0.5,
        force_mag=10.0,
        tau=0.02,
        limit: int | None = 500,
    ):
        super().__init__(n, limit)
        self._set(("masscart", "masspole", "length", "tau"), masscart=masscart, tau=tau)
        self._set(("masspole", "length"), masspole=masspole, length=length)
        self._set(gravity=gravity, force_mag=force_mag)
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length

    def _begin(self, which, u):
        return -0.05 + 0.1 * u.T

    def _advance(self, x, actions):
        _, speed, angle, spin = x
        cos, sin = np.cos(angle), np.sin(angle)
        force = np.where(actions == 1, self.force_mag, -self.force_mag)
        push = (force + self.polemass_length * np.square(spin) * sin) / self.total_mass
        inertia = self.length * (4.0 / 3.0 - self.masspole * np.square(cos) / self.total_mass)
        spinning = (self.gravity * sin - cos * push) / inertia
        change = np.empty_like(x)  # per second
        change[0], change[2], change[3] = speed, spin, spinning
        change[1] = push - self.polemass_length * spinning * cos / self.total_mass
        change *= self.tau
        change += x
        terminated = (np.abs(change[0]) > FAR) | (np.abs(change[2]) > STEEP)
        return change, np.ones(self.n, np.float32), terminated

    def _seen(self, x):
        return x.T.astype(np.float32, order="C")
