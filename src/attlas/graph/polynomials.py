"""Equivariant polynomials of a graph: homomorphism counts of motifs, rooted at nodes and pairs, and copies.

    P_H(X) = sum over j in [n]^m of the product of X[j_r, j_s] over the edges (r, s) of H

with j fixed at the red vertices. Source: Puny et al. 2023, arXiv 2302.11556.
Legend: n nodes, E edges, G graphs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.make import to_scipy
from attlas.graph.matrices import checked
from attlas.graph.motif import Motif
from attlas.graph.tensor_network import Network, evaluate

__all__ = ["count_all", "homomorphisms", "motif_features"]


@dataclass
class _Input:
    """X, sparse for a graph and dense for a matrix; products that motifs share are kept in `memo`."""

    matrix: Any
    exact: bool
    graph: Graph | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def symmetric(self) -> bool:
        gap = abs(self.matrix - self.matrix.T)
        return not gap.size or not gap.max() > 0

    @cached_property
    def diagonal(self) -> np.ndarray:
        return np.asarray(self.matrix.diagonal(), dtype=np.float64)

    @property
    def nodes(self) -> int:
        return int(self.matrix.shape[0])


def _input(x: Graph | Tensor, weights: Tensor | None) -> _Input:
    if isinstance(x, Graph):
        _ = x.nodes
        if weights is not None and weights.shape != x.sender.shape:
            raise ValueError(
                f"weights must be one number for each of {x.edges} edges, got {tuple(weights.shape)}"
            )
        exact = weights is None or not weights.is_floating_point()
        if weights is not None and exact:
            weights = _integers(weights)
        return _Input(to_scipy(x, weights).astype(np.float64), exact, x)
    if x.dim() != 2 or x.shape[0] != x.shape[1] or weights is not None:
        more = "" if weights is None else " (weights= is for graphs)"
        raise ValueError(f"x must be a Graph or a square matrix (n, n), got {tuple(x.shape)}{more}")
    exact = not x.is_floating_point()
    x = _integers(x) if exact else x
    return _Input(x.detach().cpu().to(torch.float64).numpy(), exact)


def _integers(given: Tensor) -> Tensor:
    """As int64, checked before float64 rounds them."""
    given = given.to(torch.int64)
    if given.numel():
        checked(np.array([int(given.max()), int(given.min())], dtype=object))
    return given


def homomorphisms(motif: Motif, x: Graph | Tensor, *, weights: Tensor | None = None) -> Tensor:
    """P_H of a graph or a matrix: (rooted) homomorphism counts where X is an adjacency.

    x: a Graph, a batch too, X[i, j] being the edges j -> i (their weights, if given), loops on the diagonal;
        or a matrix (n, n), its diagonal holding the values of the nodes.
    weights: (E,), of the edges of a Graph.

    Returns int64 for integers, all exact: counts of |X|, and products on the way, must stay below 2^53;
    float64 for real numbers. Without a red vertex: (G,), () for a matrix. One: (n,). Two, red[0] at i and
    red[1] at j: (n, n) for a matrix, (E,) at the edges j -> i of a Graph. Counts of degenerate walks are
    among them: those of the 4-cycle are the trace of A^4 (`injective`).

    Cost: a tree O(E); treewidth 2 O(n^3) for a matrix, O(sum of deg^2) per product for a Graph; beyond, one
    vertex at each node in turn: K4 in O(E deg^2) by the edges among common neighbours. Nothing above n x n.
    Twice that for integers with negative ones among them, whose bound is counted too.
    ValueError: undirected motifs of an X that is not symmetric; counts of 2^53 or more; shapes.
    """
    return count_all((motif,), x, weights=weights)[0]


def count_all(
    motifs: Sequence[Motif], x: Graph | Tensor, *, weights: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`homomorphisms` of several motifs; what they share (A^2, A * A^2, ...) is computed once."""
    shared = _input(x, weights)
    if shared.exact and shared.matrix.size and shared.matrix.min() < 0:
        # Sums of both signs may cancel after they were rounded; those of the absolute values bound them.
        bound = _Input(abs(shared.matrix), True, shared.graph)
        for motif in motifs:
            _counted(motif, bound)
    return tuple(_counted(motif, shared) for motif in motifs)


