"""Random patterns from every registered atom, and the definition of each atom in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from attlas.graph import Graph
from attlas.pattern import (
    BlockTable,
    GraphEdges,
    NeighbourList,
    Pattern,
    Segments,
    Tokens,
    along,
    causal,
    dense,
    distance,
    group,
    joint,
    key,
    linked,
    linked_groups,
    power,
    radial,
    radial_official,
    role,
    rolled_group,
    rounded,
    same,
    sink,
    slashes,
    window,
)
from attlas.pattern.algebra import And, Minus, Not, Or
from pattern.radial_definition import official_allowed, paper_allowed

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
    "group": st.builds(group, st.integers(1, 12), st.integers(-15, 15)),
    "power": st.builds(power, st.integers(1, 7), st.integers(0, 4), st.integers(0, 3)),
    "rolled_group": st.builds(rolled_group, st.integers(1, 12), st.integers(0, 30), st.integers(1, 70)),
    "slashes": st.builds(
        slashes, st.integers(1, 5), st.one_of(st.none(), st.integers(0, 6)), st.integers(1, 7)
    ),
    "radial": st.builds(radial, st.integers(1, 9), sink=st.integers(0, 2)),
    "radial_official": st.builds(
        radial_official,
        st.integers(1, 6),
        st.integers(1, 20),
        decay=st.sampled_from([0.2, 1.0]),
        block=st.integers(1, 9),
        sink=st.integers(0, 2),
    ),
    "along": st.builds(
        lambda stride, more, dilation, causal, border: along(
            None, stride + more, stride, dilation, causal, border
        ),
        st.integers(1, 5),
        st.integers(0, 9),
        st.integers(1, 4),
        st.booleans(),
        st.sampled_from(["clamp", "mask"]),
    ),
}
"""One strategy per atom; a test holds this table against the registry."""

SLOTS: dict[str, st.SearchStrategy[Pattern]] = {
    "same": st.builds(same, st.sampled_from(["line", "speaker"])),
    "role": st.builds(role, st.sampled_from(["text", "tool"]), st.sampled_from(["key", "query"])),
    "linked": st.builds(linked, st.sampled_from(["tree", "order"])),
    "linked_groups": st.builds(linked_groups, st.sampled_from(["tree", "layout"]), st.just("line")),
}
"""Atoms that wait for a tensor: they have text and JSON, and no pairs yet."""

LAST = 80
"""Positions that the bound patterns below cover; `spaces` end before."""


def _from_seed(make: Callable[[Callable[..., torch.Tensor]], Pattern]) -> st.SearchStrategy[Pattern]:
    """A pattern from `draw(low, high, *shape)`, integers in [low, high)."""

    def build(seed: int) -> Pattern:
        generator = torch.Generator().manual_seed(seed)
        return make(lambda low, high, *shape: torch.randint(low, high, shape, generator=generator))

    return st.integers(0, 2**16).map(build)


BOUND_ATOMS: dict[str, st.SearchStrategy[Pattern]] = {
    "same": _from_seed(lambda draw: same("line").bind(line=draw(-1, 5, LAST).sort()[0][draw(0, LAST, LAST)])),
    "role": _from_seed(
        lambda draw: role("text", ["key", "query"][draw(0, 2, 1)]).bind(text=draw(0, 3, LAST) == 0)
    ),
    "linked": _from_seed(lambda draw: linked("tree").bind(tree=draw(-3, LAST, 2, 200))),
    "linked_groups": _from_seed(
        lambda draw: linked_groups("layout", "line").bind(
            layout=draw(-2, 14, 2, 20), line=(draw(-1, 12, LAST).sort()[0])[draw(0, LAST, LAST)] * 3 // 2
        )
    ),
    "segments": _from_seed(lambda draw: Segments(draw(0, 70, 6).sort()[0], draw(0, 90, 6).sort()[0])),
    "block_table": _from_seed(
        lambda draw: BlockTable(draw(-1, 9, LAST // 8, 3), draw(0, 4, LAST // 8, 3) > 0, 8)
    ),
    "neighbours": _from_seed(lambda draw: NeighbourList(draw(-2, LAST, LAST, 7), None)),
    "graph": _from_seed(
        lambda draw: GraphEdges(Graph.from_edge_index(draw(0, LAST, 2, 150), num_nodes=LAST))
    ),
}
"""One strategy per bound kind, over positions 0 .. LAST; a test holds this table against `BOUND`."""

NODES = ("or", "and", "minus", "not", "rounded", "joint")
"""Kinds that hold other recipes; `recipes` builds them."""


def _trees(*leaves: st.SearchStrategy[Pattern]) -> st.SearchStrategy[Pattern]:
    return st.recursive(
        st.one_of(*leaves),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1]),
            inner.map(lambda one: ~one),
            st.builds(rounded, st.integers(1, 9), inner),
            st.builds(
                joint, st.integers(0, 9), st.integers(1, 6), st.integers(1, 7), inner, st.integers(0, 5)
            ),
        ),
        max_leaves=5,
    )


recipes = _trees(*ATOMS.values())
unfilled = _trees(*ATOMS.values(), *SLOTS.values())
patterns = _trees(*ATOMS.values(), *BOUND_ATOMS.values())

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
        whole = -(-extent // b) * b
        return any(allowed(pattern.rule, x, y, whole) for x in rows for y in keys)
    if name == "group":
        return (i + pattern.shift) // pattern.size == (j + pattern.shift) // pattern.size
    if name == "power":
        apart = i // pattern.block - j // pattern.block
        near = apart < pattern.window or j // pattern.block < pattern.sink
        return j <= i and (near or apart in (0, *(2**k for k in range(20))))
    if name == "rolled_group":
        row, other = ((at - pattern.shift) % pattern.length for at in (i, j))
        inside = i < pattern.length and j < pattern.length
        return inside and other <= row and row // pattern.size == other // pattern.size
    if name == "slashes":
        apart = i // pattern.block - j // pattern.block
        most = 10**6 if pattern.most is None else pattern.most
        return j <= i and apart % pattern.stride == 0 and apart // pattern.stride < most
    if name == "radial":
        return paper_allowed(pattern.frame[0], pattern.sink, i, j)
    if name == "radial_official":
        return official_allowed(pattern, i, j)
    if name == "joint":
        image, pooled = pattern.text + pattern.height * pattern.width, j >= pattern.end
        if i < pattern.text or i >= image:
            return i < pattern.text and j < image
        if j < pattern.text or pooled:
            return j < image + pattern.pooled
        return allowed(pattern.rule, i - pattern.text, j - pattern.text, image - pattern.text)
    if name == "along":
        return seen_along(pattern, i, j, extent)
    return _bound_definition(pattern)(i, j)


def seen_along(rule: Any, i: int, j: int, length: int) -> bool:
    """May coordinate i of an axis see coordinate j? Word for word from the paper (arXiv 2504.16922)."""
    w, s, t = rule.size, rule.stride, rule.dilation
    if i % t != j % t:
        return False
    group = len(range(i % t, length, t))
    x, key = i // t, j // t
    clamp = rule.border == "clamp"
    if rule.causal:
        leader = x // s * s + s - 1
        leader = min(leader, group - 1) if clamp else leader
        return max(leader - w + 1, 0) <= key <= x
    leader = x // s * s + s // 2
    leader = min(leader, group - 1) if clamp else leader
    start = leader - w // 2
    if clamp:
        start = 0 if w >= group else min(max(start, 0), group - w)
    return start <= key < start + w


@lru_cache(maxsize=8)
def _bound_definition(pattern: Any) -> Callable[[int, int], bool]:
    """The definition of a bound kind, on plain lists."""
    name = pattern.name
    if name in ("same", "role"):
        values = pattern.tensor.tolist()
        of = dict(enumerate(values))
        if name == "same":
            return lambda i, j: of.get(i, -1) == of.get(j, -2) and of[i] >= 0
        return lambda i, j: of.get(i if pattern.side == "query" else j, False)
    if name == "linked":
        links = {(i, j) for i, j in zip(*pattern.tensor.tolist(), strict=True) if i >= 0 and j >= 0}
        return lambda i, j: (i, j) in links
    if name == "linked_groups":
        links = {(a, b) for a, b in zip(*pattern.links.tolist(), strict=True) if a >= 0 and b >= 0}
        line = dict(enumerate(pattern.groups.tolist()))
        return lambda i, j: (line.get(i, -1), line.get(j, -1)) in links
    if name == "segments":
        q, k = pattern.q_ptr.tolist(), pattern.k_ptr.tolist()
        return lambda i, j: any(q[s] <= i < q[s + 1] and k[s] <= j < k[s + 1] for s in range(len(q) - 1))
    if name == "graph":
        edges = set(zip(pattern.graph.receiver.tolist(), pattern.graph.sender.tolist(), strict=True))
        return lambda i, j: (i, j) in edges
    if name in ("block_table", "neighbours"):
        unit = pattern.block if name == "block_table" else 1
        valid = torch.ones_like(pattern.idx, dtype=torch.bool) if pattern.valid is None else pattern.valid
        seen = [
            {entry for entry, there in zip(*row, strict=True) if there and entry >= 0}
            for row in zip(pattern.idx.tolist(), valid.tolist(), strict=True)
        ]
        return lambda i, j: i // unit < len(seen) and j // unit in seen[i // unit]
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
