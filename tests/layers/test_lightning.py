"""Lightning attention against the dense matrix that it implies, in float64."""

import pytest
import torch
from torch.nn import functional

from attend.memory import allocations
from attlas.layers import LightningAttention, alibi_by_layer, lightning1, linear_by_layer
from attlas.scan import scan

HALF = torch.tensor([0.5, 0.25]).log()


def dense(q, k, v, log_decay):
    """[(Q K^T) * M] V, M_ts = lambda^(t - s) for s <= t."""
    place = torch.arange(q.shape[2], dtype=q.dtype)
    distance = place[:, None] - place
    mask = torch.exp(log_decay.to(q.dtype)[:, None, None] * distance.clamp(min=0)).tril()
    return (q @ k.mT * mask) @ v


def inputs(length, dtype=torch.float64, heads=2, width=6, value_width=5, batch=2):
    sizes = (width, width, value_width)
    return [torch.randn(batch, heads, length, size, dtype=dtype, requires_grad=True) for size in sizes]


def both(run, wanted, given):
    """Values and gradients of two ways to compute the same from `given`."""
    out, target = run(*given), wanted(*given)
    weight = torch.randn_like(target)
    found = torch.autograd.grad((out * weight).sum(), given)
    expected = torch.autograd.grad((target * weight).sum(), given)
    torch.testing.assert_close(out, target, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


# The ragged lengths of the official test; lambda = 0.5 shows a decay that is off by one step.
@pytest.mark.parametrize("length", [1, 7, 64, 65, 513, 913, 1213])
@pytest.mark.parametrize("log_decay", [HALF, -torch.tensor(alibi_by_layer(2, 23, 24)), torch.zeros(2)])
def test_lightning2_is_the_dense_form(length, log_decay):
    both(
        lambda q, k, v: scan(q, k, v, log_decay=log_decay.double()),
        lambda q, k, v: dense(q, k, v, log_decay),
        inputs(length, batch=1),
    )


@pytest.mark.parametrize(("length", "tile"), [(1, 64), (7, 3), (9, 3), (513, 64), (913, 128), (1213, 256)])
@pytest.mark.parametrize("log_decay", [HALF, torch.zeros(2)])
def test_lightning1_is_the_dense_form(length, tile, log_decay):
    both(
        lambda q, k, v: lightning1(q, k, v, log_decay.double(), tile=tile),
        lambda q, k, v: dense(q, k, v, log_decay),
        inputs(length, batch=1),
    )


def test_lightning1_gradcheck_and_no_second_gradient():
    given = inputs(5, width=2, value_width=3, batch=1)
    log_decay = HALF.double()
    assert torch.autograd.gradcheck(lambda *x: lightning1(*x, log_decay, tile=2), given)
    out = lightning1(*given, log_decay).square().sum()
    (grad,) = torch.autograd.grad(out, given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_lightning1_holds_no_square_and_survives_strong_decay():
    given = inputs(640, dtype=torch.float32)

    def run():
        out = lightning1(*given, torch.tensor([-8.0, 0.0]), tile=32)
        assert bool(out.isfinite().all())
        out.sum().backward()

    # Everything of size tokens x width of both heads and rows, and no tokens x tokens.
    assert allocations(run).largest == given[0].numel()


@pytest.mark.parametrize(
    ("log_decay", "tile", "text"),
    [
        (HALF, 0, "tile must be at least 1 token, got 0"),
        (-HALF, 4, r"log_decay must be <= 0 and finite \(-slope per head\), got \[0.69"),
        (HALF.clone().requires_grad_(), 4, "no gradient: detach it, or use attlas.scan"),
    ],
)
def test_lightning1_errors(log_decay, tile, text):
    with pytest.raises(ValueError, match=text):
        lightning1(*inputs(4), log_decay, tile=tile)


def test_slopes_of_the_code():
    def times(powers, factor):
        return pytest.approx([2.0**-power * factor for power in powers], rel=1e-12)

    assert alibi_by_layer(8, 0, 4) == times(range(1, 9), 1 + 1e-5)
    six = (2, 4, 6, 8, 1, 3)
    assert alibi_by_layer(6, 1, 3) == times(six, 0.5 + 1e-5)
    assert alibi_by_layer(6, 2, 3) == times(six, 1e-5)
    # One layer: the official expression is 0 / 0; the first layer's factor here.
    assert alibi_by_layer(6) == times(six, 1 + 1e-5)


def test_slopes_of_the_paper():
    assert linear_by_layer(4, 0, 2) == (0.0, 2.0, 4.0, 6.0)
    assert linear_by_layer(4, 1, 2) == (0.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("schedule", [alibi_by_layer, linear_by_layer])
def test_slope_errors(schedule):
    with pytest.raises(ValueError, match=r"layer must be one of 0 .. layers - 1, got layer 3 of 3"):
        schedule(4, 3, 3)
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        schedule(0)


def test_lightning2_in_the_layer_of_minimax():
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=24, num_attention_heads=4, head_dim=6, num_hidden_layers=3, block_size=16,
        layer_types=["linear_attention"] * 3,
    )  # fmt: skip
    torch.set_default_dtype(torch.float64)
    theirs, x = MiniMaxLightningAttention(config, layer_idx=1), torch.randn(2, 53, 24)
    wanted = []
    # Their norm is float32 inside: what goes into it is compared.
    theirs.norm.register_forward_pre_hook(lambda module, given: wanted.append(given[0]))
    _, state = theirs(x, None, None)
    packed = functional.silu(theirs.qkv_proj(x)).unflatten(-1, (4, 18)).transpose(1, 2)
    log_decay = -theirs.slope_rate.flatten()
    mixed, last = scan(*packed.chunk(3, -1), log_decay=log_decay, return_state=True)
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), wanted[0], rtol=1e-12, atol=1e-12)
    assert last.position.tolist() == [53, 53] and last.nbytes == state.nbytes
    # The official rule's factor but for 1e-5 inside the division.
    assert alibi_by_layer(4, 1, 3) == pytest.approx((-log_decay).tolist(), rel=1e-4)


