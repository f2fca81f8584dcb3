"""split_wine: three kinds of wine, one after the other, from thirteen measurements.

    cl run examples/my_stream.py:split_wine naive

Parameters
    val   share of each class's training rows held out for validation [1]
    seed  of the splits; follows the run's seed
"""

import torch
from sklearn.datasets import load_wine

from cl import Stream
from cl.stream import Labelled, class_incremental, hold_out


def split_wine(*, val: float = 0.1, seed: int = 0) -> Stream:
    """Class-incremental wine, inputs float32 [13], standardised."""
    wine = load_wine()
    x = torch.tensor(wine.data, dtype=torch.float32)  # [N, 13]
    y = torch.tensor(wine.target, dtype=torch.int64)
    names = list(wine.target_names)
    train, test = hold_out(y, 0.25, seed, names)
    first = x[train][y[train] == 0]  # statistics of experience 0 alone
    data = Labelled((x - first.mean(0)) / first.std(0), y, train, test, names)
    return class_incremental(
        "split_wine", data, sizes=[1, 1, 1], order="fixed", val=val, seed=seed,
        normalise=False, defaults={"model": "mlp", "train.lr": 0.01},
    )
