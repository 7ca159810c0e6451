"""What the released graph attentions and p-adapters compute, as figures."""

import pytest

from attlas.catalog.released import _registry


def test_a_maximum_of_the_tokens_own_and_edges_to_itself():
    first, second = (entry.figures(0) for entry in _registry.released_of("gin_attention"))
    assert first["share of own values, softmax"] == first["share of own values, relu"] == 1.0
    assert first["share of infinite rows, softmax"] == 0.0 < first["share of infinite rows, relu"]
    assert first["share of channels that differ, softmax"] > 0.5
    assert second["edges between tokens, release"] == second["change of the last token, release"] == 0
    assert second["edges between tokens, paper"] > 100 and second["change of the last token, paper"] > 0


def test_a_step_without_its_own_term_and_one_that_stands_still():
    first, second, _ = (entry.figures(0) for entry in _registry.released_of("p_adapter"))
    assert first["mass, large mu"] < first["mass, small mu"] < 1
    assert first["difference, large mu"] > first["difference, small mu"] > 0.01
    assert second["moved, release, p 125"] < 0.005 < second["moved, release, p 150"] < 0.1
    # A larger p is no identity: the node keeps about half of itself.
    assert 0.4 < second["moved, release, p 175"] < 0.65
    assert min(second[f"moved, here, p {p}"] for p in (125, 150, 175)) > 0.5
    assert second["moved, release, p 200"] == pytest.approx(second["moved, here, p 200"], rel=1e-6)


def test_the_graph_of_training_is_not_that_of_cached_decoding():
    found = _registry.released_of("p_adapter")[2].figures(0)
    assert found["difference"] > 0.5
    assert found["cosine with the own value, training"] > 0.99
    assert found["cosine with the own value, decoding"] < 0.7
