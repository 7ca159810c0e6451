"""Roles of nodes by colour refinement (Weisfeiler and Leman)."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from attlas.graph.encodings import both_ways, by_graph
from attlas.graph.graph import Graph
from attlas.graph.kept import kept

__all__ = ["wl_roles"]


@kept
def wl_roles(graph: Graph, rounds: int = 2) -> Int[Tensor, " n"]:
    """The colour of each node after `rounds` of refinement, 0 .. roles - 1 in each graph, int64.

    All nodes begin equal; in each round two nodes stay equal if they were and their neighbours' colours are
    equal as multisets. Colours are numbered in the order of (own colour, sorted neighbours' colours), so that
    they do not depend on the numbering of the nodes; equal numbers in different graphs need not mean the
    same. Edges are taken in both directions, equal ones joined. Source: Zhang et al. 2020, arXiv 2001.05140,
    as positional encoding in Dwivedi and Bresson 2020, arXiv 2012.09699, whose released code numbers colours
    by the order of their hashes. Cost: O(rounds E log E).
    """
    if rounds < 0:
        raise ValueError(f"wl_roles: rounds must be 0 or more, got {rounds}")

    def one(part: Graph) -> np.ndarray:
        adjacency = both_ways(part)
        starts, others = adjacency.indptr, adjacency.indices
        colour = np.zeros(part.nodes, dtype=np.int64)
        for _ in range(rounds):
            seen = [
                (int(own), *np.sort(colour[others[first:last]]).tolist())
                for own, first, last in zip(colour, starts[:-1], starts[1:], strict=True)
            ]
            number = {signature: place for place, signature in enumerate(sorted(set(seen)))}
            colour = np.asarray([number[signature] for signature in seen], dtype=np.int64)
        return colour[:, None]

    return by_graph(graph, 1, one)[:, 0].to(torch.int64)
