"""Linear support vector machines on given features, one class against the rest.

Maths  for each class c, s_i = 1 for rows of c and -1 for others:
       min over w, b of (||w||^2 + b^2) / 2 + C sum_i max(0, 1 - s_i (w f_i + b))^2
       solved in the primal by LIBLINEAR (scikit-learn's LinearSVC), whose penalty includes b
"""

from __future__ import annotations

import torch
from sklearn.svm import LinearSVC
from torch import Tensor


def one_vs_rest(
    x: Tensor,
    y: Tensor,
    C: float,
    tol: float,
    negatives: int | None = None,
    rng: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes int64 [M] in y [N], weight [M, D] and bias [M] for x [N, D], on the device of x.

    negatives: rows of other classes per row of the class, drawn by rng; None takes all.
    """
    features, labels = x.cpu().numpy(), y.cpu()
    classes = labels.unique()
    if len(classes) == 1:  # nothing to tell it from
        return classes.to(y.device), x.new_zeros(1, x.shape[1]), x.new_zeros(1)
    if negatives is None:
        w, b = _fit(features, labels.numpy(), C, tol)
        if len(classes) == 2:  # one plane, seen from both sides
            w, b = torch.cat([-w, w]), torch.cat([-b, b])
    else:
        planes = []
        for c in classes:
            rows = _against(labels, c, negatives, rng).numpy()
            planes.append(_fit(features[rows], (labels.numpy() == c.item())[rows], C, tol))
        w, b = (torch.cat(parts) for parts in zip(*planes, strict=True))
    return classes.to(y.device), w.to(x), b.to(x)


def _fit(x, y, C, tol) -> tuple[Tensor, Tensor]:
    machine = LinearSVC(C=C, tol=tol, dual=False).fit(x, y)
    return torch.tensor(machine.coef_), torch.tensor(machine.intercept_)


def _against(labels: Tensor, c: Tensor, negatives: int, rng: torch.Generator) -> Tensor:
    """Positions of class c and of `negatives` times as many others, in the rows' order."""
    own, others = (labels == c).nonzero()[:, 0], (labels != c).nonzero()[:, 0]
    drawn = torch.randperm(len(others), generator=rng)[: negatives * len(own)]
    return torch.cat([own, others[drawn]]).sort().values
