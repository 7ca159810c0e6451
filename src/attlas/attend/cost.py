"""What an attention costs: FLOPs, bytes, bytes of keys and values, and the bound that they set.

A *pair* is one (query, key) of one query head. `pairs` are those of the pattern; `computed` are those that
tiles of the layout touch: pairs alone mis-rank patterns whose edges lie scattered.
"""

from dataclasses import dataclass, replace

import torch

from attlas.pattern import Pattern, Tokens

__all__ = ["Cost", "Machine", "Shapes", "cost", "pair_cost"]


@dataclass(frozen=True)
class Machine:
    """Peak rates: FLOP/s in float32 and in bfloat16, bytes/s of memory.

    The defaults were measured on 2 threads of an AMX server core (torch 2.13): gemm 95 GFLOP/s in float32,
    flash attention 625 GFLOP/s in bfloat16, copy 12 GB/s. Ratios matter for choosing a backend, not the
    absolute rates.
    """

    flops: float = 95e9
    half_flops: float = 625e9
    bandwidth: float = 12e9

    def seconds(self, flops: float, moved: float, dtype: torch.dtype) -> float:
        """The larger of arithmetic and memory time; float64 counts twice, half precision has its own rate."""
        rate = self.half_flops if dtype.itemsize == 2 else self.flops / (dtype.itemsize / 4)
        return max(flops / rate, moved / self.bandwidth)


@dataclass(frozen=True)
class Shapes:
    """Sizes of one attention call; `keys`, `kv_heads`, `value_width` default to queries, heads, width."""

    batch: int
    heads: int
    queries: int
    width: int
    keys: int | None = None
    kv_heads: int | None = None
    value_width: int | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name, default in (("keys", self.queries), ("kv_heads", self.heads), ("value_width", self.width)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("batch", "heads", "queries", "width", "keys", "kv_heads", "value_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"shapes: {name} must be at least 1, got {getattr(self, name)}")
        if self.heads % self.of("kv_heads"):
            raise ValueError(f"shapes: heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")

    def of(self, name: str) -> int:
        """A size that may have been left to its default, as a plain int."""
        return int(getattr(self, name))


@dataclass(frozen=True)
class Cost:
    """Work of one forward call over the whole batch.

    flops: 2 (D + V) a computed pair; bytes: queries, keys, values and out, each moved once, keys and values
    only where seen; kv_bytes: the keys and values alone (what one decode step must read); pairs, computed:
    see the module; seconds: the bound on `Machine()`, or a backend's own estimate.
    """

    flops: int
    bytes: int
    kv_bytes: int
    seconds: float = 0.0
    pairs: int = 0
    computed: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def times(self, factor: float) -> "Cost":
        """The same work at a multiple of the time: how an executor with overhead states its estimate."""
        return replace(self, seconds=self.seconds * factor)


def pair_cost(
    shapes: Shapes, computed: int, seen_keys: int, *, pairs: int | None = None, machine: Machine | None = None
) -> Cost:
    """Cost of `computed` pairs (summed over query heads) that read `seen_keys` keys (summed over KV heads).

    Both count one batch row; the cost is that of the whole batch.
    """
    width, value_width = shapes.width, shapes.of("value_width")
    size = shapes.dtype.itemsize
    flops = 2 * shapes.batch * computed * (width + value_width)
    kv_bytes = shapes.batch * seen_keys * (width + value_width) * size
    moved = kv_bytes + shapes.batch * shapes.heads * shapes.queries * (width + value_width) * size
    seconds = (machine or Machine()).seconds(flops, moved, shapes.dtype)
    return Cost(flops, moved, kv_bytes, seconds, computed if pairs is None else pairs, computed)


def cost(
    pattern: Pattern | None,
    shapes: Shapes,
    *,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
    tiles: bool = True,
    machine: Machine | None = None,
) -> Cost:
    """Cost of `pattern` (None: dense) at these shapes, by the tiles of its analytic layout.

    With tiles=False `computed` = `pairs`: the bound of an executor without any waste. The time is O(rows).
    ValueError: an elastic pattern that is not bound.
    """
    if not isinstance(shapes, Shapes):
        raise TypeError(
            f"cost: shapes must be Shapes(batch, heads, queries, width, ...), got {type(shapes).__name__}"
        )
    q_at = q_at or Tokens(shapes.queries)
    k_at = k_at or Tokens(shapes.of("keys"))
    if pattern is None:
        pairs = shapes.heads * shapes.queries * shapes.of("keys")
        return pair_cost(shapes, pairs, shapes.of("kv_heads") * shapes.of("keys"), machine=machine)
    expanded = pattern.expand(shapes.heads, shapes.of("kv_heads"))
    group = shapes.heads // shapes.of("kv_heads")
    pairs = computed = seen = 0
    widest = 0
    known: dict[Pattern, tuple[int, int, int]] = {}
    for head, one in enumerate(expanded):
        if one not in known:
            layout = one.layout(q_at, k_at)
            ranges = sorted((part.k0, part.k1) for tile in layout.tiles for part in tile.parts)
            known[one] = (layout.pairs, layout.computed, _covered(ranges))
        exact, touched, keys = known[one]
        pairs += exact
        computed += touched if tiles else exact
        widest = max(widest, keys)
        if (head + 1) % group == 0:
            seen += widest
            widest = 0
    return pair_cost(shapes, computed, seen, pairs=pairs, machine=machine)


def _covered(ranges: list[tuple[int, int]]) -> int:
    total, end = 0, 0
    for low, high in ranges:
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total