def motif_features(
    graph: Graph, motifs: Sequence[Motif], *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n F"]:
    """log(1 + P_H) of every motif at every node: features of what message passing alone does not see.

    motifs: of one red vertex each. Products that they share are computed once. Source and cost as
    `homomorphisms`.
    """
    for motif in motifs:
        if len(motif.red) != 1:
            raise ValueError(f"motif_features: a motif needs one red vertex, the node, got {motif}")
    columns = [one.to(torch.float64).log1p() for one in count_all(motifs, graph)]
    return torch.stack(columns, 1).to(dtype) if columns else torch.zeros(graph.nodes, 0, dtype=dtype)


def _counted(motif: Motif, x: _Input) -> Tensor:
    if not motif.directed and not x.symmetric:
        raise ValueError(
            f"the motif {motif} has no directions, but X is not symmetric: give Motif(..., directed=True), "
            "or attlas.graph.undirected(graph)"
        )
    # The polynomial is the product of those of the components.
    number, values = np.ones(1 if x.graph is None else x.graph.graphs), []
    for group in motif.components:
        part, red = motif.part(group), tuple(v for v in motif.red if v in group)
        if not red:
            number = number * _everywhere(part, x)
        elif len(red) == 1:
            values.append(_placed(_vector(part, x), motif.red.index(red[0]), len(motif.red), x))
        else:
            values.append(_pairs(part, x))
    if not motif.red:
        found = number if x.graph is not None else number[0]
    else:
        of = None if x.graph is None else x.graph.graph_of.numpy()
        spread = number[0] if of is None else number[of]
        found = math.prod(values, start=_placed(spread + np.zeros(x.nodes), 0, len(motif.red), x))
    result = torch.from_numpy(np.asarray(found, dtype=np.float64))
    if not x.exact:
        return result
    checked(result.numpy())
    return result.round().to(torch.int64)


def _placed(vector: np.ndarray, axis: int, axes: int, x: _Input) -> np.ndarray:
    """A vector of the nodes as one axis of the result."""
    if axes == 1:
        return vector
    if x.graph is None:
        return vector[:, None] if axis == 0 else vector[None, :]
    return vector[(x.graph.receiver if axis == 0 else x.graph.sender).numpy()]


def _network(motif: Motif, x: _Input) -> Network:
    everything = np.arange(x.nodes)
    memo = x.memo if x.symmetric else None
    network = Network({v: everything for v in range(motif.vertices)}, exact=x.exact, memo=memo)
    for a, b in motif.edges:
        if a == b:
            network.weigh(a, x.diagonal, "diagonal")
        else:
            network.join(a, b, x.matrix, "X" if x.symmetric else None)
    return network


def _everywhere(part: Motif, x: _Input) -> np.ndarray:
    """(G,) the count of a component in each graph, by any of its vertices."""
    if x.graph is None:
        total = np.zeros(1)

        def put(nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
            total[0] += tensor

        evaluate(_network(part, x), part.red, put)
        return total
    at_nodes = _vector(part.rooted(0), x)
    return np.bincount(x.graph.graph_of.numpy(), weights=at_nodes, minlength=x.graph.graphs)


def _vector(part: Motif, x: _Input) -> np.ndarray:
    found = np.zeros(x.nodes)

    def put(nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
        found[nodes[0]] += tensor

    evaluate(_network(part, x), part.red, put)
    return found


def _pairs(part: Motif, x: _Input) -> np.ndarray:
    """(n, n), or (E,) of a graph's edges."""
    if x.graph is None:
        dense = np.zeros((x.nodes, x.nodes))

        def put(nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
            dense[np.ix_(*nodes)] += tensor

        evaluate(_network(part, x), part.red, put)
        return dense
    ends = x.graph.receiver.numpy(), x.graph.sender.numpy()
    found = np.zeros(x.graph.edges)
    places = _Places(ends)

    def put_edges(nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
        places.add(found, nodes, tensor)

    evaluate(_network(part, x), part.red, put_edges)
    return found


@dataclass
class _Places:
    """The edges of a graph by their ends, to pick their entries out of a matrix over some of the nodes."""

    ends: tuple[np.ndarray, np.ndarray]

    @cached_property
    def by_row(self) -> np.ndarray:
        return np.argsort(self.ends[0], kind="stable")

    @cached_property
    def by_column(self) -> np.ndarray:
        return np.argsort(self.ends[1], kind="stable")

    def add(self, found: np.ndarray, nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
        """found[edge] += tensor[row of its receiver, column of its sender], where both are there."""
        edges = self._near(nodes)
        places = [np.searchsorted(own, end[edges]) for own, end in zip(nodes, self.ends, strict=True)]
        there = np.ones(len(edges), dtype=bool)
        for own, place, end in zip(nodes, places, self.ends, strict=True):
            there &= (place < len(own)) & (own[np.minimum(place, len(own) - 1)] == end[edges])
        rows, columns = (place[there] for place in places)
        picked = tensor[rows, columns]
        found[edges[there]] += picked if isinstance(picked, np.ndarray) else _flat(picked)

    def _near(self, nodes: tuple[np.ndarray, ...]) -> np.ndarray:
        """Edges that may be meant: those of one node where one axis has one node, else all."""
        for own, end, order in ((nodes[0], self.ends[0], "by_row"), (nodes[1], self.ends[1], "by_column")):
            if len(own) == 1:
                sorting = getattr(self, order)
                first, last = np.searchsorted(end, [own[0], own[0] + 1], sorter=sorting)
                return sorting[first:last]
        return np.arange(len(self.ends[0]))


def _flat(picked: Any) -> np.ndarray:
    return np.asarray(picked.todense() if hasattr(picked, "todense") else picked).reshape(-1)
