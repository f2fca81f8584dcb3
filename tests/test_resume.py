"""Resume against the uninterrupted run, for what a strategy or a setting may carry along."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cl
from cl.checkpoint import found, pack, unpack
from cl.errors import ContractError, DataError
from cl.folder import comparable
from cl.runner import resume

SOURCE = '''
import numpy as np
import torch
from cl import Strategy


class Counter(Strategy):
    """Moves weights by the number of experiences, the clock and global draws."""

    def after_training_exp(self, loop):
        shift = loop.clock.train_exp_counter + torch.rand(()) + np.random.rand()
        with torch.no_grad():
            loop.model.head.bias[0] += float(shift)


class Longer(Strategy):
    """Changes the loop's own settings once."""

    def before_training(self, loop):
        loop.train_epochs = 2


class Freeze(Strategy):
    """Trains one part per experience, in groups of different rates."""

    def optimizer(self, loop):
        groups = [
            {"params": list(loop.model.backbone.parameters()), "lr": 0.02},
            {"params": list(loop.model.head.parameters()), "lr": 0.2},
        ]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def before_training_exp(self, loop):
        odd = loop.experience.index % 2 == 1
        loop.model.head.requires_grad_(not odd)
        loop.model.backbone.requires_grad_(odd or loop.experience.index == 0)


class Alias(Strategy):
    """Two names for one tensor, and a component's generator kept."""

    def __init__(self):
        self.a = torch.zeros(1)
        self.b = self.a
        self.rng = None

    def after_training_exp(self, loop):
        self.rng = loop.rng("alias")
        self.a += 1
        with torch.no_grad():
            loop.model.head.bias[0] += (self.b + torch.rand(1, generator=loop.rng("alias")))[0]


class Teacher(Strategy):
    """Keeps a snapshot and a Fortran-ordered array."""

    def __init__(self):
        self.teacher = None
        self.array = np.asfortranarray(np.arange(6.0).reshape(2, 3))

    def before_backward(self, loop):
        if self.teacher is not None:
            with torch.no_grad():
                old = self.teacher(loop.mb_x)
            new = loop.mb_output[:, : old.shape[1]]
            loop.add_loss("distance", 0.01 * (new - old).pow(2).mean() * self.array[1, 2])

    def after_training_exp(self, loop):
        self.teacher = loop.snapshot()


class FreezeOnce(Strategy):
    """Freezes a part at one experience and never says so again."""

    def before_training_exp(self, loop):
        if loop.experience.index == 1:
            loop.model.backbone.layers[0].requires_grad_(False)


class Grow(Strategy):
    """A head of its own making."""

    def grow(self, model, n_classes):
        model.head.grow(n_classes + 2, torch.Generator().manual_seed(7))
