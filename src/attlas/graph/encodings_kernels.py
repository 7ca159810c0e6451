"""Structural encodings by kernels over all pairs of a graph: heat and electrostatic potential.

Legend: n nodes, T times.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from attlas.graph.encodings import by_graph, laplacian, refuse_large
from attlas.graph.graph import Graph
from attlas.graph.kept import kept

__all__ = ["ELECTROSTATIC", "electrostatic_statistics", "heat_kernel_diagonals"]

ELECTROSTATIC = 10
"""Numbers of `electrostatic_statistics` at a node."""


@kept
def heat_kernel_diagonals(
    graph: Graph, times: Sequence[float], *, large: bool = False
) -> Float[Tensor, "n T"]:
    """sum over lambda_k > 0 of exp(-t lambda_k) U_ik^2 for each t of `times` (a tuple): HKdiagSE, float64.

    L = D - A = U diag(lambda) U^T of the undirected graph; as many eigenvalues are 0 as there are components.
    The heat that is left at a node after time t, without the constant part. Source: Rampasek et al. 2022,
    arXiv 2205.12454 (its text has exp(-2 t lambda), the released code and this the former). Cost: O(n^3).
    ValueError: more than 10,000 nodes in a graph without large=True.
    """
    if not times:
        raise ValueError("heat_kernel_diagonals: times must name at least one time")
    refuse_large("heat_kernel_diagonals", graph, large)
    steps = np.asarray(times, dtype=np.float64)

    def one(part: Graph) -> np.ndarray:
        values, vectors, _ = _positive_part(part)
        return np.square(vectors) @ np.exp(-values[:, None] * steps)

    return by_graph(graph, len(steps), one)


@kept
def electrostatic_statistics(graph: Graph, *, large: bool = False) -> Float[Tensor, "n 10"]:
    """ElstaticSE: ten numbers of the potentials V_ij = pinv(L)_ij - pinv(L)_jj between nodes, float64.

    Least, largest, mean and standard deviation (n - 1; 0 for one node) of column i, the same of row i, then
    the sums of column i and of row i of (D^-1 A) * V. L = D - A of the undirected graph, loops left out.
    Source: Rampasek et al. 2022, arXiv 2205.12454. Departs from the released code, whose sixth number is its
    second once more (the largest of the column in place of the row). Cost: O(n^3). ValueError: more than
    10,000 nodes in a graph without large=True.
    """
    refuse_large("electrostatic_statistics", graph, large)

    def one(part: Graph) -> np.ndarray:
        if not part.nodes:
            return np.zeros((0, ELECTROSTATIC))
        values, vectors, matrix = _positive_part(part)
        inverse = (vectors / values) @ vectors.T
        potential = inverse - np.diag(inverse)
        degree = np.diag(matrix)
        walk = (np.diag(degree) - matrix) / np.maximum(degree, 1.0)[:, None]
        found = []
        for axis in (0, 1):
            spread = potential.std(axis, ddof=1) if part.nodes > 1 else np.zeros(part.nodes)
            found += [potential.min(axis), potential.max(axis), potential.mean(axis), spread]
        return np.stack([*found, (walk * potential).sum(0), (walk * potential).sum(1)], 1)

    return by_graph(graph, ELECTROSTATIC, one)


def _positive_part(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues above 0, their vectors, and the Laplacian D - A as a dense matrix."""
    from scipy.sparse import csgraph

    sparse = laplacian(graph, normalised=False)
    # Which eigenvalues are 0 is counted, not told by a threshold: those of long paths are very small.
    zeros, _ = csgraph.connected_components(sparse, directed=False)
    matrix = sparse.toarray()
    values, vectors = np.linalg.eigh(matrix)
    return values[zeros:], vectors[:, zeros:], matrix
