"""The p-adapter's claim: its rule, its graphs, equal parameters, and one seed at a tiny size."""

from __future__ import annotations

import pytest
import torch

from attlas.catalog.claims import p_adapter as claims
from attlas.tasks.glosses import Glosses


def run_with(changes=None):
    values = {f"accuracy under {kind}, no step": 0.84 for kind in claims.RATES}
    for kind, sign in (("homophily", -1), ("heterophily", 1)):
        for mu in claims.FIDELITIES:
            for p in claims.POWERS:
                for scale, turn in (("length 1", sign), ("length 4", -sign)):
                    name = f"accuracy under {kind}, {scale}, p {p:g}, mu {mu:g}"
                    values[name] = 0.7 + turn * 0.05 * (p - 2)
    for name, right in zip(claims.ARMS, (0.6, 0.58, 0.57), strict=True):
        values |= {f"accuracy on glosses, {name}": right, f"trained, {name}": 555_000.0}
    return values | (changes or {})


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        (
            {},
            "holds",
            "after one with p from 1 to 3, length 1, mu 0.1: 0.650",
        ),
        (
            {"accuracy under heterophily, length 1, p 3, mu 1": 0.6},
            "does not hold",
            "Not met: at mu 1 accuracy rises with p under heterophily.",
        ),
        (
            {"accuracy under homophily, length 1, p 3, mu 1": 0.9},
            "does not hold",
            "Not met: at mu 1 accuracy falls with p under homophily.",
        ),
        ({"accuracy on glosses, adapter": 0.65}, "does not hold", "The p-adapter is behind"),
        ({"accuracy on glosses, LoRA": 0.6}, "not shown at this scale", "differ within the spread."),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = claims.judge([run_with(changes)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@pytest.mark.parametrize("kind", claims.RATES)
def test_the_graphs_are_block_models(kind):
    rates = claims.RATES[kind]
    features, classes, row_ptr, col, weight = claims.block_graph(rates, torch.Generator().manual_seed(0))
    row = torch.arange(claims.NODES).repeat_interleave(row_ptr.diff())
    same = classes[row] == classes[col]
    pairs = claims.NODES * (claims.NODES / 2 - 1), claims.NODES**2 / 2
    assert float(same.sum()) / pairs[0] == pytest.approx(rates[0], rel=0.1)
    assert float((~same).sum()) / pairs[1] == pytest.approx(rates[1], rel=0.1)
    there = torch.zeros(claims.NODES, claims.NODES).index_put((row, col), torch.ones(len(row)))
    assert there.equal(there.T) and not there.diagonal().any()
    sums = torch.zeros(claims.NODES).index_add(0, row, weight)
    torch.testing.assert_close(sums[row_ptr.diff() > 0], torch.ones(int((row_ptr.diff() > 0).sum())))
    apart = features[classes == 1].mean(0) - features[classes == 0].mean(0)
    assert float(apart.norm()) == pytest.approx(2 * claims.SIGNAL, rel=0.25)


def untrained(name="minilm"):
    """(one layer of MiniLM's widths, a tokenizer by length of words), in place of the pretrained encoder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20, hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=16,
        max_position_embeddings=8, tie_word_embeddings=False,
    )  # fmt: skip

    def tokenizer(texts, *, padding, truncation, max_length, return_tensors):
        rows = [[min(len(word), 19) for word in text.split()][:max_length] for text in texts]
        most = max(map(len, rows))
        ids = torch.tensor([row + [0] * (most - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    return BertModel(config).eval().requires_grad_(False), tokenizer


def test_the_arms_have_equal_parameters_and_are_measured(tmp_path, monkeypatch):
    texts = tuple(" ".join("ab"[: 1 + (row + at) % 2] for at in range(1 + row % 5)) for row in range(30))
    made = Glosses(texts, torch.arange(30) % 3, ("one", "two", "three"))
    monkeypatch.setattr("attlas.bridges.load_encoder", untrained)
    monkeypatch.setattr("attlas.tasks.glosses", lambda *, count, seed: made)
    tiny = {"GRAPHS": 1, "TRAIN": 20, "TEST": 10, "STEPS": 1, "BATCH": 2, "LENGTH": 6}
    for name, value in tiny.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any("LoRA: step 1 of 1" in line for line in said)
    counts = [values[f"trained, {name}"] for name in claims.ARMS]
    assert max(counts) < 1.01 * min(counts)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert said == ["graphs"]
