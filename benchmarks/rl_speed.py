"""rl_speed: PPO on CartPole with cl's Loop, beside Stable-Baselines3, in environment steps/s.

Same    two towers 64-64 tanh; 8 environments of 128 steps, 10 passes in minibatches of 256, Adam
        with eps 1e-5 at 3e-4, clip 0.2, gradient norm 0.5, gamma 0.99, lambda 0.95, no entropy
        bonus, the critic's loss with half its square, float32, the same budget of steps
SB3     PPO on `make_vec_env`, which has environments one after the other in this process, its
        fastest way for these; its settings are its defaults but for environments, steps and batch
cl      Loop and nothing around it, Adam as one kernel (train.fused, which streams of environments
        have by default); "cl run" is the command's whole work: building everything, evaluations
        of 20 episodes at the start and twice at the end, checkpoint, TensorBoard
Method  one process, one thread; contestants take turns, a different one first in every round; the
        first round is a warm-up. A contestant's time begins when it has been built. Rates are
        medians over rounds of the process's own time (what it waits for a core is not counted),
        ratios medians of the ratios within a round, also by the clock
Return  of 100 episodes with the likeliest actions after each round, mean and range over rounds;
        a round has a seed of its own
Needs   pip install -e '.[oracle]' for Stable-Baselines3; without it its line is left out
Run     python benchmarks/rl_speed.py [--steps 65536] [--rounds 7] [--write]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from statistics import mean, median

import numpy as np
import torch
from _readme import put
from torch import nn

import cl
from cl.env_stream import EnvStream, EnvTask, env_stream
from cl.environments import CartPole
from cl.loop import Loop
from cl.models import build
from cl.objectives.ppo import PPO
from cl.seeding import seed_globals
from cl.settings import Eval, Train

N_ENVS, N_STEPS, PASSES, BATCH, LR = 8, 128, 10, 256, 3e-4
FIRST_SEED, EPISODES = 100, 100
OURS, WHOLE, SB3 = "cl", "cl run", "Stable-Baselines3"

Actor = Callable[[np.ndarray], np.ndarray]  # observations [n, 4] -> actions [n]
Trained = Callable[[], Actor]


# -- contestants -----------------------------------------------------------------------------------


def stream(steps: int) -> EnvStream:
    """CartPole-v1 as the one task of a stream."""
    task = EnvTask("cartpole", CartPole, 22.2, 500.0)
    return env_stream("cartpole", [task], steps=steps, n_test=20, n_val=0, seed=0)


def settings() -> dict[str, dict]:
    """What is the same for all, as keys of a run."""
    return {
        "train": {
            "optimizer": "adam",
            "lr": LR,
            "eps": 1e-5,
            "fused": True,
            "clip": 0.5,
            "batch_size": BATCH,
            "epochs": 1,
        },
        "objective": {"n_envs": N_ENVS, "n_steps": N_STEPS, "passes": PASSES},
    }


def ours(steps: int, seed: int) -> Trained:
    """cl's Loop without an observer."""
    seed_globals(seed)
    taught = stream(steps)
    loop = Loop(
        stream=taught,
        strategies=[],
        model=build("actor_critic", taught.input_shape, {}, actions=taught.actions),
        objective=PPO(**settings()["objective"]),
        train=Train(**settings()["train"]),
        evaluation=Eval(),
        seed=seed,
        device=torch.device("cpu"),
    )

    def run() -> Actor:
        loop.run()
        return greedy(loop.model)

    return run


def whole(steps: int, seed: int) -> Trained:
    """All that the command line does."""

    def run() -> Actor:
        with tempfile.TemporaryDirectory() as out:
            got = cl.run(stream(steps), "naive", seed=seed, out=out, device="cpu", **settings())
        return greedy(got.model)

    return run


def greedy(model: nn.Module) -> Actor:
    """Our policy's likeliest actions."""
    return lambda seen: model(torch.from_numpy(seen)).argmax(1).numpy()


