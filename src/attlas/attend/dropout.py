"""Dropout whose bits are computed, never stored: a function of (seed, batch row, head, query, key) alone.

All backends that support dropout keep and drop the same edges, forward and backward, whatever their tiles
are.
"""

import torch
from torch import Tensor

__all__ = ["drop", "keeps"]

# Odd 64-bit constants with well-mixed bits: golden ratio (SplitMix64), then the two multipliers of its
# finaliser (Steele et al. 2014) and two of xxHash64; as signed numbers because torch has no unsigned
# arithmetic.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_QUERY, _KEY = 0xC2B2AE3D27D4EB4F - 2**64, 0x165667B19E3779F9


def _scramble(bits: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _MIX, strict=True):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, shift: int) -> Tensor:
    # torch shifts signed numbers arithmetically: clear the copied sign bits.
    return (bits >> shift) & ((1 << (64 - shift)) - 1)


def keeps(seed: int, batch: Tensor, head: Tensor, query: Tensor, key: Tensor, probability: float) -> Tensor:
    """Bool, True where the edge is kept (probability 1 - `probability`); int64 arguments broadcast.

    query, key are positions. Cost: two hashes, the second for each pair: about 12 integer operations an edge.
    """
    row = _scramble((batch * 65537 + head) * _GOLDEN + query * _QUERY + seed)
    bits = _scramble(row + key * _KEY)
    return (bits & 0xFFFFFFFF) >= int(probability * 2**32)


def drop(weights: Tensor, kept: Tensor, probability: float) -> Tensor:
    """Weights of kept edges divided by 1 - probability, others 0."""
    return torch.where(kept, weights / (1.0 - probability), 0.0)
