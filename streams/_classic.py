"""Experts of classic control: what to do by what is seen, without learning anything.

All are functions seen [n, d] -> actions int64 [n] of the environment as Gymnasium has it; numbers
behind its own observations are not read.
"""

from __future__ import annotations

import numpy as np

LEVELS = 3  # of the pendulum's torque: -2, 0, 2


def swing_car(seen: np.ndarray) -> np.ndarray:
    """MountainCar: push where it is going, which adds energy at every step."""
    return np.where(seen[:, 1] < 0, 0, 2)


def swing_links(seen: np.ndarray) -> np.ndarray:
    """Acrobot: torque with the second joint's speed, which adds energy; less of the first's, so
    that the links swing against each other."""
    return np.where(seen[:, 5] > 0.4 * seen[:, 4], 2, 0)


def swing_up(seen: np.ndarray) -> np.ndarray:
    """Pendulum with LEVELS torques: pump energy until it is enough, near the top hold it there."""
    cos, sin, speed = seen[:, :3].T
    angle = np.arctan2(sin, cos)
    energy = speed**2 / 6 + 5 * (cos - 1)  # 0 is at rest on top
    pump = 2 * np.sign(speed + 1e-9) * np.where(energy < 0, 1, -1)
    torque = np.where(np.abs(angle) < 0.5, -15 * angle - 4 * speed, pump)
    return np.clip(np.round(torque / 2), -1, 1).astype(np.int64) + 1
