"""The loop for Avalanche's plug-ins: their data, their order of events, their random numbers.

`Template` is what a plug-in gets as `strategy`; the state that both sides use lives on the loop.
An experience is what one call of `train(experience)` is in Avalanche: `before_training` and
`after_training` of its plug-ins fire for each, those of our strategies once per stream. Training
draws from the global generators, which are seeded from the run's seed when the loop is made.
Evaluation, recording and prediction are those of every other run.
"""

from __future__ import annotations

import math

import torch
from avalanche.models import BaseModel, avalanche_forward
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from cl.avalanche import AvalancheStrategy
from cl.avalanche_template import LastScores, Template, benchmark_of
from cl.errors import BadValue
from cl.evaluation import Scores
from cl.loop import Loop
from cl.models import Classifier
from cl.optim import build, set_lr
from cl.seeding import seed_globals
from cl.stream import Experience

FLAT = {"AGEMPlugin", "GSS_greedyPlugin"}  # take flat views of gradients: no channels-last models


def _answers_apart(model: nn.Module, plugin=None) -> bool:
    return hasattr(model, "eval_classifier")


def _ends_in_linear(model: nn.Module, plugin) -> bool:
    return isinstance([None, *model.children()][-1], nn.Linear)


def _keeps_features(model: nn.Module, plugin) -> bool:
    return not callable(getattr(model, "features", None))


def _names_a_layer(model: nn.Module, plugin) -> bool:
    return plugin.name_ext_layer is not None or not isinstance(model, Classifier)


# what plug-ins take for granted of the model: a test, and its words
_OWN = (_answers_apart, "avalanche.models.TrainEvalModel with a classifier of its kind as model=")
MODELS = {
    **dict.fromkeys(("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle"), _OWN),
    **dict.fromkeys(("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle"), _OWN),
    "LFLPlugin": (lambda m, p: isinstance(m, BaseModel), "a model= derived from its BaseModel"),
    "CoPEPlugin": (_ends_in_linear, "a model= whose last child is a torch.nn.Linear"),
    "FeatureDistillationPlugin": (_keeps_features, "a model= that sets `features` when it answers"),
    "RARPlugin": (_names_a_layer, "strategy.name_ext_layer=..., as backbone.mean of small_cnn"),
}


