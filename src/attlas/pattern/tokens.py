"""Where queries and keys stand: patterns are evaluated on positions, never on row numbers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["Tokens", "common_sizes", "named_lengths"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """``length`` tokens of one axis, called "N", at positions ``start + arange(length)`` or ``index``.

    Args:
        length: number of tokens.
        start: position of the first one (contiguous spaces only).
        index: explicit positions, LongTensor (length,) or (B, length): ring caches, retrieved blocks, padded
            batches.
        valid: BoolTensor (length,) or (B, length); False = the token is absent (padding, an unused cache
            slot).
        total: size of the whole axis when these tokens are only a part of it (a decoded token, a chunk).
            Elastic sizes are evaluated at it; default: the position after the last token, and elastic sizes
            must be bound.

    Cost: nothing is computed until asked for. Two contiguous spaces with the same fields are equal and hash
        alike; spaces with tensors are compared by identity.
    """

    length: int
    start: int = 0
    index: Tensor | None = None
    valid: Tensor | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        for name in ("length", "start"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"tokens {name} must be an integer, got {number!r}")
            if number < 0:
                raise ValueError(f"tokens {name} must be >= 0, got {number}")
        if self.index is not None and self.start:
            raise ValueError(
                "give tokens either start or index, not both: index holds the positions themselves"
            )
        if self.index is not None and (self.index.is_floating_point() or self.index.dtype == torch.bool):
            raise TypeError(f"tokens index must be an integer tensor, got {self.index.dtype}")
        if self.valid is not None and self.valid.dtype != torch.bool:
            raise TypeError(f"tokens valid must be a bool tensor, got {self.valid.dtype}")
        for name in ("index", "valid"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.ndim not in (1, 2) or tensor.shape[-1] != self.length):
                raise ValueError(
                    f"tokens {name} must have shape ({self.length},) or (batch, {self.length}), "
                    f"got {tuple(tensor.shape)}"
                )
        if self.total is not None and self.index is None and self.total < self.start + self.length:
            raise ValueError(
                f"tokens total must be >= start + length = {self.start + self.length}, got {self.total}"
            )

    @classmethod
    def at(cls, index: Tensor, *, valid: Tensor | None = None, total: int | None = None) -> "Tokens":
        """Tokens at explicit positions (n,) or (B, n)."""
        return cls(index.shape[-1], index=index, valid=valid, total=total)

    @property
    def contiguous(self) -> bool:
        """True when the positions are ``start .. start + length`` (some may still be invalid)."""
        return self.index is None

    @property
    def plain(self) -> bool:
        """True when the space is contiguous and every token is valid: layouts are exact and cached."""
        return self.index is None and self.valid is None

    @property
    def batch(self) -> int | None:
        """Number of batch rows of a batched ``index`` or ``valid``, None when all rows share one space."""
        sizes = {t.shape[0] for t in (self.index, self.valid) if t is not None and t.ndim == 2}
        if len(sizes) > 1:
            raise ValueError(f"tokens index and valid have different batch sizes: {sorted(sizes)}")
        return sizes.pop() if sizes else None

    @cached_property
    def extent(self) -> int:
        """Size of the axis: ``total`` or the position after the last token."""
        return self.end if self.total is None else self.total

    @cached_property
    def end(self) -> int:
        """The position after the last token."""
        if self.index is None:
            return self.start + self.length
        return int(self.index.max()) + 1 if self.index.numel() else 0

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """Positions (n,) or (B, n), int64."""
        if self.index is not None:
            return self.index.to(device=device, dtype=torch.int64)
        return torch.arange(self.start, self.start + self.length, device=device)

    def _key(self) -> tuple[Any, ...]:
        return (
            self.length,
            self.start,
            self.total,
            *(None if t is None else id(t) for t in (self.index, self.valid)),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def common_sizes(q_at: Tokens, k_at: Tokens) -> dict[str, int]:
    """The axis sizes that ``pair`` and ``intervals`` get: all positions are below ``sizes["N"]``."""
    return {"N": max(q_at.extent, k_at.extent)}


def named_lengths(q_at: Tokens, k_at: Tokens) -> dict[str, int]:
    """The lengths at which elastic sizes may be evaluated: only those that the caller stated as ``total``."""
    stated = {space.total for space in (q_at, k_at) if space.total is not None}
    if len(stated) > 1:
        raise ValueError(
            f"queries and keys state different totals for axis N: {sorted(stated)}; "
            "bind the pattern with pattern.bind(N=...) instead"
        )
    return {"N": stated.pop()} if stated else {}
