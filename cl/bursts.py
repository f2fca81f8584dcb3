"""Bursts: a few updates of chosen modules on stored rows, outside the loop's own updates.

A burst leaves no trace but the chosen weights (and batch-norm statistics, if they are to follow):
the rest of the model, the main optimizer, gradients, modes, `loop.mb_*` and every other
component's random draws are as before. `Bursts` is what strategies that use them share: where the
rows come from, and which modules are tuned.

A policy that learns from its own steps has no rows with labels: what it says at an experience's end
on the observations that it has met is stored instead, and a burst lowers the distance to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl.cloned import distance as distance_to_said
from cl.cloned import said
from cl.errors import BadValue, NonFinite
from cl.models.selection import Module, at_random, by_score, select
from cl.registry import name_of
from cl.seeding import frozen, global_state, restore_globals
from cl.strategy import Strategy

if TYPE_CHECKING:
    from cl.buffers import Rows
    from cl.loop import Loop

NORMS = (nn.modules.batchnorm._BatchNorm,)
PROBE = "module_sensitivity"
PASS = 256  # rows per forward pass where logits are missing


class Bursts(Strategy):
    """What strategies with bursts share; `__init__` keeps the settings as attributes.

    shared: whether rows come from other strategies' buffers; None until the first update is over.
    chosen: paths of the modules that were chosen at random or by sensitivity; None before.
    z: the logits of the running update's own rows, part by part, where they are to be stored.
    """

    def __init__(self, modules, choose, budget, steps, batch_size, lr, lam, statistics, size):
        self.modules, self.choose, self.budget = list(modules), choose, budget
        self.steps, self.batch_size, self.lr, self.lam = steps, batch_size, lr, lam
        self.statistics, self.size = statistics, size
        self.shared = None
        self.chosen = None
        self.z = []

    @property
    def active(self) -> bool:
        """Whether there will be a burst at all."""
        return self.steps > 0

    @property
    def own(self) -> str:
        """The name of its own buffer, generators and keys."""
        return name_of(type(self))

    def check(self, loop: Loop) -> None:
        """Modules that exist, and settings that go together."""
        if loop.restarts is not None:
            raise BadValue(
                f"{self.own} can't run beside another library's plug-ins, whose loaders do not "
                "tell which rows a batch holds"
            )
        if hasattr(loop.objective, "rows") and not loop.acts:
            raise BadValue(
                f"{self.own} tunes on stored rows, {loop.objective.name} learns from what the "
                "policy does itself: take it with sft"
            )
        if loop.valued:
            raise BadValue(
                f"{self.own} tunes policies on what they have said, objective="
                f"{loop.objective.name} has values of actions; give ppo or cloning"
            )
        try:
            named = select(loop.model, self.modules)
        except BadValue as error:
            raise BadValue(f"{self.own}.modules: {error}") from error
        if self.lam and loop.stream.domain != "vision":
            raise BadValue(
                f"{self.own}.lam={self.lam:g}: logits are stored for classes, and "
                f"{loop.stream.name} has none"
            )
        if self.choose == "named" and self.budget is not None:
            raise BadValue(f"{self.own}.budget goes with choose=random or choose=sensitive")
        if any(name != "none" for name in self.modules) and not named:
            raise BadValue(
                f"{self.own}.modules={','.join(self.modules)}: the model has no such module"
            )
        if self.choose == "named" and not named and not self.statistics:
            raise BadValue(f"{self.own} has nothing to do: modules=none and statistics=false")
        if self.choose != "named" and not named and self.budget is None:
            raise BadValue(
                f"{self.own}.choose={self.choose} needs modules to match in size, or budget"
            )

    def before_training(self, loop: Loop) -> None:
        """Have the sensitivity of modules measured where it is asked for."""
        if self.active and self.choose == "sensitive":
            loop.attach(PROBE)

    # -- the store -----------------------------------------------------------------------------

    def after_forward(self, loop: Loop) -> None:
        """Keep the logits of the batch's own rows, which come first."""
        if self.active and self.lam and not self.shared:
            self.z.append(loop.mb_output.detach()[: len(loop.mb_index)].float())

    def after_training_iteration(self, loop: Loop) -> None:
        """Without another strategy's buffer: offer each row once, in the first epoch."""
        z, self.z = self.z, []
        if not self.active or loop.acts:
            return
        if self._is_shared(loop) or loop.clock.train_exp_epochs > 0:
            return
        rows = loop.adapted_dataset.rows(loop.mb_index)
        self._offer(loop, {**rows, "logits": torch.cat(z)} if z else rows)

    def after_training_exp(self, loop: Loop) -> None:
        """A policy's rows, or those of an experience without gradient training; the choice by
        sensitivity."""
        if not self.active:
            return
        if loop.acts:
            shared, rng = self._is_shared(loop), loop.rng(f"{self.own}.store")
            rows = None if shared else said(loop, None, rng)
            if rows is not None:
                self._offer(loop, rows)
        elif loop.adapted_dataset is None and not self._is_shared(loop):
            data = loop.experience.train
            rows = {name: data.column(name) for name in data.columns}
            self._offer(loop, {**rows, "logits": logits_of(loop, rows)} if self.lam else rows)
        if self.choose == "sensitive" and self.chosen is None and loop.experience.index > 0:
            self.chosen = self._sensitive(loop)

    def _offer(self, loop: Loop, rows: Rows) -> None:
        buffer = loop.buffer(self.own, self.size, "reservoir")
        if buffer.rows and "logits" in rows:
            width = rows["logits"].shape[1]
            buffer.rows["logits"] = padded(buffer.rows["logits"], width)
        buffer.add(rows, loop.rng(f"{self.own}.store"))

    def _is_shared(self, loop: Loop) -> bool:
        """Decided once, when strategies have made their buffers: after the first update."""
        if self.shared is None:
            self.shared = any(name != self.own for name in loop.buffers)
        return self.shared

    # -- the burst -----------------------------------------------------------------------------

    def burst(self, loop: Loop) -> None:
        """Tune the chosen modules on the stored rows; nothing if there are none."""
        rows = union([b for n, b in loop.buffers.items() if (n != self.own) == bool(self.shared)])
        if rows is None or not self.active:
            return
        if self.lam:
            rows["logits"] = with_logits(loop, rows)
        _Burst(self, loop, rows).run(self._modules(loop))

    def _modules(self, loop: Loop) -> list[Module]:
        """What to tune now; before sensitivities are known, what is named."""
        if self.choose == "random" and self.chosen is None:
            rng = loop.rng(f"{self.own}.choice")
            drawn = at_random(loop.model, self.modules, self.budget, rng)
            self.chosen = [module.path for module in drawn]
        return select(loop.model, self.modules if self.chosen is None else self.chosen)

    def _sensitive(self, loop: Loop) -> list[str] | None:
        values = loop.measure(PROBE)
        scores = {k.removeprefix("S/"): v for k, v in values.items() if k.startswith("S/")}
        ranked = by_score(loop.model, self.modules, self.budget, scores)
        return [module.path for module in ranked] or None


