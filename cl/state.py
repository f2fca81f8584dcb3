"""What a loop carries from one moment to the next, taken out and put back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from cl.adapters import split
from cl.buffers import Buffer
from cl.checkpoint import pack
from cl.errors import RunError
from cl.models.lora import put
from cl.seeding import global_state, restore_globals

if TYPE_CHECKING:
    from cl.loop import Loop


def state_of(loop: Loop) -> dict:
    """Everything but the model's weights; a nested dict that `cl.checkpoint.pack` takes."""
    return {
        "next_experience": loop.experience.index + 1,
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
        "prequential": loop.prequential.windows,
        "buffers": {name: buffer.state() for name, buffer in loop.buffers.items()},
        "strategies": [vars(s) for s in loop.plugins],
        "optimizer": _optimizer_state(loop),
    }


def restore(loop: Loop, state: dict) -> None:
    """Put back what `state_of` returned; the model's weights are in place already."""
    loop.clock = type(loop.clock)(**state["clock"])
    loop.samples_seen, loop.trained = state["samples_seen"], state["trained"]
    loop.tokens_seen = state.get("tokens_seen", 0)
    loop.env_steps = state.get("env_steps", 0)
    if state.get("objective"):
        loop.objective.load_state(state["objective"])
    loop.extra_updates = state.get("extra_updates", 0)  # older checkpoints have none of these
    loop.put_back = state.get("put_back")
    loop.reported = state.get("reported", {})
    for name, saved in state.get("probes", {}).items():
        vars(loop.attach(name)).update(saved)
    loop.train_epochs, loop.train_mb_size = state["train_epochs"], state["train_mb_size"]
    loop.generators = state["generators"]
    loop.prequential.windows = state["prequential"]
    loop.buffers = {name: Buffer.from_state(b) for name, b in state["buffers"].items()}
    for strategy, saved in zip(loop.plugins, state["strategies"], strict=True):
        vars(strategy).update(saved)
    loop.experience = loop.stream.experiences[state["next_experience"] - 1]
    if state["optimizer"] is not None:
        loop.prepare_optimizer()
        loop.synchroniser.load_state(state["optimizer"]["state"])
        saved = state["optimizer"]["groups"]
        for group, settings in zip(loop.optimizer.param_groups, saved, strict=True):
            group.update(settings)
    restore_globals(state["globals"])


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
