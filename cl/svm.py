"""Linear support vector machines on given features, one class against the rest.

Maths   for each class c, s_i = 1 for rows of c and -1 for others:
        min over w, b of (||w||^2 + b^2) / 2 + C sum_i max(0, 1 - s_i (w f_i + b))^2
        This is the problem that LIBLINEAR solves in the primal (scikit-learn's LinearSVC with
        dual=False): its penalty includes b, and it stops where the gradient is at most
        tol * min(rows of c, other rows) / rows of what it is at w = 0; so does this.
Solver  Newton steps for many classes at once, so that the work is in few products of large
        matrices. The Hessian is I + 2C sum over the rows with a loss of f f^T; the steps come from
        conjugate gradients that are preconditioned with that sum over all rows, which the classes
        share. The start is the ridge regression on s, for the same reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**23  # elements of a rows x classes matrix; as many classes are solved at once as fit
NEWTON_STEPS, CG_STEPS, HALVINGS = 100, 30, 20
CG_GOAL = 0.05  # of the gradient that a Newton step may leave


def one_vs_rest(
    x: Tensor,
    y: Tensor,
    C: float,
    tol: float,
    negatives: int | None = None,
    rng: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes int64 [M] in y [N], weight [M, D] and bias [M] for x [N, D].

    negatives: rows of other classes per row of the class, drawn by rng; None takes all.
    """
    classes, planes = y.unique(), []
    if len(classes) == 1:  # nothing to tell it from
        return classes, x.new_zeros(1, x.shape[1]), x.new_zeros(1)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # [N, D + 1], b is the last weight
    for some in classes.split(max(1, BLOCK // len(x)) if negatives is None else 1):
        rows = slice(None) if negatives is None else _against(y, some, negatives, rng)
        planes.append(_solved(x[rows], y[rows], some, C, tol))
    plane = torch.cat(planes)
    return classes, plane[:, :-1], plane[:, -1]


def _against(y: Tensor, c: Tensor, negatives: int, rng: torch.Generator) -> Tensor:
    """Positions of class c and of `negatives` times as many others, in the rows' order."""
    own, others = (y == c).nonzero()[:, 0], (y != c).nonzero()[:, 0]
    drawn = torch.randperm(len(others), generator=rng)[: negatives * len(own)]
    return torch.cat([own, others[drawn.to(y.device)]]).sort().values


def _solved(x: Tensor, y: Tensor, classes: Tensor, C: float, tol: float) -> Tensor:
    """The planes [M, D] of `classes` [M] for rows x [N, D], the constant one among the columns."""
    sign = (y[:, None] == classes).to(x).mul_(2).sub_(1)  # [N, M]
    gram, ends = x.T @ x, x.T @ sign  # [D, D], [D, M]
    fewer = (sign.sum(0).abs() - len(x)).abs() / 2  # rows on the smaller side
    goal = tol * fewer.clamp(min=1) / len(x) * (2 * C * ends).norm(dim=0)  # [M]
    w = torch.cholesky_solve(2 * C * ends, _factor(gram, 2 * C)).T.contiguous()
    left, z, before = torch.arange(len(w), device=x.device), x @ w.T, torch.inf
    solved = w.clone()
    for _ in range(NEWTON_STEPS):
        slack = (1 - sign * z).clamp_(min=0)  # [N, M]
        value = w.pow(2).sum(1) / 2 + C * slack.pow(2).sum(0)
        g = w - 2 * C * ((sign * slack).T @ x)
        # at the end of what the number type resolves, steps gain nothing any more
        stuck = before - value <= torch.finfo(x.dtype).eps * value
        still = (g.norm(dim=1) > goal) & ~stuck
        solved[left] = w
        if not still.any():
            break
        if not still.all():
            left, w, z, g = left[still], w[still], z[:, still], g[still]
            sign, slack, goal, value = sign[:, still], slack[:, still], goal[still], value[still]
        step = _newton_step(x, (slack > 0).to(x), g, C, gram)
        w, z = _moved(w, step, z, x @ step.T, sign, C, value, (g * step).sum(1))
        before = value
    return solved


def _factor(gram: Tensor, scale: float | Tensor) -> Tensor:
    """The Cholesky factor of I + scale * gram, which is kept away from being singular."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky(eye + scale * (gram + 1e-6 * gram.trace() * eye))


def _newton_step(x: Tensor, active: Tensor, g: Tensor, C: float, gram: Tensor) -> Tensor:
    """About -H^-1 g [M, D] by conjugate gradients, H = I + 2C sum over active rows of x x^T."""
    factor = _factor(gram, 2 * C * active.mean())
    step, rest, goal = torch.zeros_like(g), -g, CG_GOAL * g.norm(dim=1)
    direction = near = torch.cholesky_solve(rest.T, factor).T
    size = (rest * near).sum(1)  # [M]
    for _ in range(CG_STEPS):
        bent = direction + 2 * C * ((x @ direction.T).mul_(active).T @ x)  # H direction
        length = (size / (direction * bent).sum(1).clamp(min=1e-30))[:, None]
        step, rest = step + length * direction, rest - length * bent
        if (rest.norm(dim=1) <= goal).all():
            break
        near = torch.cholesky_solve(rest.T, factor).T
        size, old = (rest * near).sum(1), size
        direction = near + (size / old.clamp(min=1e-30))[:, None] * direction
    return step


def _moved(w, step, z, z_step, sign, C, value, slope) -> tuple[Tensor, Tensor]:
    """w [M, D] and z = x w^T [N, M] after the steps, each halved until its plane gains by it."""
    t, slack = torch.ones_like(value), torch.finfo(value.dtype).eps * value
    for _ in range(HALVINGS):
        w_new, z_new = w + t[:, None] * step, z + t * z_step
        new = w_new.pow(2).sum(1) / 2 + C * (1 - sign * z_new).clamp_(min=0).pow(2).sum(0)
        worse = new > value + 1e-4 * t * slope + slack
        if not worse.any():
            break
        t = torch.where(worse, t / 2, t)
    return w_new, z_new
