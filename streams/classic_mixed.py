"""classic_mixed: classic control's environments in turn, by one policy.

Shifts    everything: dynamics, what the numbers seen mean, what actions do, rewards
Sees      up to six numbers of the environment, zeros behind those of smaller ones
Actions   three. CartPole: left, right, left; Pendulum: torques -2, 0, 2; Acrobot and MountainCar
          as they are
Context   a one-hot of the four environments in the observation; context=hidden leaves it out, but
          the zeros still tell the tasks apart, so that one policy can solve all either way
Source    CartPole-v1, Acrobot-v1, MountainCar-v0, Pendulum-v1 of Gymnasium, simulated here
Score     0 the uniform random policy of the three actions; 1 the expert's mean return: CartPole
          500, its limit, Acrobot -82.2, MountainCar -119.4, Pendulum -151.3
Rewards   as in Gymnasium in all that is reported; learned from are a tenth of Pendulum's, so that
          values of all tasks are of one size
Experts   CartPole: a linear controller; others pump energy, Pendulum's balances near the top
Left out  MountainCar, unless it is named: with every step worth -1 until a goal that no random
          episode reaches, plain PPO stays at -200, score 0 (a negative control)
Gives     boundaries, stream_length; jointly solvable, as the experts show: PPO on all three at once
          scores 0.96 of each alone, less on one seed in five, where CartPole ends near 200 steps
Parameters
    tasks    in this order, of cartpole, acrobot, mountain_car, pendulum
    steps    environment steps of each [steps]
    order    fixed (as given) or seeded
    context  shown or hidden
    n_test   episodes per evaluation [episodes]
    n_val    episodes per evaluation for choices; 0 for none [episodes]
    seed     of evaluation's episodes and of a seeded order; follows the run's seed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import numpy as np

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.environments import (
    Acrobot,
    CartPole,
    DiscreteActions,
    Environment,
    MountainCar,
    Padded,
    Pendulum,
    WithContext,
)
from cl.errors import BadValue
from cl.registry import register
from streams._cartpole import DEFAULTS as CARTPOLE
from streams._cartpole import balance
from streams._classic import LEVELS, swing_car, swing_links, swing_up

SEEN, ACTIONS = 6, 3

# calibrated on seeds 100 to 105: Acrobot alone; 100 to 104: all at once, one after the other. With
# an entropy coefficient of 0.05 Acrobot is not learned after CartPole, whose policy is too sure to
# try anything else, and less of all at once. With units of tanh, which Acrobot's speeds drive to
# their ends, Pendulum is not cloned last
DEFAULTS = CARTPOLE | {
    "ppo.objective.n_envs": 24,
    "ppo.objective.gamma": 0.97,
    "ppo.objective.lam": 0.9,
    "ppo.objective.entropy_coef": 0.1,
    "ppo.eval.every": 320,
    "cloning.model.activation": "relu",
    "cloning.train.lr": 3e-3,
    "cloning.train.epochs": 100,
}


class Kind(NamedTuple):
    """An environment, mean returns that score 0 and 1 (of 10,000 episodes or more), its expert,
    what its rewards are multiplied by to learn from."""

    build: Callable[[int], Environment]
    random: float
    reference: float
    expert: Callable[[np.ndarray], np.ndarray]
    reward_scale: float = 1.0


def pendulum(n: int) -> Environment:
    """Pendulum with a few torques."""
    return DiscreteActions(Pendulum(n), LEVELS)


KINDS = {
    "cartpole": Kind(CartPole, 16.9, 500.0, balance),
    "acrobot": Kind(Acrobot, -498.7, -82.2, swing_links),
    "mountain_car": Kind(MountainCar, -200.0, -119.4, swing_car),
    "pendulum": Kind(pendulum, -1225.0, -151.3, swing_up, 0.1),
}


@register
def classic_mixed(
    *,
    tasks: list[Literal["cartpole", "acrobot", "mountain_car", "pendulum"]] = (
        "cartpole",
        "acrobot",
        "pendulum",
    ),
    steps: Annotated[int, Range(min=1)] = 65536,
    order: Literal["fixed", "seeded"] = "fixed",
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 20,
    n_val: Annotated[int, Range(min=0)] = 10,
    seed: int = 0,
) -> EnvStream:
    """Classic control's environments in turn."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise BadValue(
            f"stream.tasks must hold names of {', '.join(KINDS)}, each at most once; got "
            f"{','.join(tasks) or 'none'} (stream.cycles repeats tasks)"
        )
    return env_stream(
        "classic_mixed",
        [_task(name, context == "shown") for name in tasks],
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        order=order,
        hidden=context == "hidden",
        jointly_solvable=True,
        defaults=DEFAULTS,
    )


def _task(name: str, shown: bool) -> EnvTask:
    kind = KINDS[name]
    which = [float(name == other) for other in KINDS]

    def build(n: int) -> Environment:
        env = Padded(kind.build(n), SEEN, ACTIONS)
        return WithContext(env, which) if shown else env

    return EnvTask(
        name,
        build,
        kind.random,
        kind.reference,
        lambda env: kind.expert,
        f"{name}, padded to {SEEN} numbers and {ACTIONS} actions",
        kind.reward_scale,
    )
