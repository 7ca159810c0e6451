"""The minimal transformer's attention against the dense formulas, its converters and its single triangle."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from attlas.attend import attend
from attlas.layers import (
    MIXERS,
    MinimalAttention,
    OneMap,
    Setting,
    SharedMap,
    TriangularMap,
    TwoMaps,
    Untouched,
    ValueAndOut,
    ValueMap,
    collapsed,
    collapsed_stack,
    one_triangle,
    triangular,
)
from attlas.layers import minimal as module
from attlas.pattern import causal
from attlas.score import Bilinear

WIDTH = 8


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def made(similarity, carried, **options):
    torch.manual_seed(0)
    return MinimalAttention(similarity, carried, **options).double()


def one_head(x, w_qk, w_vo, width=WIDTH):
    """softmax(X W_QK X^T / sqrt(N)) X W_VO, the source's own text."""
    rows = [torch.stack([xi @ w_qk @ xj for xj in x]) / width**0.5 for xi in x]
    return torch.stack([(row.exp() / row.exp().sum()) @ x @ w_vo for row in rows])


def weight(linear):
    """As the formulas have it: y = x W."""
    return linear.weight.detach().T


def test_each_single_head_is_its_formula():
    x, eye = drawn(5, WIDTH), torch.eye(WIDTH, dtype=torch.float64)
    two, one, shared, triangle = TwoMaps(WIDTH), OneMap(WIDTH), SharedMap(WIDTH), TriangularMap(WIDTH)
    for similarity, w_qk in (
        (two, lambda: weight(two.query_map) @ weight(two.key_map).T),
        (one, lambda: weight(one.map)),
        (shared, lambda: weight(shared.map) @ weight(shared.map).T),
        (triangle, lambda: triangle.triangle.detach() @ triangle.triangle.detach().T),
    ):
        for carried, w_vo in (
            (ValueAndOut(WIDTH), lambda c: weight(c.value_map) @ weight(c.out_map)),
            (ValueMap(WIDTH), lambda c: weight(c.map)),
            (Untouched(WIDTH), lambda c: eye),
        ):
            attention = made(similarity, carried)
            found = attention(x[None])[0]
            torch.testing.assert_close(found, one_head(x, w_qk(), w_vo(carried)), rtol=0, atol=1e-10)


def test_one_map_is_the_bilinear_score():
    x, attention = drawn(2, 5, WIDTH), made(OneMap(WIDTH), Untouched(WIDTH))
    tokens = x[:, None]
    wanted = attend(tokens, tokens, tokens, score=Bilinear(attention.similarity.product))
    torch.testing.assert_close(attention(x), wanted[:, 0], rtol=0, atol=1e-12)


def test_heads_have_their_own_scale():
    """Two heads of width 4 are scaled by sqrt(4), one of width 8 by sqrt(8)."""
    x = drawn(1, 6, WIDTH)
    attention = made(SharedMap(WIDTH, 2), ValueAndOut(WIDTH, 2))
    q = (x @ weight(attention.similarity.map)).view(1, 6, 2, 4)
    v = (x @ weight(attention.carried.value_map)).view(1, 6, 2, 4)
    weights = torch.einsum("bihd,bjhd->bhij", q, q).div(2.0).softmax(-1)
    wanted = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2) @ weight(attention.carried.out_map)
    torch.testing.assert_close(attention(x), wanted, rtol=0, atol=1e-12)


def test_parameters_are_the_sources():
    n2 = WIDTH**2

    def count(part):
        return sum(p.numel() for p in part.parameters())

    assert count(MinimalAttention(TwoMaps(WIDTH), ValueAndOut(WIDTH))) == 4 * n2
    assert count(MinimalAttention(OneMap(WIDTH), ValueAndOut(WIDTH))) == 3 * n2
    assert count(MinimalAttention(SharedMap(WIDTH, 4), ValueAndOut(WIDTH, 4))) == 3 * n2
    assert count(MinimalAttention(OneMap(WIDTH), Untouched(WIDTH))) == n2
    assert count(MinimalAttention(TriangularMap(WIDTH), Untouched(WIDTH))) == WIDTH * (WIDTH + 1) // 2


