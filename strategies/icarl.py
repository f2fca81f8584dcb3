"""icarl: exemplars by herding, distillation of old outputs, nearest mean of exemplars.

Source    Rebuffi et al., CVPR 2017, arXiv:1611.07725
Claim     a few exemplars per class let features be learned class-incrementally for long, if old
          outputs are distilled and the classifier is a nearest mean, which follows the features
Loss      per row, summed over classes and averaged over rows, with g = sigmoid(outputs):
          new classes y:  -[y = y_i] log g_y - [y != y_i] log(1 - g_y)
          old classes y:  -q_y log g_y - (1 - q_y) log(1 - g_y),  q = old model's g  (algorithm 3)
          on the union of the experience's rows and all exemplars
Maths     predict argmin over classes of || phi(x) - mu_y ||, mu_y the mean of phi over y's
          exemplars; phi and mu are divided by their L2 norms (algorithm 1)
State     exemplars {class: rows as they came [m, ...]}, m = size // classes seen, herded (algorithm
          4, `cl/herding.py`); counts {class: rows seen}; old: the model before this experience;
          past int64 [P]; means float32 [C, D]
Needs     experience boundaries, a buffer; task labels are used where a scenario gives them
Defaults  200 exemplars (ours; the paper has 2000 for 100 classes), the paper's classifier
Departs   the loss is a mean over rows (the paper's a sum, the authors' code's a mean over rows and
          classes, at a rate of 2); each row is an exemplar at most once in a visit; in herding,
          means are not divided by their norm (as in the authors' code); old classes are the past
          ones that the experience does not bring: one that returns is learned from its labels;
          where every experience has all classes nothing is distilled; within an experience, before
          its exemplars are chosen, the head answers
Parameters
    size        exemplars stored in all [rows]
    classifier  ncm (nearest mean of exemplars) or head (largest output)
    mirror      class means over exemplars and their mirror images, as in the authors' code
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.data import Table
from cl.herding import as_table, check_size, past_classes, refreshed
from cl.objectives.cross_entropy import CrossEntropy
from cl.registry import register
from cl.strategy import Strategy


@register
class ICaRL(Strategy):
    """Incremental classifier and representation learning."""

    needs = ("boundaries", "buffer")
    requires = ("features",)
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        classifier: Literal["ncm", "head"] = "ncm",
        mirror: bool = False,
    ):
        self.size, self.classifier, self.mirror = size, classifier, mirror
        self.exemplars = {}  # {class: {column: [m, ...]}}
        self.counts = {}  # {class: rows seen}
        self.old = None  # snapshot
        self.past = None  # int64 [P]
        self.means = None  # float32 [C, D], None while features move

    def objective(self, loop):
        """Sigmoid outputs instead of a softmax."""
        return SigmoidDistillation(self)

    def check(self, loop):
        """Every class must get an exemplar in the end."""
        check_size(loop, self.size)

    def data(self, loop, experience):
        """The experience's rows and all exemplars."""
        if not self.exemplars:
            return experience.train
        return Table.concat([experience.train, as_table(self.exemplars)])

    def before_training_exp(self, loop):
        """From here on the features move away from the class means."""
        self.past, self.means = past_classes(loop), None

    def after_training_exp(self, loop):
        """New exemplars, class means of the new features, and the model to be distilled."""
        m = self.size // loop.seen_classes
        train = loop.experience.train
        self.exemplars, self.counts = refreshed(loop, self.exemplars, self.counts, train, m)
        self.means = self._means(loop)
        self.old = loop.snapshot()

    def predict(self, loop, batch):
        """Cosine [B, C] to the class means; for unit vectors the largest is the nearest."""
        if self.classifier == "head" or self.means is None:
            return loop.objective.predict(loop, batch)
        scores = F.normalize(loop.model.features(batch.x)) @ self.means.T
        return loop.restricted(scores, batch.task_label)

    def _means(self, loop):
        """mu [C, D] of the exemplars' features."""
        table = as_table(self.exemplars)
        phi = F.normalize(loop.features(table))
        y = table.column("y")
        if self.mirror:
            flipped = Table({**table.columns, "x": table.column("x").flip(-1)})
            phi, y = torch.cat([phi, F.normalize(loop.features(flipped))]), torch.cat([y, y])
        return unit_means(phi, y, loop.seen_classes)


class SigmoidDistillation(CrossEntropy):
    """Binary cross-entropy of every class against labels (new) or old outputs (past)."""

    name = "sigmoid_distillation"

    def __init__(self, strategy):
        self.strategy = strategy

    def loss(self, loop):
        """Algorithm 3, among the row's task's and the past classes if task labels are given."""
        output, past = loop.mb_output, self.strategy.past
        target = F.one_hot(loop.mb_y, output.shape[1]).to(output.dtype)  # [B, C]
        counted = None
        if loop.mb_task_id is not None:
            counted = loop.restricted(torch.zeros_like(output), loop.mb_task_id).isfinite()
        if len(past):
            with torch.no_grad():
                target[:, past] = self.strategy.old(loop.mb_x)[:, past].sigmoid().to(target)
            if counted is not None:
                counted[:, past] = True
        return binary_cross_entropy(output, target, counted)


def binary_cross_entropy(output, target, counted=None):
    """Summed over the classes `counted` (bool [B, C]; None: all), averaged over rows."""
    weight = None if counted is None else counted.to(output)
    total = F.binary_cross_entropy_with_logits(output, target, weight, reduction="sum")
    return total / len(output)


def unit_means(phi, y, n_classes):
    """Mean of phi [N, D] for every class in y [N], divided by its L2 norm: [C, D]."""
    sums = phi.new_zeros(n_classes, phi.shape[1]).index_add_(0, y, phi)
    return F.normalize(sums)
