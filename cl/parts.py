"""What a run is put together from: stream, strategies, model, objective, each checked."""

from __future__ import annotations

from torch import nn

from cl import objectives
from cl.config import REQUIRED
from cl.errors import BadValue, ContractError, unknown
from cl.loop import Loop
from cl.models import build
from cl.recipe import Recipe, defaults_of
from cl.registry import Entry, find, name_of
from cl.request import Request
from cl.scenarios import apply
from cl.settings import Scenario
from cl.start import is_trained
from cl.state import check_state
from cl.strategy import DOMAINS, HOOKS, NEEDS, REQUIRES, Strategy, claims_of
from cl.stream import GIVES, Stream
from cl.tuned import of_strategy


def build_stream(request: Request) -> tuple[Stream, dict]:
    """The stream with the scenario operators applied, and all of its settings."""
    scenario = Scenario(**request.scenario)
    stream, settings = _plain_stream(request)
    stream = apply(stream, scenario, settings.get("seed", request.top["seed"]))
    own = request.stream.params() if request.stream else {}
    return stream, settings | {k: v for k, v in vars(scenario).items() if k not in own}


def _plain_stream(request: Request) -> tuple[Stream, dict]:
    if "stream" in request.objects:
        return request.objects["stream"], {}
    settings = defaults_of(request.stream.params()) | request.stream_settings
    if "seed" in settings and "seed" not in request.stream_settings:
        settings["seed"] = request.top["seed"]
    missing = [name for name, value in settings.items() if value is REQUIRED]
    if missing:
        raise BadValue(f"stream {request.stream_name} needs stream.{missing[0]}=...")
    stream = request.stream.load()(**settings)
    if not isinstance(stream, Stream):
        raise ContractError(f"{request.stream_name} returned {type(stream).__name__}, not a Stream")
    if stream.domain not in objectives.DEFAULTS:
        raise BadValue(
            f"stream {stream.name!r} has domain {stream.domain!r}; "
            f"known: {', '.join(objectives.DEFAULTS)}"
        )
    return stream, settings


def build_strategies(
    request: Request, stream: Stream, tuned: dict
) -> tuple[list[Strategy], tuple[str, ...]]:
    """The strategies and what they need together. Raises BadValue, ContractError.

    tuned: {key: value} that best=true puts in.
    """
    strategies = request.objects.get("strategies")
    if strategies is None:
        strategies = [
            build_strategy(entry, of_strategy(tuned, request, k) | request.strategy_settings[k])
            for k, entry in enumerate(request.strategies)
        ]
    for strategy in strategies:
        check_contract(strategy)
        _check_domain(strategy, stream)
    needs = tuple(dict.fromkeys(need for s in strategies for need in s.needs))
    lacking = [need for need in needs if need in GIVES and need not in stream.gives]
    if lacking:
        raise BadValue(
            f"{request.strategy_name} needs {lacking[0]} ({NEEDS[lacking[0]]}), which the stream "
            f"{stream.name} does not give; it gives {', '.join(sorted(stream.gives)) or 'nothing'}"
        )
    claims_of(strategies)
    check_state(strategies)
    return strategies, needs


def _check_domain(strategy: Strategy, stream: Stream) -> None:
    """Refuse a strategy that is made for other streams. Raises BadValue."""
    kind = type(strategy)
    if kind.domains and stream.domain not in kind.domains:
        made_for = " and ".join(f"{name} ({DOMAINS[name]})" for name in kind.domains)
        other = kind.instead.get(stream.domain)
        raise BadValue(
            f"{name_of(kind)} is made for streams of the domain {made_for}; {stream.name} is of "
            f"the domain {stream.domain}" + (f", where {other} does its job" if other else "")
        )


