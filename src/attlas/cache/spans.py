"""What a KV head must keep: the storage span (sink part + ring part) of a pattern at a given length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attlas.pattern import Pattern

__all__ = ["Span", "kv_spans", "span_of"]


@dataclass(frozen=True)
class Span:
    """Slots of one KV head: positions below `sink`, and the last `ring` positions (None: all of them).

    `exact`: a decoding query sees every stored position, so no mask is needed. Otherwise the store is a
    superset and the pattern is evaluated on the stored positions.
    """

    sink: int
    ring: int | None
    exact: bool

    @property
    def length(self) -> int | None:
        """Deployed length c in tokens; None keeps everything."""
        return None if self.ring is None else self.sink + self.ring


def span_of(pattern: Pattern, total: int | None, window: int | None = None) -> Span:
    """Storage span of one causal pattern for requests of `total` tokens, inside the model's own `window`.

    With sink s, ring r and the model's window w a query i sees j <= i with i - j < w and (i - j < r or j <
    s). An empty ring still has one slot.
    """
    form = pattern.sink_window()
    if form is None:
        return Span(0, window, exact=False)
    sink, ring = _value(form[0], total, "sink"), None if form[1] is None else _value(form[1], total, "window")
    if ring is None:
        sink = 0
    if ring == 0:  # a token is stored before it is seen, so it needs a slot even where none sees itself
        return Span(sink, 1, exact=False)
    if window is None:
        return Span(sink, ring, exact=True)
    if ring is None or ring >= window:
        return Span(0, window, exact=True)
    return Span(sink, ring, exact=sink == 0)


def kv_spans(
    pattern: Pattern, heads: int, kv_heads: int, total: int | None, window: int | None = None
) -> tuple[Span, ...]:
    """One span per KV head: the longest of its query heads' (which then need their own masks, if they
    differ)."""
    group = heads // kv_heads
    known: dict[Pattern, Span] = {}
    for one in pattern.expand(heads, kv_heads):
        if one not in known:
            known[one] = span_of(one, total, window)
    spans = [known[one] for one in pattern.expand(heads, kv_heads)]
    return tuple(_widest(spans[first : first + group]) for first in range(0, heads, group))


def _widest(spans: Sequence[Span]) -> Span:
    if all(span == spans[0] for span in spans):
        return spans[0]
    rings = [span.ring for span in spans]
    ring = None if None in rings else max(length for length in rings if length is not None)
    return Span(0 if ring is None else max(span.sink for span in spans), ring, exact=False)


def _value(size: Any, total: int | None, name: str) -> int:
    if isinstance(size, int):
        return size
    if total is None:
        raise ValueError(
            f"the {name} {size} grows with the length of the request, which is not known: pass total= "
            "(prompt and new tokens together)"
        )
    return int(size.value(total))