def layer(**named):
    return LightningAttention(12, 3, **named).double()


def test_layer_is_the_official_example():
    made, x = layer(slopes=[0.7, 0.1, 0.0], bias=True), torch.randn(2, 11, 12, dtype=torch.float64)
    split = [
        functional.silu(part(x)).view(2, 11, 3, 4).transpose(1, 2)
        for part in (made.query, made.key, made.value)
    ]
    mixed = dense(*split, torch.tensor([-0.7, -0.1, 0.0], dtype=x.dtype)).transpose(1, 2).reshape(2, 11, 12)
    normed = functional.layer_norm(mixed, (12,), made.norm.weight, made.norm.bias)
    wanted = made.out(normed * torch.sigmoid(made.gate[1](made.gate[0](x))))
    torch.testing.assert_close(made(x), wanted, rtol=1e-9, atol=1e-9)
    assert made.gate[0].out_features == 4


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_layer_goes_on_where_it_stopped(piece):
    made, x = layer(slopes=[2.0, 0.5, 0.01]), torch.randn(2, 101, 12, dtype=torch.float64)
    state, found = made.start(2), []
    for part in x.split(piece, 1):
        out, state = made.advance(part, state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), made(x), rtol=1e-9, atol=1e-9)
    assert state.position.tolist() == [101, 101] and state.nbytes == 2 * 3 * 4 * 4 * 8


def test_padding_is_no_step():
    made, x = layer(slopes=[0.7, 0.3, 0.1]), torch.randn(1, 9, 12, dtype=torch.float64)
    keep = torch.tensor([[False, True, True, False, False, True, True, True, False]])
    got = made(x, valid=keep)[keep]
    torch.testing.assert_close(got, made(x[keep][None])[0], rtol=1e-9, atol=1e-9)


def test_slopes_stay_exact_in_half_precision():
    made = LightningAttention(8, 2, slopes=[0.123456, 1e-5]).bfloat16()
    assert made.slopes == (0.123456, 1e-5)
    out = made(torch.randn(1, 5, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and bool(out.isfinite().all())


def test_layer_errors():
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 10 and 3"):
        LightningAttention(10, 3)
    with pytest.raises(ValueError, match=r"slopes must be 2 finite numbers >= 0.*got \(1.0, 2.0, 3.0\)"):
        LightningAttention(8, 2, slopes=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"slopes must be 2 finite numbers >= 0.*\(1.0, -2.0\)"):
        LightningAttention(8, 2, slopes=[1.0, -2.0])
