"""The hierarchy of polynomials by degree, and what tells graphs apart."""

import networkx
import pytest

from attlas.graph import MPNN, PPGN, PPGN_PLUS, clique, cycle, from_networkx, motifs
from attlas.inspect.eqpoly import describe_hierarchy, features_beyond, hierarchy, separating


@pytest.mark.parametrize(
    ("bank", "red", "exact", "missed"),
    [(MPNN, 0, 2, 2), (MPNN, 1, 2, 5), (MPNN, 2, 1, 41), (PPGN, 1, 4, 0), (PPGN_PLUS, 1, 4, 0)],
)
def test_degrees_to_which_a_bank_is_complete(bank, red, exact, missed):
    found = hierarchy(bank, 4, red=red)
    assert (found.exact, len(found.missed)) == (exact, missed + (red == 0))
    assert found.total == len(motifs(4, red=red))


def test_the_table_names_the_first_motif_that_is_missed():
    lines = describe_hierarchy(3).splitlines()
    assert lines[0].split()[:2] == ["model", "value"] and len(lines) == 10
    assert lines[2].split() == [
        "MPNN",
        "node",
        "degree",
        "2",
        "1",
        "of",
        "8",
        "[0-1",
        "0-2",
        "1-2]",
        "at",
        "0",
    ]
    assert lines[5].split() == ["PPGN", "node", "at", "least", "3", "0", "of", "8", "-"]


def test_features_are_what_messages_do_not_bring():
    assert set(features_beyond(MPNN, 4)) == {cycle(3, 0).canonical, cycle(4, 0).canonical}
    assert features_beyond(PPGN, 6) == (clique(4, 0).canonical,)


def test_two_triangles_and_a_cycle_of_six_differ_by_triangles_and_what_holds_them():
    two = from_networkx(networkx.disjoint_union(networkx.cycle_graph(3), networkx.cycle_graph(3)))[0]
    six = from_networkx(networkx.cycle_graph(6))[0]
    found = separating(two, six, motifs(4))
    assert found == tuple(one for one in motifs(4) if hierarchy_misses(one) and one != cycle(4).canonical)
    assert separating(two, two, motifs(3, red=1)) == ()
    assert cycle(3, 0) in separating(two, six, [cycle(3, 0), cycle(4, 0)])


def hierarchy_misses(motif):
    return motif in hierarchy(MPNN, 4, red=0).missed
