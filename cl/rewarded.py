"""What strategies share that learn from rewards: the objective, its reference, what is hopeless."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch

from cl.errors import BadValue
from cl.objectives.policy_gradient import PolicyGradient, Rewards
from cl.seeding import generator
from cl.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl.data import Table
    from cl.loop import Loop

ASKED = 64  # prompts of a task that are tried before it is learned
EXPLORE = 0.1  # share of uniform draws where classes come with the stream


class Rewarded(Strategy):
    """Learns from rewards for the model's own answers.

    options: the fields of `Rewards` and
    reference  what the KL is taken to: previous (the model before the experience), base (before
               the stream), ema (a running mean of the weights), none
    ema        how much of the running mean stays at each update
    min_pass   share of prompts with a right answer among `group` below which nothing can be learned
    """

    def __init__(self, *, reference: str, ema: float, min_pass: float, **options):
        follows = options["beta"] > 0 and reference in ("previous", "ema")  # begins with a task
        self.needs = ("boundaries",) if follows else ()
        self.options, self.reference_kind = options, reference
        self.ema, self.min_pass = ema, min_pass
        self.reference = None  # a snapshot

    @property
    def choices(self) -> Rewards:
        """The objective's settings; without a reference there is no KL."""
        options = dict(self.options)
        if self.reference_kind == "none":
            options["beta"] = 0.0
        if options.get("explore") is None:
            options["explore"] = 0.0
        return Rewards(**{f.name: options[f.name] for f in fields(Rewards) if f.name in options})

    def objective(self, loop: Loop) -> PolicyGradient:
        """Rewards, in the stream's domain."""
        choices, stream = self.choices, loop.stream
        if stream.domain == "rl":
            return loop.objective  # ppo, with the settings objective.*
        if self.options.get("explore") is None:  # a class that is new has never been answered
            grows = stream.seen_classes(len(stream) - 1) > stream.seen_classes(0)
            choices = replace(choices, explore=EXPLORE if grows else 0.0)
        return PolicyGradient(choices, domain=stream.domain, reference=lambda: self.reference)

    def check(self, loop: Loop) -> None:
        """Refuse tasks that the model as it is can't do at all. Raises BadValue."""
        if loop.stream.domain == "rl":
            self._check_defaults(loop)
        self._check_reference(loop)
        if loop.stream.domain != "llm" or self.min_pass == 0 or loop.resumed:
            return  # a head starts at random, and its classes come with the stream
        for experience in loop.stream.experiences:
            share = self.pass_share(loop, experience.train)
            if share < self.min_pass:
                raise BadValue(
                    f"{experience.name} can't be learned from rewards: {share:.1%} of its prompts "
                    f"get a right answer among {self.options['group']} of the model's own, less "
                    f"than strategy.min_pass={self.min_pass:g}; pretrain the model or leave the "
                    "task out (min_pass=0 tries all the same)"
                )

    def _check_reference(self, loop: Loop) -> None:
        if loop.stream.domain != "vision" or not self.choices.beta:
            return
        labelled = any("task_label" in e.train.columns for e in loop.stream.experiences)
        if self.reference_kind == "base" and (labelled or self.options["kl"] != "full"):
            raise BadValue(
                "strategy.reference=base of a classifier knows the first classes alone: give "
                "strategy.kl=full, without task labels, or reference=previous"
            )

    def _check_defaults(self, loop: Loop) -> None:
        """In environments the objective's own keys are what can be set."""
        known = inspect.signature(type(self)).parameters
        mine = self.options | {k: getattr(self, k) for k in ("ema", "min_pass")}
        mine["reference"] = self.reference_kind
        for name, value in mine.items():
            if value != known[name].default:
                raise BadValue(
                    f"strategy.{name} is for answers; in environments of {loop.stream.name} the "
                    "settings of learning from rewards are objective.* (see `cl describe ppo`)"
                )

    def pass_share(self, loop: Loop, table: Table) -> float:
        """Share of a table's prompts with a right answer among `group` of the model's own."""
        return float(self.tried(loop, table, ASKED, self.options["group"]).any(1).float().mean())

    def tried(self, loop: Loop, table: Table, asked: int | None, n: int) -> Tensor:
        """Whether each of n answers to each prompt is right, bool [P, n]; changes nothing.

        asked: that many prompts, spread evenly; None: all.
        """
        total = min(len(table), asked or len(table))
        index = torch.arange(total, device=table.device) * len(table) // total
        rng = generator(loop.seed, f"tried/{loop.clock.train_iterations}")
        made = loop.objective.answers(loop, table.rows(index), n, rng)
        return made.right.view(total, n)

    def _follows(self, loop: Loop) -> bool:
        """Whether there is a KL to a reference."""
        return loop.stream.domain != "rl" and self.choices.beta > 0

    # -- hooks ---------------------------------------------------------------------------------

    def before_training(self, loop: Loop) -> None:
        """The base model, if that is the reference."""
        if self._follows(loop) and self.reference_kind == "base":
            self.reference = loop.snapshot()

    def before_training_exp(self, loop: Loop) -> None:
        """The reference of this experience, and whether it can be learned at all."""
        if self._follows(loop) and self.reference_kind == "previous":
            self.reference = loop.snapshot()
        if loop.stream.domain == "llm" and loop.adapted_dataset is not None:
            share = self.pass_share(loop, loop.adapted_dataset)
            loop.report("pass_at_group", share)
            if share < self.min_pass:
                warnings.warn(
                    f"{loop.experience.name}: only {share:.1%} of its prompts get a right answer "
                    f"among {self.options['group']}; little can be learned from rewards",
                    stacklevel=1,
                )

    def before_training_epoch(self, loop: Loop) -> None:
        """A running mean begins with the weights that are trained, late adapters included."""
        begins = self.reference_kind == "ema" and loop.clock.train_exp_epochs == 0
        if self._follows(loop) and begins:
            self.reference = loop.snapshot()

    def after_update(self, loop: Loop) -> None:
        """A running mean follows the weights."""
        if self.reference_kind == "ema" and self._follows(loop):
            follow(self.reference, loop.model, 1 - self.ema)

    def after_training_exp(self, loop: Loop) -> None:
        """A reference of this experience is of no use to the next."""
        if self.reference_kind in ("previous", "ema"):
            self.reference = None


@torch.no_grad()
def follow(mean: nn.Module, model: nn.Module, share: float) -> None:
    """mean <- (1 - share) mean + share model, weight by weight; statistics are copied."""
    for old, new in zip(mean.parameters(), model.parameters(), strict=True):
        old.lerp_(new, share)
    for old, new in zip(mean.buffers(), model.buffers(), strict=True):
        old.copy_(new)
