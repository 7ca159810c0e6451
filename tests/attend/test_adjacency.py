"""Maps of attention weights to adjacencies, each against its formula written out over a dense matrix."""

import math

import pytest
import torch
from torch import nn

from attlas.attend import Binary, NeighbourMax, Softmax, SoftThreshold, TopShare, attend
from attlas.attend.reference import weights_of
from attlas.attend.request import make_request
from attlas.pattern import causal, window

N = 70


def drawn(n=N, heads=2, width=4):
    return [2 * torch.randn(2, heads, n, width, dtype=torch.float64) for _ in range(3)]


def dense(query, key, mask):
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return logits.masked_fill(~mask, -math.inf).softmax(-1)


FORMULAS = {
    "relu": (SoftThreshold(0.2), lambda a: (a - 0.2) * (a > 0.2)),
    "silu": (SoftThreshold(0.2, "silu"), lambda a: (a - 0.2) / (1 + torch.exp(0.2 - a))),
    "softplus": (SoftThreshold(0.2, "softplus"), lambda a: torch.log1p(torch.exp(a - 0.2))),
    "sharp softplus": (
        SoftThreshold(0.2, "softplus", sharpness=10.0),
        lambda a: torch.log1p(torch.exp(10 * (a - 0.2))) / 10,
    ),
    "sigmoid": (SoftThreshold(0.2, "sigmoid", sharpness=10.0), lambda a: 1 / (1 + torch.exp(2 - 10 * a))),
    "binary": (Binary(0.2), lambda a: (a > 0.2).double()),
    "relu below": (SoftThreshold(0.2, saturates=True), lambda a: (a > 0.2).double()),
    "silu below": (
        SoftThreshold(0.2, "silu", saturates=True),
        lambda a: torch.where(a > 0.2, 1.0, (a - 0.2) / (1 + torch.exp(0.2 - a))),
    ),
    "softplus below": (
        SoftThreshold(0.2, "softplus", saturates=True),
        lambda a: torch.where(a > 0.2, 1.0, torch.log1p(torch.exp(a - 0.2))),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_map_is_its_formula_and_zero_off_the_pattern(name):
    stage, formula = FORMULAS[name]
    query, key, value = drawn()
    mask = torch.ones(N, N, dtype=torch.bool).tril().triu(-20)
    wanted = torch.where(mask, formula(dense(query, key, mask)), 0.0)
    found = attend(query, key, value, pattern=causal() & window(21), normaliser=Softmax() >> stage)
    torch.testing.assert_close(found, wanted @ value, rtol=1e-9, atol=1e-9)
    assert not weights_of(
        make_request(query, key, value, pattern=causal() & window(21), normaliser=Softmax() >> stage)
    )[..., ~mask].any()


def test_a_learned_threshold_has_its_gradient_per_head():
    query, key, value = (part[:, :, :9].requires_grad_() for part in drawn())
    theta = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)

    def run(q, k, v, at):
        chain = Softmax() >> SoftThreshold(at, "softplus", sharpness=10.0)
        return attend(q, k, v, pattern=causal(), normaliser=chain)

    assert torch.autograd.gradcheck(run, (query, key, value, theta), eps=1e-6, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("stage", "wanted"), [
    (TopShare(0.1), lambda edges: max(1, int(0.1 * edges + 1e-9))),
    (TopShare(count=7), lambda edges: min(7, edges)),
])  # fmt: skip
def test_the_largest_share_of_the_edges(stage, wanted):
    query, key, value = drawn()
    mask = torch.ones(N, N, dtype=torch.bool).tril()
    exact = dense(query, key, mask)
    adjacency = torch.zeros_like(exact)
    for i in range(N):
        top = exact[:, :, i, : i + 1].topk(wanted(i + 1), -1).indices
        adjacency[:, :, i].scatter_(-1, top, 1.0)
    found = attend(query, key, value, pattern=causal(), normaliser=Softmax() >> stage)
    torch.testing.assert_close(found, adjacency @ value, rtol=1e-9, atol=1e-9)


def test_the_maximum_over_neighbours_leaves_out_weights_of_zero():
    query, key, value = (part.requires_grad_() for part in drawn(20))
    chain = Softmax() >> SoftThreshold(0.5)
    found = attend(query, key, value - 5, pattern=causal(), normaliser=chain, aggregate=NeighbourMax())
    mask = torch.ones(20, 20, dtype=torch.bool).tril()
    near = (dense(query, key, mask) > 0.5) & mask
    some = 0
    for b in range(2):
        for h in range(2):
            for i in range(20):
                rows = [value[b, h, j] - 5 for j in range(20) if near[b, h, i, j]]
                wanted = torch.stack(rows).amax(0) if rows else torch.zeros(4, dtype=torch.float64)
                torch.testing.assert_close(found[b, h, i], wanted, rtol=0, atol=1e-12)
                some += bool(rows)
    assert 0 < some < 80
    gradient = torch.autograd.grad(found.sum(), (query, value), allow_unused=True)
    assert gradient[0] is None or not gradient[0].any()
    assert float(gradient[1].sum()) == some * 4  # each channel's one value was found somewhere


@pytest.mark.parametrize(("make", "text"), [
    (lambda: SoftThreshold(0.2, "tanh"), "map must be one of relu, silu, softplus, sigmoid, got 'tanh'"),
    (lambda: SoftThreshold(0.2, sharpness=0.0), "sharpness must be a positive number, got 0.0"),
    (lambda: Binary(math.nan), "Binary: at must be a finite threshold, got nan"),
    (lambda: Binary(torch.zeros(2, 2)), "one number, or one per query head, got \\(2, 2\\)"),
    (lambda: TopShare(0.0), "share must be above 0 and at most 1, got 0.0"),
    (lambda: TopShare(count=0), "count must be at least 1, or None for a share, got 0"),
])  # fmt: skip
def test_what_cannot_be_is_said(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_parts_of_a_row_do_not_merge():
    query, key, value = drawn(5)
    with pytest.raises(ValueError, match="return_state=True needs parts that merge, but softmax >> relu"):
        attend(query, key, value, normaliser=Softmax() >> SoftThreshold(), return_state=True)


def test_names_tell_the_threshold():
    assert (Softmax() >> SoftThreshold(0.2)).name == "softmax >> relu(above 0.2)"
    assert SoftThreshold(nn.Parameter(torch.tensor(0.2)), "silu", saturates=True).name == (
        "silu(above learned, 1 above)"
    )
    assert TopShare().name == "top(0.1 of the edges)" and Binary(0.5).name == "binary(above 0.5)"
