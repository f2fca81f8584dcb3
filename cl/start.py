"""Where a model starts: drawn afresh, from a library's weights, or where another run ended.

`model.from=RUN_DIR` is strict: the model and its settings are those of the run's last checkpoint,
its backbone is taken over whole, weights and batch-norm statistics, and inputs must have the same
shape. The head starts anew, because another stream's classes mean something else; with
`model.keep_head=true` its rows and the feature normalisation are taken over, too. So are a
policy's heads, which the stream's actions must fit. A language model
is taken over with its adapters, if it has some; one without may be given new ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl.adapters import PREFIX as ADAPTERS
from cl.config import Param, parse_all, show
from cl.errors import BadValue, DataError
from cl.registry import Entry, find

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl.models import Classifier
    from cl.models.language import LanguageModel
    from cl.models.policy import PolicyModel
    from cl.request import Request
    from cl.stream import Stream

PARAMS = {  # of every model, beside its own
    "from": Param(
        "from", Path | None, None, "run folder: start from its last model's backbone, strictly"
    ),
    "keep_head": Param(
        "keep_head", bool, False, "with from: its head, too, for the classes of experience 0"
    ),
}
DRAWN = {"pretrained": False, "weights": None}  # a library's model without trained weights


def drawn(entry: Entry) -> dict[str, Any]:
    """The settings of a model that keep its builder from loading trained weights."""
    names = DRAWN if entry.rest is not None else ("pretrained",)
    return {name: DRAWN[name] for name in names if name in entry.params()}


def adopted(request: Request, stream: Stream) -> Request:
    """The request with model and settings filled in from the run in `model.from`, if any.

    Raises BadValue if the request or the stream asks for something else, DataError.
    """
    folder = request.start.get("from")
    if folder is None:
        if request.start.get("keep_head"):
            raise BadValue("model.keep_head=true goes with model.from=RUN_DIR")
        return request
    if "model" in request.objects:
        raise BadValue("model.from can't be used with a model that is a Python object")
    architecture, weights = last_model(Path(folder), "model.from: ")
    name, shape = architecture["name"], architecture["input_shape"]
    if request.top["model"] not in (None, name):
        raise BadValue(
            f"model={request.top['model']} is another one than that of model.from={folder}, "
            f"which is {name}; leave model out"
        )
    if list(stream.input_shape) != shape:
        raise BadValue(
            f"model.from={folder} takes inputs {shape}, stream {stream.name} has "
            f"{list(stream.input_shape)}"
        )
    if request.start.get("keep_head"):
        _check_head(folder, architecture, weights, stream)
    top = {**request.top, "model": name}
    settings = _settings(request, architecture)
    return replace(request, top=top, given={**request.given, "model": settings})


def _check_head(folder: str, architecture: dict, weights: dict, stream: Stream) -> None:
    if "actions" in architecture:
        return  # a policy's heads are as wide as the stream has actions
    if "n_classes" not in architecture:
        raise BadValue(f"model.keep_head=true: the language model in {folder} has no head to keep")
    width, first = len(weights["head.bias"]), stream.seen_classes(0)
    if width > first:
        raise BadValue(
            f"model.keep_head=true: the head in {folder} has {width} classes, experience 0 of "
            f"{stream.name} brings {first}"
        )


def _settings(request: Request, architecture: dict) -> dict[str, Any]:
    """The run's model settings. Raises BadValue if others were given."""
    entry = find("models", architecture["name"])
    settings = architecture["kwargs"] | drawn(entry)
    given = parse_all("model.", request.given["model"], entry.params(), f"model {entry.name}")
    plain = f"{ADAPTERS}rank" not in settings
    for key, value in given.items():
        if plain and key.startswith(ADAPTERS):
            settings[key] = value
        elif value != settings.get(key):
            raise BadValue(
                f"model.{key}={show(value)} can't be combined with "
                f"model.from={request.start['from']}, whose model has "
                f"{key}={show(settings.get(key))}"
            )
    return settings


def is_trained(model_settings: dict[str, Any], start: dict[str, Any]) -> bool:
    """Whether a model starts from weights that were trained elsewhere."""
    keys = ("pretrained", "weights")
    return start.get("from") is not None or any(model_settings.get(key) for key in keys)


def weights_stamp(start: dict[str, Any]) -> str | None:
    """What tells the model in `model.from` from another one in the same folder."""
    if start.get("from") is None:
        return None
    sums = sorted(Path(start["from"]).glob("checkpoint/*/checksums.json"))
    return sums[-1].read_text(encoding="utf-8") if sums else None


def take(model: Classifier | LanguageModel | PolicyModel, start: dict[str, Any]) -> None:
    """Load the backbone, and the head if it is to be kept, or the language model of that run."""
    from cl.models.lora import fitted

    architecture, weights = last_model(Path(start["from"]), "model.from: ")
    part = _taken(model, start)
    prefix = "" if part is model else "backbone."
    own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    try:
        part.load_state_dict(fitted(part, own))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"model.from={start['from']} does not fit its own model: {reason}"
        ) from error
    if start.get("keep_head") and part is not model:
        model.head.grow(len(weights["head.bias"]))
        model.head.write(weights["head.weight"], weights["head.bias"])
        model.normalize = architecture["normalize"]


def _taken(model: nn.Module, start: dict[str, Any]) -> nn.Module:
    """What is taken over before the head: a policy's heads come with the rest or not at all."""
    if hasattr(model, "actions") and start.get("keep_head"):
        return model
    return getattr(model, "backbone", model)


def last_model(folder: Path, where: str = "") -> tuple[dict, dict[str, Tensor]]:
    """(architecture, weights) of a run's last checkpoint. Raises DataError."""
    import torch

    from cl import checkpoint

    if not folder.is_dir():
        raise DataError(f"{where}no folder {str(folder)!r}")
    saved = checkpoint.found(folder / "checkpoint")
    if not saved:
        raise DataError(f"{where}{folder} holds no checkpoint to take a model from")
    weights, document, _ = checkpoint.load(saved[-1], torch.device("cpu"))
    architecture = document["model"]["architecture"]
    if architecture is None:
        raise DataError(
            f"{where}{folder} was run with a model of the user's own; load its weights from "
            f"{saved[-1]}/model.safetensors"
        )
    return architecture, weights
