"""ppo: proximal policy optimisation, learning from the rewards of environments.

Source  Schulman et al. 2017, arXiv:1707.06347; the 13 core details of Huang et al., "The 37
        Implementation Details of PPO", ICLR blog track 2022. Mathematics: `_actor_critic.py`
Step    n_envs environments make n_steps steps each -> advantages (GAE) -> `passes` passes over the
        n_envs n_steps rows in shuffled minibatches of train.batch_size
Loss    -min(w A, clip(w, 1 - clip, 1 + clip) A) + value_coef (V - R)^2 / 2 - entropy_coef H
Budget  an experience's steps, those of the stream; the last batch of steps is shorter if need be
Time    a truncated episode is worth V(what it ended with), a terminated one nothing
Switch  at an experience's start: environments are new and train.schedule begins anew; momentum by
        train.reset_optimizer; critic, statistics: below
Shapes  mb_x float32 [B, d], mb_y int64 [B] actions, output [B, A] scores
Parameters
    n_envs          environments side by side [environments]
    n_steps         steps of each between two batches of updates [steps]
    passes          passes over every batch of steps [passes]
    gamma           discount of a step later [1]
    lam             GAE's lambda: 1 is returns, 0 is one step and the critic [1]
    clip            ratios further from 1 than that have no gradient [1]
    anneal_clip     clip goes linearly to 0 over an experience
    clip_value      values further than that from those of the rollout count as there; none: off [1]
    value_coef      weight of the critic's loss, which has a 1/2 in it [1]
    entropy_coef    weight of the entropy, which is kept high [1]
    normalise       advantages: of each minibatch to mean 0 and spread 1
    target_kl       no further passes over a batch of steps once the policy is that far; none [nats]
    observations    raw, or normalised by the mean and spread of all seen so far
    scale_rewards   divide rewards by the spread of discounted returns so far
    statistics      those two means and spreads at an experience's start: keep or reset
    critic          the value head at an experience's start: keep or reset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from cl.config import Range
from cl.data import Table
from cl.errors import BadValue
from cl.models.policy import reset_value
from cl.normalise import Normaliser, RewardScale
from cl.objectives._acting import Acting, Played, Players
from cl.objectives._actions import draw, logp, logp_and_entropy, noise
from cl.objectives._actor_critic import (
    approximate_kl,
    clip_fraction,
    explained_variance,
    gae,
    normalised,
    policy_loss,
    value_loss,
)
from cl.registry import register
from cl.seeding import frozen, generator
from cl.steps import Steps

if TYPE_CHECKING:
    from cl.loop import Loop


@register
class PPO(Acting):
    """Clipped policy gradients with a critic."""

    name = "ppo"

    def __init__(
        self,
        *,
        n_envs: Annotated[int, Range(min=1)] = 8,
        n_steps: Annotated[int, Range(min=1)] = 128,
        passes: Annotated[int, Range(min=1)] = 4,
        gamma: Annotated[float, Range(min=0, max=1)] = 0.99,
        lam: Annotated[float, Range(min=0, max=1)] = 0.95,
        clip: Annotated[float, Range(above=0)] = 0.2,
        anneal_clip: bool = False,
        clip_value: Annotated[float, Range(above=0)] | None = None,
        value_coef: Annotated[float, Range(min=0)] = 1.0,
        entropy_coef: Annotated[float, Range(min=0)] = 0.0,
        normalise: bool = True,
        target_kl: Annotated[float, Range(above=0)] | None = None,
        observations: Literal["raw", "normalised"] = "raw",
        scale_rewards: bool = False,
        statistics: Literal["keep", "reset"] = "keep",
        critic: Literal["keep", "reset"] = "keep",
    ):
        super().__init__()
        self.n_envs, self.n_steps, self.passes = n_envs, n_steps, passes
        self.gamma, self.lam = gamma, lam
        self.clip, self.anneal_clip, self.clip_value = clip, anneal_clip, clip_value
        self.value_coef, self.entropy_coef = value_coef, entropy_coef
        self.normalise, self.target_kl = normalise, target_kl
        self.normalises = observations == "normalised"
        self.scales, self.statistics, self.critic = scale_rewards, statistics, critic
        self.normaliser: Normaliser | None = None  # of observations
        self.scale: Normaliser | None = None  # of discounted returns
        self._fresh: np.ndarray | None = None  # observations that are in no statistic yet
        self._values = self._part = self._advantages = None  # of the running micro-batch

    # -- what the loop asks for ------------------------------------------------------------------

    def check(self, loop: Loop) -> None:
        """Raises BadValue for what can't work."""
        super().check(loop)
        if not hasattr(loop.model, "values"):
            raise BadValue("objective=ppo needs a model with a critic: actor_critic")
        if loop.train_mb_size > self.n_envs * self.n_steps:
            raise BadValue(
                f"train.batch_size={loop.train_mb_size} is more than the {self.n_envs} x "
                f"{self.n_steps} steps between two batches of updates (objective.n_envs, n_steps)"
            )

    def batches(self, loop: Loop, table: Table) -> StepBatches:
        """Minibatches of steps, which are made while they are iterated over."""
        return StepBatches(self, loop, table)

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Put steps on the loop."""
        self._part, steps = self.steps_of(rows), loop.rollouts
        if loop.mb_part[0] == 0:
            whole = steps.part("advantages", loop.batch_index)
            self._advantages = normalised(whole) if self.normalise else whole
        loop.mb_task_id = None
        loop.mb_x = steps.part("observations", self._part)
        loop.mb_y = steps.part("actions", self._part)

    def forward(self, loop: Loop) -> Tensor:
        """Scores [B, A]."""
        scores, self._values = loop.model.outputs(loop.mb_x)
        return scores

    def loss(self, loop: Loop) -> Tensor:
        """The loss of this micro-batch."""
        steps, at, log_std = loop.rollouts, self._part, loop.model.log_std
        own, self._advantages = self._advantages.split([len(at), len(self._advantages) - len(at)])
        if self.entropy_coef:
            new, entropy = logp_and_entropy(loop.mb_output, loop.mb_y, log_std)
        else:
            new, entropy = logp(loop.mb_output, loop.mb_y, log_std), None
        loss = policy_loss(new, steps.part("logp", at), own, clip=self._clip(loop))
        old = steps.part("values", at) if self.clip_value is not None else None
        returns = steps.part("returns", at)
        off = value_loss(self._values, returns, old_values=old, clip=self.clip_value)
        loss = loss + (off if self.value_coef == 1 else self.value_coef * off)
        return loss if entropy is None else loss - self.entropy_coef * entropy.mean()

    def state(self) -> dict:
        """Means and spreads."""
        held = {"observations": self.normaliser, "returns": self.scale}
        found = {name: n.state() for name, n in held.items() if n is not None}
        return found | ({"fresh": self._fresh} if self._fresh is not None else {})

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self._fresh = state.get("fresh")
        if "observations" in state:
            self.normaliser = Normaliser(np.shape(state["observations"]["mean"]))
            self.normaliser.load(state["observations"])
        if "returns" in state:
            self.scale = Normaliser(())
            self.scale.load(state["returns"])

    # -- rollouts ----------------------------------------------------------------------------------

    def begin(self, loop: Loop) -> None:
        """What is kept and what is reset at an experience's start."""
        self.forget()
        if self.critic == "reset" and loop.experience.index:
            reset_value(loop.model, generator(loop.seed, f"critic/{loop.experience.index}"))
        if self.normalises:
            self.normaliser = self.normaliser or Normaliser(loop.stream.input_shape)
            self._settle(loop.model)
            self.normaliser.switch(self.statistics)

    def collect(self, loop: Loop, players: Players, scale: RewardScale | None, n: int) -> Steps:
        """n steps in every environment, with advantages; sets loop.rollouts."""
        model = loop.model
        self._settle(model)
        loop.fire("before_rollout")
        draws = noise(model.actions, (n, players.n), loop.rng("actions"), loop.device)
        with frozen(model), loop.autocast():
            acted = players.steps(n, lambda x, t: draw(model(x), draws[t], model.log_std))
            loop.rollouts = acted
            loop.fire("after_rollout")
            if scale is not None:
                acted.rewards = self._scaled(acted, scale)
            loop.fire("after_reward")
            self._judge(model, acted)
        loop.fire("after_advantage")
        if self.normalises:
            self._fresh = acted.rows("observations").cpu().numpy()
        self.remember(acted)
        players.log()
        return acted

    def _settle(self, model) -> None:
        """Take the last batch's observations into the statistics: between two policies, so that
        steps are judged and learned from as they were seen when they were made."""
        if self._fresh is not None:
            self.normaliser.update(self._fresh)
            model.see_normalised(self.normaliser.mean, self.normaliser.variance)
            self._fresh = None

    def _judge(self, model, acted: Steps) -> None:
        """Values, log-probabilities, advantages: of all steps in one pass."""
        T, n = acted.rewards.shape
        scores, values = model.outputs(acted.rows("observations"))
        acted.values = values.float().view(T, n)
        acted.logp = logp(scores, acted.rows("actions"), model.log_std).view(T, n)
        final = torch.zeros_like(acted.rewards)
        if len(acted.at):
            final[acted.at[:, 0], acted.at[:, 1]] = model.values(acted.finals).float()
        acted.advantages, acted.returns = gae(
            acted.rewards,
            acted.values,
            model.values(acted.last).float(),
            acted.terminated,
            acted.truncated,
            gamma=self.gamma,
            lam=self.lam,
            final_values=final,
        )

    def _scaled(self, acted: Steps, scale: RewardScale) -> Tensor:
        ended = (acted.terminated | acted.truncated).cpu().numpy()
        rows = zip(acted.rewards.cpu().numpy(), ended, strict=True)
        return torch.from_numpy(np.stack([scale(r, e) for r, e in rows])).to(acted.rewards)

    def _clip(self, loop: Loop) -> float:
        if not self.anneal_clip:
            return self.clip
        return self.clip * (1 - loop.clock.train_exp_iterations / max(1, loop.exp_updates))

    @torch.no_grad()
    def watch(self, loop: Loop, index: Tensor) -> float | None:
        """Log how far the policy has moved on the rows at `index`, and how good the critic is.

        Returns the distance if it decides anything.
        """
        steps = loop.rollouts
        at, model = index[: loop.train_mb_size], loop.model
        scores = model(steps.part("observations", at))
        actions, old = steps.part("actions", at), steps.part("logp", at)
        new, entropy = logp_and_entropy(scores, actions, model.log_std)
        moved = approximate_kl(new, old)
        loop.log("approximate_kl", moved)
        loop.log("clipped", clip_fraction(new, old, self.clip))
        loop.log("entropy", entropy.mean())
        return None if self.target_kl is None else float(moved)

    def watch_critic(self, loop: Loop) -> None:
        """Log the share of the returns' variance that the critic has explained."""
        known = explained_variance(loop.rollouts.values, loop.rollouts.returns)
        if known is not None:
            loop.log("explained_variance", known)


