"""Probes: one measurement per file. A probe reads a model, returns numbers, writes nothing.

Two forms, both with a docstring that says Source, Maths, Unit, Range:

    @register
    def weight_norm(model, experience) -> dict[str, float]: ...

looks at the model after an experience, with some of its training rows as `experience.train`.

    @register
    class Drift:
        def __init__(self): ...                       # state, as a strategy's: checkpointed
        def before_training_exp(self, loop): ...      # any training hooks; they may only read
        def after_training_epoch(self, loop): ...
        def measure(self, loop) -> dict[str, float]: ...

has a history: `loop.attach(name)` makes one instance per run, whose hooks fire after those of the
strategies, in evaluation mode, without gradients, with random state put back. It may have
`measure` alone, if it needs the stream or samples of answers (`_looks.py`: which rows, and draws
that nothing else notices). A strategy may read it, too: `loop.attach(name)` in `before_training`,
`loop.measure(name)` later.

`domains = ("vision", "rl")`, an attribute of either form, are those that it is made for; a class
may have `check(loop)`, which refuses (BadValue) what it can't measure. Both before training.

A probe may also have `figure(values) -> matplotlib Figure` (an attribute of the function, a static
method of the class): TensorBoard then shows it as the image `probe/NAME`, and of the values only
those without a slash in their name as scalars.
"""

from __future__ import annotations

from collections.abc import Callable

from cl.checkpoint import pack
from cl.errors import ContractError, unknown
from cl.seeding import frozen
from cl.strategy import TRAINING_HOOKS


def hooks_of(probe: object) -> dict[str, Callable]:
    """{hook: the probe's method, which can only read}. Raises ContractError."""
    kind = type(probe).__name__
    if not callable(getattr(probe, "measure", None)):
        raise ContractError(f"probe {kind} is a class without measure(loop)")
    for name, value in vars(probe).items():  # refuses what a checkpoint can't hold
        pack(value, {}, f"{kind}.{name}")
    names = [name for name in dir(probe) if name.startswith(("before_", "after_"))]
    for name in names:
        if name not in TRAINING_HOOKS:
            raise ContractError(str(unknown(f"hook of probe {kind}:", name, TRAINING_HOOKS)))
    return {name: _reading(getattr(probe, name)) for name in names}


def _reading(hook: Callable) -> Callable:
    def fire(loop) -> None:
        with frozen(loop.model):
            hook(loop)

    return fire
