"""Mamba as a token mixer, against transformers' mixer with the same weights; both directions by hand."""

import math

import pytest
import torch
from torch import Tensor

from attlas.layers import MIXERS, BiMamba, Mamba, Setting
from attlas.layers.mamba import SelectiveSSM


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def test_it_is_the_mixer_of_transformers():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    layer = shaken(Mamba(24, states=6, rank=3))
    config = MambaConfig(
        hidden_size=24, state_size=6, time_step_rank=3, conv_kernel=4, expand=2, num_hidden_layers=1
    )
    theirs = MambaMixer(config, layer_idx=0).eval()
    ours = layer.state_dict()
    names = {
        "in_proj.weight": "into.weight", "conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias",
        "x_proj.weight": "scan.steer.weight", "dt_proj.weight": "scan.step.weight",
        "dt_proj.bias": "scan.step.bias", "A_log": "scan.log_rate", "D": "scan.skip",
        "out_proj.weight": "out.weight",
    }  # fmt: skip
    theirs.load_state_dict(
        {name: ours[own][:, None] if name == "conv1d.weight" else ours[own] for name, own in names.items()}
    )
    x = torch.randn(2, 19, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_it_starts_as_published():
    scan = SelectiveSSM(400, states=5, rank=4)
    torch.testing.assert_close(-torch.exp(scan.log_rate), -torch.arange(1.0, 6.0).expand(400, -1))
    assert bool((scan.skip == 1).all())
    steps = torch.nn.functional.softplus(scan.step.bias.detach())
    assert float(steps.min()) >= 1e-3 - 1e-6 and float(steps.max()) <= 0.1 + 1e-5
    largest = float(scan.step.weight.detach().abs().max())
    # Log-uniform: half of them below the geometric mean of the ends.
    assert abs(float((steps < math.sqrt(1e-3 * 0.1)).float().mean()) - 0.5) < 0.1
    assert largest <= 0.5 < 1.05 * largest


def test_pieces_and_padding_at_the_end():
    layer = shaken(Mamba(8)).double()
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    whole, state, found = layer(x), layer.start(2), []
    for part in x.split([1, 5, 7], 1):
        y, state = layer.advance(part, state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    assert state.position.tolist() == [13, 13]
    assert state.nbytes == 2 * (16 * 16 + 3 * 16) * 8
    valid = torch.arange(13) < torch.tensor([[13], [6]])
    padded, after = layer.advance(x, layer.start(2), valid=valid)
    torch.testing.assert_close(padded[0], whole[0])
    torch.testing.assert_close(padded[1, :6], whole[1, :6])
    assert bool((padded[1, 6:] == 0).all())
    torch.testing.assert_close(
        layer.advance(x[1:, 6:8], after.index_select(torch.tensor([1])))[0],
        layer.advance(x[1:, 6:8], layer.advance(x[1:, :6], layer.start(1))[1])[0],
    )


def test_both_directions_share_one_rate():
    layer = shaken(BiMamba(8, norm=True)).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    assert layer.back.scan.log_rate is layer.ahead.scan.log_rate
    assert len([name for name, _ in layer.named_parameters() if name.endswith("log_rate")]) == 1

    def direction(block: Mamba, x: Tensor) -> Tensor:
        u, z = block.into(x).chunk(2, -1)
        return block.out(block.scan(block.conv(u))[0] * torch.nn.functional.silu(z))

    normed = layer.norm(x)
    wanted = direction(layer.ahead, normed) + direction(layer.back, normed.flip(1)).flip(1)
    torch.testing.assert_close(layer(x), wanted @ layer.out.weight.mT)
    # Padding on either end is as if it were not there.
    valid = torch.tensor([[True] * 9, [False] * 2 + [True] * 4 + [False] * 3])
    torch.testing.assert_close(layer(x, valid=valid)[1, 2:6], layer(x[1:, 2:6])[0])


def test_the_register_knows_it():
    entry = MIXERS["mamba"]
    assert isinstance(entry.build(Setting(8, 2)), Mamba)
    assert isinstance(entry.build(Setting(8, 2, causal=False)), BiMamba)
    with pytest.raises(ValueError, match="mamba has no CC form.*no queries to another one"):
        entry.build(Setting(8, 2, cross=True))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="channels, states and rank must be at least 1, got 4, 0, 1"):
        SelectiveSSM(4, states=0, rank=1)
    with pytest.raises(ValueError, match=r"log_rate must be \(4, 2\), got \(4, 3\)"):
        SelectiveSSM(4, states=2, rank=1, log_rate=torch.nn.Parameter(torch.zeros(4, 3)))
