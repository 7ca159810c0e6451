"""LSSA and LSSAR against their formulas written out row by row, and where formulas alone would fail."""

import math

import pytest
import torch
from torch import Tensor

from attlas.attend import (
    L1,
    RowContext,
    ShiftPower,
    Softmax,
    State,
    TimesLogCount,
    attend,
    lssa,
    lssar,
    lssar_port,
    merge,
)
from attlas.pattern import Pattern, Tokens, causal, dense, key, per_head, sink, window
from attlas.score import Dot, EdgeBias

N, WIDTH = 24, 8
PATTERNS: dict[str, Pattern] = {
    "causal": causal(),
    "window": causal() & (window(9) | sink(2)),
    "around": window(7),
    "empty rows": (causal() & window(6)) - key(0, 9),
    "per head": per_head([causal(), window(5), causal() & window(3), dense()]),
}


def tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(2, heads, N, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads, width in ((4, WIDTH), (2, WIDTH), (2, 5))
    ]


def row(query: Tensor, keys: Tensor, power: float | None) -> Tensor:
    """Weights of one query over the keys that it sees."""
    count = len(keys)
    cosines = keys @ query / keys.norm(dim=1) / query.norm()
    feature = torch.log1p(torch.exp(math.log(WIDTH) * math.log(count) * cosines))
    share = feature / feature.sum()
    if power is None:
        return share
    over = torch.relu(count * share - (0.0 if count <= 3 else 1.0)) ** power
    return over / over.sum()


