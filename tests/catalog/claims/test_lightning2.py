"""The rule by which Lightning-2's claim is judged, and one short stream."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import lightning2

GOOD = {
    "ms of an early piece": 10.0,
    "ms of a late piece": 11.0,
    "resident MiB, least": 400.0,
    "resident MiB, largest": 410.0,
    "bytes of the state": 8192.0,
    "difference from one shot": 1e-7,
    "difference from dense at the end": 1e-6,
    "microseconds of a decoded token, early": 100.0,
    "microseconds of a decoded token, late": 100.0,
    "tokens": 2.0**20,
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"ms of a late piece": 15.1}, "late pieces within 1.5 times"),
        ({"microseconds of a decoded token, late": 151.0}, "late tokens within 1.5 times"),
        ({"resident MiB, largest": 421.0}, "memory within 5%"),
        ({"difference from one shot": 2e-5}, "equal to one shot to 1e-05"),
        ({"difference from dense at the end": 2e-5}, "equal to dense at the end to 1e-05"),
    ],
)
def test_each_part_of_the_rule_decides(changes, text):
    verdict = lightning2.judge(
        [GOOD, GOOD, GOOD | changes] if "within" not in str(text) else [GOOD | changes] * 3
    )
    assert verdict.outcome == ("holds" if text is None else "does not hold")
    assert text is None or f"Not met: {text}." in verdict.measured


def test_a_stream(monkeypatch, tmp_path):
    small = {"TOKENS": 4096, "PIECE": 128, "ONE_SHOT": 512, "SEEN": 1024, "HELD": 8, "ROWS": 16, "DECODED": 2}
    for name, value in small.items():
        monkeypatch.setattr(lightning2, name, value)
    # Decays so strong that 1024 keys are all that a row sees.
    monkeypatch.setattr(lightning2, "alibi_by_layer", lambda heads: (0.5, 0.1))
    said: list[str] = []
    found = lightning2.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(found) == set(GOOD) and found["tokens"] == 4096
    assert found["bytes of the state"] == 2 * 32 * 32 * 4
    assert found["difference from one shot"] < 1e-5 and found["difference from dense at the end"] < 1e-5
    assert found["resident MiB, least"] > 10 and said == ["2560 of 4096 tokens"]
