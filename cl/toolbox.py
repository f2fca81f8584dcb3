"""What strategies use besides hooks: shared buffers, features, snapshots, random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl.augment import augment
from cl.buffers import Buffer
from cl.checkpoint import as_snapshot
from cl.data import Table
from cl.errors import BadValue, ContractError
from cl.models import rebuild
from cl.probes import hooks_of
from cl.registry import find
from cl.seeding import frozen, generator, global_state, restore_globals

if TYPE_CHECKING:
    from cl.stream import Experience, Stream

FEATURE_BATCH = 256  # rows per pass in `inputs`; not a setting, since it moves the last bits
PROBE_ROWS = 512  # training rows that a probe may look at


class Toolbox:
    """The part of the loop (`cl/loop.py`) that serves strategies and runs nothing by itself."""

    stream: Stream
    experience: Experience | None
    probes: dict[str, object]  # those that are attached, by name

    @property
    def loss(self) -> Tensor:
        """The loss of this micro-batch; `loop.loss += value` is logged as `other`."""
        return self._loss

    @loss.setter
    def loss(self, value: Tensor) -> None:
        self._loss = value

    @property
    def mbatch(self) -> list:
        """Avalanche's view of the minibatch: [x, y, task labels]."""
        return [self.mb_x, self.mb_y, self.mb_task_id]

    @property
    def criterion(self) -> Callable:
        """Avalanche's name for the objective's criterion(output, y)."""
        return self._criterion

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a named term to the loss; its mean is logged as `train/loss_<name>`."""
        if value.dim():
            raise ContractError(f"loss term {name!r} must be a scalar, got {tuple(value.shape)}")
        if not self._loss_open:
            raise ContractError(f"loss term {name!r}: call add_loss in before_backward only")
        self._loss = self._loss + value
        self._watch.term(name, value)

    def log(self, name: str, value: Tensor | float) -> None:
        """Show a number as `train/<name>`, averaged between two looks at the losses."""
        self._watch.log(name, value)

    def report(self, name: str, value: float, *, add: bool = False) -> None:
        """Keep a number about the current experience in results.json, `reported`."""
        row, index = self.reported.setdefault(name, {}), self.experience.index
        row[index] = value + (row.get(index, 0) if add else 0)

    def skip_score(self, reason: str) -> None:
        """Leave the current experience's row of scores undefined, with a reason."""
        self.no_score = reason

    def stop_training(self) -> None:
        """End the current experience's training after the running update or epoch."""
        self._stop = True

    def claimed(self, *claims: str) -> bool:
        """Whether a strategy has claimed any of these."""
        return any(claim in self._claims for claim in claims)

    @property
    def seen_classes(self) -> int:
        """Classes up to and including the current experience; they are 0..n-1."""
        return self.stream.seen_classes(self.experience.index if self.experience else 0)

    @property
    def known_classes(self) -> int:
        """Classes of the experiences before the current one; they are 0..n-1."""
        index = self.experience.index if self.experience else 0
        return self.stream.seen_classes(index - 1) if index else 0

    @property
    def acts(self) -> bool:
        """Whether a policy's own steps in environments are learned from, instead of rows."""
        return hasattr(self.objective, "visited")

    @property
    def valued(self) -> bool:
        """Whether the model's scores are values of actions."""
        return getattr(self.objective, "values_actions", False)

    @property
    def shown(self) -> Table | None:
        """Rows x, y of what is learned from: the adapted data, or, where a policy acts in
        environments, what it has lately met and done there."""
        return self.objective.visited(self) if self.acts else self.adapted_dataset

    @property
    def storable(self) -> Table | None:
        """The experience's rows as `append_rows` takes them; None where steps must be its own."""
        own = getattr(self.objective, "storable", None)
        if own is not None:
            return own(self)
        return None if self.acts else self.experience.train

    def append_rows(self, rows: dict[str, Tensor]) -> None:
        """Add raw rows (as a buffer draws them) to this micro-batch, augmented like its own."""
        x, y, task_id = self.mb_x, self.mb_y, self.mb_task_id
        self.objective.load(self, {name: c.to(self.device) for name, c in rows.items()})
        self.mb_x = torch.cat([x, self.mb_x])
        self.mb_y = torch.cat([y, self.mb_y])
        if task_id is not None:
            self.mb_task_id = torch.cat([task_id, self.mb_task_id])

    def rng(self, name: str) -> torch.Generator:
        """The component's own generator (CPU), derived from (seed, name), checkpointed."""
        if name not in self.generators:
            self.generators[name] = generator(self.seed, name)
        return self.generators[name]

    def buffer(self, name: str, capacity: int, policy: str) -> Buffer:
        """The shared buffer of that name, made on first use. Raises BadValue on a mismatch."""
        held = self.buffers.setdefault(name, Buffer(capacity, policy))
        if (held.capacity, held.policy) != (capacity, policy):
            raise BadValue(
                f"buffer {name!r} is shared: {held.policy} of {held.capacity} rows and "
                f"{policy} of {capacity} rows were asked for"
            )
        return held

    def snapshot(self) -> nn.Module:
        """A frozen copy of the model in evaluation mode."""
        return as_snapshot(copy.deepcopy(self.model))

    def attach(self, probe: str) -> object:
        """The probe of that name; one with a history has its hooks fired from now on."""
        if probe not in self.probes:
            made = find("probes", probe).load()
            if isinstance(made, type):
                made = made()
                for name, hook in hooks_of(made).items():
                    self.hooks[name] += (hook,)
            self._check_probe(probe, made)
            self.probes[probe] = made
        return self.probes[probe]

    def _check_probe(self, name: str, made: object) -> None:
        """Raises BadValue for one that this run has nothing for."""
        domains = getattr(made, "domains", None) or (self.stream.domain,)
        if self.stream.domain not in domains:
            raise BadValue(
                f"probe {name} is made for streams of the domain {' and '.join(domains)}; "
                f"{self.stream.name} is of the domain {self.stream.domain}"
            )
        if hasattr(made, "check"):
            made.check(self)

    def measure(self, probe: str) -> dict[str, float]:
        """A probe's numbers for the model as it is; changes nothing.

        One with a history gets the loop. Any other gets the model and the experience with up to
        PROBE_ROWS of its training rows as `train`, spread evenly, their x prepared as the model
        gets it; where a policy has not met anything yet, it says nothing.
        """
        found = self.attach(probe)
        with frozen(self.model):
            if hasattr(found, "measure"):
                return found.measure(self)
            own = self.experience.train if self.stream.domain != "rl" else self.shown
            if own is None:
                return {}
            experience = replace(self.experience, train=self.probed(own))
            return found(self.model, experience)

    def inputs(self, table: Table) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) batches of a table in order, prepared as for evaluation; counted as samples."""
        order = torch.arange(len(table), device=table.device)
        for index in order.split(FEATURE_BATCH):
            rows = table.rows(index)
            self.samples_seen += len(index)
            yield self.prepared(rows["x"]), rows["y"]

    def features(self, table: Table) -> Tensor:
        """Backbone features [N, D] of a table, in evaluation mode, without gradients."""
        with frozen(self.model):
            return torch.cat([self.model.features(x) for x, _ in self.inputs(table)])

    def probed(self, table: Table) -> Table:
        """At most PROBE_ROWS rows of a table, spread evenly, with x as model input."""
        n = min(len(table), PROBE_ROWS)
        rows = table.rows(torch.arange(n, device=table.device) * len(table) // n)
        return Table({**rows, "x": self.prepared(rows["x"])})

    def prepared(self, x: Tensor) -> Tensor:
        """Raw inputs as model inputs, without augmentation."""
        return x if self.stream.transform is None else self.stream.transform(x)

    def augmented(self, x: Tensor) -> Tensor:
        """Raw inputs as model inputs, augmented with draws of their own as training rows are."""
        kinds = self.train.augment
        return self.prepared(augment(x, kinds, self.rng("augment")) if kinds else x)

    def restricted(self, output: Tensor, task_id: Tensor | None) -> Tensor:
        """Logits [B, C] with -inf for classes outside each row's task; as is without task labels.

        task_id [B]: task labels, None where the scenario gives none.
        """
        if task_id is None:
            return output
        mask = self.stream.task_mask.to(output.device)[task_id, : output.shape[1]]
        wider = output.shape[1] - mask.shape[1]  # a head may have more columns than classes come
        mask = torch.nn.functional.pad(mask, (0, wider)) if wider > 0 else mask
        return output.masked_fill(~mask, float("-inf"))

    def fresh_model(self, name: str, *, trained: bool = True) -> nn.Module:
        """A new model of the same architecture and width, its draws from the generator `name`.

        trained: where the run started from given weights, so does this one.
        Raises BadValue for a model of the user's own, which can't be built again by name.
        """
        architecture = getattr(self.model, "architecture", None)
        if architecture is None:
            raise BadValue("a model given as a Python object can't be started afresh; name one")
        state = global_state()
        try:
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.rng(name))))
            return rebuild(architecture, trained=trained).to(self.device).train(self.is_training)
        finally:
            restore_globals(state)


def hooked(model: nn.Module) -> list[str]:
    """Modules and parameters that have hooks, which are code and can't be kept in a checkpoint."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = dict(model.named_modules())
    found = [name for name, m in modules.items() if any(getattr(m, kind) for kind in kinds)]
    return found + [name for name, p in model.named_parameters() if p._backward_hooks]
