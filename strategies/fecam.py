"""fecam: Mahalanobis distance to class means, with a covariance of its own for every class.

Source    Goswami et al., NeurIPS 2023, arXiv:2309.14062, and the authors' code for details
Claim     in features that were not trained on a class its distribution is far from a ball, so a
          distance that knows the shape of each class beats the Euclidean one
Maths     x~ = x^tukey elementwise (Tukey's ladder of powers); Sigma_c the covariance of x~ in c
          Sigma_s = Sigma + gamma1 V1 I + gamma2 V2 (1 - I), V1, V2 the means of Sigma's entries on
          and off the diagonal, `shrinkages` times; R_ij = Sigma_ij / sqrt(Sigma_ii Sigma_jj)
          score -(u - m_c)^T R_c^-1 (u - m_c), u = x~ / ||x~||, m_c = mu_c~ / ||mu_c~||,
          mu_c the mean of the class's x
State     counts float64 [C]; sums of x and of x~, float64 [C, D]; second, the sums of x~ x~^T,
          float64 [C, D, D] or [1, D, D]; of these
          mu float32 [C, D], P = R^-1 float32 [C, D, D] or [1, D, D]
Needs     experience boundaries; sums go on where a class comes back or its domain changes
Defaults  the authors' for many images a class: tukey=0.5, gamma1=gamma2=1, two shrinkages
Departs   a negative feature keeps its sign, -|x|^tukey (the paper's features are rectified); the
          logarithm (tukey=0) is not offered; exact zeros count in V2; experience 0 is answered by
          the same rule (authors: by the trained head); a class without spread gets R = I;
          covariance=shared is the within-class covariance over all rows (authors: an average of
          whole-experience covariances, weighted by classes, without the step to R)
Parameters
    adapt       none (backbone as given) or first (experience 0 trains it, then it rests)
    tukey       exponent of the power transform; 1 is off [1]
    gamma1      shrinkage towards the mean variance [1]
    gamma2      shrinkage towards the mean covariance [1]
    shrinkages  how often shrinkage is applied [1]
    covariance  per_class, or shared by all classes
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.frozen_features import adaptation_data, class_sums, experience_features, needs_of, rest
from cl.registry import register
from cl.strategy import Strategy


@register
class FeCAM(Strategy):
    """Feature covariance-aware metric."""

    needs = ("boundaries",)
    requires = ("features", "head")
    domains = ("vision",)

    def __init__(
        self,
        *,
        adapt: Literal["none", "first"] = "first",
        tukey: Annotated[float, Range(above=0)] = 0.5,
        gamma1: Annotated[float, Range(min=0)] = 1.0,
        gamma2: Annotated[float, Range(min=0)] = 1.0,
        shrinkages: Annotated[int, Range(min=0)] = 2,
        covariance: Literal["per_class", "shared"] = "per_class",
    ):
        self.adapt, self.tukey, self.covariance = adapt, tukey, covariance
        self.needs = needs_of(adapt)
        self.gamma1, self.gamma2, self.shrinkages = gamma1, gamma2, shrinkages
        self.counts = None  # float64 [C]
        self.sums = None  # float64 [C, D], of x
        self.powers = None  # float64 [C, D], of x~
        self.second = None  # float64 [C, D, D] or [1, D, D], of x~ x~^T
        self.mu = self.P = None  # float32, what prediction uses

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Add the experience to the sums; means and inverse correlations for prediction."""
        x, y = experience_features(loop)
        C, p = loop.seen_classes, ladder(x, self.tukey)
        self.counts = class_sums(torch.ones_like(x[:, 0]), y, C, self.counts)
        self.sums, self.powers = class_sums(x, y, C, self.sums), class_sums(p, y, C, self.powers)
        self.second = second_moments(p, y, C, self.second, self.covariance == "shared")
        mu = ladder(self.sums / self.counts[:, None], self.tukey)
        self.mu = F.normalize(mu).float().to(loop.device)
        Sigma = covariances(self.second, self.powers, self.counts)
        for _ in range(self.shrinkages):
            Sigma = shrunk(Sigma, self.gamma1, self.gamma2)
        P = torch.linalg.pinv(correlations(Sigma), hermitian=True)
        self.P = P.float().to(loop.device)

    def predict(self, loop, batch):
        """Scores [B, C]; the model's own while experience 0 still trains it."""
        if self.P is None:
            return loop.model(batch.x)
        u = F.normalize(ladder(loop.model.features(batch.x), self.tukey))
        return -distances(u, self.mu, self.P)

    def stored_bytes(self, loop):
        """The sums; means and inverse correlations follow from them."""
        return sum(s.nbytes for s in (self.counts, self.sums, self.powers, self.second))


def ladder(x, tukey):
    """Tukey's power transform of |x|, with the sign of x."""
    return x.sign() * x.abs() ** tukey


def second_moments(p, y, n_classes, held, shared):
    """Sums of p p^T over the rows of p [N, D] per class [C, D, D], or over all [1, D, D]."""
    D = p.shape[1]
    sums = p.new_zeros(1 if shared else n_classes, D, D)
    if held is not None:
        sums[: len(held)] = held
    for c in (y[:1] if shared else y.unique()).tolist():
        rows = p if shared else p[y == c]
        sums[0 if shared else c] += rows.T @ rows
    return sums


def covariances(second, sums, counts):
    """Sample covariances [C, D, D] from sums of p p^T and p; pooled if second is [1, D, D]."""
    mean = sums / counts[:, None]
    if len(second) == len(counts):
        between = sums[:, :, None] * mean[:, None, :]
        return (second - between) / (counts - 1).clamp_min(1)[:, None, None]
    return (second - sums.T @ mean) / (counts.sum() - len(counts)).clamp_min(1)


def shrunk(Sigma, gamma1, gamma2):
    """Sigma [C, D, D] + gamma1 V1 I + gamma2 V2 (1 - I)."""
    D = Sigma.shape[1]
    eye = torch.eye(D, dtype=Sigma.dtype, device=Sigma.device)
    trace = Sigma.diagonal(dim1=1, dim2=2).sum(1)
    V2 = (Sigma.sum((1, 2)) - trace) / max(1, D * D - D)
    return (
        Sigma + (gamma1 * trace / D)[:, None, None] * eye + (gamma2 * V2)[:, None, None] * (1 - eye)
    )


def correlations(Sigma):
    """R [C, D, D] of Sigma [C, D, D]; what has no variance is correlated with itself alone."""
    variance = Sigma.diagonal(dim1=1, dim2=2)
    spread = variance > 1e-12 * variance.amax(1, keepdim=True).clamp_min(1e-300)
    scale = torch.where(spread, variance.clamp_min(1e-300).rsqrt(), 0.0)
    R = Sigma * scale[:, :, None] * scale[:, None, :]
    return R + torch.diag_embed((~spread).to(R))


def distances(u, mu, P):
    """Squared Mahalanobis distances [B, C] of u [B, D] to mu [C, D]; P [C, D, D] or [1, D, D]."""
    found = []
    for c in range(len(mu)):
        d = u - mu[c]
        found.append(((d @ P[c if len(P) > 1 else 0]) * d).sum(1))
    return torch.stack(found, 1)
