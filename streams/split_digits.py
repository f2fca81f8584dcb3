"""split_digits: ten handwritten digits arriving in five experiences.

Shifts    new classes; inputs unchanged
Source    bundled with scikit-learn (UCI optical digits, 1,797 images); no download
Shapes    x float32 [1, 8, 8] in [0, 1]; y int64 in [0, 10)
Splits    train and test stratified by class, fixed by stream.seed; validation out of train
Gives     boundaries, stream_length; jointly solvable
Parameters
    n_experiences  experiences of equal size, a rest to the first ones; none: 5 [experiences]
    base           classes in the first experience; then `increment` each [classes]
    increment      classes in each later experience [classes]
    class_order    fixed (0..9), seeded, or ten digits separated by commas
    val            share of each class's training images held out for validation [1]
    test           share of each class's images held out for testing [1]
    seed           of the splits and of a seeded class order; follows the run's seed
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from sklearn.datasets import load_digits

from cl.config import Range
from cl.registry import register
from cl.stream import Labelled, Stream, class_incremental, hold_out, split_sizes


@register
def split_digits(
    *,
    n_experiences: Annotated[int, Range(min=1)] | None = None,
    base: Annotated[int, Range(min=1)] | None = None,
    increment: Annotated[int, Range(min=1)] | None = None,
    class_order: Literal["fixed", "seeded"] | list[int] = "fixed",
    val: Annotated[float, Range(min=0, below=1)] = 0.1,
    test: Annotated[float, Range(above=0, below=1)] = 0.2,
    seed: int = 0,
) -> Stream:
    """Class-incremental digits."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [N, 1, 8, 8]
    y = torch.tensor(digits.target, dtype=torch.int64)
    names = [str(d) for d in range(10)]
    train_rows, test_rows = hold_out(y, test, seed, names)
    return class_incremental(
        "split_digits",
        Labelled(x, y, train_rows, test_rows, names),
        sizes=split_sizes(10, n_experiences=n_experiences, base=base, increment=increment),
        order=class_order,
        val=val,
        seed=seed,
        normalise=False,
        defaults={
            "model": "small_cnn",
            "train.epochs": 10,
            "train.batch_size": 32,
            "train.lr": 0.05,
        },
    )
