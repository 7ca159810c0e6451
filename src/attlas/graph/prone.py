"""Positions of nodes in a large graph by sparse matrix products alone (ProNE)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.hops import adjacency

if TYPE_CHECKING:
    import scipy.sparse  # a quarter of a second: imported where it is used

__all__ = ["prone"]

POWER = 0.75  # of the negative samples' frequency, as in the official code
SPARE, ROUNDS = 10, 5  # columns and rounds beyond those wanted (Halko et al. 2011, arXiv 0909.4061)


def prone(
    graph: Graph, width: int, *, order: int = 10, mu: float = 0.2, theta: float = 0.5, seed: int = 0
) -> Float[Tensor, "n width"]:
    """Positions (n, width), float32, such that nodes with alike surroundings are near; rows of norm 1 or 0.

    First the `width` largest singular vectors of log p_ij - log q_j over the edges, p_ij = 1 / degree_i, q
    the share of column sums of p to the power 3/4; then a Gaussian band-pass of the random-walk Laplacian
    around eigenvalue `mu`, `theta` sharp, by a Chebyshev expansion of `order` terms. Edges are taken both
    ways, equal ones once, loops not at all. A node without neighbours stands at 0.

    ValueError: width below 1 or above the number of nodes. Source: ProNE, Zhang et al., IJCAI 2019, with the
    official code's expansion. Cost: O((order + 5) E width + n width^2).
    """
    if not 1 <= width <= graph.nodes:
        raise ValueError(f"width must be 1 to {graph.nodes}, the number of nodes, got {width}")
    matrix = _matrix(graph)
    if not matrix.nnz:
        return torch.zeros(graph.nodes, width)
    start = _vectors(_factors(matrix), width, seed)
    return torch.from_numpy(_scaled(_propagated(matrix, start, order, mu, theta)).astype(np.float32))


def _matrix(graph: Graph) -> "scipy.sparse.csr_array":
    import scipy.sparse

    pointer, other = (part.numpy() for part in adjacency(graph))
    ones = np.ones(len(other), dtype=np.float32)
    return scipy.sparse.csr_array((ones, other, pointer), (graph.nodes, graph.nodes))


def _factors(matrix: "scipy.sparse.csr_array") -> "scipy.sparse.csr_array":
    """log p_ij - log q_j at the edges."""
    degree = np.diff(matrix.indptr)
    chance = np.repeat(1.0 / np.maximum(degree, 1), degree)
    column = np.bincount(matrix.indices, chance, minlength=len(degree)) ** POWER
    found = matrix.copy()
    found.data = (np.log(chance) - np.log((column / column.sum())[matrix.indices])).astype(np.float32)
    return found


def _vectors(matrix: "scipy.sparse.csr_array", width: int, seed: int) -> np.ndarray:
    """U sqrt(S) of the largest singular values, by a randomised range finder; rows of norm 1."""
    nodes = matrix.shape[0]
    columns = min(nodes, width + SPARE)
    base = np.random.default_rng(seed).standard_normal((nodes, columns), dtype=np.float32)
    turned = matrix.T.tocsr()
    for _ in range(ROUNDS):
        base = np.linalg.qr(matrix @ base)[0]
        base = np.linalg.qr(turned @ base)[0]
    base = np.linalg.qr(matrix @ base)[0]
    left, values, _ = np.linalg.svd((turned @ base).T, full_matrices=False)
    return _rows(base @ (left[:, :width] * np.sqrt(values[:width])))


def _propagated(
    matrix: "scipy.sparse.csr_array", start: np.ndarray, order: int, mu: float, theta: float
) -> np.ndarray:
    from scipy.special import iv

    degree = np.diff(matrix.indptr) + 1.0  # with a loop at every node
    inverse = (1.0 / degree)[:, None].astype(np.float32)

    def shifted(x: np.ndarray) -> np.ndarray:
        """(L - mu) x with L = I - D^-1 (A + I)."""
        return np.asarray((1.0 - mu) * x - inverse * (matrix @ x + x), dtype=np.float32)

    before, last = start, 0.5 * shifted(shifted(start)) - start
    total = iv(0, theta) * before - 2 * iv(1, theta) * last
    for term in range(2, order):
        new = shifted(shifted(last)) - 2 * last - before
        total = total + (2 if term % 2 == 0 else -2) * iv(term, theta) * new
        before, last = last, new
    apart = (start - total).astype(np.float32)
    return np.asarray(matrix @ apart + apart)


def _scaled(x: np.ndarray) -> np.ndarray:
    """U sqrt(S) of x, rows of norm 1, by the small matrix of its columns."""
    values, vectors = np.linalg.eigh(x.T.astype(np.float64) @ x)
    singular = np.sqrt(np.maximum(values, 0.0))
    factor = np.where(singular > 1e-9 * singular.max(), 1.0 / np.sqrt(np.maximum(singular, 1e-300)), 0.0)
    return _rows((x @ (vectors * factor))[:, ::-1])


def _rows(x: np.ndarray) -> Any:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 1e-12, norm, np.inf)
