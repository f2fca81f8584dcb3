"""What the streams of CartPole share: a task of it, how it is learned, constants, experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cl.env_stream import EnvTask
from cl.environments import CartPole, Environment, PermutedActions, WithContext

RANDOM = 22.2  # mean return of the uniform random policy, 100,000 episodes
REFERENCE = 500.0  # the clock's limit, which the experts reach
GAINS = (0.05, 0.1, 1.0, 0.3)  # of position, speed, angle, angular speed: right for usual physics

# calibrated on seeds 100 to 105: one task is learned within 65,536 steps and the policy stays
# random enough to learn another one afterwards. dqn learns the first task on five seeds of six, and
# by ups and downs
DEFAULTS = {
    "ppo.objective.n_envs": 16,
    "ppo.objective.n_steps": 64,
    "ppo.objective.passes": 10,
    "ppo.objective.gamma": 0.98,
    "ppo.objective.entropy_coef": 0.02,
    "ppo.train.batch_size": 256,
    "ppo.train.lr": 1e-3,
    "ppo.train.eps": 1e-5,
    "ppo.train.clip": 0.5,
    "ppo.train.schedule": "linear",
    "ppo.eval.every": 160,
    "cloning.train.batch_size": 64,
    "cloning.train.lr": 1e-3,
    "cloning.train.epochs": 40,
    "dqn.model": "q_network",
    "dqn.model.hidden": [128, 128],
    "dqn.objective.every": 256,
    "dqn.objective.updates": 128,
    "dqn.objective.gamma": 0.98,
    "dqn.objective.target_every": 128,
    "dqn.objective.explore": 0.16,
    "dqn.objective.epsilon": 0.04,
    "dqn.objective.double": True,
    "dqn.train.lr": 1e-3,
    "dqn.train.schedule": "linear",
    "dqn.train.batch_size": 64,
    "dqn.train.clip": 10.0,
    "dqn.eval.every": 2048,
}


def cartpole(
    name: str,
    described: str,
    *,
    random: float = RANDOM,
    order: Sequence[int] = (0, 1),
    context: Sequence[float] = (),
    gains: Sequence[float] = GAINS,
    **physics: float,
) -> EnvTask:
    """CartPole as a task. order: which push each action is; context: what is appended to what is
    seen; gains: of the expert; physics: parameters of the environment."""

    def build(n: int) -> Environment:
        env = PermutedActions(CartPole(n, **physics), order)
        return WithContext(env, context) if len(context) else env

    def expert(env: Environment):
        pushes = np.argsort(order)  # the action that pushes left, that which pushes right
        return lambda seen: pushes[balance(seen, gains)]

    return EnvTask(name, build, random, REFERENCE, expert, described)


def balance(seen: np.ndarray, gains: Sequence[float] = GAINS) -> np.ndarray:
    """Where to push, int64 [n] (1 is right), to keep pole and cart in the middle; seen [n, 4+]."""
    return (seen[:, :4] @ np.asarray(gains, np.float32) > 0).astype(np.int64)
