"""One run: resolve the recipe, build its parts, run the loop, keep the record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cl import references, stopping
from cl.board import Board
from cl.checkpoint import found
from cl.display import Display, header
from cl.errors import BadValue, ClError, DataError, RunError, place
from cl.folder import clear, locked, prepare, read_results, run_folder, waiting
from cl.identity import identity, recorded, sources_of, standing
from cl.loop import Loop
from cl.models import Classifier, rebuild
from cl.parts import (
    build_model,
    build_objective,
    build_strategies,
    build_stream,
    check_start,
    loop_class,
    objective_of,
)
from cl.recipe import Recipe, hparams, resolve
from cl.record import Recorder
from cl.registry import name_of
from cl.request import Request
from cl.seeding import global_state, restore_globals, seed_globals
from cl.start import adopted, last_model
from cl.strategy import REQUIRES, Strategy
from cl.stream import Stream
from cl.tuned import settings_for


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
    request.known_as = recorded(folder)[1]
    return execute(request, progress=progress, resume_in=folder)


def execute(request: Request, *, progress: bool, resume_in: Path | None = None) -> Result:
    """Run a checked request. Global random state and thread count are put back at the end."""
    with _own_globals(request):
        begun = resume_in is not None and bool(found(resume_in / "checkpoint"))
        made = assembled(request, resumed=begun)
        folder = resume_in or run_folder(made.recipe)
        if resume_in is None:
            prepare(folder, Path(made.recipe.out))
        return _carried_out(made, folder, progress, resume_in is not None)


def take(request: Request) -> tuple[Result, bool]:
    """One of many runs: (its result, whether it was there already).

    A folder with the same recipe, data and sources is taken as it is if the run has finished, and
    gone on with if not; anything else that stands there moves away. Whoever makes the same run
    now is waited for.
    """
    with _own_globals(request):
        made = assembled(request)
        folder = run_folder(made.recipe)
        with waiting(folder):
            stands = standing(folder, made.recipe, made.stream)
            if stands == "finished":
                return load(folder), True
            if stands is None:
                prepare(folder, Path(made.recipe.out))
            return _carried_out(made, folder, False, stands is not None), False


def check(request: Request, streams: dict[str, tuple]) -> None:
    """Put a run together and look at it, without running it. Raises ClError.

    streams: the one that was built last is kept here by the caller, for arms that share it.
    """
    key = repr([request.stream_name, request.stream_changes(), request.top["seed"]])
    with _own_globals(request):
        if key not in streams:
            streams.clear()
            streams[key] = build_stream(request)
        assembled(request, streams[key])


@contextmanager
def _own_globals(request: Request) -> Iterator[None]:
    state, threads = global_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(request.top["threads"])
        seed_globals(request.top["seed"])
        yield
    finally:
        torch.set_num_threads(threads)
        restore_globals(state)


@dataclass
class Assembled:
    """A run that can begin."""

    request: Request
    recipe: Recipe
    stream: Stream
    loop: Loop


def assembled(
    request: Request, built: tuple[Stream, dict] | None = None, *, resumed: bool = False
) -> Assembled:
    """All parts of a run, checked; built: the stream and its settings. Raises ClError.

    resumed: there is a checkpoint, so that what a run finds out before it begins is known.
    """
    known_as, sources = identity(request), sources_of(request)
    device = pick_device(request.top["device"])
    stream, stream_settings = built or build_stream(request)
    tuned, selection = settings_for(request, stream)
    strategies, needs = build_strategies(request, stream, tuned)
    request = adopted(request, stream)
    learns = objective_of(request, stream, strategies)
    recipe = resolve(request, stream, stream_settings, str(device), needs, tuned, selection, learns)
    recipe.request, recipe.sources = known_as, sources
    model = request.objects.get("model")
    if model is None:
        check_start(recipe)
        model = build_model(recipe, stream)
    objective = build_objective(recipe, stream)
    recipe.needs = tuple(dict.fromkeys((*needs, *getattr(objective, "needs", ()))))
    loop = loop_class(strategies)(
        stream=stream.to(device),
        strategies=strategies,
        model=model,
        objective=objective,
        train=recipe.train,
        evaluation=recipe.eval,
        seed=recipe.seed,
        device=device,
        resumed=resumed,
    )
    _check_training(recipe, stream, loop)
    if recipe.eval.references:
        references.check(request, stream)
    for name in recipe.probes:
        loop.attach(name)
    return Assembled(request, recipe, stream, loop)


def _carried_out(made: Assembled, folder: Path, progress: bool, resuming: bool) -> Result:
    with locked(folder):
        recorder = Recorder(folder, made.recipe, made.stream)
        if not (folder / "recipe.yaml").is_file():
            recorder.write_recipe()
        if made.recipe.eval.references:
            recorder.alone = _alone(made.request, recorder, progress)
        try:
            return _run_recorded(made.loop, recorder, folder, progress, resuming)
        except ClError as error:
            error.run_folder = folder
            raise


def _alone(request: Request, recorder: Recorder, progress: bool) -> list[dict]:
    """What each experience's task scores alone; if stopped, the run itself is gone on with."""

    def one(alone: Request, folder: Path) -> None:
        execute(alone, progress=progress, resume_in=folder)

    try:
        found = references.of(request, recorder.recipe, recorder.stream, one)
    except BaseException as stop:
        stop.run_folder = recorder.folder
        raise
    recorder.started = time.perf_counter()  # they are no cost of this run
    return found


def _run_recorded(
    loop: Loop, recorder: Recorder, folder: Path, progress: bool, resuming: bool
) -> Result:
    recipe = recorder.recipe
    if progress:
        recorder.display = Display(header(recipe), len(loop.stream), _planned(loop))
    if resuming and loop.restarts is not None:
        recorder.say(f"starts over: {loop.restarts}", warn=True)
    if resuming and not (loop.restarts is None and recorder.keeper.restore(loop)):
        clear(folder)
    recorder.board = Board(folder, hparams(recipe), recorder.drawn)
    if progress:
        recorder.display.begin(loop)
    loop.observer = recorder
    recorder.log.info(
        "%s %s seed %d on %s", recipe.stream, recipe.strategy, recipe.seed, recipe.device
    )
    status = None
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            with stopping.patience() if loop.restarts is None else nullcontext():
                loop.run()
    except Exception as error:
        status = "failed"
        recorder.log.exception("the run failed")
        if not isinstance(error, ClError):  # a plug-in's own, or a bug of ours
            raise RunError(f"{type(error).__name__}: {error} in {place(error)}") from error
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