'''
NAMES = ("Counter", "Longer", "Freeze", "FreezeOnce", "Alias", "Teacher", "Grow")
CASES = {
    **{name: (name, {}) for name in NAMES},
    "adamw and cosine": ("replay", {"train.optimizer": "adamw", "train.schedule": "cosine"}),
    "reservoir, sampled evals": (
        "replay",
        {"strategy.policy": "reservoir", "eval.past": "sample:1", "eval.every": 3},
    ),
    "reset": ("naive", {"train.reset_optimizer": True, "train.warmup": 3}),
    "accumulate, clip": ("replay", {"train.accumulate": 3, "train.clip": 0.1}),
    "augmented": ("naive", {"train.augment": ["crop", "flip"], "probes": ["weight_norm"]}),
    "fc": ("fetril", {"strategy.head": "fc"}),
    "joint": ("joint", {}),
    "frozen and clipped": ("Freeze", {"train.clip": 0.1}),
}
QUICK = {"stream.n_experiences": 4, "train.epochs": 1, "train.batch_size": 64}


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return lambda name: f"{path}:{name}" if name[0].isupper() else name


def stopped_after(whole: Path, n: int, to: Path) -> Path:
    """A copy of a run as it was when experience n-1 had been learned (as a kill leaves it)."""
    shutil.copytree(whole, to)
    for folder in found(to / "checkpoint"):
        if int(folder.name.rpartition("-")[2]) != n:
            shutil.rmtree(folder)
    results = to / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    assert len(found(to / "checkpoint")) == 1
    return to


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, own, tmp_path):
    strategy, settings = CASES[case]
    whole = cl.run("split_digits", own(strategy), out=str(tmp_path), **QUICK, **settings)
    part = stopped_after(whole.dir, 3, tmp_path / "part")
    again = resume(part)
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())
    assert (part / "curves.jsonl").read_text() == (whole.dir / "curves.jsonl").read_text()


def scalars(folder):
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    tags = [t for t in reader.Tags()["scalars"] if "seconds" not in t and "memory" not in t]
    return {tag: [(p.step, p.value) for p in reader.Scalars(tag)] for tag in tags}


def test_tensorboard_of_a_resumed_run_has_every_point_once(tmp_path):
    for name in ("naive", "raw_ncm"):
        whole = cl.run("split_digits", name, out=str(tmp_path), **QUICK, eval={"every": 3})
        part = stopped_after(whole.dir, 3, tmp_path / f"part_{name}")
        resume(part)
        assert scalars(part) == scalars(whole.dir)


def test_a_run_stopped_between_its_last_two_files_is_finished_by_resume(tmp_path):
    whole = cl.run("split_digits", "naive", out=str(tmp_path), **QUICK)
    part = stopped_after(whole.dir, 4, tmp_path / "part")
    again = resume(part)
    assert again.results["status"] == "finished"
    assert comparable(again.results) == comparable(whole.results)


def test_a_run_stopped_before_its_first_results_starts_over(tmp_path):
    whole = cl.run("split_digits", "naive", out=str(tmp_path), **QUICK)
    early = tmp_path / "early"
    early.mkdir()
    shutil.copy(whole.dir / "recipe.yaml", early)
    assert comparable(resume(early).results) == comparable(whole.results)
    assert "experience 3" in (early / "log.txt").read_text()


def test_resume_on_other_data_is_refused(tmp_path):
    whole = cl.run("split_digits", "naive", out=str(tmp_path), **QUICK)
    part = stopped_after(whole.dir, 3, tmp_path / "part")
    recipe = part / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("stream.test: 0.2", "stream.test: 0.3"))
    with pytest.raises(DataError, match="was run on other data"):
        resume(part)


def test_a_replaced_model_can_not_be_resumed_and_says_so(own, tmp_path):
    path = tmp_path / "swap.py"
    path.write_text(
        "from cl import Strategy\nfrom cl.models import build\n\n\nclass Swap(Strategy):\n"
        '    """swap."""\n\n    def before_training_exp(self, loop):\n'
        "        if loop.experience.index == 1:\n"
        "            loop.model = build('mlp', (1, 8, 8), {'hidden': [8]})\n"
        "            loop.grow_to(loop.seen_classes)\n"
    )
    whole = cl.run("split_digits", f"{path}:Swap", out=str(tmp_path), **QUICK)
    part = stopped_after(whole.dir, 3, tmp_path / "part")
    with pytest.raises(cl.ClError, match="another one than this run starts with"):
        resume(part)


REFUSED = {
    "gradient": lambda: torch.ones(2, requires_grad=True),
    "module": lambda: torch.nn.Linear(1, 1),
    "text array": lambda: np.array(["a"]),
    "object array": lambda: np.array([None]),
    "complex": lambda: torch.zeros(1, dtype=torch.complex64),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "numpy scalar": lambda: np.float32(1),
    "function": lambda: print,
    "itself": lambda: (lambda items: items.append(items) or items)([]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_checkpoint_can_not_hold_is_refused(case):
    with pytest.raises(ContractError, match="S.x"):
        pack({"x": REFUSED[case]()}, {}, "S.x")


def test_what_was_one_object_comes_back_as_one():
    tensor, rng = torch.zeros(2), torch.Generator().manual_seed(1)
    tensors = {}
    packed = pack({"a": tensor, "b": [tensor], "r": rng, "s": rng}, tensors, "s")
    back = unpack(packed, tensors, torch.device("cpu"))
    assert back["a"] is back["b"][0] and back["r"] is back["s"]
    assert len(tensors) == 2
