"""KGAT as a model: what is concatenated, what it starts from, and its training in turns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attlas.models.kgat import KGAT, MatrixFactorisation
from attlas.tasks.movielens_kg import collaborative_graph
from attlas.train.kgat import Known, Recommending, bpr_loss, train_bpr, train_kgat, transr_loss

USERS, ITEMS, ENTITIES, RELATIONS = 6, 5, 9, 3
PAIRS = torch.tensor([[user, (user * 2 + at) % ITEMS] for user in range(USERS) for at in range(3)])
TRIPLES = torch.tensor([[0, 1, 6], [1, 1, 6], [2, 2, 7], [2, 1, 7], [3, 2, 8], [4, 1, 5], [0, 2, 8]])


def the_graph():
    return collaborative_graph(PAIRS, TRIPLES, users=USERS, entities=ENTITIES, relations=RELATIONS)


def the_model(**options):
    return KGAT(USERS, ENTITIES, 2 * RELATIONS, width=8, relation_width=6, layers=(8, 4), **options)


def test_final_embeddings_by_dense_matrices():
    torch.manual_seed(1)
    model, graph = the_model().eval().double(), the_graph()
    alpha = model.weights(graph)
    dense = torch.zeros(graph.nodes, graph.nodes, dtype=torch.float64)
    dense.index_put_((graph.receiver, graph.sender), alpha, accumulate=True)
    x = model.embedding
    parts = [x]
    for step in model.steps:
        near = dense @ x
        x = functional.leaky_relu(
            (x + near) @ step.sum.weight.T + step.sum.bias, 0.2
        ) + functional.leaky_relu((x * near) @ step.product.weight.T + step.product.bias, 0.2)
        parts.append(x / x.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model(graph, alpha), torch.cat(parts, 1), rtol=1e-10, atol=1e-10)
    first = model(graph, alpha)[:, 8:16].norm(dim=1)
    torch.testing.assert_close(first, torch.ones_like(first))


def test_it_starts_from_factorised_vectors():
    model, start = the_model(), MatrixFactorisation(USERS, ITEMS, width=8)
    entities = model.embedding[USERS + ITEMS :].clone()
    model.start_from(start)
    assert torch.equal(model.embedding[: USERS + ITEMS], start.embedding)
    assert torch.equal(model.embedding[USERS + ITEMS :], entities)
    with pytest.raises(ValueError, match="other must have 6 users and width 8, got 6 and 4"):
        model.start_from(MatrixFactorisation(USERS, ITEMS, width=4))


def test_known_draws_only_what_is_untrue():
    rows = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 0, 0], [0, 1, 0]])
    known = Known(rows, 5)
    assert known.has(rows).all() and not known.has(torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 1]])).any()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([known.other(rows, generator) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {0, 4} and set(drawn[:, 3].tolist()) == {1, 2, 3, 4}
    full = Known(torch.tensor([[0, 0], [0, 1]]), 2)
    with pytest.raises(ValueError, match=r"no untrue end found for row \[0, 0\]: all 2 seem true"):
        full.other(torch.tensor([[0, 0]]), generator)


def test_known_tells_rows_beyond_its_sizes_and_none_at_all():
    known = Known(torch.tensor([[1, 0, 0]]), 4)
    assert known.has(torch.tensor([[1, 0, 0], [0, 1, 0], [1, -1, 4]])).tolist() == [True, False, False]
    nothing = Known(torch.empty(0, 3, dtype=torch.int64), 4)
    assert nothing.has(torch.tensor([[0, 0, 0], [2, 1, 3]])).tolist() == [False, False]


def test_no_triples_have_no_energy():
    none = torch.empty(0, dtype=torch.int64)
    right, wrong, squares = the_model().attention.energy(torch.randn(9, 8), none.reshape(0, 3), none)
    assert right.shape == wrong.shape == (0,) and squares == 0


def test_a_quality_that_is_no_number_is_named():
    base = MatrixFactorisation(USERS, ITEMS, width=8)
    with pytest.raises(ValueError, match="quality of epoch 0 is NaN: no epoch can be the best"):
        train_bpr(base, USERS, plan(1, lambda final: float("nan")), base)


def test_losses_written_out():
    final = torch.randn(8, 4, dtype=torch.float64)
    users, right, wrong = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])
    expected = 0.0
    for user, good, bad in zip(final[users], final[right], final[wrong], strict=True):
        expected += -torch.log(torch.sigmoid(user @ good - user @ bad)) / 2
        expected += 0.1 * 0.5 * (user @ user + good @ good + bad @ bad) / 2
    torch.testing.assert_close(bpr_loss(final, users, right, wrong, 0.1), expected)
    attention = the_model().attention.double()
    x = torch.randn(9, 8, dtype=torch.float64)
    others = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    true, false, squares = attention.energy(x, TRIPLES, others)
    ranking = -torch.log(torch.sigmoid(false - true)).mean()
    torch.testing.assert_close(
        transr_loss(attention, x, TRIPLES, others, 0.1), ranking + 0.05 * squares / len(TRIPLES)
    )


def plan(epochs, quality=lambda final: 0.0, **options):
    return Recommending(PAIRS, ITEMS, quality, epochs=epochs, rate=0.05, batch=7, triple_batch=9, **options)


@torch.no_grad()
def ordered(final):
    """How far the users' own items stand above the others."""
    score = final[:USERS] @ final[USERS : USERS + ITEMS].T
    own = torch.zeros(USERS, ITEMS, dtype=torch.bool)
    own[PAIRS[:, 0], PAIRS[:, 1]] = True
    return float(score[own].mean() - score[~own].mean())


def test_both_train_and_keep_their_best_epoch():
    torch.manual_seed(2)
    base = MatrixFactorisation(USERS, ITEMS, width=8)
    epoch = train_bpr(base, USERS, plan(8, ordered), base)
    assert epoch > 0 and ordered(base()) > 0.5
    model, graph = the_model(), the_graph()
    model.start_from(base)
    epoch, weights = train_kgat(model, graph, plan(4, ordered))
    assert epoch > 0 and torch.equal(weights, model.weights(graph)), "alpha is that of the kept parameters"
    assert ordered(model(graph, weights)) > ordered(base())


def test_without_a_better_epoch_the_start_is_kept():
    model, graph, asked = the_model(), the_graph(), []
    before = {name: part.clone() for name, part in model.state_dict().items()}

    def falling(final):
        asked.append(1)
        return -float(len(asked))

    epoch, weights = train_kgat(model, graph, plan(9, falling, patience=3))
    assert epoch == 0 and len(asked) == 4
    assert all(torch.equal(before[name], part) for name, part in model.state_dict().items())
    assert torch.equal(weights, model.initial_weights(graph))


def test_the_ablations_leave_out_what_they_say():
    torch.manual_seed(3)
    model, graph = the_model(), the_graph()
    transform = model.attention.transform.clone()
    _, weights = train_kgat(model, graph, plan(2), attentive=False, translation=False)
    torch.testing.assert_close(weights, 1.0 / graph.in_degree[graph.receiver])
    assert torch.equal(model.attention.transform, transform), "nothing trains what no weight is made of"
    _, weights = train_kgat(model, graph, plan(2, lambda final: float(torch.rand(()))), translation=False)
    assert torch.equal(model.attention.transform, transform)