def sb3(steps: int, seed: int) -> Trained:
    """Stable-Baselines3's PPO."""
    from stable_baselines3 import PPO as Theirs
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env("CartPole-v1", n_envs=N_ENVS, seed=seed)
    model = Theirs(
        "MlpPolicy",
        envs,
        n_steps=N_STEPS,
        batch_size=BATCH,
        n_epochs=PASSES,
        learning_rate=LR,
        seed=seed,
        device="cpu",
    )

    def run() -> Actor:
        model.learn(steps)
        return lambda seen: model.predict(seen, deterministic=True)[0]

    return run


def contestants() -> dict[str, Callable[[int, int], Trained]]:
    """Those that can be run here."""
    made = {OURS: ours, WHOLE: whole}
    if importlib.util.find_spec("stable_baselines3") is not None:
        made[SB3] = sb3
    return made


# -- measuring -------------------------------------------------------------------------------------


def mean_return(act: Actor) -> float:
    """Of EPISODES episodes, the same for all."""
    env = CartPole(EPISODES)
    seen, total = env.reset(np.random.default_rng(0)), np.zeros(EPISODES)
    running = np.ones(EPISODES, bool)
    with torch.no_grad():
        while running.any():
            step = env.step(act(seen))
            total += step.rewards * running
            running &= ~(step.terminated | step.truncated)
            seen = step.observations
    return float(total.mean())


def now() -> tuple[float, float]:
    """(time of this process on all of its threads, time by the clock) [s]."""
    return time.process_time(), time.perf_counter()


def interleave(steps: int, rounds: int) -> tuple[dict[str, list[tuple]], dict[str, list[float]]]:
    """{contestant: (own time, by the clock) per round}, {contestant: final returns}."""
    makers = contestants()
    names = list(makers)
    times, returns = ({name: [] for name in names} for _ in range(2))
    for k in range(rounds + 1):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            run = makers[name](steps, FIRST_SEED + k)
            gc.collect()
            start = now()
            act = run()
            took = tuple(end - begun for end, begun in zip(now(), start, strict=True))
            if k:
                times[name].append(took)
                returns[name].append(mean_return(act))
    return times, returns


def table(steps: int, times: dict[str, list[tuple]], returns: dict[str, list[float]]) -> str:
    """Markdown; a ratio says how many times as fast as Stable-Baselines3 a contestant is."""
    head = [
        "contestant",
        "steps/s",
        "as fast x",
        "of rounds",
        "by the clock",
        "return",
        "of rounds",
    ]
    lines = []
    for name, taken in times.items():
        pairs = list(zip(taken, times.get(SB3, taken), strict=True))
        own, clock = ([other[k] / mine[k] for mine, other in pairs] for k in (0, 1))
        got = returns[name]
        lines.append(
            [
                name,
                f"{median(steps / seconds for seconds, _ in taken):,.0f}",
                f"{median(own):.2f}",
                f"[{min(own):.2f}, {max(own):.2f}]",
                f"{median(clock):.2f}",
                f"{mean(got):.1f}",
                f"[{min(got):.1f}, {max(got):.1f}]",
            ]
        )
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in rows)


def about(args: argparse.Namespace) -> str:
    """What the numbers depend on."""
    named = {"python": platform.python_version(), "torch": torch.__version__}
    packages = ("gymnasium", *(["stable-baselines3"] if SB3 in contestants() else []))
    named |= {name: version(name) for name in packages}
    named |= {"device": platform.machine(), "cores": os.cpu_count(), "threads": 1}
    named |= {"steps": args.steps, "rounds": args.rounds}
    return ", ".join(f"{key} {value}" for key, value in named.items())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=65536, help="of a run (default 65536)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    args = parser.parse_args()
    if args.rounds < 1 or (args.write and args.rounds < 5):
        parser.error(f"--rounds must be 1 or more, 5 with --write, got {args.rounds}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = f"{table(args.steps, *interleave(args.steps, args.rounds))}\n\n({about(args)})"
    print(text)
    if args.write:
        put("rl_speed", text)


if __name__ == "__main__":
    main()
