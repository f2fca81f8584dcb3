"""Resume inside an experience: a stopped run ends, bit for bit, as it would have ended."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_weights
from safetensors import safe_open
from test_resume import scalars

import cl
from cl import keeper, stopping
from cl.checkpoint import found
from cl.data import Batches, Table
from cl.environments import CartPole
from cl.errors import DataError, NotKept
from cl.evaluation import Evaluator
from cl.folder import comparable
from cl.keeper import Keeper
from cl.objectives._acting import Players
from cl.runner import resume
from cl.settings import Checkpoint

ROOT = Path(__file__).parents[1]
DIGITS = {"stream.n_experiences": 3, "train.epochs": 2, "train.batch_size": 64, "eval.every": 5}
TEXT = {
    "stream.tasks": ["above", "letter"],
    "stream.skills": ["copy"],
    "stream.n_train": 32,
    "stream.n_test": 4,
    "stream.n_val": 0,
    "train.epochs": 2,
    "train.batch_size": 16,
    "eval.every": 3,
}
ACTS = {"stream.steps": 300, "stream.n_test": 2, "stream.n_val": 0, "eval.every": 7}
PPO = ACTS | {
    "objective.n_envs": 4,
    "objective.n_steps": 32,
    "objective.passes": 2,
    "train.batch_size": 64,
}
DQN = ACTS | {
    "objective": "dqn",
    "objective.starts": 64,
    "objective.target_every": 7,
    "objective.capacity": 200,
    "train.batch_size": 32,
}
CASES = {
    "reservoir, adamw, cosine, parts": (
        "split_digits",
        "replay",
        {
            "strategy.policy": "reservoir",
            "train.optimizer": "adamw",
            "train.schedule": "cosine",
            "train.accumulate": 3,
            "eval.past": "sample:1",
        },
    ),
    "online, stored logits": (
        "split_digits",
        "derpp",
        {"stream.online": True, "train.epochs": 1, "train.batch_size": 32},
    ),
    "data of its own, a model anew": ("split_digits", "gdumb", {"strategy.size": 128}),
    "exemplars": ("split_digits", "icarl", {}),
    "held-out rows": ("split_digits", "bic", {}),
    "bursts by a probe": (
        "split_digits",
        "k_fpf",
        {"strategy.choose": "sensitive", "strategy.k": 7, "strategy.steps": 3},
    ),
    "masks and modes": ("split_digits", "packnet", {"stream.task_labels": True}),
    "units replaced": ("split_digits", "continual_backprop", {"train.optimizer": "adam"}),
    "intervals, halves": ("split_digits", "rwalk+hft", {"strategy.rwalk.interval": 4}),
    "until": ("split_digits", "naive", {"train.until": "val>=0.5", "eval.every": 3}),
    "augmented": ("split_digits", "ewc", {"train.augment": ["crop"], "train.warmup": 3}),
    "a frozen backbone": ("split_digits", "linear_probe", {"strategy.adapt": "first"}),
    "rewards for classes": ("split_digits", "rft", {"strategy.passes": 2}),
    "imitation": ("skills", "sft", {"train.accumulate": 2}),
    "targets anew": ("skills", "s3ft", {"strategy.refresh": "epoch"}),
    "oracle": ("skills", "sft", {"stream.demonstrations": "oracle"}),
    "adapters": ("skills", "sft+lora", {}),
    "rewards for text": (
        "skills",
        "rft",
        {
            "strategy.group": 4,
            "strategy.reference": "ema",
            "strategy.beta": 0.1,
            "strategy.refresh": 2,
            "strategy.passes": 2,
            "train.updates": 8,
        },
    ),
    "rewards for answers of one time": (
        "skills",
        "rft",
        {"strategy.group": 4, "strategy.refresh": "inf", "train.updates": 20},
    ),
    "ppo": (
        "cartpole_actions",
        "naive",
        PPO
        | {
            "objective.observations": "normalised",
            "objective.scale_rewards": True,
            "objective.target_kl": 0.001,
            "objective.anneal_clip": True,
            "train.schedule": "linear",
        },
    ),
    "ppo, anew": (
        "cartpole_physics",
        "cloning_replay",
        PPO
        | {
            "objective.observations": "normalised",
            "objective.scale_rewards": True,
            "objective.statistics": "reset",
            "objective.critic": "reset",
            "train.epochs": 2,
        },
    ),
    "ppo, side by side": ("cartpole_actions", "cumulative", PPO),
    "ppo, played again": ("minigrid_small", "naive", PPO | {"stream.steps": 200}),
    "dqn": ("cartpole_physics", "naive", DQN),
    "dqn, perfect memory": (
        "cartpole_actions",
        "replay",
        DQN | {"objective.buffer": "keep", "objective.double": True},
    ),
    "cloning": (
        "cartpole_actions",
        "agem",
        ACTS
        | {"objective": "cloning", "objective.demonstrations": 256, "train.batch_size": 32}
        | {"train.epochs": 2},
    ),
}


ALSO = (  # further ones of their kind
    *("exemplars", "held-out rows", "units replaced", "intervals, halves", "until", "augmented"),
    *("a frozen backbone", "rewards for classes", "imitation", "oracle", "adapters"),
    *("rewards for answers of one time", "ppo, side by side", "dqn, perfect memory", "cloning"),
)


class Killed(BaseException):
    """The process ends here."""


def stopped_at(update, stream, strategy, monkeypatch, /, **settings):
    """The folder of a run that ends after an update; checkpoints by default after every one."""
    tick = Keeper.tick

    def last(self, loop):
        tick(self, loop)
        if loop.clock.train_iterations == update:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed) as end:
        patched.setattr(Keeper, "tick", last)
        cl.run(stream, strategy, **{"checkpoint.every": 1} | settings)
    return end.value.run_folder


def assert_same_end(again, whole):
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())
    assert (again.dir / "curves.jsonl").read_bytes() == (whole.dir / "curves.jsonl").read_bytes()


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in ALSO else ()) for c in CASES]
)
def test_a_run_stopped_at_any_update_ends_as_if_it_had_not_been(case, tmp_path, monkeypatch):
    stream, strategy, settings = CASES[case]
    base = {"split_digits": DIGITS, "skills": TEXT}.get(stream, {})
    settings = base | settings
    whole = cl.run(stream, strategy, out=str(tmp_path / "whole"), **settings)
    update = random.Random(case).randint(1, whole.results["cost"]["updates"])
    settings |= {"out": str(tmp_path / "part"), "checkpoint.every": update}
    part = stopped_at(update, stream, strategy, monkeypatch, **settings)
    newest = found(part / "checkpoint")[-1]
    assert json.loads((newest / "state.json").read_text())["inside"]
    assert newest.name.startswith(f"{update:09d}-")
    assert_same_end(resume(part), whole)
    assert f"goes on after update {update}, in experience" in (part / "log.txt").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small run that nobody has stopped."""
    return cl.run("split_digits", "replay", out=str(tmp_path_factory.mktemp("whole")), **DIGITS)


