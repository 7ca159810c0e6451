"""What decoding remembers: the ragged KV cache."""

from __future__ import annotations

from attlas.cache.entry import Entry, Part
from attlas.cache.ragged import RaggedCache, RaggedLayer
from attlas.cache.spans import Span, kv_spans, span_of

__all__ = ["Entry", "Part", "RaggedCache", "RaggedLayer", "Span", "kv_spans", "span_of"]
