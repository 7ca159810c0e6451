"""The pattern protocol: who attends to whom, as a recipe; and its algebra ``|``, ``&``, ``-``, ``~``."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from attlas.pattern.intervals import Intervals
from attlas.pattern.size import Size, axis_of, size_value
from attlas.pattern.tokens import Tokens, named_lengths

if TYPE_CHECKING:
    from attlas.pattern.layout import Layout

__all__ = ["REGISTRY", "Pattern", "check_parts", "register"]

REGISTRY: dict[str, type["Pattern"]] = {}
"""Every kind of recipe by its name in JSON and in text."""


def register(name: str) -> Callable[[type["Pattern"]], type["Pattern"]]:
    """Class decorator: give a frozen dataclass its name in JSON and in text, and enter it in the registry.

    An atom is one such class with ``pair`` and ``intervals``; its fields are sizes, integers, None, text,
    patterns or tuples of patterns, and everything else (JSON, text, bind, layout, counts) follows from them.
    """

    def enter(kind: type["Pattern"]) -> type["Pattern"]:
        if name in REGISTRY:
            raise ValueError(f"a pattern named {name!r} is already registered")
        kind.name = name
        REGISTRY[name] = kind
        return kind

    return enter


class Pattern:
    """A set of allowed (query position, key position) pairs: a frozen, hashable recipe, free of length.

    ``pair`` is the definition; ``intervals`` says the same as ranges of key positions per row and feeds
    layouts, counts, edges and pictures, so that nothing costs O(n * n). Equality is structural.
    """

    name: ClassVar[str]

    # The definition, given by every kind.

    def pair(self, i: Tensor, j: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """May the query at position i see the key at position j? Elementwise and broadcasting, bool."""
        raise NotImplementedError

    def intervals(self, rows: np.ndarray, sizes: Mapping[str, int], head: int = 0) -> Intervals:
        """Key positions that the queries at positions ``rows`` (int64) see, within ``[0, sizes["N"])``."""
        raise NotImplementedError

    @property
    def is_causal(self) -> bool:
        """True when the structure of the recipe guarantees j <= i (False promises nothing)."""
        return False

    # Algebra.

    def __or__(self, other: "Pattern") -> "Pattern":
        from attlas.pattern.algebra import Or

        return Or((self, other))

    def __and__(self, other: "Pattern") -> "Pattern":
        from attlas.pattern.algebra import And

        return And((self, other))

    def __sub__(self, other: "Pattern") -> "Pattern":
        from attlas.pattern.algebra import Minus

        return Minus(self, other)

    def __invert__(self) -> "Pattern":
        from attlas.pattern.algebra import Not

        return Not(self)

    # Structure, derived from the fields.

    @property
    def children(self) -> tuple["Pattern", ...]:
        """Patterns directly inside this one."""
        return tuple(_inner(self))

    def map(self, change: Callable[["Pattern"], "Pattern"]) -> "Pattern":
        """The same node with ``change`` applied to each child."""
        return self._replaced(lambda value: change(value) if isinstance(value, Pattern) else value)

    def bind(self, **lengths: int) -> "Pattern":
        """Evaluate elastic sizes: ``pattern.bind(N=4096)``; the same pattern where nothing is elastic."""
        for axis, length in lengths.items():
            if isinstance(length, bool) or not isinstance(length, int) or length < 0:
                raise ValueError(f"bind needs a length >= 0 for {axis}, got {length!r}")
        try:
            return self._bound(lengths)
        except ValueError as error:
            at = ", ".join(f"{axis}={length}" for axis, length in lengths.items())
            raise ValueError(f"{error} (binding {self} at {at})") from error

    def _bound(self, lengths: Mapping[str, int]) -> "Pattern":
        if self.free.isdisjoint(lengths):
            return self
        return self._replaced(
            lambda v: v._bound(lengths) if isinstance(v, Pattern) else size_value(v, lengths)
        )

    @property
    def free(self) -> frozenset[str]:
        """Names of the lengths that must be bound before the pattern can be evaluated."""
        own = [axis_of(getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        return frozenset().union(*own, *(child.free for child in self.children))

    @property
    def heads(self) -> int | None:
        """Number of heads that have a pattern of their own; None: one pattern shared by all heads."""
        found = {child.heads for child in self.children} - {None}
        return found.pop() if found else None

    @property
    def per(self) -> str | None:
        """Whether ``heads`` counts query heads ("head") or KV heads ("kv_head"); None: shared by all."""
        found = {child.per for child in self.children} - {None}
        return found.pop() if found else None

    @property
    def opaque_parts(self) -> tuple[str, ...]:
        """Names of the arbitrary predicates inside: where there are any, layouts are bounds, not exact."""
        return tuple(name for child in self.children for name in child.opaque_parts)

    def head(self, index: int) -> "Pattern":
        """The pattern of one head (of the kind that ``per`` names); itself where it is shared by all."""
        if self.heads is None:
            return self
        if not 0 <= index < self.heads:
            raise ValueError(f"head must be in 0..{self.heads - 1}, got {index}")
        return self.map(lambda child: child.head(index))

    def expand(self, query_heads: int, kv_heads: int) -> tuple["Pattern", ...]:
        """One pattern per query head; consecutive query heads share a KV head."""
        if kv_heads < 1 or query_heads % kv_heads:
            raise ValueError(f"query heads must be a multiple of KV heads, got {query_heads} and {kv_heads}")
        wanted = {"head": query_heads, "kv_head": kv_heads, None: None}[self.per]
        if self.heads != wanted:
            kind, side = ("per_kv_head", "key") if self.per == "kv_head" else ("per_head", "query")
            raise ValueError(f"{kind} has {self.heads} patterns but {side} has {wanted} heads")
        group = query_heads // kv_heads if self.per == "kv_head" else 1
        return tuple(self.head(h // group) for h in range(query_heads))

    def sink_window(self) -> tuple[Size, Size | None] | None:
        """(sink, window) of ``causal & (window | sink)`` or a part of it; window None: all of the past.

        None for any other recipe, and for patterns with heads of their own.
        """
        from attlas.pattern.normal import sink_window

        return sink_window(self)

    def resolved(self, q_at: Tokens, k_at: Tokens) -> "Pattern":
        """The pattern without elastic sizes: bound at the ``total`` that the token spaces state."""
        if not self.free:
            return self
        bound = self.bind(**named_lengths(q_at, k_at))
        if bound.free:
            names = sorted(bound.free)
            call = ", ".join(f"{name}=..." for name in names)
            raise ValueError(
                f"pattern depends on {', '.join(names)}: call pattern.bind({call}) "
                "(or give the token spaces their total)"
            )
        return bound

    # Evaluation on token spaces.

    def mask(self, q_at: Tokens, k_at: Tokens, device: Any = None) -> Tensor:
        """Allowed pairs as Bool (n, m), (heads, n, m) per head, with a leading batch axis for batched spaces.

        This is the dense definition (O(n * m) memory); absent tokens see nothing and are seen by nobody.
        """
        from attlas.pattern.evaluate import mask

        return mask(self, q_at, k_at, device)

    def tile(
        self,
        q_at: Tokens,
        k_at: Tokens,
        q0: int,
        q1: int,
        k0: int,
        k1: int,
        *,
        head: int = 0,
        device: Any = None,
    ) -> Tensor:
        """``mask`` of rows q0..q1 and keys k0..k1 (row numbers) only: a "partial" part of a layout."""
        from attlas.pattern.evaluate import tile

        return tile(self, q_at, k_at, (q0, q1), (k0, k1), head, device)

    def edges(self, q_at: Tokens, k_at: Tokens, head: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Allowed pairs as CSR in row numbers: (row_ptr (n + 1,), col (pairs,)), int64."""
        from attlas.pattern.evaluate import edges

        return edges(self, q_at, k_at, head)

    def row_counts(self, q_at: Tokens, k_at: Tokens, head: int = 0) -> np.ndarray:
        """Number of keys that each row sees, int64 (n,)."""
        from attlas.pattern.evaluate import row_counts

        return row_counts(self, q_at, k_at, head)

    def count(self, q_at: Tokens, k_at: Tokens) -> int:
        """Number of allowed pairs, summed over the heads of a per-head pattern."""
        return sum(int(self.row_counts(q_at, k_at, h).sum()) for h in range(self.heads or 1))

    def density(self, q_at: Tokens, k_at: Tokens) -> float:
        """Allowed pairs as a share of the causal pairs where ``is_causal``, else of all; mean over heads.

        This is the share of *pairs*; the share of KV memory is ``Plan.density``.
        """
        from attlas.pattern.evaluate import density

        return density(self, q_at, k_at)

    def layout(self, q_at: Tokens, k_at: Tokens, *, block: int = 128, head: int = 0) -> "Layout":
        """The pairs as rectangles to compute: see ``attlas.pattern.layout``."""
        from attlas.pattern.layout import layout

        return layout(self, q_at, k_at, block=block, head=head)

    def reach(
        self, n: int, layers: int = 1, *, rows: tuple[int, ...] | None = None, head: int = 0
    ) -> np.ndarray:
        """Positions whose information can arrive at ``rows`` (default: the last of n) after some layers.

        Each layer also passes a row on to itself (residual connection). Bool (len(rows), n). O(layers * n)
        per row.
        """
        from attlas.pattern.picture import reach

        return reach(self, n, layers, rows, head)

    def draw(self, n: int, *, pixels: int = 256, head: int = 0) -> np.ndarray:
        """Picture of the n x n pattern, uint8 (p, p) with p = min(n, pixels); rows are queries.

        A cell holds the share of allowed pairs: 255 = all of them, 0 = none, and only then. Elastic sizes are
        evaluated at N = n where they are not bound.
        """
        from attlas.pattern.picture import draw

        return draw(self, n, pixels, head)

    # Text and JSON.

    def to_dict(self) -> dict[str, Any]:
        """JSON form ``{"kind": name, field: ...}``; inverse: ``Pattern.from_dict``."""
        from attlas.pattern.text import to_dict

        return to_dict(self)

    @staticmethod
    def from_dict(value: Any) -> "Pattern":
        """The pattern of a JSON form; ValueError names what is wrong with it."""
        from attlas.pattern.text import from_dict

        return from_dict(value)

    def __str__(self) -> str:
        from attlas.pattern.text import to_text

        return to_text(self)

    def _replaced(self, change: Callable[[Any], Any]) -> "Pattern":
        """A copy with every field value (members of tuples one by one) passed through ``change``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {
            name: tuple(map(change, v)) if isinstance(v, tuple) else change(v) for name, v in values.items()
        }
        return replace(self, **changed)  # type: ignore[type-var]


def _inner(pattern: Pattern) -> Iterator[Pattern]:
    for field in fields(pattern):  # type: ignore[arg-type]
        value = getattr(pattern, field.name)
        for member in value if isinstance(value, tuple) else (value,):
            if isinstance(member, Pattern):
                yield member


def check_parts(name: str, parts: tuple[Any, ...]) -> None:
    """Parts are patterns, and those with heads of their own agree on how many and of which kind."""
    for part in parts:
        if not isinstance(part, Pattern):
            raise TypeError(f"{name} combines patterns, got {part!r}")
    kinds = {(part.per, part.heads) for part in parts if part.heads is not None}
    if len(kinds) > 1:
        found = " and ".join(f"per_{per} with {heads} patterns" for per, heads in sorted(kinds, key=str))
        raise ValueError(f"{name} cannot combine {found}: give every part the same heads")
