"""bic: distillation with exemplars, then a linear correction of the new classes' outputs.

Source    Wu et al., CVPR 2019, arXiv:1905.13260
Claim     the bias towards new classes is in the last layer, and two numbers fitted on a small
          balanced set that was kept out of training correct it, also for thousands of classes
Loss      stage one: lam L_d + (1 - lam) L_c, lam = n / (n + m) for n old and m new classes;
          L_c cross-entropy, L_d = -sum over old k of pi^_k log pi_k, pi = softmax(outputs of old
          classes / T) of the model, pi^ of the corrected model before this experience
          stage two, the model fixed: cross-entropy of q on the held-out rows + l2 / 2 beta^2,
          q_k = o_k for old classes, alpha o_k + beta for new ones
State     exemplars, val {class: rows as they came}: size // classes seen of each, a share `val`
          of them held out from training for good; counts {class: rows seen}; rest int64 or
          None: rows of the running experience to train on; old: the corrected model before this
          experience; past int64 [P]; raw: (classes, weight, bias) of the head's rows before
          correction
Needs     experience boundaries, a buffer; task labels are used where a scenario gives them
Defaults  T = 2, lam and train:val = 9:1 the paper's; the fit (momentum 0.9, lr 0.1, 200 epochs,
          l2 = 0.1 on beta) from the authors' code; 200 exemplars (ours; the paper has 2000 for
          100 classes)
Departs   the correction is written into the head's rows for new classes, and taken out again when
          the next experience begins, instead of being a layer of its own; as in the authors' code
          only the newest classes are corrected, distillation hands earlier corrections on; the
          fit is on all held-out rows at once at a constant rate; exemplars are herded as iCaRL
          does, old lists are cut, not herded again; old classes are the past ones that the
          experience does not bring: where every experience has all classes nothing is distilled
          or corrected; L_d is over all old classes even where task labels are given; rows that
          return in a later visit may be held out there and trained on here, or the other way; no
          correction while a class has a single row
Parameters
    size         rows stored in all, held-out ones included [rows]
    T            temperature of the distillation [1]
    val          share of the stored rows held out, and as many of each new class [1]
    bias_epochs  updates of alpha and beta; 0 leaves outputs as they are [epochs]
    bias_lr      learning rate of alpha and beta [1]
    l2           penalty on beta [1]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from cl.config import Range
from cl.data import Table
from cl.herding import as_table, check_size, cut, past_classes, refreshed
from cl.registry import register
from cl.seeding import frozen
from cl.strategy import Strategy


@register
class BiC(Strategy):
    """Bias correction."""

    needs = ("boundaries", "buffer")
    requires = ("features", "head")
    domains = ("vision",)
    instead = {"llm": "replay", "rl": "cloning_replay"}

    def __init__(
        self,
        *,
        size: Annotated[int, Range(min=2)] = 200,
        T: Annotated[float, Range(above=0)] = 2.0,
        val: Annotated[float, Range(above=0, below=1)] = 0.1,
        bias_epochs: Annotated[int, Range(min=0)] = 200,
        bias_lr: Annotated[float, Range(above=0)] = 0.1,
        l2: Annotated[float, Range(min=0)] = 0.1,
    ):
        self.size, self.T, self.val_share = size, T, val
        self.bias_epochs, self.bias_lr, self.l2 = bias_epochs, bias_lr, l2
        self.exemplars = {}  # {class: {column: [m - v, ...]}}
        self.val = {}  # {class: {column: [v, ...]}}
        self.counts = {}  # {class: rows seen}
        self.rest = None  # int64, positions in experience.train
        self.old = None  # snapshot
        self.past = None  # int64 [P]
        self.raw = None  # (int64 [M], weight [M, D], bias [M])

    def check(self, loop):
        """Every class must get a row to train on and one held out in the end."""
        check_size(loop, self.size, each=2)

    def before_train_dataset_adaptation(self, loop):
        """Hold out as many rows of each class as are held out of each old one."""
        n = loop.known_classes or loop.seen_classes
        self._hold_out(loop, shares(self.size, n, self.val_share)[1])

    def data(self, loop, experience):
        """The experience's rows and all exemplars, but not the held-out ones."""
        train = experience.train.select(self.rest)
        return Table.concat([train, as_table(self.exemplars)]) if self.exemplars else train

    def before_training_exp(self, loop):
        """Go on from the outputs as they were before correction."""
        self.past = past_classes(loop)
        if self.raw is not None:
            write_rows(loop.model.head, *self.raw)
            self.raw = None

    def before_backward(self, loop):
        """Stage one: turn L_c into lam L_d + (1 - lam) L_c."""
        if not len(self.past):
            return
        lam = len(self.past) / (len(self.past) + len(loop.experience.classes))
        with torch.no_grad():
            before = self.old(loop.mb_x)
        kd = distillation(loop.mb_output[:, self.past], before[:, self.past], self.T)
        loop.add_loss("bic", lam * (kd - loop.objective.loss(loop)))

    def after_training_exp(self, loop):
        """Stage two, then choose exemplars and keep the corrected model."""
        train = loop.experience.train.select(self.rest)
        m, v = shares(self.size, loop.seen_classes, self.val_share)
        if len(self.past):
            self._correct(loop)
        self.exemplars, self.counts = refreshed(loop, self.exemplars, self.counts, train, m)
        self.val, self.rest = cut(self.val, v), None
        self.old = loop.snapshot()

    def _hold_out(self, loop, v):
        """Draw v rows of each class (at most the share, at least one) into `val`."""
        train, rng = loop.experience.train, loop.rng("bic.val")
        y, rest = train.column("y"), []
        for c in loop.experience.classes:
            index = (y == c).nonzero()[:, 0]
            index = index[torch.randperm(len(index), generator=rng).to(index.device)]
            n = min(v, max(1, int(self.val_share * len(index))), len(index) - 1)
            rows = train.rows(index[:n])
            if c in self.val:  # it returns: rows of both times, mixed
                rows = {name: torch.cat([self.val[c][name], rows[name]]) for name in rows}
                order = torch.randperm(len(rows["y"]), generator=rng).to(index.device)
                rows = {name: column[order] for name, column in rows.items()}
            self.val[c] = rows
            rest.append(index[n:])
        self.rest = torch.cat(rest).sort().values

    def _correct(self, loop):
        """Fit alpha and beta on as many held-out rows of every class and write them."""
        n = min(len(rows["y"]) for rows in self.val.values())
        if n == 0:  # a class of one row has none to hold out
            return
        table = as_table(cut(self.val, n))
        with frozen(loop.model) as model:
            o = torch.cat([model(x) for x, _ in loop.inputs(table)])
        task = table.column("task_label") if "task_label" in table.columns else None
        allowed = loop.restricted(torch.zeros_like(o), task)  # 0 or -inf
        new = torch.tensor(loop.experience.classes, device=loop.device)
        alpha, beta = fit(
            o, table.column("y"), new, allowed, self.bias_epochs, self.bias_lr, self.l2
        )
        head = loop.model.head
        weight, bias = head.weight.detach()[new], head.bias.detach()[new]
        self.raw = new, weight, bias
        write_rows(head, new, alpha * weight, alpha * bias + beta)


