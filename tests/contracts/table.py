"""The table that everything joins by one row: a pattern, a score, a normaliser, an aggregate or a backend.

`cases(backend)` draws from the table so that each pair of rows of any two columns meets at least once.
Legend: B batch, H query heads, G KV heads, N tokens, D key width, V value width.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attlas.attend import (
    BACKENDS,
    Aggregate,
    KVView,
    Max,
    Mean,
    Min,
    NeighbourMax,
    Sum,
    make_request,
)
from attlas.attend.backends import core_of
from attlas.graph import Graph, coalesce
from attlas.pattern import (
    BlockTable,
    GraphEdges,
    NeighbourList,
    Pattern,
    Segments,
    causal,
    clear,
    dense,
    distance,
    elastic,
    group,
    key,
    leaky_s2_attention,
    linked,
    linked_groups,
    opaque,
    parse,
    per_head,
    per_kv_head,
    power,
    radial,
    radial_official,
    role,
    s2_attention,
    same,
    sf_attention,
    sink,
    slashes,
    window,
)
from attlas.score import (
    Bilinear,
    Cosine,
    DistanceBias,
    Dot,
    EdgeBias,
    Given,
    LowRankBias,
    PLaplacian,
    RowScale,
    Score,
)
from contracts.grids import GRIDS, IN_COLUMNS, space_at
from contracts.normalisers import HEADS, NORMALISERS

BATCH, KV_HEADS, WIDTH = 2, 2, 8


@dataclass(frozen=True)
class Inputs:
    """Leaf tensors of one case; `leaf` makes further ones for scores and normalisers."""

    length: int
    dtype: torch.dtype
    generator: torch.Generator
    leaves: list[Tensor]

    def leaf(self, *shape: int, positive: bool = False) -> Tensor:
        tensor = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        tensor = (tensor.abs() + 0.1 if positive else tensor).to(self.dtype).requires_grad_()
        self.leaves.append(tensor)
        return tensor


def _drawn(low: int, high: int, *shape: int) -> Tensor:
    """Integers in [low, high) that depend on the shape only."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=generator)


