"""The classifier with additive attention: against its formula, padding, empty sentences, questions,
errors."""

import pytest
import torch
from torch import nn

from attlas.layers.additive import AdditiveScore, attention_pool, token_weights
from attlas.models.attention_classifier import AttentionClassifier, Sentences

LENGTHS = (6, 3, 1)
VALID = torch.arange(6) < torch.tensor(LENGTHS)[:, None]


def made(**more):
    torch.manual_seed(0)
    model = AttentionClassifier(30, 4, width=7, hidden=5, **more).double()
    return model, Sentences(torch.randint(0, 30, (3, 6)), VALID)


def one_by_one(model, inputs):
    """Every sentence alone, cut to its length, the score and the sum written out."""
    rows = []
    for b, length in enumerate(LENGTHS):
        h, _ = model.encoder(model.embedding(inputs.tokens[b : b + 1, :length]))
        h = h[0]
        inner = h @ model.score.token.weight.T + model.score.token.bias
        query = None
        if inputs.question is not None:
            count = int(inputs.question_valid[b].sum())
            _, (last, _) = model.asker(model.embedding(inputs.question[b : b + 1, :count]))
            query = torch.cat([last[0, 0], last[1, 0]])
            inner = inner + model.score.query(query)
        a = torch.tanh(inner) @ model.score.out.weight[0]
        pooled = (a.exp() / a.exp().sum()) @ h
        if query is not None:
            pooled = torch.tanh(model.joint[0](pooled) + model.joint[1](query))
        rows.append(model.head(pooled))
    return torch.stack(rows)


def test_logits_are_those_of_each_sentence_alone():
    model, inputs = made()
    torch.testing.assert_close(model(inputs), one_by_one(model, inputs), rtol=0, atol=1e-12)


def test_a_question_enters_the_score_and_the_answer():
    model, inputs = made(question=True)
    asked = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]
    inputs = inputs._replace(question=torch.randint(0, 30, (3, 4)), question_valid=asked)
    torch.testing.assert_close(model(inputs), one_by_one(model, inputs), rtol=0, atol=1e-12)
    whole = inputs._replace(question_valid=None)
    torch.testing.assert_close(model(whole)[0], model(inputs)[0])
    assert (model(whole)[1] - model(inputs)[1]).abs().max() > 1e-4


def test_padding_is_never_read():
    model, inputs = made()
    with torch.no_grad():
        model.embedding.weight[29] = float("nan")
    clean = inputs.tokens.clamp_max(28)
    dirty = clean.masked_fill(~VALID, 29)
    out = model(Sentences(dirty, VALID))
    assert torch.equal(out, model(Sentences(clean, VALID)))
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_sentence_without_a_token_pools_to_zero():
    model, inputs = made()
    empty = VALID.clone()
    empty[2] = False
    out = model(Sentences(inputs.tokens, empty))
    torch.testing.assert_close(out[2], model.head.bias)
    torch.testing.assert_close(out[:2], model(inputs)[:2])
    encoded = model.encode(Sentences(inputs.tokens, empty))
    assert torch.all(model.weights(encoded, model.scores(encoded))[2] == 0)


def test_weights_are_exactly_zero_on_padding_and_sum_to_one():
    scores = torch.randn(3, 6).masked_fill(~VALID, float("nan"))
    weights = token_weights(scores, VALID)
    assert torch.all(weights[~VALID] == 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    hidden = torch.ones(3, 6, 2).masked_fill(~VALID[..., None], float("inf"))
    torch.testing.assert_close(attention_pool(weights, hidden, VALID), torch.ones(3, 2))


def test_the_head_runs_again_without_the_encoder():
    model, inputs = made()
    encoded = model.encode(inputs)
    scores = model.scores(encoded)
    handle = model.encoder.register_forward_hook(lambda *given: pytest.fail("the encoder ran again"))
    moved = model.answer(encoded, scores + torch.arange(6.0))
    handle.remove()
    assert (moved - model(inputs)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AttentionClassifier(0, 2), "AttentionClassifier: vocabulary must be at least 1, got 0"),
        (lambda: AdditiveScore(3, 0), "AdditiveScore: hidden must be at least 1, got 0"),
        (lambda: AdditiveScore(3, 2)(torch.ones(1, 2, 3), torch.ones(1, 3)), "query must be none, got one"),
        (lambda: AdditiveScore(3, 2, query=4)(torch.ones(1, 2, 3)), "query must be one of width 4, got none"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_question_must_fit_the_classifier():
    model, inputs = made()
    with pytest.raises(ValueError, match=r"inputs.question must be left out: .* question=False"):
        model(inputs._replace(question=torch.ones(3, 2, dtype=torch.int64)))
    asking, inputs = made(question=True)
    with pytest.raises(ValueError, match=r"inputs.question must be given: .* question=True"):
        asking(inputs)


def test_padding_at_the_front_is_refused():
    model, inputs = made()
    with pytest.raises(ValueError, match="valid must be true up to a sentence's end .* padding at the end"):
        model(inputs._replace(valid=VALID.flip(1)))


def test_sizes_are_the_papers_by_default():
    model = AttentionClassifier(10, 1)
    assert isinstance(model.encoder, nn.LSTM) and model.encoder.hidden_size == 128
    assert model.embedding.embedding_dim == 300 and model.score.token.out_features == 128
    assert model.score.out.bias is None
