"""Autoformer as a model: what it adds up, and what its decoder gets."""

import pytest
import torch

from attlas.models.autoformer import Autoformer, SeriesEmbedding


def model(**changed):
    given = {"label": 6, "width": 8, "heads": 2, "encoder_layers": 1, "inner": 8, "kernel": 5}
    return Autoformer(2, 1, 4, **(given | changed)).double().eval()


def test_without_its_layers_it_forecasts_the_mean_of_the_input():
    net = model(decoder_layers=0)
    with torch.no_grad():
        net.head.weight.zero_(), net.head.bias.zero_()
    values = torch.randn(3, 10, 2, dtype=torch.float64)
    found = net(values, torch.zeros(3, 14, 1, dtype=torch.float64))
    assert torch.allclose(found, values.mean(1, keepdim=True).expand(3, 4, 2), atol=1e-12)


def test_the_decoder_starts_from_the_seasonal_end_and_zeros():
    net = model()
    seen = {}
    net.decoder_embedding.register_forward_hook(lambda module, given, out: seen.update(given=given))
    values = torch.randn(3, 10, 2, dtype=torch.float64)
    marks = torch.randn(3, 14, 1, dtype=torch.float64)
    net(values, marks)
    begun, at = seen["given"]
    assert torch.equal(at, marks[:, 4:]) and torch.equal(begun[:, 6:], torch.zeros_like(begun[:, 6:]))
    assert torch.equal(begun[:, :6], net.decompose(values)[0][:, 4:])


def test_embedding_wraps_around():
    embedding = SeriesEmbedding(1, 1, 4).double().eval()
    values = torch.zeros(1, 7, 1, dtype=torch.float64)
    values[:, 0] = 1
    touched = embedding(values, torch.zeros(1, 7, 1, dtype=torch.float64)).abs().sum(-1)[0] > 0
    assert touched.tolist() == [True, True, False, False, False, False, True]


def test_every_parameter_is_trained():
    net = model().train()
    net(
        torch.randn(2, 10, 2, dtype=torch.float64), torch.randn(2, 14, 1, dtype=torch.float64)
    ).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_errors():
    net = model()
    values = torch.zeros(1, 5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least the label's 6 steps and marks 4 more than values, got 5"):
        net(values, torch.zeros(1, 9, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="horizon must be at least 1 and label at least 0, got 0 and 48"):
        Autoformer(1, 1, 0)
