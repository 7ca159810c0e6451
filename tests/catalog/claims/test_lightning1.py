"""The rule by which Lightning's claim is judged, and that one seed gives what it needs."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import lightning1

GOOD = {"longest": 4096.0, "largest difference": 1e-6}
for _length, _factor in ((512, 1.0), (1024, 1.8), (2048, 3.0), (4096, 6.0)):
    GOOD[f"prefill ms, chunks, {_length}"] = 20.0
    GOOD[f"prefill ms, softmax, {_length}"] = 10.0 * _factor
    GOOD[f"prefill ms, tiles, {_length}"] = 12.0 * _factor
for _length, _took in ((2048, 100.0), (4096, 190.0)):
    GOOD |= {f"training ms, chunks, {_length}": 80.0, f"training ms, softmax, {_length}": _took}


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({}, "holds", "Faster than softmax from 2048 tokens on."),
        ({"prefill ms, softmax, 4096": 39.0}, "not shown at this scale", "Softmax hardly grows"),
        ({"prefill ms, chunks, 2048": 9.0}, "does not hold", "Not met: chunks within 2 times from 2048 on."),
        ({"training ms, chunks, 2048": 40.0}, "does not hold", "Not met: with gradients within 2 times."),
        ({"prefill ms, tiles, 512": 30.0}, "does not hold", "Not met: Lightning-1 grows 4 times."),
        ({"training ms, softmax, 4096": 79.0}, "does not hold", "Not met: faster than softmax at the"),
        (
            {"prefill ms, tiles, 4096": 19.0, "prefill ms, tiles, 512": 4.0},
            "does not hold",
            "Not met: faster than Lightning-1 at the longest.",
        ),
        ({"largest difference": 1e-3}, "does not hold", "Not met: the two forms agree."),
    ],
)
def test_each_part_of_the_rule_decides(changes, outcome, text):
    verdict = lightning1.judge([GOOD | changes] * 3)
    assert verdict.outcome == outcome and text in verdict.measured


def test_one_seed(monkeypatch, tmp_path):
    for name, value in {"TOKENS": 64, "SHORTEST": 16, "SETTLED": 32, "TIMES": 1, "TRAINED_TIMES": 1}.items():
        monkeypatch.setattr(lightning1, name, value)
    monkeypatch.setattr(lightning1, "TILE", 8)
    found = lightning1.measure(1000, long=False, folder=tmp_path, step=lambda text: None)
    assert found["largest difference"] < 1e-5 and found["longest"] == 64
    timed = sorted(name for name in found if " ms, " in name)
    assert len(timed) == 3 * 3 + 2 * 2 and all(found[name] > 0 for name in timed)
    assert "training ms, chunks, 64" in found and "prefill ms, tiles, 16" in found
    assert lightning1.measure(1000, long=False, folder=tmp_path, step=lambda text: None) == found
