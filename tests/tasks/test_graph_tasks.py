"""Drawn graph tasks: PATTERN graphs and flagged paths."""

import pytest
import torch

from attlas.tasks import PATH_CLASSES, flagged_paths, pattern_sbm


def test_pattern_graphs_are_as_dense_as_they_are_said_to_be():
    data = pattern_sbm(60, seed=1)
    assert all(len(one.label) <= 80 and int(one.label.sum()) == 20 for one in data)
    inside = outside = blocks = 0.0
    for one in data:
        ends = one.label[one.graph.sender] + one.label[one.graph.receiver]
        others = len(one.label) - 20
        inside += float((ends == 2).sum()) / (20 * 19)
        outside += float((ends == 1).sum()) / (2 * 20 * others)
        blocks += float((ends == 0).sum()) / (others * (others - 1))
        pairs = {(a, b) for a, b in one.graph.edge_index.T.tolist()}
        assert pairs == {(b, a) for a, b in pairs} and len(pairs) == one.graph.edges
        assert all(a != b for a, b in pairs)
    assert inside / 60 == pytest.approx(0.5, abs=0.02) and outside / 60 == pytest.approx(0.5, abs=0.02)
    # Between 0.35 and 0.5, near the former: a fifth or so of the pairs are of one block.
    assert 0.36 < blocks / 60 < 0.42


def test_patterns_are_the_same_in_all_data_sets_and_the_rest_is_drawn_by_the_seed():
    def shown(data):
        """The pattern's own degrees, sorted: the same for one pattern in any order of nodes."""
        found = set()
        for one in data:
            inner = (one.label[one.graph.sender] == 1) & (one.label[one.graph.receiver] == 1)
            degrees = one.graph.receiver[inner].bincount(minlength=len(one.label))[one.label == 1]
            found.add(tuple(sorted(degrees.tolist())))
        return found

    first, second = pattern_sbm(400, seed=1, nodes=45), pattern_sbm(400, seed=2, nodes=45)
    assert len(shown(first) | shown(second)) <= 100 < 800
    assert not torch.equal(first[0].graph.edge_index, second[0].graph.edge_index)
    again = pattern_sbm(1, seed=1, nodes=45)[0]
    assert torch.equal(again.graph.edge_index, first[0].graph.edge_index)
    signals = torch.cat([one.signal for one in first])
    assert (signals.bincount() / len(signals)).sub(1 / 3).abs().max() < 0.03


def test_flagged_paths_ask_one_end_for_the_class_of_the_other():
    paths = flagged_paths(50, torch.Generator().manual_seed(0))
    sizes = paths.graph.pointer.diff()
    assert sizes.min() >= 20 and sizes.max() <= 30 and len(sizes) == 50
    assert paths.x[:, 0].sum() == 50 and (paths.x[paths.asked, 0] == 1).all()
    for number in range(50):
        start, stop = paths.graph.pointer[number : number + 2].tolist()
        row = paths.x[start:stop]
        assert int(paths.asked[number]) == start and row[1:-1].abs().sum() == 0
        assert row[-1, 1] == 1 and int(row[-1, 2:].argmax()) == int(paths.target[number])
        assert row[-1, 2:].sum() == 1 and row[0, 1:].sum() == 0
    degrees = paths.graph.in_degree
    assert degrees.max() == 2 and int((degrees == 1).sum()) == 100
    assert set(paths.target.tolist()) == set(range(PATH_CLASSES))


def test_errors_say_what_does_not_fit():
    with pytest.raises(ValueError, match="must fit into nodes=40: they have 45"):
        pattern_sbm(1, seed=0, nodes=40)
    with pytest.raises(ValueError, match="2 <= least <= most nodes, got 5 and 4"):
        flagged_paths(1, torch.Generator(), least=5, most=4)
