"""The normalisers of the table: add a system's by one row, and every backend is tested on it."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from attlas.attend import (
    L1,
    Identity,
    Normaliser,
    OverCount,
    Ratio,
    SenderSoftmax,
    ShiftPower,
    Sigmoid,
    Softmax,
    SoftThreshold,
    Threshold,
    TimesLogCount,
)

__all__ = ["HEADS", "NORMALISERS"]

HEADS = 4


class Leaves(Protocol):
    """Makes leaf tensors."""

    def leaf(self, *shape: int) -> Tensor: ...


NORMALISERS: dict[str, Callable[[Leaves], Normaliser]] = {
    "softmax": lambda given: Softmax(),
    "softmax, sink": lambda given: Softmax(0.4),
    "softmax, learned sink": lambda given: Softmax(given.leaf(HEADS)),
    "sender softmax": lambda given: SenderSoftmax(),
    "sigmoid": lambda given: Sigmoid(-1.0),
    "sigmoid by count": lambda given: Sigmoid(),
    "identity": lambda given: Identity(),
    "softplus": lambda given: L1("softplus"),
    "taylor": lambda given: L1("taylor"),
    "ratio": lambda given: Ratio("relu", 0.1),
    # The threshold lies far below any weight that a rounding error could carry over it in these few rows.
    "thresholded": lambda given: Softmax() >> Threshold(1e-4) >> L1(),
    "softplus above": lambda given: Softmax() >> SoftThreshold(given.leaf(HEADS), "softplus", sharpness=10.0),
    "over count": lambda given: Sigmoid(0.0) >> OverCount(0.5),
    "log count softplus": lambda given: TimesLogCount() >> L1("softplus"),
    "shift power": lambda given: TimesLogCount() >> L1("softplus") >> ShiftPower(3.0) >> L1(),
    "reweighted softmax": lambda given: Softmax() >> ShiftPower(2.0) >> L1(),
}
