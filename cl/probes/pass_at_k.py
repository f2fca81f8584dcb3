"""pass_at_k: how often one of k sampled answers is right, of learned tasks and of those to come.

Source  Chen et al. 2021, arXiv:2107.03374 (the estimator)
Maths   text: n = 16 answers at temperature 1 to each prompt, c of them right (reward 1):
        pass@k = mean over prompts of 1 - C(n-c, k) / C(n, k), unbiased;  k = 1, 8
        classifiers: p the probability of a right class, exact: 1 - (1 - p)^k
Unit    [1], shares of prompts: `pass_1/<eval>`, `pass_8/<eval>`, and `none_right/<eval>`, prompts
        without a right answer among 16 (classifiers: the expected share); means over evals that
        were taught, `pass_1_learned` and so on, and over those still to come, `pass_1_ahead`
Range   0 to 1. Rewards teach nothing where no answer is right: a task whose pass@k has sunk can
        not be learned from them any more; one whose pass@8 stays up while its score falls is
        less lost than it looks
Rows    up to 64 validation prompts (512 rows) of an eval, else training ones, also of experiences
        still to come; never test rows. Held-out evals are left out, and classes not seen yet
"""

from __future__ import annotations

from math import comb
from statistics import fmean

from cl.probes import _looks as looks
from cl.registry import register

N, KS = 16, (1, 8)


@register
class PassAtK:
    """It has no state: answers are drawn anew from the same random numbers."""

    domains = ("vision", "llm")

    def measure(self, loop) -> dict[str, float]:
        """By eval, and means over those learned and those ahead."""
        values, means = {}, {}
        for e in loop.stream.evals:
            table = looks.looked_at(loop, e) if e.learned_at and looks.is_seen(loop, e) else None
            if table is None:
                continue
            shares = (of_text if looks.is_text(loop) else of_classes)(loop, e, table)
            when = "learned" if e.learned_at[0] <= loop.experience.index else "ahead"
            for name, share in shares.items():
                values[f"{name}/{e.name}"] = share
                means.setdefault(f"{name}_{when}", []).append(share)
        return values | {name: fmean(shares) for name, shares in means.items()}


def of_text(loop, e, table) -> dict[str, float]:
    """Shares over prompts, from n sampled answers to each."""
    rng, right = looks.own_rng(loop, f"pass_at_k/{e.name}"), []
    for items, rollout in looks.answered(loop, loop.model, table, N, rng):
        found = [r == 1 for r in looks.rewards(loop, items, rollout)]
        right += [sum(found[k : k + N]) for k in range(0, len(found), N)]
    shares = {f"pass_{k}": fmean(unbiased(N, c, k) for c in right) for k in KS}
    return {**shares, "none_right": fmean(c == 0 for c in right)}


def unbiased(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): chance that one of k answers is right if c of n were."""
    return 1 - comb(n - c, k) / comb(n, k)


def of_classes(loop, e, table) -> dict[str, float]:
    """Shares over rows, exact."""
    logits = looks.scored_logits(loop, loop.model, e, table)
    p = (logits.softmax(1) * looks.right_classes(loop, table, logits.shape[1])).sum(1).clamp(max=1)
    shares = {f"pass_{k}": (1 - (1 - p) ** k).mean().item() for k in KS}
    return {**shares, "none_right": ((1 - p) ** N).mean().item()}
