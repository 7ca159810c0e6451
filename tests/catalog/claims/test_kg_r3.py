"""KG-R3's claim: its rule, its contexts, and one seed at a tiny size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attlas.catalog.claims import kg_r3 as claims
from skips import needs

MRR = {"graph mask": 0.8, "full attention": 0.75, "one hop": 0.7, "question only": 0.7}


def run_with(mrr=None):
    values = MRR | (mrr or {})
    return {f"MRR, {arm}": values[arm] for arm in claims.ARMS} | {
        f"hits@1, {arm}": 0.5 for arm in claims.ARMS
    }


@pytest.mark.parametrize(
    ("mrr", "outcome", "text"),
    [
        ({}, "holds", "graph mask 0.800 ± 0.000"),
        ({"one hop": 0.9}, "holds", "one hop 0.900"),
        ({"full attention": 0.81}, "does not hold", "graph mask below full attention."),
        ({"question only": 0.76}, "does not hold", "full attention below question only."),
        (
            {"full attention": 0.7},
            "not shown at this scale",
            "Within the spread: full attention over question",
        ),
    ],
)
def test_each_part_of_the_rule_decides(mrr, outcome, text):
    verdict = claims.judge([run_with(mrr)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@needs("pykeen")
def test_the_triple_that_is_asked_for_is_not_in_its_context():
    from attlas.tasks.knowledge_graphs import knowledge_graph

    data = knowledge_graph("nations")
    for arm in ("graph mask", "one hop"):
        asked = claims.asked(arm, data, data.train[:60], 3, hidden=True)
        for context, (source, kind, answer) in zip(asked.contexts, asked.questions.tolist(), strict=True):
            back = kind >= len(data.relations)
            own = (answer, kind - len(data.relations), source) if back else (source, kind, answer)
            heads, tails = (context.entities[places] for places in (context.heads, context.tails))
            seen = torch.stack([heads, context.relations, tails], 1).tolist()
            assert context.entities[0] == source and list(own) not in seen
            assert 0 < len(seen) <= claims.EDGES
    alone = claims.asked("question only", data, data.test[:5], 3, hidden=False)
    assert all(len(context.entities) == 1 for context in alone.contexts)


@needs("pykeen")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    from attlas.tasks import knowledge_graphs

    whole = knowledge_graphs.knowledge_graph("nations")
    part = replace(whole, train=whole.train[:160], test=whole.test[:20])
    monkeypatch.setattr(knowledge_graphs, "knowledge_graph", lambda name: part)
    for name, value in {"EPOCHS": 1, "BATCH": 80, "WIDTH": 8, "INNER": 8, "HEADS": 2, "LAYERS": 1}.items():
        monkeypatch.setattr(claims, name, value)
    monkeypatch.setattr(claims, "EDGES", 3)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("one hop: step 4 of 4") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
