"""Networks of equal size: the hidden width that brings a net to a number of parameters."""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["count_parameters", "equal_hidden"]


def count_parameters(model: nn.Module) -> int:
    """All parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def equal_hidden(
    make: Callable[[int], nn.Module],
    wanted: int,
    count: Callable[[nn.Module], int] = count_parameters,
) -> int:
    """The hidden width at which `count(make(hidden))` is nearest to `wanted`; it must grow linearly with it.

    Nets are made without memory for weights. ValueError: with a width of 1 there are too many already.
    """
    with torch.device("meta"):
        least, second = count(make(1)), count(make(2))
    hidden = 1 + round((wanted - least) / (second - least))
    if hidden < 1:
        raise ValueError(f"no hidden width makes {wanted:,} parameters: 1 makes {least:,}")
    return hidden
