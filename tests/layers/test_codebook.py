"""The codebook: counts as weights, running averages, empty and dead rows, the table of assignments."""

import numpy as np
import pytest
import torch

from attlas.layers import CodebookAttention, EMACodebook, codebook_attention

DOUBLE = torch.float64


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_with_nodes_at_their_rows_it_is_attention_over_all_nodes():
    query, keys, values = some(1, 2, 5, 4), some(1, 2, 7, 4, seed=1), some(1, 2, 7, 3, seed=2)
    row_of = torch.tensor([0, 3, 3, 6, 0, 1, 3, 3, 5, 0])  # rows 2 and 4 hold none
    found = codebook_attention(query, keys, values, torch.bincount(row_of, minlength=7))
    logits = query @ keys[:, :, row_of].transpose(2, 3) / 2.0
    wanted = torch.softmax(logits, -1) @ values[:, :, row_of]
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_rows_of_no_nodes_have_no_weight_and_none_at_all_give_nothing():
    query = some(1, 1, 3, 4).requires_grad_()
    keys, values = some(1, 1, 4, 4, seed=1), some(1, 1, 4, 2, seed=2)
    counts = torch.tensor([2, 0, 1, 0])
    wanted = codebook_attention(query, keys, values, counts)
    keys[:, :, 1::2] = float("inf")
    values[:, :, 1::2] = float("nan")
    assert torch.equal(codebook_attention(query, keys, values, counts), wanted)
    empty = codebook_attention(query, keys, values, torch.zeros(4, dtype=torch.int64))
    assert empty.shape == (1, 1, 3, 2) and not empty.any()
    (slope,) = torch.autograd.grad(empty.sum(), query, allow_unused=True)
    assert slope is None or not slope.any()


def test_updates_are_the_running_averages_of_the_definition():
    book = EMACodebook(3, 2, 40, decay=0.9).double().train()
    batches = [some(8, 2, seed=seed) * 3 + 1 for seed in range(4)]
    normal = [(z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (b.numpy() for b in batches)]
    rows = normal[0][:3].copy()
    sizes, sums = np.ones(3), rows.copy()
    mean, variance = np.zeros(2), np.ones(2)
    for step, (batch, z) in enumerate(zip(batches, normal, strict=True)):
        got = book.update(batch, torch.arange(8 * step, 8 * step + 8))
        assign = [int(np.argmin([np.sum((vector - row) ** 2) for row in rows])) for vector in z]
        assert got.tolist() == assign
        for b in range(3):
            mine = z[[a == b for a in assign]]
            sizes[b] = 0.9 * sizes[b] + 0.1 * len(mine)
            sums[b] = 0.9 * sums[b] + 0.1 * mine.sum(0)
        sizes = (sizes + 1e-5) / (sizes.sum() + 3e-5) * sizes.sum()
        rows = sums / sizes[:, None]
        mean = 0.9 * mean + 0.1 * batch.numpy().mean(0)
        variance = 0.9 * variance + 0.1 * batch.numpy().var(0, ddof=1)
    assert np.allclose(book.rows, rows * np.sqrt(variance + 1e-5) + mean, rtol=1e-12, atol=1e-12)
    assert torch.equal(book.counts, torch.bincount(book.row_of[book.row_of >= 0], minlength=3))
    assert int(book.counts.sum()) == 32


def test_rows_begin_among_the_vectors_and_dead_ones_stay_where_they_can_come_back():
    book = EMACodebook(16, 4, 64)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(64, 4, generator=generator)
    book.update(vectors, torch.arange(64))
    first = book.normal.norm(dim=1)
    assert float(first.max()) < 6 and int((book.counts > 0).sum()) == 16, "no row is thrown away, all serve"
    few = vectors[:4].repeat(8, 1) + 0.01 * torch.randn(32, 4, generator=generator)
    for _ in range(800):
        book.update(few, torch.arange(32))
    dead = book.sizes < 1e-2
    assert bool(dead.any()) and torch.isfinite(book.rows).all()
    assert bool((book.normal.norm(dim=1)[dead] <= first[dead] + 1e-6).all())
    assert torch.isclose(book.sizes.sum(), torch.tensor(32.0), rtol=0.1)


def test_a_batch_smaller_than_the_codebook_starts_only_its_own_rows():
    torch.manual_seed(0)
    book = EMACodebook(6, 3, 10)
    before = book.normal.clone()
    z = torch.randn(4, 3)
    book.update(z, torch.arange(4))
    assert bool(book.started) and (book.counts > 0).sum() <= 4
    untouched = book.counts == 0
    assert torch.allclose(book.normal[untouched], before[untouched], atol=1e-3) or int(untouched.sum()) > 2


def test_numbers_of_rows_above_those_of_16_bits_are_kept():
    book = EMACodebook(40_000, 2, 5)
    book._assign(torch.tensor([39_999, 7, 39_999]), torch.tensor([0, 1, 4]))
    assert book.row_of.dtype == torch.int64 and book.row_of.tolist() == [39_999, 7, -1, -1, 39_999]
    assert int(book.counts[39_999]) == 2
    book._assign(torch.tensor([7, 3, 3]), torch.tensor([0, 4, 4]))  # node 4 twice
    assert torch.equal(book.counts, torch.bincount(book.row_of[book.row_of >= 0], minlength=40_000))


def test_attention_reads_the_codebook_of_before_and_only_training_changes_it():
    torch.manual_seed(0)
    module = CodebookAttention(5, 4, 2, 3, rows=6, nodes=20)
    hidden, position, nodes = torch.randn(10, 5), torch.randn(10, 3), torch.arange(10)
    first = module(hidden, position, nodes)
    assert first.shape == (10, 8) and not first.any(), "nothing is assigned yet"
    module(hidden, position, nodes).sum().backward()
    for name, weight in module.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) or name == "key.bias", name
    assert not any(buffer.requires_grad for buffer in module.buffers())
    module.eval()
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    alone = torch.cat([module(hidden[i : i + 1], position[i : i + 1]) for i in range(10)])
    assert torch.allclose(module(hidden, position), alone, atol=1e-6)
    assert all(torch.equal(buffer, kept[name]) for name, buffer in module.named_buffers())


