"""Models of Deconstructing attention: masks as published, streams, equal parameters, map statistics."""

from __future__ import annotations

import pytest
import torch

from attlas.inspect import between, map_statistics
from attlas.layers import SourcedAttention
from attlas.models.deconstructing import KINDS, TOLERANCE, DeconstructedLM, hybrid, standard_layers

SEQUENCE = torch.arange(90) * 7 % 256


def made(kinds, seed=0, **named):
    torch.manual_seed(seed)
    if "fixed" in kinds:
        named["sequence"] = SEQUENCE
    return DeconstructedLM(kinds, width=16, heads=2, length=90, **named).eval()


def ids(count=3, length=21):
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(count))


PUBLISHED = {
    "even": range(2, 25, 2),
    "odd": range(1, 24, 2),
    "top": range(1, 13),
    "middle": (*range(1, 7), *range(19, 25)),
    "bottom": range(13, 25),
    "quarter": (4, 8, 12, 16, 20, 24),
    "first": (1,),
    "last": (24,),
    "bilateral": (1, 24),
}


@pytest.mark.parametrize("mask", PUBLISHED)
def test_masks_are_those_of_the_paper_for_24_layers(mask):
    assert standard_layers(mask, 24) == tuple(PUBLISHED[mask])


def test_a_hybrid_replaces_the_odd_layers_counted_from_one():
    assert hybrid("static", 4) == ("static", "standard", "static", "standard")
    with pytest.raises(ValueError, match="hybrid mask must be one of even, .*, got 'some'"):
        standard_layers("some", 4)
    with pytest.raises(ValueError, match="hybrid mask middle needs a multiple of 4 layers, got 6"):
        standard_layers("middle", 6)


@pytest.mark.parametrize("width", [64, 512, 768, 896])
def test_every_kind_has_attention_s_parameters_within_the_tolerance(width):
    for kind in KINDS:
        with torch.device("meta"):
            sequence = SEQUENCE.to("meta") if kind == "fixed" else None
            net = DeconstructedLM((kind,), width=width, heads=8, length=8, sequence=sequence)
        (gap,) = net.parameter_gaps()
        assert abs(gap) <= TOLERANCE and (gap == 0 or kind == "mlp")


@pytest.mark.parametrize("kinds", [*((kind,) * 2 for kind in KINDS), *(hybrid(kind, 2) for kind in KINDS)])
def test_logits_are_those_of_the_definition_row_by_row(kinds):
    """The stream for every batch row and layer anew, and no output that sees the future."""
    net, given = made(kinds), ids()
    with torch.no_grad():
        found = net(given)
        for row in range(len(given)):
            torch.testing.assert_close(by_hand(net, given[row : row + 1]), found[row : row + 1])
        torch.testing.assert_close(net(given[:, :9]), found[:, :9], rtol=1e-4, atol=1e-5)
        where = torch.zeros_like(given, dtype=torch.bool)
        where[:, 3] = True
        torch.testing.assert_close(net(given, where), found[:, 3])


def by_hand(net, given):
    x = embedded = net.embedding(given)
    apart = None
    if "random" in net.kinds:
        apart = net.places[None, : given.shape[1]]
    elif "fixed" in net.kinds:
        apart = net.embedding(SEQUENCE[None, : given.shape[1]])
    for kind, block in zip(net.kinds, net.blocks, strict=True):
        source = {"static": embedded, "random": apart, "fixed": apart}.get(kind)
        mixer, norm = block.mixer, block.before_mixer
        x = x + (mixer(norm(x)) if source is None else mixer(norm(x), norm(source)))
        x = x + block.mlp(block.before_mlp(x))
        if apart is not None:
            apart = apart + mixer(norm(apart))
            apart = apart + block.mlp(block.before_mlp(apart))
    return net.head(net.norm(x))


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_the_stream_runs_once_at_batch_one_and_may_be_kept(kind, monkeypatch):
    net, given = made((kind,) * 3), ids(5)
    seen = []
    before = SourcedAttention.asked

    def noted(layer, source):
        seen.append(source.shape[0])
        return before(layer, source)

    monkeypatch.setattr(SourcedAttention, "asked", noted)
    with torch.no_grad():
        kept = net.stream(40)
        seen.clear()
        wanted = net(given)
        assert seen == [1, 1, 1, 1, 1]  # two blocks of the stream, three maps
        seen.clear()
        torch.testing.assert_close(net(given, stream=kept), wanted, rtol=1e-5, atol=1e-6)
        assert seen == [1, 1, 1]
    assert len(kept) == 3 and all(part.shape == (1, 40, 16) for part in kept)
    with pytest.raises(ValueError, match="the stream has 90 positions, got an input of 91 tokens"):
        net(ids(1, 91))
    with pytest.raises(ValueError, match="the stream has 4 positions, got an input of 21 tokens"):
        net(given, stream=[part[:, :4] for part in kept])


