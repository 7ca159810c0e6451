"""The recurrent classifier: padding changes nothing, and what it tells of its words."""

from __future__ import annotations

import pytest
import torch

from attlas.layers import LAMA, MeanPooling
from attlas.models import RecurrentClassifier


def made(pooling, pooled=1):
    torch.manual_seed(0)
    net = RecurrentClassifier(pooling, vocabulary=11, classes=3, pooled=pooled, embedding=4, hidden=3)
    return net.double().eval()


IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])


def test_a_text_answers_alone_as_beside_longer_ones_and_more_padding():
    net = made(LAMA(6, 2), 2)
    together = net(IDS, IDS != 0)
    alone = net(IDS[1:, :2], IDS[1:, :2] != 0)
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-12)
    wider = torch.nn.functional.pad(IDS, (0, 4))
    torch.testing.assert_close(net(wider, wider != 0), together, rtol=0, atol=1e-12)


def test_states_are_those_of_a_gru_in_both_directions():
    net = made(MeanPooling())
    found, real = net.states(IDS, IDS != 0)
    assert torch.equal(real, IDS != 0)
    forth, back = torch.nn.GRU(4, 3).double(), torch.nn.GRU(4, 3).double()
    with torch.no_grad():
        for name, weight in forth.named_parameters():
            weight.copy_(getattr(net.recurrent, name))
            back.get_parameter(name).copy_(getattr(net.recurrent, f"{name}_reverse"))
    for row, length in enumerate((5, 2)):
        words = net.embedding(IDS[row, :length])
        wanted = torch.cat([forth(words)[0], back(words.flip(0))[0].flip(0)], -1)
        torch.testing.assert_close(found[row, :length], wanted, rtol=0, atol=1e-12)


def test_importance_is_of_the_words_alone():
    net = made(LAMA(6, 2), 2)
    wider = torch.nn.functional.pad(IDS, (0, 2))
    found = net.importance(wider, wider != 0)
    assert found.shape == wider.shape and (found[wider == 0] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="importance is told by a LAMA pooling, got MeanPooling"):
        made(MeanPooling()).importance(IDS, IDS != 0)


def test_padding_elsewhere_is_refused():
    net = made(MeanPooling())
    with pytest.raises(ValueError, match="every text needs at least one word"):
        net(IDS, torch.zeros(2, 5, dtype=torch.bool))
    front = IDS.flip(1)
    with pytest.raises(ValueError, match="padding must stand behind the words of a text"):
        net(front, front != 0)
