"""TransNormerLLM's layers against their formulas, dense and in float64."""

import math

import pytest
import torch

from attlas.layers import SGLU, SRMSNorm, TransNormerBlock, TransNormerMixer
from attlas.layers.lightning import empty_state
from attlas.layers.transnormer import lrpe_angles, origin
from attlas.scan import LRPE, scan

SLOPES = [0.7, 0.05]


def dense(made, x):
    """The mixer from its definition: score sum_c q_c k_c cos((t - s) theta_c) lambda^(t - s)."""
    length, heads = x.shape[1], made.heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in made.project(x).chunk(3, -1))
    q, k = q * torch.sigmoid(q), k * torch.sigmoid(k)
    place = torch.arange(length, dtype=x.dtype)
    distance = place[:, None] - place
    theta = torch.zeros(heads, 1, q.shape[-1], dtype=x.dtype) if made.theta is None else made.theta
    turned = torch.cos(distance[None, :, :, None] * theta[:, None])
    scores = torch.einsum("bhtc,bhsc,htsc->bhts", q, k, turned)
    slopes = torch.tensor(made.slopes, dtype=x.dtype)[:, None, None]
    mixed = (scores * torch.exp(-slopes * distance.clamp(min=0)).tril()) @ v
    together = mixed.transpose(1, 2).flatten(2)
    normed = together / (together.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return made.out(made.gate(x) * normed)


def mixer(lrpe, hidden=8):
    return TransNormerMixer(6, 2, hidden=hidden, slopes=SLOPES, lrpe=lrpe).double()


@pytest.mark.parametrize("lrpe", [False, True])
def test_mixer_is_its_formula(lrpe):
    made = mixer(lrpe)
    x = torch.randn(2, 70, 6, dtype=torch.float64, requires_grad=True)
    given = [x, *made.parameters()]
    got, wanted = made(x), dense(made, x)
    weight = torch.randn_like(got)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    found, expected = (torch.autograd.grad((y * weight).sum(), given) for y in (got, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lrpe", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_mixer_goes_on_where_it_stopped(lrpe, piece):
    made, x = mixer(lrpe), torch.randn(2, 101, 6, dtype=torch.float64)
    state, found = made.start(2), []
    for part in x.split(piece, 1):
        out, state = made.advance(part, state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), made(x), rtol=1e-9, atol=1e-9)
    assert state.nbytes == 2 * 2 * 4 * 4 * 8 * (2 if lrpe else 1)


def test_padding_is_no_step_anywhere():
    made, x = mixer(True), torch.randn(1, 9, 6, dtype=torch.float64)
    keep = torch.tensor([[False, True, True, False, False, True, True, True, False]])
    got = made(x, valid=keep)[keep]
    torch.testing.assert_close(got, made(x[keep][None])[0], rtol=1e-9, atol=1e-9)


def test_angles_run_on_from_head_to_head():
    wanted = torch.tensor([10000 ** (-2 * j / 6) for j in range(6)])
    torch.testing.assert_close(lrpe_angles(2, 3), wanted.view(2, 1, 3))


def test_srmsnorm_has_no_scale_and_is_wide_inside():
    x = torch.tensor([[300.0, 400.0, 0.0, 0.0]])
    torch.testing.assert_close(SRMSNorm(4)(x), torch.tensor([[1.2, 1.6, 0.0, 0.0]]))
    assert not list(SRMSNorm(4).parameters())
    # Squares of 300 and 400 are beyond half precision.
    half = SRMSNorm(4)(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), torch.tensor([[1.2, 1.6, 0.0, 0.0]]), rtol=1e-3, atol=0.0)


def test_sglu_is_a_product_of_two_projections():
    made, x = SGLU(6).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    left, right, out = (part.weight.T for part in (made.left, made.right, made.out))
    torch.testing.assert_close(made(x), ((x @ left) * (x @ right)) @ out)
    assert made.left.out_features == 16 and SGLU(1024, 2816).out.in_features == 2816


def test_block_adds_both_steps():
    made, x = TransNormerBlock(6, mixer(True)).double(), torch.randn(2, 5, 6, dtype=torch.float64)

    def norm(y):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    first = x + dense(made.mixer, norm(x))
    torch.testing.assert_close(made(x), first + made.mlp(norm(first)), rtol=1e-9, atol=1e-9)


def parts(length, dtype):
    return [torch.randn(2, 2, length, 4, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("kernel", [None, LRPE(lrpe_angles(2, 4).double())])
def test_origin_is_scan_while_it_lasts(kernel):
    q, k, v = parts(40, torch.float64)
    log_decay = -torch.tensor(SLOPES, dtype=torch.float64)
    named = {} if kernel is None else {"kernel": kernel}
    state = empty_state(2, 2, 4, 4, q)
    found = []
    for at in (slice(0, 1), slice(1, 30), slice(30, 40)):
        piece = [x[:, :, at] for x in (q, k, v)]
        out, state = origin(*piece, log_decay=log_decay, state=state, **named)
        found.append(out)
    wanted = scan(q, k, v, log_decay=log_decay, **named)
    torch.testing.assert_close(torch.cat(found, 2), wanted, rtol=1e-9, atol=1e-9)
    assert state.position.tolist() == [40, 40]


def test_origin_overflows_where_scan_does_not():
    made, x = mixer(False).float(), torch.randn(1, 200, 6)
    robust, _ = made.advance(x, made.start(1))
    with torch.no_grad():
        textbook, _ = made.advance(x, made.start(1), sweep=origin)
    assert bool(robust.isfinite().all())
    lost = int((~textbook.isfinite()).any(-1).int().argmax())
    # lambda^-t reaches the largest float32 after 88.7 / slope steps; keys and values are of order 1.
    assert 0.9 * 88.7 / SLOPES[0] < lost < 1.2 * 88.7 / SLOPES[0]
    torch.testing.assert_close(textbook[:, : lost - 10], robust[:, : lost - 10], rtol=1e-4, atol=1e-5)


def test_origin_errors():
    q, k, v = parts(3, torch.float64)
    log_decay = -torch.tensor(SLOPES, dtype=torch.float64)
    _, state = scan(q, k, v, log_decay=log_decay, return_state=True)
    with pytest.raises(ValueError, match=r"got a state of attlas.scan after 3 tokens"):
        origin(q, k, v, log_decay=log_decay, state=state)
    with pytest.raises(ValueError, match="takes no padding: valid must be None"):
        origin(q, k, v, log_decay=log_decay, state=state, valid=torch.ones(2, 3, dtype=torch.bool))


def test_mixer_errors():
    with pytest.raises(ValueError, match="must be a multiple of heads, got 9 and 2"):
        TransNormerMixer(8, 2, hidden=9)


def test_positions_are_exact_in_half_precision():
    """Far tokens see each other as near ones do: the product depends on the distance alone."""
    kernel = LRPE(torch.ones(1, 1, 1, dtype=torch.bfloat16))
    x = torch.ones(1, 1, 2, 1, dtype=torch.bfloat16)
    near, far = (kernel.features(x, torch.tensor([[start, start + 1]])) for start in (0, 5001))
    for phi in (near, far):
        assert (phi[0, 0, 0] @ phi[0, 0, 1]).item() == pytest.approx(math.cos(1), abs=0.01)
