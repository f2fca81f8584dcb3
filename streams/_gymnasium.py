"""What streams of Gymnasium ids share: environments with a clock, and what chance returns there."""

from __future__ import annotations

import numpy as np

from cl.environments import NATIVE, Environment, make
from cl.errors import BadValue, DataError, RunError
from cl.seeding import derive

# rates of PPO that learn CartPole and Acrobot; others may need their own
DEFAULTS = {
    "ppo.objective.n_envs": 8,
    "ppo.objective.n_steps": 128,
    "ppo.objective.passes": 10,
    "ppo.objective.entropy_coef": 0.01,
    "ppo.train.batch_size": 256,
    "ppo.train.lr": 1e-3,
    "ppo.train.eps": 1e-5,
    "ppo.train.clip": 0.5,
    "ppo.train.schedule": "linear",
    "ppo.eval.every": 160,
    "cloning.train.batch_size": 64,
    "cloning.train.lr": 1e-3,
    "cloning.train.epochs": 10,
    "dqn.model": "q_network",
    "dqn.train.lr": 1e-3,
    "dqn.train.batch_size": 64,
    "dqn.train.clip": 10.0,
    "dqn.eval.every": 4096,
}


def timed(id: str, n: int, limit: int | None = None) -> Environment:
    """n copies of an id that has a clock, or that gets one of `limit` steps. Raises ClError."""
    if limit is None:
        env = make(id, n)
        clock = getattr(env, "limit", None) or _clock(env)
        if clock is None:
            env.close()
            raise BadValue(f"{id} has no limit of steps per episode: give stream.limit=STEPS")
        return env
    return make(id, n, **{"limit" if id in NATIVE else "max_episode_steps": limit})


def threshold(env: Environment) -> float | None:
    """The return at which Gymnasium's registry calls an environment solved; None if it does not."""
    import gymnasium

    if hasattr(env, "vector"):
        return env.vector.spec.reward_threshold
    known = gymnasium.registry.get(env.id)
    return None if known is None else known.reward_threshold


def random_return(env: Environment) -> float:
    """Mean return of the uniform random policy, one episode in each environment.

    It depends on the environment alone, never on a run's seed. Raises DataError where it fails.
    """
    rng = np.random.default_rng(derive(0, f"random policy/{env.id}"))
    sums, running = np.zeros(env.n), np.ones(env.n, bool)
    try:
        env.reset(rng)
        while running.any():
            step = env.step(env.sample(rng))
            sums += step.rewards * running
            running &= ~(step.terminated | step.truncated)
    except RunError as error:
        raise DataError(f"{error} (while the random policy was tried)") from error
    return float(sums.mean())


def _clock(env: Environment) -> int | None:
    """Steps per episode: Gymnasium's limit, or one that an environment keeps by itself."""
    spec, inner = env.vector.spec, env.vector.envs[0].unwrapped
    return spec.max_episode_steps or getattr(inner, "max_steps", None)
