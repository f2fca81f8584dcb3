"""frozenlake_maps: over slippery ice to the goal, on another map in every task.

Shifts    where the holes are; start, goal, size and physics stay. What is safe on one map ends in a
          hole on another
Context   the holes of the map are in the observation, one number per cell, which makes the stream
          jointly solvable; context=hidden shows the place alone, and no policy can solve all maps
Source    FrozenLake-v1 of Gymnasium, simulated here; 100 steps on 4x4, 200 on 8x8. Random maps have
          a way to the goal; the best policy gets there in half of the episodes or more, the
          random one in a fifth or less
Score     0 is the random policy, 1 the best that knows map and clock; both computed exactly, by
          dynamic programming over place and steps left
Expert    a table of places, planned; at most 0.01 (8x8: 0.05) below the reference
Budget    8x8 is far harder to explore: give ten times the steps
Gives     boundaries, stream_length
Parameters
    n_experiences  maps [tasks]
    size           cells of a side: 4 or 8 [cells]
    slippery       two of three steps go to one side of where they were meant to
    frozen         share of a random map's cells that are ice before a way is asked for [1]
    standard       the first map is Gymnasium's own
    steps          environment steps of each [steps]
    context        shown or hidden
    n_test         episodes per evaluation [episodes]
    n_val          episodes per evaluation for choices; 0 for none [episodes]
    seed           of maps and of evaluation's episodes; follows the run's seed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.environments import Environment, FrozenLake, WithContext, random_map
from cl.environments.frozen_lake import MAPS
from cl.errors import BadValue
from cl.registry import register
from cl.seeding import derive

LIMITS = {4: 100, 8: 200}  # steps per episode, Gymnasium's
LEAST, MOST = 0.5, 0.2  # returns on a random map: of the best policy, of the random one
DISCOUNTS = (0.9999, 0.999, 0.99, 0.98, 0.95, 0.9)
TRIES = 200  # random maps to look at for one that is new and fit

# calibrated on seeds 100 to 102: Gymnasium's own 4x4 map, and three maps in turn. A discount of
# 0.99 makes haste on ice that is better crossed with patience
DEFAULTS = {
    "ppo.objective.n_envs": 16,
    "ppo.objective.n_steps": 64,
    "ppo.objective.passes": 10,
    "ppo.objective.gamma": 0.999,
    "ppo.objective.entropy_coef": 0.02,
    "ppo.train.batch_size": 256,
    "ppo.train.lr": 1e-3,
    "ppo.train.eps": 1e-5,
    "ppo.train.clip": 0.5,
    "ppo.train.schedule": "linear",
    "ppo.eval.every": 320,
    "cloning.train.batch_size": 64,
    "cloning.train.lr": 1e-3,
    "cloning.train.epochs": 10,
    "dqn.model": "q_network",
    "dqn.train.lr": 1e-3,
    "dqn.train.batch_size": 64,
    "dqn.train.clip": 10.0,
    "dqn.eval.every": 4096,
}


@register
def frozenlake_maps(
    *,
    n_experiences: Annotated[int, Range(min=1, max=50)] = 5,
    size: Literal[4, 8] = 4,
    slippery: bool = True,
    frozen: Annotated[float, Range(above=0, max=1)] = 0.8,
    standard: bool = False,
    steps: Annotated[int, Range(min=1)] = 65536,
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 100,
    n_val: Annotated[int, Range(min=0)] = 50,
    seed: int = 0,
) -> EnvStream:
    """One map after the other."""
    maps = [MAPS[f"{size}x{size}"]] if standard else []
    rng = np.random.default_rng(derive(seed, "maps"))
    for _ in range(n_experiences - len(maps)):
        maps.append(_new_map(rng, size, frozen, slippery, maps))
    shown = context == "shown"
    return env_stream(
        "frozenlake_maps",
        [_task(k, rows, slippery, shown) for k, rows in enumerate(maps)],
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        hidden=not shown,
        jointly_solvable=shown or n_experiences == 1,
        defaults=DEFAULTS,
    )


def _lake(n: int, rows: list[str], slippery: bool) -> FrozenLake:
    return FrozenLake(n, maps=rows, is_slippery=slippery, limit=LIMITS[len(rows)])


def _new_map(rng: np.random.Generator, size: int, frozen: float, slippery: bool, known: list):
    """A map that is not known and that a policy can do well on. Raises BadValue."""
    for _ in range(TRIES):
        rows = random_map(rng, size, frozen)
        lake = _lake(1, rows, slippery)
        if rows not in known and best(lake) >= LEAST and expected(lake) <= MOST:
            return rows
    raise BadValue(
        f"frozenlake_maps: no further map of {size} x {size} with a share of {frozen:g} ice in "
        f"{TRIES} draws; give another stream.frozen or fewer stream.n_experiences"
    )


def _task(k: int, rows: list[str], slippery: bool, shown: bool) -> EnvTask:
    lake = _lake(1, rows, slippery)

    def build(n: int) -> Environment:
        env = _lake(n, rows, slippery)
        return WithContext(env, env.planes("H")) if shown else env

    def expert(env: Environment):
        table = stationary(lake)
        return lambda seen: table[seen[:, : len(table)].argmax(1)]

    described = f"FrozenLake-v1 {'/'.join(rows)} slippery {slippery}"
    return EnvTask(f"map{k}", build, expected(lake), best(lake), expert, described)


def expected(lake: FrozenLake, policy: np.ndarray | None = None) -> float:
    """What a policy returns per episode, exactly; actions [S], none: uniform random ones."""
    places = np.arange(lake.observation_size)
    return _planned(lake, lambda q: q.mean(1) if policy is None else q[places, policy])[0]


def best(lake: FrozenLake) -> float:
    """What the best policy that knows place and clock returns per episode, exactly."""
    return _planned(lake, lambda q: q.max(1))[0]


def stationary(lake: FrozenLake) -> np.ndarray:
    """Actions int64 [S] of a good policy that knows the place alone: the best of a few.

    Each takes the best first steps where a step later counts `discount` as much.
    """
    tables = [_planned(lake, lambda q: q.max(1), discount)[1] for discount in DISCOUNTS]
    return max(tables, key=lambda table: expected(lake, table))


def _planned(
    lake: FrozenLake, choose: Callable[[np.ndarray], np.ndarray], discount: float = 1.0
) -> tuple[float, np.ndarray]:
    """(value of the start, best first actions [S]) of the whole episode; choose: [S, 4] -> [S]."""
    cells, shares, rewards, ends = lake.outcomes()
    values = np.zeros(lake.observation_size)
    for _ in range(lake.limit):
        q = (rewards + discount * np.where(ends, 0, values))[cells] @ shares
        values = choose(q)
    return float(values[lake.cells[0] == "S"].mean()), q.round(12).argmax(1)
