"""Avalanche's plug-ins in our loop, its benchmarks as streams, our strategies in its templates."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, DropoutNet, Watcher, assert_same_weights, make_loop, tiny_stream, weights
from torch import nn

import cl
from cl import Strategy
from cl.avalanche_source import CANNOT_RUN, _found, names
from cl.errors import BadValue, DataError, UnknownName
from cl.loop import Loop
from cl.models import build as build_model
from cl.models import grow
from cl.optim import build
from cl.parts import build_strategy
from cl.registry import find
from cl.seeding import generator, seed_globals
from cl.settings import Train
from strategies.naive import Naive
from strategies.replay import Replay

avalanche = pytest.importorskip("avalanche")

from avalanche.benchmarks.scenarios.deprecated.generators import tensors_benchmark  # noqa: E402
from avalanche.models import BaseModel, NCMClassifier, TrainEvalModel  # noqa: E402
from avalanche.models.fecam import FeCAMClassifier  # noqa: E402
from avalanche.training.plugins import EvaluationPlugin  # noqa: E402
from avalanche.training.supervised import Naive as AvalancheNaive  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = {"lr": 0.05, "batch_size": 16, "momentum": 0.9, "weight_decay": 1e-3, "epochs": 2}


class TopNet(DropoutNet):
    """Features by the names that different plug-ins look for; the last layer is a plain Linear."""

    def forward(self, x):
        self.features = self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return self.out(self.features)


class FeatureNet(DropoutNet, BaseModel):
    def get_features(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


class Body(nn.Module):
    """Images to features [B, 8]."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


def with_classifier(make):
    """A model that trains a linear layer and answers with another classifier."""

    def model():
        return TrainEvalModel(Body(), nn.Linear(8, 4), make())

    return model


def plug_in(name, **settings):
    """As the command line makes it."""
    return build_strategy(find("strategies", f"avalanche:{name}"), settings)


def ours(strategies, stream, model=DropoutNet, observer=None, evaluation=None, **train):
    """Our loop over `strategies`, its model after the run."""
    made = make_loop(
        strategies, stream, model, observer, evaluation=evaluation, **{**STEPS, **train}
    )
    kind = next((type(s).loop_class for s in strategies if type(s).loop_class), Loop)
    loop = kind(
        stream=stream,
        strategies=strategies,
        model=made.model,
        objective=made.objective,
        train=made.train,
        evaluation=made.eval,
        seed=0,
        device=made.device,
        observer=observer,
    )
    loop.run()
    return loop


def theirs(plugins, stream, model=DropoutNet, at_once=False, base=AvalancheNaive, **train):
    """The model after Avalanche's own template has trained on the same tensors."""
    settings = Train(**{**STEPS, **train})
    rows = [(e.train.column("x"), e.train.column("y")) for e in stream.experiences]
    labels = [e.task_label or 0 for e in stream.experiences]
    benchmark = tensors_benchmark(
        train_tensors=rows, test_tensors=rows, task_labels=labels, complete_test_set_only=False
    )
    seed_globals(0)
    model = model()
    strategy = base(
        model=model,
        optimizer=build(model, settings),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=settings.batch_size,
        train_epochs=settings.epochs,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
    )
    seed_globals(0)
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        strategy.train(part, eval_streams=[])
    return strategy.model


