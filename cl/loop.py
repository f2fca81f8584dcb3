"""The loop: experience > epoch > minibatch > hooks.

Hook names, their order and the attribute names are those of Avalanche's supervised templates
(avalanche-lib 0.6.0); the code is our own. One update is one optimizer step. Evaluations and
checkpoints fall between updates and change neither weights nor random state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl.buffers import Buffer
from cl.data import Table
from cl.evaluation import Evaluator, InferenceBatch, Scores
from cl.models import grow
from cl.objectives import Objective
from cl.optim import Synchroniser, build, clip_gradients, set_lr
from cl.prequential import Prequential
from cl.rollouts import Rollouts
from cl.seeding import generator
from cl.settings import Eval as EvalConfig
from cl.settings import Train
from cl.steps import Steps
from cl.strategy import Strategy, claims_of, hooks_of
from cl.stream import Experience, Stream
from cl.toolbox import Toolbox, hooked
from cl.watch import LossWatch


@dataclass
class Clock:
    """Counts, under Avalanche's names; `train_iterations` is the number of updates so far."""

    train_iterations: int = 0
    train_exp_counter: int = 0
    train_exp_epochs: int = 0
    train_exp_iterations: int = 0
    train_epoch_iterations: int = 0


class Loop(Toolbox):
    """Runs strategies over a stream.

    Everything here may be read by a strategy; what it may write is said at the hooks
    (`cl/strategy.py`). `observer` gets `scores(loop, kind)` after every evaluation,
    `losses(loop, means)` every CHECK_EVERY updates and `tick(loop)` after every update, when all
    that belongs to it is done: there checkpoints are made. `start` and `inside` say where `run`
    begins: with an experience, or in the middle of it (`cl/state.py` puts a loop there).
    """

    restarts: str | None = None  # why a checkpoint is not enough to go on from

    def __init__(
        self,
        *,
        stream: Stream,
        strategies: list[Strategy],
        model: nn.Module,
        objective: Objective,
        train: Train,
        evaluation: EvalConfig,
        seed: int,
        device: torch.device,
        observer=None,
        resumed: bool = False,
    ):
        self.stream, self.plugins, self.train, self.eval = stream, strategies, train, evaluation
        self.seed, self.device, self.observer = seed, device, observer
        self.resumed = resumed  # what a run had to find out before it began is known then
        self.start, self.inside = 0, False
        self.buffers: dict[str, Buffer] = {}
        self.clock = Clock()
        self.generators: dict[str, torch.Generator] = {}
        self.samples_seen = self.tokens_seen = 0  # tokens: of text, without padding
        self.env_steps = 0  # that a policy has made in training
        self.extra_updates = 0  # optimizer steps of strategies' own, outside the loop's updates
        self.put_back: dict[str, Tensor] | None = None  # what the next experience starts from
        self.trained: dict[str, int] = {}
        self.is_training = False
        self.train_epochs, self.train_mb_size = train.epochs, train.batch_size
        self.eval_mb_size = evaluation.batch_size
        self.experience: Experience | None = None
        self.adapted_dataset: Table | None = None
        self.dataloader = None
        self.mb_x = self.mb_y = self.mb_task_id = self.mb_output = self.mb_index = None
        self.mb_share, self.mb_part = 1.0, (0, 1)  # of the batch; (which, of how many)
        # the policy's own answers, or its steps in environments, that are learned from
        self.rollouts: Rollouts | Steps | None = None
        self.reported: dict[str, dict[int, float]] = {}  # numbers of strategies, by experience
        self.batch_index: Tensor | None = None  # rows of the whole update, int64 [B]
        self.no_score: str | None = None
        self._loss: Tensor | None = None
        self._stop = self._loss_open = False
        self._total = self._epochs = 0  # updates and epochs planned for this experience
        self._scheduled = train.schedule != "constant" or train.warmup > 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._model = model.to(device)
        self.hooked = hooked(model)
        self._claims = claims_of(strategies)
        self.hooks = hooks_of(strategies)
        self.probes = {}
        self._watch = LossWatch(self)
        self.prequential = Prequential(self)
        self._pursue(objective)
        for strategy in strategies:
            strategy.check(self)

    def _pursue(self, objective: Objective) -> None:
        """Take the objective, or that which a strategy claims, and what comes with it."""
        self.objective = objective
        self.objective = self._claimed("objective", objective, self)
        if hasattr(self.objective, "adapted"):
            self.stream = self.objective.adapted(self.stream, self.seed, self.device)
        self._criterion: Callable = getattr(self.objective, "criterion", None)
        self._rows = getattr(self.objective, "rows", None)  # else those of the training data
        self._evaluator = getattr(self.objective, "evaluator", Evaluator)(self)
        if hasattr(self.objective, "check"):
            self.objective.check(self)

    # -- what strategies use -------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model; assigning another one brings the optimizer into step with it."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = model.to(self.device).train(self.is_training)
        if self._optimizer is not None:
            self.synchroniser.sync(self._model)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer; it exists from the first experience on."""
        return self._optimizer

    def predict(self, batch: InferenceBatch) -> Tensor:
        """Scores [B, C] by the claimant of `predict`, else by the objective."""
        owner = self._claims.get("predict")
        return owner.predict(self, batch) if owner else self.objective.predict(self, batch)

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Learn what is left of the stream, scoring and checkpointing after each experience."""
        if self.start == 0 and not self.inside:
            self.grow_to(self.stream.seen_classes(0))
            self._score("untrained")
            self.is_training = True
            self.fire("before_training")
        for experience in self.stream.experiences[self.start :]:
            if not self.inside:
                self.no_score = None
                if self.put_back is not None:
                    self._model.load_state_dict(self.put_back)
                    self.put_back = None
            self._learn(experience)
            if experience is self.stream.experiences[-1]:
                self.fire("after_training")
            self.is_training = False
            self._watch.flush(weights=True)
            self.clock.train_exp_counter += 1
            self._score("experience")

    def grow_to(self, n_classes: int) -> None:
        """Make the head at least `n_classes` wide."""
        owner = self._claims.get("grow")
        owner.grow(self._model, n_classes) if owner else grow(
            self._model, n_classes, generator(self.seed, f"head_{n_classes}")
        )
        self._model.to(self.device)

    def fire(self, name: str) -> None:
        """Call one hook of every strategy that overrides it, in order."""
        for hook in self.hooks[name]:
            hook(self)

    def prepare_optimizer(self) -> None:
        """Build the optimizer if there is none, else bring it into step with the model."""
        reset = self.train.reset_optimizer and "optimizer" not in self._claims
        if self._optimizer is None or reset:
            owner = self._claims.get("optimizer")
            self._optimizer = owner.optimizer(self) if owner else build(self._model, self.train)
            self.synchroniser = Synchroniser(self._optimizer, self._model)
        self.synchroniser.sync(self._model)

    def _learn(self, experience: Experience) -> None:
        if not self.inside:
            self._begin(experience)
        if self.dataloader is not None:
            try:
                self._train_epochs()
            finally:
                if hasattr(self.dataloader, "close"):
                    self.dataloader.close()
        self.prequential.flush()
        self.fire("after_training_exp")
        self.mb_x = self.mb_y = self.mb_task_id = self.mb_output = self.mb_index = None
        self._loss = self.rollouts = None

    def _begin(self, experience: Experience) -> None:
        """Everything about an experience that comes before its first epoch."""
        if self.acts:
            self.objective.forget()
        self.experience, self.is_training, self._stop = experience, True, False
        clock = self.clock
        clock.train_exp_epochs = clock.train_exp_iterations = 0
        self.fire("before_train_dataset_adaptation")
        self.adapted_dataset = self._claimed("data", experience.train, self, experience)
        self.fire("after_train_dataset_adaptation")
        table = self.adapted_dataset
        self.dataloader = None if table is None else self.objective.batches(self, table)
        self.grow_to(self.seen_classes)
        if self.stream.online and not self.by_batch:
            self.prequential.piece(experience.train)
        self.prepare_optimizer()
        self._model.train()
        self.fire("before_training_exp")
        self.synchroniser.sync(self._model)
        if table is not None:
            named = self._model.named_parameters()
            self.trained |= {name: p.numel() for name, p in named if p.requires_grad}

    @property
    def by_batch(self) -> bool:
        """Whether each batch is answered before it is learned."""
        return self.stream.online and not self.claimed("data")

    @property
    def exp_updates(self) -> int:
        """Updates planned for the current experience."""
        if self.dataloader is None:
            return 0
        planned = self.train_epochs * len(self.dataloader)
        return min(planned, self.train.updates or planned)

    @property
    def _over(self) -> bool:
        """Whether the experience's last update has been made."""
        return self._stop or self.clock.train_exp_iterations >= self._total

    def _train_epochs(self) -> None:
        if not self.inside:
            self._total, self._epochs = self.exp_updates, self.train_epochs
            set_lr(self._optimizer, self.train, 0, self._total)
        while self.inside or (self.clock.train_exp_epochs < self._epochs and not self._over):
            batches = self._rest_of_epoch()
            while not self._over and (index := next(batches, None)) is not None:
                self._update(index)
            self.fire("after_training_epoch")
            self.clock.train_exp_epochs += 1

    def _rest_of_epoch(self) -> Iterator[Tensor]:
        """The batches of a new epoch; where a run goes on inside of one, those that are left."""
        if self.inside:
            self.inside = False
            return self.dataloader.rest()
        self.clock.train_epoch_iterations = 0
        self.fire("before_training_epoch")
        return iter(() if self._stop else self.dataloader)

    def _update(self, index: Tensor) -> None:
        """One optimizer step on the rows at positions `index` [B] of the adapted data."""
        hooks, clock = self.hooks, self.clock
        several = self.train.accumulate > 1
        parts = index.split(-(-len(index) // self.train.accumulate)) if several else (index,)
        if self.by_batch:
            self.prequential.batch(self.adapted_dataset, index)
        self._fetch(0, parts, index)
        if hooks["before_training_iteration"]:
            self.fire("before_training_iteration")
        self._optimizer.zero_grad()
        self._forward_backward()
        for k in range(1, len(parts)):
            self._fetch(k, parts, index)
            self._forward_backward()
        self.mb_index = index
        if hooks["before_update"]:
            self.fire("before_update")
        if self.train.clip is not None:
            clip_gradients(self._optimizer, self.train.clip)
        if self._scheduled:
            set_lr(self._optimizer, self.train, clock.train_exp_iterations, self._total)
        self._optimizer.step()
        if hooks["after_update"]:
            self.fire("after_update")
        if hooks["after_training_iteration"]:
            self.fire("after_training_iteration")
        clock.train_iterations += 1
        clock.train_exp_iterations += 1
        clock.train_epoch_iterations += 1
        self._after_update()

    def _fetch(self, k: int, parts: Sequence[Tensor], batch: Tensor) -> None:
        """Put micro-batch k of `batch` on the loop."""
        part, self.batch_index = parts[k], batch
        self.mb_index, self.mb_share = part, part.shape[0] / batch.shape[0]
        self.mb_part = k, len(parts)
        rows = self.adapted_dataset.rows if self._rows is None else self._rows
        self.objective.load(self, rows(part))

    def _forward_backward(self) -> None:
        """Add the gradient of a micro-batch, weighted by its share of the batch."""
        hooks, watch, share = self.hooks, self._watch, self.mb_share
        if hooks["before_forward"]:
            self.fire("before_forward")
        self.samples_seen += len(self.mb_y)
        with self.autocast():
            self.mb_output = self.objective.forward(self)
            if hooks["after_forward"]:
                self.fire("after_forward")
            base = self.objective.loss(self)
        # hooks may add in place, so the logged value of the objective is kept apart
        self._loss = base.clone() if hooks["before_backward"] else base
        if hooks["before_backward"]:
            watch.term(self.objective.name, base)
            self._loss_open = True
            self.fire("before_backward")
            self._loss_open = False
        loss = self._loss if share == 1 else self._loss * share
        loss.backward()
        if hooks["after_backward"]:
            self.fire("after_backward")
        watch.total(self._loss, share)

    def _after_update(self) -> None:
        """Between updates: look at losses, evaluate; then the observer's turn."""
        updates, every = self.clock.train_iterations, self.eval.every
        self._watch.step()
        # the last update of an experience is scored once, at the experience's end
        if every and updates % every == 0 and not self._over:
            self._watch.flush()
            scores = self._score("periodic")
            if self.train.until is not None and self._reached(scores):
                self.stop_training()
        if self.observer is not None:
            self.observer.tick(self)

    def _reached(self, scores: Scores) -> bool:
        """Whether what this experience teaches has the score of train.until, on validation data."""
        index, evals = self.experience.index, self.stream.evals
        own = [s for e, s in zip(evals, scores.val, strict=True) if index in e.learned_at]
        return sum(own) / len(own) >= float(self.train.until.removeprefix("val>="))

    def _score(self, kind: str) -> Scores | None:
        if self.observer is None and self.train.until is None:
            return None
        started = time.perf_counter()
        was_training, self.is_training = self.is_training, False
        keep = self.mb_x, self.mb_y, self.mb_task_id, self.mb_output
        scores = self._evaluator.score(kind)
        self.mb_x, self.mb_y, self.mb_task_id, self.mb_output = keep
        self.is_training = was_training
        if self.observer is not None:
            self.observer.scores(self, kind, scores, time.perf_counter() - started)
        return scores

    def _claimed(self, claim: str, default, *args):
        owner = self._claims.get(claim)
        return getattr(owner, claim)(*args) if owner else default

    def autocast(self):
        """The precision that training computes in."""
        if self.train.precision == "float32":
            return _NULL
        return torch.autocast(self.device.type, torch.bfloat16)


_NULL = nullcontext()
