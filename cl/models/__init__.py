"""Models: a backbone, a switch that L2-normalises features, a head that grows.

A builder is a function `name(input_shape, *, ...)` that returns a backbone: a module mapping
[B, *input_shape] to features [B, D] with an attribute `n_features` = D and, best of all, its
repeated units in a ModuleList called `layers` (read by `cl/models/anatomy.py`). A builder of a
language model returns it whole, is annotated `-> LanguageModel` (`cl/models/language.py`) and gets
the settings `lora.*` besides (`cl/adapters.py`): it has no head of classes. Nor has a policy, which
is annotated `-> PolicyModel` (`cl/models/policy.py`) and is told of the actions it may take.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl.adapters import joined, split
from cl.errors import BadValue, ShapeMismatch
from cl.models.language import LanguageModel
from cl.models.policy import Actions, PolicyModel


class GrowingHead(nn.Module):
    """A linear map [B, D] -> [B, C] whose C grows; rows of old classes keep their values.

    weight [C, D], bias [C]; new rows are uniform in +-1/sqrt(D), as torch's Linear starts.
    """

    def __init__(self, n_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, n_features))
        self.bias = nn.Parameter(torch.empty(0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D]."""
        return F.linear(features, self.weight, self.bias)

    def grow(self, n_classes: int, generator: torch.Generator | None = None) -> None:
        """Have at least `n_classes` rows; does nothing if there are that many."""
        have, d = self.weight.shape
        if n_classes <= have:
            return
        bound = 1 / math.sqrt(d)
        new = torch.rand(n_classes - have, d + 1, generator=generator) * 2 * bound - bound
        new = new.to(self.weight)
        flag = self.weight.requires_grad
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), new[:, :d]]), flag)
        self.bias = nn.Parameter(
            torch.cat([self.bias.detach(), new[:, d]]), self.bias.requires_grad
        )

    @torch.no_grad()
    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Set all rows: weight [C, D], bias [C]. Raises ShapeMismatch."""
        if weight.shape != self.weight.shape or bias.shape != self.bias.shape:
            raise ShapeMismatch(
                f"the head is {tuple(self.weight.shape)}, got weight {tuple(weight.shape)} "
                f"and bias {tuple(bias.shape)}"
            )
        self.weight.copy_(weight)
        self.bias.copy_(bias)


class Classifier(nn.Module):
    """backbone -> features [B, D] -> (divided by their L2 norm if `normalize`) -> head -> [B, C].

    architecture: what rebuilds it, as JSON values; stored with every checkpoint.
    """

    def __init__(self, backbone: nn.Module, architecture: dict):
        super().__init__()
        self.backbone = backbone
        self.head = GrowingHead(backbone.n_features)
        self.normalize = False
        self._architecture = architecture

    @property
    def architecture(self) -> dict:
        """Name, arguments, head width and the normalisation switch."""
        width = len(self.head.bias)
        return {**self._architecture, "n_classes": width, "normalize": self.normalize}

    def features(self, x: Tensor) -> Tensor:
        """Backbone features [B, D] of x [B, ...], never normalised."""
        return self.backbone(x)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D]."""
        return self.head(F.normalize(features) if self.normalize else features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of x [B, ...]."""
        return self.classify(self.backbone(x))


def build(
    name: str,
    input_shape: tuple[int, ...],
    kwargs: dict,
    *,
    start: dict | None = None,
    trained: bool = True,
    actions: Actions | None = None,
) -> Classifier | LanguageModel | PolicyModel:
    """The registered model `name` for inputs of one shape, with a head of no class yet.

    start: the run whose weights it begins with (`cl/start.py`); trained: whether those, and the
    ones that `kwargs` may ask a library for, are loaded. actions: those of a policy, None where
    the stream has none. Raises BadValue where the model can't choose among them.
    """
    from cl.models.lora import put
    from cl.registry import find
    from cl.start import drawn, take

    entry = find("models", name)
    own, adapters = split(kwargs)
    given = own if trained else {**own, **drawn(entry)}
    builder = entry.load()
    if acts(builder) != (actions is not None):
        wrong = "is a policy; it goes with a stream of the rl domain"
        if actions is not None:
            wrong = f"can't act, the stream has {actions}; take actor_critic or q_network"
        raise BadValue(f"model {name} {wrong}")
    told = () if actions is None else (actions,)
    made = builder(tuple(input_shape), *told, **given)
    kwargs = joined(own, adapters)
    architecture = {"name": name, "input_shape": list(input_shape), "kwargs": kwargs}
    architecture |= {"start": start} if start else {}
    if isinstance(made, LanguageModel):
        model, made.architecture = made, architecture
        if adapters is not None:
            put(model, adapters)
    elif isinstance(made, PolicyModel):
        model, made.architecture = made, architecture | {"actions": asdict(made.actions)}
    else:
        # channels-last kernels: 1.3 to 2 times as fast on CPUs, the fast ones for bf16 on GPUs
        model = Classifier(made.to(memory_format=torch.channels_last), architecture)
    if start and trained:
        take(model, start)
    return model


def acts(builder) -> bool:
    """Whether a builder makes policies: it is told of the actions."""
    return "actions" in inspect.signature(builder).parameters


def rebuild(
    architecture: dict, *, trained: bool = False
) -> Classifier | LanguageModel | PolicyModel:
    """A model as `architecture` describes it; its weights are still to be loaded.

    trained: with the weights that its run started from, where that was a trained model.
    """
    name, shape = architecture["name"], tuple(architecture["input_shape"])
    start = architecture.get("start")
    actions = Actions(**architecture["actions"]) if "actions" in architecture else None
    kwargs = architecture["kwargs"]
    model = build(name, shape, kwargs, start=start, trained=trained, actions=actions)
    if architecture.get("normalised"):
        model.see_normalised()
    if isinstance(model, Classifier):
        model.head.grow(architecture["n_classes"])
        model.normalize = architecture["normalize"]
    return model


def grow(model: nn.Module, n_classes: int, generator: torch.Generator | None = None) -> None:
    """Make `model` answer for `n_classes`; a model with a fixed head must be wide enough.

    A language model answers in tokens and a policy in actions, so they stay as they are. Raises
    BadValue if the fixed head is too narrow.
    """
    if isinstance(model, (LanguageModel, PolicyModel)):
        return
    head = getattr(model, "head", None)
    if isinstance(head, GrowingHead):
        head.grow(n_classes, generator)
        return
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if linears and linears[-1].out_features < n_classes:
        raise BadValue(
            f"the model's last layer has {linears[-1].out_features} outputs, the stream needs "
            f"{n_classes}; give it a cl.models.GrowingHead as `head`, or more outputs"
        )
