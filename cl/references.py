"""Single-task references: each task of a stream of environments trained alone, once.

A reference is an ordinary run of `naive` with the objective, model, settings and seed of the run
that asks for it, on a stream of the one task with the same budget. It lies in
`<out>/.references/<hash>/`; the hash is over all of that and over the sources that its numbers come
from, so that runs which differ in strategy, probes or the order of tasks share it. Who needs one
that is being made waits for it; one that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cl.errors import BadValue
from cl.folder import read_results, waiting
from cl.registry import find
from cl.rl_results import single_task
from cl.sources import source_hash
from cl.start import weights_stamp

if TYPE_CHECKING:
    from cl.env_stream import EnvStream
    from cl.recipe import Recipe
    from cl.request import Request
    from cl.stream import Stream

PLAIN = "naive"  # what learns a task alone, by the run's objective


def check(request: Request, stream: Stream) -> None:
    """Raises BadValue for runs whose tasks can't be trained alone."""
    if stream.domain != "rl":
        raise BadValue(
            f"eval.references=true is for environments; {stream.name} is of the domain "
            f"{stream.domain}"
        )
    if "model" in request.objects:
        raise BadValue("eval.references=true needs a model by name, not a Python object")
    for e in stream.experiences:
        if len(set(e.train.column("x").tolist())) != 1:
            raise BadValue(f"eval.references=true: {e.name} teaches several tasks at once")


def of(request: Request, recipe: Recipe, stream: EnvStream, execute: Callable) -> list[dict]:
    """By experience, what its task scores when it is trained alone. execute: runs a request."""
    found: dict[str, dict] = {}
    by_experience = []
    for i in range(len(stream)):
        one = alone(stream, i)
        key = digest(request, recipe, one)
        if key not in found:
            folder = Path(recipe.out) / ".references" / key
            with waiting(folder):
                if not _finished(folder):
                    folder.mkdir(exist_ok=True)
                    execute(_request(request, recipe, one), folder)
                    _leave_board(folder)
                found[key] = single_task(folder)
        by_experience.append(found[key])
    return by_experience


def alone(stream: EnvStream, i: int) -> EnvStream:
    """The stream of experience i's task alone, whatever its place in the order."""
    e = stream.experiences[i]
    ev = next(ev for ev in stream.evals if i in ev.learned_at)
    task = stream.tasks[int(e.train.column("x")[0])]
    title = f"00_{task.name}"
    experience = replace(e, index=0, name=title)
    evals = [replace(ev, name=title, learned_at=(0,))]
    return replace(stream, name=f"{stream.name} alone", experiences=[experience], evals=evals)


def digest(request: Request, recipe: Recipe, one: EnvStream) -> str:
    """Sixteen characters that change with whatever the numbers of a reference depend on."""
    e, ev = one.experiences[0], one.evals[0]
    task = one.tasks[int(e.train.column("x")[0])]
    splits = [None if t is None else t.column("y").tolist() for t in (ev.test, ev.val)]
    what = [task.name, task.described, task.random, task.reference, len(e.train), e.task_label]
    what += [splits, one.seed, one.hidden, str(one.actions), list(one.input_shape)]
    what += [recipe.model, recipe.model_settings, recipe.start, weights_stamp(recipe.start)]
    what += [recipe.objective, recipe.objective_settings, vars(recipe.train)]
    what += [recipe.eval.every, recipe.eval.batch_size, recipe.seed, recipe.device, recipe.threads]
    what += [source_hash(recipe.stream if request.stream else None, PLAIN)]
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _request(request: Request, recipe: Recipe, one: EnvStream) -> Request:
    """The same run of one task, nothing left to the stream's or a search's defaults."""
    top = {**request.top, "model": recipe.model, "objective": recipe.objective}
    given = {
        "train": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(recipe.train).items()},
        "eval": {**vars(recipe.eval), "references": False},
        "checkpoint": vars(recipe.checkpoint),
        "model": recipe.model_settings,
        "objective": recipe.objective_settings,
    }
    return replace(
        request,
        stream_name=one.name,
        stream=None,
        strategy_name=PLAIN,
        strategies=[find("strategies", PLAIN)],
        top={**top, "probes": [], "best": False},
        stream_settings={},
        strategy_settings=[{}],
        scenario={},
        given=given,
        objects={"stream": one},
        expect=None,
    )


def _finished(folder: Path) -> bool:
    begun = (folder / "results.json").is_file()
    return begun and read_results(folder)["status"] == "finished"


def _leave_board(folder: Path) -> None:
    """TensorBoard shows runs; what one is measured against would only stand between them."""
    for path in folder.glob("events.out.tfevents*"):
        path.unlink()
