"""From homomorphisms to copies: sums over different nodes only, by Moebius inversion over vertex partitions.

    inj_H(X) = sum over partitions of H's vertices of mu * P_{H / partition}(X),
    mu = product over its blocks B of (-1)^(|B| - 1) (|B| - 1)!

Source: Puny et al. 2023, arXiv 2302.11556; Lovasz 2012 for the inversion. Legend: m vertices.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor

from attlas.graph.graph import Graph
from attlas.graph.motif import Motif
from attlas.graph.polynomials import count_all

__all__ = ["injective", "injective_terms", "quotients", "subgraph_counts"]


def _partitions(vertices: int) -> Iterator[tuple[int, ...]]:
    """The block of each vertex, for every partition; blocks numbered as they first occur."""

    def grown(blocks: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
        if len(blocks) == vertices:
            yield blocks
            return
        for block in range(most + 1):
            yield from grown((*blocks, block), max(most, block + 1))

    yield from grown((), 0)


@cache
def _merged(motif: Motif) -> tuple[tuple[Motif, int], ...]:
    """(quotient, Moebius factor) of every partition that keeps the red vertices apart, like ones together."""
    factors: Counter[Motif] = Counter()
    for blocks in _partitions(motif.vertices):
        if len({blocks[v] for v in motif.red}) == len(motif.red):
            sizes = Counter(blocks).values()
            factor = math.prod((-1) ** (size - 1) * math.factorial(size - 1) for size in sizes)
            factors[motif.renamed(blocks, len(sizes)).canonical] += factor
    return tuple(factors.items())


def injective_terms(motif: Motif, *, loops: bool = True) -> MappingProxyType[Motif, int]:
    """{H': c} with inj_H = sum of c P_H', off the diagonal for two red vertices.

    loops: False leaves out motifs with loops, which are 0 where X has none. Cost: all partitions of m
    vertices (4,140 for 8); ValueError: more than 9.
    """
    _check(motif)
    return MappingProxyType(
        {one: factor for one, factor in _merged(motif) if factor and (loops or not _has_loops(one))}
    )


def quotients(motif: Motif) -> MappingProxyType[Motif, int]:
    """{H': c} with P_H = sum of c inj_H': the other way, every partition once."""
    _check(motif)
    found: Counter[Motif] = Counter()
    for blocks in _partitions(motif.vertices):
        if len({blocks[v] for v in motif.red}) == len(motif.red):
            found[motif.renamed(blocks, len(set(blocks))).canonical] += 1
    return MappingProxyType(dict(found))


def _check(motif: Motif) -> None:
    if motif.vertices > 9:
        raise ValueError(f"a motif of at most 9 vertices can be partitioned, got {motif.vertices}")


def _has_loops(motif: Motif) -> bool:
    return any(a == b for a, b in motif.edges)


def injective(motif: Motif, x: Graph | Tensor, *, weights: Tensor | None = None) -> Tensor:
    """As `homomorphisms`, but over different nodes j only: each copy as often as it has automorphisms.

    Two red vertices give 0 at a pair of a node with itself.
    """
    if isinstance(x, Graph):
        diagonal = x.sender == x.receiver
        loops = bool(diagonal.any())
    else:
        diagonal, loops = torch.eye(len(x), dtype=torch.bool), bool((x.diagonal() != 0).any())
    # A loop of the motif itself asks for one of X: nothing would be left without such terms.
    terms = injective_terms(motif, loops=loops or _has_loops(motif))
    counted = count_all(tuple(terms), x, weights=weights)
    found = sum(
        (factor * one for factor, one in zip(terms.values(), counted, strict=True)),
        start=torch.zeros_like(counted[0]),
    )
    return found.masked_fill(diagonal, 0) if len(motif.red) == 2 else found


def subgraph_counts(motif: Motif, x: Graph | Tensor) -> Tensor:
    """How many copies of the motif there are: in the graph, or with a node, or a pair, at the red vertices.

    The graph must be simple for copies to be what they are called: no loops, no equal edges. Cost: that of
    the motifs of `injective_terms`.
    """
    if isinstance(x, Graph) and x.has_equal_edges:
        raise ValueError("subgraph_counts: the graph has equal edges; join them with attlas.graph.coalesce")
    return torch.div(injective(motif, x), motif.automorphisms, rounding_mode="floor")
