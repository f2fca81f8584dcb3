"""dqn: deep Q-learning, learning the values of actions from stored steps of environments.

Source  Mnih et al. 2015; double DQN arXiv:1509.06461. Mathematics: `_q_learning.py`
Step    `every` environment steps by an epsilon-greedy policy go to the buffer, then `updates`
        updates on rows drawn from it, train.batch_size each
Loss    Huber distance of Q(s, a) to r + gamma (1 - terminated) max_a' Q_target(s', a')
Budget  an experience's steps, those of the stream
Time    a truncated episode is worth what follows its last observation, a terminated one nothing
Switch  at an experience's start: environments are new, exploration begins anew, the target network
        is the network as it is; the buffer: below, keep is what is called perfect memory where it
        has room for everything; momentum by train.reset_optimizer
Shapes  mb_x float32 [B, d], mb_y int64 [B] actions, output [B, A] values
Parameters
    n_envs          environments side by side [environments]
    every           environment steps between two times of updating [steps]
    updates         updates each time [updates]
    gamma           discount of a step later [1]
    capacity        of the buffer [steps]
    buffer          at an experience's start: reset, or keep old steps
    starts          steps at random before the first update of an experience [steps]
    target_every    updates between two copies to the target network [updates]
    double          let the network in training choose the action that the target network values
    explore         share of an experience over which random actions become fewer [1]
    epsilon         share of random actions at the end of that [1]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn

from cl.config import Range
from cl.data import Table
from cl.errors import BadValue
from cl.objectives import _q_learning as q
from cl.objectives._acting import Acting, Played, Players
from cl.registry import register
from cl.seeding import frozen
from cl.steps import Steps

if TYPE_CHECKING:
    from cl.loop import Loop


@register
class DQN(Acting):
    """Q-learning with a target network."""

    name = "dqn"
    values_actions = True

    def __init__(
        self,
        *,
        n_envs: Annotated[int, Range(min=1)] = 8,
        every: Annotated[int, Range(min=1)] = 8,
        updates: Annotated[int, Range(min=1)] = 4,
        gamma: Annotated[float, Range(min=0, max=1)] = 0.99,
        capacity: Annotated[int, Range(min=1)] = 100_000,
        buffer: Literal["reset", "keep"] = "reset",
        starts: Annotated[int, Range(min=0)] = 1000,
        target_every: Annotated[int, Range(min=1)] = 100,
        double: bool = False,
        explore: Annotated[float, Range(min=0, max=1)] = 0.2,
        epsilon: Annotated[float, Range(min=0, max=1)] = 0.05,
    ):
        super().__init__()
        self.n_envs, self.every, self.updates = n_envs, every, updates
        self.gamma, self.double, self.target_every = gamma, double, target_every
        self.capacity, self.buffer, self.starts = capacity, buffer, starts
        self.explore, self.epsilon = explore, epsilon
        self.needs = ("buffer",) if buffer == "keep" else ()
        self.target: nn.Module | None = None
        self.held: dict[str, Tensor] = {}  # of stored steps [n, ...], a ring once it is full
        self.stored = 0  # steps that were ever put in
        self.before = 0  # of them before the experience
        self._rows: dict[str, Tensor] = {}

    # -- what the loop asks for ------------------------------------------------------------------

    def check(self, loop: Loop) -> None:
        """Raises BadValue for what can't work."""
        super().check(loop)
        if loop.stream.actions.continuous:
            raise BadValue(
                f"objective=dqn chooses among actions, {loop.stream.name} has continuous ones: "
                "give objective=ppo, or a stream with levels of them"
            )

    def batches(self, loop: Loop, table: Table) -> StoredBatches:
        """Minibatches of stored steps; steps are made while they are iterated over."""
        return StoredBatches(self, loop, table)

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Put stored steps on the loop, or add those that a strategy has kept."""
        if "reward" in rows:
            self._rows = {name: torch.cat([c, rows[name]]) for name, c in self._rows.items()}
            loop.mb_x, loop.mb_y, loop.mb_task_id = rows["x"], rows["y"], None
            return
        at = self.steps_of(rows)
        self._rows = {name: column[at] for name, column in self.held.items()}
        loop.mb_x, loop.mb_y, loop.mb_task_id = self._rows["x"], self._rows["y"], None

    def forward(self, loop: Loop) -> Tensor:
        """Values [B, A]."""
        return loop.model(loop.mb_x)

    def loss(self, loop: Loop) -> Tensor:
        """Mean Huber distance to the targets."""
        rows = self._rows
        with torch.no_grad():
            following = self.target(rows["next"])
            chooser = loop.model(rows["next"]) if self.double else None
        wanted = q.q_target(
            rows["reward"], following, rows["terminated"], gamma=self.gamma, next_online=chooser
        )
        return q.q_loss(loop.mb_output, loop.mb_y, wanted)

    def state(self) -> dict:
        """The stored steps, where they are kept."""
        return {"held": self.full(), "stored": self.stored} if self.buffer == "keep" else {}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.held, self.stored = {}, state.get("stored", 0)
        for name, column in state.get("held", {}).items():
            self.held[name] = column.new_zeros((self.capacity, *column.shape[1:]))
            self.held[name][: len(column)] = column

    # -- steps -------------------------------------------------------------------------------------

    def full(self) -> dict[str, Tensor]:
        """The columns of the buffer as far as they have been filled."""
        return {name: column[: self.stored] for name, column in self.held.items()}

    def begin(self, loop: Loop) -> None:
        """What is kept and what is reset at an experience's start."""
        self.forget()
        self.target = loop.snapshot()
        if self.buffer == "reset":
            self.held, self.stored = {}, 0
        self.before = self.stored

    def storable(self, loop: Loop) -> Table:
        """The experience's stored steps, as `load` adds them."""
        n = min(self.stored - self.before, self.capacity)
        at = torch.arange(self.stored - n, self.stored) % self.capacity
        return Table({name: column[at.to(column.device)] for name, column in self.held.items()})

    def collect(self, loop: Loop, players: Players, made: int, budget: int, n: int) -> None:
        """n steps in every environment, `made` after the experience's start, into the buffer."""
        loop.fire("before_rollout")
        share = q.epsilon(made, steps=int(self.explore * budget), last=self.epsilon)
        share = 1.0 if made < self.starts else share
        draws = torch.rand(n, players.n, 2, generator=loop.rng("actions")).to(loop.device)
        with frozen(loop.model):
            steps = players.steps(n, lambda x, t: q.explore(loop.model(x).float(), draws[t], share))
        loop.rollouts = steps
        loop.fire("after_rollout")
        loop.fire("after_reward")
        loop.fire("after_advantage")
        self._store(steps)
        self.remember(steps)
        players.log()
        loop.log("explored", share)

    def _store(self, steps: Steps) -> None:
        new = {
            "x": steps.rows("observations"),
            "y": steps.rows("actions"),
            "reward": steps.rows("rewards"),
            "next": steps.next_observations().flatten(0, 1),
            "terminated": steps.rows("terminated"),
        }
        n = len(new["y"])
        if not self.held:
            self.held = {k: v.new_zeros((self.capacity, *v.shape[1:])) for k, v in new.items()}
        at = (self.stored + torch.arange(n, device=new["y"].device)) % self.capacity
        for name, column in new.items():
            self.held[name][at[-self.capacity :]] = column[-self.capacity :]
        self.stored += n

    def drawn(self, loop: Loop) -> Tensor:
        """Positions int64 [B] of stored steps, uniform with replacement."""
        n = min(self.stored, self.capacity)
        return torch.randint(n, (loop.train_mb_size,), generator=loop.rng("batches"))

    def follow(self, loop: Loop) -> None:
        """Copy the network to the target network when it is due."""
        if q.sync_is_due(loop.clock.train_exp_iterations, self.target_every):
            q.synchronise(self.target, loop.model)


