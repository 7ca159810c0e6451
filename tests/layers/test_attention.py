"""Self-attention as a module, rotary positions, the pre-norm block."""

import pytest
import torch
from torch.nn import functional

from attlas.layers import Block, SelfAttention, rotary
from attlas.models import SmallLM
from attlas.pattern import Tokens, causal, window


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_self_attention_is_projections_around_sdpa(kv_heads):
    torch.manual_seed(0)
    layer = SelfAttention(16, 4, kv_heads=kv_heads, pattern=causal(), bias=True).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    q, k, v = (
        f(x).view(2, 9, h, 4).transpose(1, 2)
        for f, h in ((layer.query, 4), (layer.key, kv_heads), (layer.value, kv_heads))
    )
    wanted = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(layer(x), layer.out(wanted.transpose(1, 2).flatten(2)))


def test_rotary_depends_on_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 8, dtype=torch.float64).unbind(0)
    at = torch.arange(6)
    near = rotary(q, at) @ rotary(k, at).T
    far = rotary(q, at + 100) @ rotary(k, at + 100).T
    torch.testing.assert_close(near, far)
    torch.testing.assert_close(rotary(q, at).norm(dim=-1), q.norm(dim=-1))
    with pytest.raises(ValueError, match="even width, got 3"):
        rotary(torch.ones(2, 3), torch.arange(2))


def test_the_space_of_the_tokens_is_handed_on():
    torch.manual_seed(0)
    layer = Block(16, SelfAttention(16, 2, pattern=causal() & window(3), base=100.0))
    x = torch.randn(1, 8, 16)
    order = torch.tensor([3, 0, 7, 1, 2, 5, 4, 6])
    moved = layer(x[:, order], at=Tokens.at(order, total=8))
    torch.testing.assert_close(moved, layer(x)[:, order], atol=1e-5, rtol=1e-5)


def test_the_small_model_is_causal():
    torch.manual_seed(0)
    model = SmallLM(width=32, heads=2).eval()
    ids = torch.randint(0, 256, (1, 20))
    other = ids.clone()
    other[0, 12:] = 0
    assert torch.equal(model(ids)[:, :12], model(other)[:, :12])
    assert not torch.equal(model(ids)[:, 12:], model(other)[:, 12:])


def test_errors():
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        SelfAttention(10, 4)
    with pytest.raises(ValueError, match="either mixer or pattern"):
        SmallLM(mixer=lambda layer: torch.nn.Identity(), pattern=causal())


def test_interpolated_positions_are_divided():
    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64)
    at = torch.arange(6)
    torch.testing.assert_close(rotary(x, 4 * at, factor=4.0), rotary(x, at))
    wide = SelfAttention(8, 2, pattern=causal(), base=100.0, factor=2.0).double()
    plain = SelfAttention(8, 2, pattern=causal(), base=100.0).double()
    plain.load_state_dict(wide.state_dict())
    even = Tokens.at(2 * at, total=12)
    torch.testing.assert_close(wide(x[None], at=even), plain(x[None]))
    with pytest.raises(ValueError, match="factor must be above 0 .*got 0"):
        rotary(x, at, factor=0.0)
