"""What objectives have in common whose policy acts in environments: acting, seeing, being scored.

Environments of an experience are made when it begins and are forgotten when it ends: their random
numbers come from (seed, experience), the policy's from a generator of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cl.data import Table
from cl.env_stream import EnvStream
from cl.environments import Environment, Joined
from cl.errors import BadValue, ContractError
from cl.models.policy import PolicyModel
from cl.seeding import derive
from cl.steps import Steps

if TYPE_CHECKING:
    from cl.loop import Loop

VISITED = 4096  # rows that are kept of what the policy has lately met

Act = Callable[[Tensor, int], Tensor]


class Acting:
    """An objective whose policy learns in environments."""

    domains = ("rl",)
    values_actions = False  # scores are values, not logits or means
    name: str

    def __init__(self):
        self._lately: list[tuple[Tensor, Tensor]] = []  # (observations, actions) of rollouts

    def check(self, loop: Loop) -> None:
        """Raises BadValue for streams, models and settings that this can't be used with."""
        check_policy(loop, self.name)
        if loop.train.augment:
            raise BadValue("train.augment changes images; observations are taken as they are")

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Steps at positions `index` of what is learned from."""
        return {"step": index}

    def steps_of(self, rows: dict[str, Tensor]) -> Tensor:
        """Positions of steps. Raises ContractError for rows that are none."""
        if "step" not in rows:
            raise ContractError(
                f"labelled rows can't be added to a batch of {self.name}, which learns from steps "
                "of its own policy; objective=cloning learns from rows"
            )
        return rows["step"]

    def predict(self, loop: Loop, batch) -> Tensor:
        """Scores [B, A] of the actions."""
        return loop.model(batch.x)

    def evaluator(self, loop: Loop):
        """Episodes in environments of their own."""
        from cl.episodes import EpisodeEvaluator

        return EpisodeEvaluator(loop)

    def visited(self, loop: Loop) -> Table | None:
        """x: observations that the policy has lately met in this experience, y: what it did there;
        None before any."""
        if not self._lately:
            return None
        x, y = (torch.cat(column)[-VISITED:] for column in zip(*self._lately, strict=True))
        return Table({"x": x, "y": y})

    def remember(self, steps: Steps) -> None:
        """Keep what `visited` shows."""
        self._lately.append((steps.rows("observations"), steps.rows("actions")))
        while sum(len(x) for x, _ in self._lately[1:]) >= VISITED:
            self._lately.pop(0)

    def forget(self) -> None:
        """A new experience: nothing has been met in it yet."""
        self._lately = []

    def state(self) -> dict:
        """What goes on from one experience to the next beside the model."""
        return {}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""


def check_policy(loop: Loop, name: str) -> None:
    """An environment stream and a policy. Raises BadValue."""
    if not isinstance(loop.stream, EnvStream):
        raise BadValue(f"objective={name} needs environments, {loop.stream.name} has none")
    if not isinstance(loop.model, PolicyModel):
        raise BadValue(f"objective={name} needs a policy: model=actor_critic or q_network")


def copies_of(table: Table, n: int) -> dict[int, int]:
    """{task: environments of it}, n in all, or as many as there are tasks if these are more.

    In proportion to the table's steps of each task, one at least; the largest remainders are
    rounded up.
    """
    tasks, counts = table.column("x").unique(return_counts=True)
    n = max(n, len(tasks))
    shares = {k: n * c / len(table) for k, c in zip(tasks.tolist(), counts.tolist(), strict=True)}
    copies = {k: max(1, int(share)) for k, share in shares.items()}
    while sum(copies.values()) != n:
        more = 1 if sum(copies.values()) < n else -1
        able = [k for k in copies if more > 0 or copies[k] > 1]
        copies[max(able, key=lambda k: more * (shares[k] - copies[k]))] += more
    return copies


class Players:
    """A policy in n environments: the running episodes, and batches of steps on demand.

    returned: raw returns of the episodes that have ended since they were last asked for; scale:
    of the rewards that are learned from, float32 [n], None for 1.
    """

    def __init__(self, loop: Loop, table: Table, n: int):
        self.loop, stream = loop, loop.stream
        copies = copies_of(table, n)
        made = [stream.tasks[k].build(m) for k, m in copies.items()]
        self.env: Environment = made[0] if len(made) == 1 else Joined(made)
        self.task = torch.tensor([k for k, m in copies.items() for _ in range(m)])
        seed = derive(loop.seed, f"environments/{loop.experience.index}")
        self.seen = self.env.reset(np.random.default_rng(seed))
        self.low, self.high = self.env.action_low, self.env.action_high
        self._sums, self.returned = np.zeros(self.env.n), []
        scales = [stream.tasks[k].reward_scale for k in self.task.tolist()]
        self.scale = None if set(scales) == {1.0} else np.array(scales, np.float32)

    @property
    def n(self) -> int:
        """Environments side by side."""
        return self.env.n

    def steps(self, length: int, act: Act) -> Steps:
        """`length` steps in every environment. act(observations [n, d], t) -> actions [n]."""
        env, device, n = self.env, self.loop.device, self.n
        observations = np.empty((length, *self.seen.shape), np.float32)
        rewards = np.empty((length, n), np.float32)
        terminated, truncated = np.empty((2, length, n), bool)
        actions, finals, at = [], [], []
        for t in range(length):
            observations[t] = self.seen
            chosen = act(torch.from_numpy(self.seen).to(device), t)
            actions.append(chosen)
            step = env.step(self._within(chosen))
            rewards[t], terminated[t], truncated[t] = step.rewards, step.terminated, step.truncated
            for k in step.truncated.nonzero()[0]:
                finals.append(step.final_observations[k])
                at.append((t, k))
            if self.scale is not None:
                rewards[t] *= self.scale
            self._count(step)
            self.seen = step.observations
        self.loop.env_steps += length * n
        arrays = (observations, rewards, terminated, truncated)
        x, r, ended, cut = (torch.from_numpy(a).to(device) for a in arrays)
        places = torch.tensor(at, dtype=torch.int64, device=device).view(-1, 2)
        last = torch.from_numpy(self.seen).to(device)
        final = torch.from_numpy(np.array(finals, np.float32).reshape(-1, x.shape[2])).to(device)
        acted = torch.stack(actions)
        return Steps(x, acted, r, ended, cut, self.task.to(device), final, places, last)

    def _within(self, actions: Tensor) -> np.ndarray:
        """Actions as environments take them: continuous ones within the bounds."""
        given = actions.cpu().numpy()
        return given if self.low is None else given.clip(self.low, self.high)

    def _count(self, step) -> None:
        self._sums += step.rewards
        ended = (step.terminated | step.truncated).nonzero()[0]
        if len(ended):
            self.returned += self._sums[ended].tolist()
            self._sums[ended] = 0

    def log(self) -> None:
        """Show the mean return of the episodes that have ended: of the policy that explores."""
        if self.returned:
            self.loop.log("episode_return", sum(self.returned) / len(self.returned))
            self.returned = []

    def close(self) -> None:
        """Let go of the environments; their failure to close fails nothing else."""
        try:
            self.env.close()
        except Exception as error:
            warnings.warn(f"{self.env.id} did not close: {error}", stacklevel=1)
