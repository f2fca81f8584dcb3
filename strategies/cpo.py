"""cpo: a movement penalty that holds the weights which earlier experiences moved most.

Source    "RL Forgets!", arXiv:2607.04364 (continual policy optimisation; its part that is added to
          the policy's loss, here for any loss)
Claim     forgetting is drift in weights that earlier tasks had moved, also under reinforcement
          learning; holding the few that moved most keeps the tasks, with no data stored
Loss      L + lam sum over tensors of mean_marked |theta - theta_ref|
Maths     after experience k, in every tensor: mark the `share` of elements with the largest
          |theta_k - theta_{k-1}| and set theta_ref there to theta_k; marks of earlier experiences
          stay, with their own theta_ref
State     marked, reference: {name: bool and float tensor, parameter's shape}; during an experience
          also start, theta_{k-1}
Needs     experience boundaries
Defaults  the paper's: lam=100, share=0.1. The pull on an element is lam over the marked elements of
          its tensor, whatever its distance: norms are held hard, large matrices softly, and with
          SGD a held element swings by lr times that
Departs   `sft+cpo` and `rft+cpo` instead of its own GSPO loss. What the source leaves open: an
          element that is marked twice is held at its latest value; k is the share rounded up, at
          least one; elements that did not move are not marked, so that a frozen tensor has no
          marks; head rows that come later are free until they have been learned
Parameters
    lam    strength; 0 is the base method [1]
    share  of each tensor's elements that an experience marks [1]
"""

from __future__ import annotations

import math
from typing import Annotated

import torch

from cl.config import Range
from cl.importance import Named, grown, values
from cl.registry import register
from cl.strategy import Strategy


@register
class CPO(Strategy):
    """A movement penalty."""

    by_name = True
    needs = ("boundaries",)

    def __init__(
        self,
        *,
        lam: Annotated[float, Range(min=0)] = 100.0,
        share: Annotated[float, Range(above=0, max=1)] = 0.1,
    ):
        self.lam, self.share = lam, share
        self.marked: Named = {}
        self.reference: Named = {}
        self.start: Named = {}

    def before_training_exp(self, loop):
        """Remember where the movement begins."""
        if self.lam:
            self.start = values(loop.model)

    def before_backward(self, loop):
        """Add the penalty."""
        if self.lam and self.marked:
            held = penalty(loop.model, self.marked, self.reference)
            loop.add_loss("cpo", self.lam * held)

    def after_training_exp(self, loop):
        """Mark what moved most; those elements are held where they are now."""
        for name, p in loop.model.named_parameters() if self.start else ():
            now = p.detach()
            new = most_moved(now - self.start[name], self.share)
            if name in self.marked:
                old, held = (grown(part[name], now) for part in (self.marked, self.reference))
            else:
                old, held = torch.zeros_like(new), torch.zeros_like(now)
            self.marked[name] = old.bool() | new
            self.reference[name] = torch.where(new, now, held)
        self.start = {}


def most_moved(movement, share):
    """Bool of the movement's shape: the ceil(share n) largest in size, zeros left out."""
    size = movement.abs().flatten()
    k = math.ceil(share * len(size) - 1e-9)
    marked = torch.zeros_like(size, dtype=torch.bool)
    marked[size.topk(k).indices] = True
    return (marked & (size > 0)).view_as(movement)


def penalty(model, marked, reference):
    """Sum over tensors of the mean over marked elements of |theta - theta_ref|."""
    terms = []
    for name, p in model.named_parameters():
        if p.requires_grad and name in marked:
            mark = marked[name]
            gap = p[: len(mark)] - reference[name] if mark.shape != p.shape else p - reference[name]
            terms.append((gap.abs() * mark).sum() / mark.sum().clamp(min=1))
    return torch.stack(terms).sum() if terms else next(model.parameters()).new_zeros(())
