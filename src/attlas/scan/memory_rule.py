"""What a memory that learns at test time is: a network, the error that it descends, and their closed forms.

Legend: B batch, H heads, N tokens, D key width, V value width, L0 = D, L1, ..., LL = V widths of layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["SILU", "Activation", "MemoryRule", "additive", "squared"]

Rank1 = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise function between the layers of a memory, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _silu_slope(x: Tensor) -> Tensor:
    half = x.sigmoid()
    return half * (1 + x * (1 - half))


SILU = Activation(functional.silu, _silu_slope)


def squared(read: Tensor, value: Tensor) -> Tensor:
    """Gradient with respect to the read of ||read - value||², summed over the width: 2 (read - value)."""
    return 2 * (read - value)


def additive(read: Tensor, value: Tensor) -> Tensor:
    """Gradient with respect to the read of -read . value: -value. A linear memory then only adds k^T v."""
    return -value.expand_as(read)


@dataclass(frozen=True, eq=False)
class MemoryRule:
    """A memory M(x) = act(... act(x W1) W2 ...) WL, row vectors from the left, one for each row and head.

    weights: M_0 of the heads, (H, L0, L1), (H, L1, L2), ...; one tensor is a linear memory. A module owns
        them; gradients reach them.
    activation: between the layers.
    error: the gradient of the inner loss with respect to a read, `error(M(k), v)`; `squared` or `additive`.

    Every layer's gradient for a token is of rank one, a^T d, with a the layer's input and d the error there:
    `errors` gives both in closed form, so that training a network around a memory needs first derivatives
    only, and memories learn under no_grad and inference_mode as well. ValueError: widths that do not chain.
    """

    weights: tuple[Tensor, ...]
    activation: Activation = SILU
    error: Callable[[Tensor, Tensor], Tensor] = squared

    def __post_init__(self) -> None:
        if not self.weights or any(weight.dim() != 3 for weight in self.weights):
            raise ValueError(
                "memory rule weights must be one or more tensors (heads, width in, width out), got shapes "
                f"{[tuple(weight.shape) for weight in self.weights]}"
            )
        for first, second in pairwise(self.weights):
            if first.shape[0] != second.shape[0] or first.shape[2] != second.shape[1]:
                raise ValueError(
                    "memory rule weights must have the same heads, and each the width that the one before it "
                    f"gives, got {tuple(first.shape)} before {tuple(second.shape)}"
                )

    @property
    def depth(self) -> int:
        """Layers of the memory."""
        return len(self.weights)

    @property
    def exact(self) -> bool:
        """Whether the sequential rule has a closed form over many tokens: linear memory, squared error."""
        return self.depth == 1 and self.error is squared

    def read(self, weights: tuple[Tensor, ...], query: Tensor) -> Tensor:
        """M(query) with the same weights for all queries: (B, H, N, D) -> (B, H, N, V)."""
        for weight in weights[:-1]:
            query = self.activation.value(query @ weight)
        return query @ weights[-1]

    def errors(
        self,
        weights: tuple[Tensor, ...],
        key: Float[Tensor, "B H N D"],
        value: Float[Tensor, "B H N V"],
    ) -> list[Rank1]:
        """(a, d) of each layer at `weights`: the gradient of token j is a_j^T d_j."""
        inputs, before = [key], []
        for weight in weights[:-1]:
            before.append(inputs[-1] @ weight)
            inputs.append(self.activation.value(before[-1]))
        error = self.error(inputs[-1] @ weights[-1], value)
        found = [(inputs[-1], error)]
        for layer in reversed(range(len(weights) - 1)):
            error = (error @ weights[layer + 1].mT) * self.activation.slope(before[layer])
            found.append((inputs[layer], error))
        return found[::-1]

    def initial(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """M_0 for every row of a batch: views, not copies, where the type is right."""
        return tuple(weight.to(dtype).expand(batch, -1, -1, -1) for weight in self.weights)