def shares(size, n_classes, val):
    """Rows stored of each class: (to train on, held out), at least one of either."""
    m = size // n_classes
    v = min(max(1, int(val * m)), m - 1)
    return m - v, v


def distillation(output, before, T):
    """-sum pi^ log pi of outputs [B, P] and those of the old model [B, P], averaged over rows."""
    pi_old = torch.softmax(before.float() / T, 1)
    return -(pi_old * torch.log_softmax(output.float() / T, 1)).sum(1).mean()


def fit(o, y, new, allowed, epochs, lr, l2):
    """alpha, beta (0-dim) for the columns `new` of outputs o [N, C]; allowed [N, C]: 0 or -inf."""
    theta = torch.tensor([1.0, 0.0], device=o.device, requires_grad=True)
    corrected = torch.zeros(o.shape[1], device=o.device).index_fill(0, new, 1.0)  # [C]
    optimizer = torch.optim.SGD([theta], lr, momentum=0.9)
    for _ in range(epochs):
        alpha, beta = theta
        q = torch.where(corrected > 0, alpha * o + beta, o)
        loss = F.cross_entropy(q + allowed, y) + l2 / 2 * beta**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return theta.detach().unbind()


@torch.no_grad()
def write_rows(head, classes, weight, bias):
    """Set the head's rows of `classes` [M]: weight [M, D], bias [M]."""
    head.weight[classes] = weight
    head.bias[classes] = bias
