"""Which polynomials a model computes: orders in which the free vertices of a motif can be summed away.

Summing over a vertex leaves one tensor over its remaining neighbours: none, a number; one, a vector (message
passing); two, a matrix (a matrix product); three, an object of order 3. Parallel edges are entrywise
products, loops products with a diagonal. Source: Puny et al. 2023, arXiv 2302.11556.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

from attlas.graph.motif import Motif

__all__ = ["BANKS", "MPNN", "PPGN", "PPGN_PLUS", "Bank", "Move", "computable", "elimination", "treewidth"]


@dataclass(frozen=True)
class Bank:
    """The moves that a model has: vertices of at most `most` neighbours, with `pairs` also two at once.

    A pair {c, d} with neighbours a, b is the product Z_ab = sum_cd Y1_ac Y2_ad Y3_bc Y4_bd Y5_cd. Transposes
    and entrywise products are free, and so is the sum over a part that touches no red vertex.
    """

    name: str
    most: int
    pairs: bool = False


MPNN = Bank("MPNN", 1)
"""Message passing: exact for connected node-valued motifs to degree 2, the triangle being the first miss."""
PPGN = Bank("PPGN", 2)
"""Matrix products: treewidth at most 2; exact to degree 5 for nodes and 4 for pairs of nodes."""
PPGN_PLUS = Bank("PPGN++", 2, pairs=True)
"""With a product over two vertices, which is enough for one degree more; the paper's own may be another."""
BANKS = (MPNN, PPGN, PPGN_PLUS)


@dataclass(frozen=True)
class Move:
    """These vertices are summed over, which leaves a tensor over `neighbours`."""

    vertices: tuple[int, ...]
    neighbours: tuple[int, ...]


def elimination(motif: Motif, bank: Bank | None = None) -> tuple[Move, ...] | None:
    """The cheapest order of moves that leaves the red vertices alone; None if the bank has none.

    bank: None allows any vertex. Cheapest: fewest neighbours at the worst move, then over all moves. Cost:
    2^m subsets of m free vertices. ValueError: more than 16 free vertices.
    """
    free = motif.vertices - len(motif.red)
    if free > 16:
        raise ValueError(f"elimination: at most 16 free vertices can be planned, got {free}")
    found = _best(motif, bank, frozenset())
    return None if found is None else found[2]


def treewidth(motif: Motif) -> int:
    """Of the motif with its red vertices joined: n^(treewidth + 1) is the time to evaluate it densely."""
    return max([len(motif.red) - 1, *(len(move.neighbours) for move in elimination(motif) or ())], default=0)


def computable(motif: Motif, bank: Bank) -> bool:
    """Whether a model with these moves computes the motif's polynomial."""
    return elimination(motif, bank) is not None


@cache
def _best(motif: Motif, bank: Bank | None, gone: frozenset[int]) -> tuple[int, int, tuple[Move, ...]] | None:
    """(most neighbours, cost, moves) of the rest, once the vertices `gone` are summed over."""
    free = [v for v in range(motif.vertices) if v not in gone and v not in motif.red]
    if not free:
        return 0, 0, ()
    best = None
    for move in _moves(motif, bank, gone, free):
        rest = _best(motif, bank, gone | set(move.vertices))
        if rest is None:
            continue
        size = len(move.neighbours) + len(move.vertices) - 1
        found = max(size, rest[0]), 10**size + rest[1], (move, *rest[2])
        if best is None or found[:2] < best[:2]:
            best = found
    return best


def _moves(motif: Motif, bank: Bank | None, gone: frozenset[int], free: list[int]) -> list[Move]:
    single = [Move((v,), _around(motif, gone, {v})) for v in free]
    if bank is None:
        return single
    found = [move for move in single if len(move.neighbours) <= bank.most]
    if bank.pairs:
        pairs = [Move((c, d), _around(motif, gone, {c, d})) for c, d in combinations(free, 2)]
        found += [move for move in pairs if len(move.neighbours) <= 2]
    return found


def _around(motif: Motif, gone: frozenset[int], vertices: set[int]) -> tuple[int, ...]:
    """Who shares a tensor with the vertices, once `gone` are summed over: neighbours through them too."""
    seen, new = set(vertices), list(vertices)
    while new:
        for v in motif.neighbours[new.pop()]:
            if v not in seen:
                seen.add(v)
                if v in gone:
                    new.append(v)
    return tuple(sorted(seen - gone - vertices))