class StoredBatches(Played):
    """One experience's minibatches of stored steps; an epoch is the budget of steps.

    Yields int64 [B], positions in the objective's buffer. made: steps so far in this epoch; left:
    updates until the next ones; updated: whether there was one since the last look at the target.
    """

    def __init__(self, objective: DQN, loop: Loop, table: Table):
        super().__init__(objective, loop, table)
        self.left, self.updated = 0, False

    def _length(self) -> int:
        return -(-self.objective.every // self.n)

    def __len__(self) -> int:
        o, each = self.objective, self._length() * self.n
        times = -(-len(self.table) // each)
        before = max(0, -(-o.starts // each) - 1)
        return max(0, times - before) * o.updates

    def begin(self) -> None:
        """See Played."""
        super().begin()
        self.left, self.updated = 0, False

    def more(self) -> bool:
        """A draw from the buffer, after further steps if they are due."""
        o, loop, n = self.objective, self.loop, self._length()
        if self.updated:
            o.follow(loop)
            self.updated = False
        while not self.left:
            if self.made >= len(self.table):
                self.close()
                return False
            o.collect(loop, self.players, self.made, len(self.table), n)
            self.made += n * self.n
            self.left = o.updates if self.made >= o.starts else 0
        self.left, self.updated = self.left - 1, True
        return self.give((o.drawn(loop).to(loop.device),))

    def state(self) -> dict:
        """See Epochs: buffer and target network, too."""
        o = self.objective
        kept = o.buffer == "keep"  # then the objective's own state holds it
        return super().state() | {
            "left": self.left,
            "updated": self.updated,
            "target": o.target,
            "before": o.before,
            "stored": None if kept else {"held": o.full(), "stored": o.stored},
        }

    def load_state(self, state: dict) -> None:
        """See Epochs."""
        super().load_state(state)
        o, self.left, self.updated = self.objective, state["left"], state["updated"]
        o.target, o.before = state["target"], state["before"]
        if state["stored"] is not None:
            o.load_state(state["stored"])
