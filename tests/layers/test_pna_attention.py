"""PNA attention against loops over each token's neighbours, and what the released code gives in its place."""

import math

import pytest
import torch
from torch.nn import functional

from attlas.attend import Softmax, SoftThreshold
from attlas.layers import PNAAttention, pna_aggregates
from attlas.pattern import Tokens, causal, window

MAPS = {
    "softmax": (None, lambda s: s.softmax(-1)),
    "relu": (SoftThreshold(0.0), lambda s: s.clamp_min(0)),
    "threshold": (Softmax() >> SoftThreshold(0.3), lambda s: (s.softmax(-1) - 0.3).clamp_min(0)),
    "silu": (
        Softmax() >> SoftThreshold(0.3, "silu"),
        lambda s: torch.where(s == -math.inf, 0.0, functional.silu(s.softmax(-1) - 0.3)),
    ),
}


def aggregates(a, value):
    """The sheet, token by token."""
    found = torch.zeros(*a.shape[:3], 4 * value.shape[-1], dtype=torch.float64)
    for b in range(a.shape[0]):
        for h in range(a.shape[1]):
            for i in range(a.shape[2]):
                row, x = a[b, h, i], value[b, h]
                total = (row[:, None] * x).sum(0)
                degree = row.sum() if row.sum() != 0 else 1.0
                near = x[row > 0]
                largest = near.amax(0) if len(near) else torch.zeros_like(x[0])
                square = (row[:, None] * x**2).sum(0) / degree
                spread = (square - (total / degree) ** 2).clamp_min(0)
                found[b, h, i] = torch.cat([total, total / degree, largest, spread])
    return found


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("pattern", [None, causal(), causal() & window(4)], ids=str)
def test_aggregates_are_those_of_the_neighbours(name, pattern):
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, 2, 21, 3, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(21, 21, dtype=torch.bool)
    if pattern is not None:
        mask = mask.tril() if pattern == causal() else mask.tril().triu(-3)
    chain, formula = MAPS[name]
    scores = (query @ key.transpose(-1, -2) / 3**0.5).masked_fill(~mask, -math.inf)
    found = pna_aggregates(query, key, value, pattern=pattern, normaliser=chain)
    # silu gives weights of either sign, whose sum may come near 0 and is a divisor.
    bound = 1e-9 if name != "silu" else 1e-6
    torch.testing.assert_close(found, aggregates(formula(scores), value), rtol=bound, atol=bound)
    if name == "softmax":
        torch.testing.assert_close(found[..., :3], found[..., 3:6])  # deg = 1: sum = mean


@pytest.mark.parametrize(("queries", "keys", "start"), [(9, 5, 0), (4, 6, 3), (5, 9, 0), (3, 6, 20)])
def test_queries_before_and_behind_the_keys(queries, keys, start):
    torch.manual_seed(7)
    query = torch.randn(1, 2, queries, 3, dtype=torch.float64)
    key, value = (torch.randn(1, 2, keys, 3, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(keys) <= torch.arange(start, start + queries)[:, None]
    scores = (query @ key.mT / 3**0.5).masked_fill(~mask, -math.inf)
    space = Tokens(queries, start=start)
    found = pna_aggregates(query, key, value, pattern=causal(), q_at=space, k_at=Tokens(keys))
    torch.testing.assert_close(found, aggregates(scores.softmax(-1), value), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="PNAAttention: heads must be at least 1, got 0"):
        PNAAttention(8, 0)
    with pytest.raises(ValueError, match="PNAAttention: ratio must be above 0, got -1"):
        PNAAttention(8, 2, ratio=-1)
    with pytest.raises(ValueError, match="key must hold at least one token, got shape \\(1, 2, 0, 4\\)"):
        pna_aggregates(*(torch.zeros(1, 2, 0, 4) for _ in range(3)))


def test_the_layer_is_the_sheet():
    torch.manual_seed(2)
    layer = PNAAttention(12, 3, pattern=causal(), normaliser=Softmax() >> SoftThreshold(0.2)).double()
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    query, key, value = (
        make(x).view(2, 11, 3, 4).transpose(1, 2) for make in (layer.query, layer.key, layer.value)
    )
    scores = query @ key.transpose(-1, -2) / 2
    scores = scores.masked_fill(~torch.ones(11, 11, dtype=torch.bool).tril(), -math.inf)
    found = aggregates((scores.softmax(-1) - 0.2).clamp_min(0), value)
    mlp = layer.mlp
    heads = [
        functional.linear(
            functional.silu(functional.linear(found[:, h], mlp.enter[h].T, mlp.enter_bias[h, 0])),
            mlp.leave[h].T,
            mlp.leave_bias[h, 0],
        )
        for h in range(3)
    ]
    assert mlp.enter.shape == (3, 16, 2)  # 4 D -> 0.5 D
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)), rtol=1e-9, atol=1e-9)


