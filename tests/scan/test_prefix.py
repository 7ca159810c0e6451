"""Every monoid's laws, and `prefix` against one leaf after the other, in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attend.memory import allocations
from attlas.scan import Add, Affine, LogSumExp, Max, SoftmaxMean, TopR, prefix

MONOIDS = {
    "add": Add(),
    "affine": Affine(),
    "affine, shared factor": Affine(),
    "logsumexp": LogSumExp(),
    "max": Max(),
    "softmax mean": SoftmaxMean(),
    "top 3": TopR(3),
}
SMOOTH = [name for name in MONOIDS if name != "top 3"]


def drawn(name, n, seed=0, absent=0.2):
    """Leaves (2, 3, n, ...) in float64, with some logits of -inf."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)

    logits = 3 * normal(n)
    logits[torch.rand(2, 3, n, generator=generator) < absent] = -float("inf")
    if name == "affine":
        return normal(n, 4), normal(n, 4)
    if name == "affine, shared factor":
        return normal(n), normal(n, 2, 4)
    if name in ("logsumexp", "max"):
        return (logits,)
    if name == "softmax mean":
        return SoftmaxMean.leaf(logits, normal(n, 4))
    if name == "top 3":
        return TopR(3).leaf(logits.round(), torch.arange(n))
    return (normal(n, 4),)


def at(leaves, i):
    return tuple(leaf[:, :, i] for leaf in leaves)


def one_by_one(monoid, leaves, state=None):
    found = []
    for i in range(leaves[0].shape[2]):
        leaf = at(leaves, i)
        state = leaf if state is None else monoid.combine(state, leaf)
        found.append(state)
    return tuple(torch.stack(parts, 2) for parts in zip(*found, strict=True))


def check(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MONOIDS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), absent=st.sampled_from([0.0, 0.3, 1.0]))
def test_laws(name, seed, absent):
    monoid = MONOIDS[name]
    a, b, c = (at(drawn(name, 3, seed, absent), i) for i in range(3))
    check(monoid.combine(monoid.combine(a, b), c), monoid.combine(a, monoid.combine(b, c)))
    nothing = monoid.identity(a)
    check(monoid.combine(nothing, a), a)
    check(monoid.combine(a, nothing), a)
    check(monoid.combine(nothing, nothing), nothing)


