"""What results.json has of a run in environments beside the rest: the metrics of `rl_metrics`.

Windows  one per finished experience; evaluations after an experience's start and up to its end
Steps    environment steps; where a run makes none, as by cloning, its updates
Tasks    the evals that some experience teaches; each experience must teach one
Final    the mean of the last evaluations needs `eval.every`, else it is the one at the end
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cl import rl_metrics
from cl.errors import BadValue
from cl.folder import read_results
from cl.metrics import LearnedAt
from cl.rl_metrics import LAST_CW, Course

Moment = tuple[int, Sequence[float], int]  # experience, scores [J], updates
NO_REFERENCES = "eval.references is not set"


def course(
    learned_at: LearnedAt,
    b: Sequence[float],
    moments: Sequence[Moment],
    env_steps: Sequence[int],
    n_experiences: int,
) -> Course:
    """The evaluations of the first n experiences, that of the untrained model (b [J]) before them.

    env_steps: at each moment. Raises BadValue where there is no course to speak of.
    """
    taught = [j for j, at in enumerate(learned_at) if len(at)]
    order = []
    for i in range(n_experiences):
        own = [k for k, j in enumerate(taught) if i in learned_at[j]]
        if len(own) != 1:
            raise BadValue(f"experience {i} teaches {len(own)} tasks, not one")
        order.append(own[0])
    along = list(env_steps) if any(env_steps) else [updates for *_, updates in moments]
    e = np.array([experience for experience, *_ in moments], dtype=int)
    kept = np.flatnonzero(e < n_experiences)
    steps = np.array(along, dtype=float)[kept]
    ends = [steps[e[kept] == i].max() for i in range(n_experiences)]
    for i, length in enumerate(np.diff(ends, prepend=0.0)):
        if length <= 0:
            raise BadValue(f"experience {i} makes no step of training")
    rows = np.array([b, *(moments[k][1] for k in kept)], dtype=float)
    return Course([0, *steps], rows[:, taught], ends, order)


def summarise(c: Course | str, alone: Sequence[dict] | None) -> tuple[dict, dict[str, str]]:
    """(metrics, why some of them are None); c: a course, or why there is none.

    alone: by experience what `single_task` says of the run of its task alone, None without those.
    """
    if isinstance(c, str):
        names = [*_summary(Course([1], [[0.0]], [1]), None)[0]]
        return dict.fromkeys(names), dict.fromkeys(names, c)
    return _summary(c, None if alone is None else [a["area"] for a in alone[: len(c.ends)]])


def _summary(c: Course, areas: Sequence[float | None] | None) -> tuple[dict, dict[str, str]]:
    found, missing = rl_metrics.summarise(c, areas)
    found["fwt_cw"] = found["cw_forward_transfer"]
    if "cw_forward_transfer" in missing:
        missing["fwt_cw"] = missing["cw_forward_transfer"]
    return found, missing


def added(
    summary: tuple[dict, dict[str, str]], recorded: tuple, alone: Sequence[dict] | None
) -> tuple[dict, dict[str, str]]:
    """The metrics of any run and their reasons with those of a run in environments.

    recorded: arguments of `course`.
    """
    try:
        found, missing = summarise(course(*recorded), alone)
    except BadValue as error:
        found, missing = summarise(str(error), alone)
        found["cw_average_performance"] = final = _at_end(*recorded)
        if final is not None:
            del missing["cw_average_performance"]
    reasons = {name: why for name, why in summary[1].items() if name != "fwt_cw"}
    return summary[0] | found, reasons | missing


def _at_end(learned_at, b, moments, env_steps, n_experiences: int) -> float | None:
    """CW's average performance where earlier experiences train nothing, as under joint training:
    it needs the last window alone."""
    last = n_experiences - 1
    taught = [j for j, at in enumerate(learned_at) if any(i <= last for i in at)]
    own = [k for k, (experience, *_) in enumerate(moments) if experience == last]
    rows = np.array([moments[k][1] for k in own], dtype=float)[:, taught]
    c = Course(range(1, len(own) + 1), rows, [len(own)])
    finals = [c.end_of(0, k, LAST_CW) for k in range(len(taught))]
    return None if None in finals else float(np.mean(finals))


def single_task(folder: Path) -> dict:
    """What the finished run of one task alone says: area and final value of its only window."""
    results = read_results(folder)
    lines = (folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [line for line in map(json.loads, lines) if line["kind"] != "untrained"]
    moments = [(line["experience"], _numbers(line["test"]), line["updates"]) for line in lines]
    env_steps = [line["env_steps"] for line in lines]
    at = [e["learned_at"] for e in results["evals"]]
    c = course(at, _numbers(results["b"]), moments, env_steps, len(results["R"]))
    return {
        "task": results["evals"][0]["name"].partition("_")[2],
        "area": c.auc(0),
        "final": c.end_of(0, 0, LAST_CW),
        "run": folder.name,
    }


def _numbers(row: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in row]
