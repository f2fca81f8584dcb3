"""policy_gradient: learning from rewards for a policy's own answers.

Step    prompts -> n answers each, drawn at `temperature` -> rewards -> advantages A -> updates on
        minibatches of the answers: aggregate(clipped(logp, old logp, A) + beta KL to a reference)
Batch   train.batch_size answers of batch_size / group prompts (text), or all answers to batch_size
        inputs, which share one pass (classes). The mathematics, with its sources, is in
        `_policy_gradient.py` and `_tokens.py`
Shapes  text: x, y [B, L] as token_cross_entropy has them, output [B, T + 1, V] of the last columns;
        classes: x, y, output as cross_entropy has them
Mode    answers are drawn in evaluation mode without a graph; draws come from a generator of their
        own, so that measuring more changes nothing
Sampler log-probabilities serve as the old ones only where they are those of the weights in
        training; else they are computed anew, in the precision of training, before the first step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cl.data import Epochs, Table
from cl.errors import BadValue, ContractError
from cl.objectives import imitation
from cl.objectives._policies import POLICIES
from cl.objectives._policy_gradient import (
    COMPARING,
    Advantage,
    Divergence,
    Level,
    advantages,
    clipped,
    kl,
)
from cl.objectives._tokens import Aggregate, aggregate, full_kl, normaliser
from cl.registry import register
from cl.rollouts import Rollouts, joined
from cl.seeding import frozen

if TYPE_CHECKING:
    from cl.loop import Loop

REFILLS = 8  # rounds of further prompts that zero_variance=refill may draw for one batch


@dataclass
class Rewards:
    """The choices of learning from rewards; `strategies/rft.py` says what each means."""

    group: int = 8
    advantage: Advantage = "grpo"
    std_floor: float = 0.0
    aggregate: Aggregate = "token_mean"
    beta: float = 0.0
    kl: Divergence | Literal["full"] = "k2"
    clip: float | None = 0.2
    clip_high: float | None = None
    dual: float | None = None
    ratio: Level = "token"
    refresh: int | Literal["epoch", "inf"] = 1
    passes: int = 1
    zero_variance: Literal["keep", "drop", "refill"] = "keep"
    unfinished: Literal["zero", "score", "drop"] = "zero"
    form: float = 0.0
    temperature: float = 1.0
    explore: float = 0.0

    @property
    def on_policy(self) -> bool:
        """Whether every update learns from answers of the very weights that it changes."""
        return self.refresh == 1 and self.passes == 1


@register
class PolicyGradient:
    """Learning from rewards (RFT). reference: gives what the KL is taken to, or None."""

    name = "policy_gradient"

    def __init__(
        self,
        rewards: Rewards | None = None,
        domain: str = "llm",
        reference: Callable[[], nn.Module | None] | None = None,
    ):
        self.choices, self.reference = rewards or Rewards(), reference or (lambda: None)
        self.policy = POLICIES[domain](self.choices.explore)
        self.plain = imitation(domain)
        self._part: Tensor | None = None  # answers of this micro-batch

    # -- what the loop asks for ------------------------------------------------------------------

    def check(self, loop: Loop) -> None:
        """Raises BadValue for what can't work."""
        c = self.choices
        self.policy.check(loop)
        if c.form and loop.stream.domain != "llm":
            raise BadValue(f"strategy.form={c.form:g}: classes have no form; it is for text")
        if loop.stream.online:
            raise BadValue("stream.online answers every row once; rewards need several answers")
        if c.group < 2 and c.advantage in COMPARING:
            raise BadValue(
                f"strategy.advantage={c.advantage} compares a prompt's answers with each other: "
                "strategy.group must be 2 or more; remax and reinforce do with 1"
            )
        if loop.train.batch_size % self.policy.per_prompt(c.group):
            raise BadValue(
                f"train.batch_size={loop.train.batch_size} answers are those of whole prompts: "
                f"give a multiple of strategy.group={c.group}"
            )

    def batches(self, loop: Loop, table: Table) -> RolloutBatches:
        """Minibatches of answers, which are made while they are iterated over."""
        return RolloutBatches(self, loop, table)

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Answers at positions `index` of the running rollouts."""
        return {"rollout": index}

    def load(self, loop: Loop, rows: dict[str, Tensor]) -> None:
        """Put answers on the loop. Raises ContractError for rows that are no answers."""
        if "rollout" not in rows:
            raise ContractError(
                "labelled rows can't be added to a batch of the policy's own answers; "
                "add prompts: loop.rollouts.add_prompts(rows) in before_rollout"
            )
        self._part = rows["rollout"]
        loop.mb_task_id = None
        loop.mb_x, loop.mb_y = self.policy.part(loop, loop.rollouts, self._part)
        loop.tokens_seen += self.policy.tokens(loop.mb_x)

    def forward(self, loop: Loop) -> Tensor:
        """Logits of the answers' tokens or classes."""
        return self.policy.output(loop, loop.model, loop.mb_x, loop.mb_y)

    def loss(self, loop: Loop) -> Tensor:
        """This micro-batch's part of the update's loss."""
        c, policy, r = self.choices, self.policy, loop.rollouts
        at = policy.at(r, self._part)  # of a answers
        output = policy.told(loop, loop.mb_output)
        logp = policy.logp(output, loop.mb_y, r, self._part, c.temperature)  # [a, T]
        counted = policy.mask(output, loop.mb_y, len(at)) & r.counted[at, None]
        old = None if c.on_policy else r.logp[at, : logp.shape[1]]
        if c.clip is None:
            values = -logp * r.advantages[at, None]
        else:
            values, share = clipped(
                logp,
                old,
                r.advantages[at],
                counted,
                low=c.clip,
                high=c.clip if c.clip_high is None else c.clip_high,
                dual=c.dual,
                level=c.ratio,
            )
            if not c.on_policy:
                loop.log("clipped", share)
        if c.beta and c.kl != "k1":
            distance = self._distance(loop, output, logp, old)
            loop.log("kl", aggregate(distance.detach(), counted, "token_mean"))
            values = values + c.beta * distance
        batch = policy.at(r, loop.batch_index)
        whole = r.mask[batch] & r.counted[batch, None]
        total = normaliser(whole, c.aggregate, max_len=self._longest(loop))
        return aggregate(values, counted, c.aggregate, total=total) / loop.mb_share

    def predict(self, loop: Loop, batch) -> Tensor:
        """Scores as of the imitation objective."""
        return self.plain.predict(loop, batch)

    def evaluator(self, loop: Loop):
        """The domain's own."""
        if hasattr(self.plain, "evaluator"):
            return self.plain.evaluator(loop)
        from cl.evaluation import Evaluator

        return Evaluator(loop)

    # -- rollouts ----------------------------------------------------------------------------------

    def collect(self, loop: Loop, table: Table, prompts: Tensor) -> Rollouts:
        """Answers to the prompts at positions `prompts` [P] of the table; sets loop.rollouts."""
        block = self._roll(loop, Rollouts(table.rows(prompts)))
        if self.choices.zero_variance == "refill":
            block = self._refilled(loop, table, block)
        if not self.choices.on_policy:
            block.logp = self._logp_of(loop, block, loop.model)
        loop.rollouts = block
        self._log(loop, block)
        return block

    def answers(self, loop: Loop, rows: dict[str, Tensor], n: int, rng, greedy=False) -> Rollouts:
        """n answers to every prompt in `rows`, scored; nothing of the loop changes."""
        c, made = self.choices, Rollouts(rows)
        self.policy.answer(loop, made, n, c.temperature, rng, greedy)
        self._reward(loop, made)
        return made

    def _roll(self, loop: Loop, r: Rollouts) -> Rollouts:
        c, loop.rollouts = self.choices, r
        loop.fire("before_rollout")
        self.policy.answer(loop, r, c.group, c.temperature, loop.rng("rollouts"))
        loop.fire("after_rollout")
        self._reward(loop, r)
        if c.advantage == "remax":
            r.baseline = self.answers(loop, r.rows, 1, loop.rng("rollouts"), greedy=True).rewards
        loop.fire("after_reward")
        zero = "keep" if c.zero_variance == "keep" else "drop"
        r.advantages, r.counted = advantages(
            r.rewards,
            r.group,
            c.advantage,
            std_floor=c.std_floor,
            baseline=r.baseline,
            zero_variance=zero,
        )
        if c.unfinished == "drop":
            r.counted = r.counted & ~r.unfinished
        if r.explored is not None:
            r.counted = r.counted & ~(r.explored & (r.advantages <= 0))
        loop.fire("after_advantage")
        return r

    def _reward(self, loop: Loop, r: Rollouts) -> None:
        c = self.choices
        r.rewards = self.policy.reward(loop, r, c.form)
        if c.unfinished == "zero":  # an answer that does not end earns nothing
            r.rewards = r.rewards.masked_fill(r.unfinished & ~r.rewards.isnan(), 0.0)
            r.right = r.right & ~r.unfinished
        if c.kl == "k1" and c.beta and self.reference() is not None:
            away = self._logp_of(loop, r, loop.model) - self._logp_of(loop, r, self.reference())
            r.rewards = r.rewards - c.beta * away.sum(1)

    def _refilled(self, loop: Loop, table: Table, block: Rollouts) -> Rollouts:
        """The prompts that say something, and others drawn in place of the rest."""
        wanted = block.n_prompts  # those that a strategy has added are replaced, too
        parts, rng = [block.of_prompts(block.speaking().nonzero()[:, 0])], loop.rng("refill")
        for _ in range(REFILLS):
            lacking = wanted - sum(part.n_prompts for part in parts)
            if lacking <= 0:
                break
            drawn = torch.randint(len(table), (wanted,), generator=rng).to(table.device)
            more = self._roll(loop, Rollouts(table.rows(drawn), further=True))
            parts.append(more.of_prompts(more.speaking().nonzero()[:lacking, 0]))
        parts = [part for part in parts if part.n_prompts]
        return joined(parts) if parts else block

    def _logp_of(self, loop: Loop, r: Rollouts, model: nn.Module) -> Tensor:
        """Log-probabilities [N, T] of the answers' tokens under a model, without a graph."""
        found, kept = torch.zeros_like(r.logp), loop.mb_task_id
        n = r.n_prompts * self.policy.per_prompt(len(r) // r.n_prompts)
        with frozen(model), loop.autocast():  # statistics of batch norm stay as they are
            for index in torch.arange(n, device=r.group.device).split(loop.train_mb_size):
                x, y = self.policy.part(loop, r, index)
                output = self.policy.told(loop, self.policy.output(loop, model, x, y))
                logp = self.policy.logp(output, y, r, index, self.choices.temperature)
                found[self.policy.at(r, index), : logp.shape[1]] = logp
        loop.mb_task_id = kept
        return found.masked_fill(~r.mask, 0.0)

    def _distance(self, loop: Loop, output: Tensor, logp: Tensor, old: Tensor | None) -> Tensor:
        """The chosen estimate of the KL between policy and reference, per token [a, T]."""
        c, policy = self.choices, self.policy
        with torch.no_grad():
            base = policy.output(loop, self.reference(), loop.mb_x, loop.mb_y)
        base = policy.told(loop, base)
        if c.kl == "full":
            ours, theirs = (policy.logits(o, len(logp)) for o in (output, base))
            return full_kl(ours[..., : theirs.shape[-1]], theirs, c.temperature)
        ref = policy.logp(base, loop.mb_y, loop.rollouts, self._part, c.temperature)
        return kl(logp, ref, c.kl, old_logp=old)

    def _longest(self, loop: Loop) -> int:
        limits = getattr(loop.stream, "max_new_tokens", None)
        return max(limits.values()) if limits else 1

    def _log(self, loop: Loop, r: Rollouts) -> None:
        """What shows progress: the loss of group-centred advantages does not."""
        known = ~r.rewards.isnan()
        if known.any():
            loop.log("reward", r.rewards[known].mean())
        loop.log("right", r.right.float().mean())
        loop.log("silent_prompts", 1 - r.speaking().float().mean())
        own = r.mask if r.explored is None else r.mask & ~r.explored[:, None]  # drawn by the policy
        loop.log("entropy", -(r.logp * own).sum() / own.sum().clamp(min=1))
        if r.texts:
            loop.log("answer_tokens", r.mask.sum(1).float().mean())
            loop.log("unfinished", r.unfinished.float().mean())
        unscorable = int((~known).sum())
        if unscorable:
            loop.report("unscorable", unscorable, add=True)


class RolloutBatches(Epochs):
    """One experience's minibatches of answers; an epoch asks every prompt once.

    Yields int64 [B], positions in `loop.rollouts`, which a further step may have replaced. prompts:
    those of the epoch, batch of rollouts by batch of rollouts; asked: how many of these batches
    have been answered; n: prompts of the last one; passes: over its answers, begun so far; held:
    whether refresh=inf has its one batch of the experience.
    """

    def __init__(self, objective: PolicyGradient, loop: Loop, table: Table):
        super().__init__()
        self.objective, self.loop, self.table = objective, loop, table
        self.prompts: Sequence[Tensor] = ()
        self.asked = self.n = self.passes = 0
        self.held = False

    def __len__(self) -> int:
        return self.objective.choices.passes * sum(map(self._steps, self._sizes()))

    def begin(self) -> None:
        """See Epochs."""
        self.give(())
        self.asked, self.passes = 0, 0
        if not self.held:
            order = torch.randperm(len(self.table), generator=self.loop.rng("batches"))
            self._ask(order)
            self.passes = self.objective.choices.passes  # there are no answers yet

    def _ask(self, order: Tensor) -> None:
        self.prompts = order.to(self.table.device).split(max(self._sizes()))

    def more(self) -> bool:
        """Another pass over the answers, or over new ones: as many updates as n prompts give,
        though some were left out or others added."""
        c, loop = self.objective.choices, self.loop
        if self.passes == c.passes:
            if self.held or self.asked == len(self.prompts):
                return False
            prompts = self.prompts[self.asked]
            self.objective.collect(loop, self.table, prompts)
            self.asked, self.n, self.passes = self.asked + 1, len(prompts), 0
            self.held = c.refresh == "inf"
        self.passes += 1
        rows = loop.rollouts.n_prompts * self.objective.policy.per_prompt(c.group)
        steps = self._steps(self.n)
        if c.on_policy:
            order = torch.arange(rows)
        else:
            order = torch.randperm(rows, generator=loop.rng("minibatches"))
        parts = order.split(-(-rows // steps))
        if len(parts) < steps:  # so few are left that rounding up would save an update
            parts = order.repeat(-(-steps // rows)).tensor_split(steps)
        return self.give([part.to(loop.device) for part in parts])

    def _steps(self, n: int) -> int:
        """Updates of one pass over the answers to n prompts."""
        rows = n * self.objective.policy.per_prompt(self.objective.choices.group)
        return -(-rows // self.loop.train_mb_size)

    def _sizes(self) -> list[int]:
        """Prompts of every batch of rollouts in an epoch."""
        c, n = self.objective.choices, len(self.table)
        if isinstance(c.refresh, str):
            return [n]
        size = c.refresh * self.loop.train_mb_size // self.objective.policy.per_prompt(c.group)
        return [size] * (n // size) + [n % size] * bool(n % size)

    def state(self) -> dict:
        """See Epochs: the live rollouts, too."""
        return super().state() | {
            "prompts": torch.cat(list(self.prompts)),
            "asked": self.asked,
            "n": self.n,
            "passes": self.passes,
            "held": self.held,
            "rollouts": vars(self.loop.rollouts),
        }

    def load_state(self, state: dict) -> None:
        """See Epochs."""
        super().load_state(state)
        self._ask(state["prompts"])
        self.asked, self.n, self.passes = state["asked"], state["n"], state["passes"]
        self.held = state["held"]
        self.loop.rollouts = Rollouts(**state["rollouts"])
