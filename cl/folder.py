"""The run folder: its name, its files, written at once or not at all.

`<out>/<stream>/<strategy>[,changed=value...]/seed<k>/` with `recipe.yaml`, `results.json`
(schema 1), `curves.jsonl`, TensorBoard events, `checkpoint/`, `log.txt`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cl.config import show
from cl.errors import DataError
from cl.schema import SCHEMA as SCHEMA
from cl.schema import checked

if TYPE_CHECKING:
    from cl.recipe import Recipe

SLUG_LENGTH = 120
MOST_BYTES = 2**27  # of a results.json: 1,000 experiences with 1,000 evals have half of it


def run_folder(recipe: Recipe) -> Path:
    """Where a recipe's run is written."""
    parts = [f"{key}={_short(value)}" for key, value in recipe.changed.items()]
    name = ",".join([recipe.strategy_slug, *parts])
    return stream_folder(Path(recipe.out), recipe.stream_slug) / slug(name) / f"seed{recipe.seed}"


def stream_folder(out: Path, stream_slug: str) -> Path:
    """Where the runs over a stream are written."""
    return out / slug(stream_slug)


def prepare(folder: Path, out: Path) -> None:
    """Make an empty `folder`; what stood there moves to `<out>/.old/`. Raises DataError."""
    try:
        if folder.exists():
            with locked(folder):
                pass  # nobody is writing there
            stamp = time.strftime("%Y%m%d-%H%M%S")
            old = out / ".old" / folder.relative_to(out).parent / f"{folder.name}-{stamp}"
            while old.exists():
                old = old.with_name(old.name + "+")
            old.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, old)
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"can't write to {folder}: {error.strerror}; choose another out="
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for one writer. Raises DataError if another process holds it."""
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another run is writing to {folder}; wait or choose out=") from error
        yield


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Hold a run folder, which need not exist, after whoever holds it so now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear(folder: Path) -> None:
    """Empty a run folder whose run has to start over; recipe and log stay."""
    for path in folder.iterdir():
        if path.name in ("recipe.yaml", ".lock", "log.txt"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_results(folder: Path) -> dict:
    """`results.json` of a run folder, as `cl/schema.py` describes it. Raises DataError."""
    path = folder / "results.json"
    try:
        if not path.is_file():
            raise DataError(f"{folder} is no run folder: it holds no results.json")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is too large to be results: {path.stat().st_size:,} bytes")
        results = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        raise DataError(f"{path} is damaged: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return checked(results, str(path))


def comparable(results: dict) -> dict:
    """Results without what may differ between two runs of one recipe: times, memory, machine.

    Nor does it matter by which keys the recipe was asked for, and from which sources it ran.
    """
    other = ("versions", "device", "request", "sources")
    kept = {k: v for k, v in results.items() if k not in other}
    volatile = ("train_seconds", "eval_seconds", "experience_seconds", "peak_memory_bytes")
    kept["cost"] = {k: v for k, v in results["cost"].items() if k not in volatile}
    return kept


def label(name: str) -> str:
    """A stream's or strategy's name for people: without the path of a file of the user's own."""
    return "+".join(part.rpartition(":")[2] for part in name.split("+"))


def title(results: dict) -> str:
    """`stream · strategy · seed k`."""
    parts = label(results["stream"]), label(results["strategy"]), f"seed {results['seed']}"
    return " · ".join(parts)


def truncate_events(folder: Path, sizes: dict[str, int]) -> None:
    """Cut TensorBoard files back to their sizes at a checkpoint; newer files go."""
    for path in folder.glob("events.out.tfevents*"):
        if path.name in sizes:
            os.truncate(path, sizes[path.name])
        else:
            path.unlink()


def write(path: Path, text: str | Iterable[str]) -> None:
    """Replace a file's content (a text or its parts) at once: aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", 2**18, encoding="utf-8") as file:  # results.json grows to megabytes
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def logger(folder: Path) -> logging.Logger:
    """A logger of its own that writes `log.txt`."""
    log = logging.Logger(f"cl.{folder}")
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    return log


def _short(value: object) -> str:
    """A value in a folder name; a path is its last part and 8 characters of its hash."""
    text = show(value)
    if "/" in text:
        return f"{Path(text).name}-{_hash(text)}"
    if isinstance(value, str) and set(text) & set(",="):
        return f"{text}-{_hash(text)}"
    return text


def slug(text: str) -> str:
    """A text as a part of a path; shortened or changed ones end in 8 characters of its hash."""
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", text)
    if safe != text or len(safe) > SLUG_LENGTH:
        return f"{safe[:SLUG_LENGTH]}-{_hash(text)}"
    return safe


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