# One row per variant: add a system's pattern here and every backend is tested on it. A pattern that holds
# tensors is a function of the length.
PATTERNS: dict[str, Pattern | Callable[[int], Pattern] | None] = {
    "none": None,
    "dense": dense(),
    "causal": causal(),
    "window": window(9),
    "causal window": causal() & window(16),
    "window and sink": parse("causal & (window(20) | sink(3))"),
    "elastic": causal() & (window(elastic(4, 0.25)) | sink(2)),
    "holes": causal() & (distance(0, 3) | distance(11, 40)),
    "empty rows": (causal() & window(12)) - key(0, 15),
    "not causal": ~causal(),
    "per head": per_head([causal(), causal() & window(7), causal(), window(5) & key(0, 30)]),
    "per KV head": per_kv_head([causal() & (window(10) | sink(4)), causal() & (window(33) | sink(4))]),
    "opaque": causal() & opaque(lambda i, j: (i + j) % 3 != 1, "thirds"),
    "group": causal() & group(24, shift=7),
    "power": power(7, window=2),
    "slashes": slashes(3, 6, 5) | slashes(1, 2, 4),
    "clear": clear(5, 6, 8, 3, factor=2),
    "radial": radial(12),
    "radial in blocks": radial_official(3, 70, block=8, sink=1),
    "shifted groups": s2_attention(HEADS),
    "shifted groups and sinks": sf_attention(HEADS),
    "rolled groups": leaky_s2_attention(HEADS),
    "slots": lambda n: (
        causal()
        & (same("line") | role("text") & ~role("tool", "query")).bind(
            line=torch.arange(n) // 20 - 1, text=_drawn(0, 4, n) == 0, tool=_drawn(0, 3, n) == 0
        )
    ),
    "links": lambda n: linked("tree").bind(tree=_drawn(-1, n, 2, 6 * n)) - window(3),
    "groups": lambda n: linked_groups("layout", "line").bind(
        layout=_drawn(-1, n // 7, 2, 3 * n // 7), line=torch.arange(n) // 7 - 1
    ),
    # Documents of uneven length, one of them empty, and padding behind the last.
    "segments": lambda n: causal() & Segments(torch.tensor([0, 5, 5, n // 2, n - 9])),
    "block table": lambda n: (
        causal()
        & BlockTable(
            _drawn(-1, n // 16 + 1, HEADS, n // 16 + 1, 3), _drawn(0, 5, HEADS, n // 16 + 1, 3) > 0, 16
        )
    ),
    "graph": lambda n: GraphEdges(coalesce(Graph.from_edge_index(_drawn(0, n, 2, 4 * n), num_nodes=n))[0]),
    # Batch rows with pairs of their own.
    "neighbours": lambda n: causal() & (NeighbourList(_drawn(-1, n, BATCH, 1, n, 9)) | sink(1)),
}


def pattern_at(name: str, length: int) -> Pattern | None:
    """The pattern of a row, bound at a length."""
    row = PATTERNS[name] if name in PATTERNS else GRIDS[name]
    pattern = row if row is None or isinstance(row, Pattern) else row(length)
    return pattern if pattern is None else pattern.bind(N=length)


def _holes(given: Inputs) -> Tensor:
    """One pair in three, (N, N)."""
    at = torch.arange(given.length)
    return (at[:, None] + 2 * at) % 3 == 1


SCORES: dict[str, Callable[[Inputs], Score]] = {
    "dot": lambda given: Dot(),
    "dot, own scale": lambda given: Dot(0.7),
    "cosine": lambda given: Cosine(4.0),
    "bilinear": lambda given: Bilinear(given.leaf(BATCH, HEADS, WIDTH, WIDTH)),
    "bilinear, per head": lambda given: Bilinear(given.leaf(HEADS, WIDTH, WIDTH), scale=0.5),
    "distance": lambda given: Dot() + DistanceBias(given.leaf(HEADS, positive=True)),
    "bias": lambda given: Dot() + EdgeBias(given.leaf(HEADS, given.length, given.length)),
    "key bias": lambda given: Dot() + EdgeBias(given.leaf(BATCH, 1, 1, given.length)),
    "low rank": lambda given: (
        Dot() + LowRankBias(given.leaf(HEADS, given.length, 3), given.leaf(HEADS, given.length, 3))
    ),
    "low rank mask": lambda given: (
        LowRankBias(given.leaf(BATCH, 1, given.length, 2), given.leaf(given.length, 2)) * Dot()
    ),
    # Products of a factor of either sign with an absent edge, which stays absent.
    "products with absent edges": lambda given: (
        LowRankBias(given.leaf(BATCH, 1, given.length, 2), given.leaf(given.length, 2))
        * (
            RowScale(given.leaf(HEADS, given.length))
            * (
                Dot()
                + EdgeBias(given.leaf(given.length, given.length).masked_fill(_holes(given), -torch.inf))
            )
        )
    ),
    "row scale": lambda given: RowScale(given.leaf(HEADS, given.length)) * Dot(),
    "clamp": lambda given: Dot(1.0).clamp(-1.5, 2.5),
    "given": lambda given: Given(given.leaf(BATCH, 1, given.length, given.length)),
    "p-laplacian": lambda given: PLaplacian(
        Given(given.leaf(BATCH, 1, given.length, given.length)), given.leaf(1, positive=True), WIDTH
    ),
}

AGGREGATES: dict[str, Aggregate] = {
    "sum": Sum(),
    "mean": Mean(),
    "max": Max(),
    "min": Min(),
    "neighbour max": NeighbourMax(),
}

EXTRAS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    "nothing": lambda given: {},
    "extra": lambda given: {
        "extra": [
            (given.leaf(1, HEADS, 1, 1), given.leaf(1, HEADS, 1, given.leaves[2].shape[3])),
            (
                given.leaf(BATCH, HEADS, given.length, 1),
                given.leaf(BATCH, 1, given.length, 1).expand(-1, -1, -1, given.leaves[2].shape[3]),
            ),
        ]
    },
    "row gate": lambda given: {"gate": given.leaf(BATCH, HEADS, given.length, 1)},
    "pair gate": lambda given: {"gate": given.leaf(1, 1, given.length, given.length)},
    "dropout": lambda given: {"dropout": 0.3, "seed": 11},
}

LENGTHS = (63, 100, 257)
GROUPS = (1, 2, 4)
VALUE_WIDTHS = (8, 5)

COLUMNS: dict[str, tuple[Any, ...]] = {
    "pattern": (*PATTERNS, IN_COLUMNS),
    "score": tuple(SCORES),
    "normaliser": tuple(NORMALISERS),
    "aggregate": tuple(AGGREGATES),
    "extra": tuple(EXTRAS),
    "length": LENGTHS,
    "group": GROUPS,
    "value_width": VALUE_WIDTHS,
}

# What the fused backends are for: in the other columns only what they take, so that most cases run; a case
# that is refused tests the refusal.
NARROW: dict[str, dict[str, tuple[Any, ...]]] = {
    "sdpa": {
        "score": (
            "dot",
            "dot, own scale",
            "cosine",
            "bilinear",
            "distance",
            "bias",
            "key bias",
            "low rank",
            "low rank mask",
            "row scale",
        ),
        "normaliser": ("softmax",),
        "aggregate": ("sum",),
        "extra": ("nothing",),
    },
    "block": {
        "score": (
            "dot",
            "dot, own scale",
            "cosine",
            "bilinear",
            "distance",
            "key bias",
            "low rank",
            "low rank mask",
            "row scale",
        ),
        "normaliser": ("softmax", "softmax, sink", "softmax, learned sink"),
        "aggregate": ("sum",),
        "extra": ("nothing", "extra"),
    },
    "edge": {
        "pattern": ("graph",),
        "score": (
            "dot",
            "bilinear",
            "bias",
            "products with absent edges",
            "p-laplacian",
        ),
        "length": (63, 100),
        "value_width": (5,),
    },
    "decode": {
        "score": ("dot", "dot, own scale"),
        "normaliser": ("softmax", "softmax, sink", "softmax, learned sink"),
        "aggregate": ("sum",),
        "extra": ("nothing", "extra"),
    },
}
# Backends that read a view of a cache instead of tensors, and have no gradient.
READS_VIEWS = ("decode",)
# Backends that take a graph, and no other pattern.
READS_GRAPHS = ("edge",)


@dataclass(frozen=True)
class Case:
    """One line of the pairwise table."""

    backend: str
    pattern: str
    score: str
    normaliser: str
    aggregate: str
    extra: str
    length: int
    group: int
    value_width: int

    def __str__(self) -> str:
        return "-".join(str(getattr(self, name)).replace(" ", "_") for name in self.__dataclass_fields__)

    def arguments(self, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
        """(all leaves, of which the first three are query, key, value; options for `attend`)."""
        given = Inputs(self.length, dtype, torch.Generator().manual_seed(self.length), [])
        kv_heads = HEADS // self.group
        given.leaf(BATCH, HEADS, self.length, WIDTH)
        given.leaf(BATCH, kv_heads, self.length, WIDTH)
        given.leaf(BATCH, kv_heads, self.length, self.value_width)
        space = space_at(self.pattern, self.length)
        options = {
            "pattern": pattern_at(self.pattern, self.length),
            **({"q_at": space, "k_at": space} if self.backend not in READS_VIEWS else {"q_at": space}),
            "score": SCORES[self.score](given),
            "normaliser": NORMALISERS[self.normaliser](given),
            "aggregate": AGGREGATES[self.aggregate],
            **EXTRAS[self.extra](given),
        }
        return given.leaves, options


def given_to(backend: str, leaves: list[Tensor]) -> tuple[Any, ...]:
    """What stands for query, key and value in a call of this backend."""
    query, key, value = leaves[:3]
    if backend not in READS_VIEWS:
        return query, key, value
    return query.detach(), KVView.of(key.detach(), value.detach())


def refusal(case: "Case", leaves: list[Tensor], options: dict[str, Any]) -> str | None:
    """Why the case's backend would not run it, None if it would."""
    module = BACKENDS[case.backend]
    given = given_to(case.backend, leaves)
    with torch.set_grad_enabled(case.backend not in READS_VIEWS):
        return module.supports(core_of(make_request(*given, **options), module))


@cache
def cases(backend: str) -> list[Case]:
    """Cases of a backend in which each pair of rows of any two columns meets, if it can."""
    columns = {**COLUMNS, **NARROW.get(backend, {})}
    names = list(columns)
    wanted = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in columns[a]
        for y in columns[b]
        if _fits({a: x, b: y})
    }
    found = []
    generator = torch.Generator().manual_seed(0)
    while wanted:
        best: tuple[int, dict[str, Any]] = (0, {})
        first = min(wanted, key=str)
        for _ in range(20):
            row = {first[0]: first[1], first[2]: first[3]}
            for name in names:
                if name not in row:
                    row[name] = _best(name, columns[name], row, wanted, generator)
            if _fits(row):
                best = max(best, (len(_met(row, names) & wanted), row), key=lambda item: item[0])
        if not best[0]:
            wanted.discard(first)
            continue
        wanted -= _met(best[1], names)
        found.append(Case(backend, **best[1]))
    return found


def _best(
    name: str, rows: tuple[Any, ...], row: dict[str, Any], wanted: set[Any], generator: torch.Generator
) -> Any:
    order = [rows[i] for i in torch.randperm(len(rows), generator=generator)]

    def gain(value: Any) -> int:
        return len(_met({**row, name: value}, list(COLUMNS)) & wanted) if _fits({**row, name: value}) else -1

    return max(order, key=gain)


def _met(row: dict[str, Any], names: list[str]) -> set[Any]:
    held = [name for name in names if name in row]
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(held, 2)}


def _fits(row: dict[str, Any]) -> bool:
    # An extra term has no sender that could share itself out.
    if row.get("normaliser") == "sender softmax" and row.get("extra") == "extra":
        return False
    # A pattern per KV head fits one number of KV heads.
    return row.get("pattern") != "per KV head" or row.get("group", 2) == HEADS // KV_HEADS
