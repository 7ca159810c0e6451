"""LaMamba-Diff's claim: its rule, and one seed at a tiny size."""

from __future__ import annotations

import pytest

from attlas.catalog.claims import lamamba_diff as claims

ERRORS = {"lamamba": 0.10, "scan": 0.12, "window": 0.13, "full": 0.10}


def runs_with(errors=None, exponent=1.0, noise=(0.0, 0.001, -0.001)):
    errors = ERRORS | (errors or {})
    return [
        {f"error, {name}": one + (shift if name != "lamamba" else 0) for name, one in errors.items()}
        | {f"ms at {side**2} tokens, lamamba": 1.0 for side in claims.TIMED}
        | {f"ms at {side**2} tokens, full": 2.0 for side in claims.TIMED_FULL}
        | {"exponent, lamamba": exponent, "exponent, full": 2.0}
        for shift in noise
    ]


@pytest.mark.parametrize(
    ("runs", "outcome", "text"),
    [
        (runs_with(), "holds", "Above LaMamba's, seed by seed: scan +0.0200 ± 0.0010, window +0.0300"),
        (runs_with({"full": 0.09}), "does not hold", "Not met: within 1.05 of full attention's error."),
        (runs_with({"scan": 0.08}), "does not hold", "Not met: better than scan alone."),
        (runs_with(exponent=1.4), "does not hold", "Not met: time grows with an exponent of at most 1.25."),
        (
            runs_with({"window": 0.1001}),
            "not shown at this scale",
            "The difference to window alone is within the spread of the seeds.",
        ),
        (runs_with({"window": 0.0999}), "not shown at this scale", "full 2.0 ms at 16²"),
    ],
)
def test_each_part_of_the_rule_decides(runs, outcome, text):
    verdict = claims.judge(runs)
    assert verdict.outcome == outcome and text in verdict.measured


def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    tiny = {
        "STEPS": 2,
        "BATCH": 2,
        "TRAIN": 4,
        "TESTED": 4,
        "LEVELS": 2,
        "TIMED": (4, 8),
        "TIMED_FULL": (4, 8),
    }
    for name, value in tiny.items():
        monkeypatch.setattr(claims, name, value)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    wanted = {name for name in runs_with()[0] if not name.startswith("ms at")}
    assert wanted <= set(values) and "ms at 64 tokens, lamamba" in values
    assert any(line.startswith("scan: step 2 of 2") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert said == ["time"], "what is trained already is not trained again"


def test_nets_have_the_same_size():
    sizes = {name: sum(p.numel() for p in claims.network(name, 0).parameters()) for name in claims.NAMES}
    assert max(sizes.values()) - min(sizes.values()) <= claims.LAYERS * (2 * claims.WIDTH + 1), sizes
