"""Dense and sparse matrices of counts, alike: entrywise products, cuts, and triangles over entries."""

from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "EXACT", "Matrix", "among", "checked", "csr", "cut", "entrywise", "is_sparse", "scaled", "scipy_coo",
]  # fmt: skip

EXACT = 2**53
"""Integers below which float64 is exact."""
DENSE = 1 << 22
"""Numbers up to which a cut matrix is dense."""
WEDGES = 1 << 22
"""Pairs of entries that are looked at at once."""

Matrix: TypeAlias = Any
"""An ndarray or a scipy.sparse.csr_array, float64."""


def is_sparse(matrix: Matrix) -> bool:
    """Whether it is not an ndarray."""
    return not isinstance(matrix, np.ndarray)


def entrywise(one: Matrix, other: Matrix) -> Matrix:
    """one * other, sparse if one of them is."""
    if is_sparse(one):
        return one.multiply(other).tocsr()
    return other.multiply(one).tocsr() if is_sparse(other) else one * other


def scaled(matrix: Matrix, vector: np.ndarray | None) -> Matrix:
    """Columns times the vector."""
    return matrix if vector is None else entrywise(matrix, vector[None, :])


def cut(matrix: Matrix, rows: np.ndarray, columns: np.ndarray) -> Matrix:
    """The matrix of some rows and columns, dense where that is small."""
    if not is_sparse(matrix):
        return matrix[np.ix_(rows, columns)]
    found = matrix[rows][:, columns]
    return found.toarray() if len(rows) * len(columns) <= DENSE else found


def checked(tensor: Any) -> Any:
    """The tensor of integers, which float64 holds exactly; else a ValueError."""
    most = abs(tensor).max() if 0 not in tensor.shape else 0
    if most >= EXACT:  # 2^53 itself may be one more that was rounded
        raise ValueError(
            f"counts reach {most:.3g}, 2^53 or more, where float64 is no longer exact: give real weights "
            "(float64) to count approximately, or a smaller motif or graph"
        )
    return tensor


def csr(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Matrix:
    """A sparse matrix of entries, equal ones summed."""
    import scipy.sparse

    return scipy.sparse.coo_array((values, (rows, columns)), shape).tocsr()


def scipy_coo(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, values) of the entries that are not 0, row by row, columns rising."""
    if not is_sparse(matrix):
        rows, columns = matrix.nonzero()
        return rows, columns, matrix[rows, columns]
    found = matrix.tocsr()
    found.sort_indices()
    rows = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    kept = found.data != 0
    return rows[kept], found.indices[kept].astype(np.int64), found.data[kept]


Entries: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


def among(one: Entries, other: Entries, matrix: Matrix, width: int) -> Matrix:
    """T[(i, j), (i, k)] = matrix[j, k] over entries (i, j) of one matrix and (i, k) of another with equal i.

    width: columns that k counts. For an adjacency all three, its entries are the triangles. Cost: a look-up
    for every j - k at each (i, j), some million at once.
    """
    matrix = matrix.tocsr()
    codes = other[0] * width + other[1]  # rising
    sizes = np.diff(matrix.indptr)[one[1]]
    ends = np.cumsum(sizes)
    parts: list[Entries] = []
    first = 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] - sizes[first] + WEDGES, "right")))
        parts.append(_among(one, codes, matrix, width, np.arange(first, last), sizes[first:last]))
        first = last
    rows, columns, values = (np.concatenate(own) for own in zip(*parts, strict=True)) if parts else one
    return csr(values, rows, columns, (len(one[0]), len(codes)))


def _among(
    one: Entries, codes: np.ndarray, matrix: Matrix, width: int, entries: np.ndarray, sizes: np.ndarray
) -> Entries:
    row = np.repeat(entries, sizes)
    start = np.repeat(matrix.indptr[one[1][entries]] - (np.cumsum(sizes) - sizes), sizes)
    at = start + np.arange(len(row))
    code = one[0][row] * width + matrix.indices[at]
    place = np.searchsorted(codes, code)
    there = place < len(codes)
    there[there] = codes[place[there]] == code[there]
    return row[there], place[there], matrix.data[at[there]]