@pytest.mark.parametrize("name", MONOIDS)
@settings(max_examples=8)
@given(
    n=st.integers(1, 40), chunk=st.integers(2, 9), cut=st.integers(0, 40), reverse=st.booleans(),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_prefixes_are_those_of_a_loop_and_go_on_from_a_state(name, n, chunk, cut, reverse, seed):
    monoid, leaves, cut = MONOIDS[name], drawn(name, n, seed), min(cut, n)
    read = tuple(leaf.flip(2) for leaf in leaves) if reverse else leaves
    wanted = one_by_one(monoid, read)
    found, last = prefix(monoid, leaves, chunk=chunk, reverse=reverse)
    check(tuple(part.flip(2) for part in found) if reverse else found, wanted)
    check(last, at(wanted, n - 1))
    parts = [tuple(leaf[:, :, :cut] for leaf in leaves), tuple(leaf[:, :, cut:] for leaf in leaves)]
    state, pieces = None, []
    for part in reversed(parts) if reverse else parts:
        piece, state = prefix(monoid, part, chunk=chunk, reverse=reverse, state=state)
        pieces.append(piece)
    check(state, last)
    joined = zip(*(reversed(pieces) if reverse else pieces), strict=True)
    check(tuple(torch.cat(pair, 2) for pair in joined), found)


@pytest.mark.parametrize("name", MONOIDS)
def test_more_than_two_levels(name):
    monoid, leaves = MONOIDS[name], drawn(name, 300)
    check(prefix(monoid, leaves, chunk=4)[0], one_by_one(monoid, leaves))
    check(prefix(monoid, leaves)[0], one_by_one(monoid, leaves))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_a_loop(name, reverse):
    monoid = MONOIDS[name]
    leaves = tuple(leaf.requires_grad_() for leaf in drawn(name, 23))
    state = tuple(part.detach().requires_grad_() for part in at(drawn(name, 1, seed=7, absent=0.0), 0))
    weights = drawn("affine, shared factor", 23, seed=5)[1].flatten()

    def total(found, last):
        # Absent logits have prefixes of -inf, which no sum may hold.
        parts = [part.nan_to_num(neginf=0.0) for part in (*found, *last)]
        return sum((part.square() * weights[: part.numel()].view(part.shape)).sum() for part in parts)

    read = tuple(leaf.flip(2) for leaf in leaves) if reverse else leaves
    wanted = one_by_one(monoid, read, state)
    loop = total(tuple(part.flip(2) for part in wanted) if reverse else wanted, at(wanted, 22))
    ours = total(*prefix(monoid, leaves, state=state, reverse=reverse, chunk=5))
    mine, theirs = (torch.autograd.grad(one, (*leaves, *state)) for one in (ours, loop))
    for one, other in zip(mine, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    monoid = MONOIDS[name]
    leaves = tuple(leaf[:1, :1].detach().requires_grad_() for leaf in drawn(name, 7, absent=0.0))
    first = tuple(part[:1, :1].detach().requires_grad_() for part in at(drawn(name, 1, 3, absent=0.0), 0))

    def run(*given):
        found, last = prefix(monoid, given[: len(leaves)], state=given[len(leaves) :], chunk=3)
        return (*found, *last)

    assert torch.autograd.gradcheck(run, (*leaves, *first), fast_mode=True)


def test_the_affine_prefix_is_the_recurrence():
    a, b = drawn("affine", 17)
    h = start = torch.randn(2, 3, 4, dtype=torch.float64)
    found, last = prefix(Affine(), (a, b), state=(torch.ones_like(start), start))
    for i in range(17):
        h = a[:, :, i] * h + b[:, :, i]
        torch.testing.assert_close(found[1][:, :, i], h)
    torch.testing.assert_close(last[1], h)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_softmax_mean_is_the_softmax_of_every_prefix(size):
    # A running sum with one global maximum underflows here: the later logits are larger by far more than 700.
    logits = torch.linspace(-size, size, 41, dtype=torch.float64) + torch.randn(2, 3, 41, dtype=torch.float64)
    value = torch.randn(2, 3, 41, 4, dtype=torch.float64)
    found, _ = prefix(SoftmaxMean(), SoftmaxMean.leaf(logits, value), chunk=7)
    sums, _ = prefix(LogSumExp(), (logits,), chunk=7)
    for i in range(41):
        part = logits[..., : i + 1]
        wanted = (part.softmax(-1).unsqueeze(-1) * value[:, :, : i + 1]).sum(2)
        torch.testing.assert_close(SoftmaxMean.mean(found)[:, :, i], wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(sums[0][..., i], part.logsumexp(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(SoftmaxMean.lse(found), sums[0], rtol=0, atol=1e-12)


def test_nothing_but_absent_keys():
    logits = torch.full((1, 1, 6), -float("inf"), requires_grad=True)
    value = torch.randn(1, 1, 6, 2, requires_grad=True)
    found, _ = prefix(SoftmaxMean(), SoftmaxMean.leaf(logits, value), chunk=2)
    sums, _ = prefix(LogSumExp(), (logits,), chunk=2)
    assert SoftmaxMean.mean(found).eq(0).all() and sums[0].eq(-math.inf).all()
    grads = torch.autograd.grad((SoftmaxMean.mean(found).sum(), sums[0].exp().sum()), (logits, value))
    assert all(grad.eq(0).all() for grad in grads)


def test_top_r_are_the_largest_and_carry_gradient():
    scores = torch.randn(2, 3, 30, requires_grad=True)
    (values, index), _ = prefix(TopR(4), TopR(4).leaf(scores, torch.arange(30)), chunk=5)
    for i in (3, 10, 29):
        wanted = scores[..., : i + 1].topk(4)
        torch.testing.assert_close(values[:, :, i], wanted.values)
        assert index[:, :, i].equal(wanted.indices)
    assert index[0, 0, 1, 2:].tolist() == [-1, -1] and values[0, 0, 1, 2:].eq(-math.inf).all()
    (grad,) = torch.autograd.grad(values[:, :, -1].sum(), scores)
    assert grad.sum(-1).eq(4).all() and grad.gather(-1, index[:, :, -1]).eq(1).all()


def test_other_axes():
    x = torch.randn(7, 5)
    torch.testing.assert_close(prefix(LogSumExp(), (x,), dim=0, chunk=2)[0][0], x.logcumsumexp(0))
    torch.testing.assert_close(prefix(Add(), (x,), dim=-1)[0][0], x.cumsum(1))
    assert prefix(Max(), (x.bfloat16(),), dim=1)[0][0].dtype == torch.float32


@pytest.mark.parametrize("name", MONOIDS)
def test_no_leaves(name):
    monoid, leaves = MONOIDS[name], drawn(name, 3)
    state = at(leaves, 1)
    empty = tuple(leaf[:, :, :0] for leaf in leaves)
    found, last = prefix(monoid, empty, state=state)
    check(found, empty)
    check(last, state)
    check(prefix(monoid, empty)[1], monoid.identity(state))


def test_work_is_linear():
    class Counted(Affine):
        steps = work = 0

        def combine(self, earlier, later):
            found = super().combine(earlier, later)
            Counted.steps, Counted.work = Counted.steps + 1, Counted.work + found[0].numel()
            return found

    n = 5000
    prefix(Counted(), (torch.rand(1, 1, n), torch.rand(1, 1, n)))
    assert Counted.work < 2.2 * n and Counted.steps < 160


@pytest.mark.parametrize("name", ["softmax mean", "logsumexp", "affine"])
def test_memory_is_linear(name):
    monoid = MONOIDS[name]

    def peak(n):
        leaves = tuple(leaf.requires_grad_() for leaf in drawn(name, n))

        def step():
            found, _ = prefix(monoid, leaves, chunk=16)
            torch.autograd.grad(sum(part.nan_to_num(neginf=0).sum() for part in found), leaves)

        return allocations(step).peak

    assert peak(2048) < 2.2 * peak(1024)


def test_errors():
    x = torch.zeros(2, 3, 5, 4)
    for call, kind, text in [
        (lambda: prefix(Affine(), (x,)), TypeError, r"leaves of Affine must be .* \(a, b\), got 1 of them"),
        (
            lambda: prefix(Add(), (x,), dim=4),
            ValueError,
            "dim 4 must be an axis .* got shapes",
        ),
        (lambda: prefix(Affine(), (x, x[:, :, :4])), ValueError, r"\(a, b\) must agree .* up to dim 2, got"),
        (lambda: prefix(Add(), (x,), chunk=1), ValueError, "chunk must be at least 2 leaves, got 1"),
        (
            lambda: prefix(Add(), (x,), state=(x,)),
            ValueError,
            r"state must be \(x\) .* \(2, 3, 4\), got",
        ),
        (lambda: prefix(SoftmaxMean(), (x, x, x)), ValueError, "m and u need the axis dim as their last one"),
        (lambda: prefix(TopR(3), (x, x)), ValueError, "need a last axis of r = 3 behind the axis dim"),
        (lambda: TopR(0), ValueError, "TopR: r must be an integer of at least 1, got 0"),
    ]:
        with pytest.raises(kind, match=text):
            call()


def test_what_is_no_monoid_or_no_tuple_is_refused(isolated_python):
    """Without the annotations' check, which refuses these in tests."""
    said = isolated_python(
        "import torch",
        "from attlas.scan import Add, prefix",
        "for monoid, leaves in ((Add, (torch.zeros(1),)), (Add(), [torch.zeros(1)])):",
        "    try: prefix(monoid, leaves, dim=0)",
        "    except TypeError as error: print(error)",
    )
    assert said.split("\n") == [
        "prefix: monoid must be a Monoid such as Add(), got <class 'attlas.scan.monoids.Add'>",
        "prefix: leaves of Add must be a tuple of tensors (x), got list",
    ]
