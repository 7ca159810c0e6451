"""The recall net: tied logits, chosen places, the auxiliary loss."""

import torch
from torch.nn import functional

from attlas.layers import BaseConv, SparseHybrid
from attlas.models import RecallNet
from attlas.tasks import UNASKED, mqar
from attlas.train import recall_loss


def net(length=None):
    return RecallNet(
        lambda layer: SparseHybrid(8, 2) if layer else BaseConv(8), vocabulary=40, width=8, length=length
    )


def test_logits_are_tied_and_can_be_asked_for_some_places():
    model = net(length=20).eval()
    ids = torch.randint(0, 40, (3, 20))
    x = model.embedding.weight[ids] + model.places
    for norm, mixer in zip(model.norms, model.mixers, strict=True):
        x = x + mixer(functional.layer_norm(x, (8,), norm.weight, norm.bias))
    logits = model.norm(x) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids), logits)
    where = torch.rand(3, 20) > 0.5
    torch.testing.assert_close(model(ids, where), logits[where])


def test_loss_is_over_the_queries_with_the_auxiliary_added():
    model = net()
    train, _ = mqar(vocabulary=40, length=32, pairs=4, train=6, test=1, seed=0)
    loss = recall_loss(model, (train.ids, train.labels))
    logits = model(train.ids)
    expected = functional.cross_entropy(logits.flatten(0, 1), train.labels.flatten(), ignore_index=UNASKED)
    assert model.auxiliary() > 0
    torch.testing.assert_close(loss, expected + model.auxiliary())
    plain = RecallNet(lambda layer: BaseConv(8), vocabulary=40, width=8)
    assert plain.auxiliary() == 0
