"""The virtual node's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import mpnn_vn as claims
from skips import needs

GOOD = {
    "error of A": 1e-15, "error of C": 1e-15, "margin": 0.1,
    "error of C at 2": 1e-3, "error of C at 4": 5e-5, "error of C at 8": 1e-6, "error of C at 16": 3e-10,
    "two cliques, GIN": 0.25, "two cliques, GIN + VN": 1.0, "two cliques, dense attention": 0.5,
    "solubility, GIN": 0.55, "solubility, GIN + VN": 0.54,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "GIN + VN 1.000 ± 0.000"),
        ({"error of A": 1e-11}, "does not hold", "Not met: A to 1e-12."),
        ({"error of C": 1e-9}, "does not hold", "Not met: C to 1e-10."),
        ({"error of C at 16": 1e-7}, "does not hold", "falls exponentially as the selector cools."),
        ({"two cliques, GIN + VN": 0.8}, "does not hold", "Not met: two cliques: GIN + VN at least 0.9."),
        ({"two cliques, GIN": 0.5}, "does not hold", "without a virtual node sees the far clique"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([GOOD | changed] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


@needs("datamol")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny = {"CLIQUE_STEPS": 2, "CLIQUE_GRAPHS": 4, "CLIQUE_TESTED": 4, "MOLECULE_STEPS": 2, "MOLECULES": 8}
    for name, value in (tiny | {"SIZES": (5, 3)}).items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(GOOD) and values["error of A"] < 1e-12 and values["error of C"] < 1e-10
    assert any(line.startswith("solubility, GIN + VN: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
