"""A planner for MiniGrid's rooms with a goal, or a locked door and its key: shortest ways."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from cl.environments import Environment, Wrapper

LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE = 0, 1, 2, 3, 5
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # of directions 0 to 3: right, down, left, up
OPEN, CLOSED, LOCKED = 0, 1, 2
HELD = (-1, -1)  # where a key is that the agent carries

Place = tuple[int, int]
State = tuple[int, int, int, Place | None, int]  # x, y, direction, key, door
Room = tuple[frozenset[Place], Place | None, Place | None]  # walls, goal, door


def planner(env: Environment):
    """A policy that knows all of the environment's cells: observations [n, d] -> actions [n].

    It acts in `env` as it is at the moment of asking, so it can't be asked about any other.
    """
    while isinstance(env, Wrapper):
        env = env.env
    known: dict[tuple[Room, State], int] = {}

    def act(seen: np.ndarray) -> np.ndarray:
        chosen = []
        for copy in env.vector.envs:
            task = read(copy.unwrapped)
            if task not in known:
                known[task] = (plan(*task) or [LEFT])[0]
            chosen.append(known[task])
        return np.array(chosen)

    return act


def read(inner) -> tuple[Room, State]:
    """What a MiniGrid environment consists of, and how it is."""
    walls, goal, door, key, lock = set(), None, None, None, OPEN
    for k, cell in enumerate(inner.grid.grid):
        at = (k % inner.grid.width, k // inner.grid.width)
        kind = None if cell is None else cell.type
        if kind == "wall":
            walls.add(at)
        elif kind == "goal":
            goal = at
        elif kind == "key":
            key = at
        elif kind == "door":
            door, lock = at, LOCKED if cell.is_locked else OPEN if cell.is_open else CLOSED
    if inner.carrying is not None:
        key = HELD
    x, y = map(int, inner.agent_pos)
    return (frozenset(walls), goal, door), (x, y, int(inner.agent_dir), key, lock)


def plan(room: Room, state: State) -> list[int]:
    """A shortest list of actions to the goal or, without one, to the open door; none: no way."""
    before: dict[State, tuple[State, int] | None] = {state: None}
    waiting = deque([state])
    while waiting:
        here = waiting.popleft()
        for action, there in _following(room, here):
            if there in before:
                continue
            before[there] = here, action
            if there[4] == OPEN if room[1] is None else there[:2] == room[1]:
                return _way(before, there)
            waiting.append(there)
    return []


def _following(room: Room, state: State) -> Iterator[tuple[int, State]]:
    """Every action that can help, and what it leads to."""
    (walls, _, door), (x, y, direction, key, lock) = room, state
    ahead = (x + STEPS[direction][0], y + STEPS[direction][1])
    if ahead not in walls and ahead != key and (ahead != door or lock == OPEN):
        yield FORWARD, (*ahead, direction, key, lock)
    if ahead == key:
        yield PICK_UP, (x, y, direction, HELD, lock)
    if ahead == door and (lock == CLOSED or (lock == LOCKED and key == HELD)):
        yield TOGGLE, (x, y, direction, key, OPEN)
    yield LEFT, (x, y, (direction - 1) % 4, key, lock)
    yield RIGHT, (x, y, (direction + 1) % 4, key, lock)


def _way(before: dict, state: State) -> list[int]:
    actions = []
    while before[state] is not None:
        state, action = before[state]
        actions.append(action)
    return actions[::-1]
