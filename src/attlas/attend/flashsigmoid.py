"""FlashSigmoid: sigmoid attention with the constant bias of the trained length, and its baselines.

Source: Ramapuram et al. 2024, arXiv 2409.04431; code apple/ml-sigmoid-attention.
"""

import math

from attlas.attend.counts import OverCount
from attlas.attend.normaliser import Normaliser, Sigmoid

__all__ = ["flash_sigmoid", "over_count_sigmoid"]


def flash_sigmoid(trained_length: int) -> Sigmoid:
    """w_ij = sigmoid(l_ij - log n), n the length of training: one constant, whatever the length now.

    sigmoid(l - log n) = (e^l / n) / (1 + e^l / n), so that the sum of a row of n keys is about 1 at the start
    of training. `Sigmoid()` takes the number of each row's edges instead, and is another function: its bias
    moves with the row and with a cache. Parts add up; a weight needs nothing but its own edge. ValueError: a
    length that is no whole number of at least 1.
    """
    if not (isinstance(trained_length, int) and not isinstance(trained_length, bool) and trained_length >= 1):
        raise ValueError(
            f"flash_sigmoid: trained_length must be the number of tokens of training, a whole number of at "
            f"least 1, got {trained_length!r}"
        )
    return Sigmoid(-math.log(trained_length))


def over_count_sigmoid(power: float = 1.0) -> Normaliser:
    """w_ij = sigmoid(l_ij) / n_i^power, n_i the number of the row's edges: baselines of the released code.

    Powers 1 and 1/2 there. Parts do not merge: each would count its own edges.
    """
    return Sigmoid(0.0) >> OverCount(power)
