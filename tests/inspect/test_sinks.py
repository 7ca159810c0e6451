"""The sink metric against whole maps, and on maps that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attlas.attend import L1, Identity, Sigmoid, Softmax, attend
from attlas.inspect.sinks import maps_of, received, sink_strength
from attlas.layers import MIXERS, SelfAttention, Setting
from attlas.models import SmallLM
from attlas.pattern import causal, opaque, window
from attlas.score import EdgeBias

TOKENS = 90  # more than a block of rows
NORMALISERS = {
    "softmax": Softmax(),
    "a softmax with a sink keeps its own shares": Softmax(1.0),
    "sigmoid": Sigmoid(-2.0),
    "signed": Identity(),
    "softplus": L1("softplus"),
}


def layer(**named):
    torch.manual_seed(0)
    return SelfAttention(8, 2, pattern=causal(), base=10000.0, **named).double()


def drawn(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, TOKENS, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NORMALISERS)
def test_what_tokens_receive_is_the_mean_of_their_columns(name):
    mixer, x = layer(normaliser=NORMALISERS[name]), drawn()
    (request,) = maps_of([mixer], lambda: mixer(x))
    logits = (request.query @ request.key.transpose(-1, -2) / 2).detach()
    shown = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    if name.startswith(("softmax", "a softmax")):
        power = logits.exp() * shown
        sink = torch.e if "sink" in name else 0.0
        a = power / (power.sum(-1, keepdim=True) + sink)
    else:
        weights = {
            "sigmoid": (logits - 2).sigmoid(),
            "signed": logits.abs(),
            "softplus": logits.exp().log1p(),
        }
        a = weights[name] * shown
        a = a / (a.sum(-1, keepdim=True) + 1e-8)
    expected = torch.stack([a[..., k:, k].mean(-1) for k in range(TOKENS)], -1)
    torch.testing.assert_close(received(request), expected, rtol=1e-7, atol=1e-9)
    found = sink_strength([mixer], lambda: mixer(x), threshold=0.05)
    assert found.first_share == pytest.approx(float(expected[..., 0].mean()))
    assert found.strength == float((expected[..., 0] > 0.05).double().mean()) and found.layers == 1


def test_uniform_attention_gives_the_first_token_a_harmonic_share():
    class Uniform(nn.Module):
        def forward(self, x):
            given = torch.zeros(1, 1, x.shape[1], 2)
            return attend(given, given, x[:, None], pattern=causal())[:, 0]

    mixer = Uniform()
    found = sink_strength([mixer], lambda: mixer(torch.randn(1, 128, 3)))
    assert found.first_share == pytest.approx(sum(1 / n for n in range(1, 129)) / 128, rel=1e-5)
    assert found.strength == 0.0


def test_a_planted_sink_is_found_in_the_layer_that_has_it():
    torch.manual_seed(0)
    bias = torch.zeros(1, 1, 1, TOKENS)
    bias[..., 0] = 8.0
    net = SmallLM(width=8, heads=2, layers=2)
    net.blocks[1].mixer.score = net.blocks[1].mixer.score + EdgeBias(bias)
    found = sink_strength(
        [block.mixer for block in net.blocks], lambda: net(torch.randint(0, 256, (3, TOKENS)))
    )
    assert found.strength == 0.5 and 0.4 < found.first_share < 0.6 and found.layers == 2


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("softmax", True),
        ("window", True),
        ("based_linear", False),  # a scan
        ("combiner_fixed", False),  # its map is in pieces
        ("aaren", False),
    ],
)
def test_mixers_without_one_map_have_none(name, has):
    torch.manual_seed(0)
    mixer = MIXERS[name].build(Setting(8, 2, length=TOKENS))
    (found,) = maps_of([mixer], lambda: mixer(torch.randn(1, TOKENS, 8)))
    assert (found is not None) is has
    if not has:
        assert sink_strength([mixer], lambda: mixer(torch.randn(1, TOKENS, 8))) is None


def test_hooks_are_gone_also_after_an_error():
    mixer = layer()
    with pytest.raises(RuntimeError, match="no"):
        maps_of([mixer], lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert not mixer._forward_hooks and not mixer._forward_pre_hooks


@pytest.mark.parametrize("pattern", [None, window(5), ~causal()])
def test_a_map_that_is_not_causal_is_refused(pattern):
    mixer, x = SelfAttention(8, 2, pattern=pattern), torch.randn(1, TOKENS, 8)
    (request,) = maps_of([mixer], lambda: mixer(x))
    with pytest.raises(ValueError, match="the sink metric is of causal attention.*rows see later tokens"):
        received(request)
    with pytest.raises(ValueError, match="the sink metric is of causal attention"):
        sink_strength([mixer], lambda: mixer(x))


def test_a_causal_map_that_no_recipe_guarantees_is_taken():
    pattern = opaque(lambda i, j: j <= i, "no later ones")
    assert not pattern.is_causal
    x, found = drawn(), []
    for seen in (pattern, causal()):
        mixer = layer()
        mixer.pattern = seen
        found.append(sink_strength([mixer], lambda mixer=mixer: mixer(x)))
    assert found[0].first_share == pytest.approx(found[1].first_share)
