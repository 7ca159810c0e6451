"""Where a node stands and what surrounds it: encodings of nodes and pairs, computed once per graph.

Every graph of a batch is encoded alone. Matrices of a small graph are dense; those of a large one sparse, and
what would need all pairs of a large graph is refused unless it is asked for. What was found is kept with its
graph, so a second call costs nothing; it must not be written to.

Positional encodings tell where a node is, structural ones what its surroundings look like (Rampasek et al.
2022, arXiv 2205.12454):

|          | positional                      | structural                                                   |
|----------|---------------------------------|--------------------------------------------------------------|
| local    | rows of relative_random_walks   | in_degree, random_walk_diagonals, heat_kernel_diagonals,     |
|          |                                 | electrostatic_statistics, wl_roles                           |
| global   | laplacian_eigenvectors          | their eigenvalues                                            |
| relative | shortest_paths,                 | differences of local ones along edges or over the pairs of   |
| (pairs)  | relative_random_walks           | `pairs_of`                                                   |

Legend: n nodes, k eigenvectors, K steps of a random walk, P pairs (the sum of squares of the graphs' sizes).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph.batches import unbatch
from attlas.graph.graph import Graph
from attlas.graph.kept import kept
from attlas.graph.make import to_scipy
from attlas.graph.pairs import pairs_of

if TYPE_CHECKING:
    import scipy.sparse  # a quarter of a second: imported where it is used

__all__ = [
    "flip_signs",
    "laplacian_eigenvectors",
    "random_walk_diagonals",
    "relative_random_walks",
    "shortest_paths",
]

DENSE = 500
"""Nodes up to which eigenvectors come from a dense solver."""
LARGE = 10_000
"""Nodes above which nothing of the size of all pairs is made unless it is asked for."""
BLOCK = 256


@kept
def laplacian_eigenvectors(
    graph: Graph, count: int, *, skip: int = 1, normalised: bool = True, fill: float = 0.0
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """(eigenvalues, eigenvectors) of each graph's Laplacian, smallest first, at each of its nodes.

    I - D^-1/2 A D^-1/2, or D - A with normalised=False, of the graph with every edge in both directions and
    equal ones joined. skip: how many of the smallest are left out (1: the constant one, as GT does; 0: none,
    as GPS). A graph with fewer nodes is filled up with `fill`. Unit vectors in float64; their sign is
    arbitrary (`flip_signs`), and so is the basis of equal eigenvalues. An isolated node counts as degree 1.
    Cost: O(n^3) up to 500 nodes of a graph, above that a sparse solver, whose steps grow with the diameter;
    RuntimeError: it did not converge. Sources: Dwivedi and Bresson 2020,
    arXiv 2012.09699; Rampasek et al. 2022, arXiv 2205.12454.
    """
    if count < 1 or skip < 0:
        raise ValueError(f"count must be 1 or more and skip 0 or more, got {count} and {skip}")

    def one(part: Graph) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = _eigen(laplacian(part, normalised), skip + count)
        found = np.full((part.nodes, count), fill), np.full((part.nodes, count), fill)
        kept = vectors[:, skip : skip + count]
        found[0][:, : kept.shape[1]] = values[skip : skip + count]
        found[1][:, : kept.shape[1]] = kept
        return found

    nothing = np.zeros((0, count))
    pairs = [one(part) for part in unbatch(graph)] or [(nothing, nothing)]
    values, vectors = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pairs, strict=True))
    return values, vectors


def both_ways(graph: Graph) -> "scipy.sparse.csr_array":
    """The adjacency matrix with every edge in both directions, equal ones joined: ones."""
    import scipy.sparse

    adjacency = to_scipy(graph)
    adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64)
    return scipy.sparse.csr_array(adjacency)


def laplacian(graph: Graph, normalised: bool) -> "scipy.sparse.csr_array":
    """I - D^-1/2 A D^-1/2, or D - A, of `both_ways`."""
    import scipy.sparse

    adjacency = both_ways(graph)
    degree = np.asarray(adjacency.sum(1)).reshape(-1)
    if not normalised:
        return scipy.sparse.csr_array(scipy.sparse.diags_array(degree) - adjacency)
    root = scipy.sparse.diags_array(np.maximum(degree, 1.0) ** -0.5)
    return scipy.sparse.csr_array(scipy.sparse.eye_array(graph.nodes) - root @ adjacency @ root)


def _eigen(matrix: "scipy.sparse.csr_array", count: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenvalues and their vectors.

    Above DENSE nodes each connected component on its own: an iteration from one vector finds one of several
    equal eigenvalues, and there are as many zeros as components.
    """
    import scipy.sparse
    from scipy.sparse import csgraph

    if matrix.shape[0] <= max(DENSE, count + 1):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[:count], vectors[:, :count]
    _, labels = csgraph.connected_components(matrix, directed=False)
    order, sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
    ends, apart = sizes.cumsum(), scipy.sparse.csr_array(matrix[order][:, order])
    found = [
        (order[end - size : end], *_connected(apart[end - size : end, end - size : end], min(count, size)))
        for end, size in zip(ends[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True)
    ]
    # A node alone is its own eigenvector; there may be very many.
    alone = order[ends[sizes == 1] - 1]
    own = matrix.diagonal()[alone]
    least = np.argsort(own, kind="stable")[:count]
    found += [(alone[[at]], own[[at]], np.ones((1, 1))) for at in least.tolist()]
    owner = np.concatenate([np.full(len(values), part) for part, (_, values, _) in enumerate(found)])
    column = np.concatenate([np.arange(len(values)) for _, values, _ in found])
    every = np.concatenate([values for _, values, _ in found])
    smallest = np.argsort(every, kind="stable")[:count]
    vectors = np.zeros((matrix.shape[0], len(smallest)))
    for place, one in enumerate(smallest):
        nodes, _, own = found[owner[one]]
        vectors[nodes, place] = own[:, column[one]]
    return every[smallest], vectors


def _connected(matrix: "scipy.sparse.csr_array", count: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest eigenvalues of a component's Laplacian."""
    import scipy.sparse
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    nodes = matrix.shape[0]
    if nodes <= max(DENSE, count + 1):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[:count], vectors[:, :count]
    # Nearly singular: the largest ones of its distance from a bound are found instead.
    bound = float(abs(matrix).sum(1).max())
    shifted = scipy.sparse.eye_array(nodes) * bound - matrix
    start = np.random.default_rng(0).standard_normal(nodes)
    try:
        values, vectors = eigsh(shifted, k=count, which="LA", v0=start)
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"laplacian_eigenvectors: a component of {nodes} nodes is too long for the sparse solver to find "
            f"{count} eigenvectors; ask for others (a smaller or larger count), or use random_walk_diagonals"
        ) from error
    order = np.argsort(-values)
    return bound - values[order], vectors[:, order]


def flip_signs(
    vectors: Float[Tensor, "n k"], graph: Graph, generator: torch.Generator | None = None
) -> Float[Tensor, "n k"]:
    """Each graph's eigenvectors times random signs, drawn anew in every call: for training."""
    signs = torch.randint(0, 2, (graph.graphs, vectors.shape[1]), generator=generator).to(vectors.dtype)
    return vectors * (2 * signs - 1)[graph.graph_of]


@kept
def random_walk_diagonals(graph: Graph, steps: int, *, large: bool = False) -> Float[Tensor, "n K"]:
    """[P^t]_ii for t = 1 .. steps, P = D^-1 A: the chance to be back after t steps (RWSE), float64.

    A step goes from a receiver to one of its senders; equal edges count as often as they stand; a node
    without edges is never back: 0. Cost: `steps` products of P with 256 columns at a time, O(steps E n) in
    all and O(256 n) memory. ValueError: steps below 1; more than 10,000 nodes in a graph without large=True.
    """
    if steps < 1:
        raise ValueError(f"random_walk_diagonals: steps must be 1 or more, got {steps}")
    refuse_large("random_walk_diagonals", graph, large)

    def one(part: Graph) -> np.ndarray:
        walk = _walk(part)
        found = np.zeros((part.nodes, steps))
        for first in range(0, part.nodes, BLOCK):
            rows = np.arange(first, min(first + BLOCK, part.nodes))
            columns = np.zeros((part.nodes, len(rows)))
            columns[rows, rows - first] = 1.0
            for step in range(steps):
                columns = walk @ columns
                found[rows, step] = columns[rows, rows - first]
        return found

    return by_graph(graph, steps, one)


def _walk(graph: Graph) -> "scipy.sparse.csr_array":
    import scipy.sparse

    adjacency = to_scipy(graph).astype(np.float64)
    degree = np.asarray(adjacency.sum(1)).reshape(-1)
    return scipy.sparse.csr_array(scipy.sparse.diags_array(1.0 / np.maximum(degree, 1.0)) @ adjacency)


def refuse_large(what: str, graph: Graph, large: bool) -> None:
    """ValueError: a graph has more than LARGE nodes, and `large` does not allow it."""
    most = graph.nodes if graph.pointer is None else max(graph.pointer.diff().tolist(), default=0)
    if most > LARGE and not large:
        raise ValueError(
            f"{what}: a graph of {most} nodes has {most**2} pairs; pass large=True to compute "
            f"them all the same (the limit is {LARGE} nodes)"
        )


def by_graph(graph: Graph, width: int, one: Callable[[Graph], np.ndarray]) -> Tensor:
    """`one` of every graph of a batch that has nodes, (nodes, width) each, one behind the other."""
    parts = [one(part) for part in unbatch(graph) if part.nodes]
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros((0, width)))


