"""Acrobot-v1: two links hang; a torque of -1, 0 or 1 at the joint between swings the end up.

Source   Gymnasium's classic_control, dynamics of Sutton and Barto's book (not of the NIPS paper),
         Runge-Kutta of fourth order, 0.2 s per step
Sees     cos and sin of the first angle, of the second (relative to the first link), both speeds
Reward   -1 for every step, 0 for the one that gets the end above 1 m; 500 steps
"""

from __future__ import annotations

import numpy as np

from cl.environments._base import Simulated

SECONDS = 0.2  # per step
FASTEST = np.array([[4 * np.pi], [9 * np.pi]])  # [rad/s]


class Acrobot(Simulated):
    """Every parameter: one number, or one per environment [n].

    link_length_1 [m]; link_mass_1, link_mass_2 [kg]; link_com_pos_1, link_com_pos_2: centres of
    mass along the links [m]; link_moi: moment of inertia of each link; gravity [m/s^2]; torque:
    size of a push [N m]; limit: steps per episode. The second link's length moves nothing: the
    end is at the target where -cos(a) - cos(a + b) > 1, whatever the lengths, as in Gymnasium
    """

    id = "Acrobot-v1"
    n_actions, observation_size = 3, 6
    width = draws = 4

    def __init__(
        self,
        n: int,
        *,
        link_length_1=1.0,
        link_mass_1=1.0,
        link_mass_2=1.0,
        link_com_pos_1=0.5,
        link_com_pos_2=0.5,
        link_moi=1.0,
        gravity=9.8,
        torque=1.0,
        limit: int | None = 500,
    ):
        super().__init__(n, limit)
        positive = {"link_length_1": link_length_1, "link_moi": link_moi}
        positive |= {"link_mass_1": link_mass_1, "link_mass_2": link_mass_2}
        positive |= {"link_com_pos_1": link_com_pos_1, "link_com_pos_2": link_com_pos_2}
        self._set(tuple(positive), **positive)
        self._set(gravity=gravity, torque=torque)
        m1, m2, length = self.link_mass_1, self.link_mass_2, self.link_length_1
        c1, c2 = self.link_com_pos_1, self.link_com_pos_2
        self._own = m2 * c2**2 + self.link_moi
        self._both = m1 * c1**2 + m2 * length**2 + self._own + self.link_moi
        self._coupled = m2 * length * c2
        self._pull1 = (m1 * c1 + m2 * length) * self.gravity
        self._pull2 = m2 * c2 * self.gravity

    def _begin(self, which, u):
        return -0.1 + 0.2 * u.T

    def _advance(self, x, actions):
        torque = (actions - 1) * self.torque
        half = SECONDS / 2
        k1 = self._rates(x, torque)
        k2 = self._rates(x + half * k1, torque)
        k3 = self._rates(x + half * k2, torque)
        k4 = self._rates(x + SECONDS * k3, torque)
        k2 += k3
        k2 *= 2
        k2 += k1
        k2 += k4
        k2 *= SECONDS / 6
        k2 += x
        angles = k2[:2]
        angles -= 2 * np.pi * np.ceil(angles / (2 * np.pi) - 0.5)  # into (-pi, pi]
        np.clip(k2[2:], -FASTEST, FASTEST, out=k2[2:])
        terminated = -np.cos(k2[0]) - np.cos(k2[1] + k2[0]) > 1.0
        return k2, terminated - np.float32(1), terminated

    def _rates(self, x: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Change of the state per second, [4, n]."""
        angle1, angle2, spin1, spin2 = x
        sin, coupled = self._coupled * np.sin(angle2), self._coupled * np.cos(angle2)
        d1, d2 = self._both + 2 * coupled, self._own + coupled
        phi2 = self._pull2 * np.sin(angle1 + angle2)
        phi1 = phi2 + self._pull1 * np.sin(angle1) - sin * spin2 * (spin2 + 2 * spin1)
        share = d2 / d1
        rates = np.empty_like(x)
        rates[:2] = x[2:]
        rates[3] = (torque + share * phi1 - sin * np.square(spin1) - phi2) / (
            self._own - d2 * share
        )
        rates[2] = -(d2 * rates[3] + phi1) / d1
        return rates

    def _seen(self, x):
        seen = np.empty((x.shape[1], 6), np.float32)
        cos, sin = np.cos(x[:2]), np.sin(x[:2])
        seen[:, 0:4:2], seen[:, 1:4:2], seen[:, 4:] = cos.T, sin.T, x[2:].T
        return seen
