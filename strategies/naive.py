"""naive: train on each experience as it comes, nothing more.

Claim     the lower bound: new classes are learned, old ones forgotten
Loss      the objective's
State     none
Needs     nothing
Defaults  no parameters
"""

from cl.registry import register
from cl.strategy import Strategy


@register
class Naive(Strategy):
    """Plain sequential training (fine-tuning)."""
