from __future__ import annotations

import pytest

from attlas.cache import Span, kv_spans, span_of
from attlas.pattern import causal, dense, distance, elastic, per_head, per_kv_head, sink, window


@pytest.mark.parametrize(
    ("pattern", "own_window", "expected"),
    [
        (causal() & (window(8) | sink(3)), None, Span(3, 8, True)),
        (causal() & window(8), None, Span(0, 8, True)),
        (causal(), None, Span(0, None, True)),
        (causal() & (window(elastic(0, 0.5)) | sink(2)), None, Span(2, 20, True)),
        # The model's own window of 6 hides all sinks that the ring does not hold already.
        (causal() & (window(8) | sink(3)), 6, Span(0, 6, True)),
        # Sinks are visible to early queries only: stored, and masked by position.
        (causal() & (window(4) | sink(3)), 6, Span(3, 4, False)),
        (causal() & window(4), 6, Span(0, 4, True)),
        (causal(), 6, Span(0, 6, True)),
        (causal() & distance(2, 9), None, Span(0, None, False)),
        (causal() & distance(2, 9), 6, Span(0, 6, False)),
        (dense(), 6, Span(0, 6, False)),
        # A token needs a slot to be stored even where it is never seen.
        (causal() & sink(3), None, Span(3, 1, False)),
        (causal() & window(0), None, Span(0, 1, False)),
        (causal() & sink(3), 6, Span(3, 1, False)),
        (causal() & window(elastic(-90, 0.5, minimum=0)), None, Span(0, 1, False)),
    ],
)
def test_span_of_a_pattern(pattern: object, own_window: int | None, expected: Span) -> None:
    assert span_of(pattern, 40, own_window) == expected


def test_an_elastic_span_needs_the_length() -> None:
    with pytest.raises(
        ValueError, match=r"the window elastic\(0, 0.5\) grows with the length .* pass total="
    ):
        span_of(causal() & window(elastic(0, 0.5)), None)


def test_a_kv_head_keeps_the_longest_span_of_its_query_heads() -> None:
    short, long = causal() & (window(4) | sink(1)), causal() & (window(9) | sink(1))
    assert kv_spans(per_head([short, short, short, long]), 4, 2, 40) == (Span(1, 4, True), Span(1, 9, False))
    assert kv_spans(per_kv_head([short, long]), 4, 2, 40) == (Span(1, 4, True), Span(1, 9, True))
    assert kv_spans(per_head([short, causal()]), 2, 1, 40) == (Span(0, None, False),)
