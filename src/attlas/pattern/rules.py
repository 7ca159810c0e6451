"""Rules of one head as plans use them: a span that grows with the request, and what it costs to keep."""

from dataclasses import replace
from functools import lru_cache

from attlas.pattern.atoms import causal, sink, window
from attlas.pattern.base import Pattern
from attlas.pattern.normal import band_window, sink_window
from attlas.pattern.size import Elastic, Mean, Size
from attlas.pattern.tokens import Tokens

__all__ = ["band_rule", "kept", "kept_size", "share", "span_of", "span_rule"]


def span_rule(alpha: float, beta: float, sink: int = 64, block: int = 64, minimum: int = 128) -> Pattern:
    """MoA's rule for a causal head: of N tokens keep c, the first ``sink`` and the last c - sink.

    ``c = block * ceil(max(min(int(alpha + beta * N), N), minimum) / block)``; edge (i, j) iff j <= i and
    (j < sink or i - j < c - sink). N is the request's whole length (prompt and new tokens).
    Source: MoA, arXiv 2406.14909, in the form that its code deploys. Departure: prefill uses the same token
    window as decoding (the released code widens it to whole blocks), so that cached decoding equals the full
    forward.
    Raises ValueError where the sink does not fit into the minimum.
    """
    _check(sink, block, minimum)
    return causal() & _edges(Elastic(alpha, beta, minimum=minimum, multiple=block, offset=-sink), sink)


def band_rule(alpha: float, beta: float, sink: int = 64, block: int = 64, minimum: int = 128) -> Pattern:
    """The rule for a head of an encoder: |i - j| < (c - sink) / 2 on both sides, or j < sink.

    c is that of ``span_rule`` but capped at 2 N. (Ours, not the paper's.)
    Raises ValueError for an odd block or sink.
    """
    _check(sink, block, minimum)
    if block % 2 or sink % 2:
        raise ValueError(f"a band rule halves its block and sink and needs both even, got {block} and {sink}")
    half = Elastic(alpha / 2, beta / 2, minimum=minimum // 2, multiple=block // 2, offset=-sink // 2)
    return _edges(half, sink)


def _check(sink_size: int, block: int, minimum: int) -> None:
    if block < 1 or not 0 <= sink_size < minimum:
        raise ValueError(
            f"a span rule needs block >= 1 and 0 <= sink < minimum, got block {block}, sink {sink_size}, "
            f"minimum {minimum}: the window is what the sink leaves of the span"
        )


def _edges(size: Size, sink_size: int) -> Pattern:
    return window(size) | sink(sink_size) if sink_size else window(size)


@lru_cache(maxsize=4096)
def kept(pattern: Pattern, length: int) -> int:
    """Keys that a decoder must keep in its cache for this head at request length N; may exceed N.

    Sink plus window for ``causal & (window | sink)``. Any other causal recipe may need any key again, so it
    keeps all N. For a recipe that is not causal (an encoder has no cache) this is the mean row count.
    """
    size = kept_size(pattern)
    if isinstance(size, Elastic | Mean):
        return size.value(length)
    if size is not None:
        return size
    if pattern.is_causal:
        return length
    space = Tokens(length)
    return -(-pattern.bind(N=length).count(space, space) // max(1, length))


@lru_cache(maxsize=4096)
def share(pattern: Pattern, length: int) -> float:
    """Deployed density of one head: min(kept, N) / N, and the exact mean row share where it is not causal."""
    if length < 1:
        raise ValueError(f"density needs a length >= 1, got {length}")
    if pattern.is_causal:
        return min(kept(pattern, length), length) / length
    space = Tokens(length)
    return pattern.bind(N=length).count(space, space) / length**2


def kept_size(pattern: Pattern) -> Size | None:
    """``kept`` as a size: the window with the sink added, None where it is all N or no such size exists."""
    form = sink_window(pattern)
    if form is None or form[1] is None:
        return None
    sink_size, window_size = form
    if isinstance(window_size, int) and isinstance(sink_size, int):
        return sink_size + window_size
    if not isinstance(sink_size, int) or not isinstance(window_size, Elastic | Mean):
        return None
    return replace(window_size, offset=window_size.offset + sink_size)


def span_of(pattern: Pattern) -> tuple[float, float] | None:
    """(alpha, beta) of the span S = alpha + beta * N that the rule stands for, before rounding, floor and
    cap.

    A fixed size is (size, 0), dense causal (0, 1), a mean the mean of its parts; None for other recipes.
    """
    form = sink_window(pattern)
    if form is None:
        band = band_window(pattern)
        if band is None or band[1] is None:
            return None if band is None else (0.0, 2.0)
        alpha, beta = _line(band[1])
        return (2 * alpha + band[0], 2 * beta) if isinstance(band[0], int) else None
    if form[1] is None:
        return 0.0, 1.0
    size = kept_size(pattern)
    return None if size is None else _line(size)


def _line(size: Size) -> tuple[float, float]:
    if isinstance(size, int):
        return float(size), 0.0
    if isinstance(size, Elastic):
        return size.alpha + size.offset, size.beta
    total = sum(weight for weight, _ in size.parts)
    lines = [(weight, *_line(part)) for weight, part in size.parts]
    return tuple(sum(line[0] * line[k] for line in lines) / total for k in (1, 2))  # type: ignore[return-value]
