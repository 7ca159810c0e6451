"""ABC against softmaxes over prefixes written out, and the fault of CAB's released causal code."""

import pytest
import torch

from attlas.layers.abc_attention import ABCAttention, bounded_memory, causal_bounded_memory


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(query, key, value, key_logit, value_logit):
    """Row i from the memory of the first i + 1 keys, built anew for every i."""
    rows = []
    for i in range(query.shape[2]):
        k, v, a, b = (part[:, :, : i + 1] for part in (key, value, key_logit, value_logit))
        keys = a.softmax(2).transpose(-1, -2) @ k
        values = b.softmax(2).transpose(-1, -2) @ v
        weights = (query[:, :, i : i + 1] @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        rows.append(weights @ values)
    return torch.cat(rows, 2)


def released(query, key, value, key_logit, value_logit):
    """The causal branch of CAB's code: weights over the prefix, and no sum over it."""
    keys, values = (
        torch.einsum("bhnr,bhnd->bhnrd", (logit - logit.logcumsumexp(2)).exp(), part)
        for logit, part in ((key_logit, key), (value_logit, value))
    )
    weights = torch.einsum("bhnd,bhnrd->bhnr", query * query.shape[-1] ** -0.5, keys).softmax(-1)
    return torch.einsum("bhnr,bhnrd->bhnd", weights, values)


def five(length, scale=1.0):
    parts = [draw(2, 3, length, width) for width in (4, 4, 5)]
    return *parts, scale * draw(2, 3, length, 3), scale * draw(2, 3, length, 3)


@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("length", [1, 2, 16, 37])
def test_causal_equals_prefixes(length, chunk):
    given = five(length)
    found, state = causal_bounded_memory(*given, chunk=chunk)
    assert torch.allclose(found, dense(*given), rtol=0, atol=1e-9)
    wanted = given[3].softmax(2).transpose(-1, -2) @ given[1]
    assert torch.allclose(state["key"], wanted, atol=1e-9) and state.position.tolist() == [length] * 2


def test_logits_of_any_size_are_safe():
    # Rising logits: a factor exp(logit) would overflow, exp of a chunk's own maximum would lose early rows.
    given = list(five(40))
    for place in (3, 4):
        given[place] = given[place] + torch.linspace(-800, 800, 40, dtype=torch.float64)[:, None]
    found, _ = causal_bounded_memory(*given)
    assert torch.allclose(found, dense(*given), atol=1e-9)
    narrow, _ = causal_bounded_memory(*(part.float() for part in given))
    assert torch.allclose(narrow.double(), dense(*given), atol=1e-3), "float32 holds logits to 1e-4 here"


def test_the_last_row_is_the_noncausal_one_and_states_go_on():
    given = five(23)
    found, _ = causal_bounded_memory(*given)
    assert torch.allclose(found[:, :, -1:], bounded_memory(given[0][:, :, -1:], *given[1:]), atol=1e-9)
    first, state = causal_bounded_memory(*(part[:, :, :10] for part in given))
    second, _ = causal_bounded_memory(*(part[:, :, 10:] for part in given), state=state)
    assert torch.allclose(torch.cat([first, second], 2), found, atol=1e-9)
    empty, same = causal_bounded_memory(*(part[:, :, :0] for part in given), state=state)
    assert empty.shape == (2, 3, 0, 5) and same is state


def test_padding():
    given = five(11)
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[0, [0, 1, 5]] = False
    left = [part[:1, :, valid[0]] for part in given]
    found, state = causal_bounded_memory(*given, valid=valid)
    assert torch.allclose(found[:1][:, :, valid[0]], dense(*left), atol=1e-9)
    assert not found[0][:, ~valid[0]].any() and state.position.tolist() == [8, 11]
    assert torch.allclose(bounded_memory(*given, valid=valid)[:1], bounded_memory(given[0][:1], *left[1:]))
    none = torch.zeros_like(valid)
    assert (
        not bounded_memory(*given, valid=none).any()
        and not causal_bounded_memory(*given, valid=none)[0].any()
    )


def test_gradients_through_chunks_and_states():
    given = [part.requires_grad_() for part in five(7)]

    def run(*parts):
        first, state = causal_bounded_memory(*(part[:, :, :3] for part in parts), chunk=2)
        second, after = causal_bounded_memory(*(part[:, :, 3:] for part in parts), chunk=2, state=state)
        return first, second, after["key"], after["value_log"]

    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_the_released_causal_code_forgets_the_running_sum():
    length = 12
    query, key, _, logit, other = five(length)
    ones = torch.ones(2, 3, length, 5, dtype=torch.float64)
    even = torch.zeros_like(other)
    assert torch.allclose(causal_bounded_memory(query, key, ones, logit, even)[0], ones, atol=1e-12)
    # With equal weights it returns 1 / (i + 1) in place of the constant.
    counts = torch.arange(1, length + 1, dtype=torch.float64)[:, None]
    assert torch.allclose(released(query, key, ones, logit, even), ones / counts, atol=1e-12)


def test_parameters_are_shared_by_heads_and_errors():
    layer = ABCAttention(12, 3, slots=5)
    assert layer.pool_key.shape == layer.pool_value.shape == (4, 5)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (12 * 12 + 12) + 2 * 4 * 5
    with pytest.raises(ValueError, match="multiple of heads and slots at least 1, got 12, 5 and 16"):
        ABCAttention(12, 5)
    with pytest.raises(ValueError, match="for queries to another one make it with causal=False"):
        ABCAttention(12, 3, causal=True)(torch.zeros(1, 2, 12), torch.zeros(1, 3, 12))
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        causal_bounded_memory(*five(3), chunk=0)
