"""Filling the free names of a pattern: lengths that sizes grow with, and slots for tensors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attlas.pattern.tokens import Tokens, named_lengths

if TYPE_CHECKING:
    from attlas.pattern.base import Pattern

__all__ = ["bind", "resolved"]


def bind(pattern: "Pattern", values: Mapping[str, Any]) -> "Pattern":
    """``Pattern.bind``."""
    for name, value in values.items():
        _check(pattern, name, value)
    try:
        return pattern._bound(values)
    except ValueError as error:
        at = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
        raise ValueError(f"{error} (binding {pattern} at {at})") from error


def _check(pattern: "Pattern", name: str, value: Any) -> None:
    if name not in pattern.free and name != "N":
        known = ", ".join(sorted(pattern.free)) or "none"
        raise ValueError(f"bind: {pattern} has no free name {name!r}; its free names: {known}")
    wanted = pattern.slots.get(name)
    if wanted is None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"bind needs a length >= 0 for {name}, got {_shown(value)}")
    elif name in pattern.axes:
        raise ValueError(f"bind: {name!r} is both a length and a slot of {pattern}: rename one of them")
    elif not isinstance(value, Tensor):
        raise TypeError(f"bind needs a tensor for {name} ({wanted}), got {value!r}")


def resolved(pattern: "Pattern", q_at: Tokens, k_at: Tokens) -> "Pattern":
    """``Pattern.resolved``."""
    lengths = named_lengths(q_at, k_at)
    bound = pattern.bind(**{name: lengths[name] for name in pattern.axes & set(lengths)})
    if bound.free:
        call = ", ".join(f"{name}=..." for name in sorted(bound.free))
        hints = [f"{name} is {wanted}" for name, wanted in sorted(bound.slots.items())]
        hints += ["or give the token spaces their total"] if "N" in bound.axes else []
        raise ValueError(
            f"pattern depends on {', '.join(sorted(bound.free))}: call pattern.bind({call})"
            + (f" ({'; '.join(hints)})" if hints else "")
        )
    if bound.bound_parts:
        bound.check_tokens(q_at, k_at)
    return bound


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
