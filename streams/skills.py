"""skills: procedural text tasks with many right answers and a verifier, in turn.

Shifts    the task. `above` a number greater than n; `letter` of a word; `even` number in a range;
          `ascend` letters that go on upwards; `mix` a permutation with a given letter in front;
          `twice` letters that occur twice; `control` adds `ends`, with one right answer, where
          what is learned from demonstrations and from rewards is the same
Held out  base skills that the embedded model was pretrained on, scored and never trained on:
          copy reverse sort add count max box fact, one right answer each
Source    made by seed; no data. Prompts of up to 32 characters, answers of up to 16, 58 symbols
Demonstrations  canonical  a natural teacher: one fixed choice in the plain style
                foreign    another choice in a style unlike the base model's, the hard end
                own        right answers sampled from the base model, one fixed one per prompt
                oracle     right answers as the base model would give them, drawn anew
          the last two are made when a run begins, up to 64 samples per prompt. Where none is
          right own takes the likeliest of 16 renderings (right answers in all accepted styles),
          oracle draws among them as the base does; the log tells how many
Verifier  1.0 for every right answer in every style that the task allows, else 0.0; what does not
          look like an answer is a format failure. chance: random answers of the right form
Splits    a quarter of all prompts, by hash and whatever the seed, are for validation and test: the
          embedded model has not seen them either, `fact` apart, which is remembered from there
Gives     boundaries, stream_length; jointly solvable
Parameters
    tasks           what is learned, of above, letter, even, ascend, mix, twice; or base skills,
                    which have one right answer each and are then not held out
    order           fixed (as given, the control last) or seeded
    control         add the task with one right answer
    skills          base skills to score, of copy, reverse, sort, add, count, max, box, fact
    demonstrations  canonical, foreign, own or oracle: see above
    n_train         training prompts per task [prompts]
    n_val           validation prompts per task and skill; 0 for none [prompts]
    n_test          test prompts per task and skill [prompts]
    seed            of prompts and of a seeded order; follows the run's seed
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from cl.config import Range
from cl.errors import BadValue
from cl.registry import register
from cl.text import Item, TextStream
from streams._skills import MAX_ANSWER, Given, Task, Verify, chance, draw, stream_of
from streams._skills_corpus import corpus  # noqa: F401  what `cl pretrain` asks this file for
from streams._skills_single import CONTROL, SKILLS
from streams._skills_tasks import TASKS
from streams._text import Part, text_stream


@register
def skills(
    *,
    tasks: list[
        Literal["above", "letter", "even", "ascend", "mix", "twice"]
        | Literal["copy", "reverse", "sort", "add", "count", "max", "box", "fact"]
    ] = (
        "above",
        "letter",
        "even",
        "ascend",
    ),
    order: Literal["fixed", "seeded"] = "fixed",
    control: bool = False,
    skills: list[Literal["copy", "reverse", "sort", "add", "count", "max", "box", "fact"]] = (
        "copy",
        "reverse",
        "sort",
        "add",
        "count",
        "max",
        "box",
        "fact",
    ),
    demonstrations: Literal["canonical", "foreign", "own", "oracle"] = "canonical",
    n_train: Annotated[int, Range(min=1)] = 512,
    n_val: Annotated[int, Range(min=0)] = 48,
    n_test: Annotated[int, Range(min=1)] = 128,
    seed: int = 0,
) -> TextStream:
    """Procedural tasks in turn, base skills beside them."""
    chosen = [*tasks, *[CONTROL.name] * control]
    for key, names in (("tasks", chosen), ("skills", list(skills))):
        if len(set(names)) < len(names):
            raise BadValue(f"stream.{key} must hold each name once, got {','.join(names)}")
    if not chosen:
        raise BadValue(f"stream.tasks is empty; allowed: {', '.join(TASKS)}")
    if order == "seeded":
        stream_of(seed, "order").shuffle(chosen)
    skills = [name for name in skills if name not in tasks]
    known = TASKS | SKILLS | {CONTROL.name: CONTROL}
    used = [known[name] for name in (*chosen, *skills)]
    sizes = {"stream.n_train": n_train, "stream.n_val": n_val, "stream.n_test": n_test}
    parts = [_part(known[name], sizes, demonstrations, seed) for name in chosen]
    sizes = sizes | {"stream.n_train": 0}
    held_out = [_part(known[name], sizes, "canonical", seed) for name in skills]

    def renderings(index: int, k: int, rng: Random) -> list[str]:
        item = stream.items[index]
        return known[item.task].renderings(item.meta, k, rng)

    stream = text_stream(
        "skills",
        parts,
        held_out,
        verifiers={t.name: Verify(t) for t in used},
        formats={t.name: t.well_formed for t in used},
        begins={t.name: t.begins for t in used},
        renderings=renderings,
        max_new_tokens={t.name: MAX_ANSWER + 1 for t in used},  # and what ends an answer
        demonstrations=demonstrations,
        defaults={"model": "tiny", "train.updates": 100, "train.epochs": 100},
    )
    return stream


def _part(task: Task, sizes: dict[str, int], demonstrations: str, seed: int) -> Part:
    """One task's items; the test prompts are the same however many others there are."""
    n_train, n_val, n_test = sizes.values()
    rng = stream_of(seed, f"{task.name}/test")
    kept = draw(task, n_test + n_val, kept=True, rng=rng, key="stream.n_test + stream.n_val")
    rng = stream_of(seed, f"{task.name}/train")
    train = draw(task, n_train, kept=False, rng=rng, key="stream.n_train")

    def items(asked: list[Given], style: str) -> list[Item]:
        answer = task.foreign if style == "foreign" else task.canonical
        return [Item(task.prompt(given), (answer(given),), task.name, given) for given in asked]

    val, test = kept[n_test:], kept[:n_test]
    return Part(
        task.name,
        items(train, demonstrations),
        items(val, demonstrations),
        items(test, demonstrations),
        chance(task, test),
    )
