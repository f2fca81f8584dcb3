"""ranpac: random projection of frozen features, then one ridge regression over all of them.

Source    McDonnell et al., NeurIPS 2023, arXiv:2307.02251, algorithm 1
Claim     a wide random layer with ReLU makes classes linearly separable; its Gram matrix
          decorrelates prototypes; both are sums, so the order of arrival does not matter
Maths     h = relu(f(x)^T M), M ~ N(0, 1) drawn once;  G = sum h h^T,  C = sum h y^T, y one-hot
          W = (G + lambda I)^-1 C, scores h^T W
          lambda of 1e-8, 1e-7 .. 1e8: fitted to four fifths of the experience's training rows, the
          smallest squared error on the last fifth
State     M float32 [D, P], G float64 [P, P], C^T float64 [classes, P], W float64 [P, classes]
Needs     experience boundaries; sums go on where a class comes back or its domain changes; lambda
          is that of the last experience
Defaults  the paper's adapt=first and search of lambda; projection=2000 (the paper's is 10000, and G
          holds 8 P^2 bytes; validation rows of split_digits preferred it to 500 and 1000)
Departs   adaptation trains the whole backbone, the paper's an adapter in it; the held-out fifth
          is a seeded draw; fits to four fifths go through an SVD, which serves every lambda
Parameters
    adapt       none (backbone as given) or first (experience 0 trains it, then it rests)
    projection  width of the random layer, P [features]
    ridge       lambda; none is chosen anew in every experience [1]
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.frozen_features import (
    adaptation_data,
    class_sums,
    exact,
    experience_features,
    like,
    needs_of,
    rest,
)
from cl.registry import register
from cl.strategy import Strategy

LAMBDAS = tuple(10.0**k for k in range(-8, 9))


@register
class RanPAC(Strategy):
    """Random projection and decorrelated prototypes."""

    needs = ("boundaries",)
    requires = ("features", "head")
    domains = ("vision",)

    def __init__(
        self,
        *,
        adapt: Literal["none", "first"] = "first",
        projection: Annotated[int, Range(min=1)] = 2000,
        ridge: Annotated[float, Range(above=0)] | None = None,
    ):
        self.adapt, self.projection, self.ridge = adapt, projection, ridge
        self.needs = needs_of(adapt)
        self.M = None  # float32 [D, P]
        self.G = None  # float64 [P, P]
        self.C = None  # float64 [classes, P], transposed
        self.W = None  # float64 [P, classes]

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Add the experience to G and C, choose lambda, solve for W."""
        x, y = experience_features(loop)
        if self.M is None:
            size = x.shape[1], self.projection
            self.M = torch.randn(size, generator=loop.rng("ranpac.projection")).to(x.device)
        h = projected(x, self.M)
        self.G = h.T @ h if self.G is None else self.G + h.T @ h
        self.C = class_sums(h, y, loop.seen_classes, self.C)
        ridge = self.ridge
        if ridge is None:
            order = torch.randperm(len(h), generator=loop.rng("ranpac.split")).to(h.device)
            ridge = chosen_ridge(h[order], F.one_hot(y[order], loop.seen_classes).double())
        self.W = solved(self.G, self.C.T, ridge)

    def predict(self, loop, batch):
        """Scores [B, C]; the model's own while experience 0 still trains it."""
        if self.W is None:
            return loop.model(batch.x)
        f = loop.model.features(batch.x)
        return like(projected(exact(f), self.M) @ self.W, f)


def projected(x, M):
    """h = relu(x M), float64 [B, P] of x float64 [B, D]."""
    return (x @ M.double()).relu()


def chosen_ridge(h, Y):
    """The lambda with the smallest squared error on the last fifth of h [N, P], Y [N, C]."""
    n = int(0.8 * len(h))
    if n == 0:
        return 1.0  # one row can't be split
    U, s, Vt = torch.linalg.svd(h[:n], full_matrices=False)
    left, right = h[n:] @ Vt.T, U.T @ Y[:n]
    errors = [(left @ ((s / (s**2 + r))[:, None] * right) - Y[n:]).pow(2).mean() for r in LAMBDAS]
    return LAMBDAS[int(torch.stack(errors).argmin())]


def solved(G, C, ridge):
    """W [P, C] = (G + ridge I)^-1 C; by eigenvalues where rounding leaves G short of positive."""
    eye = torch.eye(len(G), dtype=G.dtype, device=G.device)
    factor, failed = torch.linalg.cholesky_ex(G + ridge * eye)
    if not failed:
        return torch.cholesky_solve(C, factor)
    values, vectors = torch.linalg.eigh(G)
    return vectors @ ((vectors.T @ C) / (values.clamp_min(0) + ridge)[:, None])
