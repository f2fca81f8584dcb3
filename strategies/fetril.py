"""FeTrIL: feature translation for exemplar-free class-incremental learning.

Source    Petit et al., WACV 2023, arXiv:2211.13131
Claim     with the extractor frozen after experience 0 and one mean per class, a linear classifier
          on real features of new classes and translated ones standing in for past classes beats
          ten exemplar-free methods, at a fraction of the update cost
Maths     pseudo-features of past class p from rows x_n of new classes n:
          f^(p) = f(x_n) + mu(p) - mu(n)      (eq. 1), not normalised, so they may be negative;
          similar: every row of the k-th most similar new class; rand: s rows drawn from all new
          ones, s = rows per new class; herd: s rows whose f^(p) have a mean close to mu(p);
          then every feature, real or pseudo, is divided by its L2 norm (at test time too) and a
          linear classifier for all classes is fitted from scratch
State     mu float32 [C, D]: one mean per class, not normalised; nothing else
Needs     experience boundaries; no task labels, no exemplars
Defaults  the paper's: svm head (one-vs-rest squared hinge, C=1, tol=1e-4, all negatives), cosine
          similarity, the most similar class (k=1)
Departs   the paper's base training (160 epochs) is whatever `train.*` says; svm: LIBLINEAR's
          problem and stopping rule, own solver (cl/svm.py); fc head: batch 128, from zero, plateau
          judged on the epoch's training loss (the paper does not say). What herd chooses among,
          and towards what, is our reading: all new rows, greedily, the mean of their f^(p) towards
          mu(p); as all are moved alike, every p gets the same rows. rand and negatives: drawn
          without replacement. The authors' code chooses sources by euclidean distance. A class
          that returns gets the mean of its new rows and no pseudo-features
Parameters
    head        svm (linear, one class against the rest) or fc (softmax regression)
    select      rows that are translated: similar (of one class), rand or herd (of all classes)
    similarity  similar: between class means, chooses each past class's source
    k           similar: the source is the k-th most similar new class [1]
    C           svm: inverse strength of the L2 penalty [1]
    tol         svm: stopping tolerance [1]
    negatives   svm: rows of other classes per row of a class, drawn anew for each; none: all [1]
    fc_epochs   fc: passes over the features [epochs]
    fc_lr       fc: initial learning rate, a tenth after 10 epochs without progress [1]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.errors import BadValue
from cl.herding import herd
from cl.registry import register
from cl.strategy import Strategy
from cl.svm import one_vs_rest


@register
class FeTrIL(Strategy):
    """Frozen extractor, translated features, linear classifier."""

    needs = ("boundaries",)
    requires = ("features", "head", "normalize")
    domains = ("vision",)

    def __init__(
        self,
        *,
        head: Literal["svm", "fc"] = "svm",
        select: Literal["similar", "rand", "herd"] = "similar",
        similarity: Literal["cosine", "euclidean"] = "cosine",
        k: Annotated[int, Range(min=1)] = 1,
        C: Annotated[float, Range(above=0)] = 1.0,
        tol: Annotated[float, Range(above=0)] = 1e-4,
        negatives: Annotated[int, Range(min=1)] | None = None,
        fc_epochs: Annotated[int, Range(min=1)] = 50,
        fc_lr: Annotated[float, Range(above=0)] = 0.1,
    ):
        self.head, self.select, self.similarity, self.k = head, select, similarity, k
        self.C, self.tol, self.negatives = C, tol, negatives
        self.fc_epochs, self.fc_lr = fc_epochs, fc_lr
        self.mu = None  # float32 [C, D]

    def check(self, loop):
        """Refuse settings that have no meaning here."""
        if self.select != "similar" and self.k != 1:
            raise BadValue(f"strategy.k={self.k} has no meaning with select={self.select}")
        if self.head == "fc" and self.negatives is not None:
            raise BadValue(f"strategy.negatives={self.negatives} has no meaning with head=fc")
        for e in loop.stream.experiences[1:]:
            if self.k > len(e.classes):
                raise BadValue(
                    f"strategy.k={self.k}: {e.name} has no more than {len(e.classes)} classes to "
                    f"take features from; allowed: 1 to {len(e.classes)}"
                )

    def data(self, loop, experience):
        """Gradient training in experience 0 only, the same as naive's."""
        return experience.train if experience.index == 0 else None

    def before_training_exp(self, loop):
        """Freeze the extractor; its batch-norm statistics rest with it, nothing trains it."""
        if loop.experience.index > 0:
            loop.model.requires_grad_(False)

    def after_training_exp(self, loop):
        """Means of the new classes, and from experience 1 on the classifier for all."""
        x = loop.features(loop.experience.train)  # [N, D], the only pass over this data
        y = loop.experience.train.column("y")
        past = torch.arange(0 if self.mu is None else len(self.mu), device=y.device)
        past = past[~torch.isin(past, y)]
        self.mu = class_means(x, y, self.mu)
        if loop.experience.index > 0:
            chosen = self._chosen(x, y, past, loop)
            x, y = with_pseudo_features(x, y, self.mu, past, chosen)
            loop.model.normalize = True
            loop.model.head.write(*self._fit(F.normalize(x), y, loop))

    def _chosen(self, x, y, past, loop):
        """For each class in `past` the positions in y [N] of the rows to translate."""
        if self.select == "similar":
            source = sources(self.mu, past, y.unique(), self.similarity, self.k)
            return [(y == n).nonzero()[:, 0] for n in source]
        s = max(1, round(len(y) / len(y.unique())))
        if self.select == "rand":
            rng = loop.rng("fetril.rand")
            return [torch.randperm(len(y), generator=rng)[:s].to(y.device) for _ in past]
        rows = herd(x - self.mu[y], torch.zeros_like(x[0]), s)  # mu(p) is in all of them
        return [rows for _ in past]

    def _fit(self, x, y, loop):
        if self.head == "fc":
            return fc(x, y, self.fc_epochs, self.fc_lr, loop.rng("fetril.fc"))
        rng = loop.rng("fetril.negatives") if self.negatives is not None else None
        return one_vs_rest(x, y, self.C, self.tol, self.negatives, rng)[1:]


