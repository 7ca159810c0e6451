"""MQAR: what the generator promises, by properties, and a solver built by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attlas.tasks import UNASKED, Recall, mqar
from attlas.tasks.mqar import _distinct

SMALL = {"vocabulary": 40, "length": 32, "pairs": 4, "train": 20, "test": 10, "seed": 3}


def solve(ids: Tensor, context: int) -> Tensor:
    """The last place of the context that holds the same token; the answer is the token after it."""
    before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, : context - 1]], 1)
    same = ids[:, :, None] == before[:, None, :]
    last = torch.where(same, torch.arange(context), -1).amax(-1)
    return ids.gather(1, last.clamp_min(0))


@settings(max_examples=20)
@given(
    pairs=st.integers(1, 6),
    spare=st.integers(0, 9),
    first=st.integers(0, 4),
    filler=st.sampled_from(["zero", "random"]),
    rebound=st.sampled_from([0.0, 0.3, 1.0]),
    extra=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_properties_and_the_solver(pairs, spare, first, filler, rebound, extra, seed):
    again = round(rebound * pairs)
    bindings = pairs + again
    length = 2 * (bindings + pairs + first + spare)
    vocabulary = length + extra
    parts = mqar(
        vocabulary=vocabulary, length=length, pairs=pairs, train=7, test=3, seed=seed,
        filler=filler, first_slot=first, rebound=rebound,
    )  # fmt: skip
    for part, count in zip(parts, (7, 3), strict=True):
        assert part.ids.shape == part.labels.shape == (count, length) and part.ids.dtype == torch.int64
        assert part.ids.min() >= 0 and part.ids.max() < vocabulary
        context = part.ids[:, : 2 * bindings]
        for row, ids in enumerate(part.ids.tolist()):
            keys, values = context[row, ::2].tolist(), context[row, 1::2].tolist()
            assert len(set(keys[:pairs])) == pairs and all(1 <= key < vocabulary // 2 for key in keys)
            assert len(set(keys[pairs:])) == again and set(keys[pairs:]) <= set(keys[:pairs])
            assert len(set(values)) == bindings and all(vocabulary // 2 <= v < vocabulary for v in values)
            latest = dict(zip(keys, values, strict=True))
            asked = [at for at in range(length) if part.labels[row, at] != UNASKED]
            assert sorted(ids[at] for at in asked) == sorted(keys[:pairs])
            for at in asked:
                assert (at - 2 * bindings) % 2 == 0 and at >= 2 * (bindings + first)
                assert part.labels[row, at] == latest[ids[at]]
                assert ids[at - int(part.distance[row, at]) + 1] == latest[ids[at]]
                assert part.rebound[row, at] == (ids[at] in keys[pairs:])
            others = [at for at in range(2 * bindings, length) if at not in asked]
            assert filler == "random" or all(ids[at] == 0 for at in others)
            assert not part.distance[row, others].any() and not part.rebound[row, others].any()
        assert part.accuracy(solve(part.ids, 2 * bindings)) == 1.0


def test_drawing_without_replacement_follows_the_weights(generator):
    weights = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    drawn = _distinct(weights, 6_000, 3, generator)
    assert all(len(set(row)) == 3 for row in drawn[:100].tolist())
    first = drawn[:, 0].bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(first, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.02, rtol=0)
    second = drawn[drawn[:, 0] == 0, 1].bincount(minlength=4).float()
    torch.testing.assert_close(second / second.sum(), torch.tensor([0, 0.5, 0.25, 0.25]), atol=0.05, rtol=0)


def test_slots_are_as_often_used_as_the_power_law_says():
    train, _ = mqar(vocabulary=128, length=20, pairs=1, train=10_000, test=1, seed=0)
    used = (train.labels[:, 2::2] != UNASKED).float().mean(0)
    law = torch.arange(1, 10).float() ** -0.99
    torch.testing.assert_close(used, law / law.sum(), atol=0.02, rtol=0)


def test_the_ith_slot_drawn_gets_key_i():
    # The first slot is the likeliest and is drawn early: the first key stands there most often.
    train, _ = mqar(vocabulary=128, length=64, pairs=8, train=4000, test=1, seed=0)
    there = train.ids[:, 16]
    often = [(there == train.ids[:, 2 * pair]).float().mean().item() for pair in range(8)]
    assert often[0] > 0.2 and often[0] > often[1] > often[3] > often[7]


def test_one_seed_draws_both_parts_and_the_test_part_stays():
    train, test = mqar(**SMALL)
    again, same = mqar(**SMALL)
    assert torch.equal(train.ids, again.ids) and torch.equal(test.labels, same.labels)
    more, test_of_more = mqar(**(SMALL | {"train": 500}))
    assert torch.equal(test.ids, test_of_more.ids)
    shown = {tuple(row) for row in more.ids.tolist()}
    assert not any(tuple(row) in shown for row in test.ids.tolist())
    other, _ = mqar(**(SMALL | {"seed": 4}))
    assert not torch.equal(train.ids, other.ids)
    torch.manual_seed(9)  # the global generator has no part in it, random filler neither
    filled = mqar(**(SMALL | {"filler": "random"}))[0].ids
    torch.manual_seed(10)
    assert torch.equal(filled, mqar(**(SMALL | {"filler": "random"}))[0].ids)
    assert (filled[:, 8:] >= 20).any() and (filled[:, 8:] < 20).any()


def test_batches_show_every_example_once_a_round():
    train, _ = mqar(**SMALL)
    stream = train.batches(10, seed=1)
    (first, labels), (second, _), (third, _) = next(stream), next(stream), next(stream)
    assert first.shape == labels.shape == (10, 32)
    seen = sorted(map(tuple, torch.cat([first, second]).tolist()))
    assert seen == sorted(map(tuple, train.ids.tolist()))
    assert not torch.equal(first, third)


def test_accuracy_counts_queries_only():
    labels = torch.tensor([[UNASKED, 5, 6, UNASKED]])
    distance = torch.tensor([[0, 9, 3, 0]])
    part = Recall(torch.zeros_like(labels), labels, distance, distance > 100)
    found = torch.tensor([[1, 5, 7, 1]])
    assert part.accuracy(found) == 0.5
    assert part.accuracy(found, where=part.distance > 5) == 1.0
    with pytest.raises(ValueError, match="no query is left to judge"):
        part.accuracy(found, where=part.rebound)
    with pytest.raises(ValueError, match=r"one token per place, \(1, 4\), got \(4,\)"):
        part.accuracy(found[0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"length": 14}, "need a length of at least 4 x 4 = 16, got 14"),
        ({"length": 33}, "length must be even, the task is made of slots of two tokens; got 33"),
        (
            {"vocabulary": 32},
            "vocabulary must be above the length, else keys and values run out; got 32",
        ),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"filler": "none"}, "filler must be 'zero' or 'random', got 'none'"),
        ({"first_slot": 9}, "4 queries do not fit in the 3 slots from first_slot 9 on after 4 bindings"),
        ({"first_slot": -1}, "from first_slot -1 on"),
        ({"rebound": 1.5}, "rebound is a share of the keys, 0 to 1, got 1.5"),
        ({"rebound": 1.0, "length": 22}, "4 queries do not fit in the 3 slots from first_slot 0 on after 8"),
        ({"power": 0.0}, "power must be above 0, got 0.0"),
        ({"train": 0}, "at least 1 example each, got 0 and 10"),
    ],
)
def test_errors(change, text):
    with pytest.raises(ValueError, match=text):
        mqar(**(SMALL | change))


def test_batches_errors():
    train, _ = mqar(**SMALL)
    with pytest.raises(ValueError, match="batches of 21 examples cannot be drawn from 20 examples"):
        next(train.batches(21, 0))
