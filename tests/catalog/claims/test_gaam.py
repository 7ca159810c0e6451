"""GAAM's claim: its rule, the nets' parameters, and one seed on features that are drawn."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import gaam as claims
from skips import needs

VALUES = {
    "accuracy, GAAM": 0.70,
    "accuracy, GAAM without residual": 0.68,
    "accuracy, multi-head attention": 0.70,
    "accuracy, mean": 0.69,
    "parameters, GAAM": 48.0,
    "parameters, GAAM without residual": 48.0,
    "parameters, multi-head attention": 591360.0,
    "parameters, mean": 0.0,
    "accuracy, most important masked": 0.60,
    "accuracy, random masked": 0.66,
    "accuracy, random masked, least": 0.65,
}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "GAAM 0.700 ± 0.000 (48 parameters)"),
        ({"accuracy, GAAM": 0.685}, "does not hold", "Not met: GAAM at most 0.01 below"),
        ({"accuracy, GAAM": 0.80}, "holds", "GAAM 0.800"),
        ({"parameters, GAAM": 6000.0}, "holds", "GAAM 0.700 ± 0.000 (6000 parameters)"),
        ({"accuracy, most important masked": 0.67}, "does not hold", "not worth less than random ones"),
        ({"accuracy, multi-head attention": 0.3}, "not shown at this scale", "does not learn the task"),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([VALUES | changes] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_masks_that_differ_less_than_the_seeds_show_nothing():
    for shift in (0.0, 0.015):  # important features worth a little more, and a little less
        values = (0.60 + shift, 0.65 + shift, 0.70 + shift)
        runs = [VALUES | {"accuracy, most important masked": value} for value in values]
        verdict = claims.judge(runs)
        assert verdict.outcome == "not shown at this scale"
        assert verdict.measured.endswith("The two masks differ by less than the seeds do.")
    runs = [VALUES | {"accuracy, most important masked": value} for value in (0.70, 0.71, 0.72)]
    assert claims.judge(runs).outcome == "does not hold", "worse beyond the spread"


def test_gaam_has_hardly_any_parameters_and_all_else_is_equal():
    nets = {arm: claims.network(arm, 3) for arm in claims.ARMS}
    own = {arm: sum(part.numel() for part in net[0].parameters()) for arm, net in nets.items()}
    assert own == {"GAAM": 48, "GAAM without residual": 48, "multi-head attention": 4 * 384 * 385, "mean": 0}
    first, *others = (net[3].weight for net in nets.values())
    assert all(torch.equal(first, other) for other in others)


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 3, "TRAIN": 40, "TEST": 10, "BATCH": 4, "DRAWS": 2}.items():
        monkeypatch.setattr(claims, name, value)
    drawn = torch.randn(50, 7, 384), torch.randint(0, 26, (50,))
    monkeypatch.setattr(claims, "features", lambda count: drawn)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(VALUES)
    assert values["accuracy, random masked, least"] <= values["accuracy, random masked"]
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"


@needs("minilm")
@needs("wordnet")
def test_features_are_means_of_every_layer_over_the_words():
    from attlas.bridges import load_encoder
    from attlas.tasks import glosses

    found, labels = claims.features(5)
    data = glosses(count=5, seed=0)
    assert found.shape == (5, 7, 384) and torch.equal(labels, data.labels)
    model, tokenizer = load_encoder("minilm")
    one = tokenizer(data.texts[3], truncation=True, max_length=claims.WORDS, return_tensors="pt")
    layers = model(**one, output_hidden_states=True).hidden_states
    wanted = torch.stack([layer[0].mean(0) for layer in layers])
    torch.testing.assert_close(found[3], wanted, rtol=1e-4, atol=1e-5)
