"""wa: distillation with exemplars, then weights of new classes scaled to the old ones' norm.

Source    Zhao et al., CVPR 2020, arXiv:1911.07053
Claim     the bias towards new classes is in the head: its new rows are longer; scaling them to
          the old rows' mean length after training removes it, without further parameters or data
Loss      (1 - lam) CE + lam KD,  lam = old classes / all classes
          KD = -sum over old classes k of q^_k log q_k, q = softmax(outputs of old classes / T)
          of the model, q^ of the model before this experience, averaged over rows
          on the union of the experience's rows and all exemplars
Maths     after training, outputs of new classes times
          gamma = mean || w_old || / mean || w_new ||, 2-norms of the head's rows w;
          the head has no bias; after every update its negative weights are set to 0
State     exemplars {class: rows as they came [m, ...]}, m = size // classes seen, herded
          (`cl/herding.py`); counts {class: rows seen}; old: the aligned model before this
          experience; past int64 [P]
Needs     experience boundaries, a buffer; task labels are used where a scenario gives them
Defaults  T = 2 and lam the paper's; 200 exemplars (ours; the paper has 2000 for 100 classes)
Departs   the head's bias is there, but held at 0; old classes are the past ones that the
          experience does not bring: where every experience has all classes nothing is distilled
          or aligned, and the union is learned from its labels; KD is over all old classes even
          where task labels are given. By default the authors' code takes 1-norms (the paper finds
          both alike); it keeps gamma at 1 or less and starts each experience with a new head
Parameters
    size   exemplars stored in all [rows]
    T      temperature of the distillation [1]
    align  scale the new rows after each experience
    clip   set negative head weights to 0 after every update: without it new rows may be the
           shorter ones, and aligning then adds to the bias (it does on split_digits)
"""

from __future__ import annotations

from typing import Annotated

import torch

from cl.config import Range
from cl.data import Table
from cl.herding import as_table, check_size, past_classes, refreshed
from cl.registry import register
from cl.strategy import Strategy


@register
class WA(Strategy):
    """Weight aligning."""

    needs = ("boundaries", "buffer")
    requires = ("features", "head")
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=1)] = 200,
        T: Annotated[float, Range(above=0)] = 2.0,
        align: bool = True,
        clip: bool = True,
    ):
        self.size, self.T, self.align, self.clip = size, T, align, clip
        self.exemplars = {}  # {class: {column: [m, ...]}}
        self.counts = {}  # {class: rows seen}
        self.old = None  # snapshot
        self.past = None  # int64 [P]

    def check(self, loop):
        """Every class must get an exemplar in the end."""
        check_size(loop, self.size)

    def data(self, loop, experience):
        """The experience's rows and all exemplars."""
        if not self.exemplars:
            return experience.train
        return Table.concat([experience.train, as_table(self.exemplars)])

    def before_training_exp(self, loop):
        """Which classes are old; no bias."""
        self.past = past_classes(loop)
        loop.model.head.bias.requires_grad_(False).zero_()

    def before_backward(self, loop):
        """Turn CE into (1 - lam) CE + lam KD."""
        if not len(self.past):
            return
        lam = len(self.past) / (len(self.past) + len(loop.experience.classes))
        with torch.no_grad():
            before = self.old(loop.mb_x)
        kd = distillation(loop.mb_output[:, self.past], before[:, self.past], self.T)
        loop.add_loss("wa", lam * (kd - loop.objective.loss(loop)))

    def after_update(self, loop):
        """Restrict the head's weights."""
        if self.clip:
            with torch.no_grad():
                loop.model.head.weight.clamp_(min=0)

    def after_training_exp(self, loop):
        """Align, choose exemplars, keep the model to be distilled."""
        if self.align and len(self.past):
            head = loop.model.head
            new = torch.tensor(loop.experience.classes, device=loop.device)
            head.write(aligned(head.weight.detach(), self.past, new), head.bias)
        m = self.size // loop.seen_classes
        train = loop.experience.train
        self.exemplars, self.counts = refreshed(loop, self.exemplars, self.counts, train, m)
        self.old = loop.snapshot()


def distillation(output, before, T):
    """-sum q^ log q of outputs [B, P] and those of the old model [B, P], averaged over rows."""
    q_old = torch.softmax(before.float() / T, 1)
    return -(q_old * torch.log_softmax(output.float() / T, 1)).sum(1).mean()


def aligned(weight, old, new):
    """Head weights [C, D] with the rows `new` scaled by gamma."""
    norms = weight.norm(dim=1)
    gamma = norms[old].mean() / norms[new].mean().clamp_min(1e-12)
    return weight.index_copy(0, new, gamma * weight[new])