def build_strategy(entry: Entry, settings: dict) -> Strategy:
    """Import a strategy and construct it with parsed settings. Raises ContractError."""
    made = entry.load()
    if entry.rest is None and not (isinstance(made, type) and issubclass(made, Strategy)):
        raise ContractError(
            f"{entry.name} is no strategy: it must be a class derived from cl.Strategy"
        )
    missing = [n for n, p in entry.params().items() if p.default is REQUIRED and n not in settings]
    if missing:
        raise BadValue(f"strategy {entry.name} needs strategy.{missing[0]}=...")
    return made(**settings)


def check_contract(strategy: Strategy) -> None:
    """Refuse misspelt hooks and unknown needs. Raises ContractError."""
    kind = type(strategy)
    for name in dir(kind):
        hook_like = name.startswith(("before_", "after_")) and callable(getattr(kind, name))
        if hook_like and name not in HOOKS:
            raise ContractError(str(unknown(f"hook of {kind.__name__}:", name, HOOKS)))
    for need in kind.needs:
        if need not in NEEDS:
            raise ContractError(str(unknown(f"need of {kind.__name__}:", need, NEEDS)))
    for domain in kind.domains:
        if domain not in DOMAINS:
            raise ContractError(str(unknown(f"domain of {kind.__name__}:", domain, DOMAINS)))
    for part in kind.requires:
        if part not in REQUIRES:
            raise ContractError(str(unknown(f"requirement of {kind.__name__}:", part, REQUIRES)))


def objective_of(
    request: Request, stream: Stream, strategies: list[Strategy]
) -> tuple[str, str] | None:
    """(the settable objective, the usual one) of a run; None where there is none to choose."""
    given = request.top["objective"]
    if stream.domain != "rl":
        if given is not None or request.given["objective"]:
            key = f"objective={given}" if given else f"objective.{[*request.given['objective']][0]}"
            raise BadValue(
                f"{key} is for environments; on {stream.name}, of the domain {stream.domain}, the "
                "strategy decides: sft or rft"
            )
        return None
    usual = next((s.learns for s in strategies if s.learns), objectives.DEFAULTS["rl"])
    claims = claims_of(strategies)
    if given not in (None, usual) and "objective" in claims:
        raise BadValue(f"{name_of(type(claims['objective']))} learns by {usual}, not {given}")
    return given or usual, usual


def build_objective(recipe: Recipe, stream: Stream) -> objectives.Objective:
    """The objective that the recipe names, or the plain one of the stream's domain."""
    if recipe.objective is None:
        return objectives.default(stream.domain)
    return find("objectives", recipe.objective).load()(**recipe.objective_settings)


def loop_class(strategies: list[Strategy]) -> type[Loop]:
    """The loop that a strategy asks for, else ours."""
    asked = (type(s).loop_class for s in strategies if type(s).loop_class is not None)
    return next(asked, Loop)


def check_start(recipe: Recipe) -> None:
    """A strategy that builds on a trained model does not get one drawn at random."""
    if "pretraining" in recipe.needs and not is_trained(recipe.model_settings, recipe.start):
        raise BadValue(
            f"{recipe.strategy} needs pretraining ({NEEDS['pretraining']}), but {recipe.model} "
            "would be drawn at random; give model.from=RUN_DIR, or model.pretrained=true or "
            "model.weights=FILE with a timm: or torchvision: model"
        )


def build_model(recipe: Recipe, stream: Stream) -> nn.Module:
    """The model that the recipe names, for the stream's inputs. Raises BadValue."""
    try:
        start = recipe.start or None
        actions = getattr(stream, "actions", None)
        settings = recipe.model_settings
        return build(recipe.model, stream.input_shape, settings, start=start, actions=actions)
    except ValueError as error:
        if stream.domain != "llm":
            raise
        raise BadValue(  # a builder of image models has looked for channels, height and width
            f"model {recipe.model} is no language model, which {stream.name} needs: tiny, hf:PATH"
        ) from error
    except (RuntimeError, MemoryError) as error:  # torch says so when memory is asked for in vain
        reason = str(error).strip().partition("\n")[0]
        raise BadValue(
            f"model {recipe.model} can't be built with these settings: {reason}"
        ) from error
