"""Normal forms: which recipes are "sink tokens and a window", what serving and plans can store compactly."""

from attlas.pattern.algebra import And, Or
from attlas.pattern.atoms import Causal, Dense, Distance, Sink, Window
from attlas.pattern.base import Pattern
from attlas.pattern.size import Size

__all__ = ["band_window", "sink_window"]

Form = tuple[Size, Size | None]
"""(sink, window): keys j < sink or i - j < window; window None: all keys."""


def sink_window(pattern: Pattern) -> Form | None:
    """``Pattern.sink_window``."""
    if isinstance(pattern, Or):
        return _widest([sink_window(part) for part in pattern.parts])
    if isinstance(pattern, Causal):
        return (0, None)
    if isinstance(pattern, Distance) and pattern.lo == 0:
        return (0, pattern.hi)
    if isinstance(pattern, And) and pattern.is_causal:
        return _narrowest([_past(part) for part in pattern.parts])
    return None


def band_window(pattern: Pattern) -> Form | None:
    """(sink, window) of ``window | sink`` without causal, as encoders use it; else None."""
    return None if pattern.is_causal else _past(pattern)


def _past(pattern: Pattern) -> Form | None:
    """The normal form that the pattern has for the keys j <= i."""
    if isinstance(pattern, Dense | Causal):
        return (0, None)
    if isinstance(pattern, Window):
        return (0, pattern.size)
    if isinstance(pattern, Sink):
        return (pattern.size, 0)
    if isinstance(pattern, Or):
        return _widest([_past(part) for part in pattern.parts])
    return sink_window(pattern)


def _widest(forms: list[Form | None]) -> Form | None:
    """Union: the larger sink and the larger window, where one is known to be larger."""
    known = [form for form in forms if form is not None]
    if len(known) < len(forms):
        return None
    if any(window is None for _, window in known):
        return (0, None)
    sink = _largest([sink for sink, _ in known])
    window = _largest([window for _, window in known if window is not None])
    return None if sink is None or window is None else (sink, window)


def _narrowest(forms: list[Form | None]) -> Form | None:
    """Intersection where at most one part is narrower than all keys."""
    known = [form for form in forms if form is not None]
    narrow = {form for form in known if form[1] is not None}
    if len(known) < len(forms) or len(narrow) > 1:
        return None
    return narrow.pop() if narrow else (0, None)


def _largest(sizes: list[Size]) -> Size | None:
    different = {size for size in sizes if size != 0}
    if len(different) <= 1:
        return different.pop() if different else 0
    numbers = [size for size in different if isinstance(size, int)]
    return max(numbers) if len(numbers) == len(different) else None
