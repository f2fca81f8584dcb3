"""gym: any Gymnasium ids, one after the other.

Shifts    the environment. Observations are padded to one size with zeros, discrete actions with
          further names for the first ones; continuous actions must be of one kind
Context   which task it is, one-hot behind the observation, where there are several, which makes the
          stream jointly solvable; context=hidden leaves it out
Source    Gymnasium's registry, or a module that registers: ids=my_module:MyTask-v0. Classic control
          and FrozenLake are simulated here, state by state the same and far faster
Score     0 is the random policy, played when the stream is made; 1 is stream.references, else the
          reward_threshold that Gymnasium's registry has
Expert    none: cloning has nobody to learn from
Gives     boundaries, stream_length
Parameters
    ids         as gymnasium.make takes them, one task each
    references  what a good policy returns per episode, one for each id; none: the registry's
    limit       steps per episode at most; none: what the registry says [steps]
    n_random    episodes of the random policy [episodes]
    steps       environment steps of each task [steps]
    context     shown or hidden
    n_test      episodes per evaluation [episodes]
    n_val       episodes per evaluation for choices; 0 for none [episodes]
    seed        of evaluation's episodes; follows the run's seed
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

import numpy as np

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.environments import Environment, Padded, WithContext
from cl.errors import BadValue
from cl.registry import register
from streams._gymnasium import DEFAULTS, random_return, threshold, timed


@register
def gym(
    *,
    ids: list[str],
    references: list[float] = (),
    limit: Annotated[int, Range(min=1)] | None = None,
    n_random: Annotated[int, Range(min=1)] = 30,
    steps: Annotated[int, Range(min=1)] = 65536,
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 20,
    n_val: Annotated[int, Range(min=0)] = 10,
    seed: int = 0,
) -> EnvStream:
    """Environments by id."""
    _check(ids, references)
    tried = [timed(id, n_random, limit) for id in ids]
    try:
        size, n_actions = _size(tried)
        goals = references or [_reference(env) for env in tried]
        randoms = [random_return(env) for env in tried]
    finally:
        for env in tried:
            env.close()
    shown = context == "shown" and len(ids) > 1

    def task(k: int) -> EnvTask:
        def build(n: int) -> Environment:
            env = Padded(timed(ids[k], n, limit), size, n_actions)
            return WithContext(env, np.eye(len(ids))[k]) if shown else env

        return EnvTask(ids[k], build, randoms[k], goals[k], described=f"{ids[k]} limit {limit}")

    return env_stream(
        "gym",
        [task(k) for k in range(len(ids))],
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        hidden=context == "hidden",
        jointly_solvable=shown or len(ids) == 1,
        defaults=DEFAULTS,
    )


def _check(ids: list[str], references: list[float]) -> None:
    if not ids:
        raise BadValue("stream.ids names no environment; for instance stream.ids=CartPole-v1")
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise BadValue(f"stream.ids has {twice[0]} twice; stream.cycles=2 repeats the whole list")
    if references and len(references) != len(ids):
        raise BadValue(
            f"stream.references has {len(references)} numbers for {len(ids)} ids: one for each"
        )


def _size(envs: list[Environment]) -> tuple[int, int | None]:
    """(size of observations, number of actions) that all can be padded to. Raises BadValue."""
    size, first = max(env.observation_size for env in envs), envs[0]
    for env in envs:
        if (env.n_actions is None) != (first.n_actions is None):
            kinds = ["continuous" if e.n_actions is None else "discrete" for e in (first, env)]
            raise BadValue(
                f"stream.ids: {first.id} takes {kinds[0]} actions, {env.id} {kinds[1]} ones; "
                "one policy can't give both"
            )
    if first.n_actions is not None:
        return size, max(env.n_actions for env in envs)
    for env in envs:
        if _bounds(env) != _bounds(first):
            raise BadValue(
                f"stream.ids: {first.id} takes {_bounds(first)}, {env.id} {_bounds(env)}; "
                "continuous actions must be the same"
            )
    return size, None


def _bounds(env: Environment) -> str:
    low, high = env.action_low.tolist(), env.action_high.tolist()
    return f"{env.action_size} numbers from {low} to {high}"


def _reference(env: Environment) -> float:
    found = threshold(env)
    if found is None:
        raise BadValue(
            f"{env.id} has no reward_threshold in Gymnasium's registry: give stream.references, "
            "what a good policy returns, one for each id"
        )
    return found
