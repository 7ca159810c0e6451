"""The sum of products that a motif stands for, as vectors of its vertices and matrices of its joined ones.

A vertex ranges over the nodes; summing over it leaves a tensor over its neighbours. Matrices are dense or
sparse; nothing larger than n x n is made: where three neighbours or more would be left, a vertex is fixed to
one node at a time instead, and its neighbours then range over that node's neighbours alone.
Legend: n nodes, m vertices.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from attlas.graph.contraction import elimination, treewidth
from attlas.graph.matrices import Matrix, among, checked, csr, cut, entrywise, is_sparse, scaled, scipy_coo
from attlas.graph.motif import Motif

__all__ = ["Network", "evaluate"]

Put: TypeAlias = Callable[[tuple[np.ndarray, ...], Any], None]


@dataclass
class Network:
    """Tensors of a motif that is partly summed up.

    vertices: motif vertex -> the nodes that it ranges over. vectors, matrices[u, v] with u < v: what is
    left. total: the factor that has no vertex. exact: numbers are integers, and one above EXACT is an error.
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
            matrix = self._kept(key, lambda: self._checked(entrywise(other, matrix)))
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
        around = [(u, self.towards(u, v)) for u in sorted(self.vertices) if u != v and self._joined(u, v)]
        for u, _ in around:
            del self.matrices[min(u, v), max(u, v)]
        if not around:
            self.total *= len(self.vertices[v]) if vector is None else float(vector.sum())
            self._checked(np.array([self.total]))
        elif len(around) == 1:
            u, (matrix, name) = around[0]
            weights = np.ones(len(self.vertices[v])) if vector is None else vector
            made: Any = None if key is None or name is None else ("sum", name, key)
            self.weigh(u, self._kept(made, lambda: self._checked(np.asarray(matrix @ weights))), made)
        else:
            (u, (one, first)), (w, (other, second)) = around
            made = None if None in (key, first, second) else ("over", first, key, _turned(second))
            self.join(u, w, self._kept(made, lambda: self._checked(scaled(one, vector) @ other.T)), made)
        del self.vertices[v]

    def fixed(self, v: int) -> Iterator[tuple[int, "Network"]]:
        """(node, the network with v at that node) for every node where something may be left."""
        around = [u for u in sorted(self.vertices) if u != v and self._joined(u, v)]
        rows = {u: self.towards(u, v)[0].T for u in around}  # (v, u)
        for place, node in enumerate(self.vertices[v].tolist()):
            kept = {u: np.arange(len(nodes)) for u, nodes in self.vertices.items() if u != v}
            weights = {}
            for u, matrix in rows.items():
                row = matrix[[place]].toarray()[0] if is_sparse(matrix) else matrix[place]
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
                    part.join(u, w, cut(matrix, kept[u], kept[w]))
            yield node, part

    @property
    def sparse(self) -> bool:
        """Whether all matrices are."""
        return all(is_sparse(matrix) for matrix, _ in self.matrices.values())

    def vector(self, v: int) -> np.ndarray:
        """The factor of a vertex, ones without one."""
        return self.vectors[v][0] if v in self.vectors else np.ones(len(self.vertices[v]))

    def motif(self, red: tuple[int, ...]) -> tuple[Motif, list[int]]:
        """What is left as a simple motif, and the names here of its vertices."""
        names = sorted(self.vertices)
        place = {v: at for at, v in enumerate(names)}
        edges = tuple((place[u], place[v]) for u, v in self.matrices)
        return Motif(len(names), edges, tuple(place[v] for v in red)), names

    def reduce(self, red: tuple[int, ...]) -> None:
        """Sum over vertices of at most two neighbours, which widens nothing, until there are none."""
        while True:
            narrow = [
                (len(around), v)
                for v in sorted(set(self.vertices) - set(red))
                if len(around := [u for u in self.vertices if u != v and self._joined(u, v)]) <= 2
            ]
            if not narrow:
                return
            self.eliminate(min(narrow)[1])

    def _joined(self, u: int, v: int) -> bool:
        return (min(u, v), max(u, v)) in self.matrices

    def towards(self, u: int, v: int) -> tuple[Matrix, Any]:
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


def evaluate(network: Network, red: tuple[int, ...], put: Put) -> None:
    """Sum over the vertices that are not red; put(nodes of the red ones, tensor) takes what is left.

    Called with (), a number; ((nodes,), vector); or ((rows, columns), matrix): once, or once for each node
    that a vertex was fixed to, to be added up.
    """
    motif, names = network.motif(red)
    if treewidth(motif) > 2:
        network.reduce(red)
        vertex, universal = _to_fix(*network.motif(red))
        if universal and network.sparse:
            at_all_nodes(network, vertex, red, put)
        else:
            _at_each_node(network, vertex, red, put)
        return
    for move in elimination(motif) or ():
        network.eliminate(names[move.vertices[0]])
    left = [network.vertices[v] for v in red]
    if not left:
        put((), network.total)
    elif len(left) == 1:
        put((left[0],), network.total * network.vector(red[0]))
    else:
        put((left[0], left[1]), _matrix_of(network, *red))


