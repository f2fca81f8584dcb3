"""Our strategies in Avalanche's templates: `Naive(..., plugins=[plugin(L2Anchor(strength=1))])`.

Hooks get a `View`, which shows Avalanche's strategy under the loop's names. What the template
does not know (the stream ahead, which rows a batch holds) or leaves no room for (claims) is
refused in one line.
"""

from __future__ import annotations

from functools import cached_property

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from cl.avalanche_stream import _rows
from cl.data import Table
from cl.errors import BadValue, ContractError
from cl.parts import check_contract
from cl.seeding import global_state, restore_globals
from cl.settings import Train
from cl.strategy import CLAIMS, HOOKS, NEEDS, REQUIRES, Strategy
from cl.toolbox import Toolbox

GIVEN = ("boundaries", "buffer", "pretraining")  # needs that a template can meet


def plugin(strategy: Strategy, *, seed: int = 0) -> SupervisedPlugin:
    """A plug-in of Avalanche that runs `strategy`; seed: of the generators it asks for.

    Raises BadValue if a template can't give what the strategy claims or needs.
    """
    kind = type(strategy)
    check_contract(strategy)
    claimed = [claim for claim in CLAIMS if callable(getattr(kind, claim, None))]
    if claimed:
        raise BadValue(
            f"{kind.__name__} claims {claimed[0]}(), which Avalanche's templates leave no room for"
        )
    lacking = [need for need in kind.needs if need not in GIVEN]
    if lacking:
        raise BadValue(
            f"{kind.__name__} needs {lacking[0]} ({NEEDS[lacking[0]]}), which Avalanche's "
            "templates do not give"
        )
    if kind.after_training is not Strategy.after_training:
        raise BadValue(
            f"{kind.__name__} acts when the stream ends (after_training), which Avalanche's "
            "templates do not tell"
        )
    hooks = [name for name in HOOKS if getattr(kind, name) is not getattr(Strategy, name)]
    body = {name: _forward(name) for name in hooks}
    body["before_training"] = _once
    body["before_train_dataset_adaptation"] = _arrive
    made = type(kind.__name__, (SupervisedPlugin,), {**body, "__doc__": kind.__doc__})()
    made.strategy, made.view, made.begun = strategy, View(strategy, seed), False
    return made


def _forward(name: str):
    def hook(self, strategy, **kwargs):
        self.view.template = strategy
        getattr(self.strategy, name)(self.view)

    return hook


def _once(self, strategy, **kwargs):
    """`before_training` fires once, not at every call of `train`."""
    if self.begun:
        return
    lacking = [part for part in self.strategy.requires if not hasattr(strategy.model, part)]
    if lacking:
        raise BadValue(f"{type(self).__name__} needs a model with {REQUIRES[lacking[0]]}")
    self.begun = True
    _forward("before_training")(self, strategy)


def _arrive(self, strategy, **kwargs):
    self.view.template = strategy
    self.view.experience = Arrival(strategy.clock.train_exp_counter, strategy.experience)
    self.view.classes.append(set(self.view.experience.classes))
    _forward("before_train_dataset_adaptation")(self, strategy)


class Arrival:
    """An experience of Avalanche under our names; its rows become a table when first asked for."""

    task_label = val = None

    def __init__(self, index: int, theirs):
        self.index = self.current_experience = index
        self.name, self._dataset = f"{index:02d}", theirs.dataset
        self.classes = tuple(sorted({int(label) for label in theirs.dataset.targets}))
        self.classes_in_this_experience = list(self.classes)

    @cached_property
    def train(self) -> Table:
        """Columns x (through the evaluation transform), y and Avalanche's task labels."""
        state = global_state()
        try:
            x, y, labels = _rows(self._dataset, self.name)
        finally:
            restore_globals(state)
        return Table({"x": x, "y": y, "task_label": labels})

    @property
    def dataset(self) -> Table:
        """Avalanche's name for `train`."""
        return self.train


def _of_theirs(name: str) -> property:
    """An attribute that lives on Avalanche's strategy."""

    def get(view):
        return getattr(view.template, name)

    def put(view, value):
        setattr(view.template, name, value)

    return property(get, put)


