"""Random numbers: one generator per component, and global generators that measuring leaves alone.

A component's generator depends on (seed, component name) only, so adding a component, an
evaluation or a probe never shifts another's draws. The global generators of torch, numpy and
`random` serve the model (initialisation, dropout) and users' own code.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


def derive(seed: int, name: str) -> int:
    """A 63-bit seed from (seed, component name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of the component's own; draws on CPU are the same on every device."""
    return torch.Generator().manual_seed(derive(seed, name))


def seed_globals(seed: int) -> None:
    """Seed the global generators for model initialisation and dropout."""
    value = derive(seed, "global")
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


def global_state() -> dict:
    """The state of every global generator."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def restore_globals(state: dict) -> None:
    """Undo everything drawn from the global generators since `global_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without gradients; mode and random state are restored on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    state = global_state()
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training
        restore_globals(state)
