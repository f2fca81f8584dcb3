"""l2_anchor: stay close to the weights of the last experience.

    cl run split_digits examples/my_strategy.py:L2Anchor strategy.strength=0.1

Parameters
    strength  pull towards the last experience's weights [1]
"""

from cl import Strategy


class L2Anchor(Strategy):
    """L + strength * ||theta - theta*||^2 over the backbone's weights theta."""

    def __init__(self, *, strength: float = 0.1):
        self.strength = strength
        self.anchor = None  # the model after the last experience

    def before_backward(self, loop):
        if self.anchor is not None:
            pairs = zip(loop.model.backbone.parameters(), self.anchor.backbone.parameters())
            distance = sum((new - old).square().sum() for new, old in pairs)
            loop.add_loss("l2_anchor", self.strength * distance)

    def after_training_exp(self, loop):
        self.anchor = loop.snapshot()
