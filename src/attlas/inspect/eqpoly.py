"""Which equivariant polynomials a graph model computes, and which ones tell graphs apart.

Source: Puny et al. 2023, arXiv 2302.11556 (motifs, banks and orders: `attlas.graph.contraction`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attlas.graph import Graph
from attlas.graph.contraction import BANKS, Bank, computable
from attlas.graph.motif import Motif, motifs
from attlas.graph.polynomials import count_all

__all__ = ["Hierarchy", "describe_hierarchy", "features_beyond", "hierarchy", "separating"]


@dataclass(frozen=True)
class Hierarchy:
    """What a bank computes of the connected motifs with `red` red vertices and up to `edges` edges.

    exact: the largest degree up to which all are computed; missed: the others, fewest edges first. total: how
    many motifs there are.
    """

    bank: Bank
    red: int
    edges: int
    exact: int
    missed: tuple[Motif, ...]
    total: int


def hierarchy(bank: Bank, edges: int, *, red: int = 1) -> Hierarchy:
    """The degree to which a bank of moves is complete, for graphs (red=0), nodes (1) or pairs (2).

    Only connected simple motifs are looked at: parallel edges and loops ask for no further move, and the
    others are products of these. Cost: that of `motifs`, seconds at 6 edges. ValueError: as there.
    """
    every = motifs(edges, red=red)
    missed = tuple(one for one in every if not computable(one, bank))
    exact = min((one.degree for one in missed), default=edges + 1) - 1
    return Hierarchy(bank, red, edges, exact, missed, len(every))


def describe_hierarchy(edges: int = 6, banks: Sequence[Bank] = BANKS) -> str:
    """A table: for each bank and kind of value, the complete degree, what is missed first, and how much."""
    lines = [f"{'model':<8} {'value':<6} {'complete to':<12} {'missed':<12} first"]
    for bank in banks:
        for red, what in enumerate(("graph", "node", "pair")):
            # Pairs of nodes have several times as many motifs of one degree.
            found = hierarchy(bank, edges - (red == 2), red=red)
            reach = f"degree {found.exact}" if found.missed else f"at least {found.edges}"
            first = str(found.missed[0]) if found.missed else "-"
            missed = f"{len(found.missed)} of {found.total}"
            lines.append(f"{bank.name:<8} {what:<6} {reach:<12} {missed:<12} {first}")
    return "\n".join(lines)


def features_beyond(bank: Bank, edges: int) -> tuple[Motif, ...]:
    """The node-valued motifs of up to `edges` edges that a model of these moves lacks: features to give it.

    A motif that only hangs trees on another missed one is left out: message passing adds those itself.
    """
    found = hierarchy(bank, edges, red=1).missed
    return tuple(one for one in found if not _has_free_leaf(one) and not _hangs(one))


def _has_free_leaf(motif: Motif) -> bool:
    return any(len(around) == 1 and v not in motif.red for v, around in enumerate(motif.neighbours))


def _hangs(motif: Motif) -> bool:
    """Whether the red vertex is a leaf itself: one round of messages brings the rest to it."""
    return len(motif.neighbours[motif.red[0]]) == 1


def separating(one: Graph, other: Graph, among: Sequence[Motif]) -> tuple[Motif, ...]:
    """The motifs of which two graphs have different counts.

    Motifs without a red vertex compare numbers, those of one or two red ones the values at all nodes or
    edges, in any order. Cost: `count_all` of each graph. ValueError: as there.
    """
    counts = [[_sorted(values) for values in count_all(among, graph)] for graph in (one, other)]
    return tuple(motif for motif, a, b in zip(among, *counts, strict=True) if not torch.equal(a, b))


def _sorted(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1).sort().values
