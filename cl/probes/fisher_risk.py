"""fisher_risk: how dangerous to earlier tasks the first updates of an experience are.

Source  Lai et al. 2025, arXiv:2507.05386, section on theory: E R(g_rft) ~ Var(r) R(g_sft), so that
        learning from rewards moves little where the model is always right or always wrong
Maths   R(g) = sum_i F_i g_i^2
        F       mean over earlier tasks of E (d log pi(a|x) / d theta)^2 on the model's own answers
                a, when that task had been learned; the held-out evals count as one task before the
                first, with the answers of the model that the stream begins with
        g_sft   d log pi(y|x), y the gold response, summed over its tokens;  classifiers: the label
        g_rloo  mean over 8 own answers of (r - mean r of the others) d log pi(a|x)
Unit    R: [1], comparable within a run only; the rest [1]
Range   `ratio`: median over prompts of R(g_rloo) / R(g_sft), 0 or more,
        `ratio_varied`: over those whose rewards differ, for the others it is 0; `spearman`: rank
        correlation of R(g_rloo) with the prompt's reward variance, -1 to 1; `R_rloo`, `R_sft`:
        means; `varied`: share of prompts whose rewards differ.
        Nothing where no task is earlier, `spearman` only where both vary
When    the gradients are those at an experience's start, before its first update
Rows    32 training prompts; F from 64 validation prompts of a task, else training prompts; never
        test rows
Departs F from earlier tasks and held-out skills alike; of g the weights that are trained then; the
        risk of the whole update (Adam, clipping, many prompts) is another one, only its relation
        between prompts is meant. Text without a gold response has no g_sft
"""

from __future__ import annotations

from statistics import fmean, median

import torch
from scipy.stats import spearmanr

from cl.importance import accumulated, grown
from cl.objectives._policy_gradient import advantages
from cl.probes import _looks as looks
from cl.probes._answers import Named, cases, gradient
from cl.registry import register

PROMPTS, ANSWERS, FISHER = 32, 8, 64


@register
class FisherRisk:
    """F: sum over earlier tasks; tasks: how many; values: those of the experience's start."""

    domains = ("vision", "llm")

    def __init__(self):
        self.F = {}
        self.tasks = 0
        self.values = {}

    def before_training_exp(self, loop):
        """The risk of what comes, prompt by prompt."""
        if loop.experience.index == 0:
            self._add(loop, [e for e in loop.stream.evals if not e.learned_at])
        self.values = self._risks(loop) if self.tasks else {}

    def after_training_exp(self, loop):
        """What was learned is an earlier task from now on."""
        self._add(loop, looks.taught(loop)[0])

    def measure(self, loop) -> dict[str, float]:
        """As they were before the first update."""
        return dict(self.values)

    def _add(self, loop, evals) -> None:
        names = {name for name, _ in loop.model.named_parameters()}
        total, n = {}, 0
        for e in (e for e in evals if looks.is_seen(loop, e)):
            table = looks.looked_at(loop, e, max(1, FISHER // len(evals)))
            rng = looks.own_rng(loop, f"fisher_risk/F/{e.name}/{loop.experience.index}")
            for case in cases(loop, table, e.task_label, 1, rng) if table is not None else ():
                g = gradient(loop.model, case.logp, [1.0], names)
                total = accumulated(total, {name: v.square() for name, v in g.items()})
                n += 1
        if n:
            self.F = accumulated(self.F, {name: v / n for name, v in total.items()})
            self.tasks += 1

    def _risks(self, loop) -> dict[str, float]:
        model, experience = loop.model, loop.experience
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        table = looks.spread(experience.train, PROMPTS)
        rng = looks.own_rng(loop, f"fisher_risk/g/{experience.index}")
        one = torch.zeros(ANSWERS, dtype=torch.int64)
        rloo, sft, variances = [], [], []
        for case in cases(loop, table, experience.task_label, ANSWERS, rng):
            a, counted = advantages(case.rewards, one, "rloo")
            varied = bool(a.any())
            weights = (a / counted.sum()).tolist()
            variances.append(case.rewards[counted].var(correction=0).item() if varied else 0.0)
            g = gradient(model, case.logp, weights, names) if varied else {}
            rloo.append(self._risk(g))
            g = gradient(model, case.gold, [1.0], names) if case.gold is not None else None
            sft.append(None if g is None else self._risk(g))
        return summary(rloo, sft, variances)

    def _risk(self, g: Named) -> float:
        known = ((grown(self.F[n], v), v) for n, v in g.items() if n in self.F)
        return sum((F * v.square()).sum(dtype=torch.float64).item() for F, v in known) / self.tasks


def summary(rloo: list[float], sft: list[float | None], variances: list[float]) -> dict[str, float]:
    """The values, of R and the reward variance by prompt; None where there is no gold response."""
    values = {"R_rloo": fmean(rloo), "varied": fmean(v > 0 for v in variances)}
    known = [(r, s) for r, s in zip(rloo, sft, strict=True) if s]
    if known:
        values["R_sft"] = fmean(s for s in sft if s is not None)
        values["ratio"] = median(r / s for r, s in known)
    spoken = [r / s for r, s in known if r]
    values |= {"ratio_varied": median(spoken)} if spoken else {}
    if len(set(rloo)) > 1 and len(set(variances)) > 1:
        values["spearman"] = float(spearmanr(rloo, variances).statistic)
    return values
