"""Kernels of linear attention: kappa(q, k) = phi(q) . phi(k) with finitely many features.

Legend: n tokens, D width, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from attlas.scan.state import wide

__all__ = ["LRPE", "Feature", "Identity", "Kernel", "Taylor", "elu1", "relu", "sigmoid"]


@runtime_checkable
class Kernel(Protocol):
    """kappa(q_i, k_j) = features(q, i) . features(k, j).

    positive: all features are >= 0, or kappa itself is > 0, so that a sum of weights can be divided by.
    inside: features are made chunk by chunk inside the sweep; False: for the whole sequence before it, which
    gives tensors that the kernel itself holds their gradients.
    """

    @property
    def positive(self) -> bool: ...

    @property
    def inside(self) -> bool: ...

    def features(self, x: Tensor, positions: Tensor) -> Tensor:
        """phi of (B, H, n, D) at positions (B, n), or any shape that broadcasts: (B, H, n, F)."""
        ...

    def pair(self, query: Tensor, key: Tensor) -> Tensor | None:
        """kappa of all pairs (..., n, D) x (..., m, D) -> (..., n, m) where that is cheaper; None: by phi."""
        ...

    def width(self, width: int) -> int:
        """F for inputs of `width`."""
        ...


@dataclass(frozen=True)
class Identity:
    """kappa = q . k."""

    positive = False
    inside = True

    def features(self, x: Tensor, positions: Tensor) -> Tensor:
        """x itself."""
        return x

    def pair(self, query: Tensor, key: Tensor) -> Tensor | None:
        """None: the features are the shortest form."""
        return None

    def width(self, width: int) -> int:
        """As many as given."""
        return width


@dataclass(frozen=True)
class Feature:
    """kappa = fn(q) . fn(k) for an elementwise `fn`; `positive` where fn >= 0.

    inside=False where fn holds tensors that learn.
    """

    fn: Callable[[Tensor], Tensor]
    positive: bool
    inside: bool = True

    def features(self, x: Tensor, positions: Tensor) -> Tensor:
        """fn of every number."""
        return self.fn(x)

    def pair(self, query: Tensor, key: Tensor) -> Tensor | None:
        """None: the features are the shortest form."""
        return None

    def width(self, width: int) -> int:
        """As many as given."""
        return width


def _elu1(x: Tensor) -> Tensor:
    return functional.elu(x) + 1


def elu1() -> Feature:
    """phi = elu + 1 > 0 (arXiv 2006.16236)."""
    return Feature(_elu1, positive=True)


def relu() -> Feature:
    """phi = relu."""
    return Feature(torch.relu, positive=True)


def sigmoid() -> Feature:
    """phi = sigmoid (Flowformer, arXiv 2202.06258)."""
    return Feature(torch.sigmoid, positive=True)


@dataclass(frozen=True)
class Taylor:
    """kappa = 1 + z + z^2/2 >= 1/2 with z = q . k / sqrt(D): exp to second order (BASED, arXiv 2402.18668).

    phi(x) = [1, x / D^(1/4), x_a^2 / (sqrt 2 sqrt D), x_a x_b / sqrt D for a > b]: 1 + D + D(D + 1)/2
    features, the symmetric form of the published 1 + D + D^2 with the same products.
    """

    positive = True
    inside = True

    def features(self, x: Tensor, positions: Tensor) -> Tensor:
        """Constant, linear, then the packed lower triangle of the products."""
        width = x.shape[-1]
        scale = width**-0.25
        row, column = torch.tril_indices(width, width, device=x.device)
        scaled = x * scale
        products = scaled[..., row] * scaled[..., column]
        halved = torch.where(row == column, products * 0.5**0.5, products)
        return torch.cat([torch.ones_like(x[..., :1]), scaled, halved], -1)

    def pair(self, query: Tensor, key: Tensor) -> Tensor | None:
        """The polynomial of the products."""
        z = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return torch.addcmul(1 + z, z, z, value=0.5)

    def width(self, width: int) -> int:
        """1 + D + D(D + 1)/2."""
        return 1 + width + width * (width + 1) // 2


@dataclass(frozen=True, eq=False)
class LRPE:
    """kappa = sum_c q_c k_c cos((i - j) theta_c): x -> [x cos(i theta), x sin(i theta)].

    theta: (H, 1, D) or any shape that broadcasts to (B, H, n, D), learned. Source: TransNormerLLM
    (arXiv 2307.14995). Not a rotation of pairs: it doubles the width.
    """

    theta: Tensor
    positive = False
    inside = False

    def features(self, x: Tensor, positions: Tensor) -> Tensor:
        """Both parts side by side."""
        # Positions beyond 256 are not whole numbers in bfloat16.
        theta = self.theta.to(wide(self.theta.dtype))
        angle = positions[:, None, :, None].to(theta.dtype) * theta
        return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], -1)

    def pair(self, query: Tensor, key: Tensor) -> Tensor | None:
        """None: the features are the shortest form."""
        return None

    def width(self, width: int) -> int:
        """Twice as many."""
        return 2 * width
