"""The small encoder-decoders: their residual steps written out, and what their decoder may read."""

import pytest
import torch
from torch import nn

from attlas.layers import SelfAttention
from attlas.models import CrossBlock, EncoderDecoder, NoMixing, Placed, SeriesTransformer
from attlas.pattern import causal


def plain(x):
    """LayerNorm of fresh weights."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


class FirstOf(nn.Module):
    """The first token of the context for every token."""

    def forward(self, x, context):
        return context[:, :1].expand_as(x)


def test_a_cross_block_is_three_residual_steps():
    block = CrossBlock(6, nn.Tanh(), FirstOf(), ratio=2.0)
    x, context = torch.randn(2, 5, 6), torch.randn(2, 3, 6)
    y = x + plain(x).tanh()
    y = y + context[:, :1]
    mlp = block.rest.mlp
    hidden = nn.functional.gelu(plain(y) @ mlp[0].weight.T + mlp[0].bias)
    assert hidden.shape[-1] == 12
    wanted = y + hidden @ mlp[2].weight.T + mlp[2].bias
    assert torch.allclose(block(x, context), wanted, atol=1e-5)


def net(own, cross):
    return EncoderDecoder(
        Placed(nn.Embedding(7, 8), 6, 8), Placed(nn.Embedding(5, 8), 4, 8), nn.Linear(8, 5),
        width=8, encoder=[SelfAttention(8, 2)], decoder=[(own, cross)],
    ).eval()  # fmt: skip


def test_the_decoder_reads_the_whole_source_and_only_earlier_targets():
    model = net(SelfAttention(8, 2, pattern=causal()), SelfAttention(8, 2))
    source, target = torch.randint(0, 7, (1, 6)), torch.randint(0, 5, (1, 4))
    with torch.no_grad():
        base = model(source, target)
        later = target.clone()
        later[0, 2] = (later[0, 2] + 1) % 5
        changed = (model(source, later) - base).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [False, False, True, True]
        end = source.clone()
        end[0, 5] = (end[0, 5] + 1) % 7
        assert ((model(end, target) - base).abs().amax(-1) > 1e-6).all()
        without = net(SelfAttention(8, 2, pattern=causal()), NoMixing())
        assert torch.equal(without(source, target), without(end, target))


def test_the_forecaster_starts_from_the_last_inputs_and_zeros():
    model = SeriesTransformer(
        2, 1, 3, length=6, label=4, width=8, encoder=[NoMixing()], decoder=[(NoMixing(), SelfAttention(8, 2))]
    )
    seen = []
    model.net.target.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    values, marks = torch.randn(2, 6, 2), torch.randn(2, 9, 1)
    assert model(values, marks).shape == (2, 3, 2)
    assert torch.equal(seen[0][:, :4, :2], values[:, 2:]) and not seen[0][:, 4:, :2].any()
    assert torch.equal(seen[0][..., 2:], marks[:, 2:])


def test_errors():
    with pytest.raises(ValueError, match="label must be between 0 and the length, got 7 and 6"):
        SeriesTransformer(1, 1, 3, length=6, label=7, width=8, encoder=[], decoder=[])
    with pytest.raises(ValueError, match="positions were made for 6 tokens, got 7"):
        Placed(nn.Embedding(7, 8), 6, 8)(torch.zeros(1, 7, dtype=torch.int64))
