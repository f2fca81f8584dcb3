"""Steps: what a policy has met in environments, with what it earned.

One batch of them is made before the updates that learn from it; `loop.rollouts` is the running
one. The hooks `before_rollout after_rollout after_reward after_advantage` fire in this order while
it is being filled, and what is filled by then may be changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Steps:
    """T steps of n environments side by side, on the loop's device.

    observations  float32 [T, n, d]: what was acted on
    actions       int64 [T, n], or float32 [T, n, A] where they are continuous
    rewards       float32 [T, n], as the environment gave them until a hook or a scale changes them
    terminated, truncated  bool [T, n]
    task          int64 [n]: which of the stream's tasks an environment belongs to
    finals        float32 [m, d]: what truncated episodes ended with; at int64 [m, 2]: where
    last          float32 [n, d]: what follows the last step
    logp          float32 [T, n]: of the actions under the policy that took them, None for those
                  who learn from values
    values        float32 [T, n]: the critic's; advantages, returns float32 [T, n]
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    task: Tensor
    finals: Tensor
    at: Tensor
    last: Tensor
    logp: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        """Rows of a minibatch: T times n."""
        return self.rewards.numel()

    def rows(self, name: str) -> Tensor:
        """A column [T n, ...], steps of one moment next to each other."""
        return getattr(self, name).flatten(0, 1)

    def part(self, name: str, index: Tensor) -> Tensor:
        """Those rows of a column that are at positions `index` [B]."""
        return self.rows(name).index_select(0, index)

    def next_observations(self) -> Tensor:
        """What each step led to, [T, n, d], of the same episode even where it ended by the clock.

        Where it ended by termination there is the next episode's first observation, which nobody
        may bootstrap from.
        """
        following = torch.cat([self.observations[1:], self.last[None]])
        following[self.at[:, 0], self.at[:, 1]] = self.finals
        return following