def part_of(update, tmp_path, monkeypatch, **more):
    """The same run, stopped."""
    settings = DIGITS | {"out": str(tmp_path)} | more
    return stopped_at(update, "split_digits", "replay", monkeypatch, **settings)


def test_checkpoints_change_nothing(whole, tmp_path):
    often = cl.run("split_digits", "replay", out=str(tmp_path), **DIGITS, **{"checkpoint.every": 1})
    assert_same_end(often, whole)
    assert scalars(often.dir) == scalars(whole.dir)
    assert often.dir.name == whole.dir.name and often.dir.parent.name == whole.dir.parent.name


def test_a_run_stopped_again_and_again_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    part, tick = part_of(3, tmp_path, monkeypatch), Keeper.tick
    for update in (4, 18, 19, 32, 40):

        def last(self, loop, update=update):
            tick(self, loop)
            if loop.clock.train_iterations == update:
                raise Killed

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Keeper, "tick", last)
            resume(part)
    assert_same_end(resume(part), whole)


def test_tensorboard_of_a_run_stopped_inside_an_experience_has_every_point_once(
    tmp_path, monkeypatch
):
    settings = DIGITS | {"stream.online": True, "train.epochs": 1, "train.batch_size": 8}
    whole = cl.run("split_digits", "naive", out=str(tmp_path / "whole"), **settings)
    settings["out"] = str(tmp_path / "part")
    part = stopped_at(100, "split_digits", "naive", monkeypatch, **settings)
    resume(part)
    assert scalars(part) == scalars(whole.dir)
    assert "train/running_loss" in scalars(part) and "prequential_accuracy" in scalars(part)