class View(Toolbox):
    """Avalanche's strategy as our hooks see a loop; rows are as its data set transforms them."""

    optimizer, device, clock = _of_theirs("optimizer"), _of_theirs("device"), _of_theirs("clock")
    mb_output, loss, mbatch = _of_theirs("mb_output"), _of_theirs("loss"), _of_theirs("mbatch")
    dataloader, is_training = _of_theirs("dataloader"), _of_theirs("is_training")
    train_epochs, train_mb_size = _of_theirs("train_epochs"), _of_theirs("train_mb_size")
    eval_mb_size, _criterion = _of_theirs("eval_mb_size"), _of_theirs("_criterion")
    mb_task_id, mb_share, mb_part = None, 1.0, (0, 1)
    rollouts = objective = None  # their templates learn from labels by a criterion

    def __init__(self, strategy: Strategy, seed: int):
        self.template = self.experience = None
        self.plugins, self.seed, self.samples_seen = [strategy], seed, 0
        self.generators, self.buffers = {}, {}
        self.classes: list[set[int]] = []  # of every experience so far

    @property
    def model(self) -> nn.Module:
        """The model; assigning another one brings the optimizer into step with it."""
        return self.template.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.template.model = model.to(self.device).train(self.is_training)
        self.template.make_optimizer()

    @property
    def mb_x(self) -> Tensor:
        """Inputs of the minibatch."""
        return self.mbatch[0]

    @mb_x.setter
    def mb_x(self, value: Tensor) -> None:
        self.mbatch[0] = value

    @property
    def mb_y(self) -> Tensor:
        """Labels of the minibatch."""
        return self.mbatch[1]

    @mb_y.setter
    def mb_y(self, value: Tensor) -> None:
        self.mbatch[1] = value

    @property
    def mb_index(self):
        """Not known: Avalanche's loaders do not tell which rows they took."""
        raise BadValue(
            "which rows a batch holds (loop.mb_index) is not told by Avalanche's loaders"
        )

    @property
    def stream(self):
        """Not known: a template is shown one experience at a time."""
        raise BadValue("the stream (loop.stream) is not known in Avalanche's templates")

    @property
    def adapted_dataset(self) -> Table:
        """The experience's rows."""
        return self.experience.train

    @property
    def train(self) -> Train:
        """The settings of training that Avalanche's strategy has too."""
        lr = self.optimizer.param_groups[0]["lr"]
        return Train(epochs=self.train_epochs, batch_size=self.train_mb_size, lr=lr)

    @property
    def exp_updates(self) -> int:
        """Updates planned for the current experience."""
        return self.train_epochs * len(self.dataloader)

    @property
    def seen_classes(self) -> int:
        """Classes up to and including the current experience; they are 0..n-1."""
        return self._count(self.classes)

    @property
    def known_classes(self) -> int:
        """Classes of the experiences before the current one; they are 0..n-1."""
        return self._count(self.classes[:-1])

    def _count(self, classes: list[set[int]]) -> int:
        seen = set().union(*classes)
        if seen != set(range(len(seen))):
            raise BadValue(
                f"labels must arrive as 0, 1, 2, ..., got {sorted(seen)}; make the benchmark with "
                "class_ids_from_zero_from_first_exp=True"
            )
        return len(seen)

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add a term to Avalanche's loss."""
        if value.dim():
            raise ContractError(f"loss term {name!r} must be a scalar, got {tuple(value.shape)}")
        self.loss += value

    def append_rows(self, rows: dict[str, Tensor]) -> None:
        """Add rows to the minibatch, with their task labels if it holds any."""
        new = [rows["x"], rows["y"], rows["task_label"]][: len(self.mbatch)]
        for k, column in enumerate(new):
            self.mbatch[k] = torch.cat([self.mbatch[k], column.to(self.device)])

    def prepared(self, x: Tensor) -> Tensor:
        """The rows as they are: Avalanche's data set has transformed them."""
        return x

    augmented = prepared

    def restricted(self, output: Tensor, task_id: Tensor | None) -> Tensor:
        """Logits as they are."""
        return output

    def stop_training(self) -> None:
        """End the current experience's training."""
        self.template.stop_training()

    def skip_score(self, reason: str) -> None:
        """Avalanche scores what it is asked to: nothing can be left out."""
        raise BadValue("a score can't be left out (loop.skip_score) in Avalanche's templates")
