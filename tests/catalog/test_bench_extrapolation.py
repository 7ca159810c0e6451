"""The comparison of length extrapolation at tiny settings: rows, resuming, mixers of the user's own."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from attlas._common.errors import UsageError
from attlas.attend import Sigmoid
from attlas.catalog.bench import extrapolation as module
from attlas.catalog.bench.extrapolation import bench_extrapolation, summary
from attlas.catalog.bench.extrapolation_arms import ARMS, entry_of
from attlas.catalog.bench.extrapolation_settings import ExtrapolationSettings
from attlas.layers import Setting, check_mixer


def settings(*mixers, **given):
    usual = {"seeds": 1, "steps": 1, "lengths": (8, 16), "windows": 2}
    return ExtrapolationSettings(mixers=mixers or ("softmax",), **usual | given)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "WIDTH", 16)
    monkeypatch.setattr(module, "LAYERS", 1)


@pytest.mark.parametrize("name", ["sigmoid_bare", "lssar15", "softmax_reweighted"])
def test_every_arm_that_is_no_registered_mixer_is_a_causal_mixer_that_keeps_the_contract(name):
    entry = entry_of(name, 128)
    assert not check_mixer(entry, checks=("shape", "future"))


def test_arms_have_equal_projections_and_the_sigmoid_s_bias_stays_that_of_training():
    sizes = {}
    for name in ARMS:
        mixer = entry_of(name, 128).build(Setting(16, 2, length=2048))
        sizes[name] = sum(weight.numel() for weight in mixer.parameters())
        if "sigmoid" in name:
            assert isinstance(mixer.normaliser, Sigmoid) and mixer.normaliser.bias == -math.log(128)
    # The gate is one more map of the width, the norms of queries and keys a scale for each channel.
    assert sizes.pop("gated") == 5 * 16 * 16 and sizes.pop("flashsigmoid") == 4 * 16 * 16 + 2 * 8
    assert set(sizes.values()) == {4 * 16 * 16}


def test_the_result_holds_every_mixer_with_its_sinks(tmp_path):
    asked = settings("softmax", "lssar15", "based_linear", "base_conv_long")
    result = bench_extrapolation(asked, out=tmp_path, command=asked.command())
    assert json.loads((tmp_path / "extrapolation.json").read_text()) == json.loads(json.dumps(result))
    assert (result["schema"], result["version"]) == ("attlas.extrapolation", 1)
    assert [row["mixer"] for row in result["rows"]] == list(asked.mixers)
    softmax, powers, scanned, conv = result["rows"]
    for row in (softmax, powers):
        assert len(row["losses"]) == 2 and all(
            4 < at["mean"] < 7 and at["sd"] is None for at in row["losses"]
        )
        for at in row["sinks"]:
            assert 0 <= at["strength"]["mean"] <= 1 and 0 < at["first_share"]["mean"] < 1
    assert scanned["sinks"] is None and scanned["losses"][1]["mean"] > 0
    assert conv["losses"][1]["mean"] > 0 and conv["sinks"] is None
    rise = softmax["losses"][1]["mean"] - softmax["losses"][0]["mean"]
    assert softmax["rise"]["mean"] == pytest.approx(rise)
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_comparison_goes_on_also_with_more(tmp_path, monkeypatch):
    begun = []
    fit = module.fit

    def counted(*given, **named):
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return fit(*given, **named)

    monkeypatch.setattr(module, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        bench_extrapolation(settings(seeds=2), out=tmp_path)
    result = bench_extrapolation(settings("softmax", "flashsigmoid", seeds=2), out=tmp_path)
    assert len(begun) == 2 + 1 + 2
    assert [run["seed"] for run in result["rows"][0]["runs"]] == [0, 1]
    bench_extrapolation(settings(), out=tmp_path)
    assert len(begun) == 6, "a finished comparison is measured again"


def test_a_seed_is_repeatable(tmp_path):
    first, again = (bench_extrapolation(settings(), out=tmp_path / name)["rows"][0]["runs"] for name in "ab")
    assert first == again


def test_a_mixer_of_the_user_takes_part_or_is_refused(mine, tmp_path):
    result = bench_extrapolation(settings(f"{mine}:Mean"), out=tmp_path)
    (row,) = result["rows"]
    assert row["losses"][1]["mean"] > 0 and row["sinks"] is None
    with pytest.raises(UsageError, match="breaks the contract of mixers, its figures would mislead"):
        bench_extrapolation(settings(f"{mine}:Leaky"), out=tmp_path)
    late = settings(f"{mine}:Late", lengths=(150, 300))
    with pytest.raises(UsageError, match="breaks the contract of mixers at 150 tokens"):
        bench_extrapolation(late, out=tmp_path)


def test_a_mixer_that_fails_at_a_length_is_told(mine, tmp_path):
    """It is right at 100 tokens and cannot go beyond 140."""
    result = bench_extrapolation(settings(f"{mine}:Fails", lengths=(100, 200)), out=tmp_path)
    assert result["rows"][0]["absent"] == f"{mine}:Fails raised RuntimeError: too long"


def test_diverged_seeds_are_left_out_of_the_mean():
    sinks = [{"first_share": 0.2, "strength": 0.0}, {"first_share": 0.4, "strength": 1.0}]
    runs = [
        {"seed": 0, "losses": [2.0, 3.0], "sinks": sinks},
        {"seed": 1, "diverged": "x"},
        {"seed": 2, "losses": [2.5, 3.0], "sinks": sinks},
    ]
    found = summary(runs, (8, 16))
    assert found["diverged"] == 1 and found["losses"][0]["mean"] == pytest.approx(2.25)
    assert found["losses"][0]["sd"] == pytest.approx(statistics.stdev([2.0, 2.5]))
    assert found["rise"]["mean"] == pytest.approx(0.75)
    assert found["sinks"][1]["first_share"]["mean"] == pytest.approx(0.4)
    assert summary(runs[1:2], (8, 16))["rise"] == {"mean": None, "sd": None}


def test_a_loss_that_is_no_number_is_a_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "losses_at_lengths", lambda *given, **named: {8: 2.0, 16: math.nan})
    result = bench_extrapolation(settings(), out=tmp_path)
    assert result["rows"][0]["runs"] == [{"seed": 0, "diverged": "the loss at 16 tokens is nan"}]
    assert result["rows"][0]["diverged"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mixers": ()}, "give at least one of mixers"),
        ({"mixers": ("lssa", "lssa")}, "mixers must differ, got lssa, lssa"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"windows": 0}, "windows must be at least 1, got 0"),
        ({"lengths": (128,)}, "lengths must be two or more that ascend, .*, got 128"),
        ({"lengths": (128, 64)}, "lengths must be two or more that ascend, .*, got 128,64"),
        ({"lengths": (1, 64)}, "the first to train at .at least 2., got 1,64"),
    ],
)
def test_settings_that_cannot_work(given, said):
    with pytest.raises(UsageError, match=said):
        ExtrapolationSettings(**given)


def test_names_and_lengths_that_are_not_there(tmp_path):
    with pytest.raises(
        UsageError, match=r"got 'soft'; this comparison also has flashsigmoid, gated, lssar15"
    ):
        bench_extrapolation(settings("soft"), out=tmp_path)
    with pytest.raises(UsageError, match=r"lengths: a context of 70000 bytes and its last target do not fit"):
        bench_extrapolation(settings(lengths=(8, 70_000)), out=tmp_path)
    with pytest.raises(UsageError, match="lengths: windows of 900001 bytes do not fit"):
        bench_extrapolation(settings(lengths=(900_000, 900_001)), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_not_as_by_default():
    assert ExtrapolationSettings().command() == "attlas bench extrapolation"
    assert settings("softmax", "x:Y").command() == (
        "attlas bench extrapolation --mixer softmax --mixer x:Y --seeds 1 --steps 1 --lengths 8,16 "
        "--windows 2"
    )
    assert ExtrapolationSettings().mixers == (
        *("softmax", "flashsigmoid", "sigmoid_bare", "lssa", "lssar3", "lssar15", "gated"),
    )
