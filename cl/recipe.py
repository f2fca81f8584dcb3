"""The recipe: a run with every setting resolved.

Precedence: constructor < the stream's `defaults` < recipe file < command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from cl.config import Param, params_of_schema, parse, parse_all
from cl.errors import ContractError, unknown
from cl.registry import find
from cl.request import SETTABLE, Request
from cl.settings import Checkpoint, Eval, Train
from cl.stream import Stream
from cl.tuned import of_strategy, section

NOTES = ("overridden", "calibration_seed")  # in a selection, about one run
HERE = ("first_experience", "whole_stream")  # protocols that look at the stream that is reported


@dataclass
class Recipe:
    """A fully resolved run: what is built, with every setting."""

    stream: str
    stream_slug: str
    strategy: str
    strategy_slug: str
    model: str
    seed: int
    device: str
    threads: int
    out: str
    probes: list[str]
    stream_settings: dict
    strategy_settings: list[tuple[str, dict]]
    model_settings: dict
    start: dict
    train: Train
    eval: Eval
    checkpoint: Checkpoint = Checkpoint()
    objective: str | None = None
    objective_settings: dict = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    changed: dict = field(default_factory=dict)
    repeatable: bool = True
    own_stream_seed: bool = False
    selection: dict | None = None
    expect: dict | None = None
    request: str | None = (
        None  # identity of what was asked for, hash of the sources: cl/identity.py
    )
    sources: str | None = None

    def flat(self) -> dict[str, Any]:
        """{key: value} as one would give them on the command line."""
        flat = {"stream": self.stream, "strategy": self.strategy, "model": self.model}
        flat |= {"seed": self.seed, "device": self.device, "threads": self.threads}
        flat |= {f"stream.{k}": v for k, v in self.stream_settings.items()}
        if not self.own_stream_seed:  # it follows `seed`, also where the recipe gets another one
            flat.pop("stream.seed", None)
        several = len(self.strategy_settings) > 1
        for slug, settings in self.strategy_settings:
            prefix = f"strategy.{slug}." if several else "strategy."
            flat |= {prefix + k: v for k, v in settings.items()}
        flat |= {f"model.{k}": v for k, v in (self.model_settings | self.start).items()}
        if self.objective is not None:
            flat["objective"] = self.objective
        flat |= {f"objective.{k}": v for k, v in self.objective_settings.items()}
        flat |= {f"train.{k}": v for k, v in vars(self.train).items()}
        flat |= {f"eval.{k}": v for k, v in vars(self.eval).items()}
        flat |= {f"checkpoint.{k}": v for k, v in vars(self.checkpoint).items()}
        flat["probes"] = self.probes
        if self.selection is not None:
            flat["best"] = True
            chosen = {k: v for k, v in self.selection.items() if k not in NOTES}
            flat["selection"] = chosen
        if self.expect is not None:
            flat["expect"] = self.expect
        if not self.repeatable:
            flat["note"] = "built from Python objects; `cl run` can't repeat it"
        return {k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}

    def text(self) -> str:
        """`recipe.yaml`."""
        return "# cl run recipe.yaml\n" + yaml.safe_dump(
            self.flat(), sort_keys=False, allow_unicode=True, default_flow_style=None
        )


def resolve(
    request: Request,
    stream: Stream,
    stream_settings: dict,
    device: str,
    needs: tuple[str, ...],
    tuned: dict[str, Any],
    selection: dict | None,
    objective: tuple[str, str] | None = None,
) -> Recipe:
    """All settings by precedence, and which of them differ from what would be without them.

    tuned, selection: the settings that best=true puts in, and how they were chosen. objective: the
    name of a settable one, and of that which it would be if none was given.
    """
    name, usual = objective or (None, None)
    defaults = _fitting(stream.defaults, name)
    default_model = defaults.get("model")
    model, params_of = _model(request, default_model, name)
    sections, changed = _resolved(request, defaults, params_of, tuned, model != default_model)
    changed |= {"objective": name} if name != usual else {}
    changed = request.changed(default_model, tuned) | changed
    return Recipe(
        stream=request.stream_name,
        stream_slug=request.stream_slug,
        strategy=request.strategy_name,
        strategy_slug=request.strategy_slug,
        model=model,
        device=device,
        **{name: request.top[name] for name in ("seed", "threads", "out")},
        probes=list(request.top["probes"]),
        stream_settings=stream_settings,
        strategy_settings=_of_strategies(request, tuned),
        model_settings=sections["model"],
        start={name: value for name, value in request.start.items() if value},
        train=Train(**sections["train"]),
        eval=Eval(**sections["eval"]),
        checkpoint=Checkpoint(**request.given.get("checkpoint", {})),
        objective=name,
        objective_settings=sections.get("objective", {}),
        needs=needs,
        changed=changed,
        repeatable=not request.objects,
        own_stream_seed="seed" in request.stream_settings,
        selection=_held_to(selection, changed, request.top["seed"]),
        expect=request.expect,
    )


def _of_strategies(request: Request, tuned: dict) -> list[tuple[str, dict]]:
    """(slug, all settings) of every strategy."""
    return [
        (e.slug, defaults_of(e.params()) | of_strategy(tuned, request, k) | given)
        for k, (e, given) in enumerate(
            zip(request.strategies, request.strategy_settings, strict=True)
        )
    ]


def _model(request: Request, default: str | None, objective: str | None) -> tuple[str, dict]:
    """The model's name, and {prefix: parameters} of what streams may have defaults for."""
    found = {"train": params_of_schema(Train), "eval": params_of_schema(Eval), "model": {}}
    if objective is not None:
        found["objective"] = find("objectives", objective).params()
    if "model" in request.objects:
        return type(request.objects["model"]).__name__, found
    name = request.top["model"] or default or "small_cnn"
    return name, found | {"model": find("models", name).params()}


