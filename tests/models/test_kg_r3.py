"""KG-R3's reader against transformers' BERT and against masks written out, one question and a batch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from attlas.graph import Graph
from attlas.models.kg_r3 import (
    Context,
    PostNormLayer,
    Reader,
    every_pair,
    gather_contexts,
    graph_pairs,
    triple_tokens,
)
from attlas.pattern import Tokens, linked, same

TRIPLES = torch.tensor([[4, 0, 7], [7, 2, 4], [4, 0, 7], [3, 1, 3], [7, 1, 9]])
ENTITIES, RELATIONS = 11, 6


def test_tokens_have_the_source_first_and_each_entity_once():
    context = triple_tokens(TRIPLES, 7)
    assert context.entities.tolist() == [7, 4, 3, 9] and context.relations.tolist() == [0, 2, 0, 1, 1]
    assert torch.equal(context.entities[context.heads], TRIPLES[:, 0])
    assert torch.equal(context.entities[context.tails], TRIPLES[:, 2])
    alone = triple_tokens(TRIPLES[:0], 5)
    assert alone.entities.tolist() == [5] and alone.relations.numel() == 0


def matrix(pairs, size):
    found = torch.zeros(size, size, dtype=torch.bool)
    found[pairs[0], pairs[1]] = True
    assert int(found.sum()) == pairs.shape[1], "every pair once"
    return found


def test_the_graph_mask_is_the_recipe_of_kinds_and_links():
    context = triple_tokens(TRIPLES, 7)
    kinds = torch.tensor([0] * 4 + [1] * 5)
    token = torch.arange(4, 9)
    links = torch.stack([torch.cat([token, token]), torch.cat([context.heads, context.tails])])
    recipe = (same("kind") | linked("triple")).bind(kind=kinds, triple=torch.cat([links, links.flip(0)], 1))
    expected = recipe.mask(Tokens(9), Tokens(9))
    assert torch.equal(matrix(graph_pairs(context), 9), expected.reshape(9, 9))
    assert matrix(every_pair(context), 9).all()
    one = triple_tokens(TRIPLES[:0], 5)
    assert graph_pairs(one).tolist() == every_pair(one).tolist() == [[0], [0]]


def bert(width, heads, inner, cross):
    config = BertConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=inner, hidden_act="gelu",
        is_decoder=cross, add_cross_attention=cross, attn_implementation="eager",
    )  # fmt: skip
    return BertLayer(config).eval()


def copy_attention(mine, theirs):
    for name, part in (("query", theirs.self.query), ("key", theirs.self.key), ("value", theirs.self.value)):
        getattr(mine, name).load_state_dict(part.state_dict())
    mine.out.load_state_dict(theirs.output.dense.state_dict())


@pytest.mark.parametrize("cross", [False, True])
def test_a_layer_is_berts(cross):
    torch.manual_seed(0)
    theirs = bert(16, 4, 24, cross)
    for part in theirs.parameters():
        torch.nn.init.normal_(part, std=0.3)
    mine = PostNormLayer(16, 4, 24, cross=cross).eval()
    copy_attention(mine.attention, theirs.attention)
    mine.norm.load_state_dict(theirs.attention.output.LayerNorm.state_dict())
    if cross:
        copy_attention(mine.cross, theirs.crossattention)
        mine.cross_norm.load_state_dict(theirs.crossattention.output.LayerNorm.state_dict())
    mine.enter.load_state_dict(theirs.intermediate.dense.state_dict())
    mine.leave.load_state_dict(theirs.output.dense.state_dict())
    mine.last_norm.load_state_dict(theirs.output.LayerNorm.state_dict())
    context = triple_tokens(TRIPLES, 7)
    pairs = graph_pairs(context)
    seen = matrix(pairs, 9)
    graph = Graph(pairs[1].clone(), pairs[0].clone(), 9, 9)
    x = torch.randn(1, 9, 16)
    additive = torch.where(seen, 0.0, -math.inf)[None, None]
    if cross:
        told = torch.randn(1, 9, 16)
        expected = theirs(
            x, attention_mask=additive, encoder_hidden_states=told, encoder_attention_mask=additive
        )
        out = mine(x, graph, told, graph)
    else:
        expected, out = theirs(x, attention_mask=additive), mine(x, graph)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def reader(**options):
    torch.manual_seed(1)
    made = Reader(ENTITIES, RELATIONS, width=16, heads=4, inner=24, layers=2, **options)
    for part in made.parameters():  # the start is so small that little could be seen
        torch.nn.init.normal_(part, std=0.3)
    return made


CONTEXTS = [
    triple_tokens(TRIPLES, 7),
    triple_tokens(TRIPLES[:0], 5),
    triple_tokens(TRIPLES[1:3], 4),
    triple_tokens(TRIPLES[3:], 3),
]
ASKED = torch.tensor([1, 5, 0, 3])


def gathered(which, mask=graph_pairs):
    chosen = [CONTEXTS[at] for at in which]
    return gather_contexts(chosen, [mask(one) for one in chosen], ASKED[list(which)], ENTITIES)


def test_a_prediction_does_not_depend_on_its_batch():
    net = reader().double().eval()
    together = net(gathered(range(4)))
    for at in range(4):
        torch.testing.assert_close(net(gathered([at]))[0], together[at], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(gathered([3, 0, 2])), together[[3, 0, 2]], rtol=1e-10, atol=1e-10)


def test_the_order_of_triples_does_not_matter_and_their_content_does():
    net = reader().double().eval()
    triples = TRIPLES[torch.tensor([4, 2, 0, 3, 1])]
    moved = triple_tokens(triples, 7)
    batch = gather_contexts([moved], [graph_pairs(moved)], ASKED[:1], ENTITIES)
    out = net(gathered([0]))
    torch.testing.assert_close(net(batch), out, rtol=1e-10, atol=1e-10)
    other = Context(moved.entities, (moved.relations + 1) % 3, moved.heads, moved.tails)
    changed = gather_contexts([other], [graph_pairs(other)], ASKED[:1], ENTITIES)
    assert (net(changed) - out).abs().max() > 1e-3
    assert (net(gathered([0], every_pair)) - out).abs().max() > 1e-5


def test_logits_are_products_with_the_entities_and_everything_learns():
    net = reader(dropout=0.0, drop=0.0)
    logits = net(gathered(range(4)))
    assert logits.shape == (4, ENTITIES)
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3, 4]), label_smoothing=0.1).backward()
    untouched = [name for name, part in net.named_parameters() if part.grad is None or not part.grad.any()]
    # A bias of keys moves all logits of a query alike, which a softmax does not see.
    assert all(name.endswith("key.bias") for name in untouched), untouched
    torch.testing.assert_close(net.eval()(gathered(range(4))), logits, msg="without dropout eval is training")


def test_dropout_of_weights_and_embeddings_trains():
    net = reader(dropout=0.3, drop=0.5)
    first, second = net(gathered(range(4))), net(gathered(range(4)))
    assert not torch.equal(first, second) and first.isfinite().all()
    first.sum().backward()
    assert net.embedding.weight.grad.isfinite().all()


def test_wrong_batches():
    with pytest.raises(
        ValueError, match="contexts, pairs and relation must be of the same number, .* 4, 0 and 4"
    ):
        gather_contexts(CONTEXTS, [], ASKED, ENTITIES)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 16 and 3"):
        PostNormLayer(16, 3, 8)
