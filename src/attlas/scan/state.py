"""What a recurrence carries from one piece of a sequence to the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["State", "wide"]

Part = "Tensor | State"


@dataclass(frozen=True, eq=False)
class State:
    """Named tensors, or states of parts of a network, each with the batch as first axis, and a position.

    Sums and statistics are float32, float64 for float64 inputs; kept tokens have their own type. position:
    int64 (B,), the valid tokens that every row of the batch has seen. Two states of equal names come from the
    same kind of recurrence.
    """

    parts: "Mapping[str, Tensor | State]"
    position: Tensor

    def __post_init__(self) -> None:
        if self.position.dim() != 1 or self.position.dtype != torch.int64:
            raise ValueError(
                f"state position must be int64 (batch,), got {self.position.dtype} "
                f"{tuple(self.position.shape)}"
            )
        for name, part in self.parts.items():
            batch = part.batch if isinstance(part, State) else part.shape[0] if part.dim() else None
            if batch != self.batch:
                raise ValueError(
                    f"state part {name!r} must have the batch of {self.batch} rows as its first axis, "
                    f"got {batch}"
                )

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self.position.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, those of nested states included; without the positions."""
        return sum(part.nbytes for part in self.parts.values())

    def __getitem__(self, name: str) -> "Tensor":
        part = self.parts.get(name)
        if not isinstance(part, Tensor):
            kind = "no such part" if part is None else "a nested state: use .nested(name)"
            raise KeyError(f"state part {name!r}: {kind}; it has {', '.join(self.parts) or 'none'}")
        return part

    def nested(self, name: str) -> "State":
        """The state of a part of a network."""
        part = self.parts.get(name)
        if not isinstance(part, State):
            kind = "no such part" if part is None else "a tensor: use state[name]"
            raise KeyError(f"state part {name!r}: {kind}; it has {', '.join(self.parts) or 'none'}")
        return part

    def index_select(self, rows: Tensor) -> "State":
        """Keep (and repeat) rows of the batch, as beam search does."""
        return self._mapped(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def detach(self) -> "State":
        """The same state outside of the graph of gradients."""
        return self._mapped(Tensor.detach)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "State":
        parts = {
            name: part._mapped(change) if isinstance(part, State) else change(part)
            for name, part in self.parts.items()
        }
        return State(parts, change(self.position))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which states, decays and denominators are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
