"""GIN attention against its sheet written out head by head, over dense maps in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.attend import Softmax, SoftThreshold
from attlas.layers import GINAttention
from attlas.layers.gin_attention import lambda_init
from attlas.pattern import causal, window


def made(**options):
    """A layer in float64 whose parameters are all off their starting values."""
    torch.manual_seed(0)
    layer = GINAttention(12, 3, **options).double().eval()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return layer


def mlp_of(layer, head, x):
    """The head's MLP step by step."""
    mlp = layer.mlp
    x = functional.linear(x, mlp.enter[head].T, mlp.enter_bias[head, 0])
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mlp.scale[head, 0]
    return functional.linear(x / (1 + torch.exp(-x)), mlp.leave[head].T, mlp.leave_bias[head, 0])


def by_the_sheet(layer, x, mask, *, t=lambda a: a, tau=1.0, constant=0.0):
    def softmax_map(query, key):
        alpha = 1.0 if layer.sharpness is None else layer.sharpness
        logits = alpha * query @ key.transpose(1, 2) / (tau * math.sqrt(4))
        return logits.masked_fill(~mask, -math.inf).softmax(-1)

    heads = []
    for h in range(3):
        cut = slice(4 * h, 4 * h + 4)
        query, key = (make(x).split(12, -1) for make in (layer.query, layer.key))
        a = softmax_map(query[0][..., cut], key[0][..., cut])
        if layer.amount is not None:
            a = a - layer.amount * softmax_map(query[1][..., cut], key[1][..., cut])
        a = t(a) * mask
        own = x[..., cut]
        heads.append(mlp_of(layer, h, (constant + layer.eps[h]) * own + a @ own))
    return layer.out(torch.cat(heads, -1))


def relu(a):
    return (a - 0.1).clamp_min(0)


CASES = {
    "paper": ({}, {}),
    "classic": ({"own": "1 + eps"}, {"constant": 1.0}),
    "temperature, no sharpening, W_O": ({"temperature": 2.0, "sharpen": False, "out": True}, {"tau": 2.0}),
    "threshold": ({"threshold": SoftThreshold(0.1)}, {"t": relu}),
    "two maps": ({"layer": 2}, {}),
    "two maps, threshold": ({"layer": 1, "threshold": SoftThreshold(0.1)}, {"t": relu}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern", [None, causal(), causal() & window(5)], ids=str)
def test_it_is_the_sheet(name, pattern):
    options, formula = CASES[name]
    layer, x = made(pattern=pattern, **options), torch.randn(2, 19, 12, dtype=torch.float64)
    mask = torch.ones(19, 19, dtype=torch.bool)
    if pattern is not None:
        mask = mask.tril() if pattern == causal() else mask.tril().triu(-4)
    found, wanted = layer(x), by_the_sheet(layer, x, mask, **formula)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    names, weights = zip(*layer.named_parameters(), strict=True)
    probe = torch.randn_like(found)
    mine, theirs = (torch.autograd.grad((out * probe).sum(), weights) for out in (found, wanted))
    for name, one, other in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_defaults_are_the_papers():
    layer = GINAttention(560, 8)
    assert layer.mlp.enter.shape == (8, 70, 35)  # c = 0.5 of 70
    assert not layer.eps.any() and layer.sharpness.item() == 1.0 and isinstance(layer.out, nn.Identity)
    assert layer.mlp.dropout == 0.1
    assert [round(lambda_init(layer), 3) for layer in (1, 2, 6)] == [0.2, 0.356, 0.666]
    assert GINAttention(8, 2, layer=1).amount.item() == pytest.approx(0.2)


def test_a_threshold_that_is_a_parameter_is_learned_with_the_layer():
    theta = nn.Parameter(torch.tensor(0.1))
    layer = GINAttention(8, 2, pattern=causal(), threshold=SoftThreshold(theta, "softplus", sharpness=10.0))
    assert layer.theta is theta and "theta" in dict(layer.named_parameters())
    layer(torch.randn(1, 6, 8)).sum().backward()
    assert theta.grad is not None and theta.grad.abs() > 0


def test_padding_that_is_not_a_number_reaches_no_token():
    layer, x = made(pattern=causal()), torch.randn(2, 9, 12, dtype=torch.float64)
    valid = torch.arange(9) < torch.tensor([[9], [5]])
    hurt = torch.where(valid[..., None], x, torch.nan)
    torch.testing.assert_close(layer(hurt, valid=valid)[valid], layer(x, valid=valid)[valid], rtol=0, atol=0)


def test_decoding_in_pieces_with_a_threshold_and_two_maps():
    layer = made(pattern=causal(), threshold=SoftThreshold(0.1, "silu"), layer=3, base=100.0)
    x = torch.randn(2, 70, 12, dtype=torch.float64)
    state, rows = layer.start(2), []
    for piece in x.split([1, 30, 39], 1):
        y, state = layer.advance(piece, state)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), layer(x), rtol=1e-9, atol=1e-9)
    assert state["key"].shape == (2, 3, 70, 8) and state["value"].shape == (2, 3, 70, 4)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="GINAttention: width must be a multiple of heads, got 10 and 3"):
        GINAttention(10, 3)
    with pytest.raises(ValueError, match="GINAttention: heads must be at least 1, got 0"):
        GINAttention(8, 0)
    with pytest.raises(ValueError, match="GINAttention: ratio must be above 0, got -1"):
        GINAttention(8, 2, ratio=-1)
    with pytest.raises(ValueError, match="GINAttention: dropout must be a share from 0 to 1, got 3"):
        GINAttention(8, 2, dropout=3)
    layer = GINAttention(8, 2, pattern=causal())
    with pytest.raises(ValueError, match=r"GINAttention: x must have .* got shape \(0, 3, 8\)"):
        layer.advance(torch.zeros(0, 3, 8), layer.start(0))
    with pytest.raises(ValueError, match="own must be 'eps' or '1 \\+ eps', got 'one'"):
        GINAttention(8, 2, own="one")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        GINAttention(8, 2, temperature=0.0)
    with pytest.raises(ValueError, match="layer counts from 1, got 0"):
        GINAttention(8, 2, layer=0)
    with pytest.raises(ValueError, match="x must have at least one batch row and one token"):
        GINAttention(8, 2)(torch.zeros(1, 0, 8))
    layer = GINAttention(8, 2, threshold=Softmax() >> SoftThreshold())
    with pytest.raises(ValueError, match="goes on piece by piece with a causal pattern only"):
        layer.advance(torch.zeros(1, 1, 8), layer.start(1))
