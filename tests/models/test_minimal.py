"""The minimal transformer as a model: its parts, its counts and what the published counts amount to."""

from __future__ import annotations

import pytest
import torch

from attlas.models import MINIMALS, MinimalViT, layer_parameters, overdetermination


def made(name, *, width=8, layers=2, heads=1):
    return MinimalViT(
        lambda index: MINIMALS[name].layer(width, heads),
        side=4,
        patch=2,
        classes=3,
        width=width,
        layers=layers,
    )


@pytest.mark.parametrize("name", MINIMALS)
def test_every_form_answers_and_learns_all_its_weights(name):
    torch.manual_seed(0)
    net = made(name)
    out = net(torch.randn(5, 1, 4, 4))
    assert out.shape == (5, 3)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_parameters_are_counted_by_part():
    n, layers = 8, 2
    wanted = {
        "full": layer_parameters(n, ratio=4),
        "noMLP": layer_parameters(n),
        "noMLP+symmetric": 3 * n**2,
        "noMLP+Wqk": 3 * n**2,
        "noMLP+Wqk+noVO": n**2,
    }
    for name, each in wanted.items():
        found = made(name).parameters_by_part()
        assert found["layers"] == layers * each
        # Patches of 4 pixels with a bias and 4 places, and a head with a bias.
        assert found["patches"] == 4 * n + n + 4 * n and found["head"] == 3 * n + 3
        assert found["norms"] == 2 * n * (1 + layers * (2 if name == "full" else 1))
        assert found["total"] == sum(found[key] for key in ("layers", "patches", "head", "norms"))


def test_the_published_counts_are_of_no_whole_width():
    """6 and 12 layers differ by 6 of them: 45,926 with an MLP and 16,105 without, by no count given."""
    with_mlp, without = (563_242 - 287_686) / 6, (198_100 - 101_470) / 6
    assert (with_mlp, without) == (45_926, 16_105)
    widths = range(1, 400)
    assert without not in [layer_parameters(width) for width in widths]
    assert with_mlp not in [layer_parameters(width, ratio=h) for width in widths for h in range(9)]
    # Nor with biases and up to two LayerNorms, each of a gain and an offset.
    assert without not in [
        layer_parameters(width) + biases * width + norms * 2 * width
        for width in widths
        for biases in (0, 1, 3, 4)
        for norms in (0, 1, 2)
    ]


def test_overdetermination_is_the_ratio_of_the_paper():
    assert overdetermination(60_000, 10, 287_686) == pytest.approx(2.0856, abs=1e-4)
    with pytest.raises(ValueError, match="overdetermination: parameters must be at least 1, got 0"):
        overdetermination(1, 1, 0)


def test_one_headed_parts_refuse_more():
    with pytest.raises(ValueError, match="OneMap has one head, got heads=4"):
        made("noMLP+Wqk", heads=4)
    assert made("noMLP+symmetric", heads=4)(torch.randn(1, 1, 4, 4)).shape == (1, 3)
