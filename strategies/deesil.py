"""deesil: deep features fixed after experience 0, one linear SVM per class on top of them.

Source    Belouadah & Popescu, ECCV workshops 2018, arXiv:1808.06396; without exemplars as in
          FeTrIL's comparison (Petit et al., WACV 2023, arXiv:2211.13131)
Claim     a fixed extractor and classifiers that are learned independently of each other add
          classes within a minute, and at scale beat fine-tuning with a bounded memory
Maths     f = features / || features ||; for each class c of an experience
          min over w_c, b_c of || w_c ||^2 / 2 + C sum_i max(0, 1 - s_i (w_c f_i + b_c))^2 over the
          experience's rows, s_i = 1 for rows of c, else -1; earlier w, b stay; predict argmax
State     nothing but the model: the SVMs are the head's rows
Needs     experience boundaries; no task labels, no exemplars; two or more classes at a time
Defaults  C = 1, tol = 1e-4 as in FeTrIL's comparison
Departs   negatives are the experience's other classes alone (the paper can add a bounded memory);
          C is not searched for; the paper's base training is whatever `train.*` says; b_c is in
          the penalty, as LIBLINEAR has it; a class that returns gets a new SVM from the rows at
          hand, so where every experience has all classes the last one decides
Parameters
    C    inverse strength of the L2 penalty [1]
    tol  stopping tolerance [1]
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F

from cl.config import Range
from cl.errors import BadValue
from cl.registry import register
from cl.strategy import Strategy
from cl.svm import one_vs_rest


@register
class DeeSIL(Strategy):
    """Frozen extractor, one SVM per class."""

    needs = ("boundaries",)
    requires = ("features", "head", "normalize")
    domains = ("vision",)

    def __init__(
        self,
        *,
        C: Annotated[float, Range(above=0)] = 1.0,
        tol: Annotated[float, Range(above=0)] = 1e-4,
    ):
        self.C, self.tol = C, tol

    def check(self, loop):
        """An SVM needs negatives."""
        alone = [e.name for e in loop.stream.experiences if len(e.classes) < 2]
        if alone:
            raise BadValue(
                f"deesil needs two or more classes in every experience, {alone[0]} has one: "
                "there is nothing to tell it from"
            )

    def data(self, loop, experience):
        """Gradient training in experience 0 only, the same as naive's."""
        return experience.train if experience.index == 0 else None

    def before_training_exp(self, loop):
        """Freeze the extractor; its batch-norm statistics rest with it, nothing trains it."""
        if loop.experience.index > 0:
            loop.model.requires_grad_(False)

    def after_training_exp(self, loop):
        """One SVM for each of the experience's classes."""
        train, head = loop.experience.train, loop.model.head
        f, y = F.normalize(loop.features(train)), train.column("y")
        weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
        classes, w, b = one_vs_rest(f, y, self.C, self.tol)
        weight[classes], bias[classes] = w, b
        head.write(weight, bias)
        loop.model.normalize = True
