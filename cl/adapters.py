"""model.lora.*: the keys of adapters (LoRA), known without importing torch.

Every language model has them beside its own: a builder annotated `-> LanguageModel`. What they do
is in `cl/models/lora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from cl.config import Param, Range, params_of_schema
from cl.errors import BadValue

PREFIX = "lora."


@dataclass(frozen=True)
class Adapters:
    """LoRA: W + alpha / rank * B A in place of a frozen matrix W; only A and B are trained.

    Parameters
        rank     rows of A; none or 0: no adapters, everything is trained [1]
        alpha    scale: B A counts alpha / rank times [1]
        targets  matrices that get adapters: categories or roles of the anatomy (attention,
                 feed_forward, head; q, k, v, qkv, o, gate, up, down), modules' names or paths
    """

    rank: Annotated[int, Range(min=0, max=65536)] | None = None
    alpha: Annotated[float, Range(above=0)] = 16.0
    targets: list[str] = ("attention",)


PARAMS: dict[str, Param] = {
    PREFIX + name: replace(param, name=PREFIX + name)
    for name, param in params_of_schema(Adapters).items()
}


def split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Adapters | None]:
    """A model's settings without those of adapters, and these; None where there are none.

    Raises BadValue for settings of adapters without a rank.
    """
    own = {name: value for name, value in kwargs.items() if not name.startswith(PREFIX)}
    given = {n.removeprefix(PREFIX): v for n, v in kwargs.items() if n.startswith(PREFIX)}
    adapters = Adapters(**given)
    if adapters.rank:
        return own, adapters
    for name, value in given.items():
        default = getattr(Adapters, name)
        if name != "rank" and value != (list(default) if isinstance(default, tuple) else default):
            raise BadValue(f"model.lora.{name} goes with model.lora.rank, which is not given")
    return own, None


def joined(kwargs: dict[str, Any], adapters: Adapters | None) -> dict[str, Any]:
    """A model's settings with those of its adapters, without such keys where there are none."""
    own = {name: value for name, value in kwargs.items() if not name.startswith(PREFIX)}
    if adapters is None:
        return own
    found = {"rank": adapters.rank, "alpha": adapters.alpha, "targets": list(adapters.targets)}
    return own | {PREFIX + name: value for name, value in found.items()}