class StepBatches(Played):
    """One experience's minibatches of steps; an epoch is the experience's budget of steps.

    Yields int64 [B], positions in the rows of `loop.rollouts`. made: batches of steps so far in
    this epoch; passes: over the last of them, begun so far.
    """

    def __init__(self, objective: PPO, loop: Loop, table: Table):
        super().__init__(objective, loop, table)
        self.scale: RewardScale | None = None
        self.passes = 0

    def lengths(self) -> list[int]:
        """Steps of every environment, batch of steps by batch of steps."""
        whole, rest = divmod(len(self.table), self.n * self.objective.n_steps)
        more = [-(-rest // self.n)] if rest else []
        return [self.objective.n_steps] * whole + more

    def __len__(self) -> int:
        o = self.objective
        return o.passes * sum(self._minibatches(n * self.n) for n in self.lengths())

    def _minibatches(self, rows: int) -> int:
        return -(-rows // self.loop.train_mb_size)

    def begin(self) -> None:
        """See Played."""
        super().begin()
        self.scale, self.passes = self._scale(), 0
        if self.scale is not None:
            self.scale.switch(self.objective.statistics)

    def more(self) -> bool:
        """Another pass over the steps, or over new ones."""
        o, loop = self.objective, self.loop
        if not self._goes_on():
            if self.made == len(self.lengths()):
                self.close()
                return False
            o.collect(loop, self.players, self.scale, self.lengths()[self.made])
            self.made, self.passes = self.made + 1, 0
            o.watch_critic(loop)
        n = len(loop.rollouts)
        order = torch.randperm(n, generator=loop.rng("minibatches")).to(loop.device)
        self.passes += 1
        return self.give(order.tensor_split(self._minibatches(n)))

    def _goes_on(self) -> bool:
        """After a pass: whether there is another one over the same steps."""
        if not self.parts:
            return False
        o, last = self.objective, self.passes == self.objective.passes
        moved = None
        if last or o.target_kl is not None:
            moved = o.watch(self.loop, torch.cat(list(self.parts)))
        return not last and (moved is None or moved <= o.target_kl)

    def _scale(self) -> RewardScale | None:
        """The scale of rewards, whose statistics are the objective's."""
        objective = self.objective
        if not objective.scales:
            return None
        made = RewardScale(self.n, gamma=objective.gamma)
        if objective.scale is not None:
            made.statistics = objective.scale
        objective.scale = made.statistics
        return made

    def state(self) -> dict:
        """See Epochs."""
        returns = None if self.scale is None else self.scale.running
        return super().state() | {"passes": self.passes, "returns": returns}

    def load_state(self, state: dict) -> None:
        """See Epochs."""
        super().load_state(state)
        self.passes, self.scale = state["passes"], self._scale()
        if self.scale is not None:
            self.scale.running = state["returns"]
