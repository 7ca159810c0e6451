"""Attention weights against the gradient's importance: definition, padding, undefined correlations."""

import numpy as np
import pytest
import torch

from attlas.inspect.attention_importance import attention_agreement, weights_and_importance
from attlas.models.attention_classifier import AttentionClassifier, Sentences
from attlas.train.attention_at import answer_loss

LENGTHS = (6, 3, 1)
VALID = torch.arange(6) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("classes", [1, 3])
def test_importance_is_the_gradient_of_the_sentences_own_loss(classes):
    torch.manual_seed(0)
    model = AttentionClassifier(20, classes, width=4, hidden=3).double()
    inputs = Sentences(torch.randint(0, 20, (3, 6)), VALID)
    labels = torch.tensor([1, 0, 1])
    with torch.no_grad():
        weights, importance = weights_and_importance(model, inputs, labels)
    assert all(p.grad is None for p in model.parameters())
    for b, length in enumerate(LENGTHS):
        alone = Sentences(inputs.tokens[b : b + 1, :length], torch.ones(1, length, dtype=torch.bool))
        table = model.embedding(alone.tokens).detach()
        size = torch.zeros(length, dtype=torch.float64)
        for t in range(length):  # finite differences, channel by channel
            for c in range(4):
                step = torch.zeros_like(table)
                step[0, t, c] = 1e-5
                up, down = (
                    answer_loss(model.answer(e, model.scores(e)), labels[b : b + 1])
                    for e in (model.encode(alone, embedded=table + s) for s in (step, -step))
                )
                size[t] += ((up - down) / 2e-5).square()
        size = size.sqrt().detach()
        torch.testing.assert_close(importance[b, :length], size / size.sum(), rtol=0, atol=1e-6)
        encoded = model.encode(alone)
        torch.testing.assert_close(weights[b, :length], model.scores(encoded).softmax(-1)[0])
    assert torch.all(importance[~VALID] == 0) and torch.all(weights[~VALID] == 0)


def test_correlations_leave_out_padding_and_what_has_none():
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4, 9.0, 9.0], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    importance = torch.tensor([[0.1, 0.3, 0.2, 0.4, 0.0, 7.0], [0.1, 0.9, 0.0, 0.0, 0.0, 0.0]])
    valid = torch.arange(6) < torch.tensor([4, 2])[:, None]
    found = attention_agreement(weights, importance, valid)
    np.testing.assert_allclose(found, [np.corrcoef([1, 2, 3, 4], [1, 3, 2, 4])[0, 1]], atol=1e-6)
    # Five of the six pairs stand in the same order.
    np.testing.assert_allclose(attention_agreement(weights, importance, valid, "kendall"), [4 / 6], atol=1e-6)
    equal = torch.full((1, 6), 1 / 6)
    assert len(attention_agreement(equal, importance[:1], torch.ones(1, 6, dtype=torch.bool))) == 0


def test_another_kind_is_refused(isolated_python):
    said = isolated_python(
        "import torch; from attlas.inspect import attention_agreement as agree",
        "x = torch.ones(1, 4)",
        "try: agree(x, x, x > 0, 'spearman')",
        "except ValueError as error: print(error)",
    )
    assert said == "kind must be one of pearson, kendall, got 'spearman'"
