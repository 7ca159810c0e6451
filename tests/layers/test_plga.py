"""Power law graph attention against its formulas, head by head in numpy; what is causal and what not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from attlas.layers import (
    PLGA,
    FixedCurvature,
    MetricLearner,
    PrefixPLGA,
    SelfAttention,
    dag_penalty,
    kv_cache_only,
    rotary,
    rotary_pairs,
)
from attlas.layers.plga_metric import density, power_law, relative_spread
from attlas.pattern import causal, window

WIDTH, HEADS, HEAD = 16, 2, 8


def disturbed(layer):
    """In float64, with no parameter at its start and no gradient."""
    layer = layer.double().eval().requires_grad_(False)
    for part in layer.parameters():
        part.add_(0.1 * torch.randn_like(part))
    return layer


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def array(tensor: Tensor):
    return tensor.detach().numpy()


def silu(z):
    return z / (1 + np.exp(-z))


def norm(layer, rows):
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * array(layer.weight) + array(layer.bias)


def linear(layer, rows):
    return rows @ array(layer.weight).T + array(layer.bias)


def curvature_of(learner: MetricLearner, query, head: int):
    """Steps 1 to 4 of the sheet for the queries (n, h) of one head."""
    a = norm(learner.norms[0], sum(np.outer(row, row) for row in query))
    for unit, after in zip(learner.units, list(learner.norms)[1:], strict=True):
        z = a
        for glu in unit:
            z = linear(glu.down, silu(linear(glu.gate, z)) * linear(glu.up, z))
        a = norm(after, a + z)
    w, b, p, c, bc = (
        array(learner.matrices[name])[head]
        for name in ("weight", "bias", "power", "coupling", "coupling_bias")
    )
    z = w @ a + b
    a_lm = z * z / (1 + np.exp(-z)) + 1e-9
    assert (a_lm >= 1e-9).all()
    return c @ (a_lm**p) + bc


def turned(rows, base=10000.0):
    """Interleaved rotary positions as complex numbers."""
    pairs = rows[:, 0::2] + 1j * rows[:, 1::2]
    rates = base ** (-np.arange(0, rows.shape[1], 2) / rows.shape[1])
    pairs = pairs * np.exp(1j * np.arange(len(rows))[:, None] * rates)
    out = np.empty_like(rows)
    out[:, 0::2], out[:, 1::2] = pairs.real, pairs.imag
    return out


def whole(layer: PLGA, x, curvature=None):
    """The layer for one row of the batch (n, C), token by token."""
    n, group = len(x), layer.heads // layer.kv_heads
    query, key, value = (linear(make, x) for make in (layer.query, layer.key, layer.value))
    out = []
    for head in range(layer.heads):
        own, shared = (slice(at * HEAD, (at + 1) * HEAD) for at in (head, head // group))
        q, k = turned(query[:, own]), turned(key[:, shared])
        g = curvature_of(layer.metric, q, head) if curvature is None else curvature[head]
        rows = np.zeros((n, HEAD))
        for i in range(n):
            logits = np.array([q[i] @ g @ k[j] for j in range(i + 1)]) / np.sqrt(HEAD)
            weights = np.exp(logits - logits.max())
            rows[i] = weights / weights.sum() @ value[: i + 1, shared]
        out.append(rows)
    return linear(layer.out, np.concatenate(out, 1))


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_the_layer_is_its_formula(kv_heads):
    layer = disturbed(PLGA(WIDTH, HEADS, kv_heads=kv_heads, metric=MetricLearner(HEAD, HEADS, units=2)))
    x = drawn(2, 13, WIDTH)
    wanted = np.stack([whole(layer, array(row)) for row in x])
    np.testing.assert_allclose(array(layer(x)), wanted, rtol=1e-9, atol=1e-9)
    given = drawn(HEADS, HEAD, HEAD)
    wanted = np.stack([whole(layer, array(row), array(given)) for row in x])
    np.testing.assert_allclose(array(layer(x, curvature=given)), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("chunk", "length"), [(1, 7), (4, 13), (64, 9)])
def test_the_prefix_form_takes_the_matrix_of_earlier_chunks(chunk, length):
    layer = disturbed(PrefixPLGA(WIDTH, HEADS, chunk=chunk, metric=MetricLearner(HEAD, HEADS, units=1)))
    x = drawn(1, length, WIDTH)
    query = linear(layer.query, array(x[0]))
    found = array(layer(x))[0]
    for i in range(length):
        before = [turned(query[:, at * HEAD : (at + 1) * HEAD])[: i // chunk * chunk] for at in range(HEADS)]
        given = [
            curvature_of(layer.metric, [*rows, np.zeros(HEAD)], head) for head, rows in enumerate(before)
        ]
        np.testing.assert_allclose(found[i], whole(layer, array(x[0]), given)[i], rtol=1e-9, atol=1e-9)


def test_training_form_sees_later_tokens_through_the_matrix_and_not_once_it_is_given():
    layer = disturbed(PLGA(WIDTH, HEADS, metric=MetricLearner(HEAD, HEADS, units=2)))
    x = drawn(1, 12, WIDTH)
    other = x.clone()
    other[:, -1] = drawn(WIDTH)
    # The first token sees itself alone: its one weight is 1 whatever G is.
    assert float((layer(x) - layer(other)).abs()[0, 1:-1].amax(-1).min()) > 1e-6
    _, state = layer.begin(x)
    for given in (state["curvature"], drawn(HEADS, HEAD, HEAD)):
        one, two = (layer(tokens, curvature=given) for tokens in (x, other))
        assert torch.equal(one[:, :-1], two[:, :-1]) and not torch.equal(one[:, -1], two[:, -1])
    prefix = disturbed(PrefixPLGA(WIDTH, HEADS, chunk=3))
    assert torch.equal(prefix(x)[:, :-1], prefix(other)[:, :-1])


def test_both_caches_give_the_same_numbers_and_those_of_the_given_matrix():
    layer = disturbed(PLGA(WIDTH, HEADS, kv_heads=1))
    x = drawn(2, 11, WIDTH)
    out, both = layer.begin(x[:, :6])
    assert torch.equal(out, layer(x[:, :6])), "the prompt is the training form"
    keys = kv_cache_only(both)
    assert set(both.parts) - set(keys.parts) == {"metric", "curvature"} and set(keys.parts) == {
        "key",
        "value",
        "learnt",
    }
    wanted = layer(x, curvature=both["curvature"])
    for at in range(6, 11):
        one, both = layer.advance(x[:, at : at + 1], both)
        other, keys = layer.advance(x[:, at : at + 1], keys)
        assert torch.equal(one, other)
        torch.testing.assert_close(one[:, 0], wanted[:, at], rtol=0, atol=1e-12)
    assert both.position.tolist() == [11, 11] and both["key"].shape == (2, 1, 11, HEAD)


def test_the_identity_is_dot_product_attention():
    layer = PLGA(WIDTH, HEADS, metric=FixedCurvature(torch.eye(HEAD).expand(HEADS, -1, -1)))
    plain = SelfAttention(WIDTH, HEADS, pattern=causal(), bias=True)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("metric")})
    x = torch.randn(2, 9, WIDTH)
    # The same places, turned in pairs of neighbours.
    plain._placed = lambda part, at: rotary_pairs(part, at.positions(part.device))
    assert torch.equal(layer(x), plain(x))
    transferred = FixedCurvature(torch.randn(HEADS, HEAD, HEAD))
    assert not torch.allclose(PLGA(WIDTH, HEADS, metric=transferred)(x), layer(x))
    assert not list(transferred.parameters()) and "matrix" in transferred.state_dict()


def test_it_composes_with_windows():
    seen = causal() & window(3)
    layer = disturbed(PLGA(WIDTH, HEADS, pattern=seen))
    x = drawn(1, 9, WIDTH)
    given = layer.begin(x)[1]["curvature"]
    other = x.clone()
    other[:, 2] = drawn(WIDTH)
    same = (layer(x, curvature=given) == layer(other, curvature=given)).all(-1)[0]
    assert same.tolist() == [True, True, False, False, False, True, True, True, True]


def test_padding_is_left_out_of_the_density_and_no_nan_comes_in():
    for make in (PLGA, PrefixPLGA):
        layer = disturbed(make(WIDTH, HEADS, **({"chunk": 2} if make is PrefixPLGA else {})))
        x = drawn(1, 7, WIDTH)
        valid = torch.tensor([[False, True, True, False, True, True, False]])
        alone = layer(x[valid][None])
        layer.requires_grad_()
        padded = x.masked_fill(~valid[..., None], float("nan")).requires_grad_()
        found = layer(padded, valid=valid)[valid][None]
        torch.testing.assert_close(found.detach(), alone, rtol=0, atol=1e-12)
        for grad in torch.autograd.grad(found.square().sum(), [padded, *layer.parameters()]):
            assert grad.isfinite().all()


def test_powers_stay_in_float32_under_bfloat16_and_tiny_metrics_stay_finite():
    torch.manual_seed(3)
    names = ("weight", "bias", "power", "coupling", "coupling_bias")
    parts = {name: torch.randn(HEADS, HEAD, HEAD) for name in names}
    zero = power_law(torch.zeros(1, HEADS, HEAD, HEAD), **(parts | {"bias": torch.zeros(HEADS, HEAD, HEAD)}))
    assert torch.equal(zero.metric, torch.full_like(zero.metric, 1e-9))
    # (1e-9)^-0.5 = 3.2e4.
    torch.testing.assert_close(
        power_law(
            torch.zeros(1, HEADS, HEAD, HEAD),
            **(parts | {"bias": parts["bias"] * 0, "power": parts["power"] * 0 - 0.5}),
        ).potential,
        torch.full_like(zero.metric, 1e9**0.5),
        rtol=1e-4,
        atol=0,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = power_law(torch.ones(1, HEADS, HEAD, HEAD), **parts)
        summed = density(torch.randn(1, HEADS, 5, HEAD).bfloat16())
    outside = power_law(torch.ones(1, HEADS, HEAD, HEAD), **parts)
    assert torch.equal(inside.curvature, outside.curvature) and summed.dtype == torch.float32
    layer = PLGA(WIDTH, HEADS).bfloat16()
    _, state = layer.begin(torch.randn(1, 5, WIDTH).bfloat16())
    assert state["curvature"].dtype == torch.float32 and state["key"].dtype == torch.bfloat16


def test_float32_is_within_its_tolerance_of_float64():
    torch.manual_seed(1)
    layer = PLGA(WIDTH, HEADS, metric=MetricLearner(HEAD, HEADS, units=2)).eval()
    x = torch.randn(2, 40, WIDTH)
    narrow = layer(x)
    # Powers amplify rounding errors: the sheet's tolerance for float32.
    torch.testing.assert_close(narrow.double(), layer.double()(x.double()), rtol=1e-4, atol=1e-4)


def test_the_release_starts_the_values_projection_differently():
    torch.manual_seed(0)
    ours, theirs = PLGA(96, 2), PLGA(96, 2, official=True)
    for name in ("query", "key", "out"):
        for layer in (ours, theirs):
            part = getattr(layer, name)
            assert not part.bias.any() and part.weight.abs().max() <= (3 / 96) ** 0.5
    assert not ours.value.bias.any() and theirs.value.bias.any()
    ratio = theirs.value.weight.std() / ours.value.weight.std()
    torch.testing.assert_close(ratio, torch.tensor(3**-0.5), rtol=0.05, atol=0)
    start = MetricLearner(16, 4).matrices
    torch.testing.assert_close(start["power"].std(), torch.tensor((2 / (16 * 20)) ** 0.5), rtol=0.1, atol=0)
    assert not start["bias"].any() and not start["coupling_bias"].any()


def test_the_penalty_of_cycles():
    import scipy.linalg

    matrices = drawn(3, 5, 5)
    traces = [np.trace(scipy.linalg.expm(array(one) ** 2)) / 5 for one in matrices]
    assert float(dag_penalty(matrices)) == pytest.approx(np.mean(np.abs(np.log(traces))), rel=1e-10)
    acyclic = drawn(5, 5).triu(1)
    assert float(dag_penalty(acyclic)) == pytest.approx(0.0, abs=1e-6)
    huge = (100 * drawn(5, 5)).requires_grad_()
    (grad,) = torch.autograd.grad(dag_penalty(huge), huge)
    assert dag_penalty(huge.detach()).isfinite() and grad.isfinite().all() and grad.any()
    small = drawn(2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(dag_penalty, small)


def test_spread_of_matrices_is_relative():
    matrices = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]])
    assert relative_spread(matrices) == pytest.approx((0.5**0.5) / 2.0)
    assert relative_spread(100 * matrices) == pytest.approx(relative_spread(matrices))


def test_rotary_pairs_turns_neighbours():
    x = drawn(2, 6, 8)
    np.testing.assert_allclose(
        array(rotary_pairs(x, torch.arange(6))), np.stack([turned(array(row)) for row in x]), atol=1e-12
    )
    assert not torch.allclose(rotary_pairs(x, torch.arange(6)), rotary(x, torch.arange(6)))


def test_wrong_sizes_are_told():
    with pytest.raises(ValueError, match="width must be an even multiple of heads .*, got 6, 2, 2"):
        PLGA(6, 2)
    with pytest.raises(ValueError, match="units at least 0, got 4, 2, 2, None and -1"):
        MetricLearner(4, 2, units=-1)
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        PrefixPLGA(8, 2, chunk=0)
    with pytest.raises(ValueError, match="pattern must be causal, got window"):
        PrefixPLGA(8, 2, pattern=window(3))
    layer = PLGA(WIDTH, HEADS)
    _, state = layer.begin(torch.randn(2, 3, WIDTH))
    uneven = type(state)(state.parts, torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="all rows of a state must stand at one position"):
        layer.advance(torch.randn(2, 1, WIDTH), uneven)
    with pytest.raises(ValueError, match="PLGA: x must have at least one batch row and one token"):
        layer(torch.randn(1, 0, WIDTH))
    with pytest.raises(ValueError, match="PLGA: x must have at least one batch row and one token"):
        layer.begin(torch.randn(1, 0, WIDTH))
    for sizes, named in (((16, 0), {}), ((16, 2), {"kv_heads": 0})):
        with pytest.raises(ValueError, match="width, heads and kv_heads must be at least 1, got 16, "):
            PLGA(*sizes, **named)
    for other in (MetricLearner(4, HEADS, units=1), FixedCurvature(torch.zeros(HEADS, 4, 4))):
        with pytest.raises(ValueError, match="made for 2 heads of width 8, got one for 2 heads of width 4"):
            PLGA(WIDTH, HEADS, metric=other)


@pytest.mark.parametrize("make", [PLGA, PrefixPLGA])
def test_inputs_of_other_sizes_are_told(make):
    layer = make(WIDTH, HEADS)
    _, state = layer.begin(torch.randn(2, 3, WIDTH))
    for call in (layer, layer.begin, lambda x: layer.advance(x, state)):
        with pytest.raises(ValueError, match=r"PLGA: x must be \(B, N, 16\), got shape \(2, 3, 8\)"):
            call(torch.randn(2, 3, 8))
    with pytest.raises(ValueError, match="must have the 2 rows of the state, got 1: every row goes on"):
        layer.advance(torch.randn(1, 1, WIDTH), state)


def test_a_mask_of_another_shape_is_told(isolated_python):
    said = isolated_python(
        "import torch; from attlas.layers import PLGA",
        "try: PLGA(16, 2)(torch.randn(2, 3, 16), valid=torch.ones(2, 4, dtype=torch.bool))",
        "except ValueError as error: print(error)",
    )
    assert said == "PLGA: valid must be of shape (2, 3), (B, N) of x, got (2, 4)"


def test_the_prefix_form_makes_its_matrix_again_without_the_cache():
    layer = disturbed(PrefixPLGA(WIDTH, HEADS, chunk=3))
    x = drawn(2, 11, WIDTH)
    _, both = layer.begin(x[:, :7])
    keys = kv_cache_only(both)
    assert set(both.parts) - set(keys.parts) == {"curvature"}
    wanted = layer(x)
    for at in range(7, 11):
        one, keys = layer.advance(x[:, at : at + 1], kv_cache_only(keys))
        torch.testing.assert_close(one[:, 0], wanted[:, at], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="PrefixPLGA: every chunk has matrices of its own.*; take PLGA"):
        layer.traced(x)
