"""LoRA for language models: peft's adapters put into the model itself, and merged into its weights.

A matrix W of the model becomes W + alpha / rank * B A (A [rank, in], B [out, rank], B = 0 at the
start, so that the model begins as it was, bit for bit); everything but A and B is frozen. The
model keeps its class and its `architecture` says that it has adapters, so that checkpoints,
snapshots and `cl.models.rebuild` make it again. Adapters are float32 whatever the weights are.
"""

from __future__ import annotations

import math
import re
import warnings

import torch
from torch import Tensor, nn

from cl.adapters import Adapters, joined
from cl.errors import BadValue, nearest
from cl.models.anatomy import CATEGORIES, ROLES, anatomy
from cl.models.language import LanguageModel
from cl.seeding import global_state, restore_globals

ADAPTER = "default"  # peft's name of the only one


def adapters_of(model: nn.Module) -> dict[str, nn.Module]:
    """{path: peft's layer} of the matrices that have an adapter; empty where there are none."""
    return {path: m for path, m in model.named_modules() if hasattr(m, "lora_A")}


def targets_of(model: nn.Module, names: list[str], key: str = "model.lora.targets") -> list[str]:
    """Paths of the linear layers that `names` name, in the model's order.

    Raises BadValue, naming `key`, for a name that none of them has.
    """
    known = _linear(model)
    chosen = set()
    for name in names:
        found = [path for path, own in known.items() if name in own or _under(path, name)]
        if not found:
            words = {word for own in known.values() for word in own}
            named = [word for word in (*CATEGORIES, *ROLES) if word in words]
            near = nearest(name, [*words, *known])
            raise BadValue(
                f"{key}: the model has no linear layer {name!r}{near}; allowed: "
                f"{', '.join(named)}, or a layer's name or path, such as {next(iter(known), '-')}"
            )
        chosen |= set(found)
    if not chosen:
        raise BadValue(f"{key} names no layer")
    return [path for path in known if path in chosen]


def put(
    model: LanguageModel,
    adapters: Adapters,
    rng: torch.Generator | None = None,
    key: str = "model.lora.targets",
) -> None:
    """Put new adapters in and freeze everything else; A is drawn from `rng`, else from torch's own.

    A is uniform in +-1/sqrt(in) and B zero, as LoRA starts. Raises BadValue for unknown targets.
    """
    from peft import LoraConfig, inject_adapter_in_model

    paths = targets_of(model, adapters.targets, key)
    modules = dict(model.named_modules())
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=0.0,
        target_modules="|".join(re.escape(path.removeprefix("lm.")) for path in paths),
        fan_in_fan_out=any(type(modules[path]).__name__ == "Conv1D" for path in paths),
    )
    state = global_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights stored the other way round
        inject_adapter_in_model(config, model.lm, adapter_name=ADAPTER)
    restore_globals(state)
    del model.lm.peft_config  # what is in the model, the architecture says
    for layer in adapters_of(model).values():
        a, b = layer.lora_A[ADAPTER].float().weight, layer.lora_B[ADAPTER].float().weight
        drawn = torch.rand(a.shape, generator=rng) * 2 - 1
        with torch.no_grad():
            a.copy_(drawn / math.sqrt(a.shape[1]))
            b.zero_()
    _note(model, adapters)


def merge(model: LanguageModel) -> None:
    """Add every adapter to its matrix and take it out; nothing stays frozen."""
    for path, layer in adapters_of(model).items():
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    model.requires_grad_(True)
    _note(model, None)


def fitted(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model without adapters under the names of `model`, which may have some.

    The adapters are then the model's own; weights that bring adapters are left as they are.
    """
    layers = adapters_of(model)
    if not layers or any(".lora_A." in name for name in weights):
        return weights
    own = {name: t for name, t in model.state_dict().items() if ".lora_" in name}
    for name, tensor in weights.items():
        path, _, leaf = name.rpartition(".")
        own[f"{path}.base_layer.{leaf}" if path in layers else name] = tensor
    return own


def _note(model: LanguageModel, adapters: Adapters | None) -> None:
    if model.architecture is not None:
        kwargs = joined(model.architecture["kwargs"], adapters)
        model.architecture = {**model.architecture, "kwargs": kwargs}


def _linear(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """{path: its category, role and last name} of the linear layers; tied ones are none."""
    modules, found = dict(model.named_modules()), {}
    for part in anatomy(model):
        path, _, leaf = part.name.rpartition(".")
        module = modules[path]
        if leaf == "weight" and (isinstance(module, nn.Linear) or _is_conv1d(module)):
            role = part.role if part.role != "weight" else part.category
            found[path] = (part.category, role, path.rpartition(".")[2])
    return found


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer, its weight stored as [in, out]."""
    return type(module).__name__ == "Conv1D"


def _under(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")
