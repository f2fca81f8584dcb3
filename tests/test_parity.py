"""Parity with Avalanche: the same weights and batches end in the same weights."""

import copy

import pytest
import torch
from conftest import DropoutNet, assert_same_weights, make_loop, tiny_stream, weights

from cl.seeding import generator
from strategies.naive import Naive

STEPS = {"lr": 0.05, "batch_size": 16, "momentum": 0.9, "weight_decay": 1e-3}


class NoDropNet(DropoutNet):
    """Without dropout: the two libraries draw from the global generator at different times."""

    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Identity()


def avalanche_naive(model, stream):
    """Avalanche's own template, fed each experience's rows in the order that ours draws."""
    pytest.importorskip("avalanche")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive as AvalancheNaive

    rng, datasets = generator(0, "batches"), []
    for e in stream.experiences:
        order = torch.randperm(len(e.train), generator=rng)
        rows = e.train.rows(order)
        plain = torch.utils.data.TensorDataset(rows["x"], rows["y"])
        plain.targets = rows["y"].tolist()
        datasets.append(as_classification_dataset(plain))
    for data, e in zip(datasets, stream.experiences, strict=True):
        assert len(data) == len(e.train)
    benchmark = benchmark_from_datasets(train=datasets)
    strategy = AvalancheNaive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=1,
        device="cpu",
        evaluator=EvaluationPlugin(),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False, drop_last=False)
    return model


def test_naive_ends_in_the_weights_of_avalanches_naive():
    stream = tiny_stream(n_classes=4, sizes=(2, 1, 1), per_class=50)
    loop = make_loop([Naive()], stream, model=NoDropNet, **STEPS)
    theirs = copy.deepcopy(loop.model)
    start = weights(loop.model)
    loop.run()
    avalanche_naive(theirs, stream)
    assert_same_weights(weights(loop.model), weights(theirs))
    assert any(
        not torch.equal(a, b) for a, b in zip(start.values(), weights(theirs).values(), strict=True)
    )
    assert loop.clock.train_iterations == sum(-(-len(e.train) // 16) for e in stream.experiences)