# ---------------------------------------------------------------- files


def flip(path):
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(name, whole, tmp_path, monkeypatch):
    part = part_of(30, tmp_path, monkeypatch)
    before, newest = found(part / "checkpoint")
    flip(newest / name)
    assert_same_end(resume(part), whole)
    log = (part / "log.txt").read_text()
    assert f"{newest} is damaged: {name} does not match its checksum" in log
    assert "goes on from the one before" in log and "after update 29" in log
    assert before.name.startswith("000000029") and newest.name.startswith("000000030")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state.json": "x"}'])
def test_checksums_that_say_nothing_are_damage(content, whole, tmp_path, monkeypatch):
    part = part_of(30, tmp_path, monkeypatch)
    (found(part / "checkpoint")[-1] / "checksums.json").write_text(content)
    assert_same_end(resume(part), whole)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_stays_as_it_is(
    tmp_path, monkeypatch
):
    part = part_of(30, tmp_path, monkeypatch)
    for folder in found(part / "checkpoint"):
        flip(folder / "state.json")
    held = (part / "curves.jsonl").read_text(), (part / "results.json").read_text()
    with pytest.raises(DataError, match=r"000000030-.* is damaged: state.json does not match"):
        resume(part)
    assert ((part / "curves.jsonl").read_text(), (part / "results.json").read_text()) == held
    assert len(found(part / "checkpoint")) == 2


def test_the_last_two_checkpoints_are_kept_and_no_rest_of_a_killed_one(tmp_path, monkeypatch):
    part = part_of(30, tmp_path, monkeypatch)
    left = part / "checkpoint" / ".000000031-000002.4242"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    resume(part)
    names = sorted(path.name for path in (part / "checkpoint").iterdir())
    assert len(names) == 2 and names[-1].endswith("-000003")


def test_a_checkpoint_holds_data_and_no_code(tmp_path, monkeypatch):
    newest = found(part_of(30, tmp_path, monkeypatch) / "checkpoint")[-1]
    files = {path.name for path in newest.iterdir()}
    assert files == {"model.safetensors", "state.safetensors", "state.json", "checksums.json"}
    for name in ("model", "state"):
        with safe_open(newest / f"{name}.safetensors", "pt") as opened:
            assert len(list(opened.keys())) > 5
    document = json.loads((newest / "state.json").read_text())
    assert document["format"] == 2 and document["inside"] is True


