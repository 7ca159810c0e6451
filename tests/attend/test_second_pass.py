"""Second-pass services against the full weight matrix of the reference."""

import pytest
import torch
from torch import Tensor

from attlas.attend import (
    L1,
    ArgmaxPerKey,
    BandMean,
    ColumnMean,
    Entropy,
    GroupShare,
    Normaliser,
    Reducer,
    RowDistance,
    Softmax,
    State,
    apply_weights,
    attend,
    edges_above,
    make_request,
    merge,
    reduce,
    weights,
)
from attlas.attend.reference import weights_of
from attlas.pattern import Pattern, Tokens, causal, key, per_head, per_kv_head, sink, window
from attlas.score import Dot, EdgeBias

LENGTH = 100
PATTERNS: dict[str, Pattern | None] = {
    "none": None,
    "shared": (causal() & (window(20) | sink(3))) - key(0, 2),
    "per KV head": per_kv_head([causal() & (window(20) | sink(3)), causal()]),
    "per head": per_head([causal(), window(9), causal() & window(9), causal()]),
}
NORMALISERS: dict[str, Normaliser] = {
    "softmax": Softmax(),
    "sink": Softmax(0.3),
    "learned": Softmax(torch.linspace(-1, 1, 4).double()),
}
REDUCERS: tuple[Reducer, ...] = (
    ColumnMean(),
    Entropy(),
    BandMean((0, 4, 16, 1000)),
    RowDistance(),
    GroupShare(torch.arange(LENGTH) % 3, 3),
    ArgmaxPerKey(),
)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    query, key_, value = (
        torch.randn(2, heads, LENGTH, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    return query, key_, value


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_reducers(pattern: str, normaliser: str, with_state: bool) -> None:
    query, key_, value = inputs()
    options = {"pattern": PATTERNS[pattern], "normaliser": NORMALISERS[normaliser]}
    full = weights_of(make_request(query, key_, value, **options)).detach()
    state = attend(query, key_, value, return_state=True, **options)[1] if with_state else None
    found = reduce(query, key_, state, REDUCERS, **options)
    at = torch.arange(LENGTH)
    distance = at[:, None] - at[None]
    torch.testing.assert_close(found["column_mean"], full.mean(2))
    torch.testing.assert_close(found["entropy"], torch.special.entr(full).sum(-1))
    torch.testing.assert_close(found["row_distance"], (full * distance.abs()).sum(-1))
    for band, (low, high) in enumerate(((0, 4), (4, 16), (16, 1000))):
        inside = (distance >= low) & (distance < high)
        torch.testing.assert_close(found["band_mean"][..., band], (full * inside).sum(-1).mean(-1))
    shares = torch.stack([full[..., group::3].sum(-1) for group in range(3)], -1)
    torch.testing.assert_close(found["group_share"], shares)
    seen = full.amax(2) > 0
    assert torch.equal(found["argmax_per_key"], torch.where(seen, full.argmax(2), -1))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_edges_above(pattern: str) -> None:
    query, key_, value = inputs()
    full = weights_of(make_request(query, key_, value, pattern=PATTERNS[pattern])).detach().flatten(0, 2)
    for tau in (0.05, 0.9999):
        found = edges_above(query, key_, tau=tau, pattern=PATTERNS[pattern])
        wanted = full >= tau
        assert (
            torch.equal(found.row_ptr.diff(), wanted.sum(1)) and found.row_ptr.numel() == 2 * 4 * LENGTH + 1
        )
        assert torch.equal(found.col, wanted.nonzero()[:, 1])
        torch.testing.assert_close(found.weight, full[wanted])


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_chosen_weights_and_their_gradient(pattern: str, normaliser: str) -> None:
    query, key_, value = inputs()
    bias = torch.randn(4, LENGTH, LENGTH, dtype=torch.float64, requires_grad=True)
    options = {
        "pattern": PATTERNS[pattern],
        "normaliser": NORMALISERS[normaliser],
        "score": Dot() + EdgeBias(bias),
    }
    full = weights_of(make_request(query, key_, value, **options))
    rows, cols = torch.randint(0, LENGTH, (2, 300), generator=torch.Generator().manual_seed(1))
    some = weights(query, key_, edges=(rows, cols), **options)
    torch.testing.assert_close(some, full[:, :, rows, cols])
    columns = torch.tensor([0, 5, 99])
    torch.testing.assert_close(weights(query, key_, columns=columns, **options), full[..., columns])
    leaves = (query, key_, bias)
    found = torch.autograd.grad(some.sin().sum(), leaves)
    wanted = torch.autograd.grad(full[:, :, rows, cols].sin().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_state_of_merged_parts_gives_weights_of_the_whole() -> None:
    query, key_, value = inputs()
    parts = [
        attend(query, key_, value, pattern=causal() & key(a, b), return_state=True)
        for a, b in ((0, 40), (40, 100))
    ]
    state: State = merge(parts)[1]
    found = reduce(query, key_, state, [ColumnMean()], pattern=causal() & key(40, 100))["column_mean"]
    full = weights_of(make_request(query, key_, value, pattern=causal())).detach()
    torch.testing.assert_close(found[..., 40:], full.mean(2)[..., 40:])


def test_apply_weights() -> None:
    _, _, value = inputs()
    pattern = causal() & (window(20) | sink(3))
    mask = pattern.mask(Tokens(LENGTH), Tokens(LENGTH))
    given = torch.randn(2, 4, int(mask.sum()), dtype=torch.float64, requires_grad=True)
    out = apply_weights(given, value, pattern)
    dense = torch.zeros(2, 4, LENGTH, LENGTH, dtype=torch.float64).masked_scatter(mask, given)
    wanted = dense @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(out, wanted)
    found = torch.autograd.grad(out.sin().sum(), (given, value))
    for one, other in zip(found, torch.autograd.grad(wanted.sin().sum(), (given, value)), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(
        ValueError, match=r"weights must be \(batch, heads, \d+ edges\) with heads a multiple of 2"
    ):
        apply_weights(given[..., :-1], value, pattern)
    with pytest.raises(ValueError, match="pattern must be one for all heads; call once per head"):
        apply_weights(given, value, per_head([pattern] * 4))


def test_errors() -> None:
    query, key_, _ = inputs()
    with pytest.raises(ValueError, match="reducers must be one or more of different names, got none"):
        reduce(query, key_)
    with pytest.raises(ValueError, match="different names"):
        reduce(query, key_, None, [Entropy(), Entropy()])
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        edges_above(query, key_, tau=0.0)
    with pytest.raises(ValueError, match="give either edges=.rows, keys. or columns"):
        weights(query, key_)
    with pytest.raises(ValueError, match="two index tensors .rows, keys. of the same length"):
        weights(query, key_, edges=(torch.arange(3), torch.arange(2)))
    state = State(torch.zeros(2, 4, LENGTH))
    with pytest.raises(ValueError, match=r"a state gives weights for softmax only, not l1\(softplus\)"):
        reduce(query, key_, state, [Entropy()], normaliser=L1("softplus"))
    with pytest.raises(ValueError, match="edges must be at least two increasing distances, got .3, 3."):
        BandMean((3, 3))
    with pytest.raises(ValueError, match="numbers in 0..1, got shape .3,. with values 0..2"):
        GroupShare(torch.arange(3), 2)
    with pytest.raises(ValueError, match="3 labels for 100 keys"):
        reduce(query, key_, None, [GroupShare(torch.arange(3), 3)])
    with pytest.raises(ValueError, match="with at least one key"):
        reduce(query, key_[:, :, :0], None, [Entropy()])
