"""entropy: how undecided the model is about its own answers; a fall to 0 ends exploration.

Maths   text: mean over the tokens of answers sampled at temperature 1 of -sum_v p_v log p_v, exact
        over the vocabulary, the token that ends an answer included
        classifiers: mean over rows of the same for softmax over the classes seen so far (the
        task's, where task labels are given)
        policies: mean over observations lately met, exact; of a Gaussian policy the differential
        entropy, which may be below 0
Unit    [nats per token], or [nats] of a classifier or policy
Range   0 to the logarithm of the vocabulary or of the classes. `new`: mean over evals that the
        experience teaches, `old`: over those taught before it alone, `by/<eval>`: each; of a
        policy `new` alone
Rows    up to 64 validation prompts (512 rows) of an eval, else training ones; never test rows
"""

from __future__ import annotations

from statistics import fmean

from cl.errors import BadValue
from cl.objectives import _actions
from cl.objectives._tokens import entropy
from cl.probes import _looks as looks
from cl.registry import register


@register
class Entropy:
    """It has no state: answers are drawn anew from the same random numbers."""

    def check(self, loop) -> None:
        """Raises BadValue for action values, which are no policy."""
        if loop.objective.name == "dqn":
            raise BadValue("probe entropy needs a policy; objective=dqn learns action values")

    def measure(self, loop) -> dict[str, float]:
        """By eval, and means over new and over old ones."""
        if loop.stream.domain == "rl":
            return of_policy(loop)
        new, old = looks.taught(loop)
        values = {}
        for kind, evals in (("old", old), ("new", new)):
            found = {e.name: of_eval(loop, e) for e in evals}
            found = {name: value for name, value in found.items() if value is not None}
            values |= {f"by/{name}": value for name, value in found.items()}
            values |= {kind: fmean(found.values())} if found else {}
        return values


def of_policy(loop) -> dict[str, float]:
    """Mean entropy where the policy has lately been; nothing before it has been anywhere."""
    if loop.shown is None:
        return {}
    x = looks.spread(loop.shown, looks.ROWS).column("x")
    return {"new": _actions.entropy(loop.model(x), loop.model.log_std).mean().item()}


def of_eval(loop, e) -> float | None:
    """Mean entropy on one eval's rows, None where it has none to look at."""
    table = looks.looked_at(loop, e)
    if table is None:
        return None
    if not looks.is_text(loop):
        return entropy(looks.scored_logits(loop, loop.model, e, table)).mean().item()
    rng = looks.own_rng(loop, f"entropy/{e.name}")
    parts = looks.answered(loop, loop.model, table, 1, rng)
    return looks.joined(parts, lambda rows: looks.per_token(entropy, [loop.model], rows))[1]
