"""gsm8k: grade-school maths in words, answers checked by their number.

Shifts    none: one experience (Cobbe et al. 2021, arXiv:2110.14168)
Source    stream.path: a folder with gsm8k-train.jsonl and gsm8k-test.jsonl, rows of `question` and
          `answer` that ends in `#### n`; 7,473 and 1,319 problems in the original
Verifier  1.0 where the number after `####` is right; a completion without one is a format failure
Splits    the files'; validation out of the training problems, by seed
Gives     boundaries, stream_length; jointly solvable
Parameters
    path            folder that holds the two files
    responses       solution: worked out, as in the file; number: `#### n` alone
    calculator      keep the file's <<48/2=24>> notes in solutions
    demonstrations  canonical: those responses; own or oracle: right ones of the base model, one of
                    up to 64 samples or another at every visit; a problem without any shows the
                    file's, and the log tells how many do
    n_train         at most so many training problems, drawn by seed; none: all [prompts]
    n_test          at most so many test problems, drawn by seed; none: all [prompts]
    val             share of the training problems held out for validation [1]
    max_new_tokens  longest answer of a model [tokens]
    seed            of what is drawn; follows the run's seed
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cl.config import Range
from cl.errors import DataError
from cl.registry import register
from cl.text import Item, TextStream
from cl.verifiers import FORMATS, VERIFIERS, marked_number
from streams._rows import at_most, carve, read, text_of
from streams._text import Part, text_stream

NAME = "gsm8k"


@register
def gsm8k(
    *,
    path: Path,
    responses: Literal["solution", "number"] = "solution",
    calculator: bool = False,
    demonstrations: Literal["canonical", "own", "oracle"] = "canonical",
    n_train: Annotated[int, Range(min=1)] | None = None,
    n_test: Annotated[int, Range(min=1)] | None = None,
    val: Annotated[float, Range(min=0, below=1)] = 0.02,
    max_new_tokens: Annotated[int, Range(min=1)] = 256,
    seed: int = 0,
) -> TextStream:
    """Word problems as one experience."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"stream.path: no folder {folder}")
    splits = {}
    for split in ("train", "test"):
        file = folder / f"gsm8k-{split}.jsonl"
        if not file.is_file():
            raise DataError(f"{folder} holds no {file.name}")
        splits[split] = _items(file, responses, calculator)
    train, held = carve(splits["train"], val, seed, NAME)
    train = at_most(train, n_train, seed, "train")
    part = Part(NAME, train, held, at_most(splits["test"], n_test, seed, "test"))
    return text_stream(
        NAME,
        [part],
        verifiers={NAME: VERIFIERS["marked"]},
        formats={NAME: FORMATS["marked"]},
        max_new_tokens={NAME: max_new_tokens},
        demonstrations=demonstrations,
    )


def _items(file: Path, responses: str, calculator: bool) -> list[Item]:
    rows, items = read(file), []
    questions, answers = text_of(rows, "question", file), text_of(rows, "answer", file)
    for k, question, answer in zip(rows, questions, answers, strict=True):
        if marked_number(answer) is None:
            raise DataError(f"{file}: row {k}: 'answer' holds no `#### number`")
        number = answer[answer.index("####") + 4 :].strip()
        shown = f"#### {number}" if responses == "number" else answer
        if not calculator:
            shown = re.sub(r"<<[^<>]*>>", "", shown)
        items.append(Item(question, (shown,), NAME, {"answer": number}))
    return items
