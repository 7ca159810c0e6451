"""Random recipes from every registered atom, and the definition of each atom in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from attlas.pattern import Pattern, Tokens, causal, dense, distance, key, rounded, sink, window
from attlas.pattern.algebra import And, Minus, Not, Or

sizes = st.integers(0, 40)
offsets = st.one_of(st.none(), st.integers(-20, 40))
positions = st.one_of(st.none(), st.integers(0, 40))


def _ordered(pair: tuple[Any, Any]) -> bool:
    return None in pair or pair[0] <= pair[1]


ATOMS: dict[str, st.SearchStrategy[Pattern]] = {
    "causal": st.builds(causal),
    "dense": st.builds(dense),
    "window": st.builds(window, sizes),
    "sink": st.builds(sink, sizes),
    "distance": st.tuples(offsets, offsets).filter(_ordered).map(lambda ends: distance(*ends)),
    "key": st.tuples(positions, positions).filter(_ordered).map(lambda ends: key(*ends)),
}
"""One strategy per atom; a test holds this table against the registry."""

NODES = ("or", "and", "minus", "not", "rounded")
"""Kinds that hold other recipes; `recipes` builds them."""

recipes = st.recursive(
    st.one_of(*ATOMS.values()),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1]),
        inner.map(lambda one: ~one),
        st.builds(rounded, st.integers(1, 9), inner),
    ),
    max_leaves=5,
)

# Lengths that do not divide, chunks and decoding steps that start late, and queries that outnumber keys.
spaces = st.builds(Tokens, length=st.integers(0, 45), start=st.integers(0, 30))


def allowed(pattern: Any, i: int, j: int, extent: int) -> bool:
    """May i see j? Written from the definitions, one pair at a time."""
    name = pattern.name
    if name == "causal":
        return j <= i
    if name == "dense":
        return True
    if name == "window":
        return abs(i - j) < pattern.size
    if name == "sink":
        return j < pattern.size
    if name in ("distance", "key"):
        value = i - j if name == "distance" else j
        return (pattern.lo is None or pattern.lo <= value) and (pattern.hi is None or value < pattern.hi)
    if isinstance(pattern, Or):
        return any(allowed(part, i, j, extent) for part in pattern.parts)
    if isinstance(pattern, And):
        return all(allowed(part, i, j, extent) for part in pattern.parts)
    if isinstance(pattern, Minus):
        return allowed(pattern.left, i, j, extent) and not allowed(pattern.right, i, j, extent)
    if isinstance(pattern, Not):
        return not allowed(pattern.part, i, j, extent)
    if name == "rounded":
        b = pattern.block
        rows, keys = range(i // b * b, i // b * b + b), range(j // b * b, j // b * b + b)
        return any(allowed(pattern.rule, x, y, extent) for x in rows for y in keys)
    raise AssertionError(f"no definition of {name} here")


def definition(pattern: Pattern, q_at: Tokens, k_at: Tokens) -> np.ndarray:
    """The mask by `allowed`, bool (n, m)."""
    extent = max(q_at.extent, k_at.extent)
    rows, keys = q_at.positions().tolist(), k_at.positions().tolist()
    return np.array([[allowed(pattern, i, j, extent) for j in keys] for i in rows], dtype=bool).reshape(
        len(rows), len(keys)
    )


def painted(layout: Any, mask: np.ndarray) -> np.ndarray:
    """The pairs that a kernel computes by walking the layout; partial parts look up the mask."""
    out = np.zeros((layout.rows, layout.keys), dtype=bool)
    for tile in layout.tiles:
        rows = slice(tile.q0, tile.q1)
        for part in tile.parts:
            keys = slice(part.k0, part.k1)
            assert not out[rows, keys].any(), "parts overlap"
            if part.kind == "causal":
                assert tile.q1 - tile.q0 == part.k1 - part.k0, "a causal part is a square"
                out[rows, keys] = np.tri(tile.q1 - tile.q0, dtype=bool)
            else:
                out[rows, keys] = True if part.kind == "full" else mask[rows, keys]
    return out
