"""What a loop carries from one moment to the next, taken out and put back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor

from cl.buffers import Buffer
from cl.checkpoint import pack
from cl.seeding import global_state, restore_globals

if TYPE_CHECKING:
    from cl.loop import Loop


def state_of(loop: Loop) -> dict:
    """Everything but the model's weights; a nested dict that `cl.checkpoint.pack` takes."""
    return {
        "next_experience": loop.experience.index + 1,
        "clock": asdict(loop.clock),
        "samples_seen": loop.samples_seen,
        "trained": loop.trained,
        "generators": loop.generators,
        "globals": global_state(),
        "buffers": {name: buffer.state() for name, buffer in loop.buffers.items()},
        "strategies": [vars(s) for s in loop.plugins],
        "optimizer": _optimizer_state(loop),
    }


def restore(loop: Loop, state: dict) -> None:
    """Put back what `state_of` returned; the model's weights are in place already."""
    loop.clock = type(loop.clock)(**state["clock"])
    loop.samples_seen, loop.trained = state["samples_seen"], state["trained"]
    loop.generators = state["generators"]
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


def restore_model(loop: Loop, weights: dict[str, Tensor], description: dict) -> None:
    """Bring the loop's model to the saved width and weights, frozen where it was."""
    architecture = description["architecture"]
    if architecture:
        loop.model.head.grow(architecture["n_classes"])
        loop.model.normalize = architecture["normalize"]
    loop.model.load_state_dict(weights)
    for name, p in loop.model.named_parameters():
        p.requires_grad_(description["requires_grad"][name])
    loop.model.to(loop.device)


def check_state(strategies: list) -> None:
    """Refuse strategy state that a checkpoint could not hold. Raises ContractError."""
    for strategy in strategies:
        for name, value in vars(strategy).items():
            pack(value, {}, f"{type(strategy).__name__}.{name}")


def _optimizer_state(loop: Loop) -> dict | None:
    """Optimizer state by parameter name, and the groups' settings."""
    if loop.optimizer is None:
        return None
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in loop.optimizer.param_groups
    ]
    return {"state": loop.synchroniser.state(), "groups": groups}
