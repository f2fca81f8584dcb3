"""dormant_units: share of hidden units that hardly respond to the current experience's inputs.

Source  Sokar, Agarwal, Castro, Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement
        Learning", ICML 2023, arXiv:2302.12902, definition 3.1; tau=0.025
Maths   s_i = E|h_i(x)| / (mean over the layer's units k of E|h_k(x)|); unit i is dormant if
        s_i <= tau, dead if h_i(x) = 0 for all x (a layer of dead units is dormant as a whole)
Unit    [1], share of units: `layer_k` of one layer (dormant), `all` of all layers (dormant),
        `dead` of all layers
Range   0 to 1; growth over a stream is a sign of lost plasticity
Layers  what the backbone's `layers` hand on, after the nonlinearity: hidden layers of mlp,
        channels of small_cnn, block outputs of resnet20 (its stem and the units inside a block
        are not looked at). A model without `layers`: its features, as layer 0. Of an actor and a
        critic with layers of their own `layer_k` are the actor's, `critic_k` the critic's
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cl.errors import BadValue
from cl.registry import register

TAU = 0.025


@register
def dormant_units(model: nn.Module, experience) -> dict[str, float]:
    """{"layer_k": dormant share, ..., "all": dormant share, "dead": dead share}."""
    x = experience.train.column("x")
    if isinstance(next(iter(_layers(model)), None), nn.ModuleDict):
        layers = towers(model, x)
    else:
        layers = {f"layer_{k}": h for k, h in enumerate(activations(model, x))}
    sizes = [size(h) for h in layers.values()]
    dormant = [scores(h) <= TAU for h in sizes]
    n = sum(len(h) for h in sizes)
    found = {k: layer.double().mean().item() for k, layer in zip(layers, dormant, strict=True)}
    found["all"] = sum(layer.sum().item() for layer in dormant) / n
    found["dead"] = sum((h == 0).sum().item() for h in sizes) / n
    return found


def activations(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Each layer's output [B, n] or [B, n, ...] as the next one gets it; the last: features."""
    if not hasattr(model, "features"):
        raise BadValue(
            f"probe dormant_units needs a model with features(x), not {type(model).__name__}"
        )
    after = dict(enumerate(_layers(model)[1:]))
    found, features = caught(after, lambda: model.features(x))
    return [*(found[k] for k in sorted(found)), features]


def towers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same of an actor and a critic side by side, by name."""
    names = {"actor": "layer", "critic": "critic"}
    after = {
        f"{names[side]}_{k}": module
        for side in names
        for k, module in enumerate(layer[side] for layer in _layers(model)[1:])
    }
    last = len(_layers(model)) - 1
    after |= {f"layer_{last}": model.policy, f"critic_{last}": model.value}
    found, _ = caught(after, lambda: model.outputs(x))
    return {name: found[name] for name in sorted(found, key=lambda n: (n[0] == "c", n))}


def caught(modules: dict, run: Callable) -> tuple[dict, object]:
    """What reaches modules while something is run, by the modules' names, and what it returns."""
    found: dict = {}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, k=k: found.update({k: inputs[0]}))
        for k, module in modules.items()
    ]
    try:
        return found, run()
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list:
    return list(getattr(getattr(model, "backbone", None), "layers", [None]))


def size(h: Tensor) -> Tensor:
    """E|h_i| [n] over rows and positions of h [B, n, ...]."""
    return h.double().abs().transpose(0, 1).flatten(1).mean(1)


def scores(size: Tensor) -> Tensor:
    """s_i [n]; 0 where the whole layer is silent."""
    return size / size.mean() if size.any() else size
