"""The metric learner of power law graph attention: from q^T q to the matrix G between query and key.

Source: Gokden 2025, arXiv 2502.13502 (base model 2410.16703, first form 2107.02039);
burcgokden/PLDR-LLM-with-KVG-cache. Legend: B batch, H heads, N tokens, h head width.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from attlas.scan.state import wide

__all__ = [
    "GLU",
    "Deduced",
    "FixedCurvature",
    "MetricLearner",
    "dag_penalty",
    "density",
    "power_law",
    "relative_spread",
]

EPSILON, NORM_EPSILON = 1e-9, 1e-6


class Deduced(NamedTuple):
    """The deductive outputs, each (..., H, h, h): A_LM >= 1e-9, A_P = A_LM^P, and G_LM = a A_P + b_a."""

    metric: Tensor
    potential: Tensor
    curvature: Tensor


def density(
    query: Float[Tensor, "B H N h"], valid: Bool[Tensor, "B N"] | None = None
) -> Float[Tensor, "B H h h"]:
    """sum_i q_i q_i^T over the valid tokens, in float32 at least. Cost: 2 N h^2 FLOPs a head."""
    q = query.to(wide(query.dtype))
    if valid is not None:
        q = q.masked_fill(~valid[:, None, :, None], 0.0)
    with torch.autocast(q.device.type, enabled=False):
        return q.mT @ q


def power_law(
    metric: Float[Tensor, "*B H h h"],
    *,
    weight: Float[Tensor, "H h h"],
    bias: Float[Tensor, "H h h"],
    power: Float[Tensor, "H h h"],
    coupling: Float[Tensor, "H h h"],
    coupling_bias: Float[Tensor, "H h h"],
) -> Deduced:
    """A_LM = f(W A + b) + 1e-9, A_P = A_LM^P elementwise, G_LM = a A_P + b_a; f(z) = z SiLU(z) >= 0.

    Products are matrix products from the left, per head. In float32 at least: a tiny A_LM to a negative power
    is large ((1e-9)^-0.5 = 3e4). Under autocast too.
    """
    to = wide(metric.dtype)
    with torch.autocast(metric.device.type, enabled=False):
        weight, bias, power, coupling, coupling_bias = (
            one.to(to) for one in (weight, bias, power, coupling, coupling_bias)
        )
        inner = weight @ metric.to(to) + bias
        positive = inner * functional.silu(inner) + EPSILON
        potential = positive**power
        return Deduced(positive, potential, coupling @ potential + coupling_bias)


def dag_penalty(matrix: Float[Tensor, "*B h h"]) -> Float[Tensor, ""]:
    """mean |log(trace(expm(M * M)) / h)|, 0 for the adjacency matrix of a graph without cycles.

    The largest eigenvalue is taken out of the exponential first, so that no M overflows. Source: Zheng et al.
    2018, NOTEARS, arXiv 1803.01422, in the released form.
    """
    squared = matrix.to(wide(matrix.dtype)).square()
    eye = torch.eye(matrix.shape[-1], dtype=squared.dtype, device=squared.device)
    largest = torch.linalg.eigvals(squared.detach()).real.amax(-1)
    trace = torch.linalg.matrix_exp(squared - largest[..., None, None] * eye).diagonal(0, -2, -1).sum(-1)
    return (largest + (trace / matrix.shape[-1]).log()).abs().mean()


def relative_spread(matrices: Float[Tensor, "S *rest"]) -> float:
    """RMS distance of S matrices (of S inputs) from their mean, over the mean's root mean square."""
    mean = matrices.mean(0)
    return float((matrices - mean).square().mean().sqrt() / mean.square().mean().sqrt())


class GLU(nn.Module):
    """W3 (SiLU(W1 x) * (W2 x)) with biases; Xavier-uniform weights, zero biases.

    Shapes: (..., width) -> (..., width); inner: of the product.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        for layer in (self.gate, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Every row by itself, in the type of x."""
        return _linear(self.down, functional.silu(_linear(self.gate, x)) * _linear(self.up, x))


class MetricLearner(nn.Module):
    """A = units(LayerNorm(density)), each A <- LayerNorm(A + GLU_D(.. GLU_1(A))); then `power_law`.

    Norms and units act on the last axis of (h, h) and are the same for all heads; W, b, P, a, b_a are one
    matrix per head. W, P, a start Xavier-normal with the fans that torch takes of (H, h, h), as released:
    standard deviation sqrt(2 / (h (h + H))); b, b_a at zero.

    Args: head (h), heads; units (R) and depth (D) of the net; inner: of its GLUs, 8 h / 3 rounded down unless
    given. Cost: about 6 R D h^2 inner FLOPs a head, for any number of tokens. Float32 at least throughout.
    """

    def __init__(
        self, head: int, heads: int, *, units: int = 8, depth: int = 2, inner: int | None = None
    ) -> None:
        super().__init__()
        if min(head, heads, depth) < 1 or units < 0 or (inner is not None and inner < 1):
            raise ValueError(
                "MetricLearner: head, heads, depth and inner must be at least 1 and units at least 0, got "
                f"{head}, {heads}, {depth}, {inner} and {units}"
            )
        width = 8 * head // 3 if inner is None else inner
        self.norms = nn.ModuleList(nn.LayerNorm(head, eps=NORM_EPSILON) for _ in range(units + 1))
        self.units = nn.ModuleList(
            nn.Sequential(*(GLU(head, width) for _ in range(depth))) for _ in range(units)
        )
        matrices = {name: torch.empty(heads, head, head) for name in ("weight", "power", "coupling")}
        for matrix in matrices.values():
            nn.init.xavier_normal_(matrix)
        zeros = {name: torch.zeros(heads, head, head) for name in ("bias", "coupling_bias")}
        self.matrices = nn.ParameterDict(matrices | zeros)

    @property
    def sizes(self) -> tuple[int, int]:
        """Heads, and the width of one."""
        heads, head, _ = self.matrices["weight"].shape
        return heads, head

    def learn(self, density: Float[Tensor, "*B H h h"]) -> Float[Tensor, "*B H h h"]:
        """A, the metric tensor, of q^T q."""
        with torch.autocast(density.device.type, enabled=False):
            first, *others = self.norms
            found = _norm(first, density)
            for unit, norm in zip(self.units, others, strict=True):
                found = _norm(norm, found + unit(found))
        return found

    def deduce(self, metric: Float[Tensor, "*B H h h"]) -> Deduced:
        """A_LM, A_P and G_LM of A: what the G-cache saves."""
        return power_law(metric, **self.matrices)


class FixedCurvature(nn.Module):
    """In place of a `MetricLearner`: G is this matrix (H, h, h), whatever the tokens; the ablation models'.

    The identity is dot-product attention. It is stored with the model and not trained.
    """

    matrix: Tensor

    def __init__(self, matrix: Float[Tensor, "H h h"]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.detach().clone())

    @property
    def sizes(self) -> tuple[int, int]:
        """Heads, and the width of one."""
        heads, head, _ = self.matrix.shape
        return heads, head

    def learn(self, density: Float[Tensor, "*B H h h"]) -> Float[Tensor, "*B H h h"]:
        """The matrix, once for every row of the batch."""
        return self.matrix.to(density.dtype).expand_as(density)

    def deduce(self, metric: Float[Tensor, "*B H h h"]) -> Deduced:
        """The matrix in every place."""
        return Deduced(metric, metric, metric)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """In the type of x, whatever the parameters'."""
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _norm(layer: Any, x: Tensor) -> Tensor:
    return functional.layer_norm(
        x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps
    )
