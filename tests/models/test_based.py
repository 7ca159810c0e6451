"""BASED, the model: its plan, its sizes, and decoding from a state."""

from __future__ import annotations

import pytest
import torch

from attlas.layers import SelfAttention
from attlas.layers.based import GatedConv, TaylorAttention
from attlas.models import BASEDS, Based, BasedConfig

SMALL = BasedConfig(8, 4, 2, linear=(1,), window=(2,), feature=3, previous=3)


@pytest.mark.parametrize(
    ("name", "parameters", "kinds"), [("360m", 363e6, (5, 5, 17)), ("1.3b", 1349e6, (7, 7, 22))]
)
def test_the_published_models_have_their_names_sizes(name, parameters, kinds):
    with torch.device("meta"):
        model = Based(BASEDS[name])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    mixers = [block.mixer for block in model.blocks]
    found = tuple(
        sum(isinstance(mixer, kind) for mixer in mixers)
        for kind in (TaylorAttention, SelfAttention, GatedConv)
    )
    assert found == kinds
    assert str(mixers[2].pattern) == "causal & window(129)"
    assert mixers[1].query.out_features == 16 * 16


def test_a_forward_pass_is_its_blocks():
    model = Based(SMALL, vocabulary=11).double()
    ids = torch.randint(0, 11, (2, 7))
    x = model.embedding.weight[ids]
    for block in model.blocks:
        x = x + block.mixer(block.before_mixer(x))
        n = block.before_mlp(x)
        gate = block.gate(n)
        x = x + block.down(gate * gate.sigmoid() * block.up(n))
        assert block.down.in_features == 16
    wanted = (
        x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.weight @ model.embedding.weight.T
    )
    torch.testing.assert_close(model(ids), wanted)


def test_decoding_is_the_full_pass_at_constant_size():
    model = Based(SMALL, vocabulary=11).double()
    ids = torch.randint(0, 11, (2, 30))
    state, pieces, sizes = model.start(2), [], []
    for piece in ids.split([1, 5, 1, 13, 1, 1, 8], 1):
        out, state = model.advance(piece, state)
        pieces.append(out)
        sizes.append(state.nbytes)
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-9, atol=1e-9)
    assert len(set(sizes[1:])) == 1, "constant once the window is full"
    assert state.position.tolist() == [30, 30]
    with torch.no_grad():
        long = model.generate(ids[:, :9], 6)
        assert long[:, :9].equal(ids[:, :9])
        for place in range(9, 15):
            assert long[:, place].equal(model(long[:, :place])[:, -1].argmax(-1))


def test_errors():
    with pytest.raises(ValueError, match=r"layers \[4\] are not among the 4 layers 0 .. 3"):
        BasedConfig(8, 4, 2, linear=(4,), window=())
    with pytest.raises(ValueError, match=r"layers \[1\] cannot be both linear attention and a window"):
        BasedConfig(8, 4, 2, linear=(1,), window=(1, 2))
