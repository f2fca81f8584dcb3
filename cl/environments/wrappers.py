"""Environments changed from outside: other actions, other views, other rewards, one size.

Each takes an environment and is one; arrays are for all environments or have a row for each.
Permutations and flips make tasks interfere that physics alone leaves alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cl.environments._base import Environment, Step
from cl.errors import BadValue

_SPACES = (
    *("id", "n", "n_actions", "action_size", "action_low", "action_high"),
    *("observation_size", "observation_kind", "replays"),
)


class Wrapper(Environment):
    """The environment inside, with what a subclass makes of actions, observations, rewards."""

    def __init__(self, env: Environment):
        self.env = env
        for name in _SPACES:
            setattr(self, name, getattr(env, name))

    def act(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the environment inside, from valid ones of this one."""
        return actions

    def see(self, observations: np.ndarray) -> np.ndarray:
        """Observations of this environment."""
        return observations

    def pay(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards of this environment."""
        return rewards

    def reset(self, rng=None, which=None) -> np.ndarray:
        """See Environment."""
        return self.see(self.env.reset(rng, which))

    def step(self, actions) -> Step:
        """See Environment."""
        step = self.env.step(self.act(self.checked(actions)))
        seen = final = self.see(step.observations)
        if step.final_observations is not step.observations:
            final = self.see(step.final_observations)
        return step._replace(
            observations=seen, rewards=self.pay(step.rewards), final_observations=final
        )

    def state(self) -> dict[str, np.ndarray]:
        """See Environment."""
        return self.env.state()

    def load(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See Environment."""
        return self.see(self.env.load(state))

    def close(self) -> None:
        """See Environment."""
        self.env.close()

    def rows(self, what: str, values, size: int) -> np.ndarray:
        """Values as [n, size]. Raises BadValue."""
        values = np.asarray(values)
        if values.shape not in ((size,), (self.n, size)):
            raise BadValue(
                f"{what} of {self.id} has shape {(size,)} or {(self.n, size)}, got {values.shape}"
            )
        return np.array(np.broadcast_to(values, (self.n, size)))

    def orders(self, what: str, order, size: int) -> np.ndarray:
        """Permutations as [n, size]. Raises BadValue."""
        order = self.rows(what, order, size)
        if not (np.sort(order, 1) == np.arange(size)).all():
            raise BadValue(f"{what} of {self.id} must be a permutation of 0 to {size - 1}")
        return order


class PermutedActions(Wrapper):
    """Action a is the inner environment's action order[a]; order [n_actions] or [n, n_actions]."""

    def __init__(self, env: Environment, order):
        super().__init__(env)
        self.order = self.orders("the order of actions", order, discrete(env).n_actions)
        self._all = np.arange(self.n)

    def act(self, actions):
        """See Wrapper."""
        return self.order[self._all, actions]


class DiscreteActions(Wrapper):
    """Continuous actions of one number as `levels` evenly spaced ones, the bounds among them."""

    def __init__(self, env: Environment, levels: int = 5):
        super().__init__(env)
        low, high = env.action_low, env.action_high
        if env.n_actions is not None or env.action_size != 1 or levels < 2:
            raise BadValue(
                f"levels={levels} of {env.id}: 2 or more, of one continuous number, are allowed"
            )
        if not np.isfinite([low, high]).all():
            raise BadValue(f"{env.id} has actions without bounds, which have no levels")
        self.levels = np.linspace(low[0], high[0], levels)
        self.n_actions, self.action_low, self.action_high = levels, None, None

    def act(self, actions):
        """See Wrapper."""
        return self.levels[actions]


class ChangedObservations(Wrapper):
    """Number i is sign[i] times the inner observation's number order[i]; None leaves as it is."""

    def __init__(self, env: Environment, order=None, sign=None):
        super().__init__(env)
        size = self.observation_size
        order = np.arange(size) if order is None else order
        sign = np.ones(size) if sign is None else sign
        self.order = self.orders("the order of observations", order, size)
        self.sign = self.rows("the sign of observations", sign, size).astype(np.float32)

    def see(self, observations):
        """See Wrapper."""
        return np.take_along_axis(observations, self.order, 1) * self.sign


class ScaledRewards(Wrapper):
    """Rewards times a factor, one or [n]; -1 turns the task around."""

    def __init__(self, env: Environment, factor):
        super().__init__(env)
        self.factor = self.rows("the factor of rewards", np.atleast_1d(factor).reshape(-1, 1), 1)
        self.factor = self.factor[:, 0].astype(np.float32)

    def pay(self, rewards):
        """See Wrapper."""
        return rewards * self.factor


class WithContext(Wrapper):
    """A vector appended to every observation, [c] or [n, c]: which task this is."""

    def __init__(self, env: Environment, context):
        super().__init__(env)
        size = np.shape(context)[-1] if np.ndim(context) else 0
        self.context = self.rows("the context", context, size).astype(np.float32)
        self.observation_size += size
        self.observation_kind = "box"

    def see(self, observations):
        """See Wrapper."""
        return np.concatenate([observations, self.context], 1)


class Padded(Wrapper):
    """One size for several environments: zeros behind observations, further names for actions.

    Action a beyond the inner ones is action a modulo their number, so that every action does
    something and none is the place where a task could be told by.
    """

    def __init__(self, env: Environment, observation_size: int, n_actions: int | None = None):
        super().__init__(env)
        more = observation_size - env.observation_size
        n_actions = env.n_actions if n_actions is None else n_actions
        if more < 0:
            raise BadValue(f"{env.id} sees {env.observation_size} numbers, not {observation_size}")
        if n_actions is not None and n_actions < discrete(env).n_actions:
            raise BadValue(f"{env.id} has {env.n_actions} actions, not {n_actions}")
        self.observation_size, self.n_actions = observation_size, n_actions
        self._zeros = np.zeros((self.n, more), np.float32)

    def act(self, actions):
        """See Wrapper."""
        return actions if self.n_actions is None else actions % self.env.n_actions

    def see(self, observations):
        """See Wrapper."""
        return np.concatenate([observations, self._zeros], 1) if self._zeros.size else observations


class Joined(Environment):
    """Environments of the same spaces as one, in order; a step is a step of each."""

    def __init__(self, envs: Sequence[Environment]):
        self.envs = list(envs)
        first = self.envs[0]
        for name in _SPACES:
            setattr(self, name, getattr(first, name))
        for env in self.envs:
            for name in ("n_actions", "action_size", "observation_size"):
                if getattr(env, name) != getattr(first, name):
                    raise BadValue(
                        f"{env.id} and {first.id} can't be joined: {name} is "
                        f"{getattr(env, name)} and {getattr(first, name)}; see Padded"
                    )
        if any(env.observation_kind != first.observation_kind for env in self.envs):
            self.observation_kind = "box"
        self.replays = any(env.replays for env in self.envs)
        self.id = "+".join(dict.fromkeys(env.id for env in self.envs))
        self.n = sum(env.n for env in self.envs)
        self._ends = np.cumsum([env.n for env in self.envs])

    def reset(self, rng=None, which=None) -> np.ndarray:
        """See Environment; each part draws from rng in turn."""
        chosen = np.zeros(self.n, bool)
        chosen[self.positions(which)] = True
        parts = np.split(chosen, self._ends[:-1])
        return np.concatenate([env.reset(rng, part) for env, part in zip(self.envs, parts)])

    def step(self, actions) -> Step:
        """See Environment."""
        parts = np.split(self.checked(actions), self._ends[:-1])
        steps = [env.step(part) for env, part in zip(self.envs, parts)]
        return Step(*(np.concatenate(values) for values in zip(*steps)))

    def state(self) -> dict[str, np.ndarray]:
        """See Environment; the arrays of part k are named `k.name` and have its rows."""
        return {
            f"{k}.{name}": array
            for k, env in enumerate(self.envs)
            for name, array in env.state().items()
        }

    def load(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """See Environment."""
        seen = []
        for k, env in enumerate(self.envs):
            own = {name: a for name, a in state.items() if name.startswith(f"{k}.")}
            seen.append(env.load({name.partition(".")[2]: a for name, a in own.items()}))
        return np.concatenate(seen)

    def close(self) -> None:
        """See Environment."""
        for env in self.envs:
            env.close()


def discrete(env: Environment) -> Environment:
    """The environment itself. Raises BadValue if its actions are continuous."""
    if env.n_actions is None:
        raise BadValue(
            f"{env.id} takes continuous actions ({env.action_size} numbers), which a policy that "
            "chooses among actions can't give"
        )
    return env
