"""Policies: how a model of each domain answers prompts, and what its answers earn.

A policy is what the reward objective needs to know of a domain:
    check(loop)                                 refuse what can't work, BadValue
    answer(loop, rollouts, n, temperature, rng) fill in n answers to every prompt
    reward(loop, rollouts, form)                their rewards, nan where unscorable
    per_prompt(n)                               rows of a minibatch that n answers make
    part(loop, rollouts, index)                 (mb_x, mb_y) of rows at positions `index` [b]
    tokens(x)                                   tokens in a block, 0 where it is no text
    at(rollouts, index)                         their answers, positions int64 [a]
    output(loop, model, x, y)                   what is `mb_output`
    told(loop, output)                          what the methods below take
    logp(output, y, rollouts, index, temperature)  [a, T] of the answers, with gradients
    logits(output, a)                           [a, T, V], those that chose the tokens
    mask(output, y, a)                          bool [a, T]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl.errors import BadValue
from cl.evaluation import reward_of_classes
from cl.objectives._tokens import IGNORE, token_logp
from cl.rollouts import NO_TOKEN, Rollouts, joined
from cl.sampling import Sampler, sample
from cl.seeding import frozen
from cl.text import TextStream

if TYPE_CHECKING:
    from cl.loop import Loop

AT_ONCE = 512  # answers (inputs of a classifier) together; not a setting, as draws depend on it


class TextPolicy:
    """A language model on a stream of prompts. sampler: another engine than our own."""

    def __init__(self, explore: float = 0.0, sampler: Sampler = sample):
        self.explore, self.sampler = explore, sampler

    def check(self, loop: Loop) -> None:
        """Refuse streams without verifier, other models, prompts that leave no room."""
        stream, model = loop.stream, loop.model
        if self.explore:
            raise BadValue("strategy.explore is for classes; for text give strategy.temperature")
        if not isinstance(stream, TextStream) or not stream.verifiers:
            raise BadValue(f"{stream.name} has no verifier: there is no reward to learn from")
        if not hasattr(model, "tokenizer"):
            raise BadValue(f"{stream.name} needs a language model: tiny, or hf:PATH")
        for k in range(len(stream.items)):
            stream.check_room(k, model.tokenizer, model.context)

    def answer(self, loop, rollouts: Rollouts, n: int, temperature: float, rng, greedy=False):
        """Sampled completions of every prompt."""
        items = rollouts.rows["x"].tolist()
        size = max(1, AT_ONCE // n)
        parts = [
            self._some(loop, items[k : k + size], n, temperature, rng, greedy)
            for k in range(0, len(items), size)
        ]
        done = joined(parts)
        done.rows = rollouts.rows
        vars(rollouts).update(vars(done))

    def _some(self, loop, items: list[int], n: int, temperature: float, rng, greedy) -> Rollouts:
        stream, tokenizer = loop.stream, loop.model.tokenizer
        got = self.sampler(
            loop.model,
            [tokenizer.prompt_ids(stream.items[k].prompt) for k in items],
            n=n,
            max_new_tokens=[stream.max_new_tokens[stream.items[k].task] for k in items],
            temperature=temperature,
            greedy=greedy,
            rng=rng,
        )
        ids, labels = got.ids, got.ids.clone()
        labels[:, : got.prompt_ids.shape[1]] = IGNORE
        return Rollouts(
            {"x": torch.tensor(items)},
            group=got.group,
            x=ids.masked_fill(~got.mask, NO_TOKEN),
            y=labels.masked_fill(~got.mask, IGNORE),
            left=got.prompt_ids.shape[1],
            mask=got.completion_mask,
            logp=got.logp,
            texts=[tokenizer.decode(ids) for ids in got.completions()],
            unfinished=got.truncated,
        )

    def reward(self, loop, rollouts: Rollouts, form: float) -> Tensor:
        """(1 - form) * the verifier's reward + form * whether it is an answer that has ended."""
        stream = loop.stream
        asked = rollouts.rows["x"].tolist()
        items = [asked[k] for k in rollouts.group.tolist()]
        found = stream.rewards(items, rollouts.texts)
        rewards = torch.tensor([float("nan") if r is None else r for r in found])
        if form:
            pairs = zip(items, rollouts.texts, strict=True)
            formed = torch.tensor([float(stream.is_well_formed(k, text)) for k, text in pairs])
            rewards = (1 - form) * rewards + form * formed * ~rollouts.unfinished.cpu()
        rollouts.right = torch.tensor([r == 1 for r in found], device=loop.device)
        return rewards.to(loop.device)

    def per_prompt(self, n: int) -> int:
        """A row is an answer."""
        return n

    def part(self, loop, rollouts: Rollouts, index: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and labels [b, L], without columns that none of the rows uses."""
        x, y = rollouts.x[index], rollouts.y[index]
        used = (x != NO_TOKEN).any(0).nonzero()[:, 0]
        first, last = int(used[0]), int(used[-1]) + 1
        return x[:, first:last], y[:, first:last]

    def tokens(self, x: Tensor) -> int:
        """How many there are in a block, without padding."""
        return int((x != NO_TOKEN).sum())

    def at(self, rollouts: Rollouts, index: Tensor) -> Tensor:
        """The rows themselves."""
        return index

    def output(self, loop, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Logits [b, T + 1, V] of the last columns; a prompt is read once for all its answers."""
        longest = int((y != IGNORE).sum(1).max())
        return model.answered(x.clamp(min=0), x != NO_TOKEN, x.shape[1] - longest)

    def told(self, loop, output: Tensor) -> Tensor:
        """The same: text has no task labels."""
        return output

    def logp(self, output: Tensor, y: Tensor, rollouts, index, temperature: float) -> Tensor:
        """0 where the answer has no token."""
        return token_logp(output[:, :-1], y[:, y.shape[1] - output.shape[1] + 1 :], temperature)

    def logits(self, output: Tensor, n: int) -> Tensor:
        """Column t of the logits scores token t of the answer."""
        return output[:, :-1]

    def mask(self, output: Tensor, y: Tensor, n: int) -> Tensor:
        """The answers' tokens."""
        return y[:, y.shape[1] - output.shape[1] + 1 :] != IGNORE


class ClassPolicy:
    """A classifier: one draw of a class is the whole answer, T = 1.

    explore: share of draws that are uniform over the classes that may be answered. No ratio
    corrects for them, or what the policy never draws it would never learn; so they count only where
    they did better than expected: pushing down what is hardly ever drawn has no bound.
    """

    def __init__(self, explore: float = 0.0):
        self.explore = explore

    def check(self, loop: Loop) -> None:
        """Refuse what has no meaning for drawn classes."""
        if loop.train.augment:
            raise BadValue(
                "train.augment can't be used with rewards: the answer to one picture "
                "would be learned for another"
            )

    def answer(self, loop, rollouts: Rollouts, n: int, temperature: float, rng, greedy=False):
        """n draws for every row, among the classes seen (of its task, where labels are given)."""
        x, task_id = rollouts.rows["x"], rollouts.rows.get("task_label")
        with frozen(loop.model):
            parts = [loop.model(loop.prepared(part)) for part in x.split(AT_ONCE)]
            logits = loop.restricted(torch.cat(parts)[:, : loop.seen_classes], task_id)
        logp = (logits.float() / temperature).log_softmax(1)
        if greedy:
            drawn = logp.argmax(1, keepdim=True)
        else:
            drawn = torch.multinomial(logp.exp().cpu(), n, replacement=True, generator=rng)
        if self.explore and not greedy:
            allowed = (logits > float("-inf")).float().cpu()
            other = torch.multinomial(allowed, n, replacement=True, generator=rng)
            explored = torch.rand(drawn.shape, generator=rng) < self.explore
            drawn = torch.where(explored, other, drawn)
            rollouts.explored = explored.flatten().to(x.device)
        drawn = drawn.to(x.device)  # [P, n]
        rollouts.group = torch.arange(len(x), device=x.device).repeat_interleave(drawn.shape[1])
        rollouts.y, rollouts.logp = drawn.flatten(), logp.gather(1, drawn).view(-1, 1)
        rollouts.mask = torch.ones_like(rollouts.logp, dtype=torch.bool)
        rollouts.unfinished = torch.zeros_like(rollouts.y, dtype=torch.bool)

    def reward(self, loop, rollouts: Rollouts, form: float) -> Tensor:
        """1 where the class is right."""
        drawn = rollouts.y.view(rollouts.n_prompts, -1)
        rewards = reward_of_classes(loop.stream, rollouts.rows, drawn).flatten()
        rollouts.right = rewards == 1
        return rewards

    def per_prompt(self, n: int) -> int:
        """A row is an input: its answers share one pass through the model."""
        return 1

    def part(self, loop, rollouts: Rollouts, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [b, ...] and their labels [b], which the loss does not look at."""
        rows = {name: column[index] for name, column in rollouts.rows.items()}
        loop.mb_task_id = rows.get("task_label")
        return loop.prepared(rows["x"]), rows["y"]

    def tokens(self, x: Tensor) -> int:
        """None: inputs are no text."""
        return 0

    def at(self, rollouts: Rollouts, index: Tensor) -> Tensor:
        """All answers to the inputs."""
        n = len(rollouts) // rollouts.n_prompts
        return (index[:, None] * n + torch.arange(n, device=index.device)).flatten()

    def output(self, loop, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Logits [b, C] of all classes, as cross_entropy has them."""
        return model(x)

    def told(self, loop, output: Tensor) -> Tensor:
        """Logits [b, C], -inf outside a row's task where labels are given."""
        return loop.restricted(output, loop.mb_task_id)

    def logp(self, output: Tensor, y: Tensor, rollouts, index, temperature: float) -> Tensor:
        """Of the drawn classes."""
        drawn = rollouts.y[self.at(rollouts, index)].view(-1, 1)
        return token_logp(self.logits(output, len(drawn)), drawn, temperature)

    def logits(self, output: Tensor, n: int) -> Tensor:
        """As if of one token, the same for all answers to an input."""
        return output.repeat_interleave(n // len(output), 0).unsqueeze(1)

    def mask(self, output: Tensor, y: Tensor, n: int) -> Tensor:
        """All true."""
        return torch.ones(n, 1, dtype=torch.bool, device=y.device)


POLICIES = {"llm": TextPolicy, "vision": ClassPolicy}