# name: settings, a model that the plug-in can work with
PARITY = {
    "EWCPlugin": ({"ewc_lambda": 100.0}, DropoutNet),
    "LwFPlugin": ({"alpha": 2.0}, DropoutNet),
    "MASPlugin": ({"lambda_reg": 10.0}, DropoutNet),
    "RWalkPlugin": ({"ewc_lambda": 10.0, "delta_t": 3}, DropoutNet),
    "AGEMPlugin": ({"patterns_per_experience": 20, "sample_size": 10}, DropoutNet),
    "GEMPlugin": ({"patterns_per_experience": 20, "memory_strength": 0.5}, DropoutNet),
    "GDumbPlugin": ({"mem_size": 20}, DropoutNet),
    "ReplayPlugin": ({"mem_size": 20}, DropoutNet),
    "BiCPlugin": ({"mem_size": 20, "stage_2_epochs": 3}, DropoutNet),
    "GSS_greedyPlugin": (
        {"mem_size": 60, "mem_strength": 2, "input_size": [1, 8, 8]},
        DropoutNet,
    ),
    "CoPEPlugin": ({"mem_size": 20, "n_classes": 4, "p_size": 4, "max_it_cnt": 3}, DropoutNet),
    "MIRPlugin": ({"batch_size_mem": 4, "mem_size": 20, "subsample": 10}, DropoutNet),
    "RARPlugin": ({"batch_size_mem": 8, "mem_size": 20}, DropoutNet),
    "FromScratchTrainingPlugin": ({}, DropoutNet),
    "LFLPlugin": ({"lambda_e": 1.0}, FeatureNet),
    "FeatureDistillationPlugin": ({"alpha": 5.0}, TopNet),
}
# plug-ins that leave training alone and change what the model answers
ANSWERS = {
    "CurrentDataNCMUpdate": ({}, with_classifier(NCMClassifier)),
    "MemoryNCMUpdate": ({"mem_size": 20}, with_classifier(NCMClassifier)),
    "NCMOracle": ({}, with_classifier(NCMClassifier)),
    "CurrentDataFeCAMUpdate": ({}, with_classifier(FeCAMClassifier)),
    "MemoryFeCAMUpdate": ({"mem_size": 20}, with_classifier(FeCAMClassifier)),
    "FeCAMOracle": ({}, with_classifier(FeCAMClassifier)),
}
# tests of their own, below
ELSEWHERE = {
    "SynapticIntelligencePlugin",
    "EarlyStoppingPlugin",
    "LRSchedulerPlugin",
    "CWRStarPlugin",
}


@pytest.fixture(scope="module")
def stream():
    return tiny_stream(n_classes=4, sizes=(2, 1, 1), per_class=50, val=0.2)


@pytest.fixture(scope="module")
def plain():
    """Weights of Avalanche's naive training, by model."""
    known = {}

    def weights_of(model, stream):
        if model not in known:
            known[model] = weights(theirs([], stream, model))
        return known[model]

    return weights_of


def moved(left, right):
    return any(not torch.equal(a, b) for a, b in zip(left.values(), right.values(), strict=False))


def test_every_plug_in_of_the_library_is_classified():
    known = PARITY.keys() | ANSWERS.keys() | ELSEWHERE | CANNOT_RUN.keys()
    assert known == set(_found("strategies"))
    assert len(names("strategies")) >= 20
    for name in CANNOT_RUN:
        with pytest.raises(BadValue, match="can't be run by name"):
            find("strategies", f"avalanche:{name}")


@pytest.mark.parametrize("name", PARITY)
def test_a_plug_in_ends_in_exactly_the_weights_of_avalanches_template(name, stream, plain):
    settings, model = PARITY[name]
    plugin = plug_in(name, **copy.deepcopy(settings))
    watcher = Watcher()
    loop = ours([plugin], stream, model, observer=watcher, evaluation={"every": 4})
    expected = weights(theirs([type(plugin.plugin)(**settings)], stream, model))
    assert_same_weights(weights(loop.model), expected)
    assert moved(expected, plain(model, stream))
    assert all(row.test[0] is not None for row in watcher.rows)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_plug_in_that_answers_by_its_own_classifier_is_asked(name, stream):
    settings, model = ANSWERS[name]
    plugin = plug_in(name, **settings)
    watcher = Watcher()
    loop = ours([plugin], stream, model, observer=watcher)
    expected = theirs([type(plugin.plugin)(**settings)], stream, model)
    assert_same_weights(weights(loop.model), weights(expected))
    x = stream.evals[0].test.column("x")
    assert torch.equal(loop.model.eval()(x), expected.eval()(x))
    assert watcher.rows[0].test == [None] * 3  # nothing to answer with before the first means
    assert watcher.rows[1].test[0] > 0.5


def test_naive_training_is_the_same_in_both(stream, plain):
    nothing = cl.avalanche.Plugin(EvaluationPluginLike())
    assert_same_weights(weights(ours([nothing], stream).model), plain(DropoutNet, stream))


class EvaluationPluginLike:
    """A plug-in that does nothing."""

    def before_training(self, strategy, **kwargs):
        self.strategy = strategy


def test_avalanches_si_does_nothing_on_a_cpu(stream, plain):
    plugin = plug_in("SynapticIntelligencePlugin", si_lambda=1e6)
    assert_same_weights(weights(ours([plugin], stream).model), plain(DropoutNet, stream))


