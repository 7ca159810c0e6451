"""Encodings by name, as a command or a file of settings asks for them: "rwse:16,laplacian:8"."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph.encodings import (
    LARGE,
    laplacian_eigenvectors,
    random_walk_diagonals,
    relative_random_walks,
    shortest_paths,
)
from attlas.graph.graph import Graph

__all__ = ["ENCODINGS", "Encoding", "encode", "parse_encodings", "refuse_pairs"]


class Encoding(NamedTuple):
    """An encoding and its size: columns of a node's, steps or hops of a pair's."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name}:{self.size}"


class _Kind(NamedTuple):
    size: int
    pairs: bool  # of all pairs of nodes, or O(n) numbers that take O(n) products of O(E)
    says: str
    make: Callable[[Graph, int, bool], dict[str, Tensor]]


def _rwse(graph: Graph, size: int, large: bool) -> dict[str, Tensor]:
    return {"rwse": random_walk_diagonals(graph, size, large=large)}


def _laplacian(graph: Graph, size: int, large: bool) -> dict[str, Tensor]:
    values, vectors = laplacian_eigenvectors(graph, size)
    return {"laplacian": vectors, "laplacian_values": values}


def _degree(graph: Graph, size: int, large: bool) -> dict[str, Tensor]:
    return {"degree": torch.stack([graph.in_degree, graph.out_degree], 1).double().log1p()[:, :size]}


def _rrwp(graph: Graph, size: int, large: bool) -> dict[str, Tensor]:
    found = relative_random_walks(graph, size, large=large)
    return {"rrwp": _attr(found), "rrwp_index": found.edge_index}


def _paths(graph: Graph, size: int, large: bool) -> dict[str, Tensor]:
    found = shortest_paths(graph, size, large=large)
    kinds = found.edge_type
    return {"paths": kinds if kinds is not None else found.sender, "paths_index": found.edge_index}


def _attr(graph: Graph) -> Tensor:
    if graph.edge_attr is None:
        raise TypeError("relative_random_walks gave no edge_attr")
    return graph.edge_attr


ENCODINGS: dict[str, _Kind] = {
    "degree": _Kind(2, False, "log(1 + edges in), log(1 + edges out)", _degree),
    "rwse": _Kind(16, True, "chance to be back after 1, 2, ... random steps", _rwse),
    "laplacian": _Kind(
        8, False, "eigenvectors of the smallest eigenvalues behind the constant one", _laplacian
    ),
    "rrwp": _Kind(8, True, "of pairs: chance to get from one to the other in 0, 1, ... steps", _rrwp),
    "paths": _Kind(8, True, "of pairs: length of the shortest way, up to the size", _paths),
}
"""What can be asked for: usual size, whether it needs all pairs of nodes, what it is."""


def parse_encodings(text: str) -> tuple[Encoding, ...]:
    """ "rwse:16,laplacian" as encodings, of the usual size unless given; UsageError for anything else."""
    found = []
    for part in (one.strip() for one in text.split(",") if one.strip()):
        name, _, size = part.partition(":")
        if name not in ENCODINGS:
            raise UsageError(
                f"encodings are {', '.join(ENCODINGS)}, each with its size as in rwse:16; got {part!r}"
            )
        if size and not (size.isdecimal() and int(size) > 0):
            raise UsageError(f"the size of an encoding is a whole number from 1, as in rwse:16; got {part!r}")
        found.append(Encoding(name, int(size) if size else ENCODINGS[name].size))
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"encoding {twice[0]} is asked for twice; name each one once")
    return tuple(found)


def encode(graph: Graph, encoding: Encoding, *, large: bool = False) -> dict[str, Tensor]:
    """The tensors of an encoding: `name` (nodes, size), or of pairs `name` (pairs, size) and `name_index`.

    laplacian comes with laplacian_values; paths are (pairs,) int64. Node numbers of graphs of a batch are
    those of the batch. UsageError: all pairs of more than 10,000 nodes without `large`.
    """
    refuse_pairs(graph, encoding, large)
    return ENCODINGS[encoding.name].make(graph, encoding.size, large)


def refuse_pairs(graph: Graph, encoding: Encoding, large: bool) -> None:
    """UsageError where an encoding goes through all pairs of too large a graph and nobody asked for it."""
    sizes = [graph.nodes] if graph.pointer is None else graph.pointer.diff().tolist()
    most = max(sizes, default=0)
    if ENCODINGS[encoding.name].pairs and most > LARGE and not large:
        raise UsageError(
            f"{encoding.name} of a graph of {most:,} nodes goes through {most**2:,} pairs; give --force "
            f"(large=True) to compute it all the same (the limit is {LARGE:,} nodes)"
        )
