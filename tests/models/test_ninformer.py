"""NiNformer's published size, and the small nets of equal size."""

import pytest
import torch

from attlas.layers import MixerBlock, NiNBlock, SelfAttention
from attlas.models import PatchNet, count_parameters, small_ninformer
from attlas.models.ninformer import ARMS
from attlas.tasks import digits_on_canvas
from attlas.train import Recipe, fit, label_loss


def test_the_official_configuration_has_the_official_size():
    with torch.device("meta"):
        assert count_parameters(PatchNet.ninformer()) == 2_652_170


def test_images_to_logits_by_mean_without_positions():
    net = PatchNet.ninformer(side=12, patch=4, width=8, hidden=10, layers=2, classes=7).eval()
    images = torch.randn(2, 3, 12, 12)
    tokens = torch.stack(
        [
            torch.einsum("oirc,birc->bo", net.cut.weight, images[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4])
            for y in range(3)
            for x in range(3)
        ],
        1,
    )
    tokens = tokens + net.cut.bias
    for block in net.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(net(images), net.head(tokens.mean(1)), rtol=1e-5, atol=1e-5)
    assert {type(block) for block in net.blocks} == {NiNBlock}


def test_small_nets_are_of_equal_size():
    sizes = {arm: count_parameters(small_ninformer(arm)) for arm in ARMS}
    # One more hidden unit in both layers of MLP-Mixer: 2 (33 + 65).
    assert max(sizes.values()) - min(sizes.values()) <= 98, sizes
    kinds = {"ninformer": NiNBlock, "mlp_mixer": MixerBlock, "vit": SelfAttention}
    for arm, kind in kinds.items():
        found = [part for part in small_ninformer(arm).modules() if isinstance(part, kind)]
        assert len(found) == 2


@pytest.mark.parametrize("arm", ARMS)
def test_small_nets_learn(arm):
    train, _ = digits_on_canvas(8, step=None, train=200, test=10, seed=0)
    net = small_ninformer(arm, width=16)
    losses = fit(net, train.batches(32, 0), label_loss, Recipe(steps=60, learning_rate=5e-3))
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]


def test_errors():
    with pytest.raises(ValueError, match="arm must be one of ninformer, mlp_mixer, vit, got 'mlp'"):
        small_ninformer("mlp")
    with pytest.raises(ValueError, match="side must be a multiple of patch, got 30 and 4"):
        PatchNet.ninformer(side=30)
    with pytest.raises(ValueError, match=r"images must be 8 x 8 pixels.*got 10 x 8; resize"):
        small_ninformer()(torch.randn(1, 1, 10, 8))


def test_images_of_other_channels() -> None:
    net = PatchNet.ninformer(side=8, width=8, hidden=8, layers=1)
    with pytest.raises(ValueError, match="PatchNet: images must have 3 channels, got 1; make the net with"):
        net(torch.zeros(2, 1, 8, 8))
