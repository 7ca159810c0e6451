"""LargeGT's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import large_gt as claims

RIGHT = {"mlp": 0.35, "local": 0.6, "full": 0.61, "neighbours": 0.6}
SECONDS = {"mlp": 0.2, "local": 7.0, "full": 8.0, "neighbours": 20.0}  # of training


def run_with(right=None, seconds=None):
    values = {f"accuracy, {name}": one for name, one in (RIGHT | (right or {})).items()}
    for name, one in (SECONDS | (seconds or {})).items():
        values |= {f"seconds, {name}": one, f"seconds an epoch, {name}": one / 3}
    return values | {"accuracy, majority class": 0.12, "seconds before, once": 9.0}


@pytest.mark.parametrize(
    ("right", "seconds", "outcome", "text"),
    [
        ({}, {}, "holds", "trains 2.5 times as long as full, which needs 9.0 s once"),
        ({"local": 0.44}, {}, "does not hold", "Not met: local above the words alone by 0.1."),
        ({"full": 0.59, "neighbours": 0.5}, {}, "does not hold", "Not met: full not below local."),
        ({"neighbours": 0.62}, {}, "does not hold", "Not met: full not below four-hop sampling."),
        ({}, {"neighbours": 7.9}, "does not hold", "Not met: training in less time than four-hop sampling."),
        ({"mlp": 0.15}, {}, "not shown at this scale", "The gloss alone is not learnt"),
    ],
)
def test_each_part_of_the_rule_decides(right, seconds, outcome, text):
    verdict = claims.judge([run_with(right, seconds)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_difference_within_the_spread_is_none():
    runs = [run_with({"full": 0.6 + step, "local": 0.605 - step}) for step in (-0.01, 0.0, 0.01)]
    assert claims.judge(runs).outcome == "holds"


def tiny(folder, monkeypatch):
    """WordNet of a few synsets: a ring of nouns."""
    nodes = 40
    lines = []
    for node in range(nodes):
        near = (node + 1) % nodes
        lines.append(
            f"{node:08d} {3 + node // 20:02d} n 01 word{node} 0 001 @ {near:08d} n 0000 | gloss {node} of "
            f"{node // 20}\n"
        )
    (folder / "data.noun").write_text("".join(lines))
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
    monkeypatch.setenv("ATTLAS_WORDNET", str(folder))
    for name, value in {"TRAIN": 20, "TEST": 10, "EPOCHS": 2, "BATCH": 8, "WIDTH": 4, "ROWS": 3}.items():
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(claims, "POSITION", 2)


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny(tmp_path, monkeypatch)
    claims.data.cache_clear()
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path / "kept", step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("neighbours: step 12 of 12") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path / "kept", step=said.append) == values
    assert not said, "what is trained already is not trained again"
    claims.data.cache_clear()


def test_the_baseline_trims_nothing_that_the_answer_needs(tmp_path, monkeypatch):
    import torch

    from attlas.layers import SAGE

    tiny(tmp_path, monkeypatch)
    claims.data.cache_clear()
    whole = claims.data(0)
    assert not whole.task.graph.__dict__.get("_kept"), "each seed's seconds count all of its work"
    net = claims.sage(whole, 0).eval()
    (one,) = claims.loader(whole, torch.arange(6), 0, False)
    x = whole.task.x[one.nodes]
    for layer, norm in zip(net.layers, net.norms, strict=True):
        assert isinstance(layer, SAGE)
        x = norm(layer(x, one.graph)).relu()
    assert torch.allclose(net(one), net.head(x[:6]), atol=1e-5)
    claims.data.cache_clear()


def test_batches_of_an_epoch_hold_every_node_once():
    import torch

    nodes = torch.arange(3 * claims.BATCH)
    parts = list(zip(range(3), claims.batches(nodes, 3, 0), strict=False))
    assert torch.equal(torch.cat([part for _, part in parts]).sort().values, nodes)
