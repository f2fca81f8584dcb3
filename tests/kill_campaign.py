"""kill_campaign: runs are killed and resumed, and must end like those that nobody has killed.

    python tests/kill_campaign.py                       # 100 kills over all cases
    python tests/kill_campaign.py --kills 20 ppo rft    # cases by name

Every trial is `cl run` in a process of its own, ended by SIGKILL at a random moment: by the clock,
or at a file operation (making, syncing, renaming or deleting one), which is in the middle of a
checkpoint more often than not. `cl run --resume` then goes on and may be killed again, and again.
In the end curves.jsonl, results.json (but for times, memory, versions, device) and the model's
weights must be those of an uninterrupted run, byte for byte. Exit code 1 if any is not.

Processes are forked from this one, which has imported everything and run nothing, so that a trial
takes no longer than what it runs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
IMPORTED = (  # what every process would have to import, which takes longer than what it runs
    *("cl.runner", "cl.display", "torch._dynamo", "torch.distributed", "torchvision.transforms"),
    *("sklearn.datasets", "sklearn.model_selection", "streams.split_digits", "streams.skills"),
    *("transformers.models.llama", "transformers.generation", "cl.models.tiny", "cl.episodes"),
    *("transformers.models.llama.modeling_llama", "streams.cartpole_actions", "minigrid"),
)
AGAIN = 0.35  # probability that a resumed run is killed, too
OPERATIONS = ("fsync", "replace", "mkdir", "unlink", "rmdir")  # of os, that runs make files with
DIGITS = "stream.n_experiences=3 train.batch_size=64 eval.every=5"
TEXT = (
    "stream.tasks=above,letter stream.skills=copy stream.n_train=32 stream.n_test=4 stream.n_val=3"
)
ACTS = "stream.steps=512 stream.n_test=2 stream.n_val=0 eval.every=9"
CASES = {
    "replay": f"split_digits replay {DIGITS} train.epochs=2 strategy.policy=reservoir",
    "online": f"split_digits derpp {DIGITS} stream.online=true train.epochs=1",
    "gdumb": f"split_digits gdumb {DIGITS} train.epochs=2 strategy.size=128",
    "k_fpf": f"split_digits k_fpf {DIGITS} train.epochs=2 strategy.steps=4 "
    "probes=module_sensitivity",
    "sft": f"skills sft {TEXT} train.epochs=6 train.batch_size=16 eval.every=7",
    "s3ft": f"skills s3ft {TEXT} train.epochs=2 train.batch_size=16 strategy.refresh=epoch",
    "rft": f"skills rft {TEXT} train.batch_size=32 train.updates=6 strategy.group=4 "
    "strategy.refresh=2 strategy.passes=2",
    "ppo": f"cartpole_actions naive {ACTS} objective.n_envs=4 objective.n_steps=32 "
    "objective.passes=2 train.batch_size=64 objective.observations=normalised "
    "objective.scale_rewards=true",
    "dqn": f"cartpole_physics naive {ACTS} objective=dqn objective.starts=64 train.batch_size=32 "
    "objective.target_every=7 objective.capacity=300 stream.n_experiences=2 checkpoint.every=13",
    "cloning": f"cartpole_actions cloning_replay {ACTS} objective=cloning train.epochs=2 "
    "objective.demonstrations=256 train.batch_size=32",
    "minigrid": "minigrid_small naive stream.steps=256 stream.n_test=2 objective.n_envs=4 "
    "objective.n_steps=32 objective.passes=2 train.batch_size=64 eval.every=9",
}


@dataclass
class Plan:
    """How a process is to be killed: after so many seconds, or at its n-th file operation."""

    seconds: float | None = None
    operation: int | None = None


@dataclass
class Case:
    """A run, what it ends in, how long it takes [s] and how many file operations."""

    name: str
    arguments: list[str]
    curves: bytes = b""
    results: dict = field(default_factory=dict)
    weights: bytes = b""
    seconds: float = 0.0
    operations: int = 0


def child(arguments: list[str], log: Path, plan: Plan, count: Path | None = None) -> int:
    """The exit status of `cl ARGUMENTS` in a forked process; -9 if the plan killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            _become(arguments, log, plan, count)
        finally:
            os._exit(70)
    if plan.seconds is not None:
        end = time.monotonic() + plan.seconds
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(arguments: list[str], log: Path, plan: Plan, count: Path | None) -> None:
    """In the forked process: run, and leave."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    seen = _watched(plan.operation)
    from cl.cli import main

    try:
        main(arguments)
    except SystemExit as stop:
        if count is not None:
            count.write_text(str(seen["n"]))
        os._exit(stop.code if isinstance(stop.code, int) else 1)


def _watched(deadly: int | None) -> dict[str, int]:
    """Count file operations; before the deadly one the process is killed."""
    seen = {"n": 0}

    def counted(operation):
        def call(*args, **kwargs):
            seen["n"] += 1
            if seen["n"] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return seen


def uninterrupted(name: str, out: Path) -> Case:
    """A case with what it ends in. Raises SystemExit if it does not end."""
    arguments = ["run", *CASES[name].split()]
    often = [] if "checkpoint." in CASES[name] else ["checkpoint.every=2"]
    case = Case(name, [*arguments, *often])
    folder, count = out / name / "whole", out / name / "operations"
    folder.mkdir(parents=True)
    started = time.monotonic()
    log = out / name / "whole.log"
    if child([*case.arguments, f"out={folder}"], log, Plan(), count) != 0:
        sys.exit(f"{name} can't be run: {log.read_text()[-500:]}")
    case.seconds, case.operations = time.monotonic() - started, int(count.read_text())
    case.curves, case.results, case.weights = outcome(run_in(folder))
    return case


def run_in(folder: Path) -> Path | None:
    """The run folder below a folder, if a run has got so far as to make one."""
    found = sorted(folder.rglob("recipe.yaml"))
    return found[0].parent if found else None


def outcome(folder: Path) -> tuple[bytes, dict, bytes]:
    """(curves, comparable results, weights) that a finished run has left."""
    from cl.checkpoint import found
    from cl.folder import comparable, read_results

    curves = (folder / "curves.jsonl").read_bytes()
    weights = (found(folder / "checkpoint")[-1] / "model.safetensors").read_bytes()
    return curves, comparable(read_results(folder)), weights


def where(folder: Path | None) -> str:
    """What a killed run has left."""
    if folder is None or not (folder / "checkpoint").is_dir():
        return "before the first checkpoint"
    if list((folder / "checkpoint").glob(".[0-9]*")):
        return "while one was written"
    return "between two"


def trial(case: Case, k: int, out: Path, rng: random.Random) -> tuple[list[str], str | None]:
    """(what each kill has left, what differs in the end: None if nothing does)."""
    to, log, killed = out / case.name / f"trial{k}", out / case.name / f"trial{k}.log", []
    to.mkdir()
    while True:
        plan, folder = Plan(), run_in(to)
        if not killed or rng.random() < AGAIN:
            if rng.random() < 0.5:
                plan.seconds = rng.uniform(0, 1.1) * case.seconds
            else:
                plan.operation = rng.randint(1, case.operations)
        again = ["run", "--resume", str(folder)]
        code = child(again if folder else [*case.arguments, f"out={to}"], log, plan)
        if code == -signal.SIGKILL:
            killed.append(where(run_in(to)))
            continue
        if code != 0:
            return killed, f"exit code {code}: {log.read_text()[-300:]}"
        if not killed:  # it was faster than its end
            shutil.rmtree(to)
            to.mkdir()
            continue
        names = ("curves.jsonl", "results.json", "weights")
        pairs = zip(names, outcome(run_in(to)), (case.curves, case.results, case.weights))
        differ = [name for name, got, wanted in pairs if got != wanted]
        return killed, ", ".join(differ) + f" differ, see {to}" if differ else None


def campaign(names: list[str], kills: int, seed: int, out: Path) -> int:
    """Kill runs of these cases in turn, so many times in all; how many trials ended otherwise."""
    rng, failures, left = random.Random(seed), 0, Counter()
    print(f"seed {seed}: {kills} kills, {len(names)} cases, in {out}", flush=True)
    cases = []
    for name in names:
        cases.append(uninterrupted(name, out))
        what = f"{cases[-1].seconds:.1f} s, {cases[-1].operations} file operations"
        print(f"{name:10} uninterrupted: {what}", flush=True)
    done = k = 0
    while done < kills:
        case = cases[k % len(cases)]
        killed, wrong = trial(case, k, out, rng)
        done, k, failures = done + len(killed), k + 1, failures + (wrong is not None)
        left.update(killed)
        log = (out / case.name / f"trial{k - 1}.log").read_text()
        inside = log.count("in experience ")
        print(
            f"{case.name:10} killed {len(killed)} time{'s' * (len(killed) > 1)}, went on inside an "
            f"experience {inside}: {wrong or 'identical'}",
            flush=True,
        )
        if wrong is None:
            shutil.rmtree(out / case.name / f"trial{k - 1}")
    where_killed = ", ".join(f"{n} {place}" for place, n in left.most_common())
    print(f"{done} kills ({where_killed}) in {k} runs: {k - failures} identical, {failures} not")
    return failures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--kills", type=int, default=100, help="in all (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--out", type=Path, help="a folder for runs (default a temporary one)")
    args = parser.parse_args()
    unknown = set(args.cases) - CASES.keys()
    if unknown or args.kills < 1:
        parser.error(f"cases are {', '.join(CASES)} and --kills is at least 1")
    for name in IMPORTED:
        import_module(name)
    os.chdir(ROOT)
    out = args.out or Path(tempfile.mkdtemp(prefix="kill_campaign."))
    failures = campaign(args.cases or list(CASES), args.kills, args.seed, out.absolute())
    if not failures:
        shutil.rmtree(out)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