def _fitting(defaults: dict, objective: str | None) -> dict:
    """A stream's defaults, those for this objective (`dqn.train.lr`) over those for any."""
    named = {k: v for k, v in defaults.items() if k.partition(".")[0] not in SETTABLE}
    own = {k: v for k, v in defaults.items() if objective and k.startswith(f"{objective}.")}
    return named | {k.partition(".")[2]: v for k, v in own.items()}


def _resolved(request: Request, defaults: dict, params_of: dict, tuned: dict, own_model: bool):
    """Settings by prefix (train, eval, ...), and those of them that the user has changed."""
    sections, changed = {}, {}
    for prefix, params in params_of.items():
        base = defaults_of(params)
        if prefix != "model" or not own_model:  # a stream's defaults fit its own model only
            base |= _section(defaults, prefix, params)
        base |= section(tuned, prefix)
        what = "the objective" if prefix == "objective" else "the model"
        given = parse_all(f"{prefix}.", request.given.get(prefix, {}), params, what)
        sections[prefix] = base | given
        changed |= {f"{prefix}.{k}": v for k, v in given.items() if v != base[k]}
    return sections, changed


def _held_to(selection: dict | None, changed: dict, seed: int) -> dict | None:
    """How settings were chosen, with what the user has set otherwise, and a seed that was used."""
    if selection is None:
        return None
    own = ("best", "threads", "device", "stream.seed")
    under = selection.get("settings") or {}  # what they were chosen under
    overridden = [
        key
        for key, value in changed.items()
        if key not in own and not key.startswith("eval.") and under.get(key) != value
    ]
    notes = {"overridden": overridden} if overridden else {}
    elsewhere = selection["protocol"] not in HERE
    if elsewhere and seed in selection["seeds"]:
        notes["calibration_seed"] = True  # settings were chosen on it: no seed to report
    return selection | notes


def hparams(recipe: Recipe) -> dict:
    """The settings that TensorBoard shows beside the final metrics."""
    other = ("threads", "stream.path", "selection")
    told = {k: v for k, v in recipe.flat().items() if not k.startswith("checkpoint.")}
    flat = {k: v for k, v in told.items() if k not in other}
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat.items()
    }


def defaults_of(params: dict[str, Param]) -> dict[str, Any]:
    """{name: default}, lists as lists, REQUIRED where there is none."""
    return {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in params.items()
    }


def _section(defaults: dict, prefix: str, params: dict[str, Param]) -> dict[str, Any]:
    section = {}
    for key, value in defaults.items():
        if key.startswith(f"{prefix}."):
            name = key.partition(".")[2]
            if name not in params:
                raise ContractError(f"the stream's defaults: {unknown('key', key, params)}")
            section[name] = parse(key, value, params[name].annotation)
    return section
