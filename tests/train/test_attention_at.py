"""Attention AT and iAT: perturbations against their definitions, finite differences, the objective."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from attlas.attend import attend
from attlas.models.attention_classifier import AttentionClassifier, Sentences
from attlas.score import Dot, Given
from attlas.train import Recipe, fit
from attlas.train.attention_at import (
    AT,
    IAT,
    AttentionTraining,
    RandomDirection,
    adversarial_loss,
    answer_loss,
    at_perturbation,
    iat_perturbation,
    random_perturbation,
)

LENGTHS = (7, 4, 1)
VALID = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def scores_and_gradient():
    torch.manual_seed(3)
    return torch.randn(2, 3, 7, dtype=torch.float64)


def literal_iat(gradient, scores, eps, norm):
    """One sentence, every pair, the gradient in w by autograd."""
    direction = scores[:, None] - scores[None, :]
    if norm == "row":
        direction = functional.normalize(direction, dim=1)
    elif norm == "global":
        direction = direction / direction.norm().clamp_min(1e-300)
    w = torch.zeros_like(direction, requires_grad=True)
    (found,) = torch.autograd.grad((gradient * (w * direction).sum(1)).sum(), w)
    return eps * (found / found.norm().clamp_min(1e-300) * direction).sum(1)


@pytest.mark.parametrize("norm", ["row", "global", "none"])
def test_iat_is_its_definition_over_all_pairs(norm):
    scores, gradient = scores_and_gradient()
    found = iat_perturbation(gradient, scores, 0.7, VALID, direction_norm=norm)
    for row, length in enumerate(LENGTHS):
        wanted = literal_iat(gradient[row, :length], scores[row, :length], 0.7, norm)
        torch.testing.assert_close(found[row, :length], wanted, rtol=0, atol=1e-12)
        assert torch.all(found[row, length:] == 0)


def test_unit_rows_make_iat_the_same_as_at():
    scores, gradient = scores_and_gradient()
    both = VALID.clone()
    both[2, :2] = True  # one token alone has no difference to go along
    at, iat = at_perturbation(gradient, 1.0, both), iat_perturbation(gradient, scores, 1.0, both)
    assert torch.equal(at, iat)
    torch.testing.assert_close(at.norm(dim=-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.all(at[~both] == 0)
    for norm in ("global", "none"):
        other = iat_perturbation(gradient, scores, 1.0, both, direction_norm=norm)
        rescaled = other / other.norm(dim=-1, keepdim=True)
        assert (rescaled - at).abs().amax() > 0.05
        assert not torch.allclose(other.norm(dim=-1), at.norm(dim=-1), atol=0.05)


def test_what_has_no_direction_is_zero():
    zeros = torch.zeros(1, 4)
    assert torch.all(at_perturbation(zeros, 1.0) == 0)
    # Scores that are all equal, also where their mean is not exact.
    equal, gradient = torch.full((1, 7), 0.1), torch.ones(1, 7)
    assert torch.all(iat_perturbation(gradient, equal, 1.0) == 0)
    assert iat_perturbation(gradient, equal, 1.0, direction_norm="none").abs().max() < 1e-6
    nothing = torch.zeros(1, 7, dtype=torch.bool)
    for step in (
        at_perturbation(gradient, 1.0, nothing),
        iat_perturbation(gradient, equal, 1.0, nothing, direction_norm="global"),
        random_perturbation(equal, 1.0, nothing),
    ):
        assert torch.all(step == 0)


def test_padding_plays_no_part_whatever_stands_there():
    scores, gradient = scores_and_gradient()
    dirty = scores.masked_fill(~VALID, float("nan"))
    for norm in ("row", "global", "none"):
        clean = iat_perturbation(gradient, scores, 1.0, VALID, direction_norm=norm)
        hurt = gradient.masked_fill(~VALID, float("inf"))
        assert torch.equal(iat_perturbation(hurt, dirty, 1.0, VALID, direction_norm=norm), clean)


def test_random_directions_have_the_norm_and_follow_the_generator():
    scores, _ = scores_and_gradient()
    one, two = (
        random_perturbation(scores, 2.0, VALID, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(one, two) and one.dtype == torch.float64
    torch.testing.assert_close(one.norm(dim=-1), torch.full((3,), 2.0).double(), rtol=0, atol=1e-6)
    assert torch.all(one[~VALID] == 0)


def test_norms_are_taken_in_float32_under_bfloat16():
    gradient = torch.full((1, 64), 1e-3, dtype=torch.bfloat16)
    found = at_perturbation(gradient, 1.0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.full((1, 64), 0.125), rtol=0, atol=1e-3)


def test_an_unknown_norm_is_refused(isolated_python):
    said = isolated_python(
        "import torch; from attlas.train.attention_at import IAT, iat_perturbation as iat",
        "for call in (lambda: IAT(1.0, 'columns'),",
        "    lambda: iat(torch.ones(1, 2), torch.ones(1, 2), 1.0, direction_norm='columns')):",
        "    try: call()",
        "    except ValueError as error: print(error)",
    )
    assert said.splitlines() == ["direction_norm must be one of row, global, none, got 'columns'"] * 2


# --- the objective -----------------------------------------------------------------------------------------


def classifier(question=False, classes=3):
    torch.manual_seed(0)
    model = AttentionClassifier(20, classes, width=6, hidden=5, question=question).double()
    torch.manual_seed(1)
    tokens = torch.randint(2, 20, (3, 7))
    inputs = Sentences(tokens, VALID)
    if question:
        asked = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
        inputs = Sentences(tokens, VALID, torch.randint(2, 20, (3, 4)), asked)
    return model, inputs, torch.tensor([0, 1, 1])


@pytest.mark.parametrize("question", [False, True])
def test_a_small_step_raises_the_loss_by_eps_times_the_norm(question):
    """Finite differences: loss(a + r) - loss(a) = eps sum_sentences ||g|| up to eps^2."""
    model, inputs, labels = classifier(question)
    encoded = model.encode(inputs)
    scores = model.scores(encoded)

    def loss_at(step):
        return answer_loss(model.answer(encoded, scores + step), labels)

    start = torch.zeros_like(scores).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_at(start), start, retain_graph=True)
    assert torch.all(gradient[~VALID] == 0)
    eps = 1e-5
    step = at_perturbation(gradient, eps, VALID)
    rise = loss_at(step) - loss_at(torch.zeros_like(scores))
    torch.testing.assert_close(rise / eps, gradient.norm(dim=-1).sum(), rtol=1e-4, atol=0)
    fall = loss_at(IAT(eps, official=True)(gradient, scores, VALID)) - loss_at(torch.zeros_like(scores))
    torch.testing.assert_close(fall, -rise, rtol=1e-3, atol=0)


def test_the_objective_is_clean_plus_perturbed_and_r_is_detached():
    model, inputs, labels = classifier()
    weight, eps = 0.5, 0.8
    found = AttentionTraining(AT(eps), weight)(model, (inputs, labels))
    found.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    # Again by hand, the encoder run anew for every pass.
    start = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)

    def loss_at(step):
        encoded = model.encode(inputs)
        return answer_loss(model.answer(encoded, model.scores(encoded) + step), labels)

    (gradient,) = torch.autograd.grad(loss_at(start), start)
    step = eps * functional.normalize(gradient, dim=1)
    wanted = loss_at(torch.zeros_like(step)) + weight * loss_at(step)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    wanted.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=0, atol=1e-12)


def test_the_released_training_counts_the_clean_loss_twice():
    model, inputs, labels = classifier()
    values, grads = [], []
    for objective in (
        AttentionTraining(IAT(1.0, official=True), official=True),
        AttentionTraining(IAT(1.0, official=True)),
        AttentionTraining(AT(1.0), weight=0.0),
    ):
        model.zero_grad()
        loss = objective(model, (inputs, labels))
        loss.backward()
        values.append(loss.detach())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(grads[0], grads[1] + grads[2], rtol=0, atol=1e-12)
    assert (grads[0] - grads[1]).abs().max() > 1e-3


def test_the_released_iat_is_at_with_the_sign_turned():
    """The release written out: differences between the sentences of the batch, weights of zero, then -g."""
    scores, gradient = scores_and_gradient()
    batch = len(scores)
    between = functional.normalize(scores[:, None] - scores[None, :], dim=1)
    weights = torch.zeros_like(between, requires_grad=True)
    first = functional.normalize((weights * between).sum(1))
    assert batch == 3 and torch.all(first == 0)
    first.retain_grad()
    (gradient * (scores + first)).sum().backward()
    wanted = 1.5 * functional.normalize(-first.grad)
    found = IAT(1.5, official=True)(gradient, scores, None)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert torch.equal(found, -AT(1.5)(gradient, scores, None))


def test_nothing_is_perturbed_in_evaluation():
    model, inputs, labels = classifier()
    clean = answer_loss(model(inputs), labels)
    objective = AttentionTraining(AT(5.0))
    assert objective(model, (inputs, labels)) > 1.5 * clean
    torch.testing.assert_close(objective(model.eval(), (inputs, labels)), clean)
    with torch.no_grad():
        torch.testing.assert_close(objective(model.train(), (inputs, labels)), clean)


@pytest.mark.parametrize("perturbation", [AT(), IAT(), IAT(direction_norm="none"), RandomDirection(1.0)])
def test_it_trains(perturbation):
    torch.manual_seed(0)
    model = AttentionClassifier(12, 2, width=8, hidden=6)
    generator = torch.Generator().manual_seed(1)

    def batches():
        while True:
            tokens = torch.randint(2, 12, (16, 5), generator=generator)
            yield Sentences(tokens, torch.ones(16, 5, dtype=torch.bool)), (tokens == 2).any(1).long()

    fit(model, batches(), AttentionTraining(perturbation), Recipe(steps=120, learning_rate=2e-2))
    inputs, labels = next(batches())
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.8


def test_any_model_with_a_place_in_its_score_can_be_trained():
    """attend with `Dot() + Given(r)`: every query of every head is a row."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 6, 4, dtype=torch.float64)
    target = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    key.requires_grad_()

    def loss_at(step):
        return (attend(query, key, value, score=Dot() + Given(step)) - target).square().mean()

    scores = query @ key.transpose(-1, -2) / 2
    found = adversarial_loss(loss_at, scores, AT(0.3), weight=2.0)

    def dense(step):
        return ((scores + step).softmax(-1) @ value - target).square().mean()

    start = torch.zeros_like(scores, requires_grad=True)
    (gradient,) = torch.autograd.grad(dense(start), start, retain_graph=True)
    step = 0.3 * gradient / gradient.norm(dim=-1, keepdim=True)
    wanted = dense(torch.zeros_like(step)) + 2 * dense(step)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    (got,), (expected,) = torch.autograd.grad(found, key), torch.autograd.grad(wanted, key)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_a_loss_that_does_not_look_at_the_step_is_refused():
    scores = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(ValueError, match="loss_at does not depend on its argument; it must add it"):
        adversarial_loss(lambda step: scores.sum(), scores, AT())


