"""Reweaving against a dense implementation with an explicit mask; identity, causality, bounded memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attlas.layers import BaseConv, SelfAttention
from attlas.layers.cmr import LayeredReconstruction, NewestLayer, RandomRank, Reweaving, keep_best
from attlas.models import RecallNet, ReweavingNet
from attlas.models.cmr import where_to_weave
from attlas.pattern import causal, window

CLOSE = {"atol": 1e-10, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def made(items: int, segment: int, **options) -> Reweaving:
    return shaken(Reweaving(8, 2, 2, items=items, segment=segment, **options))


def inputs(count: int, batch: int = 2) -> tuple[Tensor, list[Tensor]]:
    x = torch.randn(batch, count, 8, requires_grad=True)
    return x, [torch.randn(batch, count, 8, requires_grad=True) for _ in range(2)]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def dense(module: Reweaving, x: Tensor, captured: list[Tensor]) -> Tensor:
    """The sheet's three steps with an N x N mask of which token each token may read."""
    batch, count, width = x.shape
    share = module.reconstruction.share.softmax(0)
    z = sum(
        share[layer] * (h + functional.gelu(h @ module.reconstruction.down[layer].weight.T)
                    @ module.reconstruction.up[layer].weight.T)
        for layer, h in enumerate(captured)
    )  # fmt: skip
    r = sum(
        (h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.salience.weight[layer]).sum(-1)
        for layer, h in enumerate(captured)
    )
    seen = torch.zeros(batch, count, count, dtype=torch.bool)
    for b in range(batch):
        for t in range(count):
            past = range(t // module.segment * module.segment)
            best = sorted(past, key=lambda j: (-r[b, j].item(), -j))[: module.items]
            seen[b, t, best] = True
    head = width // module.heads
    q, k, v = (
        (unit(y) @ make.weight.T).view(batch, count, module.heads, head).transpose(1, 2)
        for y, make in ((x, module.query), (z, module.key), (z, module.value))
    )
    age = torch.arange(count)[:, None] - torch.arange(count)
    delta = (1 + module.age.exp()).log()
    logits = q @ k.mT / head**0.5 - delta.view(-1, 1, 1) * (1 + age.clamp_min(0)).log()
    weights = logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1).nan_to_num()
    c = ((weights * r.sigmoid()[:, None, None]) @ v).transpose(1, 2).reshape(batch, count, width)
    gate = (torch.cat([unit(x), c], -1) @ module.gate.weight.T + module.gate.bias).sigmoid()
    return x + gate * (c @ module.out.weight.T)


@pytest.mark.parametrize(("count", "items", "segment"), [(12, 3, 4), (17, 5, 4), (9, 30, 2), (3, 2, 8)])
def test_equals_the_dense_definition_in_value_and_gradient(count, items, segment):
    module = made(items, segment)
    x, captured = inputs(count)
    got, wanted = module(x, captured), dense(module, x, captured)
    torch.testing.assert_close(got, wanted, **CLOSE)
    leaves = [x, *captured, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(got.sin().sum(), leaves, allow_unused=True),
        torch.autograd.grad(wanted.sin().sum(), leaves, allow_unused=True),
        strict=True,
    ):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, **CLOSE)


def test_at_the_start_it_is_bitwise_the_identity():
    torch.set_default_dtype(torch.float32)

    def mixer(layer: int) -> nn.Module:
        return SelfAttention(16, 2, pattern=causal() & window(4)) if layer == 2 else BaseConv(16)

    torch.manual_seed(3)
    plain = RecallNet(mixer, vocabulary=20, width=16, layers=4)
    net = ReweavingNet(mixer, vocabulary=20, width=16, layers=4, items=3, segment=4)
    net.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.randint(0, 20, (2, 13))
    assert torch.equal(net(ids), plain(ids))
    net.reweaving.out.weight.data.normal_()
    changed = net(ids) != plain(ids)
    assert not changed[:, :4].any() and changed[:, 4:].any(), "nothing to read in the first segment"


