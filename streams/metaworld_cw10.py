"""metaworld_cw10: ten tasks of a robot's arm in the order of Continual World's CW10.

Shifts    what is to be done with hammer, faucet, peg ...; arm, observations and actions stay
Context   which task it is, one-hot behind the observation, as Continual World has it;
          context=hidden leaves it out
Source    order: Wolczyk et al. 2021, arXiv:2105.10919; tasks: Meta-World 3, `pip install
          cl-simulator[metaworld]`, simulated by MuJoCo: hours per task on a CPU
Score     0 is the random policy, played when the stream is made; 1 is 5,000, ten points in each of
          500 steps, which bounds what a policy can get
Departs   from Continual World, so that no number here may be put beside one from there: the tasks
          are v3, other ones than v1 under the same names; the score is a return where theirs is a
          rate of success, which rises from 0 to 1 late in it; they train with SAC
Untested  beyond its refusal where Meta-World is not installed
Gives     boundaries, stream_length
Parameters
    n_experiences  tasks, in this order [tasks]
    n_random       episodes of the random policy [episodes]
    steps          environment steps of each task [steps]
    context        shown or hidden
    n_test         episodes per evaluation [episodes]
    n_val          episodes per evaluation for choices; 0 for none [episodes]
    seed           of evaluation's episodes; follows the run's seed
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.environments import Environment, WithContext, make
from cl.errors import MissingPackage
from cl.registry import register
from streams._gymnasium import DEFAULTS, random_return

TASKS = (
    *("hammer", "push-wall", "faucet-close", "push-back", "stick-pull"),
    *("handle-press-side", "push", "shelf-place", "window-close", "peg-unplug-side"),
)
LIMIT, REFERENCE = 500, 5000.0


@register
def metaworld_cw10(
    *,
    n_experiences: Annotated[int, Range(min=1, max=10)] = 10,
    n_random: Annotated[int, Range(min=1)] = 5,
    steps: Annotated[int, Range(min=1)] = 1_000_000,
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 5,
    n_val: Annotated[int, Range(min=0)] = 0,
    seed: int = 0,
) -> EnvStream:
    """CW10's order."""
    try:
        import metaworld  # noqa: F401  importing it registers its ids
    except ImportError as error:
        raise MissingPackage(
            f"metaworld_cw10 needs the package metaworld ({error}): "
            "pip install cl-simulator[metaworld]"
        ) from error
    shown = context == "shown"
    return env_stream(
        "metaworld_cw10",
        [_task(k, name, shown, n_random) for k, name in enumerate(TASKS[:n_experiences])],
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        hidden=not shown,
        jointly_solvable=shown or n_experiences == 1,
        defaults=DEFAULTS
        | {"model.hidden": [256, 256], "ppo.objective.observations": "normalised"},
    )


def _task(k: int, name: str, shown: bool, n_random: int) -> EnvTask:
    def plain(n: int) -> Environment:
        return make("Meta-World/MT1", n, env_name=f"{name}-v3", max_episode_steps=LIMIT)

    def build(n: int) -> Environment:
        return WithContext(plain(n), np.eye(len(TASKS))[k]) if shown else plain(n)

    env = plain(n_random)
    try:
        random = random_return(env)
    finally:
        env.close()
    return EnvTask(name, build, random, REFERENCE, described=f"Meta-World {name}-v3")