@pytest.mark.parametrize("name", ["EWCPlugin", "LwFPlugin", "GDumbPlugin", "ReplayPlugin"])
def test_one_call_of_train_for_the_whole_stream_ends_in_the_same_weights(name, stream):
    settings, model = PARITY[name]
    plugin = plug_in(name, **settings)
    expected = theirs([type(plugin.plugin)(**settings)], stream, model, at_once=True)
    assert_same_weights(weights(ours([plugin], stream, model).model), weights(expected))


def test_two_plug_ins_together_end_in_the_same_weights(stream):
    chosen = {name: PARITY[name][0] for name in ("ReplayPlugin", "EWCPlugin")}
    plugins = [plug_in(name, **settings) for name, settings in chosen.items()]
    again = [plug_in(name, **settings).plugin for name, settings in chosen.items()]
    assert_same_weights(weights(ours(plugins, stream).model), weights(theirs(again, stream)))


class GrowsLikeOurs(AvalancheNaive):
    """Avalanche's template with a head that grows as ours does."""

    def model_adaptation(self, model=None):
        model = self.model if model is None else model
        n = 1 + max(self.experience.classes_seen_so_far)
        grow(model, n, generator(0, f"head_{n}"))
        return super().model_adaptation(model)


@pytest.mark.parametrize("name", ["EWCPlugin", "LwFPlugin", "AGEMPlugin", "GEMPlugin", "MASPlugin"])
def test_with_our_growing_head_the_optimizer_follows_avalanches_rule(name, stream):
    def model():
        return build_model("small_cnn", (1, 8, 8), {"width": 8})

    def grown():  # as wide as the first experience needs, like our loop before it trains
        made = model()
        grow(made, 2, generator(0, "head_2"))
        if name == "AGEMPlugin":  # Avalanche's own template fails with channels-last gradients
            made = made.to(memory_format=torch.contiguous_format)
        return made

    settings, _ = PARITY[name]
    loop = ours([plug_in(name, **settings)], stream, model)
    expected = theirs([plug_in(name, **settings).plugin], stream, grown, base=GrowsLikeOurs)
    assert_same_weights(weights(loop.model), weights(expected))
    assert loop.model.head.weight.shape[0] == 4


def test_cwr_star_gets_the_model_that_it_was_made_for(stream, plain):
    from avalanche.training.plugins import CWRStarPlugin

    made = []

    def model():
        made.append(DropoutNet())
        return made[-1]

    seed_globals(0)
    net = model()
    loop = ours([cl.avalanche.Plugin(CWRStarPlugin(net))], stream, lambda: net)
    seed_globals(0)
    net = model()
    expected = theirs([CWRStarPlugin(net)], stream, lambda: net)
    assert_same_weights(weights(loop.model), weights(expected))
    assert moved(weights(expected), plain(DropoutNet, stream))


def test_a_scheduler_comes_with_its_optimizer(stream, plain):
    from avalanche.training.plugins import LRSchedulerPlugin
    from torch.optim.lr_scheduler import StepLR

    rates = []

    class Note(Strategy):
        def before_update(self, loop):
            rates.append(loop.optimizer.param_groups[0]["lr"])

    net = DropoutNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scheduled = cl.avalanche.Plugin(
        LRSchedulerPlugin(StepLR(optimizer, 1, gamma=0.5)), optimizer=optimizer
    )
    ours([scheduled, Note()], stream, lambda: net)
    assert rates[0] == 0.1
    assert sorted(set(rates)) == [0.05, 0.1]


def test_early_stopping_reads_validation_scores(stream):
    plugin = plug_in("EarlyStoppingPlugin", patience=1, val_stream_name="val_stream")
    observer = Watcher()
    loop = ours([plugin], stream, observer=observer, evaluation={"every": 1}, epochs=30, lr=1e-6)
    assert loop.clock.train_iterations < 30 * 8
    assert plugin.plugin.best_val == pytest.approx(
        sum(v for v in observer.rows[-1].val if v is not None) / 3, abs=1
    )


def test_our_strategies_compose_with_plug_ins(stream):
    both = ours([Replay(size=20), plug_in("EWCPlugin", ewc_lambda=1.0)], stream)
    alone = ours([plug_in("EWCPlugin", ewc_lambda=1.0)], stream)
    assert moved(weights(both.model), weights(alone.model))
    assert both.samples_seen > alone.samples_seen
    assert len(both.buffers["replay"]) == 20


