"""The small tasks of the four patterns."""

import itertools
import math

import pytest
import torch

from attlas.tasks.mini_cab import MASK, SPELLING, curves, masked_bytes, reversed_digits, spelled_digits


def test_masked_bytes_hide_what_they_ask_for():
    ids = torch.randint(0, 256, (64, 40))
    inputs, labels = next(masked_bytes(iter([ids]), seed=1))
    hidden = inputs == MASK
    assert torch.equal(labels == -100, ~hidden) and torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(inputs[~hidden], ids[~hidden])
    assert 0.1 < hidden.float().mean() < 0.2 and hidden.any(1).all()
    again, _ = next(masked_bytes(iter([ids]), seed=1))
    assert torch.equal(again, inputs)
    # So small a share would leave rows without a question.
    assert (next(masked_bytes(iter([ids]), 1, share=1e-9))[0] == MASK).sum(1).tolist() == [1] * 64


def test_curves_are_one_function_per_row():
    known, places, values = next(curves(4, 200, 5, seed=2))
    assert known.shape == (4, 200, 2) and places.shape == values.shape == (4, 5, 1)
    again, _, _ = next(curves(4, 200, 5, seed=2))
    assert torch.equal(known, again)
    for row in range(4):
        # Height, rate and phase follow from the points: fit them on a grid of rates, and foretell the rest.
        x, y = known[row].double().T
        fits = [fit(x, y, rate) for rate in torch.linspace(0.25, 0.75, 126)]
        _, weights, rate = min(fits, key=lambda one: one[0])
        found = basis(places[row, :, 0].double(), rate) @ weights
        assert torch.allclose(found, values[row].double()[:, 0], atol=0.05)
        assert 0.45 < weights.norm() < 1.05


def fit(x, y, rate):
    """(squared error, weights, rate) of the best wave of this rate."""
    weights = torch.linalg.lstsq(basis(x, rate), y[:, None]).solution[:, 0]
    return float((basis(x, rate) @ weights - y).square().sum()), weights, rate


def basis(x, rate):
    angle = 2 * math.pi * rate * x
    return torch.stack([angle.sin(), angle.cos()], 1)


def test_transductions():
    digits, backwards = next(reversed_digits(3, 5, seed=0))
    assert torch.equal(digits.flip(1), backwards) and digits.max() < 10
    digits, letters = next(spelled_digits(20, 3, seed=0))
    assert letters.shape == (20, 18)
    for row, spelled in zip(digits.tolist(), letters.tolist(), strict=True):
        text = "".join(" " if one == SPELLING - 1 else chr(97 + one) for one in spelled if one != -100)
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert text.split() == [names[digit] for digit in row] and text.endswith(" ")
    first, second = itertools.islice(reversed_digits(3, 5, seed=0), 2)
    assert not torch.equal(first[0], second[0])


def test_errors():
    with pytest.raises(ValueError, match="share of masked bytes must be above 0 and at most 1, got 0"):
        next(masked_bytes(iter([]), 0, share=0))
