"""A continual-learning simulator: streams, strategies, one loop, stability-plasticity curves.

Importing `cl` is cheap: each public name is imported when it is first used, so that
`cl --help`, `cl list` and `cl describe` never wait for torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "ClError": "cl.errors",
    "Eval": "cl.stream",
    "Experience": "cl.stream",
    "Objective": "cl.objectives",
    "Range": "cl.config",
    "Result": "cl.runner",
    "Strategy": "cl.strategy",
    "Stream": "cl.stream",
    "Table": "cl.data",
    "compare": "cl.comparison",
    "load": "cl.runner",
    "register": "cl.registry",
    "run": "cl.runner",
    "sweep": "cl.sweeps",
    "tune": "cl.tuning",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name == "avalanche":
        return import_module("cl.avalanche")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
