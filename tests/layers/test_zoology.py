"""BaseConv, its filter of any length, and the hybrid with attended rows, against plain formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers import BaseConv, ImplicitConv, Setting, SparseHybrid, mixer_entry, sparse_rows
from attlas.layers.sparse_rows import RandomChoice, SigmoidChoice, SoftmaxChoice, TwoWayChoice, root_rows
from attlas.layers.zoology import causal_convolution

CLOSE = {"atol": 1e-10, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def dense_attention(module: SparseHybrid, x: Tensor, causal: bool = True) -> Tensor:
    """All rows, by the formula."""
    query, key, value = (
        part.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for part in module.query_key_value(x).chunk(3, -1)
    )
    logits = query @ key.mT / query.shape[-1] ** 0.5
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1) > 0, float("-inf"))
    return module.out((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("count", [1, 6, 17])
def test_short_form_is_the_official_one(count):
    module, x = BaseConv(5), torch.randn(2, count, 5)
    nn.init.normal_(module.conv.bias)
    official = nn.Conv1d(5, 5, 3, groups=5, padding=2)
    official.weight.data, official.bias.data = module.conv.weight.data[:, None], module.conv.bias.data
    convolved = official(x.mT)[..., :count].mT
    torch.testing.assert_close(module(x), (convolved * module.linear(x)) + x, **CLOSE)


@pytest.mark.parametrize(("count", "features"), [(1, 3), (9, 3), (13, 7)])
def test_long_form_is_the_sum_over_all_lags_with_the_official_features(count, features):
    length = 13
    module = BaseConv(4, ImplicitConv(4, length, features=features))
    x = torch.randn(2, count, 4)
    time = torch.linspace(0, 1, length)[:, None]
    bands = (features - 1) // 2
    turn = 2 * torch.pi * torch.arange(length)[:, None] / length
    z = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands) * turn)
    taps = module.conv.filter(torch.cat([time, z.real, z.imag], -1))
    convolved = torch.stack([sum(taps[lag] * x[:, t - lag] for lag in range(t + 1)) for t in range(count)], 1)
    expected = module.linear(x) * (convolved + x) + x
    torch.testing.assert_close(module(x), expected, **CLOSE)


def test_fft_convolution_has_its_gradients_and_keeps_the_type():
    x, taps = torch.randn(2, 7, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    assert torch.autograd.gradcheck(causal_convolution, (x, taps))
    low = causal_convolution(x.bfloat16(), taps.float())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), causal_convolution(x, taps), rtol=2e-2, atol=2e-1)


def test_two_short_layers_see_five_tokens_and_the_long_one_all():
    x = torch.randn(1, 12, 4, requires_grad=True)
    seen = torch.autograd.grad(BaseConv(4)(BaseConv(4)(x))[0, -1].sum(), x)[0].abs().sum((0, 2)) > 0
    assert seen.nonzero().flatten().tolist() == [7, 8, 9, 10, 11]
    long = BaseConv(4, ImplicitConv(4, 12))
    assert (torch.autograd.grad(long(x)[0, -1].sum(), x)[0].abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("name", ["base_conv", "base_conv_long", "sparse_hybrid"])
def test_pieces_and_padding(name):
    module = mixer_entry(name).build(Setting(8, 2, length=15)).eval()
    x = torch.randn(3, 15, 8)
    whole = module(x)
    for cuts in ([1] * 15, [4, 4, 7], [14, 1]):
        state, pieces = module.start(3), []
        for part in x.split(cuts, 1):
            y, state = module.advance(part, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
        assert state.position.tolist() == [15] * 3
    for start in (0, 4):  # padding at the end, or in front
        valid = torch.zeros(3, 15, dtype=torch.bool)
        valid[:, start : start + 11] = True
        spoilt = torch.where(valid[..., None], x, torch.full_like(x, 1e3))
        alone = module(x[:, start : start + 11].contiguous())
        torch.testing.assert_close(module(spoilt, valid=valid)[:, start : start + 11], alone, **CLOSE)


CHOICES = {
    "softmax": lambda: SoftmaxChoice(8),
    "sigmoid": lambda: SigmoidChoice(8),
    "two-way": lambda: TwoWayChoice(8),
}


def share_of(name: str, choice: nn.Module, x: Tensor) -> Tensor:
    """The three official weights, by their formulas."""
    found = functional.linear(x, choice.score.weight, choice.score.bias)
    if name == "softmax":
        return found.softmax(1)[..., 0]
    if name == "sigmoid":
        return 1 / (1 + (-found[..., 0]).exp())
    assert choice.temperature.item() == pytest.approx(0.3 * 8**0.5)
    return 1 / (1 + ((found[..., 0] - found[..., 1]) / choice.temperature).exp())


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("causal", [True, False])
def test_all_rows_in_training_the_best_in_evaluation(name, causal):
    module = SparseHybrid(8, 2, choice=CHOICES[name](), causal=causal)
    x = torch.randn(3, 11, 8)
    share = share_of(name, module.choice, x)
    attended = share[..., None] * dense_attention(module, x, causal)
    torch.testing.assert_close(module(x), x + attended, **CLOSE)
    module.eval()
    best = share.argsort(1, descending=True)[:, : root_rows(11)]
    assert best.shape == (3, 4)
    kept = torch.zeros(3, 11).scatter(1, best, 1.0)[..., None]
    before = x.clone()
    torch.testing.assert_close(module(x), x + kept * attended, **CLOSE)
    assert torch.equal(x, before), "the input stays as it was"
    module.rows = lambda count: count
    torch.testing.assert_close(module(x), x + attended, **CLOSE)


def test_evaluation_computes_the_chosen_rows_only(monkeypatch):
    asked: list[int] = []
    original = sparse_rows.attend

    def counted(query, *rest, **options):
        asked.append(query.shape[2])
        return original(query, *rest, **options)

    monkeypatch.setattr(sparse_rows, "attend", counted)
    module, x = SparseHybrid(8, 2), torch.randn(2, 30, 8)
    module.eval()(x)
    module.train()(x)
    assert asked == [6, 30]
    module.threshold = 1.0
    assert torch.equal(module.eval()(x), x) and asked == [6, 30], "no row at all"
    assert [root_rows(count) for count in (0, 1, 2, 4, 5, 64, 65)] == [0, 1, 2, 2, 3, 8, 9]


def test_the_penalty_is_on_the_mean_beyond_the_share_of_rows():
    module, x = SparseHybrid(8, choice=SigmoidChoice(8, penalty=0.5)), torch.randn(2, 9, 8)
    module(x)
    mean = torch.sigmoid(functional.linear(x, module.choice.score.weight)).mean()
    torch.testing.assert_close(module.auxiliary, 0.5 * (mean - 3 / 9).clamp_min(0))
    module.auxiliary.backward()
    assert module.choice.score.weight.grad.abs().sum() > 0
    module.rows = lambda count: count
    module(x)
    assert module.auxiliary == 0
    other = SparseHybrid(8, choice=SoftmaxChoice(8))
    other(x)
    assert other.auxiliary == 0


def test_the_best_rows_depend_on_the_future_and_a_threshold_does_not():
    x = torch.randn(1, 16, 8)
    later = x.clone()
    module = SparseHybrid(8, 2).eval()
    later[:, 8:] = 30 * module.choice.score.weight  # later rows take all places
    assert not torch.allclose(module(x)[:, :8], module(later)[:, :8])
    assert torch.equal(module(later)[:, :8], later[:, :8])
    module.threshold = 0.5
    torch.testing.assert_close(module(x)[:, :8], module(later)[:, :8], **CLOSE)
    share = share_of("sigmoid", module.choice, x)[..., None]
    expected = x + (share > 0.5) * share * dense_attention(module, x)
    torch.testing.assert_close(module(x), expected, **CLOSE)


def test_random_rows_are_as_many_and_repeat_with_the_seed():
    x = torch.randn(4, 20, 8)
    first, second = RandomChoice(seed=1), RandomChoice(seed=1)
    chosen = first(x, None)
    assert chosen.sum(1).tolist() == [5.0] * 4 and torch.equal(chosen, second(x, None))
    assert not torch.equal(chosen, first(x, None)), "anew at each call"


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_everything(training):
    module = SparseHybrid(4, 2, choice=TwoWayChoice(4)).train(training)
    x = torch.randn(1, 5, 4, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_errors():
    with pytest.raises(ValueError, match="made for length 4, got 5 tokens; make it longer"):
        ImplicitConv(2, 4)(torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="features must be odd and at least 3: .* got 4"):
        ImplicitConv(2, 4, features=4)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        ImplicitConv(2, 0)
    with pytest.raises(ValueError, match="base_conv_long needs a length"):
        mixer_entry("base_conv_long").build(Setting(8, 2))
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        SparseHybrid(8, 3)
    with pytest.raises(ValueError, match="go on piece by piece give it a threshold"):
        SparseHybrid(8).start(1)
