"""CAB's claim: its rule, its nets, and one seed at a tiny size."""

import random

import pytest
import torch

from attlas.catalog import mini_cab
from attlas.catalog.claims import cab as claims
from attlas.layers import MIXERS
from skips import needs

BASE = {"vanilla": 1.0, "local": 1.1, "abc": 1.2, "performer": 1.3, "none": 1.4}


def run_with(changes=None):
    """All metrics fall with rank: vanilla is best everywhere, unless a (task, attention) is changed."""
    values = {}
    for task, attention in claims.arms():
        for metric, name in claims.names(task, attention):
            one = (changes or {}).get((task, attention), BASE[attention])
            values[name] = -one if metric == "accuracy" else one
    return values


SWAPPED = {("next byte", "abc"): 0.5}


@pytest.mark.parametrize(
    ("runs", "outcome", "text"),
    [
        (
            [{}] * 3,
            "does not hold",
            "spread of the seeds: no pair. Better without attention, beyond it: no task.",
        ),
        ([SWAPPED] * 3, "not shown at this scale", "vanilla above abc in NS, below in CS"),
        ([SWAPPED, SWAPPED, {}], "not shown at this scale", "The means hint at it, within the spread."),
        ([SWAPPED | {("sets", "none"): 0.9}] * 3, "holds", "beyond it: sets."),
        ([SWAPPED | {("digits", "none"): 0.9}] * 3, "holds", "beyond it: digits."),
        (
            [{("sets", "none"): one} for one in (0.85, 0.9, 0.95)],
            "not shown at this scale",
            "within the spread. Compositional",
        ),
        ([{("sets", "none"): 0.9}] * 3, "not shown at this scale", "Only a part is seen."),
    ],
)
def test_each_part_of_the_rule_decides(runs, outcome, text):
    verdict = claims.judge([run_with(changes) for changes in runs])
    assert verdict.outcome == outcome and text in verdict.measured


def test_noise_alone_seldom_meets_a_part_of_the_rule():
    # Every value of every arm from one distribution: no attention differs from another anywhere.
    draws = random.Random(0)
    trials, by_pairs, by_tasks = 400, 0, 0
    for _ in range(trials):
        runs = [{name: draws.gauss(0, 1) for name in run_with()} for _ in range(3)]
        by_pairs += bool(claims.swapped([claims.indices(run) for run in runs]))
        by_tasks += bool(claims.better_without(runs))
    assert 0 < by_pairs / trials < 0.05
    assert 0 < by_tasks / trials < 0.05


def test_one_seed_shows_nothing():
    run = run_with(SWAPPED | {("sets", "none"): 0.9})
    assert not claims.swapped([claims.indices(run)]) and not claims.better_without([run])
    assert "no pair" in claims.judge([run]).measured


def test_efficiency_lengths_are_told_where_costs_were_measured():
    run = run_with()
    for n in claims.TIMED:
        for unit in ("ms", "MB"):
            run |= {f"{unit}, {name}, {n}": float(n) for name in mini_cab.ATTENTIONS[1:]}
            run[f"{unit}, vanilla, {n}"] = n * n / 1000
    assert "abc 1000 (time)" in claims.judge([run] * 3).measured
    for n in claims.TIMED:
        run |= {f"ms, abc, {n}": 1e-3, f"ms, vanilla, {n}": 2.0 + n * n}
    assert "abc always cheaper (time)" in claims.judge([run] * 3).measured
    assert "Efficiency" not in claims.judge([run_with()] * 3).measured


def test_support_is_that_of_the_registered_mixers():
    for form, attentions in mini_cab.SUPPORT.items():
        for name in ("abc", "performer"):
            assert (name in attentions) == (form in MIXERS[name].forms)
    with pytest.raises(ValueError, match="performer has no CS form in CAB; vanilla, local, abc have one"):
        mini_cab.mixer("performer", "CS")


def test_windows_of_local_attention():
    x = torch.randn(1, 40, 48)
    for form, seen in (("NS", range(5, 36)), ("CS", range(6, 21))):
        layer = mini_cab.mixer("local", form).eval()
        with torch.no_grad():
            base = layer(x)[0, 20]
            changed = []
            for place in range(40):
                other = x.clone()
                other[0, place] += 1
                if not torch.allclose(layer(other)[0, 20], base, atol=1e-6):
                    changed.append(place)
        assert changed == list(seen)


@needs("statsmodels")
def test_a_seed_is_measured_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STEPS", dict.fromkeys(claims.STEPS, 1))
    monkeypatch.setattr(mini_cab, "TESTED", 4)
    said: list[str] = []
    values = claims.measure(1000, long=False, folder=tmp_path, step=said.append)
    assert set(values) == set(run_with())
    assert any(line.startswith("sets, none: step 1 of 1") for line in said)
    said.clear()
    assert claims.measure(1000, long=False, folder=tmp_path, step=said.append) == values
    assert not said, "what is trained already is not trained again"
    claims.judge([values] * 3)


def test_nets_without_attention_keep_tokens_apart():
    task = mini_cab.TASKS["masked bytes"]("vanilla")
    net = task.make(lambda: mini_cab.mixer("none", "NS")).eval()
    inputs, _ = next(task.batches(0))
    other = inputs.clone()
    other[:, 0] = (other[:, 0] + 1) % 256
    changed = (net(inputs) != net(other)).any(-1).any(0)
    assert changed[0] and not changed[1:].any()
