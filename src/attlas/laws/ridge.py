"""Ridge regression for a whole path of penalties by one eigendecomposition."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RidgeFit", "kernel_ridge_fit", "ridge_fit"]


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """What a validated ridge regression found; `penalty` is each target's, that of least validation error.

    `weights` are (P, T) of `ridge_fit` and (n, T) dual ones of `kernel_ridge_fit`; `errors` are the mean
    squared validation errors of every penalty.
    """

    weights: Float[Tensor, "rows T"]
    penalty: Float[Tensor, " T"]
    errors: Float[Tensor, "L T"]

    def predict(self, features: Float[Tensor, "m rows"]) -> Float[Tensor, "m T"]:
        """`features @ weights`; for a kernel fit, the kernel between the m new points and the n fitted."""
        return features.double() @ self.weights


def ridge_fit(
    features: Float[Tensor, "n P"],
    targets: Float[Tensor, "n T"],
    penalties: Sequence[float],
    validation: tuple[Float[Tensor, "m P"], Float[Tensor, "m T"]],
) -> RidgeFit:
    """Least squares with a penalty on the weights: (Psi^T Psi + penalty I)^-1 Psi^T y, in float64.

    For every target the penalty of least error on `validation` = (features, targets) is taken, the first
    among equals; nothing is centred. Works on the smaller of Psi^T Psi and Psi Psi^T.

    Raises ValueError: penalties that are not above 0, shapes that do not fit, no rows, values that
    are not finite.
    Cost: O(min(n, P)^3 + n P min(n, P)) for all penalties together.
    """
    held, wanted = validation
    _check(features, targets, penalties, held, wanted)
    psi, y, held, wanted = features.double(), targets.double(), held.double(), wanted.double()
    if len(psi) < psi.shape[1]:
        dual = kernel_ridge_fit(psi @ psi.mT, y, penalties, (held @ psi.mT, wanted))
        return RidgeFit(psi.mT @ dual.weights, dual.penalty, dual.errors)
    values, vectors = _spectrum(psi.mT @ psi)
    return _best(values, vectors, vectors.mT @ (psi.mT @ y), held @ vectors, wanted, penalties)


def kernel_ridge_fit(
    kernel: Float[Tensor, "n n"],
    targets: Float[Tensor, "n T"],
    penalties: Sequence[float],
    validation: tuple[Float[Tensor, "m n"], Float[Tensor, "m T"]],
) -> RidgeFit:
    """Dual weights (K + penalty I)^-1 y of a symmetric kernel of non-negative spectrum, in float64.

    `validation` = (kernel of the m held-out points with the n fitted ones, their targets). Errors, choice of
    the penalty: as in `ridge_fit`. Cost: O(n^3 + m n^2).
    """
    held, wanted = validation
    _check(kernel, targets, penalties, held, wanted)
    kernel, y, held, wanted = kernel.double(), targets.double(), held.double(), wanted.double()
    values, vectors = _spectrum(kernel)
    return _best(values, vectors, vectors.mT @ y, held @ vectors, wanted, penalties)


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that rounding made negative set to 0, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0), vectors


def _best(
    values: Tensor, vectors: Tensor, inside: Tensor, held: Tensor, wanted: Tensor, penalties: Sequence[float]
) -> RidgeFit:
    """Of the fits vectors (values + penalty)^-1 inside, per target the best on the held-out points."""
    path = torch.tensor(penalties, dtype=values.dtype, device=values.device)
    shrunk = inside / (values + path[:, None]).unsqueeze(-1)  # (L, rows, T)
    errors = (held @ shrunk - wanted).square().mean(1)
    best = errors.argmin(0)
    chosen = shrunk[best, :, torch.arange(len(best), device=best.device)].mT
    return RidgeFit(vectors @ chosen, path[best], errors)


def _check(
    features: Tensor, targets: Tensor, penalties: Sequence[float], held: Tensor, wanted: Tensor
) -> None:
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise ValueError(f"penalties must be one or more numbers above 0, got {list(penalties)}")
    if len(features) != len(targets) or len(held) != len(wanted) or held.shape[1] != features.shape[1]:
        raise ValueError(
            "rows of features and targets must agree, and columns of both sets of features; got "
            f"{tuple(features.shape)} with {tuple(targets.shape)}, validation {tuple(held.shape)} with "
            f"{tuple(wanted.shape)}"
        )
    if not len(features) or not len(held):
        raise ValueError(
            f"features and validation must have at least one row each, got {len(features)} and {len(held)}"
        )
    whole = {
        "features": features,
        "targets": targets,
        "validation features": held,
        "validation targets": wanted,
    }
    for name, values in whole.items():
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite; look for NaN or infinity in the data")
