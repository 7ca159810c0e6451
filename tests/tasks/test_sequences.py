"""Small sequence tasks: solvers by hand give the labels, and labels stand nowhere else."""

import pytest
import torch

from attlas.tasks import (
    ASK_KEY,
    PASSKEY_VOCABULARY,
    SHOW_KEY,
    UNASKED,
    copying,
    digit_tokens,
    induction,
    passkey,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_copying_asks_for_the_string_again():
    inputs, labels = copying(50, 21, 9, generator())
    assert inputs.shape == labels.shape == (50, 21)
    sign = (inputs == 0).nonzero()
    assert sign.tolist() == [[row, 10] for row in range(50)]
    assert torch.equal(inputs[:, 11:], inputs[:, :10])
    # The answer at a place is the next token, and stands nowhere else.
    assert torch.equal(labels[:, 10:20], inputs[:, 11:])
    assert (labels[:, :10] == UNASKED).all() and (labels[:, 20] == UNASKED).all()
    assert set(inputs.unique().tolist()) == set(range(10))


def test_induction_asks_for_what_followed():
    inputs, labels = induction(200, 12, 5, generator())
    places = set()
    for row, answer in zip(inputs.tolist(), labels.tolist(), strict=True):
        first = row.index(0)
        assert row.count(0) == 2 and row[-1] == 0
        assert answer == [UNASKED] * 11 + [row[first + 1]]
        places.add(first)
    assert places == set(range(10))


def test_passkey_hides_digits_in_text():
    text = torch.arange(97, 97 + 26).repeat(20)
    inputs, labels = passkey(text, 100, 40, 4, generator())
    for row, answer in zip(inputs.tolist(), labels.tolist(), strict=True):
        shown, asked = row.index(SHOW_KEY), row.index(ASK_KEY)
        key = row[shown + 1 : shown + 5]
        assert asked == 36 and shown + 4 < asked
        assert all(chr(digit).isdigit() for digit in key)
        assert answer == [UNASKED] * 36 + key and row[37:] == key[:-1]
        rest = row[:shown] + row[shown + 5 : asked]
        assert all(chr(byte).isalpha() for byte in rest)
    assert inputs.max() < PASSKEY_VOCABULARY
    assert text.max() < SHOW_KEY  # the text itself stays as it was


@pytest.mark.parametrize("task", [copying, induction])
def test_the_seed_decides(task):
    first, again, other = (task(3, 9, 5, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_digits_are_64_tokens_of_17_values_and_never_in_both_parts():
    (inputs, labels), (tests, _) = digit_tokens(0, train=1437, test=359)
    assert inputs.shape == (1437, 64) and tests.shape == (359, 64) and inputs.dtype == torch.int64
    assert inputs.min() == 0 and inputs.max() == 16 and set(labels.tolist()) == set(range(10))
    shown = {tuple(row) for row in inputs.tolist()}
    assert not shown & {tuple(row) for row in tests.tolist()}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda g: copying(1, 10, 5, g), "copying: length must be odd and at least 3 .*, got 10"),
        (lambda g: copying(1, 11, 1, g), "copying: symbols must be at least 2, got 1"),
        (lambda g: induction(1, 2, 5, g), "induction: length must be at least 3 and symbols 2, got 2 and 5"),
        (
            lambda g: passkey(torch.zeros(99, dtype=torch.int64), 1, 8, 4, g),
            "passkey: a length of 8 has no room for a sign and 4 digits, twice; give at least 9",
        ),
        (
            lambda g: passkey(torch.zeros(9, dtype=torch.int64), 1, 20, 4, g),
            "passkey: windows of 20 bytes do not fit in 9 bytes of text",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call(generator())
