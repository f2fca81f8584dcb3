"""What all environments have in common: the interface, checks of actions, streams of bits.

`Environment` is the interface; `Simulated` the machinery of those in numpy, of which each writes
only how an episode begins, how a state follows from a state, and what is seen of it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from cl.errors import BadValue, NonFinite, RunError, ShapeMismatch

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Step(NamedTuple):
    """What one action per environment led to; n environments, observations of d numbers.

    observations  float32 [n, d]: what to act on next; of a new episode where one has ended
    rewards       float32 [n]
    terminated    bool [n]: the task has ended; nothing comes after, its value is 0
    truncated     bool [n]: the clock has ended; never together with terminated
    final_observations  float32 [n, d]: what these actions led to, before any reset: the
                  observation to bootstrap from. The same array as observations if no episode ended
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observations: np.ndarray


class Environment:
    """n environments that step together; `cl.environments` says what callers may rely on."""

    id: str
    n: int
    n_actions: int | None = None  # None: actions are continuous
    action_size: int = 1  # numbers per action
    action_low: np.ndarray | None = None  # float32 [action_size], continuous actions only
    action_high: np.ndarray | None = None
    observation_size: int
    observation_kind: Literal["box", "one_hot"] = "box"
    replays = False  # whether `load` plays the running episodes again, as it has no other way

    def reset(self, rng: np.random.Generator | None = None, which=None) -> np.ndarray:
        """New episodes in all environments, or in those of `which`; observations [n, d] of all.

        rng: new streams of bits for these environments, from one draw; None: theirs go on.
        which: bool [n] or positions.
        """
        raise NotImplementedError

    def step(self, actions) -> Step:
        """One action per environment: int [n], or float [n, action_size] in its bounds."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """All that steps depend on, as copies; arrays have a row per environment."""
        raise NotImplementedError

    def load(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Put back what `state` gave; the observations [n, d] there."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what an environment holds outside of this object."""

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform random actions; standard normal where there are no bounds."""
        if self.n_actions is not None:
            return rng.integers(self.n_actions, size=self.n)
        shape = (self.n, self.action_size)
        low, high = self.action_low, self.action_high
        bounded = np.isfinite(low) & np.isfinite(high)
        spread = np.where(bounded, high - np.where(bounded, low, 0), 1)
        uniform, normal = rng.random(shape), rng.standard_normal(shape)
        return np.where(bounded, low + spread * uniform, normal).astype(np.float32)

    def checked(self, actions) -> np.ndarray:
        """The actions as int64 [n] or float64 [n, action_size]; Raises for what are none."""
        given = np.asarray(actions)
        if self.n_actions is None:
            if given.shape == (self.n,) and self.action_size == 1:
                given = given[:, None]
            self._shaped(given, (self.n, self.action_size))
            return given.astype(np.float64, copy=False)
        self._shaped(given, (self.n,))
        if given.dtype.kind not in "iu":
            raise BadValue(f"{self.id} takes whole numbers as actions, got {given.dtype}")
        if given.min() < 0 or given.max() >= self.n_actions:
            wrong = given[(given < 0) | (given >= self.n_actions)][0]
            raise BadValue(f"{self.id} has the actions 0 to {self.n_actions - 1}, got {wrong}")
        return given

    def _shaped(self, given: np.ndarray, shape: tuple[int, ...]) -> None:
        if given.shape != shape:
            raise ShapeMismatch(
                f"{self.n} environments {self.id} take actions of shape {shape}, got {given.shape}"
            )

    def positions(self, which) -> np.ndarray:
        """`which` as positions; None is all."""
        if which is None:
            return np.arange(self.n)
        which = np.asarray(which)
        return which.nonzero()[0] if which.dtype == bool else which.astype(np.int64)


class Simulated(Environment):
    """Environments in numpy, in state arrays that all of them share.

    A subclass sets the spaces and `width`, the rows of x, and writes `_begin _advance _seen`;
    `draws` are the numbers that it draws for every new episode.

    x        [width, n]: the state, a row per variable
    clock    int64 [n]: steps of the running episode
    streams  uint64 [n]: where every environment's stream of bits is
    """

    width: int
    draws: int
    number: type = np.float64  # of x

    def __init__(self, n: int, limit: int | None):
        if n < 1:
            raise BadValue(f"{self.id} needs at least one environment, got n={n}")
        if limit is not None and limit < 1:
            raise BadValue(f"{self.id} limit={limit} is no number of steps; None has no limit")
        self.n, self.limit = n, limit
        self.parameters: dict[str, np.ndarray] = {}
        self.x: np.ndarray | None = None
        self.clock, self.streams = np.zeros(n, np.int64), np.zeros(n, np.uint64)

    # -- what an environment says ----------------------------------------------------------------

    def _begin(self, which: np.ndarray, u: np.ndarray) -> np.ndarray:
        """States [width, m] at the start of episodes of `which` [m], from uniform u [m, draws]."""
        raise NotImplementedError

    def _advance(self, x: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """(states [width, n], rewards [n], terminated [n]) after the actions; x is not changed."""
        raise NotImplementedError

    def _seen(self, x: np.ndarray) -> np.ndarray:
        """Observations float32 [m, d] of states [width, m]."""
        raise NotImplementedError

    # -- the interface ---------------------------------------------------------------------------

    def reset(self, rng=None, which=None) -> np.ndarray:
        """See Environment."""
        which = self.positions(which)
        if self.x is None:
            if rng is None or len(np.unique(which)) < self.n:
                raise RunError(f"{self.id}: the first reset needs a generator, and is of all")
            self.x = np.zeros((self.width, self.n), self.number)
        if rng is not None:
            self.streams[which] = new_streams(rng, self.n)[which]
        self._restart(which)
        return self._seen(self.x)

    def step(self, actions) -> Step:
        """See Environment."""
        if self.x is None:
            raise RunError(f"{self.id}: reset comes before the first step")
        self.x, rewards, terminated = self._advance(self.x, self.checked(actions))
        self.clock += 1
        final = observations = self._seen(self.x)
        self._finite(final, rewards)
        truncated = np.zeros(self.n, bool)
        if self.limit is not None:
            truncated = (self.clock >= self.limit) & ~terminated
        ended = terminated | truncated
        if ended.any():
            which = ended.nonzero()[0]
            self._restart(which)
            observations = final.copy()
            observations[which] = self._seen(self.x[:, which])
        return Step(
            observations, rewards.astype(np.float32, copy=False), terminated, truncated, final
        )

    def state(self) -> dict[str, np.ndarray]:
        """See Environment."""
        if self.x is None:
            raise RunError(f"{self.id} has no state before its first reset")
        return {
            "x": self.x.T.copy(),
            "clock": self.clock.copy(),
            "streams": self.streams.view(np.int64).copy(),
        }

    def load(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See Environment."""
        shapes = {"x": (self.n, self.width), "clock": (self.n,), "streams": (self.n,)}
        given = {name: np.shape(array) for name, array in state.items()}
        if given != shapes:
            raise ShapeMismatch(f"{self.id}: a state has the arrays {shapes}, got {given}")
        self.x = np.ascontiguousarray(np.asarray(state["x"]).T).astype(self.number)
        self.clock = np.array(state["clock"], np.int64)
        self.streams = np.array(state["streams"], np.int64).view(np.uint64)
        return self._seen(self.x)

    # -- for subclasses --------------------------------------------------------------------------

    def _set(self, positive: tuple[str, ...] = (), **parameters) -> None:
        """Keep parameters as float64 [n], by name and in `parameters`. Raises BadValue."""
        for name, value in parameters.items():
            value = np.asarray(value, np.float64)
            if value.shape not in ((), (self.n,)):
                raise BadValue(
                    f"{self.id} {name} is one number or one per environment ({self.n}), "
                    f"got shape {value.shape}"
                )
            if not np.isfinite(value).all() or (name in positive and (value <= 0).any()):
                kind = "positive" if name in positive else "finite"
                raise BadValue(f"{self.id} {name}={value.tolist()} is not {kind}")
            self.parameters[name] = np.array(np.broadcast_to(value, (self.n,)))
            setattr(self, name, self.parameters[name])

    def _restart(self, which: np.ndarray) -> None:
        self.x[:, which] = self._begin(which, uniform(self.streams, which, self.draws))
        self.clock[which] = 0

    def _finite(self, observations: np.ndarray, rewards: np.ndarray) -> None:
        if not (np.isfinite(observations).all() and np.isfinite(rewards).all()):
            good = np.isfinite(observations).all(1) & np.isfinite(rewards)
            k = int((~good).argmax())
            raise not_finite(self.id, k, int(self.clock[k]))


def not_finite(name: str, k: int, step: int) -> NonFinite:
    """What an environment's nan or inf ends in."""
    return NonFinite(
        f"{name}: environment {k} returned an observation or a reward that is nan or inf, "
        f"at step {step} of its episode"
    )


def new_streams(rng: np.random.Generator, n: int) -> np.ndarray:
    """Starts uint64 [n] of n streams of bits; the k-th depends on one draw of rng and on k."""
    key = rng.integers(2**64, dtype=np.uint64)
    return _mixed(key + np.arange(1, n + 1, dtype=np.uint64) * _GAMMA)


def uniform(streams: np.ndarray, which: np.ndarray, size: int) -> np.ndarray:
    """The next `size` numbers in [0, 1) of the streams at `which`, [m, size]; these move on."""
    places = streams[which, None] + np.arange(1, size + 1, dtype=np.uint64) * _GAMMA
    streams[which] = places[:, -1]
    return (_mixed(places) >> np.uint64(11)) * 2.0**-53


def _mixed(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
