"""Motifs against NetworkX's isomorphism, known numbers of multigraphs, and contraction orders by rules."""

from itertools import permutations

import networkx
import pytest

from attlas.graph.contraction import (
    BANKS,
    MPNN,
    PPGN,
    PPGN_PLUS,
    Bank,
    computable,
    elimination,
    treewidth,
)
from attlas.graph.motif import Motif, clique, cycle, motifs, path

RED_EDGE = 5


def drawn(motif):
    """A NetworkX graph that holds red vertices and edges' kinds as labels."""
    graph = networkx.MultiDiGraph() if motif.directed else networkx.MultiGraph()
    for v in range(motif.vertices):
        graph.add_node(v, red=motif.red.index(v) if v in motif.red else -1)
    graph.add_edges_from(motif.edges)
    return graph


def isomorphic(one, other):
    return networkx.is_isomorphic(drawn(one), drawn(other), node_match=lambda a, b: a["red"] == b["red"])


@pytest.mark.parametrize(
    ("edges", "options", "wanted"),
    [
        # OEIS A002905, A007717, A007719 and A052171: connected simple, all, connected, directed multigraphs.
        (6, {}, [1, 1, 3, 5, 12, 30]),
        (4, {"simple": False, "connected": False}, [2, 7, 23, 79]),
        (4, {"simple": False}, [2, 4, 11, 30]),
        (3, {"simple": False, "connected": False, "directed": True}, [2, 11, 52]),
    ],
)
def test_there_are_as_many_as_known(edges, options, wanted):
    found = motifs(edges, **options)
    assert [sum(one.degree == t for one in found) for t in range(1, edges + 1)] == wanted
    assert all(one.neighbours[v] or one.edges for one in found for v in range(one.vertices))


@pytest.mark.parametrize("red", [1, 2])
def test_rooted_motifs_are_all_and_no_two_are_isomorphic(red):
    found = motifs(4, red=red)
    for t in range(1, 5):
        own = [one for one in found if one.degree == t]
        pairs = [(a, b) for place, a in enumerate(own) for b in own[:place] if a.vertices == b.vertices]
        assert not any(isomorphic(a, b) for a, b in pairs)
    # Every way to root a connected one is among them.
    for one in motifs(4):
        for at in permutations(range(one.vertices), red):
            assert one.rooted(*at).canonical in found


def test_canonical_forms_are_equal_for_isomorphic_motifs_only():
    motif = Motif(5, ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (0, 4), (2, 2)), (4,))
    for order in list(permutations(range(5)))[::7]:
        assert motif.renamed(order).canonical == motif.canonical
    other = Motif(5, ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (0, 4), (3, 3)), (4,))
    assert other.canonical != motif.canonical and not isomorphic(motif, other)
    assert path(2, 0, 2).canonical == path(2, 2, 0).canonical
    one, back = Motif(2, ((0, 1),), (0, 1), True), Motif(2, ((1, 0),), (0, 1), True)
    assert one.canonical != back.canonical
    # Two triangles and a cycle of six, which colours alone do not tell apart.
    two = Motif(6, ((0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)))
    assert two.canonical != cycle(6).canonical and not two.connected and cycle(6).connected


@pytest.mark.parametrize(
    ("motif", "wanted"),
    [(cycle(5), 10), (clique(4), 24), (clique(4, 0), 6), (path(3), 2), (path(3, 0), 1), (cycle(4, 0, 2), 2)],
)
def test_automorphisms(motif, wanted):
    assert motif.automorphisms == wanted


def test_components_and_their_red_vertices():
    motif = Motif(5, ((0, 3), (1, 2)), (3, 1))
    assert motif.components == ((0, 3), (1, 2), (4,))
    assert motif.part((0, 3)) == Motif(2, ((0, 1),), (1,)) and motif.part((4,)) == Motif(1, ())
    assert str(Motif(2, ((0, 1),), (0,), True)) == "[0>1] at 0"


@pytest.mark.parametrize(
    ("motif", "wanted"),
    [
        (path(4), 1), (path(4, 0), 1), (cycle(6), 2), (clique(4), 3), (clique(4, 0, 1), 3), (clique(5), 4),
        (path(2, 0, 2), 2), (Motif(2, (), (0, 1)), 1), (Motif(1, ()), 0),
        (Motif(4, ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), (0, 1)), 3),
    ],
)  # fmt: skip
def test_treewidth_counts_the_red_edge(motif, wanted):
    assert treewidth(motif) == wanted


@pytest.mark.parametrize("red", [0, 1])
def test_treewidth_is_the_least_over_all_orders(red):
    for motif in motifs(5, red=red)[::3]:
        orders = permutations(v for v in range(motif.vertices) if v not in motif.red)
        assert treewidth(motif) == min(worst(motif, order) for order in orders)


def worst(motif, order):
    graph = networkx.Graph(motif.edges)
    most = len(motif.red) - 1
    for v in order:
        around = list(graph[v])
        most = max(most, len(around))
        graph.add_edges_from((a, b) for a in around for b in around if a < b)
        graph.remove_node(v)
    return most


def test_what_each_bank_misses_first():
    """Message passing: the triangle. Matrix products: K4, with or without its red edge. Two at once: none."""
    missed = {
        (bank.name, red): [one for one in motifs(6 - (red == 2), red=red) if not computable(one, bank)]
        for bank in BANKS
        for red in (0, 1, 2)
    }
    for red, first in ((0, clique(3)), (1, clique(3, 0)), (2, path(2, 0, 2))):
        assert missed["MPNN", red][0] == first.canonical
        assert len({one.degree for one in missed["MPNN", red][:2]}) == 2
    without = Motif(4, ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3)), (0, 1))
    assert missed["PPGN", 0] == [clique(4).canonical]
    assert missed["PPGN", 1] == [clique(4, 0).canonical]
    assert missed["PPGN", 2] == [without.canonical]
    assert not any(missed["PPGN++", red] for red in (0, 1, 2))


def test_message_passing_computes_trees_with_parallel_edges_and_loops():
    for motif in motifs(4, red=1, simple=False):
        ends = {edge for edge in motif.edges if edge[0] != edge[1]}
        forest = len(ends) == motif.vertices - 1
        assert computable(motif, MPNN) == forest
        assert computable(motif, PPGN) == (treewidth(motif) <= 2)


def test_moves_say_what_is_summed_and_what_is_left():
    (move,) = elimination(path(2, 0, 2), PPGN)
    assert move.vertices == (1,) and move.neighbours == (0, 2)
    assert elimination(clique(4, 0, 1), PPGN) is None
    (pair,) = elimination(clique(4, 0, 1), PPGN_PLUS)
    assert pair.vertices == (2, 3) and pair.neighbours == (0, 1)
    assert not computable(path(1, 0), Bank("none", 0))


def test_what_is_wrong_is_said():
    for make, text in (
        (lambda: Motif(2, ((0, 2),)), r"vertex 2 is none of 0 .. 1"),
        (lambda: Motif(3, (), (0, 1, 2)), r"red must be none, one or two different vertices"),
        (lambda: cycle(2), r"cycle: size must be at least 3, got 2"),
        (lambda: motifs(0), r"edges must be at least 1 and red 0, 1 or 2, got 0 and 0"),
        (lambda: elimination(path(17)), r"at most 16 free vertices can be planned, got 18"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