def test_the_objective_takes_any_model_with_the_three_steps():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 1)

        def encode(self, inputs):
            return inputs

        def scores(self, encoded):
            return encoded.hidden.sum(-1)

        def answer(self, encoded, scores):
            return self.head(torch.einsum("bn,bnc->bc", scores.softmax(-1), encoded.hidden))

    from attlas.models.attention_classifier import Encoded

    torch.manual_seed(0)
    inputs = Encoded(torch.randn(5, 3, 4), torch.ones(5, 3, dtype=torch.bool))
    model, labels = Own(), torch.tensor([0, 1, 1, 0, 1])
    losses = fit(
        model,
        itertools.repeat((inputs, labels)),
        AttentionTraining(AT(0.5)),
        Recipe(steps=30, learning_rate=5e-2),
    )
    assert losses[-1] < losses[0]


def test_one_logit_is_a_binary_label():
    logits, labels = torch.tensor([[0.3], [-2.0]]), torch.tensor([1, 0])
    wanted = -(torch.sigmoid(torch.tensor(0.3)).log() + torch.sigmoid(torch.tensor(2.0)).log()) / 2
    torch.testing.assert_close(answer_loss(logits, labels), wanted)


def test_sizes_and_empty_rows_are_told():
    scores = torch.zeros(2, 3)
    for eps in (-1.0, float("nan"), float("inf")):
        for make in (AT, IAT, RandomDirection, lambda eps: at_perturbation(scores, eps)):
            with pytest.raises(ValueError, match=f"eps must be a finite number of at least 0, got {eps}: "):
                make(eps)
    with pytest.raises(ValueError, match=r"scores must have at least one token in a row, got shape \(2, 0\)"):
        iat_perturbation(scores[:, :0], scores[:, :0], 1.0)
