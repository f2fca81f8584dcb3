"""avalanche: Avalanche's plug-ins and benchmarks in our loop, our strategies in its templates.

    cl run split_digits avalanche:EWCPlugin strategy.ewc_lambda=100
    cl run avalanche:SplitMNIST avalanche:ReplayPlugin stream.n_experiences=5 strategy.mem_size=500

In Python: `cl.run(stream, Plugin(EWCPlugin(...)))`, `cl.run(stream(benchmark), "ewc")`, and
`Naive(..., plugins=[plugin(EWC(lam=50))])`. avalanche-lib is imported when one of these is called.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

from cl.errors import BadValue
from cl.strategy import HOOKS, Strategy

if TYPE_CHECKING:
    from cl.stream import Stream

PER_EXPERIENCE = ("before_training", "after_training")  # the loop fires them itself
STORES = ("mem_size", "patterns_per_experience")  # parameters of plug-ins that store items


class AvalancheStrategy(Strategy):
    """One of Avalanche's plug-ins as a strategy; `Plugin` makes the subclass that fits it.

    The plug-in lies in a slot, outside the state that a checkpoint holds: such a run starts over.
    """

    __slots__ = ("held_optimizer", "plugin")
    domains = ("vision",)

    def stored_bytes(self, loop) -> int:
        """Bytes of the tensors, models and data rows that the plug-in holds."""
        return held_bytes(self.plugin)


def strategy(name: str, /, **settings) -> Strategy:
    """The plug-in `name` of avalanche.training.plugins with its constructor's settings."""
    from avalanche.training import plugins

    made = getattr(plugins, name, None)
    if made is None:  # defined in a module there, but not exported
        made = _defined(plugins, name)
    try:
        return Plugin(made(**settings))
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "its constructor refuses these settings"
        raise BadValue(f"avalanche:{name}: {reason}") from error


def Plugin(plugin, *, optimizer=None) -> Strategy:
    """A plug-in of Avalanche, ready made, as a strategy for `cl.run`.

    optimizer: what a plug-in made for one (as a scheduler is) needs the run to train with.
    """
    from cl.avalanche_loop import AvalancheLoop

    kind = type(plugin)
    if not any(hook.startswith(("before_", "after_")) for hook in dir(kind)):
        raise BadValue(f"{kind.__name__} is no plug-in of Avalanche: it has no before_ or after_")
    if getattr(plugin, "metric", None) == "val_loss":
        raise BadValue(f"{kind.__name__}: the loss on test rows can't steer training; train_loss")
    body = {"__doc__": kind.__doc__, "__slots__": (), "loop_class": AvalancheLoop}
    body |= {name: _forward(name) for name in HOOKS if _overrides(kind, name)}
    taken = inspect.signature(kind.__init__).parameters
    stores = any(name in taken for name in STORES)
    body["needs"] = ("boundaries", "buffer") if stores else ("boundaries",)
    if optimizer is not None:
        body["optimizer"] = lambda self, loop: self.held_optimizer
    made = type(kind.__name__, (AvalancheStrategy,), body)()
    made.plugin, made.held_optimizer = plugin, optimizer
    _mend(sys.modules[kind.__module__])
    for name in taken:  # plain settings name the run folder
        value = getattr(plugin, name, None)
        if isinstance(value, bool | int | float | str):
            setattr(made, name, value)
    return made


def stream(benchmark, /, **settings) -> Stream:
    """A stream of one of Avalanche's benchmarks: its name and settings, or an object.

    See cl/avalanche_stream.py.
    """
    from cl.avalanche_stream import stream

    return stream(benchmark, **settings)


def plugin(strategy: Strategy, *, seed: int = 0):
    """One of our strategies as a plug-in for Avalanche's templates. See cl/avalanche_plugin.py."""
    from cl.avalanche_plugin import plugin

    return plugin(strategy, seed=seed)


def held_bytes(held: object) -> int:
    """Bytes of all tensors, modules and data rows reachable from `held`, each counted once."""
    import numpy as np
    import torch
    from avalanche.benchmarks.utils.data import AvalancheDataset

    seen, rows, total, queue = set(), set(), 0, [held]
    while queue:
        value = queue.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor | np.ndarray):
            total += value.nbytes
        elif isinstance(value, AvalancheDataset):
            rows |= _rows(value)
        elif isinstance(value, dict):
            queue += value.values()
        elif isinstance(value, list | tuple | set):
            queue += value
        elif not callable(value) or isinstance(value, torch.nn.Module):
            queue += vars(value).values() if hasattr(value, "__dict__") else ()
    return total + sum(nbytes for _, _, nbytes in rows)


def _rows(dataset) -> set[tuple[int, int, int]]:
    """(data set, row, bytes) of every row of a data set, of one that shares rows the same ones."""
    if not len(dataset):
        return set()
    nbytes = sum(getattr(part, "nbytes", 8) for part in dataset[0])
    source = getattr(dataset, "_flat_data", dataset)
    indices = source._indices if source._indices is not None else range(len(dataset))
    return {(id(source._datasets[0]), k, nbytes) for k in indices}


def _overrides(kind: type, name: str) -> bool:
    """Whether a plug-in does something at a hook that the loop fires for it."""
    if name in PER_EXPERIENCE or not hasattr(kind, name):
        return False
    owner = next(base for base in kind.__mro__ if name in vars(base))
    return owner.__module__ not in ("avalanche.core", "avalanche.training.templates.base_sgd")


def _mend(module) -> None:
    """BiC passes its scheduler `verbose`, which newer releases of torch no longer take."""
    scheduler = getattr(module, "MultiStepLR", None)
    if scheduler is not None and "verbose" not in inspect.signature(scheduler).parameters:
        module.MultiStepLR = lambda *args, verbose=False, **settings: scheduler(*args, **settings)


def _forward(name: str):
    def hook(self, loop):
        getattr(self.plugin, name)(loop.template)

    return hook


def _defined(package, name: str):
    modules = [m for n, m in sys.modules.items() if n.startswith(package.__name__ + ".")]
    return next(getattr(m, name) for m in modules if hasattr(m, name))
