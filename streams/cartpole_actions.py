"""cartpole_actions: a pole on a cart whose actions mean something else in every task.

Shifts    what pushes which way: task 0 as usual, task 1 exchanged, and so on in turns. The physics
          stays, so that a policy must tell the tasks apart or unlearn one for the other:
          interference on purpose
Context   the order of actions is in the observation as a number, +1 or -1, which makes the stream
          jointly solvable; context=hidden leaves it out, and no policy can solve both
Source    CartPole-v1 of Gymnasium, simulated here; no data
Score     1 is 500 steps, the most that an episode can have; 0 the random policy
Expert    a linear controller of the pole's angle and the cart's place, which reaches 500
Gives     boundaries, stream_length
Parameters
    n_experiences  tasks, normal and exchanged in turns [tasks]
    steps          environment steps of each [steps]
    context        shown or hidden
    n_test         episodes per evaluation [episodes]
    n_val          episodes per evaluation for choices; 0 for none [episodes]
    seed           of evaluation's episodes; follows the run's seed
"""

from __future__ import annotations

from typing import Annotated, Literal

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.registry import register
from streams._cartpole import DEFAULTS, cartpole


@register
def cartpole_actions(
    *,
    n_experiences: Annotated[int, Range(min=1, max=2)] = 2,
    steps: Annotated[int, Range(min=1)] = 65536,
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 20,
    n_val: Annotated[int, Range(min=0)] = 10,
    seed: int = 0,
) -> EnvStream:
    """Normal and exchanged actions in turn."""
    tasks = [_task(bool(k % 2), context == "shown") for k in range(n_experiences)]
    return env_stream(
        "cartpole_actions",
        tasks,
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        hidden=context == "hidden",
        jointly_solvable=context == "shown" or n_experiences == 1,
        defaults=DEFAULTS,
    )


def _task(exchanged: bool, shown: bool) -> EnvTask:
    order = [1, 0] if exchanged else [0, 1]
    return cartpole(
        "exchanged" if exchanged else "normal",
        f"CartPole-v1 actions {order}",
        order=order,
        context=[-1.0 if exchanged else 1.0] if shown else [],
    )
