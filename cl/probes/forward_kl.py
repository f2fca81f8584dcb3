"""forward_kl: how far answers have moved from those of the model that the stream began with.

Source  RL's Razor, Shenfeld et al. 2025, arXiv:2509.04259: KL(pi_0 || pi) on the new task's inputs
        predicts what is forgotten; RL Forgets!, arXiv:2607.04364: the drift on old inputs does
Maths   pi_0: the model before the first update.  KL = E_x KL(pi_0(.|x) || pi(.|x))
        text: E_y~pi_0 sum_t sum_v pi_0(v|x,y<t) log pi_0(v|x,y<t) / pi(v|x,y<t), exact over the
        vocabulary, answers y sampled once at temperature 1;  reverse: pi and pi_0 exchanged, on
        answers of pi drawn after every experience
        classifiers: exact over the classes that both have, each renormalised to them
        policies: exact, on observations lately met; of old tasks on those of its experience's end
Unit    [nats per answer]; `*_per_token` [nats per token]
Range   0 or more; 0 before training. `new`: evals that the experience teaches, `old`: those taught
        before it alone, `by/<eval>`: each; `reverse_new`
Rows    up to 64 validation prompts of an eval, else training prompts; classifiers: up to 512
        training rows; never test rows
        policies: up to 512 observations
Departs Old inputs and the reverse direction besides. A snapshot of pi_0 is kept by the probe and
        not counted as stored by the strategy
"""

from __future__ import annotations

from functools import partial
from statistics import fmean

from matplotlib.figure import Figure
from torch import Tensor, nn

from cl.errors import BadValue
from cl.objectives._actions import distance
from cl.objectives._tokens import full_kl
from cl.probes import _looks as looks
from cl.registry import register
from cl.sampling import Rollout


@register
class ForwardKL:
    """start: the model that the stream began with; drawn: {eval: its answers} (text); met: {eval:
    observations} (policies)."""

    def __init__(self):
        self.start = None
        self.drawn = {}
        self.met = {}

    def check(self, loop) -> None:
        """Raises BadValue for action values, which are no policy."""
        if loop.objective.name == "dqn":
            raise BadValue("probe forward_kl needs a policy; objective=dqn learns action values")

    def before_training_exp(self, loop):
        """Before the first update: keep the model."""
        if self.start is None:
            self.start = loop.snapshot()

    def measure(self, loop) -> dict[str, float]:
        """By eval, and means over new and over old ones."""
        new, old = looks.taught(loop)
        text, values = looks.is_text(loop), {}
        if loop.stream.domain == "rl":
            return self._of_policy(loop, new, old)
        for kind, evals in (("old", old), ("new", new)):
            found = []
            for e in evals:
                table = looks.looked_at(loop, e, training=not text)
                if table is not None:
                    distances = (self._of_text if text else self._of_classes)(loop, e, table, kind)
                    values[f"by/{e.name}"] = distances[kind]
                    found.append(distances)
            values |= {name: fmean(d[name] for d in found) for name in (found or [{}])[0]}
        return values

    def _of_text(self, loop, e, table, kind: str) -> dict[str, float]:
        if e.name not in self.drawn:
            rng = looks.own_rng(loop, f"forward_kl/{e.name}")
            parts = looks.answered(loop, self.start, table, 1, rng)
            self.drawn[e.name] = [[items, vars(rollout)] for items, rollout in parts]
        parts = [(items, Rollout(**fields)) for items, fields in self.drawn[e.name]]
        base, now = self.start, loop.model
        per_token = partial(looks.per_token, full_kl)
        answer, token = looks.joined(parts, partial(per_token, (base, now)))
        found = {kind: answer, f"{kind}_per_token": token}
        if kind == "new":
            rng = looks.own_rng(loop, f"forward_kl/{e.name}/{loop.experience.index}")
            parts = looks.answered(loop, now, table, 1, rng)
            answer, token = looks.joined(parts, partial(per_token, (now, base)))
            found |= {"reverse_new": answer, "reverse_new_per_token": token}
        return found

    def _of_policy(self, loop, new, old) -> dict[str, float]:
        if loop.shown is not None:
            x = looks.spread(loop.shown, looks.ROWS).column("x")
            self.met |= {e.name: x for e in new}
        values = {}
        for kind, evals in (("old", old), ("new", new)):
            kept = {e.name: self.met[e.name] for e in evals if e.name in self.met}
            if not kept:
                continue
            found = {name: drift(self.start, loop.model, x) for name, x in kept.items()}
            values |= {f"by/{name}": value for name, value in found.items()}
            values[kind] = fmean(found.values())
            if kind == "new":
                back = fmean(drift(loop.model, self.start, x) for x in kept.values())
                values["reverse_new"] = back
        return values

    def _of_classes(self, loop, e, table, kind: str) -> dict[str, float]:
        base, now = (looks.class_logits(loop, m, table) for m in (self.start, loop.model))
        width = min(base.shape[1], now.shape[1])
        base, now = base[:, :width], now[:, :width]
        found = {kind: mean_kl(base, now)}
        return found | ({"reverse_new": mean_kl(now, base)} if kind == "new" else {})

    @staticmethod
    def figure(values: dict[str, float]) -> Figure:
        """A bar per eval, in order of learning."""
        return bars({k[3:]: v for k, v in values.items() if k.startswith("by/")})


def drift(base: nn.Module, now: nn.Module, x: Tensor) -> float:
    """Mean over observations of KL(base || now), both policies."""
    return distance(base(x), now(x), base.log_std, now.log_std).mean().item()


def mean_kl(logits: Tensor, other: Tensor) -> float:
    """Mean over rows of KL(softmax(logits) || softmax(other)), both [N, C]."""
    return full_kl(logits, other).mean().item()


def bars(kl: dict[str, float]) -> Figure:
    """KL of each eval, the newest at the bottom."""
    figure = Figure(figsize=(5.2, 1.1 + 0.28 * max(2, len(kl))), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(kl)), list(kl.values()), 0.7, color="#0072B2")
    for y, value in enumerate(kl.values()):
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{value:.3g}", (value, y), **place)
    axes.set_yticks(range(len(kl)), [name[:24] for name in kl], fontsize=8)
    axes.set_ylim(max(2, len(kl)) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max([*kl.values(), 1e-9]))
    axes.set_xlabel("KL from the first model [nats per answer]")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    return figure
