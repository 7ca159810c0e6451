"""GT's claim: its rule, and one seed at a tiny size."""

import pytest

from attlas import tasks
from attlas.catalog.claims import gt as claims
from skips import needs

ACCURACY = {"sparse": 0.65, "full": 0.56, "full with marked edges": 0.6, "sparse without positions": 0.58}
MOLECULES = {
    "MAE with bonds": 0.9,
    "MAE without bonds": 1.0,
    "gain of bonds": 0.1,
    "standard error of the gain": 0.03,
}


def run_with(**changed):
    values = {f"accuracy, {arm}": one for arm, one in ACCURACY.items()} | MOLECULES
    return values | {
        name.replace("_", " ").replace("accuracy ", "accuracy, "): one for name, one in changed.items()
    }


@pytest.mark.parametrize(
    ("changed", "outcome", "text"),
    [
        ({}, "holds", "sparse over full +0.090 ± 0.000"),
        ({"accuracy_full": 0.66}, "does not hold", "Reversed: sparse over full."),
        ({"accuracy_sparse_without_positions": 0.7}, "does not hold", "Reversed: positions."),
        ({"gain_of_bonds": -0.05}, "does not hold", "Reversed: bonds."),
        ({"gain_of_bonds": 0.02}, "not shown at this scale", "Within the spread: bonds."),
        ({"accuracy_sparse": 0.54}, "not shown at this scale", "The sparse net does not learn"),
        ({"accuracy_full_with_marked_edges": 0.9}, "holds", "full with marked edges 90.0%"),
    ],
)
def test_each_part_of_the_rule_decides(changed, outcome, text):
    verdict = claims.judge([run_with(**changed)] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_the_spread_of_the_seeds_counts():
    runs = [run_with(accuracy_full=0.65 + step) for step in (-0.15, 0.0, 0.12)]
    verdict = claims.judge(runs)
    assert (
        verdict.outcome == "not shown at this scale"
        and "Within the spread: sparse over full." in verdict.measured
    )


@needs("datamol")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    for name, value in {"STEPS": 1, "BATCH": 2, "TRAIN": 3, "TEST": 2, "MOLECULES": 8, "EPOCHS": 1}.items():
        monkeypatch.setattr(claims, name, value)
    few = tuple(part[:9] for part in tasks.solubility())
    monkeypatch.setattr(tasks, "solubility", lambda: few)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
