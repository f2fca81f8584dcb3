"""When a run's checkpoints are made, and how it goes on from one.

At the end of every experience; inside of it, between two updates, as `checkpoint.*` says and when
the program is asked to end. What can't be put back from inside an experience (NotKept) is said
once, and the run then goes on from the end of the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from cl import checkpoint, stopping
from cl.errors import ContractError, DataError, NotKept, RunError
from cl.state import check_state, restore, restore_model, state_of

if TYPE_CHECKING:
    from pathlib import Path

    from cl.loop import Loop
    from cl.record import Recorder
    from cl.settings import Checkpoint

SHARE = 0.02  # of a run's time that checkpoints made by the clock may take


def _nothing() -> None:
    """Where nothing has to wait for a checkpoint."""


class Keeper:
    """Makes the checkpoints of a recorded run, and takes it to where the last one was made."""

    def __init__(self, recorder: Recorder, settings: Checkpoint):
        self.recorder, self.settings = recorder, settings
        self.folder = recorder.folder / "checkpoint"
        self.last, self.took = time.perf_counter(), 0.0
        self._said: set[str] = set()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    def tick(self, loop: Loop) -> None:
        """After an update: a checkpoint if one is due; ends the run if that has been asked for."""
        stop = stopping.asked()
        if stop is not None or self._due(loop):
            self._save_inside(loop)
        if stop is not None:
            raise stop

    def learned(self) -> None:
        """After an experience: ends the run if that has been asked for."""
        stop = stopping.asked()
        if stop is not None:
            raise stop

    def _due(self, loop: Loop) -> bool:
        if loop.restarts is not None:
            return False
        every, minutes = self.settings.every, self.settings.minutes
        if every is not None and loop.clock.train_iterations % every == 0:
            return True
        wait = 60 * minutes if minutes is not None else float("inf")
        return time.perf_counter() - self.last >= max(wait, self.took / SHARE)

    def _save_inside(self, loop: Loop) -> None:
        try:
            self.save(loop, inside=True)
        except (NotKept, ContractError) as reason:
            self.last = time.perf_counter()
            if str(reason) not in self._said:
                self._said.add(str(reason))
                self.recorder.say(
                    f"no checkpoint inside this experience, only at its end: {reason}", warn=True
                )

    def save(self, loop: Loop, *, inside: bool = False, then: Callable = _nothing) -> None:
        """Keep everything that is needed to go on from here. Raises NotKept, ContractError.

        Files are written while the run goes on; `then` is called when they are there.
        """
        started = time.perf_counter()
        self.finish()
        try:
            state = state_of(loop, inside=inside) | {"record": self.recorder.state(loop)}
            made = checkpoint.content(loop.model, state)
        except ContractError:
            check_state(loop.plugins)  # says whose state it is that can't be held
            raise
        name = f"{loop.clock.train_iterations:09d}-{state['next_experience']:06d}"
        self.last = time.perf_counter()
        taken = self.last - started
        self._writing = self._writer.submit(self._write, name, made, then, taken)

    def _write(self, name: str, made: checkpoint.Content, then: Callable, taken: float) -> None:
        started = time.perf_counter()
        checkpoint.save(self.folder, name, made, [self.recorder.folder / "curves.jsonl"])
        then()
        self.took = taken + time.perf_counter() - started

    def finish(self) -> None:
        """Wait for what is being written. Raises RunError if it can't be."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{self.folder}: no checkpoint can be written: {reason}") from error

    def close(self) -> None:
        """The same, for good."""
        try:
            self.finish()
        finally:
            self._writer.shutdown()

    def restore(self, loop: Loop) -> bool:
        """Put a loop where its last checkpoint was made; False where there is none.

        A damaged one is dropped if there is another one before it. Raises DataError.
        """
        checkpoint.tidy(self.folder)
        saved = checkpoint.found(self.folder)
        if not saved:
            return False
        self.recorder.check_stream()
        path, parts = self._newest(saved, loop)
        weights, document, tensors = parts
        inside = document.get("inside", False)
        restore_model(loop, weights, document["model"], int(path.name.rpartition("-")[2]) + inside)
        state = checkpoint.unpack(document["state"], tensors, loop.device, like=loop.model)
        try:
            restore(loop, state)
        except DataError as error:
            raise DataError(f"{error}; delete {path} to go on from an earlier one") from error
        self.recorder.load_state(state["record"], loop)
        n, of = loop.experience.index + 1, len(loop.stream)
        where = f"in experience {n}/{of}" if inside else f"with experience {n}/{of} learned"
        self.recorder.say(f"goes on after update {loop.clock.train_iterations}, {where}")
        return True

    def _newest(self, saved: list[Path], loop: Loop) -> tuple[Path, tuple]:
        """The last checkpoint that can be read. Raises DataError for the last one otherwise."""
        damaged = []
        for path in reversed(saved):
            try:
                parts = checkpoint.load(path, loop.device)
            except DataError as error:
                damaged.append((path, error))
                continue
            for broken, error in damaged:
                self.recorder.say(f"{error}; goes on from the one before", warn=True)
                checkpoint.drop(broken)
            return path, parts
        raise damaged[0][1]
