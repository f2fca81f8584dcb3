"""Any Gymnasium id as an environment of ours, by Gymnasium's vector API.

Autoreset  off: environments whose episode has ended are reset by mask in the same step, so that
           the dummy row of Gymnasium's default (NEXT_STEP) never arises
Random     every episode starts from a seed of its own, from the environment's stream of bits
State      the seeds and actions of the running episodes, which are played again by `load`: exact
           for environments that draw from their own `np_random` alone
Sees       Box and MultiBinary flat, Discrete one-hot; MiniGrid's ids: its image one-hot, object
           (11), colour (6) and state (3) of every cell, without the mission and the compass
Imports gymnasium, and minigrid for its ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from cl.environments._base import Environment, Step, new_streams, not_finite, uniform
from cl.errors import BadValue, ClError, MissingPackage, RunError, ShapeMismatch, unknown

IMAGE = (11, 6, 3)  # MiniGrid's kinds of objects, colours, states of doors
VIEWS = 20_000  # of MiniGrid that an environment keeps


class Gymnasium(Environment):
    """n copies of a Gymnasium id; further arguments are the environment's own."""

    replays = True

    def __init__(self, id: str, n: int, **parameters):
        if n < 1:
            raise BadValue(f"{id} needs at least one environment, got n={n}")
        self.id, self.n = id, n
        self.image = id.startswith("MiniGrid-")
        if self.image:
            _import_minigrid(id)
        image = [partial(_Image, seen={})] if self.image else []
        self.vector = _made(id, n, parameters, [*image, _Copy])
        self.streams = np.zeros(n, np.uint64)
        for k, copy in enumerate(self.vector.envs):
            copy.name, copy.k, copy.streams = id, k, self.streams
        self._read_spaces()
        self._started = False

    def reset(self, rng=None, which=None) -> np.ndarray:
        """See Environment."""
        which = self.positions(which)
        if not self._started and (rng is None or len(np.unique(which)) < self.n):
            raise RunError(f"{self.id}: the first reset needs a generator, and is of all")
        if rng is not None:
            self.streams[which] = new_streams(rng, self.n)[which]
        self._started = True
        mask = np.zeros(self.n, bool)
        mask[which] = True
        return self._restarted(mask)

    def step(self, actions) -> Step:
        """See Environment; continuous actions are clipped to their bounds."""
        if not self._started:
            raise RunError(f"{self.id}: reset comes before the first step")
        actions = self.checked(actions)
        space = self.vector.single_action_space
        if self.n_actions is None:
            actions = np.clip(actions, self.action_low, self.action_high)
            actions = actions.reshape(self.n, *space.shape).astype(space.dtype)
        else:
            actions = actions + space.start
        seen, rewards, terminated, truncated, _ = self._ask(self.vector.step, actions)
        observations = final = self._seen(seen)
        good = np.isfinite(final).all(1) & np.isfinite(rewards)
        if not good.all():
            k = int((~good).argmax())
            raise not_finite(self.id, k, len(self.vector.envs[k].actions))
        ended = terminated | truncated
        if ended.any():
            observations = self._restarted(ended)
        return Step(
            observations, rewards.astype(np.float32), terminated, truncated & ~terminated, final
        )

    def state(self) -> dict[str, np.ndarray]:
        """See Environment: how the running episodes came about."""
        if not self._started:
            raise RunError(f"{self.id} has no state before its first reset")
        copies, space = self.vector.envs, self.vector.single_action_space
        clock = np.array([len(copy.actions) for copy in copies], np.int64)
        actions = np.zeros((self.n, clock.max(), *space.shape), space.dtype)
        for row, copy in zip(actions, copies):
            row[: len(copy.actions)] = copy.actions or row[:0]
        return {
            "clock": clock,
            "actions": actions,
            "seeds": np.array([copy.episode_seed for copy in copies], np.int64),
            "streams": self.streams.view(np.int64).copy(),
        }

    def load(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See Environment; plays the running episodes again."""
        names = {"clock", "actions", "seeds", "streams"}
        if set(state) != names or any(len(array) != self.n for array in state.values()):
            given = {name: np.shape(array) for name, array in state.items()}
            raise ShapeMismatch(f"{self.id}: a state has {self.n} rows of {names}, got {given}")
        self.streams[:] = np.asarray(state["streams"], np.int64).view(np.uint64)
        for copy, seed, actions, t in zip(
            self.vector.envs, state["seeds"], state["actions"], state["clock"]
        ):
            copy.pending = (int(seed), list(actions[:t]))
        self._started = True
        return self._restarted(np.ones(self.n, bool))

    def close(self) -> None:
        """See Environment."""
        self.vector.close()

    # -- spaces ----------------------------------------------------------------------------------

    def _read_spaces(self) -> None:
        action, seen = self.vector.single_action_space, self.vector.single_observation_space
        if isinstance(action, spaces.Discrete):
            self.n_actions = int(action.n)
        elif isinstance(action, spaces.Box):
            self.action_low = action.low.ravel().astype(np.float32)
            self.action_high = action.high.ravel().astype(np.float32)
            self.action_size = len(self.action_low)
        else:
            raise BadValue(f"{self.id} takes actions of {action}; one discrete or box is allowed")
        if isinstance(seen, spaces.Discrete):
            self.observation_size, self.observation_kind = int(seen.n), "one_hot"
        elif isinstance(seen, spaces.Box | spaces.MultiBinary):
            self.observation_size = math.prod(seen.shape)
        else:
            raise BadValue(f"{self.id} is seen as {seen}; box, discrete or MiniGrid is allowed")
        if self.image:
            self.observation_size = math.prod(seen.shape[:2]) * sum(IMAGE)

    def _seen(self, batch: np.ndarray) -> np.ndarray:
        if self.image:
            return one_hot_images(batch)
        space = self.vector.single_observation_space
        if isinstance(space, spaces.Discrete):
            return np.equal.outer(batch - space.start, np.arange(space.n)).astype(np.float32)
        return batch.reshape(self.n, -1).astype(np.float32)

    def _restarted(self, mask: np.ndarray) -> np.ndarray:
        seen, _ = self._ask(self.vector.reset, options={"reset_mask": mask})
        seen = self._seen(seen)
        good = np.isfinite(seen).all(1)
        if not good.all():
            raise not_finite(self.id, int((~good).argmax()), 0)
        return seen

    def _ask(self, what: Callable, *args, **kwargs):
        """The vector environment's answer. Raises RunError for what does not fit its spaces."""
        try:
            return what(*args, **kwargs)
        except ClError:
            raise
        except Exception as error:  # an environment's own values
            said = " ".join(str(error).split())
            raise RunError(
                f"{self.id} breaks its spaces: {type(error).__name__}: {said}"
            ) from error


class _Copy(gym.Wrapper):
    """One environment: says where it failed, and keeps what its running episode is made of."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.name, self.k, self.streams = "", 0, np.zeros(1, np.uint64)
        self.episode_seed, self.actions, self.pending = 0, [], None

    def reset(self, *, seed=None, options=None):
        """From the next seed of its own stream, or as far as the pending episode had come."""
        if self.pending is None:
            drawn = uniform(self.streams, np.array([self.k]), 1)[0, 0]
            self.pending = int(drawn * 2**31), []
        (self.episode_seed, played), self.pending = self.pending, None
        self.actions = []
        try:
            seen, _ = self.env.reset(seed=self.episode_seed)
        except Exception as error:  # the environment's own code
            raise self._failed(error, "at a reset") from error
        for action in played:
            seen, *_ = self.step(action)
        return seen, {}

    def step(self, action):
        """The environment's step. Raises RunError for whatever goes wrong in it."""
        self.actions.append(action)
        try:
            return *self.env.step(action)[:4], {}
        except Exception as error:  # the environment's own code
            raise self._failed(error, f"at step {len(self.actions)} of its episode") from error

    def _failed(self, error: Exception, where: str) -> ClError:
        said = " ".join(str(error).split())
        return RunError(
            f"{self.name}: environment {self.k} raised {type(error).__name__} {where}: {said}"
        )


class _Image(gym.ObservationWrapper):
    """MiniGrid's image alone.

    An image depends on the cells, on where the agent looks from, and on what it carries; to make
    one takes ten times as long as a step does, so that those that were made are kept, in a table
    that the copies of an environment share.
    """

    def __init__(self, env: gym.Env, seen: dict[tuple, dict]):
        super().__init__(env)
        self.observation_space = env.observation_space["image"]
        self.seen = seen
        self.inner, kind = env.unwrapped, _import_minigrid("MiniGrid").MiniGridEnv
        own = type(self.inner)
        if (own.gen_obs, own.gen_obs_grid) == (kind.gen_obs, kind.gen_obs_grid):
            self.inner.gen_obs = self._look

    def observation(self, observation):
        """The image of an observation."""
        return observation["image"]

    def _look(self) -> dict:
        """As MiniGrid's `gen_obs`, whose direction and mission nobody reads here."""
        inner = self.inner
        cells = tuple([None if cell is None else cell.encode() for cell in inner.grid.grid])
        held = None if inner.carrying is None else inner.carrying.encode()
        key = (cells, *inner.agent_pos, inner.agent_dir, held)
        found = self.seen.get(key)
        if found is None:
            if len(self.seen) >= VIEWS:
                self.seen.clear()
            found = self.seen[key] = type(inner).gen_obs(inner)
        return found


def one_hot_images(images: np.ndarray) -> np.ndarray:
    """MiniGrid's images uint8 [n, h, w, 3] as float32 [n, h w 20]."""
    parts = [np.eye(size, dtype=np.float32)[images[..., i]] for i, size in enumerate(IMAGE)]
    return np.concatenate(parts, -1).reshape(len(images), -1)


def _import_minigrid(id: str):
    """Its module of environments; importing it registers its ids. Raises BadValue."""
    try:
        from minigrid import minigrid_env
    except ImportError as error:
        raise MissingPackage(f"{id} needs the package minigrid: pip install minigrid") from error
    return minigrid_env


def _made(id: str, n: int, parameters: dict, wrappers: list) -> gym.vector.VectorEnv:
    off = {"autoreset_mode": AutoresetMode.DISABLED}
    how = {"vectorization_mode": "sync", "vector_kwargs": off, "wrappers": wrappers}
    try:
        return gym.make_vec(id, n, **how, disable_env_checker=True, **parameters)
    except (gym.error.UnregisteredEnv, gym.error.NamespaceNotFound) as error:
        raise unknown("environment", id, gym.registry) from error
    except Exception as error:  # the environment's own code, or a package that it lacks
        said = " ".join(str(error).split())
        raise BadValue(f"{id} can't be made: {type(error).__name__}: {said}") from error
