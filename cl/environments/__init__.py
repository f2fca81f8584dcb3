"""Environments: n copies that step together, in numpy, each with its own physics or map.

    env = make("CartPole-v1", 256, gravity=np.linspace(5, 15, 256))     or CartPole(256, ...)
    observations = env.reset(np.random.default_rng(0))                  # [n, d]
    step = env.step(env.sample(rng))                                    # see Step

Interface  `Environment` in `_base.py`: reset, step, state, load, close, sample, and as attributes
           id, n, n_actions (None: continuous, then action_size action_low action_high),
           observation_size d, observation_kind "box" or "one_hot". All observations are float32
Episodes   end by termination or by the clock (`truncated`), never both; the environment is reset
           in the same step. `observations` then belong to the new episode, `final_observations`
           to the one that has ended, so every row of every step is a real one. A target bootstraps
           from final_observations wherever not terminated
Clock      steps per episode are those of Gymnasium's ids; `limit=` changes it, None removes it
Random     environment k has a stream of bits of its own, which depends on one draw of the
           generator given to `reset` and on k, never on how many others there are
State      `state()` holds arrays with a row per environment; `load` gives the observations there;
           `replays`: it gets there by playing the running episodes again (Gymnasium's)
Equal      state by state to Gymnasium's environments of the same id, physics changed or not;
           rewards and observations in float32. Where Gymnasium says both terminated and
           truncated, it is terminated here
Changed    by wrappers: PermutedActions, DiscreteActions, ChangedObservations, ScaledRewards,
           WithContext (which task it is: a number, `parameters` of the physics, `planes` of a
           map), Padded; Joined puts several beside each other. `discrete` refuses the continuous
Errors     actions of wrong shape or range, nan or inf in a step, an exception in a Gymnasium
           environment: a ClError that names the id, the environment and the step
"""

from __future__ import annotations

import inspect

from cl.environments._base import Environment, Simulated, Step
from cl.environments.acrobot import Acrobot
from cl.environments.cartpole import CartPole
from cl.environments.frozen_lake import FrozenLake, random_map
from cl.environments.grid_world import GridWorld, random_grid
from cl.environments.mountain_car import MountainCar
from cl.environments.pendulum import Pendulum
from cl.environments.wrappers import (
    ChangedObservations,
    DiscreteActions,
    Joined,
    Padded,
    PermutedActions,
    ScaledRewards,
    WithContext,
    Wrapper,
    discrete,
)
from cl.errors import MissingPackage, unknown

__all__ = [
    "Acrobot",
    "CartPole",
    "ChangedObservations",
    "DiscreteActions",
    "Environment",
    "FrozenLake",
    "GridWorld",
    "Joined",
    "MountainCar",
    "NATIVE",
    "Padded",
    "Pendulum",
    "PermutedActions",
    "ScaledRewards",
    "Simulated",
    "Step",
    "WithContext",
    "Wrapper",
    "discrete",
    "make",
    "random_grid",
    "random_map",
]

NATIVE: dict[str, type[Simulated]] = {
    kind.id: kind for kind in (CartPole, Acrobot, MountainCar, Pendulum, FrozenLake, GridWorld)
}


def make(id: str, n: int, **parameters) -> Environment:
    """n copies of the environment with this id: one of ours, else Gymnasium's.

    Raises UnknownName for an id or a parameter that does not exist, BadValue for what can't be.
    """
    if id not in NATIVE:
        try:
            from cl.environments.gymnasium_adapter import Gymnasium
        except ImportError as error:
            raise MissingPackage(f"{id} needs the package gymnasium: {error}") from error
        return Gymnasium(id, n, **parameters)
    allowed = [name for name in inspect.signature(NATIVE[id]).parameters if name != "n"]
    for name in parameters:
        if name not in allowed:
            raise unknown(f"parameter of {id}", name, allowed)
    return NATIVE[id](n, **parameters)
