"""What token mixers ask of their inputs before they compute, and the state before the first of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from attlas.scan import State

__all__ = ["check_grid", "check_tokens", "state_before"]


def check_tokens(owner: str, *, rows: bool = True, **parts: Tensor | None) -> None:
    """ValueError if a part (B, N, ...) that is not None has no token or, with `rows`, no batch row."""
    for name, part in parts.items():
        if part is None or (part.shape[1] and (part.shape[0] or not rows)):
            continue
        least = "at least one batch row and one token" if rows else "at least one token"
        raise ValueError(f"{owner}: {name} must have {least}, got shape {tuple(part.shape)}")


def check_grid(owner: str, x: Tensor, grid: tuple[int, int]) -> None:
    """ValueError if x (B, N, ...) does not hold the tokens of a grid (rows, columns)."""
    if x.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"{owner} is made for a grid of {grid[0]} x {grid[1]} tokens, got {x.shape[1]} tokens; make one "
            "for another grid"
        )


def state_before(advance: Callable[..., tuple[Tensor, State]], batch: int, like: Tensor, width: int) -> State:
    """The state behind one token that does not count, which is that before the first one.

    advance: `(x (B, 1, width), None, valid=)` -> (y, state) of the mixer; like: has its type and device.
    """
    nothing = like.new_zeros(batch, 1, width)
    none = torch.zeros(batch, 1, dtype=torch.bool, device=like.device)
    return advance(nothing, None, valid=none)[1].detach()
