"""packnet: a share of the weights for every task, the smallest of them freed for the next one.

Source    Mallya and Lazebnik, CVPR 2018, arXiv:1711.05769; equal shares and the treatment of a
          policy: Continual World, Wolczyk et al., NeurIPS 2021, arXiv:2105.10919
Claim     a network can be pruned after each task with little loss, so that several tasks fit into
          one without any forgetting
Maths     in each layer the free weights are trained on task k; then those of them with the largest
          |theta|, a share `keep` of the free ones, become the task's, the others become 0 and stay
          free; the task's are trained on; afterwards nothing moves them. At inference task j has
          the weights of tasks 0..j, all others count as 0
State     owner: {name: int16 tensor, parameter's shape}: the experience that a weight belongs to,
          FREE (-1); own: {task label: {name: tensor}}: head, spread, statistics of observations;
          visits: {task label: its latest experience}; during an experience also fixed, the
          weights that must not move, and pruned
Needs     experience boundaries; task labels, also at inference; stream_length, if keep=none
Defaults  equal shares of each layer for all tasks, as in Continual World (the paper keeps half or a
          quarter of the free weights each time); retrain: ours
Departs   retraining is the last share of an experience's updates, not added to it, and begins with
          a new batch of steps where a policy makes them; optimizer and schedule go on. The last
          task of equal shares has all that is left and is not pruned. Biases and norms are fixed
          after the first task (batch-norm statistics too), as in the paper. Heads are one per task:
          a task begins with the head as the last one left it and keeps its own copy, with
          the statistics of observations where they are normalised. What the scores do not depend
          on, a critic of its own, is neither pruned nor held; log_std is one for all tasks. A task
          that comes back has its head again and a share more, and its view grows to all tasks so
          far. Tasks that are still to come are answered by the model as it is
Parameters
    keep     share of a layer's free weights that a task keeps; none: 1 / (tasks to come + 1) [1]
    retrain  share of an experience's updates after pruning; 0: none [1]
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch.func import functional_call

from cl.config import Range
from cl.errors import BadValue
from cl.importance import evaluating
from cl.models.anatomy import NORMS
from cl.models.selection import packed
from cl.registry import register
from cl.strategy import Strategy

FREE = -1


@register
class PackNet(Strategy):
    """Iterative pruning."""

    by_name = True
    domains = ("vision", "rl")

    def __init__(
        self,
        *,
        keep: Annotated[float, Range(above=0, max=1)] | None = None,
        retrain: Annotated[float, Range(min=0, below=1)] = 0.25,
    ):
        self.needs = ("boundaries", "task_id_train", "task_id_test")
        self.needs += ("stream_length",) if keep is None else ()
        self.keep, self.retrain = keep, retrain
        self.owner, self.own, self.visits = {}, {}, {}
        self.fixed = {}  # {name: (bool, what is trained; values of the rest)}
        self.pruned = False
        self.views = None  # {task label: {name: tensor}}, during an evaluation

    def check(self, loop):
        """There must be something to prune."""
        if not parts(loop).weights:
            raise BadValue("packnet finds nothing to prune: all is head, norms and biases")

    def before_training_exp(self, loop):
        """What is free can be trained; a task that comes back gets its head."""
        named = dict(loop.model.named_parameters())
        for name in parts(loop).weights if not self.owner else ():
            self.owner[name] = torch.full_like(named[name], FREE, dtype=torch.int16)
        state = loop.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, held in self.own.get(loop.experience.task_label, {}).items():
                state[name][: len(held)] = held
        if self.visits:
            for module in loop.model.modules():
                if isinstance(module, NORMS):
                    module.eval()
        self.pruned = False
        self._fix(loop)

    def before_rollout(self, loop):
        """Prune between two batches of steps, if it is time."""
        left = 1 - loop.clock.train_exp_iterations / max(1, loop.exp_updates)
        if not self.pruned and left <= self.retrain:
            self._prune(loop)

    def before_training_iteration(self, loop):
        """Or between two updates."""
        if not loop.acts:
            self.before_rollout(loop)

    def before_update(self, loop):
        """Only what is the task's moves."""
        for name, p in loop.model.named_parameters():
            if name in self.fixed and p.grad is not None:
                p.grad.mul_(self.fixed[name][0])

    @torch.no_grad()
    def after_update(self, loop):
        """Nor does weight decay or momentum move anything else."""
        for name, p in loop.model.named_parameters():
            if name in self.fixed:
                trained, values = self.fixed[name]
                p.copy_(torch.where(trained, p, values))

    def after_training_exp(self, loop):
        """The task's view is complete."""
        if loop.adapted_dataset is None:
            return
        if not self.pruned:
            self._prune(loop)
        label, state = loop.experience.task_label, loop.model.state_dict()
        self.own[label] = {name: state[name].clone() for name in parts(loop).heads}
        self.visits[label] = loop.experience.index
        free = [(owner == FREE).float().mean() for owner in self.owner.values()]
        loop.report("free_share", float(torch.stack(free).mean()))
        self.fixed = {}

    def before_eval(self, loop):
        """Views are made when they are asked for."""
        self.views = {}

    def predict(self, loop, batch):
        """Each row by its task's view."""
        rows = {label: batch.task_label == label for label in batch.task_label.unique().tolist()}
        views = {label: self._view(loop, label) for label in rows}
        found = {k: functional_call(loop.model, views[k], (batch.x[at],)) for k, at in rows.items()}
        n = max(loop.seen_classes, *(scores.shape[1] for scores in found.values()))
        whole = batch.x.new_full((len(batch.x), n), float("-inf"))
        for label, scores in found.items():
            whole[rows[label], : scores.shape[1]] = scores.to(whole)
        return whole

    def after_eval(self, loop):
        """Weights move on."""
        self.views = None

    def _view(self, loop, label):
        """{name: tensor} in place of the model's own; none for what is being learned or to come."""
        if label not in self.visits or (self.fixed and label == loop.experience.task_label):
            return {}
        found = (self.views or {}).get(label)
        if found is None:
            found, last = dict(self.own[label]), self.visits[label]
            for name, p in loop.model.named_parameters():
                if (owner := self.owner.get(name)) is not None:
                    found[name] = p.detach() * ((owner != FREE) & (owner <= last))
            if self.views is not None:
                self.views[label] = found
        return found

    @torch.no_grad()
    def _prune(self, loop):
        """The largest free weights become the task's, the others 0."""
        k = loop.experience.index
        share = self.keep or 1 / (len(loop.stream) - k)
        for name, p in loop.model.named_parameters():
            if name in self.owner:
                kept = largest(p, self.owner[name] == FREE, share)
                self.owner[name][kept] = k
                p[self.owner[name] == FREE] = 0
        self.pruned = True
        self._fix(loop)

    def _fix(self, loop):
        """What can move from now on, and the values of what can't."""
        mine = loop.experience.index if self.pruned else FREE
        held = parts(loop).rest if self.visits else []
        self.fixed = {}
        for name, p in loop.model.named_parameters():
            if name in self.owner or name in held:
                owner = self.owner.get(name)
                trained = torch.zeros_like(p, dtype=torch.bool) if owner is None else owner == mine
                self.fixed[name] = trained, p.detach().clone()


def largest(p, among, share):
    """Bool like p: the given share, rounded, of the elements `among` with the largest |p|."""
    n = round(share * int(among.sum()))
    kept = torch.zeros_like(among).flatten()
    kept[p.abs().masked_fill(~among, -1).flatten().topk(n).indices] = True
    return kept.view_as(among)


def parts(loop):
    """Names in the model as it is: `weights` to prune, `rest` to hold, `heads` of each task."""
    x = torch.zeros(1, *loop.stream.input_shape, device=loop.device)
    with evaluating(loop.model) as model:
        return packed(model, x)