def test_what_does_not_fit_is_refused_in_one_line(stream):
    ewc = plug_in("EWCPlugin", ewc_lambda=1.0)
    for given in ({"accumulate": 2}, {"precision": "bf16"}, {"augment": ["flip"]}):
        with pytest.raises(BadValue, match=next(iter(given))):
            ours([ewc], stream, **given)
    with pytest.raises(BadValue, match="claims data"):
        from strategies.joint import Joint

        ours([Joint(), ewc], stream)
    with pytest.raises(BadValue, match="mb_index"):
        ours([Replay(size=20, policy="reservoir"), ewc], stream)
    with pytest.raises(BadValue, match="online"):
        plug_in("EWCPlugin", ewc_lambda=1.0, mode="online")
    with pytest.raises(BadValue, match=r"needs strategy\.patterns_per_experience"):
        plug_in("GEMPlugin", memory_strength=0.5)
    with pytest.raises(UnknownName, match="did you mean 'EWCPlugin'"):
        find("strategies", "avalanche:EWCPlugn")
    with pytest.raises(BadValue, match="scheduler is a Python object"):
        find("strategies", "avalanche:LRSchedulerPlugin")
    with pytest.raises(BadValue, match="no plug-in of Avalanche"):
        cl.avalanche.Plugin(DropoutNet())


def test_stored_bytes_count_what_a_plug_in_keeps(stream):
    replay = ours([plug_in("ReplayPlugin", mem_size=20)], stream)
    assert replay.plugins[0].stored_bytes(replay) >= 20 * (64 * 4 + 8)
    assert replay.plugins[0].stored_bytes(replay) < 30 * (64 * 4 + 100)
    ewc = ours([plug_in("EWCPlugin", ewc_lambda=1.0)], stream)
    n = sum(p.nbytes for p in ewc.model.parameters())
    assert ewc.plugins[0].stored_bytes(ewc) >= 2 * 3 * n  # three experiences, Fisher and weights
    assert ewc.plugins[0].needs == ("boundaries",)
    assert replay.plugins[0].needs == ("boundaries", "buffer")


def test_a_run_by_name_is_recorded_and_starts_over_when_resumed(tmp_path, capsys):
    import json

    from cl.runner import resume

    settings = {"stream.n_experiences": 2, "train.updates": 3, "out": str(tmp_path)}
    given = {**settings, "strategy.ewc_lambda": 100}
    first = cl.run("split_digits", "avalanche:EWCPlugin", **given)
    assert first.metrics["average_accuracy"] is not None
    state = first.model.state_dict()
    assert_same_weights(cl.load(first.dir).model.state_dict(), state)
    results = first.dir / "results.json"
    document = json.loads(results.read_text())
    assert document["needs"] == ["boundaries"]
    assert document["cost"]["updates"] == 6
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    again = resume(first.dir, progress=True)
    assert "starts over: an Avalanche plug-in" in capsys.readouterr().err
    assert "starts over" in (first.dir / "log.txt").read_text()
    assert_same_weights(again.model.state_dict(), state)
    assert again.results["cost"]["updates"] == 6


