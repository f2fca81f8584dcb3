"""What a loop carries from one moment to the next, taken out and put back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl.adapters import split
from cl.buffers import Buffer
from cl.checkpoint import pack
from cl.data import Epochs, Table
from cl.errors import NotKept, RunError
from cl.models.lora import put
from cl.seeding import global_state, restore_globals
from cl.toolbox import hooked

if TYPE_CHECKING:
    from cl.loop import Loop


def state_of(loop: Loop, *, inside: bool = False) -> dict:
    """Everything but the model's weights; a nested dict that `cl.checkpoint.pack` takes.

    inside: between two updates of the current experience, not after it. Raises NotKept where
    something that goes on there can't be put back.
    """
    return {
        "next_experience": loop.experience.index + (not inside),
        "inside": inside_of(loop) if inside else None,
        "clock": asdict(loop.clock),
        "samples_seen": loop.samples_seen,
        "tokens_seen": loop.tokens_seen,
        "env_steps": loop.env_steps,
        "objective": _of_objective(loop),
        "extra_updates": loop.extra_updates,
        "put_back": loop.put_back,
        "reported": loop.reported,
        "probes": {name: vars(p) for name, p in loop.probes.items() if hasattr(p, "measure")},
        "trained": loop.trained,
        "train_epochs": loop.train_epochs,
        "train_mb_size": loop.train_mb_size,
        "generators": loop.generators,
        "globals": global_state(),
        "losses": loop._watch.state(),
        "prequential": loop.prequential.state(),
        "buffers": {name: buffer.state() for name, buffer in loop.buffers.items()},
        "strategies": [vars(s) for s in loop.plugins],
        "optimizer": _optimizer_state(loop),
    }


def inside_of(loop: Loop) -> dict:
    """What only lives while an experience is learned. Raises NotKept."""
    batches = loop.dataloader
    if not isinstance(batches, Epochs):
        raise NotKept(f"batches of {loop.objective.name} can't be gone on with: no cl.data.Epochs")
    hooks = [name for name in hooked(loop.model) if name not in loop.hooked]
    if hooks:
        raise NotKept(f"a strategy has put a hook, which is code, into the model: {hooks[0]}")
    training = loop.model.training
    modes = {name: m.training for name, m in loop.model.named_modules()}
    return {
        "table": _of_table(loop),
        "batches": batches.state(),
        "total": loop._total,
        "epochs": loop._epochs,
        "stop": loop._stop,
        "no_score": loop.no_score,
        "training": training,
        "modes": {name: mode for name, mode in modes.items() if mode != training},
    }


def _of_table(loop: Loop) -> dict:
    """The adapted data: what the stream holds by its place there, everything else as it is."""
    table, experiences = loop.adapted_dataset, loop.stream.experiences
    known = {id(c): (e.index, n) for e in experiences for n, c in e.train.columns.items()}
    columns = {}
    for name, column in table.columns.items():
        if not isinstance(column, Tensor) and id(column) not in known:
            column = column[torch.arange(len(column))]
        columns[name] = known.get(id(column), column)
    views = {id(e.train.index): e.index for e in experiences if e.train.index is not None}
    return {"columns": columns, "index": views.get(id(table.index), table.index)}


def _table_from(loop: Loop, state: dict) -> Table:
    tables, columns = [e.train for e in loop.stream.experiences], {}
    for name, column in state["columns"].items():
        if not isinstance(column, Tensor):
            k, own = column
            column = tables[k].columns[own]
        columns[name] = column
    index = state["index"]
    return Table(columns, tables[index].index if isinstance(index, int) else index)


def restore(loop: Loop, state: dict) -> None:
    """Put back what `state_of` returned; the model's weights are in place already.

    Raises DataError for environments that can't be put back where they were.
    """
    inside = state.get("inside")  # checkpoints of format 1 lack it, and some others
    loop.clock = type(loop.clock)(**state["clock"])
    loop.samples_seen, loop.trained = state["samples_seen"], state["trained"]
    loop.tokens_seen = state.get("tokens_seen", 0)
    loop.env_steps = state.get("env_steps", 0)
    if hasattr(loop.objective, "load_state"):
        loop.objective.load_state(state.get("objective", {}))
    loop.extra_updates = state.get("extra_updates", 0)
    loop.put_back = state.get("put_back")
    loop.reported = state.get("reported", {})
    for name, saved in state.get("probes", {}).items():
        vars(loop.attach(name)).update(saved)
    loop.train_epochs, loop.train_mb_size = state["train_epochs"], state["train_mb_size"]
    loop.generators = state["generators"]
    told = state["prequential"]
    told = told if isinstance(told, dict) else {"windows": told, "right": None, "rows": 0}
    loop.prequential.load_state(told)
    loop.buffers = {name: Buffer.from_state(b) for name, b in state["buffers"].items()}
    for strategy, saved in zip(loop.plugins, state["strategies"], strict=True):
        vars(strategy).update(saved)
    loop.start, loop.inside = state["next_experience"], inside is not None
    loop.experience = loop.stream.experiences[loop.start - (not loop.inside)]
    if state["optimizer"] is not None:
        loop.prepare_optimizer()
        loop.synchroniser.load_state(state["optimizer"]["state"])
        saved = state["optimizer"]["groups"]
        for group, settings in zip(loop.optimizer.param_groups, saved, strict=True):
            group.update(settings)
    if inside is not None:
        _go_inside(loop, inside)
    if "losses" in state:
        loop._watch.load_state(state["losses"])
    restore_globals(state["globals"])


def _go_inside(loop: Loop, inside: dict) -> None:
    loop.is_training, loop.no_score = True, inside["no_score"]
    loop._total, loop._epochs, loop._stop = inside["total"], inside["epochs"], inside["stop"]
    loop.adapted_dataset = _table_from(loop, inside["table"])
    loop.dataloader = loop.objective.batches(loop, loop.adapted_dataset)
    loop.dataloader.load_state(inside["batches"])
    loop.model.train(inside["training"])
    for name, module in loop.model.named_modules():
        module.training = inside["modes"].get(name, module.training)


def restore_model(loop: Loop, weights: dict[str, Tensor], description: dict, learned: int) -> None:
    """Bring the loop's model to its width and weights after `learned` experiences.

    Raises RunError if the model is not the one that the run starts with.
    """
    architecture = description["architecture"]
    for index in range(learned):
        loop.grow_to(loop.stream.seen_classes(index))
    own = getattr(loop.model, "architecture", None)
    if architecture and own and own.get("n_classes", 0) < architecture.get("n_classes", 0):
        loop.grow_to(architecture["n_classes"])  # a strategy made the head wider than classes seen
    _adapt(loop, architecture)
    if _without_switch(architecture) != _without_switch(getattr(loop.model, "architecture", None)):
        raise RunError(
            "the checkpoint's model is another one than this run starts with: a strategy "
            "has replaced it, so the run can't be resumed; run it again"
        )
    if architecture and "normalize" in architecture:
        loop.model.normalize = architecture["normalize"]
    if architecture and architecture.get("normalised"):
        loop.model.see_normalised()  # what the weights tell of it is put in below
    try:
        loop.model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the checkpoint's weights do not fit the model: {error}") from error
    for name, p in loop.model.named_parameters():
        p.requires_grad_(description["requires_grad"][name])
    loop.model.to(loop.device)


def _adapt(loop: Loop, architecture: dict | None) -> None:
    """Put in the adapters that a strategy had put in and kept."""
    own = getattr(loop.model, "architecture", None)
    if architecture and own and split(own["kwargs"])[1] is None:
        _, adapters = split(architecture["kwargs"])
        if adapters is not None:
            put(loop.model, adapters)


def _without_switch(architecture: dict | None) -> dict | None:
    switches = ("normalize", "normalised")
    return architecture and {k: v for k, v in architecture.items() if k not in switches}


def check_state(strategies: list) -> None:
    """Refuse strategy state that a checkpoint could not hold. Raises ContractError."""
    for strategy in strategies:
        for name, value in vars(strategy).items():
            pack(value, {}, f"{type(strategy).__name__}.{name}")


def _optimizer_state(loop: Loop) -> dict | None:
    """Optimizer state by parameter name, and the groups' settings."""
    if loop.optimizer is None or loop.restarts:
        return None
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in loop.optimizer.param_groups
    ]
    return {"state": loop.synchroniser.state(), "groups": groups}


def stored_bytes(loop: Loop) -> int:
    """Bytes carried from one experience to the next: state of strategies and objective, buffers."""
    if loop.experience is None:
        return 0
    total = sum(buffer.nbytes for buffer in loop.buffers.values())
    total += _bytes_of(_of_objective(loop))
    for strategy in loop.plugins:
        declared = strategy.stored_bytes(loop)
        total += _bytes_of(dict(vars(strategy))) if declared is None else declared
    return total


def _of_objective(loop: Loop) -> dict:
    """What an objective carries beside the model."""
    return loop.objective.state() if hasattr(loop.objective, "state") else {}


def _bytes_of(state: dict) -> int:
    tensors: dict = {}
    pack(state, tensors, "state")
    return sum(t.nbytes for t in tensors.values())
