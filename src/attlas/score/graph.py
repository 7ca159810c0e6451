"""Scores that read tensors of a graph's edges: biases, additive scores, products with edge features.

Their edge tensors stand in the graph's own order of edges. `pair` gets those of the pairs it scores with the
heads in front, (H or 1, edges, ...), so that they broadcast against queries (B, H, edges, D).
Legend: E edges, H query heads, D width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attlas.score.base import Edge, PairResult, Score

__all__ = ["Additive", "EdgeProduct", "GraphBias", "TypedBias"]


def _real(what: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{what} must be a floating-point tensor, got {kind}")


def _per_edge(what: str, tensor: Tensor) -> None:
    _real(what, tensor)
    if tensor.dim() not in (1, 2):
        raise ValueError(f"{what} must be (edges,) or (edges, heads), got {tuple(tensor.shape)}")


@dataclass(frozen=True, eq=False)
class GraphBias(Score):
    """logit = values_ij, a number per edge (and head) of a graph, added to a score: `Dot() + GraphBias(v)`.

    values: (E,) or (E, H) in the graph's order of edges; -inf removes the edge from the weights, but a sender
    whose value is NaN or infinite still makes its receivers NaN, since 0 times it is; drop such edges with
    `attlas.graph.keep_edges`. Gradient: exact. TypeError, ValueError: another dtype or shape.
    """

    values: Tensor

    def __post_init__(self) -> None:
        _per_edge("GraphBias: values", self.values)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"graph_bias{tuple(self.values.shape)}"

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(tensors[0], value)


@dataclass(frozen=True, eq=False)
class TypedBias(Score):
    """logit = table[type_ij], a learned number per kind of edge (and head), added to another score.

    type: (E,) int64 in the graph's order of edges; table: (types,) or (types, H). The gradient of the table
    is a sum over its edges. TypeError, ValueError: other dtypes, shapes, a type without a row.
    """

    type: Tensor
    table: Tensor

    def __post_init__(self) -> None:
        _real("TypedBias: table", self.table)
        if self.table.dim() not in (1, 2):
            raise ValueError(
                f"TypedBias: table must be (types,) or (types, heads), got {tuple(self.table.shape)}"
            )
        if not isinstance(self.type, Tensor) or self.type.dtype != torch.int64 or self.type.dim() != 1:
            got = self.type.dtype if isinstance(self.type, Tensor) else type(self.type).__name__
            raise TypeError(f"TypedBias: type must be int64 (edges,), got {got}")
        kinds = self.table.shape[0]
        if self.type.numel() and not (int(self.type.min()) >= 0 and int(self.type.max()) < kinds):
            raise ValueError(
                f"TypedBias: type must lie in 0..{kinds - 1}, the rows of the table, got "
                f"{int(self.type.min())}..{int(self.type.max())}"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"typed_bias(types={self.table.shape[0]})"

    @property
    def values(self) -> Tensor:
        """(E, H or 1): the bias of every edge."""
        # Not kept: two backward passes would go through one gather.
        rows = self.table if self.table.dim() == 2 else self.table[:, None]
        return F.embedding(self.type, rows)

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(tensors[0], value)


@dataclass(frozen=True, eq=False)
class Additive(Score):
    """logit = leaky_relu(q_i + k_j [+ e_ij]) of node scores: query and key are (1, H, nodes, 1).

    slope: of the negative side. edge: (E,) or (E, H) in the graph's order of edges, or None.
    Source: GAT, Veličković et al. 2018, arXiv 1710.10903, whose a = [a_1 | a_2] gives q_i = a_1 . h_i and
    k_j = a_2 . h_j: O(nodes) products, and only values are gathered. ValueError: wider queries.
    """

    slope: float = 0.2
    edge: Tensor | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.slope):
            raise ValueError(f"Additive: slope must be a finite number, got {self.slope}")
        if self.edge is not None:
            _per_edge("Additive: edge", self.edge)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"additive(slope={self.slope:g}{'' if self.edge is None else ', edge'})"

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return () if self.edge is None else (self.edge,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        if query.shape[-1] != 1 or key.shape[-1] != 1:
            raise ValueError(
                "Additive: queries and keys must be node scores of width 1, (1, heads, nodes, 1), got widths "
                f"{query.shape[-1]} and {key.shape[-1]}"
            )
        both = (query + key).squeeze(-1)
        return PairResult(F.leaky_relu(both + tensors[0] if tensors else both, self.slope), value)


@dataclass(frozen=True, eq=False)
class EdgeProduct(Score):
    """l_c = q_c k_c e_c / sqrt(D), logit = sum_c l_c; the vector l is the new edge state.

    edge: (E, H, D) in the graph's order of edges. `.clamp(-5, 5)` limits the logit and leaves l as it is.
    The softmax has one weight a head; for one a channel make each channel a head of width 1, (1, H D, n, 1)
    and (E, H D, 1): the compiled loops then pad values to 8 numbers a head, 8 times their memory.
    Source: graph transformer with edge features, Dwivedi and Bresson 2021, arXiv 2012.09699. Cost: 3 D FLOPs
    a pair; one (E, H, D) in, one out. TypeError, ValueError: another dtype, shape or width.
    """

    edge: Tensor

    def __post_init__(self) -> None:
        _real("EdgeProduct: edge", self.edge)
        if self.edge.dim() != 3:
            raise ValueError(f"EdgeProduct: edge must be (edges, heads, width), got {tuple(self.edge.shape)}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return "edge_product"

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.edge,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        width = query.shape[-1]
        if tensors[0].shape[-1] not in (1, width):
            raise ValueError(
                f"EdgeProduct: edge must be (edges, heads, {width}), as wide as queries and keys, or of "
                f"width 1, got width {tensors[0].shape[-1]}"
            )
        parts = query * key * tensors[0] / math.sqrt(width)
        return PairResult(parts.sum(-1), value, parts)
