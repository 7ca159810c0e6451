"""The small network around any mixer: built again by hand, with weights drawn in the same order."""

import pytest
import torch
from torch import nn

from attlas.layers import SelfAttention
from attlas.models import LastToken, LearnedPositions, MeanToken, SmallLM, SmallNet
from attlas.pattern import causal


def test_the_language_model_draws_its_weights_as_before():
    """Embedding, its start, then block by block the mixer and the MLP, then the head: results need it."""
    torch.manual_seed(5)
    model = SmallLM(vocabulary=11, width=8, heads=2, layers=2)
    torch.manual_seed(5)
    embedding = nn.Embedding(11, 8)
    nn.init.normal_(embedding.weight, std=0.02)
    parts = []
    for _ in range(2):
        mixer = SelfAttention(8, 2, pattern=causal(), base=10000.0)
        parts.append((mixer, nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)))
    head = nn.Linear(8, 11, bias=False)

    def normed(x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    ids = torch.randint(0, 11, (2, 7))
    x = embedding(ids)
    for mixer, wide, narrow in parts:
        x = x + mixer(normed(x))
        x = x + narrow(nn.functional.gelu(wide(normed(x))))
    assert torch.allclose(model(ids), head(normed(x)), rtol=1e-5, atol=1e-6)
    assert sorted(model.state_dict())[:2] == ["blocks.0.before_mixer.weight", "blocks.0.before_mlp.weight"]


@pytest.mark.parametrize("inner", range(1, 60))
def test_the_mlp_has_the_width_asked_for(inner):
    net = SmallNet(nn.Identity(), [nn.Identity()], nn.Identity, width=12, inner=inner)
    assert net.blocks[0].mlp[0].weight.shape == (inner, 12)


def test_one_answer_from_many_tokens():
    x = torch.randn(3, 5, 4)
    assert torch.equal(LastToken()(x), x[:, 4]) and torch.allclose(MeanToken()(x), x.sum(1) / 5)
    places = LearnedPositions(6, 4)
    assert torch.equal(places(x), x + places.places[:5])
    with pytest.raises(ValueError, match="positions were made for 6 tokens, got 7"):
        places(torch.randn(1, 7, 4))
