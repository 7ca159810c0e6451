"""What token mixers ask of their inputs before they compute."""

from torch import Tensor

__all__ = ["check_tokens"]


def check_tokens(owner: str, *, rows: bool = True, **parts: Tensor | None) -> None:
    """ValueError if a part (B, N, ...) that is not None has no token or, with `rows`, no batch row."""
    for name, part in parts.items():
        if part is None or (part.shape[1] and (part.shape[0] or not rows)):
            continue
        least = "at least one batch row and one token" if rows else "at least one token"
        raise ValueError(f"{owner}: {name} must have {least}, got shape {tuple(part.shape)}")
