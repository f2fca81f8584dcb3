"""Streams of environments: what a task of reinforcement learning is, and streams that teach some.

A row of a training table is one environment step in task x, so that the length of an experience
is its budget of steps, and the union of several tables is several tasks at once. A row of a test
or validation table is one episode: x its task, y its number, which decides its random numbers.

Scores   (raw - random) / (reference - random) of the mean undiscounted return per episode: 0 is
         the uniform random policy, 1 the task's reference policy; never clipped
Context  what tells tasks apart is in the observation, unless the stream hides it; task labels are
         given to strategies beside it where `stream.task_labels=true`
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cl.data import Table
from cl.environments import Environment
from cl.errors import BadValue, DataError
from cl.models.policy import Actions
from cl.seeding import derive
from cl.stream import Eval, Experience, Stream

Expert = Callable[[Environment], Callable[[np.ndarray], np.ndarray]]
DEFAULTS = {
    "model": "actor_critic",
    "train.optimizer": "adam",
    "train.fused": True,
    "train.epochs": 1,
    "train.reset_optimizer": True,
}


@dataclass(frozen=True)
class EnvTask:
    """One environment as a task.

    build(n): n copies of it; random, reference: mean raw returns per episode that score 0 and 1;
    expert(environment): a policy that acts right in it, observations [n, d] -> actions [n], None
    where there is none; described: everything that makes it what it is, in words that are hashed;
    reward_scale: what rewards are multiplied by to learn from, while all that is reported is raw.
    """

    name: str
    build: Callable[[int], Environment]
    random: float
    reference: float
    expert: Expert | None = None
    described: str = ""
    reward_scale: float = 1.0

    def score(self, raw: float) -> float:
        """A mean return as a score."""
        return (raw - self.random) / (self.reference - self.random)

    def hashed(self) -> tuple:
        """What tells this task from another one."""
        return self.name, self.described, self.random, self.reference, self.reward_scale


@dataclass
class EnvStream(Stream):
    """A stream of environments of one size. tasks: by position, as tables name them in x.

    hidden: whether the observation leaves out which task it is; seed: of test episodes.
    """

    tasks: list[EnvTask] = field(default_factory=list)
    actions: Actions = Actions(1)
    hidden: bool = False
    seed: int = 0

    def to(self, device: torch.device) -> EnvStream:
        """This stream: environments, and the tables that count their steps, are on the CPU."""
        return self

    def content_hash(self) -> str:
        """Hash of the tables and of what the tasks are."""
        digest = hashlib.blake2b(super().content_hash().encode(), digest_size=16)
        digest.update(repr((self.hidden, self.seed, self.actions, self.input_shape)).encode())
        for task in self.tasks:
            digest.update(repr(task.hashed()).encode())
        return digest.hexdigest()

    def labelled(self) -> EnvStream:
        """The same with the task of every experience and eval told, in training and at inference.

        Labels are positions of tasks in the order of arrival.
        """
        tasks = [int(e.train.column("x")[0]) for e in self.experiences]
        label = {task: k for k, task in enumerate(dict.fromkeys(tasks))}
        evals = []
        for ev in self.evals:
            task = int(ev.test.column("x")[0])
            if task not in label:
                raise BadValue(f"stream.task_labels: eval {ev.name} is learned in no experience")
            evals.append(replace(ev, task_label=label[task]))
        experiences = [
            replace(e, task_label=label[task])
            for e, task in zip(self.experiences, tasks, strict=True)
        ]
        gives = self.gives | {"task_id_train", "task_id_test"}
        return replace(self, experiences=experiences, evals=evals, gives=gives)

    def constants(self, e: Eval) -> dict[str, float]:
        """The raw returns that an eval scores 0 and 1."""
        task = self.tasks[int(e.test.column("x")[0])]
        return {"random": float(task.random), "reference": float(task.reference)}

    def episodes(self, table: Table, task: int) -> np.random.Generator:
        """What decides the episodes of a test or validation table."""
        first = int(table.column("y")[0])
        return np.random.default_rng(derive(self.seed, f"{self.tasks[task].name}/{first}"))


def env_stream(
    name: str,
    tasks: Sequence[EnvTask],
    *,
    steps: int,
    n_test: int,
    n_val: int,
    seed: int,
    order: str = "fixed",
    **fields,
) -> EnvStream:
    """A stream that teaches one task per experience, `steps` environment steps each.

    n_test, n_val: episodes per evaluation; order: as given, or seeded. fields: of EnvStream, such
    as hidden, jointly_solvable, defaults. Raises DataError, BadValue.
    """
    tasks = list(tasks)
    if order == "seeded":
        rng = np.random.default_rng(derive(seed, "order"))
        tasks = [tasks[k] for k in rng.permutation(len(tasks))]
    for task in tasks:
        if not np.isfinite([task.random, task.reference]).all() or task.reference <= task.random:
            raise DataError(
                f"{name}: task {task.name} can't be scored: random policy {task.random:g}, "
                f"reference {task.reference:g}"
            )
    probe = [task.build(1) for task in tasks]
    actions, size = _spaces(name, tasks, probe)
    experiences, evals = [], []
    for k, task in enumerate(tasks):
        title = f"{k:02d}_{_safe(task.name)}"
        train = Table({"x": torch.full((steps,), k), "y": torch.zeros(steps, dtype=torch.int64)})
        test = _episodes(k, 0, n_test)
        val = _episodes(k, n_test, n_val) if n_val else None
        experiences.append(Experience(k, title, (), train, val))
        evals.append(Eval(title, (), test, val, (k,)))
    fields["defaults"] = DEFAULTS | fields.get("defaults", {})
    return EnvStream(
        name,
        "rl",
        experiences,
        evals,
        (size,),
        [],
        score="normalized_return",
        tasks=tasks,
        actions=actions,
        seed=seed,
        **fields,
    )


def _spaces(name: str, tasks: list[EnvTask], envs: list[Environment]) -> tuple[Actions, int]:
    """The actions and the observation size that all tasks share. Raises DataError."""
    found = []
    for env in envs:
        continuous = env.n_actions is None
        found.append((env.action_size if continuous else env.n_actions, continuous))
    sizes = [env.observation_size for env in envs]
    for task, spaces, size in zip(tasks, found, sizes, strict=True):
        if (spaces, size) != (found[0], sizes[0]):
            raise DataError(
                f"{name}: {task.name} has {size} observations and {Actions(*spaces)}, "
                f"{tasks[0].name} has {sizes[0]} and {Actions(*found[0])}; pad them"
            )
    return Actions(*found[0]), sizes[0]


def _episodes(task: int, first: int, n: int) -> Table:
    return Table({"x": torch.full((n,), task), "y": torch.arange(first, first + n)})


def _safe(name: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "+._-" else "-" for ch in name)[:40]
