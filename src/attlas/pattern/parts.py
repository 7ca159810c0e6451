"""Patterns that are parts of one another must agree: on heads of their own and on batch rows."""

from typing import Any

from attlas.pattern.base import Pattern

__all__ = ["check_parts", "expand"]


def check_parts(name: str, parts: tuple[Any, ...]) -> None:
    """Parts are patterns, and those with heads or batch rows of their own agree on how many."""
    for part in parts:
        if not isinstance(part, Pattern):
            raise TypeError(f"{name} combines patterns, got {part!r}")
    kinds = {(part.per, part.heads) for part in parts if part.heads is not None}
    if len(kinds) > 1:
        found = " and ".join(f"per_{per} with {heads} patterns" for per, heads in sorted(kinds, key=str))
        raise ValueError(f"{name} cannot combine {found}: give every part the same heads")
    batches = sorted({part.batch for part in parts if part.batch is not None})
    if len(batches) > 1:
        raise ValueError(f"{name} cannot combine tensors with {' and '.join(map(str, batches))} batch rows")


def expand(pattern: Pattern, query_heads: int, kv_heads: int) -> tuple[Pattern, ...]:
    """``Pattern.expand``."""
    if kv_heads < 1 or query_heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of KV heads, got {query_heads} and {kv_heads}")
    wanted = {"head": query_heads, "kv_head": kv_heads, None: None}[pattern.per]
    if pattern.heads != wanted:
        kind, side = ("per_kv_head", "key") if pattern.per == "kv_head" else ("per_head", "query")
        raise ValueError(f"{kind} has {pattern.heads} patterns but {side} has {wanted} heads")
    group = query_heads // kv_heads if pattern.per == "kv_head" else 1
    # Each head once: the heads of a bound table are objects that equal only themselves.
    own = [pattern.head(h) for h in range(query_heads // group)]
    return tuple(own[h // group] for h in range(query_heads))