def written_out(given: list[Tensor], pattern: Pattern, power: float | None) -> Tensor:
    query, keys, values = given
    heads = []
    for head, one in enumerate(pattern.expand(4, 2)):
        mask = one.mask(Tokens(N), Tokens(N))
        batch = []
        for b in range(2):
            rows = []
            for i in range(N):
                seen = mask[i].nonzero()[:, 0]
                value = values[b, head // 2, seen]
                weights = (
                    row(query[b, head, i], keys[b, head // 2, seen], power) if len(seen) else seen.double()
                )
                rows.append(weights @ value)
            batch.append(torch.stack(rows))
        heads.append(torch.stack(batch))
    return torch.stack(heads, 1)


@pytest.mark.parametrize("power", [None, 1.0, 3.0, 15.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_the_formulas(pattern: str, power: float | None) -> None:
    given, seen = tensors(), PATTERNS[pattern].bind(N=N)
    options = lssa(WIDTH) if power is None else lssar(WIDTH, power)
    out = attend(*given, pattern=seen, backend="rows", **options)
    wanted = written_out(given, seen, power)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    narrow = attend(*(tensor.detach().float() for tensor in given), pattern=seen, **options)
    # The sheet's tolerances: 1e-6 for A, 1e-5 for W with p = 15; values here are a few units.
    torch.testing.assert_close(narrow.double(), wanted, rtol=1e-5, atol=5e-6 if power is None else 5e-5)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    grads = (torch.autograd.grad((one * weight).sum(), given) for one in (out, wanted))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("power", [None, 2.5, 15.0])
def test_gradcheck(power: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    given = [
        torch.randn(1, heads, 6, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, width in ((2, 3), (1, 3), (1, 2))
    ]
    pattern = causal() & (window(5) | sink(1)) & ~window(1)  # row 0 sees nothing
    options = lssa(3) if power is None else lssar(3, power)

    def run(*leaves: Tensor) -> Tensor:
        return attend(*leaves, pattern=pattern, backend="rows", **options)

    assert torch.autograd.gradcheck(run, given, eps=1e-6, atol=1e-5, rtol=1e-3)


def stage(weights: Tensor, power: float) -> Tensor:
    """`ShiftPower(power) >> L1()` of rows of weights without a mask."""
    rows, keys = weights.shape
    at = torch.arange(max(rows, keys))
    ctx = RowContext(at[:rows, None], at[None, :keys], torch.full((rows, 1), keys))
    return (ShiftPower(power) >> L1()).rows(weights, torch.ones_like(weights, dtype=torch.bool), ctx)


def test_rows_of_up_to_three_edges_keep_all_of_them() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(stage(weights, 2.0), weights**2 / (weights**2).sum())
    four = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(
        stage(four, 2.0), torch.tensor([[0.36, 0.04, 0, 0]], dtype=torch.float64) / 0.4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 100, 5000])
def test_a_row_of_equal_weights_keeps_them(count: int, dtype: torch.dtype) -> None:
    weights = torch.full((1, count), 1.0 / count, dtype=dtype).requires_grad_()
    found = stage(weights, 15.0)
    torch.testing.assert_close(
        found, weights.detach(), rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=0.0
    )
    (gradient,) = torch.autograd.grad(found.square().sum(), weights)
    assert gradient.isfinite().all()
    # Equal keys give equal logits; what the kernels make of them differs by roundings.
    query, keys = torch.randn(1, 1, count, 16).to(dtype), torch.ones(1, 1, count, 16, dtype=dtype)
    value = torch.linspace(-1, 1, count, dtype=dtype).view(1, 1, count, 1).expand(-1, -1, -1, 16)
    for backend in ("rows", "block") if dtype == torch.float32 and count < 200 else ():
        out = attend(query, keys, value, pattern=causal(), backend=backend, **lssar(16, 15.0))
        means = value.cumsum(2) / torch.arange(1, count + 1).view(1, 1, -1, 1)
        torch.testing.assert_close(out, means, rtol=1e-4, atol=1e-5)


def test_no_weight_is_lost_where_little_exceeds_the_mean_and_the_port_loses_it() -> None:
    """A largest excess of 0.3: its 15th power is 1e-8."""
    count = 200
    weights = torch.full((1, count), 1.0)
    weights[0, 0] = 1.3
    weights = weights / weights.sum()
    torch.testing.assert_close(stage(weights, 15.0).sum(), torch.tensor(1.0))
    shared = torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(0))
    query, keys = (
        shared + torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(seed)) / 2
        for seed in (1, 2)
    )
    ones = torch.ones(1, 2, 300, 1)
    sums = attend(query, keys, ones, pattern=causal(), **lssar(64, 15.0))
    torch.testing.assert_close(sums, ones, rtol=1e-6, atol=1e-6)
    ported = attend(query, keys, ones, pattern=causal(), **lssar_port(64, 15.0))
    assert ported.median() < 1e-3 and ported.max() <= 1.0 + 1e-6


def test_the_port_is_its_text() -> None:
    given, power = tensors(), 15.0
    out = attend(*given, pattern=causal(), backend="reference", **lssar_port(WIDTH, power))
    query, keys, values = (one.repeat_interleave(4 // one.shape[1], 1) for one in given)
    many = torch.arange(1, N + 1, dtype=torch.float64).view(-1, 1)
    unit = (one / one.norm(dim=-1, keepdim=True) for one in (query, keys))
    logits = math.log(WIDTH) * many.log() * torch.einsum("bhid,bhjd->bhij", *unit)
    feature = torch.log1p(logits.exp()).tril()
    share = feature / (feature.sum(-1, keepdim=True) + 1e-8)
    over = (share * many - (many > 3).double()).relu() ** power
    torch.testing.assert_close(out, over / (over.sum(-1, keepdim=True) + 1e-8) @ values)


def test_other_weights_can_be_sharpened() -> None:
    given = tensors()
    out = attend(*given, pattern=causal(), normaliser=Softmax() >> ShiftPower(4.0) >> L1())
    query, keys, values = (one.repeat_interleave(4 // one.shape[1], 1) for one in given)
    mask = torch.ones(N, N, dtype=torch.bool).tril()
    soft = (query @ keys.mT / WIDTH**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    many = torch.arange(1, N + 1).view(-1, 1)
    over = (soft * many - (many > 3).double()).relu() ** 4
    torch.testing.assert_close(out, over / over.sum(-1, keepdim=True) @ values)


def test_absent_logits_in_a_row_of_scale_zero_are_no_nan() -> None:
    """log 1 = 0, and 0 * -inf is NaN."""
    values = torch.zeros(N, N, dtype=torch.float64)
    values[:, 1:] = -torch.inf  # one key is left
    for options in (lssa(WIDTH), lssar(WIDTH)):
        score = Dot() + EdgeBias(values)
        given = tensors()
        out = attend(*given, score=score, normaliser=options["normaliser"])
        torch.testing.assert_close(out, given[2].repeat_interleave(2, 1)[:, :, :1].expand_as(out))
        grads = torch.autograd.grad(out.sum(), given, allow_unused=True)
        assert all(one.isfinite().all() for one in grads if one is not None)


def test_parts_do_not_merge_and_say_why() -> None:
    given = tensors()
    for options in (lssa(WIDTH), lssar(WIDTH)):
        with pytest.raises(ValueError, match="return_state=True needs parts that merge, but times_log_count"):
            attend(*given, pattern=causal(), return_state=True, **options)
        out, lse = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3)
        with pytest.raises(
            ValueError, match="parts of a row cannot be merged, since a weight depends on the"
        ):
            merge([(out, State(lse, None, options["normaliser"]))])


def test_two_rounds_over_shards_are_the_whole() -> None:
    """What a merge would take: first the sums of the softplus, then powers that add up in log space."""
    query, keys, values = (tensor.detach() for tensor in tensors())
    keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
    whole = attend(query, keys, values, pattern=dense(), **lssar(WIDTH, 15.0))
    shards = ((0, 13), (13, N))
    unit = [one / one.norm(dim=-1, keepdim=True) for one in (query, keys)]
    # log n_i counts the whole row, which no shard knows.
    logits = math.log(WIDTH) * math.log(N) * unit[0] @ unit[1].mT
    feature = torch.log1p(logits.exp())
    total = sum(feature[..., a:b].sum(-1, keepdim=True) for a, b in shards)
    over = (N * feature / total - 1).relu().log() * 15.0
    parts = []
    for a, b in shards:
        lse = over[..., a:b].logsumexp(-1)
        weights = (over[..., a:b] - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
        parts.append((weights @ values[:, :, a:b], State(lse)))
    torch.testing.assert_close(merge(parts)[0], whole)


@pytest.mark.parametrize("power", [0.5, math.inf, math.nan])
def test_errors(power: float) -> None:
    with pytest.raises(ValueError, match="power must be a finite number of at least 1, got"):
        ShiftPower(power)
    with pytest.raises(
        ValueError, match="lssa: width must be that of a head, a whole number of at least 2, got 1"
    ):
        lssa(1)
    with pytest.raises(ValueError, match="a whole number of at least 2, got True"):
        lssa(True)


def test_names() -> None:
    assert (
        lssar(64, 3.0)["normaliser"].name
        == "times_log_count >> l1(softplus) >> shift_power(3) >> l1(identity)"
    )
    assert not TimesLogCount().mergeable and lssar(64, 3.0)["normaliser"].amplification == 2.0 * 12.0 * 2.0
