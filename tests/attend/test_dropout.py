"""Counter-based dropout: the same bits everywhere, the right share, independent in every index."""

import torch

from attlas.attend import attend
from attlas.attend.dropout import keeps
from attlas.pattern import Tokens, causal, dense, window


def grid(seed: int = 7, probability: float = 0.3) -> torch.Tensor:
    axes = [
        torch.arange(size).view([-1 if a == axis else 1 for a in range(4)])
        for axis, size in enumerate((2, 3, 200, 200))
    ]
    return keeps(seed, *axes, probability)


def test_share_and_independence() -> None:
    kept = grid()
    # Four standard deviations of the share of 40,000 coin flips.
    for batch in range(2):
        for head in range(3):
            assert abs(float(kept[batch, head].double().mean()) - 0.7) < 4 * (0.21 / 40000) ** 0.5
    centred = kept.double() - 0.7
    for shifted in (
        centred.roll(1, 0),
        centred.roll(1, 1),
        centred.roll(1, 2),
        centred.roll(1, 3),
        grid(8).double() - 0.7,
    ):
        assert abs(float((centred * shifted).mean())) < 4 * 0.21 / 240000**0.5
    assert grid(probability=0.0).all()


def test_bits_are_a_function_of_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, 150, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    whole = attend(query, key, value, pattern=causal(), dropout=0.4, seed=3)
    torch.testing.assert_close(
        whole, attend(query, key, value, pattern=causal(), dropout=0.4, seed=3, backend="reference")
    )
    last = attend(
        query[:, :, 90:], key, value, pattern=causal(), q_at=Tokens(60, start=90), dropout=0.4, seed=3
    )
    torch.testing.assert_close(last, whole[:, :, 90:])
    assert not torch.allclose(whole, attend(query, key, value, pattern=causal(), dropout=0.4, seed=4))


def test_seed_follows_torch() -> None:
    query, key, value = (torch.randn(1, 2, 20, 4) for _ in range(3))
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(attend(query, key, value, pattern=window(5) & dense(), dropout=0.5))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