def test_attention_is_the_definition_with_weights_of_its_own():
    module = CodebookAttention(5, 4, 2, 3, rows=6, nodes=20).double()
    module.train()
    for seed in range(3):
        module(some(8, 5, seed=seed), some(8, 3, seed=9 + seed), torch.arange(8) + 4 * seed)
    module.eval()
    hidden, position = some(4, 5, seed=30), some(4, 3, seed=31)
    rows, counts = module.codebook.rows, module.codebook.counts
    z = torch.cat([module.inner(hidden), position], 1)
    wanted = []
    for head in range(2):
        own = slice(4 * head, 4 * head + 4)
        q, k = module.query(z)[:, own], module.key(rows)[:, own]
        weights = torch.exp(q @ k.T / 2.0) * counts
        wanted.append(weights / weights.sum(1, keepdim=True) @ module.value(rows[:, :3])[:, own])
    assert torch.allclose(module(hidden, position), torch.cat(wanted, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: EMACodebook(0, 2, 3), "rows must be 1 or more, .* got rows=0, nodes=3, decay=0.99"),
        (lambda: EMACodebook(2, 2, 3, decay=1.0), "decay between 0 and 1"),
        (
            lambda: EMACodebook(2, 2, 3).update(torch.zeros(1, 2), torch.tensor([0])),
            "a batch needs 2 vectors or more to be normalised, got 1",
        ),
        (
            lambda: EMACodebook(2, 2, 3).update(torch.zeros(2, 2), torch.tensor([0, 3])),
            r"nodes must be in 0 \.\. 2, got 0 \.\. 3",
        ),
        (
            lambda: CodebookAttention(2, 2, 1, 2, rows=2, nodes=3)(torch.zeros(2, 2), torch.zeros(2, 2)),
            "nodes must be given in training",
        ),
        (
            lambda: CodebookAttention(2, 2, 1, 2, rows=2, nodes=3)(torch.zeros(2, 2), torch.zeros(2, 3)),
            r"position must be \(nodes, 2\), as the module was made for, got \(2, 3\)",
        ),
    ],
)
def test_errors_say_what_was_expected(run, words):
    with pytest.raises(ValueError, match=words):
        run()
