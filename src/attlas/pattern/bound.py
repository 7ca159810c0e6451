"""What all bound patterns share: they hold tensors, equal only themselves, and have no JSON form."""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from attlas.pattern.base import Pattern
from attlas.pattern.tokens import Tokens

__all__ = ["BOUND", "Bound", "batch_of", "bound_kind", "check_integers"]

BOUND: dict[str, type["Bound"]] = {}
"""Every kind of bound pattern by its name."""


class Bound(Pattern):
    """A pattern that holds tensors: everything that a recipe can do but JSON and text that is read back.

    It equals only itself, and no cache keeps it or what follows from it. Its tensors are read once: they must
    not be written to afterwards.
    """

    @property
    def label(self) -> str:
        """How the pattern is shown."""
        raise NotImplementedError

    @cached_property
    def bound_parts(self) -> tuple[str, ...]:
        return (self.label,)

    def covers(self, side: str, space: Tokens, first: int, stop: int) -> None:
        """Raise ValueError where tokens of a side stand outside the positions first .. stop."""
        low = space.start if space.index is None else first
        if space.length and (low < first or space.end > stop):
            raise ValueError(
                f"{self.label} holds positions {first}..{stop - 1}, but {side} stand at "
                f"{low}..{space.end - 1}: give tensors that cover every token"
            )


def bound_kind(name: str) -> Callable[[type[Bound]], type[Bound]]:
    """Class decorator: give a kind of bound pattern its name and enter it in ``BOUND``."""

    def enter(kind: type[Bound]) -> type[Bound]:
        kind.name = name
        BOUND[name] = kind
        return kind

    return enter


def batch_of(tensor: Tensor, axes: int) -> int | None:
    """Size of the axis before the last ``axes``; None where there is none or it is 1."""
    return tensor.shape[0] if tensor.dim() > axes and tensor.shape[0] > 1 else None


def check_integers(what: str, tensor: object, dims: tuple[int, ...], shape: str) -> None:
    """Refuse anything but an integer tensor with one of the numbers of axes."""
    if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.is_complex():
        got = tensor.dtype if isinstance(tensor, Tensor) else repr(tensor)
        raise TypeError(f"{what} must be an integer tensor {shape}, got {got}")
    if tensor.dim() not in dims:
        raise ValueError(f"{what} must have shape {shape}, got {tuple(tensor.shape)}")
