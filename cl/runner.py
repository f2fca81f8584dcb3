"""One run: resolve the recipe, build its parts, run the loop, keep the record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb

import numpy as np
import torch
from torch import nn

from cl import objectives
from cl.board import Board
from cl.config import REQUIRED
from cl.display import Display, header
from cl.errors import BadValue, ClError, ContractError, DataError, RunError, unknown
from cl.folder import clear, locked, prepare, read_results, run_folder
from cl.loop import Loop
from cl.models import Classifier, build, rebuild
from cl.recipe import Recipe, defaults_of, hparams, resolve
from cl.record import Recorder
from cl.registry import Entry, find, name_of
from cl.request import Request
from cl.scenarios import apply
from cl.seeding import global_state, restore_globals, seed_globals
from cl.settings import Scenario
from cl.start import adopted, is_trained, last_model
from cl.state import check_state
from cl.strategy import DOMAINS, HOOKS, NEEDS, REQUIRES, Strategy, claims_of
from cl.stream import GIVES, Stream
from cl.tuned import section, settings_for


@dataclass
class Result:
    """A run that has been recorded. R [E, J] with nan where undefined; dir the run folder."""

    results: dict
    dir: Path
    _model: nn.Module | None = None

    @property
    def R(self) -> np.ndarray:
        """Test scores [E, J], nan where undefined."""
        rows = [[np.nan if v is None else v for v in row] for row in self.results["R"]]
        return np.array(rows, dtype=float)

    @property
    def metrics(self) -> dict:
        """Metrics as in results.json."""
        return self.results["metrics"]

    @property
    def model(self) -> nn.Module:
        """The model at the end, from the last checkpoint if the run was loaded."""
        if self._model is None:
            self._model = _saved_model(self.dir)
        return self._model


def run(stream, strategy="naive", /, **settings) -> Result:
    """Run a strategy over a stream and record it; the same as `cl run` on the command line.

    stream: a name or a Stream; strategy: a name, `a+b`, a Strategy or a list of Strategies.
    settings: any key of the command line, `train={"lr": 0.1}` for `train.lr=0.1`; `model` may
    also be an nn.Module; `progress=True` shows the progress bar. Raises ClError subclasses.
    """
    progress = settings.pop("progress", False)
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        strategy = strategy()
    if not isinstance(stream, str | Stream):
        raise BadValue(f"stream must be a name or a Stream, got {type(stream).__name__}")
    if not isinstance(strategy, str | Strategy | list | tuple):
        raise BadValue(f"strategy must be a name or a Strategy, got {type(strategy).__name__}")
    objects = {"stream": stream} if isinstance(stream, Stream) else {}
    strategies = [strategy] if isinstance(strategy, Strategy) else strategy
    if not isinstance(strategies, str):
        objects["strategies"] = list(strategies)
        strategies = "+".join(name_of(type(s)) for s in strategies)
    if isinstance(settings.get("model"), nn.Module):
        objects["model"] = settings.pop("model")
    name = stream.name if isinstance(stream, Stream) else stream
    request = Request.of(name, strategies, settings, objects)
    return execute(request, progress=progress)


def load(folder) -> Result:
    """A recorded run: `.R .metrics .results .model .dir`. Raises DataError."""
    folder = Path(folder)
    return Result(read_results(folder), folder)


def resume(folder: Path, *, progress: bool = False) -> Result:
    """Go on after the last checkpoint; without one start over; finished: just load it."""
    if not folder.is_dir():
        raise DataError(f"--resume: no folder {str(folder)!r}")
    recipe = folder / "recipe.yaml"
    begun = (folder / "results.json").is_file() or not recipe.is_file()
    if begun and read_results(folder)["status"] == "finished":
        return load(folder)
    request = Request.from_recipe(recipe, {})
    return execute(request, progress=progress, resume_in=folder)


def execute(request: Request, *, progress: bool, resume_in: Path | None = None) -> Result:
    """Run a checked request. Global random state and thread count are put back at the end."""
    state, threads = global_state(), torch.get_num_threads()
    try:
        return _execute(request, progress, resume_in)
    finally:
        torch.set_num_threads(threads)
        restore_globals(state)


def _execute(request: Request, progress: bool, resume_in: Path | None) -> Result:
    torch.set_num_threads(request.top["threads"])
    seed_globals(request.top["seed"])
    device = pick_device(request.top["device"])
    stream, stream_settings = _stream(request)
    tuned, selection = settings_for(request, stream)
    strategies, needs = _strategies(request, stream, section(tuned, "strategy"))
    request = adopted(request, stream)
    learns = _objective(request, stream, strategies)
    recipe = resolve(request, stream, stream_settings, str(device), needs, tuned, selection, learns)
    model = request.objects.get("model")
    if model is None:
        _check_start(recipe)
        model = _build_model(recipe, stream)
    if recipe.objective is None:
        objective = objectives.default(stream.domain)
    else:
        objective = find("objectives", recipe.objective).load()(**recipe.objective_settings)
    loop = _loop_class(strategies)(
        stream=stream.to(device),
        strategies=strategies,
        model=model,
        objective=objective,
        train=recipe.train,
        evaluation=recipe.eval,
        seed=recipe.seed,
        device=device,
    )
    _check_training(recipe, stream, loop)
    for name in recipe.probes:
        loop.attach(name)
    folder = resume_in or run_folder(recipe)
    if resume_in is None:
        prepare(folder, Path(recipe.out))
    with locked(folder):
        recorder = Recorder(folder, recipe, stream)
        return _run_recorded(loop, recorder, folder, progress, resume_in is not None)


def _loop_class(strategies: list[Strategy]) -> type[Loop]:
    """The loop that a strategy asks for, else ours."""
    asked = (type(s).loop_class for s in strategies if type(s).loop_class is not None)
    return next(asked, Loop)


def _build_model(recipe: Recipe, stream: Stream) -> nn.Module:
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


def _run_recorded(
    loop: Loop, recorder: Recorder, folder: Path, progress: bool, resuming: bool
) -> Result:
    recipe = recorder.recipe
    resumable = resuming and loop.restarts is None
    start = recorder.restore(loop) if resumable else 0
    if not resuming:
        recorder.write_recipe()
    elif start == 0:
        clear(folder)
    recorder.board = Board(folder, hparams(recipe))
    if progress:
        recorder.display = Display(header(recipe), len(loop.stream), _planned(loop))
    if resuming and not resumable:
        recorder.log.warning("starts over: %s", loop.restarts)
        if progress:
            recorder.display.out.print(f"starts over: {loop.restarts}", soft_wrap=True)
    loop.observer = recorder
    recorder.log.info(
        "%s %s seed %d on %s", recipe.stream, recipe.strategy, recipe.seed, recipe.device
    )
    status = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            loop.run(start)
    except Exception as error:
        status = "failed"
        recorder.log.exception("the run failed")
        if not isinstance(error, ClError):  # a plug-in's own, or a bug of ours
            raise RunError(f"{type(error).__name__}: {error} in {_place(error)}") from error
        raise
    except BaseException as stop:
        stop.run_folder = folder
        recorder.log.info("stopped by %s", type(stop).__name__)
        status = "running"
        raise
    finally:
        for warning in caught:
            recorder.log.warning("%s", str(warning.message).partition("\n")[0])
        if recorder.display is not None:
            recorder.display.close()
        recorder.close(status, loop)
    return Result(read_results(folder), folder, loop.model)


def _place(error: Exception) -> str:
    """Where an error was raised: the deepest frame outside installed libraries."""
    frames = [f for f in walk_tb(error.__traceback__) if "site-packages" not in _file(f[0])]
    frame, line = frames[-1]
    return f"{frame.f_code.co_qualname}, {_file(frame)}:{line}"


def _file(frame) -> str:
    return frame.f_code.co_filename


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu. Raises BadValue if the device can't be had."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    have = ["cpu"] + [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    have += ["mps"] if torch.backends.mps.is_available() else []
    if name not in have and not (name == "cuda" and len(have) > 1):
        raise BadValue(f"device must be auto or one of {', '.join(have)}, got {name!r}")
    return torch.device(name)


def _stream(request: Request) -> tuple[Stream, dict]:
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


def _strategies(
    request: Request, stream: Stream, tuned: dict
) -> tuple[list[Strategy], tuple[str, ...]]:
    strategies = request.objects.get("strategies")
    if strategies is None:
        strategies = [
            build_strategy(entry, tuned | settings)
            for entry, settings in zip(request.strategies, request.strategy_settings, strict=True)
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


def _objective(
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


def _check_start(recipe: Recipe) -> None:
    """A strategy that builds on a trained model does not get one drawn at random."""
    if "pretraining" in recipe.needs and not is_trained(recipe.model_settings, recipe.start):
        raise BadValue(
            f"{recipe.strategy} needs pretraining ({NEEDS['pretraining']}), but {recipe.model} "
            "would be drawn at random; give model.from=RUN_DIR, or model.pretrained=true or "
            "model.weights=FILE with a timm: or torchvision: model"
        )


def _check_training(recipe: Recipe, stream: Stream, loop: Loop) -> None:
    """Combinations that could only fail later."""
    if recipe.train.until is not None:
        _check_until(recipe, stream)
    if stream.online and recipe.train.epochs > 1:
        raise BadValue(f"stream.online is one pass: train.epochs={recipe.train.epochs} is more")
    if stream.online and recipe.train.updates is not None:
        raise BadValue("stream.online learns every row once: train.updates would leave rows out")
    for strategy in loop.plugins:
        lacking = [part for part in strategy.requires if not hasattr(loop.model, part)]
        if lacking:
            raise BadValue(
                f"{name_of(type(strategy))} needs a model with {REQUIRES[lacking[0]]}, which "
                f"{recipe.model} lacks; name one of `cl list models` or pass a cl.models.Classifier"
            )
    if recipe.train.augment and len(stream.input_shape) != 3:
        raise BadValue(
            f"train.augment={','.join(recipe.train.augment)} needs images [C, H, W], "
            f"the stream has inputs {list(stream.input_shape)}"
        )
    if recipe.train.precision == "bf16" and loop.device.type == "mps":
        raise BadValue("train.precision=bf16 needs a cpu or cuda device, got mps")


def _check_until(recipe: Recipe, stream: Stream) -> None:
    """Scores to stop at are taken now and then, of validation data."""
    until = recipe.train.until
    if recipe.eval.every is None:
        raise BadValue(f"train.until={until} looks at evaluations: give eval.every=UPDATES, too")
    for e in stream.evals:
        if e.learned_at and e.val is None:
            raise BadValue(f"train.until={until} needs validation data, {e.name} has none")


def _planned(loop: Loop) -> list[int]:
    """Updates per experience if every experience is trained on its own data."""
    train, planned = loop.train, []
    for e in loop.stream.experiences:
        n = train.epochs * len(loop.objective.batches(loop, e.train))
        planned.append(min(n, train.updates or n))
    return planned


def _saved_model(folder: Path) -> nn.Module:
    architecture, weights = last_model(folder)
    model: Classifier = rebuild(architecture)
    model.load_state_dict(weights)
    return model.eval()
