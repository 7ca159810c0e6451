"""The rule by which NiNformer's claim is judged, and one seed of it in few steps."""

import pytest

from attlas.catalog.claims import ninformer

GOOD = {}
for name, accuracy in (("NiNformer", 0.95), ("MLP-Mixer", 0.94), ("ViT", 0.92)):
    GOOD |= {f"accuracy, {name}": accuracy, f"training loss, {name}": 0.001, f"parameters, {name}": 24_000.0}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "NiNformer 95.0 ± 0.0, MLP-Mixer 94.0 ± 0.0, ViT 92.0 ± 0.0 (24,000, 24,000, 24,000 p"),
        ({}, "holds", "NiNformer is ahead of MLP-Mixer by +1.0 ± 0.0 points, ViT by +3.0 ± 0.0 points."),
        (
            {"accuracy, ViT": 0.96},
            "does not hold",
            "ahead of MLP-Mixer by +1.0 ± 0.0 points; behind ViT by -1.0",
        ),
        (
            {"training loss, ViT": 0.2},
            "not shown at this scale",
            "Training loss above 0.05: ViT.",
        ),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = ninformer.judge([GOOD | changes] * 5)
    assert verdict.outcome == outcome and text in verdict.measured, verdict


@pytest.mark.parametrize(("shift", "said"), [(0.0, "+1.0 ± 1.6"), (-0.02, "-1.0 ± 1.6")])
def test_a_difference_within_the_spread_is_a_tie(shift, said):
    runs = [GOOD | {"accuracy, NiNformer": 0.95 + shift + move} for move in (-0.02, -0.01, 0, 0.01, 0.02)]
    runs = [run | {"accuracy, ViT": run["accuracy, NiNformer"] - 0.03} for run in runs]
    verdict = ninformer.judge(runs)
    assert verdict.outcome == "not shown at this scale"
    assert f"ahead of ViT by +3.0 ± 0.0 points; tied (within the spread) with MLP-Mixer by {said}" in (
        verdict.measured
    )


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(ninformer, "STEPS", 1)
    monkeypatch.setattr(ninformer, "BATCH", 4)
    said: list[str] = []
    values = ninformer.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(GOOD) and said[0].startswith("NiNformer: step")
    said.clear()
    assert ninformer.measure(1000, long=False, folder=tmp_path, step=said.append) == values and not said
    ninformer.judge([values] * 5)