def _matrix_of(network: Network, a: int, b: int) -> Matrix:
    """total * M_ab * x_a * y_b; the sparsity of M is kept."""
    one, other = network.vector(a) * network.total, network.vector(b)
    if not network._joined(a, b):
        return network._checked(np.outer(one, other))
    matrix = network.towards(a, b)[0]
    return network._checked(entrywise(entrywise(matrix, one[:, None]), other[None, :]))


def _to_fix(motif: Motif, names: list[int]) -> tuple[int, bool]:
    """The vertex to fix, that of most neighbours where the rest is narrowest; whether it alone joins all."""
    others = {v: [u for u in range(motif.vertices) if u != v] for v in range(motif.vertices)}
    vertex = min(
        others,
        key=lambda v: (
            max(treewidth(motif.part(others[v])), 2),
            -len(motif.neighbours[v]),
            v not in motif.red,
        ),
    )
    universal = len(motif.neighbours[vertex]) == len(others[vertex])
    return names[vertex], universal and motif.part(others[vertex]).connected


def _at_each_node(network: Network, vertex: int, red: tuple[int, ...], put: Put) -> None:
    """The vertex at one node after the other."""
    rest = tuple(v for v in red if v != vertex)
    for node, part in network.fixed(vertex):

        def add(nodes: tuple[np.ndarray, ...], tensor: Any, node: int = node) -> None:
            here = np.array([node])
            if vertex not in red:
                put(nodes, tensor)
            elif len(red) == 1:
                put((here,), np.array([tensor]))
            elif red[0] == vertex:
                put((here, nodes[0]), tensor[None, :])
            else:
                put((nodes[0], here), tensor[:, None])

        evaluate(part, rest, add)


def at_all_nodes(network: Network, vertex: int, red: tuple[int, ...], put: Put) -> None:
    """The vertex at all nodes at once, where it is joined with every other one and they among themselves.

    Each other vertex u then ranges over the entries (i, j) of its matrix with the fixed one, i being where
    that is fixed, j where u is; two of them are joined where their i is the same: the edges among the
    neighbours of i. Cost: sum of deg^2 to find those, and the rest's on as many edges as there are triangles.
    """
    rest = tuple(v for v in red if v != vertex)
    others = [u for u in network.vertices if u != vertex]
    entries = {u: scipy_coo(network.towards(vertex, u)[0]) for u in others}
    part = Network({u: np.arange(len(entries[u][2])) for u in others}, exact=network.exact)
    part.total = network.total
    for u, (i, j, values) in entries.items():
        part.weigh(u, values)
        if u in network.vectors:
            part.weigh(u, network.vectors[u][0][j])
        if u == others[0] and vertex in network.vectors:
            part.weigh(u, network.vectors[vertex][0][i])
    for (u, w), (matrix, _) in network.matrices.items():
        if vertex not in (u, w):
            part.join(u, w, among(entries[u], entries[w], matrix, len(network.vertices[w])))
    if vertex not in red:
        evaluate(part, rest, _moved(network, rest, entries, put))
        return
    root = rest[0] if rest else others[0]
    i, j, _ = entries[root]
    here, there = network.vertices[vertex], network.vertices[root]

    def add(nodes: tuple[np.ndarray, ...], vector: Any) -> None:
        if not rest:
            put((here,), np.bincount(i[nodes[0]], weights=vector, minlength=len(here)))
        elif red[0] == vertex:
            put((here, there), csr(vector, i[nodes[0]], j[nodes[0]], (len(here), len(there))))
        else:
            put((there, here), csr(vector, j[nodes[0]], i[nodes[0]], (len(there), len(here))))

    evaluate(part, (root,), add)


def _moved(network: Network, red: tuple[int, ...], entries: Any, put: Put) -> Put:
    """`put` of tensors over entries, whose nodes are those of the red vertices."""
    spaces = [network.vertices[v] for v in red]

    def add(nodes: tuple[np.ndarray, ...], tensor: Any) -> None:
        at = [entries[v][1][index] for v, index in zip(red, nodes, strict=True)]
        if not red:
            put((), tensor)
        elif len(red) == 1:
            put((spaces[0],), np.bincount(at[0], weights=tensor, minlength=len(spaces[0])))
        else:
            rows, columns, values = scipy_coo(tensor)
            shape = len(spaces[0]), len(spaces[1])
            put((spaces[0], spaces[1]), csr(values, at[0][rows], at[1][columns], shape))

    return add