def test_a_checkpoint_of_the_first_format_is_gone_on_with(whole, tmp_path, monkeypatch):
    part = part_of(25, tmp_path, monkeypatch, **{"checkpoint.every": 50})
    (newest,) = found(part / "checkpoint")
    assert newest.name == "000000018-000001"
    path = newest / "state.json"
    document = json.loads(path.read_text())
    document["format"] = 1
    del document["inside"]
    entries = dict(document["state"]["dict"])
    windows = dict(entries["prequential"]["dict"])["windows"]
    entries = {k: v for k, v in entries.items() if k not in ("inside", "losses")}
    document["state"]["dict"] = [[k, v] for k, v in (entries | {"prequential": windows}).items()]
    path.write_text(json.dumps(document))
    sums = json.loads((newest / "checksums.json").read_text())
    sums["state.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (newest / "checksums.json").write_text(json.dumps(sums))
    assert_same_end(resume(part), whole)


def test_a_checkpoint_that_can_not_be_written_ends_the_run_in_one_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cl.checkpoint.save_file", full)
    with pytest.raises(cl.ClError, match="no checkpoint can be written: No space left on device"):
        cl.run("split_digits", "naive", out=str(tmp_path), **DIGITS, **{"checkpoint.every": 2})


# ---------------------------------------------------------------- when


class Clock:
    """A keeper's idea of time."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Still:
    """What a keeper asks of a loop and a recorder."""

    restarts, folder = None, Path("nowhere")

    def __init__(self, updates):
        self.clock = self
        self.train_iterations = updates


def test_checkpoints_come_by_updates_and_by_time_but_never_take_more_than_a_fiftieth(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keeper, "time", clock)
    made = Keeper(Still(0), Checkpoint(every=7))
    assert [u for u in range(1, 30) if made._due(Still(u))] == [7, 14, 21, 28]
    clock.now = 299.0
    assert not made._due(Still(1))
    clock.now = 300.0
    assert made._due(Still(1)) and not Keeper(Still(0), Checkpoint())._due(Still(1))
    made.took = 10.0  # seconds, of which 2 % of the time are left at 10 in 500
    clock.now = 499.0
    assert not made._due(Still(1)) and made._due(Still(7))
    clock.now = 500.0
    assert made._due(Still(1))
    assert not Keeper(Still(0), Checkpoint(minutes=None))._due(Still(1))


def test_runs_that_start_over_make_no_checkpoints_inside(monkeypatch):
    loop = Still(2)
    loop.restarts = "a plug-in's state is not kept"
    assert not Keeper(Still(0), Checkpoint(every=1))._due(loop)


# ---------------------------------------------------------------- signals


@pytest.fixture
def listening():
    """Signals are taken as by the command line."""
    held = {number: signal.getsignal(number) for number in stopping.WORDS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in background
    stopping.listen()
    yield
    for number, handler in held.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["untrained", "periodic", "experience"])
def test_a_signal_while_evaluating_waits_for_the_next_checkpoint(
    kind, number, whole, listening, tmp_path, monkeypatch
):
    score, calls = Evaluator.score, []

    def signalled(self, what):
        calls.append(what)
        if what == kind and calls.count(kind) == 1:
            os.kill(os.getpid(), number)
        return score(self, what)

    expected = KeyboardInterrupt if number == signal.SIGINT else stopping.Terminated
    with monkeypatch.context() as patched, pytest.raises(expected) as end:
        patched.setattr(Evaluator, "score", signalled)
        cl.run("split_digits", "replay", out=str(tmp_path), **DIGITS)
    part = end.value.run_folder
    assert len(found(part / "checkpoint")) == 1
    (newest,) = found(part / "checkpoint")
    inside = json.loads((newest / "state.json").read_text())["inside"]
    updates = int(newest.name.partition("-")[0])
    at = {"untrained": (True, 1), "periodic": (True, 5)}
    assert (inside, updates) == at.get(kind, (False, updates))
    assert json.loads((part / "results.json").read_text())["status"] == "running"
    assert_same_end(resume(part), whole)


def test_a_second_signal_ends_the_run_at_once(whole, listening, tmp_path, monkeypatch):
    score = Evaluator.score

    def signalled(self, what):
        for _ in range(2 if what == "periodic" else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return score(self, what)

    with monkeypatch.context() as patched, pytest.raises(stopping.Terminated) as end:
        patched.setattr(Evaluator, "score", signalled)
        cl.run("split_digits", "replay", out=str(tmp_path), **DIGITS, **{"checkpoint.every": 2})
    part = end.value.run_folder
    assert found(part / "checkpoint")[-1].name == "000000004-000000"  # not of update 5
    assert_same_end(resume(part), whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_ends_inside_an_experience_and_goes_on(number, code, tmp_path):
    command = [sys.executable, "-m", "cl.cli", "run"]
    keys = ["stream.n_experiences=2", "train.epochs=40", "eval.every=100"]
    process = subprocess.Popen(
        [*command, "split_digits", "naive", *keys, f"out={tmp_path}"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    curves = None
    while curves is None or '"periodic"' not in curves.read_text():
        assert process.poll() is None
        time.sleep(0.02)
        curves = next(tmp_path.rglob("curves.jsonl"), None)
    process.send_signal(number)
    said = process.stderr.read()
    folder = curves.parent
    assert process.wait() == code and "ends with a checkpoint after this update" in said
    assert f"--resume {folder}" in said and "Traceback" not in said
    done = subprocess.run(
        [*command, "--resume", str(folder)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "goes on after update" in done.stderr
    assert "in experience 1/2" in done.stderr
    whole = cl.run("split_digits", "naive", out=str(tmp_path / "whole"), **dict(map(pair, keys)))
    assert (folder / "curves.jsonl").read_bytes() == (whole.dir / "curves.jsonl").read_bytes()
    assert comparable(cl.load(folder).results) == comparable(whole.results)


def pair(key):
    """`a=1` as ("a", "1")."""
    name, _, value = key.partition("=")
    return name, value


# ---------------------------------------------------------------- what can't be kept

SOURCE = '''
from cl import Strategy


class Hooked(Strategy):
    """Hangs a hook into the model while an experience is learned."""

    def before_training_exp(self, loop):
        head = loop.model.head
        if loop.experience.index == 1:
            head.register_forward_hook(lambda m, given, output: output * 1.5)

    def after_training_exp(self, loop):
        loop.model.head._forward_hooks.clear()


class Holding(Strategy):
    """Keeps an iterator while an experience is learned."""

    def __init__(self):
        self.numbers = None

    def before_training_exp(self, loop):
        self.numbers = iter(range(10**6))

    def before_backward(self, loop):
        loop.add_loss("numbers", loop.loss * 1e-4 * next(self.numbers))

    def after_training_exp(self, loop):
        self.numbers = None


class Listed(Strategy):
    """Batches of its own kind."""

    def objective(self, loop):
        from cl.objectives.cross_entropy import CrossEntropy

        class Own(CrossEntropy):
            def batches(self, loop, table):
                return list(super().batches(loop, table))

        return Own()
'''
KEPT_AT_ENDS = {
    "Hooked": "a strategy has put a hook, which is code, into the model: head",
    "Holding": "Holding.numbers holds a range_iterator",
    "Listed": "batches of cross_entropy can't be gone on with",
}


@pytest.mark.parametrize("name", KEPT_AT_ENDS)
def test_what_can_not_be_kept_inside_is_said_once_and_the_run_goes_on_from_an_end(
    name, tmp_path, monkeypatch
):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    settings = DIGITS | {"out": str(tmp_path / "whole")}
    whole = cl.run("split_digits", f"{path}:{name}", **settings)
    settings["out"] = str(tmp_path / "part")
    part = stopped_at(30, "split_digits", f"{path}:{name}", monkeypatch, **settings)
    said = [line for line in (part / "log.txt").read_text().splitlines() if "WARNING" in line]
    assert len(said) == 1 and KEPT_AT_ENDS[name] in said[0]
    assert "no checkpoint inside this experience, only at its end" in said[0]
    newest = found(part / "checkpoint")[-1]
    assert not json.loads((newest / "state.json").read_text())["inside"]
    assert_same_end(resume(part), whole)


class Forgetful(CartPole):
    """Can be put back, says it, and then is somewhere else."""

    replays = True

    def load(self, state):
        return super().load(state) + 1


class Silent(CartPole):
    """Has no state to be had."""

    def state(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Forgetful, "does not repeat an episode that is played again"), (Silent, "has no state")],
)
def test_environments_that_can_not_be_put_back_are_not_kept(kind, why):
    from test_rl_loop import players_of

    _, players = players_of(kind, 2)
    for _ in range(2):
        with pytest.raises(NotKept, match=why):
            players.state()


def test_environments_that_come_back_as_others_are_refused():
    from test_rl_loop import players_of

    loop, players = players_of(CartPole, 2)
    held = players.state()
    held["env"]["x"] = held["env"]["x"] + 0.5
    again = Players(loop, loop.experience.train, 2)
    with pytest.raises(DataError, match="can't be put back to where it was"):
        again.load_state(held)


def test_what_was_found_out_before_the_first_update_is_not_found_out_again(tmp_path, monkeypatch):
    settings = TEXT | {"stream.demonstrations": "own", "out": str(tmp_path)}
    part = stopped_at(3, "skills", "sft", monkeypatch, **settings)
    rft = TEXT | {"strategy.group": 4, "train.updates": 4, "out": str(tmp_path)}
    other = stopped_at(3, "skills", "rft", monkeypatch, **rft)

    def never(*args):
        raise AssertionError("this was known")

    monkeypatch.setattr("cl.objectives.token_cross_entropy.demonstrations", never)
    assert resume(part).results["status"] == "finished"
    shares = []
    monkeypatch.setattr(
        "cl.rewarded.Rewarded.pass_share", lambda self, loop, table: shares.append(1) or 1.0
    )
    assert resume(other).results["status"] == "finished"
    assert len(shares) == 1  # that of the second experience; none of the check


# ---------------------------------------------------------------- batches


def test_an_epoch_goes_on_where_its_state_was_taken():
    table = Table({"y": torch.arange(50)})
    first = Batches(table, 8, torch.Generator().manual_seed(1))
    given = iter(first)
    head = [next(given) for _ in range(3)]
    other = Batches(table, 8, torch.Generator().manual_seed(2))
    other.load_state(first.state())
    tail, expected = list(other.rest()), list(given)
    assert len(tail) == 4 and all(torch.equal(a, b) for a, b in zip(tail, expected, strict=True))
    assert sorted(torch.cat(head + tail).tolist()) == list(range(50))
    assert not list(other.rest()) and len(list(other)) == 7  # then a new one


def test_numbers_are_laid_out_as_they_were():
    from cl.checkpoint import pack, unpack

    held = {
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "narrow": torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last),
        "turned": torch.randn(3, 4).T,
        "plain": torch.randn(3, 4),
        "wide": torch.randn(3, 1).expand(3, 4),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    tensors = {}
    back = unpack(json.loads(json.dumps(pack(held, tensors, "s"))), tensors, torch.device("cpu"))
    for name in ("image", "narrow", "turned", "plain"):
        assert torch.equal(back[name], held[name]) and back[name].stride() == held[name].stride()
    assert torch.equal(back["wide"], held["wide"])
    assert np.array_equal(back["array"], held["array"]) and back["array"].flags.f_contiguous


# ---------------------------------------------------------------- kill -9


def killed(*arguments):
    """What the campaign says."""
    command = [sys.executable, str(ROOT / "tests" / "kill_campaign.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_runs_that_are_killed_end_as_those_that_are_not():
    said = killed("--kills", "6", "--seed", "1", "replay", "sft", "ppo")
    assert " 0 not" in said.splitlines()[-1]


@pytest.mark.slow
def test_runs_of_every_kind_that_are_killed_end_as_those_that_are_not():
    said = killed("--kills", "40", "--seed", "2")
    assert " 0 not" in said.splitlines()[-1]
