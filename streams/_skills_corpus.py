"""What the embedded model is pretrained on: base skills, and a little of the stream's tasks.

The skills come with their one answer. The tasks come with answers in many styles, few of them
plain and not all of them right, so that the model has seen them, seldom answers as the stream
asks, and finds a right answer among eight samples for some prompts. A model that repeats these
shares is right PLAIN * (RIGHT + (1 - RIGHT) * chance) of the time, 0.04 to 0.05: pass@8 is then
0.29 to 0.35, and 0.1 at a third of that. No prompt that a stream tests or validates on is among
them, facts apart.
"""

from __future__ import annotations

from random import Random

from cl.text import Item
from streams._skills import Task, held, stream_of
from streams._skills_single import CONTROL, SKILLS
from streams._skills_tasks import TASKS

SPRINKLE, PLAIN, RIGHT = 0.15, 0.06, 0.7
# harder skills come more often
WEIGHTS = {
    "copy": 2,
    "reverse": 3,
    "sort": 3,
    "add": 5,
    "count": 3,
    "max": 3,
    "box": 4,
    "fact": 4,
}
STYLES = (
    "it is: {}",
    "= {}",
    "{}.",
    "({})",
    "maybe {}?",
    "<{}>",
    "{}!",
    "say: {}",
    "[{}]",
    "{} - ok",
    "'{}'",
    "-> {}",
)


def corpus(
    seed: int, n: int, *, sprinkle: float = SPRINKLE, plain: float = PLAIN, right: float = RIGHT
) -> list[Item]:
    """n items in random order; their one response is what to learn, for a task not always right.

    sprinkle: share of the stream's tasks, the control among them; of those, plain: share in the
    style that the stream asks for, the rest in `STYLES`; right: share of right answers.
    """
    rng = stream_of(seed, "corpus")
    skills, weights = list(SKILLS.values()), [WEIGHTS[name] for name in SKILLS]
    tasks: list[Task] = [*TASKS.values(), CONTROL]
    items = []
    for _ in range(n):
        if rng.random() < sprinkle:
            items.append(_sprinkled(rng.choice(tasks), rng, plain, right))
        else:
            items.append(_item(rng.choices(skills, weights)[0], rng))
    return items


def _sprinkled(task: Task, rng: Random, plain: float, right: float) -> Item:
    item = _item(task, rng)
    make = task.any if rng.random() < right else task.guess
    style = "{}" if rng.random() < plain else rng.choice(STYLES)
    return Item(item.prompt, (style.format(make(item.meta, rng)),), task.name, item.meta)


def _item(task: Task, rng: Random) -> Item:
    while True:
        given = task.draw(rng)
        prompt = task.prompt(given)
        if task.recalled or not held(prompt):
            return Item(prompt, (task.canonical(given),), task.name, given)
