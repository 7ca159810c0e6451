"""The sum of products that a motif stands for, as vectors of its vertices and matrices of its joined ones.

A vertex ranges over the nodes; summing over it leaves a tensor over its neighbours. Matrices are dense or
sparse; nothing larger than n x n is made: where three neighbours or more would be left, a vertex is fixed to
one node at a time instead, and its neighbours then range over that node's neighbours alone.
Legend: n nodes, m vertices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attlas.graph.contraction import elimination, treewidth
from attlas.graph.motif import Motif

__all__ = ["EXACT", "Network", "checked", "evaluate"]

EXACT = 2**53
"""Integers up to which float64 is exact."""
DENSE = 1 << 22
"""Numbers up to which a matrix of fixed vertices is dense."""

Matrix = Any  # an ndarray or a scipy.sparse.csr_array, float64


def _sparse(matrix: Matrix) -> bool:
    return not isinstance(matrix, np.ndarray)


def _entrywise(one: Matrix, other: Matrix) -> Matrix:
    if _sparse(one):
        return one.multiply(other).tocsr()
    return other.multiply(one).tocsr() if _sparse(other) else one * other


def _scaled(matrix: Matrix, vector: np.ndarray | None) -> Matrix:
    """Columns times the vector."""
    return matrix if vector is None else _entrywise(matrix, vector[None, :])


@dataclass
class Network:
    """Tensors of a motif that is partly summed up.

    vertices: motif vertex -> the nodes that it ranges over. vectors, matrices[u, v] with u < v: as they stand.
    total: what no vertex is left of. exact: the numbers are integers, and a larger one than EXACT is an error.
    memo: products made before, by what they are products of (None: not kept).
    """

    vertices: dict[int, np.ndarray]
    vectors: dict[int, tuple[np.ndarray, Any]] = field(default_factory=dict)
    matrices: dict[tuple[int, int], tuple[Matrix, Any]] = field(default_factory=dict)
    total: float = 1.0
    exact: bool = False
    memo: dict[Any, Any] | None = None

    def join(self, u: int, v: int, matrix: Matrix, key: Any = None) -> None:
        """One more factor matrix[j_u, j_v]."""
        if u > v:
            u, v, matrix, key = v, u, matrix.T, _turned(key)
        if (u, v) in self.matrices:
            other, name = self.matrices[u, v]
            key = None if key is None or name is None else ("times", *sorted((key, name), key=repr))
            matrix = self._kept(key, lambda: self._checked(_entrywise(other, matrix)))
        self.matrices[u, v] = matrix, key

    def weigh(self, v: int, vector: np.ndarray, key: Any = None) -> None:
        """One more factor vector[j_v]."""
        if v in self.vectors:
            other, name = self.vectors[v]
            key = None if key is None or name is None else ("times", *sorted((key, name), key=repr))
            vector = self._checked(other * vector)
        self.vectors[v] = vector, key

    def eliminate(self, v: int) -> None:
        """Sum over a vertex of at most two neighbours."""
        vector, key = self.vectors.pop(v, (None, "1"))
        around = [(u, self._towards(u, v)) for u in sorted(self.vertices) if u != v and self._joined(u, v)]
        for u, _ in around:
            del self.matrices[min(u, v), max(u, v)]
        if not around:
            self.total *= len(self.vertices[v]) if vector is None else float(vector.sum())
            self._checked(np.array([self.total]))
        elif len(around) == 1:
            u, (matrix, name) = around[0]
            weights = np.ones(len(self.vertices[v])) if vector is None else vector
            made = None if key is None or name is None else ("sum", name, key)
            self.weigh(u, self._kept(made, lambda: self._checked(np.asarray(matrix @ weights))), made)
        else:
            (u, (one, first)), (w, (other, second)) = around
            made = None if None in (key, first, second) else ("over", first, key, _turned(second))
            self.join(u, w, self._kept(made, lambda: self._checked(_scaled(one, vector) @ other.T)), made)
        del self.vertices[v]

    def fixed(self, v: int) -> Iterator[tuple[int, "Network"]]:
        """(node, the network with v at that node) for every node where something may be left."""
        around = [u for u in sorted(self.vertices) if u != v and self._joined(u, v)]
        rows = {u: self._towards(u, v)[0].T for u in around}  # (v, u)
        for place, node in enumerate(self.vertices[v].tolist()):
            kept = {u: np.arange(len(nodes)) for u, nodes in self.vertices.items() if u != v}
            weights = {}
            for u, matrix in rows.items():
                row = matrix[[place]].toarray()[0] if _sparse(matrix) else matrix[place]
                kept[u] = row.nonzero()[0]
                weights[u] = row[kept[u]]
            if any(not len(index) for index in kept.values()):
                continue
            part = Network({u: self.vertices[u][index] for u, index in kept.items()}, exact=self.exact)
            part.total = self.total * float(self.vectors[v][0][place] if v in self.vectors else 1.0)
            for u, (vector, _) in self.vectors.items():
                if u != v:
                    part.weigh(u, vector[kept[u]])
            for u, weight in weights.items():
                part.weigh(u, weight)
            for (u, w), (matrix, _) in self.matrices.items():
                if v not in (u, w):
                    part.join(u, w, _cut(matrix, kept[u], kept[w]))
            yield node, part

    def _joined(self, u: int, v: int) -> bool:
        return (min(u, v), max(u, v)) in self.matrices

    def _towards(self, u: int, v: int) -> tuple[Matrix, Any]:
        """The factor of u and v with rows for u."""
        if u < v:
            return self.matrices[u, v]
        matrix, key = self.matrices[v, u]
        return matrix.T, _turned(key)

    def _kept(self, key: Any, make: Any) -> Any:
        if self.memo is None or key is None:
            return make()
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def _checked(self, tensor: Any) -> Any:
        return checked(tensor) if self.exact else tensor


def checked(tensor: Any) -> Any:
    """The tensor of integers, which float64 holds exactly; else a ValueError."""
    most = float(abs(tensor).max()) if 0 not in tensor.shape else 0.0
    if most > EXACT:
        raise ValueError(
            f"counts reach {most:.3g}, above 2^53, where float64 is no longer exact: give real weights "
            "(float64) to count approximately, or a smaller motif or graph"
        )
    return tensor


def _turned(key: Any) -> Any:
    """The key of a transposed matrix; a symmetric input has the key "X" and stays it."""
    if key is None or key == "X":
        return key
    kind = key[0]
    if kind == "turned":
        return key[1]
    if kind == "over":
        return ("over", _turned(key[3]), key[2], _turned(key[1]))
    if kind == "times":
        return ("times", *sorted((_turned(part) for part in key[1:]), key=repr))
    return ("turned", key)


def _cut(matrix: Matrix, rows: np.ndarray, columns: np.ndarray) -> Matrix:
    if not _sparse(matrix):
        return matrix[np.ix_(rows, columns)]
    found = matrix[rows][:, columns]
    return found.toarray() if len(rows) * len(columns) <= DENSE else found


def evaluate(motif: Motif, network: Network, put: Any) -> None:
    """Sum over the free vertices; put(nodes of the red vertices, tensor) takes what they have in common.

    Called with (), a number; ((nodes,), vector); or ((rows, columns), matrix): once, or once for each node that
    a vertex was fixed to, to be added up.
    """
    if treewidth(motif) > 2:
        _at_each_node(motif, network, put)
        return
    for move in elimination(motif) or ():
        network.eliminate(move.vertices[0])
    left = [network.vertices[v] for v in motif.red]
    if not left:
        put((), network.total)
    elif len(left) == 1:
        vector = network.vectors.get(motif.red[0], (np.ones(len(left[0])), None))[0]
        put((left[0],), network.total * vector)
    else:
        put((left[0], left[1]), _matrix_of(network, *motif.red))


def _matrix_of(network: Network, a: int, b: int) -> Matrix:
    """total * M_ab * x_a * y_b; the sparsity of M is kept."""
    one, other = (
        network.vectors.get(v, (np.ones(len(network.vertices[v])), None))[0] * factor
        for v, factor in ((a, network.total), (b, 1.0))
    )
    if not network._joined(a, b):
        return network._checked(np.outer(one, other))
    matrix = network._towards(a, b)[0]
    return network._checked(_entrywise(_entrywise(matrix, one[:, None]), other[None, :]))


def _at_each_node(motif: Motif, network: Network, put: Any) -> None:
    """One vertex at each node in turn, that of most neighbours where the rest has treewidth 2."""
    names = {v: [u for u in range(motif.vertices) if u != v] for v in range(motif.vertices)}
    vertex = min(
        names,
        key=lambda v: (
            max(treewidth(motif.part(names[v])), 2),
            -len(motif.neighbours[v]),
            v not in motif.red,
        ),
    )
    rest = motif.part(names[vertex])
    for node, part in network.fixed(vertex):
        part = _renamed(part, names[vertex])

        def add(nodes: tuple[np.ndarray, ...], tensor: Any, node: int = node) -> None:
            if vertex not in motif.red:
                put(nodes, tensor)
                return
            at = motif.red.index(vertex)
            here = np.array([node])
            if len(motif.red) == 1:
                put((here,), np.array([tensor]))
            elif at == 0:
                put((here, nodes[0]), tensor[None, :])
            else:
                put((nodes[0], here), tensor[:, None])

        evaluate(rest, part, add)


def _renamed(network: Network, names: list[int]) -> Network:
    new = {old: place for place, old in enumerate(names)}
    network.vertices = {new[v]: nodes for v, nodes in network.vertices.items()}
    network.vectors = {new[v]: vector for v, vector in network.vectors.items()}
    network.matrices = {(new[u], new[v]): matrix for (u, v), matrix in network.matrices.items()}
    return network
