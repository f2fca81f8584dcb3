"""What a strategy may do: every hook in firing order, and the claims.

A strategy overrides hooks; all of them get the loop (`cl/loop.py`). Reading is always safe;
"may write" lists what else is. Hooks of several strategies fire in command-line order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from cl.errors import BadValue

if TYPE_CHECKING:
    from cl.loop import Loop

NEEDS = {
    "boundaries": "is told where one experience ends and the next begins",
    "task_id_train": "is given task labels while training",
    "task_id_test": "is given task labels at inference",
    "buffer": "stores training items of earlier experiences",
    "pretraining": "starts from a model trained elsewhere",
    "stream_length": "knows how many experiences there are",
    "future_data": "sees data before its experience",
    "transductive": "uses the test inputs as a set",
}

REQUIRES = {
    "features": "features(x) -> [B, D]",
    "head": "a growing head with weight [C, D] and bias [C]",
    "normalize": "a switch that L2-normalises features",
    "architecture": "a name and settings it can be built again from",
}

DOMAINS = {
    "vision": "inputs with labels",
    "llm": "prompts with answers",
    "rl": "environments",
}

# Claims. Defining one of these methods *is* the claim; two claimants are an error at start, so
# the base class defines none of them.
#   objective(loop) -> Objective           replaces batches, forward pass, loss and score
#   data(loop, experience) -> Table|None   the training data; None: no gradient training
#   optimizer(loop) -> torch.optim.Optimizer
#   predict(loop, batch) -> Tensor         scores [B, C] for batch.x, replacing the model's
#   grow(model, n_classes) -> None         adapts the model, idempotent, head width >= n_classes
CLAIMS = ("objective", "data", "optimizer", "predict", "grow")

# of objectives on a policy's own answers, whenever a batch of them is made
ROLLOUT_HOOKS = ("before_rollout", "after_rollout", "after_reward", "after_advantage")
TRAINING_HOOKS = (
    "before_training",
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "before_training_exp",
    "before_training_epoch",
    *ROLLOUT_HOOKS,
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
    "after_training_epoch",
    "after_training_exp",
    "after_training",
)
EVAL_HOOKS = (
    "before_eval",
    "before_eval_exp",
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
    "after_eval_exp",
    "after_eval",
)
HOOKS = TRAINING_HOOKS + EVAL_HOOKS


class Strategy:
    """How to learn. Override hooks; declare needs; keep all state in `__init__`.

    State (attributes) is checkpointed without further code. It may be None, bool, int, float,
    str, tensor, numpy array, torch.Generator, a model from `loop.snapshot()`, and list, tuple,
    set, dict of these; anything else is refused at start. A checkpoint may be made between any two
    updates: of the last one's minibatch (`loop.mb_*`, gradients) it holds nothing.
    """

    # of the scenario, keys of NEEDS; `__init__` may set fewer where settings decide
    needs: tuple[str, ...] = ()
    requires: ClassVar[tuple[str, ...]] = ()  # of the model, keys of REQUIRES
    domains: ClassVar[tuple[str, ...]] = ()  # of streams, keys of DOMAINS; none: all
    instead: ClassVar[dict[str, str]] = {}  # {domain: the strategy for this job there}
    learns: ClassVar[str | None] = None  # in environments: the objective that it claims
    by_name: ClassVar[bool] = False  # keeps weights by name: no strategy may rename them
    loop_class: ClassVar[type | None] = None  # for a library's plug-ins: a loop of their own

    def stored_bytes(self, loop: Loop) -> int | None:
        """Bytes carried from one experience to the next; None counts state and buffers."""
        return None

    def check(self, loop: Loop) -> None:
        """Refuse what can't work (BadValue), before a run folder exists; may only read."""

    # -- once per stream ---------------------------------------------------------------------

    def before_training(self, loop: Loop) -> None:
        """The stream begins; not fired again when a run is resumed. May write: buffers."""

    # -- per experience ----------------------------------------------------------------------

    def before_train_dataset_adaptation(self, loop: Loop) -> None:
        """`loop.experience` is the new one; its data has not been chosen yet."""

    def after_train_dataset_adaptation(self, loop: Loop) -> None:
        """`loop.adapted_dataset` is what will be trained on (None: no gradient training)."""

    def before_training_exp(self, loop: Loop) -> None:
        """Batches exist and the head has grown. May write: `requires_grad`, `loop.model`."""

    def before_training_epoch(self, loop: Loop) -> None:
        """An epoch begins. May call: `loop.stop_training()`."""

    # -- per batch of rollouts, with an objective on rewards: `loop.rollouts` holds answers
    #    (cl/rollouts.py) or, in environments, steps (cl/steps.py) ------------------------------

    def before_rollout(self, loop: Loop) -> None:
        """Prompts are chosen. May call: `loop.rollouts.add_prompts(rows)`.

        In environments a policy is about to act: `loop.rollouts` holds its last steps.
        """

    def after_rollout(self, loop: Loop) -> None:
        """Answers are drawn, or steps made."""

    def after_reward(self, loop: Loop) -> None:
        """`rewards` are there, nan where unscorable. May write: them."""

    def after_advantage(self, loop: Loop) -> None:
        """`advantages` and `counted` are there (of steps, `advantages`). May write: both."""

    # -- per update ---------------------------------------------------------------------------

    def before_training_iteration(self, loop: Loop) -> None:
        """The first micro-batch is on the loop; gradients have not been cleared."""

    # forward and backward hooks fire once per micro-batch, the update hooks once per update

    def before_forward(self, loop: Loop) -> None:
        """`loop.mb_x`, `loop.mb_y` are ready. May write: both, `loop.append_rows(...)`."""

    def after_forward(self, loop: Loop) -> None:
        """`loop.mb_output` is ready."""

    def before_backward(self, loop: Loop) -> None:
        """`loop.loss` is ready. May write: `loop.add_loss(name, value)`."""

    def after_backward(self, loop: Loop) -> None:
        """Gradients of this micro-batch have been added. May write: gradients."""

    def before_update(self, loop: Loop) -> None:
        """Gradients are complete, not yet clipped. May write: gradients."""

    def after_update(self, loop: Loop) -> None:
        """Weights have moved. May write: weights."""

    def after_training_iteration(self, loop: Loop) -> None:
        """The update is over."""

    def after_training_epoch(self, loop: Loop) -> None:
        """An epoch is over. May call: `loop.stop_training()`."""

    def after_training_exp(self, loop: Loop) -> None:
        """The experience is learned, not yet scored. May write: weights, own state, buffers.

        `loop.put_back = {name: tensor}` of `state_dict()`: the next experience starts from it, so
        that a changed model is scored and nothing else.
        """

    def after_training(self, loop: Loop) -> None:
        """The stream is over; the last row of R is scored after this. May write: weights."""

    # -- evaluation: nothing here may change weights, own state or random state -----------------

    def before_eval(self, loop: Loop) -> None:
        """An evaluation begins; the model is in evaluation mode."""

    def before_eval_exp(self, loop: Loop) -> None:
        """One eval begins (overriding this makes evals be scored one by one)."""

    def before_eval_iteration(self, loop: Loop) -> None:
        """A batch of test rows is ready."""

    def before_eval_forward(self, loop: Loop) -> None:
        """Just before prediction."""

    def after_eval_forward(self, loop: Loop) -> None:
        """`loop.mb_output` holds the scores."""

    def after_eval_iteration(self, loop: Loop) -> None:
        """The batch has been counted."""

    def after_eval_exp(self, loop: Loop) -> None:
        """One eval is over (overriding this makes evals be scored one by one)."""

    def after_eval(self, loop: Loop) -> None:
        """The evaluation is over."""


def claims_of(strategies: list[Strategy]) -> dict[str, Strategy]:
    """Who claims what. Raises BadValue if two strategies claim the same."""
    owners: dict[str, Strategy] = {}
    for claim in CLAIMS:
        claimants = [s for s in strategies if callable(getattr(type(s), claim, None))]
        if len(claimants) > 1:
            names = " and ".join(type(s).__name__ for s in claimants)
            raise BadValue(f"{names} both define {claim}(); only one of them can be used in a run")
        if claimants:
            owners[claim] = claimants[0]
    return owners


def hooks_of(strategies: list[Strategy]) -> dict[str, tuple[Callable, ...]]:
    """For every hook the bound methods that override it, so that no-ops cost nothing."""
    return {
        name: tuple(
            getattr(s, name)
            for s in strategies
            if getattr(type(s), name) is not getattr(Strategy, name)
        )
        for name in HOOKS
    }
