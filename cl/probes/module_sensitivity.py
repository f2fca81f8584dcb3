"""module_sensitivity: which modules change more between tasks than within one.

Source  Zhao et al., ICML 2023, arXiv:2304.04158 (no official code)
Maths   theta(g, t, n): parameters of module g at the end of epoch n of experience t, |g| of them
        C_epoch(g, t, n) = || theta(g, t, n) - theta(g, t, n-1) ||_1 / |g|        within a task
        C_task(g, t, n)  = || theta(g, t, n) - theta(g, t-1, n) ||_1 / |g|        across tasks
        within, across: their means over the epochs n of experience t;  S(g) = across / within
        (the ratio of means: the paper's form of it could not be verified)
Unit    within, across: of the weights; S, max_over_median: [1]; head_rank: share of modules [1]
Range   0 or more. `within/<module>`, and from the second experience on `across/<module>`,
        `S/<module>`, `max_over_median` (largest S over their median) and `head_rank` (share of
        modules with a larger S than the head's: 0 says that the head changes most)
Departs At most 10 epochs, evenly spaced, are looked at; C_epoch is not taken at an experience's
        first epoch, unless it is the only one: then n-1 is the experience's start. Of a head that
        has grown, the rows that both have are compared. Modules that did not move within have no S
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

from cl.models.selection import modules
from cl.registry import register

EPOCHS = 10  # looked at, at most
Weights = dict[str, Tensor]  # by parameter, on the CPU


@register
class ModuleSensitivity:
    """Change within and across experiences, per module.

    last: weights at the end of the epoch before, or at the experience's start; held: {epoch:
    weights} of this experience for epochs in `fresh`, else of the one before; within, across:
    {module: [mean |change|]} so far in this experience.
    """

    def __init__(self):
        self.last = {}
        self.held = {}
        self.within = {}
        self.across = {}
        self.fresh = set()

    def before_training_exp(self, loop):
        """A new experience: from here changes within it count."""
        self.held = {n: weights for n, weights in self.held.items() if n in self.fresh}
        self.last, self.fresh = copy_of(loop.model), set()
        self.within, self.across = {}, {}

    def after_training_epoch(self, loop):
        """Changes since the epoch before and since the same epoch of the experience before."""
        n, planned = loop.clock.train_exp_epochs, loop.train_epochs
        now = copy_of(loop.model)
        if n in looked_at(planned):
            if n > 0 or planned == 1:
                collect(self.within, changes(loop.model, self.last, now))
            if n in self.held:
                collect(self.across, changes(loop.model, self.held[n], now))
            self.held[n] = now
            self.fresh.add(n)
        self.last = now

    def measure(self, loop) -> dict[str, float]:
        """within, across and S of the current experience, module by module in order of depth."""
        paths = [module.path for module in modules(loop.model)]
        heads = {module.path for module in modules(loop.model) if module.category == "head"}
        within = {p: float(np.mean(self.within[p])) for p in paths if p in self.within}
        across = {p: float(np.mean(self.across[p])) for p in paths if p in self.across}
        s = {p: across[p] / within[p] for p in across if within.get(p)}
        values = {f"within/{p}": value for p, value in within.items()}
        values |= {f"across/{p}": value for p, value in across.items()}
        values |= {f"S/{p}": value for p, value in s.items()}
        return values | summary(s, heads)

    @staticmethod
    def figure(values: dict[str, float]) -> Figure:
        """Bars per module: changes on the left, S on the right."""
        return bars(values)


def looked_at(epochs: int) -> set[int]:
    """At most EPOCHS of 0 .. epochs-1, evenly spaced, the last one among them."""
    n = min(epochs, EPOCHS)
    return {round((k + 1) * epochs / n) - 1 for k in range(n)}


def copy_of(model: nn.Module) -> Weights:
    """Every parameter as it is now, on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def changes(model: nn.Module, old: Weights, new: Weights) -> dict[str, float]:
    """Mean |new - old| per module, over the elements that both have."""
    found = {}
    for module in modules(model):
        total = count = 0
        for name in module.names:
            if name in old:
                rows = slice(min(len(old[name]), len(new[name]))) if new[name].dim() else ...
                moved = (new[name][rows].double() - old[name][rows].double()).abs()
                total, count = total + moved.sum().item(), count + moved.numel()
        if count:
            found[module.path] = total / count
    return found


def collect(into: dict[str, list], values: dict[str, float]) -> None:
    """Append every value to its module's list."""
    for path, value in values.items():
        into.setdefault(path, []).append(value)


def summary(s: dict[str, float], heads: set[str]) -> dict[str, float]:
    """How S {module: value} stands out, and where the head stands in it."""
    found = {}
    values = np.array(list(s.values()))
    if len(values) and np.median(values) > 0:
        found["max_over_median"] = float(values.max() / np.median(values))
    own = [s[path] for path in heads if path in s]
    if own:
        found["head_rank"] = float((values > max(own)).mean())
    return found


def bars(values: dict[str, float]) -> Figure:
    """The picture of `values`; modules from top to bottom as in the model."""
    paths = [name.partition("/")[2] for name in values if name.startswith("within/")]
    ratios = [values.get(f"S/{path}") for path in paths]
    panels = 2 if any(ratios) else 1
    size = (4.6 * panels, 1.5 + 0.19 * max(len(paths), 5))
    figure = Figure(figsize=size, layout="constrained")
    left, *rest = np.atleast_1d(figure.subplots(1, panels, sharey=True))
    kinds = [("within", "#56B4E9"), ("across", "#0072B2")]
    kinds = [pair for pair in kinds if any(values.get(f"{pair[0]}/{path}") for path in paths)]
    thick = 0.8 / max(1, len(kinds))
    for k, (kind, colour) in enumerate(kinds):
        sizes = [(y, values.get(f"{kind}/{path}")) for y, path in enumerate(paths)]
        some = [(y + thick * (k - (len(kinds) - 1) / 2), size) for y, size in sizes if size]
        left.barh(*zip(*some, strict=True), thick, color=colour, label=kind)
    left.set_xlabel("mean |change| of a weight")
    for axes in rest:
        some = [(y, ratio - 1) for y, ratio in enumerate(ratios) if ratio]
        axes.barh(*zip(*some, strict=True), 0.7, left=1, color="#D55E00")
        median = float(np.median([ratio for ratio in ratios if ratio]))
        axes.axvline(median, color="black", lw=0.8, ls="--", label=f"median {median:.2f}")
        axes.axvline(1, color="black", lw=0.8)
        axes.set_xlabel("S = across / within")
    _dress(left, rest, paths)
    return figure


def _dress(left, rest, paths: list[str]) -> None:
    """Log axes with plain numbers for S, module names without what all begin with, legends."""
    for axes in (left, *rest):
        if axes.patches:
            axes.set_xscale("log")
            axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    if left.patches:  # so that the shortest bar can be seen
        left.set_xlim(left=min(bar.get_width() for bar in left.patches) / 2)
    for axes in (left, *rest):
        if not axes.patches:
            continue  # nothing drawn, so the axis is not logarithmic
        low, high = axes.get_xlim()
        numbers = LogLocator(subs=(1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 4, 5, 7))
        axes.xaxis.set_major_locator(numbers)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    names = [path.removeprefix("backbone.").removeprefix("model.") for path in paths]
    left.set_yticks(range(len(paths)), names, fontsize=7)
    left.set_ylim(len(paths) - 0.4, -0.6)
