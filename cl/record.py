"""The recorder: keeps a run folder up to date while the loop runs.

Raw scores are the truth; metrics can be recomputed from them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cl import metrics, rl_results
from cl.config import show
from cl.document import Document, by_experience, description, reasons
from cl.errors import DataError
from cl.evaluation import Scores
from cl.folder import SCHEMA, logger, read_results, truncate_events, write
from cl.keeper import Keeper
from cl.machine import describe_device, peak_memory, versions
from cl.state import stored_bytes

if TYPE_CHECKING:
    from cl.loop import Loop
    from cl.recipe import Recipe

COLUMNS = {"R": "test", "V": "val", "R_within": "within"}  # matrix: its rows in curves.jsonl


class Recorder:
    """Observes a loop and keeps the run folder up to date.

    rows: {"R" | "V" | "R_within": [[J] per experience]}; b: [J] of the untrained model. They are
    what the lines of `curves.jsonl` say, which is where a resumed run has them from.
    """

    def __init__(self, folder: Path, recipe: Recipe, stream, board=None, display=None):
        self.folder, self.recipe, self.stream = folder, recipe, stream
        self.board, self.display = board, display
        self.stream_hash = stream.content_hash()
        self.description = description(stream)
        self.document = Document()
        self.rows: dict[str, list] = {"R": [], "V": [], "R_within": []}
        self.b: list = [None] * len(stream.evals)
        self.counts: dict[str, list] = {}  # answers that were not just wrong: [[J] per experience]
        self.undefined: dict[str, str] = {}
        self.summary: tuple[dict, dict[str, str]] | None = None  # as of the last results
        self.steps: list[tuple[int, np.ndarray, int]] = []
        self.env_steps: list[int] = []  # at each of these
        self.alone: list[dict] | None = None  # by experience, of its task trained alone
        self.R: list[np.ndarray] = []  # rows["R"] with nan
        self.probes: dict[str, list] = {name: [] for name in recipe.probes}
        self.n_lines = 0
        self.eval_seconds = self.earlier_seconds = 0.0
        self.experience_seconds: list[float] = []
        self.started = time.perf_counter()
        self.mark = 0.0  # training seconds when the last experience had been written down
        self.status = "running"
        self.last: dict | None = None  # results as they were last written
        self.drawn = -1  # updates of the last prequential point that the board has shown
        self.log = logger(folder)
        self.keeper = Keeper(self, recipe.checkpoint)
        self._curves = None

    # -- what the loop calls ----------------------------------------------------------------------

    def tick(self, loop: Loop) -> None:
        """After every update."""
        if self.display is not None:
            self.display.tick(loop)
        self.keeper.tick(loop)

    def losses(self, loop: Loop, means: dict[str, float]) -> None:
        """Mean loss terms since the last call."""
        if self.board is not None:
            self.board.losses(loop.clock.train_iterations, means)
        if self.display is not None:
            self.display.loss(means["running_loss"])

    def scores(self, loop: Loop, kind: str, scores: Scores, seconds: float) -> None:
        """After every evaluation."""
        self.eval_seconds += seconds
        line = self._line(loop, kind, scores)
        if kind == "experience":
            self.experience_seconds.append(round(self._train_seconds(loop) - self.mark, 3))
            started = time.perf_counter()
            line["probes"] = {name: loop.measure(name) for name in self.probes}
            self.eval_seconds += time.perf_counter() - started
        self._append(line)
        self._take(line)
        if kind == "experience":
            self._end_of_experience(loop)
        elif self.board is not None:
            self.board.periodic(loop, scores)
        if kind == "untrained":
            self.write_results(self.results(loop))
        if kind != "periodic":
            self.mark = self._train_seconds(loop)

    def _take(self, line: dict) -> None:
        """Into memory what a line of `curves.jsonl` says."""
        self.undefined |= line["undefined"]
        if line["kind"] == "untrained":
            self.b = line["test"]
            return
        self.steps.append((line["experience"], _nan(line["test"]), line["updates"]))
        self.env_steps.append(line["env_steps"])
        if line["kind"] != "experience":
            return
        for name, column in COLUMNS.items():
            self.rows[name].append(line[column])
        self.R.append(self.steps[-1][1])
        blank = [None] * len(line["test"])
        for name in dict.fromkeys((*self.counts, *line["counts"])):
            rows = self.counts.setdefault(name, [])
            rows += [blank] * (len(self.R) - 1 - len(rows))  # of experiences that were not scored
            rows.append(line["counts"].get(name, blank))
        for name, values in line["probes"].items():
            self.probes[name].append(values)

    def _end_of_experience(self, loop: Loop) -> None:
        index = loop.experience.index
        if index == len(self.stream) - 1:
            self.status = "finished"
        results = self.results(loop)
        if self.board is not None:
            self.board.experience(loop, results)
        # the checkpoint first: results never speak of an experience that could not be gone on from
        self.last, parts = results, list(self.document.parts(results))
        self.keeper.save(loop, then=lambda: write(self.folder / "results.json", parts))
        if self.status == "finished":
            self.keeper.finish()
        if self.display is not None:
            self.display.experience(loop, results)
        self.log.info(
            "experience %d %s: seen accuracy %s, updates %d",
            index,
            loop.experience.name,
            show(results["metrics"]["seen_accuracy"][index]),
            loop.clock.train_iterations,
        )
        if self.status != "finished":
            self.keeper.learned()

    def say(self, text: str, *, warn: bool = False) -> None:
        """Tell people, and `log.txt`."""
        (self.log.warning if warn else self.log.info)("%s", text)
        if self.display is not None:
            self.display.out.print(text, soft_wrap=True, markup=False)

    # -- files ------------------------------------------------------------------------------------

    @property
    def has_val(self) -> bool:
        """Whether the stream holds validation data."""
        return any(e.val is not None for e in self.stream.evals)

    def write_recipe(self) -> None:
        """`recipe.yaml`: every resolved key; `cl run recipe.yaml` repeats the run."""
        write(self.folder / "recipe.yaml", self.recipe.text())

    def write_results(self, results: dict) -> None:
        """`results.json`, replaced at once."""
        self.last = results
        write(self.folder / "results.json", self.document.parts(results))

    def results(self, loop: Loop) -> dict:
        """Schema 1."""
        stream, recipe = self.stream, self.recipe
        undefined = dict(self.undefined)
        summary, missing = self._metrics(loop)
        undefined |= {f"metrics.{path}": reason for path, reason in missing.items()}
        undefined |= self._absent()
        return {
            "schema": SCHEMA,
            "status": self.status,
            "request": recipe.request,  # these three at the beginning: cl/identity.py
            "sources": recipe.sources,
            "stream": recipe.stream,
            "stream_hash": self.stream_hash,
            "strategy": recipe.strategy,
            "needs": list(recipe.needs),
            "domain": stream.domain,
            "seed": recipe.seed,
            "score": stream.score,
            "gives": sorted(stream.gives),
            "jointly_solvable": stream.jointly_solvable,
            **self.description,
            "b": self.b,
            "R": self.rows["R"],
            "V": self.rows["V"] if self.has_val else None,
            "R_within": self.rows["R_within"],
            "raw": self.counts or None,
            "prequential": loop.prequential.windows if stream.online else None,
            **({"single_task": self.alone} if stream.domain == "rl" else {}),
            "metrics": summary,
            "undefined": undefined,
            "cost": self._cost(loop),
            "selection": recipe.selection,
            "expected": _compared(recipe.expect, summary) if recipe.expect else None,
            "probes": self.probes,
            "reported": by_experience(loop.reported, len(self.rows["R"])),
            "versions": versions(),
            "device": describe_device(loop.device),
            "threads": recipe.threads,
        }

    def _absent(self) -> dict[str, str]:
        """Why whole entries of the results are null."""
        stream, recipe = self.stream, self.recipe
        reasons = {
            "request": None if recipe.request else "made of Python objects",
            "sources": None if recipe.sources else "made of Python objects, or by several sources",
            "V": None if self.has_val else "stream.val=0: no validation data",
            "prequential": None if stream.online else "the stream is not online",
            "expected": None if recipe.expect else "no recipe of a published result",
            "raw": None if self.counts else f"{stream.score} is recorded as it is",
            "selection": None if recipe.selection else "no setting was chosen by a search",
        }
        if stream.domain == "rl" and self.alone is None:
            reasons["single_task"] = rl_results.NO_REFERENCES
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _metrics(self, loop: Loop) -> tuple[dict, dict[str, str]]:
        evals = self.stream.evals
        if not self.R:
            return {}, {}
        self.summary = metrics.summarise(
            np.stack(self.R),
            learned_at=[e.learned_at for e in evals],
            n=[len(e.test) for e in evals],
            chance=[e.chance for e in evals],
            b=_nan(self.b),
            steps=self.steps,
            eval_every=loop.eval.every,
            shares=self.stream.score in ("accuracy", "exact_match"),
            windows=loop.prequential.windows,
            before=self.summary,
        )
        if self.stream.domain != "rl":
            return self.summary
        at = [e.learned_at for e in evals]
        recorded = at, _nan(self.b), self.steps, self.env_steps, len(self.R)
        return rl_results.added(self.summary, recorded, self.alone)

    def _train_seconds(self, loop: Loop) -> float:
        """Since the run began, evaluation not counted."""
        total = self.earlier_seconds + time.perf_counter() - self.started
        return total - self.eval_seconds - loop.prequential.seconds

    def _cost(self, loop: Loop) -> dict:
        return {
            "train_seconds": round(self._train_seconds(loop), 3),
            "eval_seconds": round(self.eval_seconds + loop.prequential.seconds, 3),
            "experience_seconds": self.experience_seconds,
            "updates": loop.clock.train_iterations,
            "extra_updates": loop.extra_updates,
            "samples_seen": loop.samples_seen,
            "tokens_seen": loop.tokens_seen,
            "env_steps": loop.env_steps,
            "peak_memory_bytes": peak_memory(loop.device),
            "trained_parameters": sum(loop.trained.values()),
            "total_parameters": sum(p.numel() for p in loop.model.parameters()),
            "stored_bytes": stored_bytes(loop),
        }

    def _line(self, loop: Loop, kind: str, scores: Scores) -> dict:
        index = loop.experience.index if loop.experience is not None else None
        undefined: dict[str, str] = {}
        if kind == "untrained":
            undefined = reasons("b", scores.test, scores.undefined)
        elif kind == "experience":
            for name, column in COLUMNS.items():
                if name != "V" or self.has_val:
                    why = scores.within_undefined if name == "R_within" else scores.undefined
                    undefined |= reasons(f"{name}[{index}]", getattr(scores, column), why)
        return {
            "kind": kind,
            "experience": index,
            "updates": loop.clock.train_iterations,
            "samples": loop.samples_seen,
            "tokens": loop.tokens_seen,
            "env_steps": loop.env_steps,
            **{column: getattr(scores, column) for column in (*COLUMNS.values(), "counts")},
            "undefined": undefined,
        }

    def _append(self, line: dict) -> None:
        if self._curves is None:
            self._curves = open(self.folder / "curves.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._curves.write(json.dumps(line, allow_nan=False) + "\n")
        self._curves.flush()
        self.n_lines += 1

    def close(self, status: str | None = None, loop: Loop | None = None) -> None:
        """Flush everything; `status` failed or running overrides the last one written.

        The rest is as of the last experience's end: what has stopped may be in any state.
        """
        try:
            self.keeper.close()
            if status is not None and loop is not None:
                self.status = status
                results = self.results(loop) if self.last is None else self.last
                self.write_results({**results, "status": status})
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._curves is not None:
            self._curves.close()
            self._curves = None
        if self.board is not None:
            self.board.close()
        for handler in list(self.log.handlers):
            handler.close()
            self.log.removeHandler(handler)

    # -- checkpoint -------------------------------------------------------------------------------

    def state(self, loop: Loop) -> dict:
        """How far the files have come, for the checkpoint."""
        return {
            "n_lines": self.n_lines,
            "eval_seconds": self.eval_seconds + loop.prequential.seconds,
            "events": self.board.sizes() if self.board is not None else {},
            "drawn": self.board.prequential_at if self.board is not None else -1,
            "seconds": self.earlier_seconds + time.perf_counter() - self.started,
            "experience_seconds": self.experience_seconds,
            "mark": self.mark,
        }

    def load_state(self, state: dict, loop: Loop) -> None:
        """Cut the files back to where they were then. Raises DataError."""
        self.n_lines, self.drawn = state["n_lines"], state.get("drawn", -1)
        self.eval_seconds, self.earlier_seconds = state["eval_seconds"], state["seconds"]
        self.experience_seconds = state["experience_seconds"]
        self.mark = state["mark"] if loop.inside else self.earlier_seconds - self.eval_seconds
        for line in self._curves_until(self.n_lines):
            self._take(line)
        truncate_events(self.folder, state["events"])
        if loop.start == len(self.stream):  # stopped between two last files
            self.status = "finished"
            self.write_results(self.results(loop))

    def check_stream(self) -> None:
        """Raises DataError if the run was begun on other data."""
        self.last = read_results(self.folder)
        known = self.last["stream_hash"]
        if self.last.get("sources") != self.recipe.sources:
            self.recipe.sources = None  # begun by others than those that go on
        if known != self.stream_hash:
            raise DataError(
                f"{self.folder} was run on other data: stream hash {known}, now "
                f"{self.stream_hash}; resume needs the same files"
            )

    def _curves_until(self, n_lines: int) -> list[dict]:
        """The first lines of `curves.jsonl`; later ones are cut off. Raises DataError."""
        path = self.folder / "curves.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:n_lines]
            content = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}") from error
        if len(lines) < n_lines:
            raise DataError(
                f"{path} is damaged: it holds {len(lines)} evaluations, the checkpoint was made "
                f"after {n_lines}"
            )
        write(path, "".join(lines))
        return content


def _compared(expect: dict, summary: dict) -> dict:
    """A published value beside the measured one; of a curve its last point is meant."""
    measured = summary.get(expect["metric"])
    measured = measured[-1] if isinstance(measured, list) else measured
    within = measured is not None and abs(measured - expect["value"]) <= expect["tolerance"]
    return {**expect, "measured": measured, "within": within}


def _nan(values: list) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