def test_describing_a_plug_in_imports_neither_torch_nor_avalanche():
    code = (
        "import sys\n"
        "from cl.cli import main\n"
        "try: main(['describe', sys.argv[1]])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)"
    )
    for name, key in (
        ("avalanche:EWCPlugin", "strategy.ewc_lambda"),
        ("avalanche:SplitMNIST", "stream.n_experiences"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert key in done.stdout


def test_settings_are_parsed_as_the_library_declares_them():
    params = find("strategies", "avalanche:ReplayPlugin").params()
    assert params["mem_size"].annotation is int and params["mem_size"].default == 200
    assert params["batch_size"].annotation == (int | None)
    assert "storage_policy" not in params
    si = find("strategies", "avalanche:SynapticIntelligencePlugin").params()
    assert "device" not in si and "eps" in si
    from cl.config import parse

    assert parse("k", "0.1,0.2", si["si_lambda"].annotation) == [0.1, 0.2]
    assert parse("k", "0.1", si["si_lambda"].annotation) == 0.1


@pytest.mark.parametrize("name", ["LFLPlugin", "CoPEPlugin", "RARPlugin", "NCMOracle"])
def test_a_model_that_a_plug_in_can_not_work_with_is_refused_before_training(name, tmp_path):
    settings = {"LFLPlugin": {"lambda_e": 1.0}, "RARPlugin": {"batch_size_mem": 8}}.get(name, {})
    with pytest.raises(BadValue, match=f"{name} needs"):
        cl.run("split_digits", f"avalanche:{name}", strategy=settings, out=str(tmp_path))
    assert not list(tmp_path.iterdir())


class FakeMNIST(torch.utils.data.Dataset):
    """Ten classes of 28 x 28 noise around one image each, as Avalanche's MNIST gives them."""

    def __init__(self, per_class, seed):
        rng = torch.Generator().manual_seed(seed)
        centres = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(9))
        self.targets = torch.arange(10).repeat_interleave(per_class)[
            torch.randperm(10 * per_class, generator=rng)
        ]
        noise = torch.randn(10 * per_class, 1, 28, 28, generator=rng)
        self.data = (centres[self.targets] + 0.1 * noise).clamp(0, 1)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.data[index], int(self.targets[index])


@pytest.fixture
def mnist(monkeypatch):
    """Avalanche's classic benchmarks on data that is made up."""
    from avalanche.benchmarks.classic import cmnist

    data = FakeMNIST(12, 0), FakeMNIST(5, 1)
    monkeypatch.setattr(cmnist, "get_mnist_dataset", lambda root: data)
    return data


def test_a_class_incremental_benchmark_becomes_a_stream(mnist):
    train, test = mnist
    state = torch.get_rng_state()
    made = cl.avalanche.stream("SplitMNIST", n_experiences=5, seed=3, val=0.25)
    assert torch.equal(torch.get_rng_state(), state)
    assert [e.classes for e in made.experiences] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sorted(made.class_names) == [str(d) for d in range(10)]
    assert made.class_names != [str(d) for d in range(10)]  # relabelled in order of arrival
    normal = (0.1307, 0.3081)
    for e, ev in zip(made.experiences, made.evals, strict=True):
        assert (len(e.train), len(e.val), len(ev.test)) == (18, 6, 10)
        assert ev.learned_at == (e.index,) and e.task_label is None
        for c in e.classes:
            digit = int(made.class_names[c])
            rows = ev.test.column("x")[ev.test.column("y") == c]
            expected = (test.data[test.targets == digit] - normal[0]) / normal[1]
            assert torch.allclose(rows.sort(0).values, expected.sort(0).values, atol=1e-6)
    assert made.evals[1].chance == 1 / 4
    again = cl.avalanche.stream("SplitMNIST", n_experiences=5, seed=3, val=0.25)
    other = cl.avalanche.stream("SplitMNIST", n_experiences=5, seed=4, val=0.25)
    assert made.content_hash() == again.content_hash() != other.content_hash()


def test_task_labels_of_a_benchmark_are_given_to_the_model(mnist):
    made = cl.avalanche.stream("SplitMNIST", n_experiences=5, return_task_id=True, seed=0, val=0)
    assert [e.task_label for e in made.experiences] == [0, 1, 2, 3, 4]
    assert [e.task_label for e in made.evals] == [0, 1, 2, 3, 4]
    assert {"task_id_train", "task_id_test"} <= made.gives
    assert made.experiences[2].train.column("task_label").unique().tolist() == [2]
    assert made.experiences[0].val is None


@pytest.mark.parametrize(
    ("name", "settings"), [("PermutedMNIST", {}), ("RotatedMNIST", {"rotations_list": [0, 90]})]
)
def test_a_domain_incremental_benchmark_repeats_its_classes(mnist, name, settings):
    made = cl.avalanche.stream(name, n_experiences=2, seed=0, **settings)
    assert [e.classes for e in made.experiences] == [tuple(range(10))] * 2
    assert [e.learned_at for e in made.evals] == [(0,), (1,)]
    assert made.n_classes == 10
    first, second = (e.test.column("x") for e in made.evals)
    assert first.shape == second.shape and not torch.equal(first, second)


def test_a_benchmark_runs_by_name_with_a_strategy_of_ours(mnist, tmp_path):
    settings = {"n_experiences": 2, "val": 0.2}
    result = cl.run(
        "avalanche:SplitMNIST",
        "replay",
        stream=settings,
        model="mlp",
        train={"epochs": 2, "lr": 0.01},
        out=str(tmp_path),
    )
    assert result.results["stream"] == "avalanche:SplitMNIST"
    assert result.metrics["average_accuracy"] > 0.3
    both = cl.run(
        "avalanche:SplitMNIST",
        "avalanche:ReplayPlugin",
        stream=settings,
        model="mlp",
        train={"epochs": 2, "lr": 0.01},
        out=str(tmp_path),
    )
    assert both.metrics["average_accuracy"] > 0.3


def test_benchmark_objects_of_every_make_become_streams():
    from avalanche.benchmarks import benchmark_from_datasets, class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    def dataset(per_class, seed, digits=range(10)):
        fake = FakeMNIST(per_class, seed)
        keep = torch.isin(fake.targets, torch.tensor(list(digits)))
        plain = torch.utils.data.TensorDataset(fake.data[keep], fake.targets[keep])
        plain.targets = fake.targets[keep].tolist()
        return as_classification_dataset(plain)

    parts = (7, 8, 9), (1, 7)
    recurring = benchmark_from_datasets(
        train=[dataset(10, 0, digits) for digits in parts], test=[dataset(4, 1, (1, 7, 8, 9))]
    )
    made = cl.avalanche.stream(recurring, val=0)
    assert [e.classes for e in made.experiences] == [(0, 1, 2), (0, 3)]
    assert made.class_names == ["7", "8", "9", "1"]
    assert [e.learned_at for e in made.evals] == [(1,)]  # one test set, complete at the end
    loop = ours([Naive()], made)
    assert loop.clock.train_iterations == 2 * (2 + 2)

    ordered = class_incremental_benchmark(
        {"train": dataset(10, 0), "test": dataset(4, 1)}, num_experiences=5, class_order=range(10)
    )
    assert len(cl.avalanche.stream(ordered)) == 5
    untrained = benchmark_from_datasets(train=[dataset(10, 0, (0, 1))], test=[dataset(4, 1)])
    with pytest.raises(DataError, match="label 2 is tested and never trained"):
        cl.avalanche.stream(untrained)
    with pytest.raises(DataError, match="needs a train and a test stream"):
        cl.avalanche.stream(benchmark_from_datasets(train=[dataset(10, 0)]))
    with pytest.raises(BadValue, match="made already"):
        cl.avalanche.stream(ordered, n_experiences=3)


def test_nothing_is_downloaded_unless_asked(tmp_path):
    with pytest.raises(DataError, match=r"needs its data set.*stream\.download=true fetches it"):
        cl.avalanche.stream("SplitMNIST", n_experiences=5, dataset_root=str(tmp_path))
    with pytest.raises(DataError, match="avalanche:SplitMNIST"):  # the tests' network is closed
        cl.avalanche.stream(
            "SplitMNIST", n_experiences=5, dataset_root=str(tmp_path), download=True
        )
    with pytest.raises(BadValue, match=r"needs stream\.n_experiences"):
        cl.avalanche.stream("SplitMNIST")
    with pytest.raises(UnknownName, match="did you mean 'SplitMNIST'"):
        cl.avalanche.stream("SplitMNST")
    assert len(names("streams")) >= 15


def l2_anchor(strength):
    return build_strategy(find("strategies", "examples/my_strategy.py:L2Anchor"), strength)


def grown_cnn():
    made = build_model("small_cnn", (1, 8, 8), {"width": 8})
    made.head.grow(4, generator(0, "head_4"))
    return made


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_strategy_of_ours_in_avalanches_template_ends_in_our_loops_weights(strength, stream):
    """On the same batches: each experience's rows in the order that ours draws, one epoch."""
    settings = {"epochs": 1}
    loop = ours([l2_anchor({"strength": strength})], stream, grown_cnn, **settings)
    rng = generator(0, "batches")
    ordered = copy.copy(stream)
    ordered.experiences = [copy.copy(e) for e in stream.experiences]
    for e in ordered.experiences:
        e.train = e.train.select(torch.randperm(len(e.train), generator=rng))

    class InOrder(AvalancheNaive):
        def make_train_dataloader(self, shuffle=True, **kwargs):
            super().make_train_dataloader(shuffle=False, **kwargs)

    anchored = cl.avalanche.plugin(l2_anchor({"strength": strength}))
    expected = weights(theirs([anchored], ordered, grown_cnn, base=InOrder, **settings))
    assert_same_weights(weights(loop.model), expected)
    naive = weights(theirs([], ordered, grown_cnn, base=InOrder, **settings))
    assert moved(expected, naive) == bool(strength)


def test_replay_of_ours_remembers_in_avalanches_template(stream):
    def past(plugins):
        model = theirs(plugins, stream, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
        test = stream.evals[0].test
        return (model(test.column("x")).argmax(1) == test.column("y")).float().mean()

    replay = cl.avalanche.plugin(Replay(size=40), seed=1)
    assert past([replay]) > past([]) + 0.3
    assert len(replay.view.buffers["replay"]) == 40
    assert replay.view.seen_classes == 4 and replay.view.known_classes == 3


def test_a_strategy_that_stores_and_never_draws_leaves_avalanches_training_alone(stream, plain):
    class Look(Strategy):
        def before_training(self, loop):
            self.begun = getattr(self, "begun", 0) + 1

        def after_training_exp(self, loop):
            assert len(loop.adapted_dataset) == len(loop.experience.train)
            loop.snapshot()
            loop.rng("x")

    look = Look()
    assert_same_weights(
        weights(theirs([cl.avalanche.plugin(look)], stream)), plain(DropoutNet, stream)
    )
    assert look.begun == 1


def test_what_avalanches_templates_can_not_honour_is_refused(stream):
    from strategies.fetril import FeTrIL
    from strategies.joint import Joint

    for strategy, words in ((FeTrIL(), "claims"), (Joint(), "claims data")):
        with pytest.raises(BadValue, match=words):
            cl.avalanche.plugin(strategy)

    class Ends(Strategy):
        def after_training(self, loop):
            pass

    class Plans(Strategy):
        needs = ("stream_length",)

    class Heads(Strategy):
        requires = ("head",)

    with pytest.raises(BadValue, match="acts when the stream ends"):
        cl.avalanche.plugin(Ends())
    with pytest.raises(BadValue, match="needs stream_length"):
        cl.avalanche.plugin(Plans())
    with pytest.raises(BadValue, match="needs a model with a growing head"):
        theirs([cl.avalanche.plugin(Heads())], stream)
    with pytest.raises(BadValue, match="mb_index"):
        theirs([cl.avalanche.plugin(Replay(size=20, policy="reservoir"))], stream)


@pytest.mark.parametrize("name", ["EWCPlugin", "LwFPlugin", "ReplayPlugin", "GEMPlugin"])
def test_a_head_per_task_is_trained_and_scored_with_its_task_label(name, mnist):
    from avalanche.models import MTSimpleMLP

    made = cl.avalanche.stream("SplitMNIST", n_experiences=5, return_task_id=True, seed=0, val=0)
    made.experiences, made.evals = made.experiences[:3], made.evals[:3]
    settings, _ = PARITY[name]
    plugin, watcher = plug_in(name, **settings), Watcher()
    loop = ours([plugin], made, MTSimpleMLP, observer=watcher)
    expected = theirs([type(plugin.plugin)(**settings)], made, MTSimpleMLP)
    assert_same_weights(weights(loop.model), weights(expected))
    assert moved(weights(expected), weights(theirs([], made, MTSimpleMLP)))
    assert watcher.rows[0].test == [None] * 3  # no head exists before training
    for j, e in enumerate(made.evals):
        answers = expected.eval()(e.test.column("x"), torch.full((len(e.test),), j)).argmax(1)
        right = (answers == e.test.column("y")).double().mean()
        assert watcher.rows[-1].test[j] == pytest.approx(right.item())


def test_answers_that_a_plug_in_changes_are_the_ones_that_count(stream):
    settings, model = PARITY["CoPEPlugin"]
    plugin, watcher, fired = plug_in("CoPEPlugin", **settings), Watcher(), []
    count = plugin.plugin.after_eval_iteration
    plugin.plugin.after_eval_iteration = lambda strategy: (fired.append(1), count(strategy))
    loop = ours([plugin], stream, model, observer=watcher)
    test = stream.evals[0].test
    with torch.no_grad():
        embedded = loop.model.eval()(test.column("x"))
    answers = plugin.plugin._get_nearest_neigbor_distr(embedded).argmax(1)
    right = (answers == test.column("y")).double().mean().item()
    assert watcher.rows[-1].test[0] == pytest.approx(right)
    assert len(fired) == 4  # one batch at each evaluation
    assert right != (embedded.argmax(1) == test.column("y")).double().mean().item()
