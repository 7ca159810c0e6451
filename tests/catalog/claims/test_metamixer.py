"""The rule by which MetaMixer's claim is judged, and one seed of it in few steps."""

import pytest

from attlas.catalog.claims import metamixer

GOOD = {}
for name, accuracy in (("FFNified", 0.97), ("attention", 0.96), ("pooling", 0.95)):
    GOOD |= {f"accuracy, {name} at 8": accuracy, f"moved, {name} at 8": 1e-6}
    GOOD |= {f"parameters, {name} at 8": 48_500.0}
    GOOD |= {f"milliseconds at {side}, {name}": 0.4 if name == "attention" else 0.2 for side in (8, 16)}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        (
            {},
            "holds",
            "FFNified 97.0 ± 0.0, attention 96.0 ± 0.0, pooling 95.0 ± 0.0 (48,500/48,500/48,500 pa",
        ),
        ({}, "holds", "8 x 8 FFNified 0.20, attention 0.40, pooling 0.20; 16 x 16 FFNified 0.20"),
        ({"accuracy, FFNified at 8": 0.95}, "does not hold", "Not met: not behind attention by more than"),
        ({"milliseconds at 16, FFNified": 0.5}, "does not hold", "less CPU time than attention at 16 x 16"),
        ({"moved, pooling at 8": 1e-3}, "does not hold", "fused nets are the nets (logits moved by 1e-03)"),
        (
            {"accuracy, FFNified at 8": 0.5, "accuracy, attention at 8": 0.6},
            "not shown at this scale",
            "No net learned the digits.",
        ),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = metamixer.judge([GOOD | changes] * 3)
    assert verdict.outcome == outcome and text in verdict.measured, verdict


def test_behind_by_less_than_the_spread_is_a_tie():
    runs = [GOOD | {"accuracy, FFNified at 8": value} for value in (0.90, 0.97, 0.98)]
    verdict = metamixer.judge(runs)
    assert verdict.outcome == "not shown at this scale"
    assert verdict.measured.endswith("FFNified less attention: -1.0 ± 4.4 points. Behind by less than the sp"
                                     "read: a tie.")  # fmt: skip


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    small = {"STEPS": 1, "LONG_STEPS": 1, "BATCH": 4, "TRAIN": 8, "TEST": 4, "WIDTH": 8, "BLOCKS": 1}
    small |= {"TIMED_IMAGES": 2, "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(metamixer, name, value)
    said: list[str] = []
    values = metamixer.measure(1000, long=False, folder=tmp_path / "short", step=said.append)
    assert set(values) == set(GOOD) and any(text.startswith("FFNified at 8: step") for text in said)
    assert metamixer.measure(1000, long=False, folder=tmp_path / "short", step=said.append) == values
    metamixer.judge([values] * 3)
    longer = metamixer.measure(1000, long=True, folder=tmp_path / "long", step=said.append)
    assert set(longer) > set(GOOD) and "Accuracy at 16 x 16" in metamixer.judge([longer] * 3).measured
