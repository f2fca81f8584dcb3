"""Shared parts of the tests: small streams, loops, where the data is, no network."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from cl.loop import Loop
from cl.models import build
from cl.objectives.cross_entropy import CrossEntropy
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.stream import Labelled, class_incremental

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # workers share the cores, and last bits are the same on every machine


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("tests do not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = Path(os.environ.get("CL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set CL_DATA")
    return folder


def blobs(n_classes=4, per_class=30, shape=(1, 8, 8), seed=0):
    """Well-separated classes: noise around one random image each."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand(n_classes, *shape, generator=rng)
    y = torch.arange(n_classes).repeat_interleave(per_class)
    x = centres[y] + 0.1 * torch.randn(len(y), *shape, generator=rng)
    rows = torch.arange(len(y))
    test = rows % 5 == 0
    return Labelled(x, y, rows[~test], rows[test], [str(c) for c in range(n_classes)])


def tiny_stream(n_classes=4, sizes=(2, 2), val=0.1, seed=0, **kwargs):
    return class_incremental(
        "tiny",
        blobs(n_classes, **kwargs),
        sizes=list(sizes),
        order="fixed",
        val=val,
        seed=seed,
        normalise=False,
    )


class DropoutNet(nn.Module):
    """Batch norm and dropout with a fixed head: whatever measuring could disturb."""

    def __init__(self, n_classes=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(8, n_classes)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Watcher:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.kinds, self.rows, self.means = [], [], []

    def tick(self, loop):
        pass

    def losses(self, loop, means):
        self.means.append(means)

    def scores(self, loop, kind, scores, seconds):
        self.kinds.append((kind, loop.clock.train_iterations))
        self.rows.append(scores)


def make_loop(strategies, stream=None, model=None, observer=None, seed=0, evaluation=None, **train):
    seed_globals(seed)
    stream = stream or tiny_stream()
    if model is not None and not isinstance(model, nn.Module):
        model = model()  # built after seeding
    if model is None:
        model = build("small_cnn", stream.input_shape, {"width": 8})
    settings = {"epochs": 1, "batch_size": 16, **train}
    return Loop(
        stream=stream,
        strategies=strategies,
        model=model,
        objective=CrossEntropy(),
        train=Train(**settings),
        evaluation=Eval(**(evaluation or {})),
        seed=seed,
        device=torch.device("cpu"),
        observer=observer,
    )


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing, f"weights differ: {differing}"


def start_of_a_run():
    """Weights that `tiny` starts from, drawn at random, in a run of seed 0."""
    seed_globals(0)
    return weights(build("tiny", (), {"pretrained": False}))


def bigram_model(following):
    """A `tiny` that is a bigram table: {character: {next character, or "" for the end: share}}.

    Layers add nothing, the head holds the table's rows; what is not named has probability e^-30.
    """
    model = build("tiny", (), {"pretrained": False})
    tokenizer = model.tokenizer
    size = tokenizer.vocab_size
    table = torch.full((size, size), -30.0)
    for character, shares in following.items():
        (row,) = tokenizer.encode(character)
        for symbol, share in shares.items():
            column = tokenizer.encode(symbol)[0] if symbol else tokenizer.eos_ids[0]
            table[row, column] = torch.tensor(share).log()
    with torch.no_grad():
        for layer in model.lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        width = model.lm.config.hidden_size
        model.lm.model.embed_tokens.weight.copy_(torch.eye(size, width))
        # the norm divides a one-hot vector by its root mean square, 1 / sqrt(width)
        model.lm.lm_head.weight.zero_()
        model.lm.lm_head.weight[:, :size] = table.T / width**0.5
    return model