@kept
def relative_random_walks(graph: Graph, steps: int, *, large: bool = False) -> Graph:
    """All pairs of each graph with edge_attr (P, steps): [I, P, P^2, ..., P^(steps - 1)]_ij (RRWP), float64.

    The edge j -> i of the result holds row i, column j: the chance to get from receiver i to sender j. P as
    in `random_walk_diagonals`. Source: Ma et al. 2023, arXiv 2305.17589. Cost: O(steps n^3) up to 500 nodes,
    graphs of one size at once, O(steps E n) above; n^2 steps numbers. ValueError: more than 10,000 nodes in a
    graph without large=True.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more (the first is the node itself), got {steps}")
    refuse_large("relative_random_walks", graph, large)
    pairs = pairs_of(graph)
    edges = torch.bincount(pairs.place, minlength=pairs.pairs).to(torch.float64)
    chance = edges / pairs.degree.clamp_min(1)[pairs.graph.receiver]
    found = torch.empty(pairs.pairs, steps, dtype=torch.float64)
    for block in pairs.blocks:
        walk, size = chance[block], block.shape[1]
        power = torch.eye(size, dtype=torch.float64).expand_as(walk)
        for step in range(steps):
            found[block, step] = power
            power = walk @ power if size <= DENSE else _sparse_step(walk, power)
    return pairs.graph.replace(edge_attr=found)


def _sparse_step(walk: Tensor, power: Tensor) -> Tensor:
    import scipy.sparse

    parts = [
        torch.from_numpy(scipy.sparse.csr_array(one.numpy()) @ other.numpy())
        for one, other in zip(walk, power, strict=True)
    ]
    return torch.stack(parts)


@kept
def shortest_paths(graph: Graph, most: int, *, large: bool = False) -> Graph:
    """All pairs of each graph with edge_type: edges on the shortest way from sender to receiver.

    Ways of more than `most` edges get most, pairs without a way most + 1. Cost: O(n E), n^2 numbers.
    ValueError: more than 10,000 nodes in a graph without large=True.
    """
    from scipy.sparse import csgraph

    if most < 1:
        raise ValueError(f"most must be 1 or more, got {most}")

    refuse_large("shortest_paths", graph, large)

    def one(part: Graph) -> np.ndarray:
        # scipy's edge i -> j is the entry (i, j): ours, transposed.
        ways = csgraph.shortest_path(to_scipy(part).T, unweighted=True).T
        return np.where(np.isinf(ways), most + 1, np.minimum(ways, most)).reshape(-1)

    return pairs_of(graph).graph.replace(edge_type=by_graph(graph, 1, one).reshape(-1).to(torch.int64))