def test_the_triangle_is_lower_and_no_token_is_unlike_itself():
    similarity = TriangularMap(WIDTH).double()
    assert torch.equal(similarity.triangle, similarity.triangle.tril())
    assert (similarity.triangle != 0).sum() == WIDTH * (WIDTH + 1) // 2
    assert torch.linalg.eigvalsh(similarity.product).min() > -1e-12
    logits = drawn(1, 9, WIDTH)[0] @ similarity.product @ drawn(1, 9, WIDTH)[0].T
    torch.testing.assert_close(logits, logits.T)
    assert (logits.diagonal() >= 0).all()


def test_untouched_outputs_are_convex_combinations_also_stacked():
    stack = nn.Sequential(*(made(OneMap(WIDTH), Untouched(WIDTH)) for _ in range(3)))
    x = drawn(2, 7, WIDTH)
    out = stack(x)
    least, largest = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    assert (out >= least).all() and (out <= largest).all()
    # Of the weights themselves: constants stay.
    torch.testing.assert_close(stack(torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("similarity", [TwoMaps, SharedMap, TriangularMap, OneMap])
@pytest.mark.parametrize("carried", [ValueAndOut, ValueMap, Untouched])
def test_a_collapsed_head_is_the_same_function(similarity, carried):
    full = made(similarity(WIDTH), carried(WIDTH), pattern=causal())
    small = collapsed(full)
    x = drawn(2, 11, WIDTH)
    torch.testing.assert_close(small(x), full(x), rtol=0, atol=1e-10)
    values = 0 if carried is Untouched else WIDTH**2
    assert sum(p.numel() for p in small.parameters()) == WIDTH**2 + values


def test_a_stack_without_residuals_keeps_values_once_at_the_end():
    full = [made(TwoMaps(WIDTH), ValueAndOut(WIDTH)) for _ in range(3)]
    for attention in full:
        for linear in (attention.carried.value_map, attention.carried.out_map):
            nn.init.orthogonal_(linear.weight)  # products of small random maps would be near zero
    small = collapsed_stack(full)
    x = drawn(2, 5, WIDTH)
    wanted = nn.Sequential(*full)(x)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(small(x), wanted, rtol=0, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == (3 + 1) * WIDTH**2


def test_a_symmetric_head_has_a_triangle_also_where_it_is_singular():
    full = made(SharedMap(WIDTH), ValueMap(WIDTH))
    x = drawn(2, 5, WIDTH)
    torch.testing.assert_close(triangular(full)(x), full(x), rtol=0, atol=1e-10)
    with torch.no_grad():
        full.similarity.map.weight[3:] = 0.0
    torch.testing.assert_close(triangular(full)(x), full(x), rtol=0, atol=1e-10)


def test_heads_cannot_be_collapsed_one_by_one():
    many = MinimalAttention(TwoMaps(WIDTH, 4), ValueAndOut(WIDTH, 4))
    with pytest.raises(ValueError, match=r"one head can be collapsed, got 4; .* 4 matrices of 8\^2 would"):
        collapsed(many)
    # What that text says, counted: one matrix per head against the two that all heads share.
    assert sum(p.numel() for p in many.similarity.parameters()) < 4 * WIDTH**2


def test_a_state_holds_every_token_once_where_nothing_is_mapped():
    once = MinimalAttention(OneMap(WIDTH), Untouched(WIDTH), pattern=causal())
    usual = MinimalAttention(TwoMaps(WIDTH), ValueAndOut(WIDTH), pattern=causal())
    x = torch.randn(2, 5, WIDTH)
    sizes = [attention.advance(x, attention.start(2))[1].nbytes for attention in (once, usual)]
    assert sizes == [2 * 5 * WIDTH * 4, 2 * 2 * 5 * WIDTH * 4]


def test_rotary_positions_leave_symmetric_logits_symmetric():
    from attlas.layers import rotary

    q = rotary(SharedMap(WIDTH).double().query(drawn(1, 9, WIDTH)), torch.arange(9))[0, 0]
    torch.testing.assert_close(q @ q.T, (q @ q.T).T)


@pytest.mark.parametrize("tokens", [1, 6, 7, 23])
def test_one_triangle_is_the_dense_softmax_with_its_gradient(tokens, monkeypatch):
    monkeypatch.setattr(import_module(one_triangle.__module__), "BLOCK", 6)
    q, v = (drawn(2, 2, tokens, width).requires_grad_() for width in (4, 3))
    cotangent = drawn(2, 2, tokens, 3)
    found = one_triangle(30 * q, v, scale=0.5)  # weights near 0 and 1: maxima matter
    wanted = (0.5 * (30 * q) @ (30 * q).mT).softmax(-1) @ v
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((out * cotangent).sum(), (q, v)) for out in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_one_triangle_in_float32_and_half_precision():
    q, v = drawn(1, 2, 300, 16), drawn(1, 2, 300, 8)
    for dtype, least in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        found = one_triangle(q.to(dtype), v.to(dtype))
        assert found.dtype == dtype
        rounded = (q.to(dtype).double() @ q.to(dtype).double().mT / 4).softmax(-1) @ v.to(dtype).double()
        torch.testing.assert_close(found.double(), rounded, rtol=0, atol=least)


def test_wide_symmetric_heads_take_one_triangle_and_others_do_not(monkeypatch):
    called = []

    def seen(query, value):
        called.append(query.shape[-1])
        return one_triangle(query, value)

    monkeypatch.setattr(module, "one_triangle", seen)
    monkeypatch.setattr(module, "WIDE", WIDTH)
    x = torch.randn(1, 5, WIDTH)
    wide = MinimalAttention(TriangularMap(WIDTH), ValueMap(WIDTH))
    found = wide(x)
    assert called == [WIDTH]
    everyone = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(wide(x, valid=everyone), found)  # the usual kernels
    MinimalAttention(SharedMap(WIDTH, 2), ValueAndOut(WIDTH, 2))(x)
    MinimalAttention(SharedMap(WIDTH), ValueMap(WIDTH), pattern=causal())(x)
    MinimalAttention(TwoMaps(WIDTH), ValueMap(WIDTH))(x)
    assert called == [WIDTH]


def test_a_second_gradient_of_one_triangle_is_refused():
    q = drawn(1, 1, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(one_triangle(q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="one_triangle, .* is differentiable once, and a gradient of its"):
        gradient.sum().backward()


def test_the_product_of_untouched_values_has_the_models_type():
    part = Untouched(4).to(torch.float64)
    assert torch.equal(part.product, torch.eye(4, dtype=torch.float64)) and not part.state_dict()
    assert Untouched(4).to("meta").product.device.type == "meta"


def test_padding_may_hold_anything():
    x = drawn(1, 6, WIDTH)
    valid = torch.tensor([[True, True, False, True, False, False]])
    noise = torch.where(valid[..., None], x, float("nan"))
    for similarity in (OneMap(WIDTH), SharedMap(WIDTH)):
        attention = made(similarity, Untouched(WIDTH))
        found = attention(noise, valid=valid)[valid]
        torch.testing.assert_close(found, attention(x[:, valid[0]])[0])


def test_errors():
    with pytest.raises(ValueError, match="TwoMaps: width must be a multiple of heads, got 8 and 3"):
        TwoMaps(8, 3)
    with pytest.raises(ValueError, match="heads must be the same in both, got 1 in OneMap and 2 in Value"):
        MinimalAttention(OneMap(8), ValueAndOut(8, 2))
    with pytest.raises(ValueError, match="width must be the same in both, got 8 in OneMap and 4 in Untou"):
        MinimalAttention(OneMap(8), Untouched(4))
    placed = MinimalAttention(TwoMaps(8), ValueMap(8), base=100.0)
    with pytest.raises(ValueError, match="collapsed: rotary positions stand between W_Q and W_K; make the"):
        collapsed(placed)
    with pytest.raises(ValueError, match="triangular: the similarity must be a SharedMap, W W.T; got OneMap"):
        triangular(MinimalAttention(OneMap(8), Untouched(8)))
    with pytest.raises(ValueError, match="collapsed_stack: give at least one attention"):
        collapsed_stack([])
    open_ = MinimalAttention(OneMap(8), Untouched(8))
    with pytest.raises(ValueError, match="piece by piece with a causal pattern only: .* under None"):
        open_.advance(torch.zeros(1, 1, 8), open_.start(1))
    with pytest.raises(ValueError, match="mixer minimal_wqk has no NC form, .*of a sequence to itself"):
        MIXERS["minimal_wqk"].build(Setting(8, 2, causal=False, cross=True))
