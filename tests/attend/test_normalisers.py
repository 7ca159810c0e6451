"""Normalisers by their formulas, on rows with and without edges."""

import math

import pytest
import torch
from torch import Tensor

from attlas.attend import (
    L1,
    Identity,
    Max,
    Mean,
    Min,
    Normaliser,
    Ratio,
    RowContext,
    Sigmoid,
    Softmax,
    Sum,
    Threshold,
)

LOGITS = torch.tensor(
    [[0.5, -1.0, 2.0, 0.1], [3.0, 1.0, -2.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64
)
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)


def rows(normaliser: Normaliser, logits: Tensor = LOGITS) -> tuple[Tensor, RowContext]:
    at = torch.arange(4)
    ctx = RowContext(at[:3, None], at[None], MASK.sum(-1, keepdim=True))
    tensors = [tensor.flatten()[:1].view(1, 1) for tensor in normaliser.tensors()]
    return normaliser.rows(logits, MASK, ctx, *tensors), ctx


def test_softmax_with_and_without_sink() -> None:
    power = LOGITS.exp() * MASK
    weights, ctx = rows(Softmax())
    torch.testing.assert_close(weights[:2], (power / power.sum(-1, keepdim=True))[:2])
    torch.testing.assert_close(ctx.statistics["lse"].flatten()[:2], power.sum(-1).log()[:2])
    assert ctx.statistics["lse"][2] == -math.inf and (weights[2] == 0).all()
    for sink in (0.3, torch.tensor([0.3], dtype=torch.float64)):
        weights, _ = rows(Softmax(sink))
        torch.testing.assert_close(weights, power / (power.sum(-1, keepdim=True) + math.exp(0.3)))


@pytest.mark.parametrize("sink", [-500.0, 500.0])
def test_extreme_sinks_and_logits_stay_finite(sink: float) -> None:
    logits = (LOGITS * 300).requires_grad_()
    weights, _ = rows(Softmax(sink), logits)
    (gradient,) = torch.autograd.grad(weights.square().sum(), logits)
    assert weights.isfinite().all() and gradient.isfinite().all()


def test_others() -> None:
    torch.testing.assert_close(rows(Sigmoid(-1.0))[0], (LOGITS - 1).sigmoid() * MASK)
    counts = torch.tensor([[3.0], [4.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(rows(Sigmoid())[0], (LOGITS - counts.log()).sigmoid() * MASK)
    torch.testing.assert_close(rows(Identity())[0], LOGITS * MASK)
    plus = torch.nn.functional.softplus(LOGITS) * MASK
    weights, ctx = rows(L1("softplus"))
    torch.testing.assert_close(weights[:2], (plus / plus.sum(-1, keepdim=True))[:2])
    torch.testing.assert_close(ctx.statistics["total"].squeeze(-1), plus.sum(-1))


@pytest.mark.parametrize("feature", ["relu", "softplus", "exp", "identity"])
def test_ratio_adds_eps_to_the_sum(feature: str) -> None:
    known = {"relu": torch.relu, "softplus": torch.nn.functional.softplus, "exp": torch.exp}
    power = known.get(feature, lambda x: x)(LOGITS) * MASK
    weights, ctx = rows(Ratio(feature, 0.25))
    torch.testing.assert_close(weights, power / (power.sum(-1, keepdim=True) + 0.25))
    torch.testing.assert_close(ctx.statistics["total"].squeeze(-1), power.sum(-1))
    # Where nothing is left to divide by, L1 gives 0 and so does this.
    nothing, _ = rows(Ratio("relu", 0.25), -LOGITS.abs())
    assert (nothing == 0).all() and nothing.isfinite().all()


def test_chains_feed_weights_to_the_next_stage() -> None:
    chain = Softmax() >> Threshold(0.2) >> L1()
    soft, _ = rows(Softmax())
    kept = torch.where(soft >= 0.2, soft, 0.0)
    weights, _ = rows(chain)
    torch.testing.assert_close(weights[:2], (kept / kept.sum(-1, keepdim=True))[:2])
    assert (weights[2] == 0).all()
    assert chain.name == "softmax >> threshold(0.2) >> l1(identity)"
    assert chain.amplification == 2.0 and not chain.mergeable and chain.causal_safe
    learned = Softmax(torch.zeros(1)) >> L1()
    assert len(learned.tensors()) == 1 and rows(learned)[0][:2].sum() == pytest.approx(2.0)


@pytest.mark.parametrize(
    "normaliser", [Softmax(), Softmax(0.1), Sigmoid(), Identity(), L1("softplus"), L1("exp"), Ratio("exp")]
)
def test_rows_without_edges_have_no_gradient(normaliser: Normaliser) -> None:
    logits = LOGITS.clone().requires_grad_()
    weights, ctx = rows(normaliser, logits)
    (gradient,) = torch.autograd.grad(weights.square().sum() + weights.sum(), logits)
    assert (gradient[~MASK] == 0).all() and gradient.isfinite().all()
    assert ctx.statistics["lse"][2] == -math.inf


def test_aggregates() -> None:
    weights, value = rows(Softmax())[0], torch.randn(1, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(Sum().rows(weights, value, MASK), weights @ value[0])
    torch.testing.assert_close(Mean().rows(weights, value, MASK)[1], (weights @ value[0])[1] / 4)
    largest = (weights[1][:, None] * value[0]).amax(0)
    torch.testing.assert_close(Max().rows(weights, value, MASK)[1], largest)
    smallest = (weights[1][:, None] * value[0]).amin(0)
    torch.testing.assert_close(Min().rows(weights, value, MASK)[1], smallest)
    assert all((one.rows(weights, value, MASK)[2] == 0).all() for one in (Sum(), Mean(), Max(), Min()))
    assert Sum().linear and Mean().linear and not Max().linear and not Min().linear


def test_max_keeps_its_arg_and_not_its_messages() -> None:
    kept: list[Tensor] = []
    weights, value = torch.rand(5, 40, requires_grad=True), torch.randn(1, 40, 3, requires_grad=True)
    mask = torch.ones(5, 40, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = Max().rows(weights, value, mask)
    wide = [tensor for tensor in kept if tensor.numel() >= 5 * 40 * 3 and tensor.dtype != torch.bool]
    assert not wide and any(t.dtype == torch.int64 and t.numel() == 5 * 3 for t in kept)
    (found,) = torch.autograd.grad(out.sum(), value)
    arg = (weights.unsqueeze(-1) * value).argmax(1)
    wanted = torch.zeros(40, 3).scatter_add(0, arg, weights.detach().gather(1, arg))
    torch.testing.assert_close(found[0], wanted)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"eps must be a positive number, got 0.*L1\(\) divides without"):
        Ratio("relu", 0.0)
    with pytest.raises(ValueError, match="Ratio: feature must be one of .*, exp, taylor, got 'tanh'"):
        Ratio("tanh")
    with pytest.raises(ValueError, match="sink must be finite, got inf; None means no sink"):
        Softmax(math.inf)
    with pytest.raises(ValueError, match=r"one logit per query head, got \(2, 2\)"):
        Softmax(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="feature must be one of .*, exp, taylor, got 'tanh'"):
        L1("tanh")
    with pytest.raises(TypeError, match="unsupported operand"):
        Softmax() >> 3  # type: ignore[operator]
