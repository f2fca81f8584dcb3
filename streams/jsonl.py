"""jsonl: your own tasks, a folder with one folder per task (the layout of TRACE).

Shifts    the task, in alphabetical order or as stream.tasks says
Source    stream.path: TASK/train.json and TASK/test.json, TASK/eval.json (or val) for validation,
          each a list of objects, or .jsonl with one object a line; a folder that holds the files
          itself is one task. A row needs a prompt and an answer
Verifier  exact    the completion is the answer
          numeric  the last number in the completion is the answer's
          marked   the number after `####` is
          path/to/file.py:function  f(prompts, completions, **columns) -> list[float | None], as in
                   TRL; columns are `answer` and every other field that all rows of a task have
Splits    without eval.json validation is drawn out of the training rows by seed
Gives     boundaries, stream_length; jointly solvable
Parameters
    path            folder of task folders
    tasks           tasks to learn, in order, by folder name; none: all in alphabetical order
    held_out        tasks that are scored and never trained on, by folder name
    verifier        exact, numeric, marked, or path/to/file.py:function
    prompt          name of the field that holds the prompt
    answer          name of the field that holds the answer
    demonstrations  canonical: the answers of the file; own or oracle: right ones of the base
                    model, one of up to 64 samples or another at every visit; a prompt without any
                    shows the file's, and the log tells how many do
    n_train         at most so many training rows per task, drawn by seed [rows]
    n_test          at most so many test rows per task, drawn by seed [rows]
    val             share of the training rows for validation where there is no eval.json [1]
    max_new_tokens  longest answer of a model [tokens]
    seed            of what is drawn; follows the run's seed
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cl.config import Range
from cl.errors import BadValue, DataError, unknown
from cl.registry import register
from cl.text import Item, TextStream, Verifier
from cl.verifiers import FORMATS, VERIFIERS, last_number, user_verifier
from streams._rows import at_most, carve, read, text_of
from streams._text import Part, text_stream

NAMES = {"train": ("train",), "val": ("eval", "val"), "test": ("test",)}
RESERVED = ("prompts", "completions", "answer")


@register
def jsonl(
    *,
    path: Path,
    tasks: list[str] = (),
    held_out: list[str] = (),
    verifier: Literal["exact", "numeric", "marked"] | Path = "exact",
    prompt: str = "prompt",
    answer: str = "answer",
    demonstrations: Literal["canonical", "own", "oracle"] = "canonical",
    n_train: Annotated[int, Range(min=1)] | None = None,
    n_test: Annotated[int, Range(min=1)] | None = None,
    val: Annotated[float, Range(min=0, below=1)] = 0.1,
    max_new_tokens: Annotated[int, Range(min=1)] = 128,
    seed: int = 0,
) -> TextStream:
    """Tasks from files of prompts and answers."""
    verifier = str(verifier)
    verify = VERIFIERS.get(verifier) or user_verifier(verifier)
    folders = _folders(Path(path))
    learned = list(tasks) or [name for name in folders if name not in held_out]
    for key, names in (("tasks", learned), ("held_out", held_out)):
        for name in names:
            if name not in folders:
                raise unknown(f"task in stream.{key}:", name, folders)
    twice = [n for n in (*learned, *held_out) if [*learned, *held_out].count(n) > 1]
    if twice or not learned:
        given = f"names {twice[0]!r} twice" if twice else "leave no task to learn"
        raise BadValue(f"stream.tasks and stream.held_out {given}")

    def part(name: str, teaches: bool) -> Part:
        files = _files(folders[name], NAMES if teaches else {"test": ("test",)})
        splits = {k: _items(file, name, prompt, answer, verifier) for k, file in files.items()}
        _common_columns(splits)
        train, held = splits.get("train", []), splits.get("val", [])
        if teaches and "val" not in splits:
            train, held = carve(train, val, seed, name)
        train = at_most(train, n_train, seed, f"train/{name}")
        return Part(name, train, held, at_most(splits["test"], n_test, seed, f"test/{name}"))

    taught, beside = [part(n, True) for n in learned], [part(n, False) for n in held_out]
    names = [*learned, *held_out]
    stream = text_stream(
        "jsonl",
        taught,
        beside,
        verifiers=dict.fromkeys(names, verify),
        formats=dict.fromkeys(names, FORMATS[verifier]) if verifier in FORMATS else {},
        max_new_tokens=dict.fromkeys(names, max_new_tokens),
        demonstrations=demonstrations,
    )
    if verifier not in VERIFIERS:
        _try(verify, verifier, [p.test[0] for p in (*taught, *beside)])
    return stream


def _folders(path: Path) -> dict[str, Path]:
    """{task: folder}, in alphabetical order."""
    if not path.is_dir():
        raise DataError(f"stream.path: no folder {path}")
    if any((path / f"train{suffix}").is_file() for suffix in (".json", ".jsonl")):
        return {path.resolve().name: path}
    inner = sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] not in "._")
    if not inner:
        raise DataError(f"{path} holds no task; expected TASK/train.json and TASK/test.json")
    return {p.name: p for p in inner}


def _files(folder: Path, wanted: dict[str, tuple[str, ...]]) -> dict[str, Path]:
    """{split: file}; validation may be missing."""
    files = {}
    for split, names in wanted.items():
        found = [folder / f"{n}{s}" for n in names for s in (".json", ".jsonl")]
        found = [file for file in found if file.is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} holds {found[0].name} and {found[1].name}; keep one")
        if not found and split != "val":
            raise DataError(f"task folder {folder} holds no {names[0]}.json or {names[0]}.jsonl")
        if found:
            files[split] = found[0]
    return files


def _items(file: Path, task: str, prompt: str, answer: str, verifier: str) -> list[Item]:
    rows = read(file)
    prompts, answers = text_of(rows, prompt, file), text_of(rows, answer, file)
    if verifier in ("numeric", "marked"):
        for k, text in zip(rows, answers, strict=True):
            if last_number(text) is None:
                raise DataError(f"{file}: row {k}: {answer!r} holds no number: {text[:40]!r}")
    drop = (*RESERVED, prompt, answer)
    extra = [{k: v for k, v in row.items() if k not in drop} for row in rows.values()]
    columns = zip(prompts, answers, extra, strict=True)
    return [Item(p, (a,), task, {"answer": a} | more) for p, a, more in columns]


def _common_columns(splits: dict[str, list[Item]]) -> None:
    """Leave to every item the columns that all items of its task have."""
    items = [item for part in splits.values() for item in part]
    common = set.intersection(*(set(item.meta) for item in items))
    for item in items:
        for name in set(item.meta) - common:
            del item.meta[name]


def _try(verify: Verifier, name: str, items: list[Item]) -> None:
    """Raises BadValue where a user's verifier can't score even the answer of a file."""
    for item in items:
        columns = {key: [value] for key, value in item.meta.items()}
        try:
            verify([item.prompt], [item.responses[0]], **columns)
        except Exception as error:  # a user's code
            raise BadValue(
                f"stream.verifier: {name} raises on an answer of task {item.task!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
