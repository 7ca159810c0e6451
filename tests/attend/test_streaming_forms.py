"""Which normalisers stream, which requests are refused, and what the operator of the strips promises."""

import re

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from attlas.attend import (
    L1,
    ShiftPower,
    Sigmoid,
    Softmax,
    TimesLogCount,
    attend,
    counting,
    explain,
    lssa,
    lssar,
)
from attlas.attend.streaming import Form, form_of
from attlas.attend.strip_forms import weighted_strips
from attlas.attend.strip_rules import SHIFT_POWER, SIGMOID, SOFTPLUS
from attlas.attend.strips import joined, strips_of
from attlas.pattern import Tokens, causal, opaque

WIDTH = 24


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, heads, 64, WIDTH, generator=generator).requires_grad_() for heads in (4, 2, 2)]


def test_a_form_says_how_many_sweeps_it_takes() -> None:
    assert form_of(lssa(8)["normaliser"]) == Form(SOFTPLUS, scaled=True)
    assert form_of(lssar(8, 3)["normaliser"]) == Form(SHIFT_POWER, passes=2, scaled=True, power=3)
    assert form_of(Sigmoid()) == Form(SIGMOID, bias=None)

    class Own(Sigmoid):
        pass

    for other in (
        Own(-1.0), Softmax(), L1("relu"), TimesLogCount(), TimesLogCount() >> Sigmoid(-1.0),
        Softmax() >> ShiftPower(3) >> L1(), L1("softplus") >> ShiftPower(3), Sigmoid(0.0) >> L1(),
    ):  # fmt: skip
        assert form_of(other) is None
    given = tensors()
    text = explain(*given, pattern=causal(), **lssar(WIDTH))
    assert "backend     block" in text and "strips, compiled, in 2 sweeps over the keys" in text
    with counting() as heard:
        attend(*given, pattern=causal(), **lssar(WIDTH))
    assert not len(heard)


def test_what_strips_do_not_run_is_refused_and_falls_back() -> None:
    given = tensors()
    for options, reason in (
        ({"normaliser": Sigmoid(-1.0), "dropout": 0.1}, "it has no dropout"),
        ({"normaliser": L1("softplus"), "return_state": True}, "it returns no state of l1\\(softplus\\)"),
        (
            {"normaliser": Sigmoid(-1.0), "pattern": opaque(lambda i, j: i >= j, "earlier")},
            "has no ranges of keys",
        ),
        ({"normaliser": L1("relu")}, "its normaliser is softmax, not l1\\(relu\\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            attend(*given, backend="block", **options)
        attend(*given, **options)
    with pytest.raises(ValueError, match="it takes float32 and bfloat16"):
        attend(*(tensor.double() for tensor in given), normaliser=Sigmoid(-1.0), backend="block")


def test_differentiable_once_and_no_forward_mode() -> None:
    given = tensors()
    out = attend(*given, pattern=causal(), backend="block", **lssar(WIDTH, 3))
    (first,) = torch.autograd.grad(out.square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match=re.escape("differentiable once")):
        first.sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        dual = forward_ad.make_dual(given[0].detach(), torch.ones_like(given[0]))
        attend(dual, *given[1:], normaliser=Sigmoid(-1.0), backend="block")


@pytest.mark.parametrize("rule", [SIGMOID, SOFTPLUS, SHIFT_POWER])
def test_the_operator_is_a_good_one(rule: int) -> None:
    parts = joined([[strips_of(causal(), Tokens(20), Tokens(20))] * 2])
    made = [torch.randn(1, heads, 20, 16).requires_grad_() for heads in (2, 1, 1)]
    counts = torch.arange(1.0, 21).expand(1, 2, 20).contiguous()
    rows = -counts.log() if rule == SIGMOID else counts
    torch.library.opcheck(
        torch.ops.attlas.weighted_strips.default, (*made, *parts, rows, 0.3, rule, 2.0),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip
    assert weighted_strips(*made, parts, rows, 0.3, rule, 2.0).shape == (1, 2, 20, 16)
