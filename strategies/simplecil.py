"""simplecil: class prototypes as a cosine classifier; nothing is trained.

Source    Zhou et al. 2023, arXiv:2303.07338
Claim     a pretrained backbone with prototypes for a head beats methods that train prompts
Maths     p_c = mean of f(x) over the class's rows
          prediction argmax_c cos(p_c, f(x)), so W_c = p_c / ||p_c||, b = 0
State     sums float64 [C, D], counts float64 [C]: the prototypes as running means
Needs     experience boundaries if adapt=first; a pretrained backbone to be of much use, which is
          not enforced: on a random one it is a floor
Defaults  the paper's: backbone as given
Departs   a class that comes back, and one whose domain changes, gets the mean over all its rows;
          adapt=first is the paper's ADAM with full fine-tuning, but without the features of the
          backbone as it was, which ADAM puts beside the adapted ones
Parameters
    adapt  none (backbone as given) or first (experience 0 trains it, then it rests)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from cl.frozen_features import (
    adaptation_data,
    class_sums,
    experience_features,
    needs_of,
    rest,
    write_head,
)
from cl.registry import register
from cl.strategy import Strategy


@register
class SimpleCIL(Strategy):
    """Prototypes as head, cosine similarity as score."""

    needs = ("boundaries",)
    requires = ("features", "head", "normalize")
    domains = ("vision",)

    def __init__(self, *, adapt: Literal["none", "first"] = "none"):
        self.adapt = adapt
        self.needs = needs_of(adapt)
        self.sums = None  # float64 [C, D]
        self.counts = None  # float64 [C]

    def data(self, loop, experience):
        """Gradient training in experience 0 or never."""
        return adaptation_data(self.adapt, experience)

    def before_training_exp(self, loop):
        """Freeze the backbone."""
        rest(loop, self.adapt)

    def after_training_exp(self, loop):
        """Average the experience's features into the prototypes, which are the head."""
        x, y = experience_features(loop)
        self.sums = class_sums(x, y, loop.seen_classes, self.sums)
        self.counts = class_sums(torch.ones_like(x[:, 0]), y, loop.seen_classes, self.counts)
        loop.model.normalize = True
        write_head(loop, F.normalize(self.sums / self.counts[:, None]))