def test_an_item_is_seen_from_the_next_segment_on():
    module = made(4, 4)
    x, captured = inputs(12, batch=1)
    out = module(x, captured)
    for t in range(12):
        found = torch.autograd.grad(out[0, t].sum(), captured[0], retain_graph=True)[0][0]
        reach = found.abs().sum(-1).nonzero().flatten()
        assert (reach < t // 4 * 4).all() and len(reach) == (4 if t >= 4 else 0)
    own = torch.autograd.grad(out[0, 7].sum(), x)[0][0].abs().sum(-1)
    assert own.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("cuts", [[1] * 19, [4, 4, 4, 4, 3], [3, 9, 7], [19]])
def test_pieces_are_the_whole_and_the_memory_is_bounded(cuts):
    module = made(5, 4)
    x, captured = inputs(19)
    state, pieces, sizes = module.start(2), [], []
    for part in zip(*(tensor.split(cuts, 1) for tensor in (x, *captured)), strict=True):
        y, state = module.advance(part[0], list(part[1:]), state)
        pieces.append(y)
        sizes.append(state.nbytes)
    torch.testing.assert_close(torch.cat(pieces, 1), module(x, captured), **CLOSE)
    assert state.position.tolist() == [19, 19]
    # Five items and at most three of the open segment: latent, salience, rank, place.
    assert max(sizes) <= 2 * (5 + 3) * (8 * 8 + 8 + 8 + 8)


def test_ties_keep_the_newer_one():
    place = torch.tensor([[7, 6, 5, 4, -1]])
    rank = torch.tensor([[1.0, 2.0, 1.0, 2.0, 9.0]])
    assert keep_best(rank, place, 3).tolist() == [[0, 1, 3]]
    assert keep_best(torch.zeros(1, 5), place, 2).tolist() == [[0, 1]]
    module = made(2, 2)
    equal = torch.ones(1, 6, 8)
    assert module._kept(torch.zeros(1, 6), 3).tolist() == [[[-1, -1], [1, 0], [3, 2]]]
    assert module(equal, [equal, equal]).isfinite().all()


def test_random_items_differ_and_repeat():
    first, second = RandomRank(1), RandomRank(1)
    assert torch.equal(first(torch.zeros(2, 5)), second(torch.zeros(2, 5)))
    x, captured = inputs(16)
    module = made(3, 4, rank=RandomRank(2))
    assert not torch.allclose(module(x, captured), module(x, captured))


def test_exploring_draws_in_training_by_the_salience():
    module = made(1, 2, explore=1.0)
    weights = torch.tensor([1.0, 3.0]).log().expand(20_000, 2)
    drawn = module._rank(weights).argmax(1).double().mean()
    torch.testing.assert_close(drawn, torch.tensor(0.75), atol=0.02, rtol=0)
    module.eval()
    assert torch.equal(module._rank(weights), weights)
    x, captured = inputs(7)
    torch.testing.assert_close(module(x, captured), dense(module, x, captured), **CLOSE)


def test_without_reconstruction_and_without_gradient_to_the_captured():
    x, captured = inputs(12)
    single = made(3, 4, reconstruction=NewestLayer(), detach=True)
    assert single.items_of(captured)[0].equal(captured[1])
    single(x, captured).sum().backward()
    assert x.grad is not None and captured[0].grad is None and captured[1].grad is None
    assert single.salience.weight.grad.abs().sum() > 0, "the salience learns by its factor"


def test_layers_of_the_definition_and_the_auxiliary_loss():
    assert where_to_weave(4) == ((1, 2), 3) and where_to_weave(12) == ((4, 8), 9)
    net = ReweavingNet(lambda layer: BaseConv(8), vocabulary=20, width=8, layers=4, segment=4)
    ids = torch.randint(0, 20, (2, 9))
    outputs = [net.embedded(ids)]
    for index in range(4):
        outputs.append(net.layer(index, outputs[-1]))
    net(ids)
    found, wanted = net.reweaving.reconstruction([outputs[2], outputs[3]]), outputs[4].detach()
    missed = found / found.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    missed = missed - wanted / wanted.square().mean(-1, keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(net.auxiliary(), 0.1 * missed.square().mean(), **CLOSE)
    net.auxiliary().backward()
    assert net.reweaving.reconstruction.share.grad is not None
    assert net.mixers[2].linear.weight.grad is not None
    assert net.mixers[3].linear.weight.grad is None, "the target has no gradient"


def test_errors():
    with pytest.raises(ValueError, match="captured must hold the hidden states of 2 layers, got 1"):
        made(2, 2)(torch.zeros(1, 4, 8), [torch.zeros(1, 4, 8)])
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 8 and 3"):
        Reweaving(8, 3, 2)
    with pytest.raises(ValueError, match="items, segment and layers must be at least 1, got 0, 64, 2"):
        Reweaving(8, 2, 2, items=0)
    with pytest.raises(ValueError, match="explore is a scale of noise and must be at least 0, got -1"):
        Reweaving(8, 2, 2, explore=-1.0)
    with pytest.raises(ValueError, match="reweaving needs at least 4 layers, to capture two .* got 3"):
        where_to_weave(3)
    for captured, woven in (((1, 2), 2), ((2, 1), 3), ((1,), 4), ((), 2)):
        with pytest.raises(ValueError, match="must rise and lie before the woven one, itself below 4"):
            ReweavingNet(
                lambda layer: BaseConv(8), vocabulary=9, width=8, layers=4, captured=captured, woven=woven
            )
    assert isinstance(LayeredReconstruction(2, 1)([torch.zeros(1, 3, 2)]), Tensor)
