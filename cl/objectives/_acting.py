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

from cl.data import Epochs, Table
from cl.env_stream import EnvStream
from cl.environments import Environment, Joined
from cl.errors import BadValue, ContractError, DataError, NotKept
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
        self.lately: list[tuple[Tensor, Tensor]] = []  # (observations, actions) of rollouts
        self.n_envs = 1

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
        if not self.lately:
            return None
        x, y = (torch.cat(column)[-VISITED:] for column in zip(*self.lately, strict=True))
        return Table({"x": x, "y": y})

    def remember(self, steps: Steps) -> None:
        """Keep what `visited` shows."""
        self.lately.append((steps.rows("observations"), steps.rows("actions")))
        while sum(len(x) for x, _ in self.lately[1:]) >= VISITED:
            self.lately.pop(0)

    def forget(self) -> None:
        """A new experience: nothing has been met in it yet."""
        self.lately = []

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
        self.copies = copies_of(table, n)
        self.env = self._built()
        self.task = torch.tensor([k for k, m in self.copies.items() for _ in range(m)])
        self._goes_back: bool | None = None  # whether `load` leads back; None: not tried yet
        seed = derive(loop.seed, f"environments/{loop.experience.index}")
        self.seen = self.env.reset(np.random.default_rng(seed))
        self.low, self.high = self.env.action_low, self.env.action_high
        self._sums, self.returned = np.zeros(self.env.n), []
        scales = [stream.tasks[k].reward_scale for k in self.task.tolist()]
        self.scale = None if set(scales) == {1.0} else np.array(scales, np.float32)

    def _built(self) -> Environment:
        tasks = self.loop.stream.tasks
        made = [tasks[k].build(m) for k, m in self.copies.items()]
        return made[0] if len(made) == 1 else Joined(made)

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

    def state(self) -> dict:
        """Where all episodes are, for the checkpoint. Raises NotKept if nothing leads back there.

        Environments that are put back by playing their running episodes again have to show once
        in an experience that they can be: others of their kind must come to see the same.
        """
        try:
            state = self.env.state()
        except NotImplementedError as error:
            raise NotKept(f"{self.env.id} has no state() that could be kept") from error
        if self.env.replays and self._goes_back is None:
            other = self._built()
            self._goes_back = np.array_equal(other.load(state), self.seen)
            _close(other)
        if self._goes_back is False:
            raise NotKept(f"{self.env.id} does not repeat an episode that is played again")
        return {"env": state, "seen": self.seen, "sums": self._sums, "returned": self.returned}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned. Raises DataError if environments are others than then."""
        if not np.array_equal(self.env.load(state["env"]), state["seen"]):
            raise DataError(
                f"{self.env.id} can't be put back to where it was: another version of the package, "
                "or it draws random numbers that are not its own"
            )
        self.seen, self._sums, self.returned = state["seen"], state["sums"], state["returned"]

    def close(self) -> None:
        """Let go of the environments; their failure to close fails nothing else."""
        _close(self.env)


def _close(env: Environment) -> None:
    try:
        env.close()
    except Exception as error:
        warnings.warn(f"{env.id} did not close: {error}", stacklevel=1)


class Played(Epochs):
    """Minibatches of steps that are made while they are iterated over.

    n: environments side by side; made: how far the running epoch has come.
    """

    def __init__(self, objective: Acting, loop: Loop, table: Table):
        super().__init__()
        self.objective, self.loop, self.table = objective, loop, table
        self.n = sum(copies_of(table, objective.n_envs).values())
        self.players: Players | None = None
        self.made = 0

    def begin(self) -> None:
        """See Epochs: new environments."""
        self.close()
        self.players, self.made = Players(self.loop, self.table, self.n), 0
        self.objective.begin(self.loop)
        self.give(())

    def state(self) -> dict:
        """See Epochs: environments and the live batch of steps, too."""
        return super().state() | {
            "made": self.made,
            "players": self.players.state(),
            "lately": self.objective.lately,
            "steps": vars(self.loop.rollouts),
        }

    def load_state(self, state: dict) -> None:
        """See Epochs."""
        super().load_state(state)
        self.made, self.objective.lately = state["made"], state["lately"]
        self.players = Players(self.loop, self.table, self.n)
        self.players.load_state(state["players"])
        self.loop.rollouts = Steps(**state["steps"])

    def close(self) -> None:
        """See Epochs."""
        if self.players is not None:
            self.players.close()
        self.players = None