def test_random_embeddings_are_drawn_once_and_saved():
    net, other = made(("random",)), made(("random",), seed=1)
    given = ids()
    with torch.no_grad():
        assert torch.equal(net(given), net(given))
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(given), net(given))
    assert net.places.std() == pytest.approx(0.02, rel=0.1) and not net.places.requires_grad
    assert made(("static",)).stream(9) == ()


def test_maps_that_depend_on_the_input_and_maps_that_do_not():
    first, second = ids(1), ids(1).flip(1)
    for kind, alike in (("static", False), ("random", True), ("fixed", True)):
        net = made((kind,) * 2)
        maps = [[asked.query for asked in net.maps(some)] for some in (first, second)]
        assert all(torch.equal(one, other) for one, other in zip(*maps, strict=True)) is alike
    assert made(("mlp", "standard")).maps(first)[0] is None


def test_skipping_deletes_the_replaced_blocks_of_a_copy():
    net, given = made(hybrid("static", 4)), ids()
    short = net.without_replaced()
    assert short.kinds == ("standard",) * 2 and len(net.blocks) == 4
    with torch.no_grad():
        x = net.embedding(given)
        for layer in (1, 3):
            x = net.blocks[layer](x)
        torch.testing.assert_close(short(given), net.head(net.norm(x)))
    with pytest.raises(ValueError, match="without_replaced: no layer is standard"):
        made(("mlp",)).without_replaced()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mlp"])
def test_statistics_are_those_of_the_whole_map(kind):
    """Of 90 tokens, more than a block of rows."""
    net = made((kind,) * 2).double()
    given = ids(2, 90)
    asked = net.maps(given)[-1]
    length = given.shape[1]
    found = map_statistics(*asked)
    query, key = asked.query, asked.key
    s = asked.score.scale_for(query.shape[-1]) * query @ key.transpose(-1, -2)
    weights = (1 + s + s**2 / 2 if kind == "approximate" else s.exp()).tril()
    a = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(found.entropy, -(a * a.clamp(min=1e-300).log()).sum((2, 3)).mean(0))
    torch.testing.assert_close(found.concentration, torch.linalg.matrix_norm(a).mean(0))
    spread = (a - a.mean(1, keepdim=True)).square().mean(1).sqrt().sum((1, 2)) / (length * (length + 1) / 2)
    torch.testing.assert_close(found.diversity, spread.mean())
    torch.testing.assert_close(found.sink, a[..., 0].mean((0, 2)))
    for back in range(4):
        diagonal = a.diagonal(-back, 2, 3).sum(-1) / (length - back)
        torch.testing.assert_close(found.local[:, back], diagonal.mean(0))


def test_min_max_over_layers():
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    assert between(values).tolist() == [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize(
    ("kinds", "given", "text"),
    [
        ((), {}, "kinds must be of standard, .*, got none"),
        (("soft",), {}, "kinds must be of standard, .*, got soft"),
        (("random", "fixed"), {"sequence": SEQUENCE}, "would need two streams"),
        (("fixed",), {}, "give sequence, the tokens of the fixed stream"),
        (("static",), {"sequence": SEQUENCE}, "with layers of the kind fixed alone"),
    ],
)
def test_models_that_cannot_be(kinds, given, text):
    with pytest.raises(ValueError, match=text):
        DeconstructedLM(kinds, width=16, heads=2, **given)