def test_the_released_maximum_is_the_receivers_own_value():
    torch.manual_seed(3)
    query, key, value = (2 * torch.randn(1, 2, 30, 4, dtype=torch.float64) for _ in range(3))
    options = {"pattern": causal(), "normaliser": Softmax() >> SoftThreshold(0.6)}
    paper = pna_aggregates(query, key, value, **options)[..., 8:12]
    released = pna_aggregates(query, key, value, own=value, **options)[..., 8:12]
    # What it computes: X expanded along the senders' axis, so that every sender holds the receiver's value.
    a = (query @ key.transpose(-1, -2) / 2).masked_fill(
        ~torch.ones(30, 30, dtype=torch.bool).tril(), -math.inf
    )
    near = (a.softmax(-1) - 0.6) > 0
    copies = value.unsqueeze(3).expand(-1, -1, -1, 30, -1).masked_fill(~near[..., None], -math.inf)
    torch.testing.assert_close(released, copies.amax(3), rtol=0, atol=0)
    alone = ~near.any(-1)
    assert 0 < int(alone.sum()) < alone.numel()
    assert (released[alone] == -math.inf).all() and not paper[alone].any()
    torch.testing.assert_close(released[~alone], value[~alone], rtol=0, atol=0)
    assert (paper[~alone] != value[~alone]).any()


def test_a_released_row_without_neighbours_spoils_the_token():
    torch.manual_seed(4)
    given = {"pattern": causal(), "normaliser": Softmax() >> SoftThreshold(0.9)}
    x = torch.randn(1, 16, 8)
    layer, released = PNAAttention(8, 2, **given), PNAAttention(8, 2, official=True, **given)
    released.load_state_dict(layer.state_dict())
    assert layer(x).isfinite().all() and released(x).isnan().any()
    assert released(x)[:, 0].isfinite().all()  # the first token has itself


@pytest.mark.parametrize("chain", [None, Softmax() >> SoftThreshold(0.2)], ids=["softmax", "threshold"])
def test_padding_and_pieces(chain):
    torch.manual_seed(5)
    layer = PNAAttention(12, 3, pattern=causal(), base=100.0, normaliser=chain).double()
    x = torch.randn(2, 23, 12, dtype=torch.float64)
    valid = (torch.arange(23) >= torch.tensor([[0], [6]])) & (torch.arange(23) != 9)
    hurt = torch.where(valid[..., None], x, torch.nan)
    torch.testing.assert_close(layer(hurt, valid=valid)[valid], layer(x, valid=valid)[valid], rtol=0, atol=0)
    state, rows = layer.start(2), []
    for piece in x.split([2, 1, 20], 1):
        y, state = layer.advance(piece, state)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), layer(x), rtol=1e-9, atol=1e-9)


def test_variances_of_bfloat16_are_not_those_of_rounded_squares():
    torch.manual_seed(6)
    query, key = (torch.randn(1, 1, 40, 4) for _ in range(2))
    value = 10 + 0.1 * torch.randn(1, 1, 40, 4)
    narrow = [part.bfloat16() for part in (query, key, value)]
    found = pna_aggregates(*narrow, pattern=causal())[..., 12:].float()
    wanted = pna_aggregates(*(part.double() for part in narrow), pattern=causal())[..., 12:].float()
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-4)