class _Burst:
    """The updates of one burst, by their own SGD (no momentum), its rate a cosine to 0."""

    def __init__(self, owner: Bursts, loop: Loop, rows: Rows):
        self.owner, self.loop, self.rows = owner, loop, rows

    def run(self, chosen: Sequence[Module]) -> None:
        loop, owner = self.loop, self.owner
        named = dict(loop.model.named_parameters())
        tuned = [named[name] for module in chosen for name in module.names]
        with _alone(loop, owner.own), _only(loop.model, tuned, owner.statistics):
            optimizer = torch.optim.SGD(tuned, owner.lr) if tuned else None
            for step in range(owner.steps):
                if optimizer is None:
                    with torch.no_grad():
                        self._loss()
                    continue
                rate = owner.lr * (1 + math.cos(math.pi * step / owner.steps)) / 2
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                self._loss().backward()
                optimizer.step()
                loop.extra_updates += 1
        if not all(torch.isfinite(p).all() for p in tuned):
            raise NonFinite(
                f"weights became nan or infinite in a burst of {owner.own} in experience "
                f"{loop.experience.index} ({loop.experience.name}); try a smaller "
                f"{owner.own}.lr (now {owner.lr:g})"
            )

    def _loss(self) -> Tensor:
        """The objective on drawn rows, and the distance to their logits."""
        loop, owner = self.loop, self.owner
        n = len(self.rows["y"])
        index = torch.randperm(n, generator=loop.rng(f"{owner.own}.draw"))[: owner.batch_size]
        rows = {
            k: column[index.to(column.device)].to(loop.device) for k, column in self.rows.items()
        }
        z = rows.pop("logits", None)
        loop.samples_seen += len(index)
        if "scores" in rows:
            with loop.autocast():
                return distance_to_said(loop, loop.model(rows["x"]), rows)
        loop.objective.load(loop, rows)
        with loop.autocast():
            loop.mb_output = loop.objective.forward(loop)
            loss = loop.objective.loss(loop)
        if owner.lam:
            loss = loss + owner.lam * distance(loop.mb_output.float(), z)
        return loss