class AvalancheLoop(Loop):
    """Runs Avalanche's plug-ins, and strategies of ours beside them, over a vision stream.

    Ours see what they see elsewhere: `experience`, `adapted_dataset` (the experience's rows) and
    raw rows; they may not claim data or objective, nor ask which rows a batch holds.
    """

    restarts = "an Avalanche plug-in's state is not part of the checkpoint"
    _mbatch: list | None = None

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._refuse()
        self._criterion = nn.CrossEntropyLoss()
        names = {type(s).__name__ for s in self.plugins}
        if names & FLAT:
            self._model.to(memory_format=torch.contiguous_format)
        plugins = [s.plugin for s in self.plugins if isinstance(s, AvalancheStrategy)]
        self.template = Template(self, plugins)
        self.template.plugins.append(self.template.clock)
        self.benchmark = benchmark_of(self.stream)
        seed_globals(self.seed)

    def _refuse(self) -> None:
        """What Avalanche's order of events has no place for. Raises BadValue."""
        train = self.train
        if self.stream.domain != "vision":
            raise BadValue(f"Avalanche's plug-ins need a vision stream, got {self.stream.domain}")
        for plugin in (s.plugin for s in self.plugins if isinstance(s, AvalancheStrategy)):
            name = type(plugin).__name__
            fits, words = MODELS.get(name, (lambda model, plugin: True, ""))
            if not fits(self._model, plugin):
                raise BadValue(f"{name} needs {words}")
        for claim in ("data", "objective"):
            if claim in self._claims:
                name = type(self._claims[claim]).__name__
                raise BadValue(
                    f"{name} claims {claim}, which Avalanche's plug-ins leave no room for"
                )
        for key, given, plain in (
            ("accumulate", train.accumulate, 1),
            ("precision", train.precision, "float32"),
            ("augment", ",".join(train.augment), ""),
        ):
            if given != plain:
                raise BadValue(f"train.{key}={given} can't be combined with an Avalanche plug-in")

    # -- one batch, two views -------------------------------------------------------------------

    @property
    def mb_x(self) -> Tensor | None:
        """Inputs: the first part of Avalanche's minibatch."""
        return self._mbatch[0] if self._mbatch else None

    @mb_x.setter
    def mb_x(self, value: Tensor | None) -> None:
        self._put(0, value)

    @property
    def mb_y(self) -> Tensor | None:
        """Labels: the second part of Avalanche's minibatch."""
        return self._mbatch[1] if self._mbatch else None

    @mb_y.setter
    def mb_y(self, value: Tensor | None) -> None:
        self._put(1, value)

    @property
    def mb_task_id(self) -> Tensor | None:
        """Task labels if the stream gives any; Avalanche's minibatch holds zeros if not."""
        known = self._mbatch and "task_id_train" in self.stream.gives
        return self._mbatch[-1] if known else None

    @mb_task_id.setter
    def mb_task_id(self, value: Tensor | None) -> None:
        if value is None and self.mb_y is not None:
            value = torch.zeros_like(self.mb_y)
        self._put(2, value)

    @property
    def mb_index(self):
        """Not known here: Avalanche's loaders do not say which rows they took."""
        raise BadValue(
            "a strategy asks which rows a batch holds (loop.mb_index), which Avalanche's loaders "
            "do not tell; run it without Avalanche's plug-ins"
        )

    @mb_index.setter
    def mb_index(self, value) -> None:
        pass

    @property
    def mbatch(self) -> list | None:
        """The minibatch: [x, y, task labels]."""
        return self._mbatch

    def _put(self, position: int, value: Tensor | None) -> None:
        if self._mbatch is None and value is not None:
            self._mbatch = [None, None, None]
        if self._mbatch is not None:
            self._mbatch[position] = value

    # -- learning -------------------------------------------------------------------------------

    def fire(self, name: str) -> None:
        """Call one hook of every strategy that overrides it, in order.

        `after_eval_iteration` fires before the answers are read, as Avalanche's metrics find them.
        """
        if name == "after_eval_iteration":
            return
        super().fire(name)
        if name == "after_eval_forward":
            super().fire("after_eval_iteration")

    def claimed(self, *claims: str) -> bool:
        """Whether a strategy claims any of these.

        Models that answer by class means or by a head per task do not use a head untrained.
        """
        own = _answers_apart(self._model) or is_multi_task_module(self._model)
        alone = "predict" in claims and own
        return alone or super().claimed(*claims)

    def predict(self, batch) -> Tensor:
        """Scores [B, C] by the claimant of `predict`, else by the model, with its task labels."""
        if "predict" in self._claims:
            return super().predict(batch)
        return avalanche_forward(self._model, batch.x, self._mbatch[-1])

    def prepare_optimizer(self) -> None:
        """The optimizer as Avalanche keeps it: momentum of a layer that has grown is lost."""
        if self._optimizer is None:
            owner = self._claims.get("optimizer")
            self._optimizer = owner.optimizer(self) if owner else build(self._model, self.train)
        self.template.check_model_and_optimizer(reset_optimizer_state=self.train.reset_optimizer)
        for group in self._optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def _learn(self, experience: Experience) -> None:
        template = self.template
        self.experience, self.is_training, self._stop = experience, True, False
        self.clock.train_exp_epochs = self.clock.train_exp_iterations = 0
        self._model.train()
        self._theirs("before_training")
        template.experience = self.benchmark.train_stream[experience.index]
        self.fire("before_train_dataset_adaptation")
        self.adapted_dataset = experience.train
        template.adapted_dataset = template.experience.dataset.train()
        self.fire("after_train_dataset_adaptation")
        template.make_train_dataloader()
        self.prepare_optimizer()
        self.fire("before_training_exp")
        template.clock.before_training_exp(template)
        named = self._model.named_parameters()
        self.trained |= {name: p.numel() for name, p in named if p.requires_grad}
        self._train_epochs()
        self.fire("after_training_exp")
        template.clock.after_training_exp(template)
        self._theirs("after_training")
        template.finished()

    def _theirs(self, event: str) -> None:
        for plugin in self.template.plugins:
            if hasattr(plugin, event):
                getattr(plugin, event)(self.template)

    def _train_epochs(self) -> None:
        template, clock = self.template, self.clock
        self._total = self.exp_updates
        for _ in range(self.train_epochs):
            self.fire("before_training_epoch")
            template.clock.before_training_epoch(template)
            clock.train_epoch_iterations = 0
            if self._stop:
                self._stop = False
                break
            for batch in self.dataloader:
                if self._stop or self._capped():
                    break
                self._update(batch)
            self.fire("after_training_epoch")
            template.clock.after_training_epoch(template)
            clock.train_exp_epochs += 1
            if self._capped():
                break

    def _capped(self) -> bool:
        return self.clock.train_exp_iterations >= (self.train.updates or math.inf)

    def _update(self, batch: list) -> None:
        """One optimizer step on a batch of Avalanche's loader: [x, y, task labels]."""
        template, clock, watch = self.template, self.clock, self._watch
        self._mbatch = batch
        template._unpack_minibatch()
        self.fire("before_training_iteration")
        self._optimizer.zero_grad()
        self._loss = template._make_empty_loss()  # [1]
        self.fire("before_forward")
        self.samples_seen += len(self.mb_y)
        self.mb_output = template.forward()
        self.fire("after_forward")
        self._loss += template.criterion()
        watch.term("cross_entropy", self._loss.detach().clone())
        self._loss_open = True
        self.fire("before_backward")
        self._loss_open = False
        template.backward()
        self.fire("after_backward")
        watch.total(self._loss.detach().sum(), 1)
        self.fire("before_update")
        if self.train.clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self.train.clip)
        if self._scheduled:
            set_lr(self._optimizer, self.train, clock.train_exp_iterations, self._total)
        template.optimizer_step()
        self.fire("after_update")
        self.fire("after_training_iteration")
        template.clock.after_training_iteration(template)
        clock.train_iterations += 1
        clock.train_exp_iterations += 1
        clock.train_epoch_iterations += 1
        self._after_update()

    def _score(self, kind: str) -> Scores | None:
        """Score with a minibatch of its own, and tell the plug-ins' evaluator."""
        if self.observer is None:
            return super()._score(kind)
        batch, self._mbatch = self._mbatch, None
        observer, self.observer = self.observer, _Listener(self.observer, self.template.evaluator)
        try:
            return super()._score(kind)
        finally:
            self._mbatch, self.observer = batch, observer


class _Listener:
    """Passes scores on to the loop's observer; plug-ins may read validation scores only."""

    def __init__(self, observer, evaluator: LastScores):
        self.observer, self.evaluator = observer, evaluator

    def scores(self, loop, kind, scores, seconds) -> None:
        values = [v for v in scores.val if v is not None]
        if values and kind != "untrained":
            name = "Top1_Acc_Stream/eval_phase/val_stream"
            self.evaluator.metrics = {name: sum(values) / len(values)}
        self.observer.scores(loop, kind, scores, seconds)
