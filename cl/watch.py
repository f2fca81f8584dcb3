"""Losses are watched without stopping the device: collected as tensors, read now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl.errors import NonFinite

if TYPE_CHECKING:
    from cl.loop import Loop

CHECK_EVERY = 50  # updates between two looks at the losses: one device synchronisation each


class LossWatch:
    """Losses as device tensors, read in one synchronisation every CHECK_EVERY updates."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.losses: list[Tensor] = []
        self.terms: dict[str, list[Tensor]] = {}
        self.parts: list[Tensor] = []  # of the micro-batches of one update
        self.logged: dict[str, list[Tensor | float]] = {}

    def term(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self.terms.setdefault(name, []).append(value if value.dim() == 0 else value.mean())
        share = self.loop.mb_share
        if share != 1:
            self.terms[name][-1] = self.terms[name][-1] * share

    def total(self, loss: Tensor, share: float) -> None:
        loss = loss.detach()
        if share == 1:
            self.losses.append(loss)
        else:
            self.parts.append(loss * share)

    def log(self, name: str, value: Tensor | float) -> None:
        self.logged.setdefault(name, []).append(
            value.detach().float() if isinstance(value, Tensor) else float(value)
        )

    def step(self) -> None:
        if self.parts:
            self.losses.append(torch.stack(self.parts).sum())
            self.parts = []
        if len(self.losses) >= CHECK_EVERY:
            self.flush()

    def flush(self, weights: bool = False) -> None:
        """Check and report what has come together; `weights` also checks the parameters."""
        loop = self.loop
        if self.losses:
            n = len(self.losses)
            losses = torch.stack(self.losses)
            bad = (~torch.isfinite(losses)).nonzero()
            if len(bad):
                update = loop.clock.train_iterations - n + int(bad[0]) + 1
                self._stop(f"loss became {losses[bad[0]].item()}", update)
            means = {"running_loss": losses.mean().item()}
            if self.terms:
                named = {k: torch.stack(v).sum().item() / n for k, v in self.terms.items()}
                other = means["running_loss"] - sum(named.values())
                if abs(other) > 1e-6 * max(1.0, abs(means["running_loss"])):
                    named["other"] = other
                means |= {f"loss_{name}": value for name, value in named.items()}
            for name, values in self.logged.items():
                tensors = isinstance(values[0], Tensor)
                means[name] = (
                    torch.stack(values).mean().item() if tensors else sum(values) / len(values)
                )
            self.losses, self.terms, self.logged = [], {}, {}
            if loop.observer is not None:
                loop.observer.losses(loop, means)
        if weights:
            for name, p in loop.model.named_parameters():
                if not torch.isfinite(p).all():
                    self._stop(f"weights {name} are not finite", loop.clock.train_iterations)

    def state(self) -> dict:
        """What has come together since the last look, for the checkpoint: between two updates."""
        return {
            "losses": _joined(self.losses),
            "terms": {name: _joined(values) for name, values in self.terms.items()},
            "logged": {name: _joined(values) for name, values in self.logged.items()},
        }

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.losses, self.parts = list(state["losses"]), []
        self.terms, self.logged = (
            {name: list(values) for name, values in state[kind].items()}
            for kind in ("terms", "logged")
        )

    def _stop(self, what: str, update: int) -> None:
        experience = self.loop.experience
        raise NonFinite(
            f"{what} at update {update}, in experience {experience.index} ({experience.name}); "
            f"try a smaller train.lr (now {self.loop.train.lr:g}) or train.clip=1"
        )


def _joined(values: list) -> Tensor | list:
    """Scalars on the device as one tensor, which a file holds as one; others as they are."""
    tensors = bool(values) and all(isinstance(value, Tensor) for value in values)
    return torch.stack(values) if tensors else values