@contextmanager
def _alone(loop: Loop, name: str) -> Iterator[None]:
    """Puts back `loop.mb_*` and all random state but that of generators called `name.*`."""
    kept = ("mb_output", "mb_share", "mb_part", "mb_y", "mb_x", "mb_task_id")
    fields = {field: getattr(loop, field) for field in kept}
    others = {n: g.get_state() for n, g in loop.generators.items() if not n.startswith(f"{name}.")}
    state, augment = global_state(), loop.generators.get("augment")
    loop.generators["augment"] = loop.rng(f"{name}.augment")
    torch.manual_seed(int(torch.randint(2**62, (), generator=loop.rng(f"{name}.global"))))
    loop.mb_share, loop.mb_part = 1.0, (0, 1)
    try:
        yield
    finally:
        restore_globals(state)
        loop.generators["augment"] = augment
        if augment is None:
            del loop.generators["augment"]
        for n, held in others.items():
            loop.generators[n].set_state(held)
        for field, value in fields.items():
            setattr(loop, field, value)


@contextmanager
def _only(model: nn.Module, tuned: list[Tensor], statistics: bool) -> Iterator[None]:
    """Gradients for `tuned` alone; batch norm as in evaluation unless its statistics follow."""
    held = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    for p, *_ in held:
        p.requires_grad_(False)
        p.grad = None
    for p in tuned:
        p.requires_grad_(True)
    for module, _ in modes:
        if isinstance(module, NORMS) and not statistics:
            module.eval()
    try:
        yield
    finally:
        for p, flag, grad in held:
            p.requires_grad_(flag)
            p.grad = grad
        for module, training in modes:
            module.training = training


def union(buffers: list) -> Rows | None:
    """The rows of several buffers under each other, None if there is no row.

    Columns that all have; "logits" [n, C] too, nan where they are not known.
    """
    held = [buffer.rows for buffer in buffers if len(buffer)]
    if not held:
        return None
    common = [name for name in held[0] if all(name in rows for rows in held)]
    joined = {n: torch.cat([r[n] for r in held]) for n in common if n != "logits"}
    width = max((r["logits"].shape[1] for r in held if "logits" in r), default=0)
    if width:
        empty = [r["y"].new_empty((len(r["y"]), 0), dtype=torch.float32) for r in held]
        pairs = zip(held, empty, strict=True)
        joined["logits"] = torch.cat([padded(r.get("logits", e), width) for r, e in pairs])
    return joined


def padded(z: Tensor, width: int) -> Tensor:
    """Logits z [n, C'] with columns of nan (not known) up to `width`."""
    if z.shape[1] >= width:
        return z
    return torch.cat([z, z.new_full((len(z), width - z.shape[1]), math.nan)], 1)


def with_logits(loop: Loop, rows: Rows) -> Tensor:
    """The stored logits of `rows`; those of the model as it is for rows that have none."""
    z = rows.get("logits")
    if z is None:
        return logits_of(loop, rows)
    unknown = z.isnan().all(1).nonzero()[:, 0]
    if len(unknown):
        now = logits_of(loop, {k: column[unknown.to(column.device)] for k, column in rows.items()})
        z = padded(z, now.shape[1]).clone()
        z[unknown] = padded(now, z.shape[1]).to(z)
    return z


def logits_of(loop: Loop, rows: Rows) -> Tensor:
    """The model's outputs [n, C] for stored rows in evaluation mode; counted as samples."""
    with frozen(loop.model):
        parts = [loop.model(loop.prepared(x.to(loop.device))) for x in rows["x"].split(PASS)]
    loop.samples_seen += len(rows["x"])
    return torch.cat(parts).float()


def distance(h: Tensor, z: Tensor) -> Tensor:
    """Mean of (h - z)^2 over the logits that are known in z [n, C']; h [n, C], C >= C'."""
    known = ~z.isnan()
    difference = (h[:, : z.shape[1]] - z.nan_to_num())[known]
    return difference.square().mean() if known.any() else h.new_zeros(())
