"""cartpole_physics: a pole on a cart under five kinds of physics.

Shifts    gravity, the pole's length and mass, the cart's mass, the strength of a push
Context   the five parameters are in the observation, each as log(parameter / usual) / log 20;
          context=hidden leaves them out
Source    CartPole-v1 of Gymnasium, simulated here; no data
Score     1 is 500 steps, the most that an episode can have; 0 the random policy of that physics
Expert    a linear controller of pole and cart with gains of its own for each physics: all 500
Wide      enough that what is right in one is not simply right in others: the controller of usual
          physics scores 0.9 on the long pole and 0.5 on the short one, that of the long pole 0.1
          on the short one, that of the short pole 0.4 on the long one; a policy that PPO has
          learned on usual physics scores 0 on the short pole. Gains exist that are nearly right
          everywhere, so that the stream is declared jointly solvable with hidden context too
Gives     boundaries, stream_length; jointly solvable
Parameters
    n_experiences  tasks, the first so many of usual, long, short, heavy, loaded [tasks]
    steps          environment steps of each [steps]
    order          fixed (as above) or seeded
    context        shown or hidden
    n_test         episodes per evaluation [episodes]
    n_val          episodes per evaluation for choices; 0 for none [episodes]
    seed           of evaluation's episodes and of a seeded order; follows the run's seed
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from cl.config import Range
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.registry import register
from streams._cartpole import DEFAULTS, GAINS, RANDOM, cartpole

USUAL = {"gravity": 9.8, "length": 0.5, "masspole": 0.1, "masscart": 1.0, "force_mag": 10.0}
# name: (what differs, mean return of the random policy in 40,000 episodes, the expert's gains)
PHYSICS = {
    "usual": ({}, RANDOM, GAINS),
    "long": ({"length": 2.0, "force_mag": 7.0}, 56.8, (0.05, 0.1, 1.0, 0.5)),
    "short": ({"length": 0.1, "force_mag": 30.0}, 4.8, (0.02, 0.05, 1.0, 0.15)),
    "heavy": ({"masspole": 2.0, "gravity": 25.0}, 18.1, GAINS),
    "loaded": ({"masscart": 5.0}, 37.9, GAINS),
}


@register
def cartpole_physics(
    *,
    n_experiences: Annotated[int, Range(min=1, max=5)] = 5,
    steps: Annotated[int, Range(min=1)] = 65536,
    order: Literal["fixed", "seeded"] = "fixed",
    context: Literal["shown", "hidden"] = "shown",
    n_test: Annotated[int, Range(min=1)] = 20,
    n_val: Annotated[int, Range(min=0)] = 10,
    seed: int = 0,
) -> EnvStream:
    """Poles of different physics in turn."""
    return env_stream(
        "cartpole_physics",
        [_task(name, context == "shown") for name in list(PHYSICS)[:n_experiences]],
        steps=steps,
        n_test=n_test,
        n_val=n_val,
        seed=seed,
        order=order,
        hidden=context == "hidden",
        jointly_solvable=True,
        defaults=DEFAULTS,
    )


def _task(name: str, shown: bool) -> EnvTask:
    changed, random, gains = PHYSICS[name]
    physics = USUAL | changed
    context = [math.log(physics[key] / usual) / math.log(20) for key, usual in USUAL.items()]
    return cartpole(
        name,
        f"CartPole-v1 {physics}",
        random=random,
        context=context if shown else [],
        gains=gains,
        **physics,
    )
