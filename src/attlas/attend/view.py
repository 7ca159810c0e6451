"""`KVView`: what every cache hands to `attend`: groups of KV heads with their own length and positions.

Legend: B batch, g KV heads of a group, m cached keys of a group, D width, V value width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.pattern import Tokens

__all__ = ["KVGroup", "KVView"]


@dataclass(frozen=True, eq=False)
class KVGroup:
    """KV heads that remember equally many keys.

    heads: ids of the KV heads, in the order of the tensors' axis; key (B, g, m, D); value (B, g, m, V);
    positions: absolute positions of the keys, int64, (m,) or (B, m); valid: bool (m,) or (B, m), False for
    a slot that holds nothing (its numbers are never looked at), or None.
    """

    heads: tuple[int, ...]
    key: Tensor
    value: Tensor
    positions: Tensor
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        if self.key.dim() != 4 or self.value.dim() != 4 or self.key.shape[:3] != self.value.shape[:3]:
            raise ValueError(
                "KVGroup: key and value must be (batch, heads, keys, width) with equal batch, heads and "
                f"keys, got key {tuple(self.key.shape)} and value {tuple(self.value.shape)}"
            )
        if len(self.heads) != self.key.shape[1]:
            raise ValueError(f"KVGroup: {len(self.heads)} head ids for {self.key.shape[1]} heads of keys")
        batch, _, keys, _ = self.key.shape
        for name, tensor in (("positions", self.positions), ("valid", self.valid)):
            if tensor is not None and tuple(tensor.shape) not in ((keys,), (batch, keys)):
                raise ValueError(
                    f"KVGroup: {name} must have shape ({keys},) or ({batch}, {keys}), "
                    f"got {tuple(tensor.shape)}"
                )

    def tokens(self, total: int | None = None) -> Tokens:
        """The token space of the keys."""
        return Tokens(self.key.shape[2], index=self.positions, valid=self.valid, total=total)


@dataclass(frozen=True, eq=False)
class KVView:
    """All KV heads of a layer, in groups; accepted by `attend` in place of key and value."""

    groups: tuple[KVGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("KVView: expected at least one group of KV heads, got none")
        heads = sorted(head for group in self.groups for head in group.heads)
        if heads != list(range(len(heads))):
            raise ValueError(f"KVView: the groups must hold every KV head 0..G-1 exactly once, got {heads}")
        first = self.groups[0]
        for group in self.groups[1:]:
            same = (
                group.key.shape[0],
                group.key.shape[3],
                group.value.shape[3],
                group.key.dtype,
                group.key.device,
            )
            wanted = (
                first.key.shape[0],
                first.key.shape[3],
                first.value.shape[3],
                first.key.dtype,
                first.key.device,
            )
            if same != wanted:
                raise ValueError(
                    f"KVView: groups differ in batch, width, dtype or device: {same} against {wanted}"
                )

    @classmethod
    def of(cls, key: Tensor, value: Tensor, positions: Tensor | None = None) -> "KVView":
        """One group of all heads: keys at `positions`, by default 0..m-1."""
        if positions is None:
            positions = torch.arange(key.shape[2], device=key.device)
        return cls((KVGroup(tuple(range(key.shape[1])), key, value, positions),))

    @property
    def kv_heads(self) -> int:
        return sum(len(group.heads) for group in self.groups)

    @property
    def keys(self) -> int:
        """The longest group's number of keys."""
        return max(group.key.shape[2] for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(group.key.nbytes + group.value.nbytes for group in self.groups)
