"""Inputs without rows or tokens: an empty answer, or one error that names the argument."""

import pytest
import torch

from attlas.layers import (
    MIXERS,
    AgentAttention,
    AutoCorrelation,
    Reweaving,
    Setting,
    ShiftedWindowAttention,
    SparseHybrid,
)
from attlas.layers.inputs import check_tokens

WIDTH = 8
SHAPES = [(0, 4), (2, 0), (0, 0)]


def mixer(name, form):
    setting = Setting(WIDTH, 2, causal=form[0] == "C", cross=form[1] == "C", length=16)
    return MIXERS[name].build(setting)


def inputs(shape, form="NS"):
    return [torch.zeros(*shape, WIDTH) for _ in range(1 + (form[1] == "C"))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["qlstm", "mamba", "base_conv", "base_conv_long"])
def test_nothing_gives_nothing(name, shape):
    module = mixer(name, "CS")
    (x,) = inputs(shape)
    assert module(x).shape == x.shape
    y, state = module.advance(x, module.start(shape[0]))
    assert y.shape == x.shape and state.position.tolist() == [shape[1]] * shape[0]


@pytest.mark.parametrize("name", ["linear", "normalised_linear", "cosformer"])
def test_a_batch_of_none_gives_nothing_and_no_token_is_refused(name):
    module = mixer(name, "CS")
    for run in (module, lambda x: module.advance(x, module.start(len(x)))[0]):
        assert run(torch.zeros(0, 4, WIDTH)).shape == (0, 4, WIDTH)
        with pytest.raises(
            ValueError, match="(scan: expected|cosformer: x must have) at least one token, got"
        ):
            run(torch.zeros(2, 0, WIDTH))


@pytest.mark.parametrize("form", ["NS", "NC", "CC"])
@pytest.mark.parametrize("name", ["performer", "cosformer"])
def test_of_both_sequences_a_token_is_needed(name, form):
    module = mixer(name, form)
    assert module(*inputs((0, 4), form)).shape == (0, 4, WIDTH)
    with pytest.raises(ValueError, match=rf"{name}: x must have at least one token, got shape \(2, 0, 8\)"):
        module(*inputs((2, 0), form))
    if form[1] == "C":
        with pytest.raises(ValueError, match=rf"{name}: context must have at least one token"):
            module(torch.zeros(2, 3, WIDTH), torch.zeros(2, 0, WIDTH))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "form", "owner"),
    [
        ("agent", "NS", "agent attention"),
        ("autocorrelation", "NS", "auto-correlation"),
        ("autocorrelation", "NC", "auto-correlation"),
        ("sparse_hybrid", "NS", "SparseHybrid in training"),
        ("sparse_hybrid", "CS", "SparseHybrid in training"),
    ],
)
def test_a_row_and_a_token_are_needed(name, form, owner, shape):
    with pytest.raises(ValueError, match=f"{owner}: x must have at least one batch row and one token, got"):
        mixer(name, form)(*inputs(shape, form))


def test_a_context_without_tokens_has_no_correlation():
    with pytest.raises(ValueError, match="auto-correlation: context must have at least one batch row and"):
        AutoCorrelation(WIDTH, 2)(torch.zeros(2, 3, WIDTH), torch.zeros(2, 0, WIDTH))


@pytest.mark.parametrize("shape", SHAPES)
def test_reweaving_needs_a_row_and_a_token(shape):
    module = Reweaving(WIDTH, 2, 1)
    (x,) = inputs(shape)
    for run in (lambda: module(x, [x]), lambda: module.advance(x, [x], module.start(shape[0]))):
        with pytest.raises(ValueError, match="reweaving: x must have at least one batch row and one token"):
            run()


@pytest.mark.parametrize(
    "make",
    [
        lambda heads: AgentAttention(WIDTH, heads),
        lambda heads: ShiftedWindowAttention(WIDTH, heads=heads, window=2),
        lambda heads: SparseHybrid(WIDTH, heads),
        lambda heads: Reweaving(WIDTH, heads, 1),
    ],
    ids=["agent", "shifted windows", "sparse hybrid", "reweaving"],
)
@pytest.mark.parametrize("heads", [0, -2])
def test_heads_below_one_are_refused(make, heads):
    with pytest.raises(ValueError, match=f"width must be a multiple of heads, got 8 and {heads}"):
        make(heads)


def test_what_there_is_not_is_not_looked_at():
    check_tokens("owner", x=torch.zeros(1, 1, 2), context=None)
    with pytest.raises(ValueError, match=r"owner: y must have at least one token, got shape \(0, 0\)"):
        check_tokens("owner", rows=False, y=torch.zeros(0, 0))