def class_means(x, y, known):
    """mu [C, D] with the means of the classes in y [N] set from x [N, D], others from `known`."""
    mu = x.new_zeros(
        int(y.max()) + 1 if known is None else max(len(known), int(y.max()) + 1), x.shape[1]
    )
    if known is not None:
        mu[: len(known)] = known
    for c in y.unique():
        mu[c] = x[y == c].mean(0)
    return mu


def sources(mu, past, new, similarity, k=1):
    """For each class in `past` [P] its k-th most similar one in `new` [M]: int64 [P]."""
    if similarity == "cosine":
        likeness = F.normalize(mu[past]) @ F.normalize(mu[new]).T  # [P, M]
    else:
        likeness = -torch.cdist(mu[past], mu[new])
    order = likeness.sort(dim=1, descending=True, stable=True).indices
    return new[order[:, k - 1]]


def with_pseudo_features(x, y, mu, past, chosen):
    """Real features x [N, D], y [N] of new classes, and eq. 1 for every class in `past` [P].

    chosen: for each class in `past` the positions of the rows that are translated to it.
    """
    xs, ys = [x], [y]
    for p, rows in zip(past, chosen, strict=True):
        xs.append(x[rows] + mu[p] - mu[y[rows]])
        ys.append(p.repeat(len(rows)))
    return torch.cat(xs), torch.cat(ys)


def fc(x, y, epochs, lr, rng, batch=128):
    """Softmax regression by SGD: weight [C, D] and bias [C]; lr / 10 on a plateau of 10 epochs.

    Momentum 0.9, from zero. The gradient is written out, (softmax - one-hot)^T x / batch, which
    takes a third less time than autograd does for so small a model.
    """
    n_classes = int(y.max()) + 1
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # [N, D + 1], the bias is the last column
    target = F.one_hot(y, n_classes).to(x)  # [N, C]
    theta, velocity = x.new_zeros(2, n_classes, x.shape[1])
    optimizer = torch.optim.SGD([theta], lr)  # holds the learning rate, never steps
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=10)
    for _ in range(epochs):
        rate, total = optimizer.param_groups[0]["lr"], x.new_zeros(())
        for rows in torch.randperm(len(x), generator=rng).to(x.device).split(batch):
            f, t = x[rows], target[rows]
            log_p = F.log_softmax(f @ theta.T, 1)
            total -= (log_p * t).sum()
            velocity.mul_(0.9).addmm_((log_p.exp_() - t).T, f, alpha=1 / len(rows))
            theta.sub_(velocity, alpha=rate)
        schedule.step(total.item() / len(x))
    return theta[:, :-1], theta[:, -1]
