"""The baseline that a plan must beat: one window + sink rule for every head, at equal density."""

from collections import Counter

from attlas.pattern.atoms import causal, sink, window
from attlas.pattern.base import Pattern
from attlas.pattern.plan import ModelShape, Plan
from attlas.pattern.rules import kept_size, share, span_rule
from attlas.pattern.size import Elastic, Mean, Size

__all__ = ["uniform_plan"]

SINK, BLOCK, MINIMUM = 64, 64, 128
"""Defaults of the MoA code (cache of at least two blocks, one of them sink)."""


def uniform_plan(
    source: object,
    *,
    density: float | None = None,
    length: int | None = None,
    sink_size: int = SINK,
    block: int = BLOCK,
    minimum: int = MINIMUM,
) -> Plan:
    """The same rule, sink tokens and a sliding window (StreamingLLM, arXiv 2309.17453), for every head.

    Args:
        source: a plan, whose deployed density the baseline takes over; or a model shape with ``density``.
        density: density wanted instead of the plan's: the span ``density * N``, rounded up to blocks.
        length: make the density right at this request length only, with a window that does not grow.

    From a plan without ``length``, the span is the mean of the plan's spans at every N, rounded to the
    nearest block (``Mean``), so that both densities agree at every N within half a block, block / (2 N), down
    to the least cache of ``minimum`` keys. A bidirectional plan (an encoder) needs ``length``: there the
    share of a window falls off at the borders, and the window of the nearest share is searched.

    Raises TypeError for any other source, ValueError where ``length`` is needed and missing, or a density is
    outside (0, 1].
    """
    if not isinstance(source, Plan | ModelShape):
        raise TypeError(
            f"uniform_plan needs a Plan, or a ModelShape with density=..., got {source!r}: load a plan with "
            "Plan.load(path)"
        )
    model = source if isinstance(source, ModelShape) else source.model
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"uniform_plan density must be in (0, 1], got {density}")
    if isinstance(source, Plan) and not source.is_causal:
        rule = _band(source, density, length, sink_size)
    elif length is not None and (density is not None or isinstance(source, Plan)):
        wanted = source.density(length) if density is None and isinstance(source, Plan) else density
        rule = _fixed(wanted or 0.0, length, sink_size, block, minimum)
    elif density is not None:
        rule = span_rule(0, density, sink_size, block, minimum)
    elif isinstance(source, Plan):
        rule = _mean(source, sink_size, block, minimum)
    else:
        raise ValueError("uniform_plan of a model shape needs density=..., a share of the cache in (0, 1]")
    provenance = {"origin": "uniform_plan", "of": model.name, "density": density, "length": length}
    return Plan(model, ((rule,) * model.kv_heads,) * model.layers, provenance=provenance)


def _mean(plan: Plan, sink_size: int, block: int, minimum: int) -> Pattern:
    """The rule whose span is the mean of the plan's KV heads at every length."""
    spans: Counter[Elastic] = Counter()
    for layer in range(len(plan.layers)):
        for rules in plan.groups(layer):
            for weight, span in _longest(rules):
                spans[span] += weight
    parts = tuple(sorted(((weight, size) for size, weight in spans.items()), key=str))
    size = Mean(parts, multiple=block, minimum=minimum, offset=-sink_size)
    return causal() & (window(size) | sink(sink_size))


def _longest(rules: tuple[Pattern, ...]) -> list[tuple[int, Elastic]]:
    """The kept size of a KV head as weighted elastic sizes: its longest rule, or all parts of a mean."""
    sizes = {_elastic(rule) for rule in rules}
    for size in sizes:
        if isinstance(size, Mean) and len(sizes) == 1:
            return list(size.parts)
        if isinstance(size, Elastic) and all(_covers(size, other) for other in sizes):
            return [(1, size)]
    raise ValueError(
        "query heads that share a KV head have spans of which none is the longest at every length: call "
        "uniform_plan(plan, length=N)"
    )


def _elastic(rule: Pattern) -> Size:
    size = kept_size(rule)
    if isinstance(size, int):
        return Elastic(0, 0, minimum=size)
    return Elastic(0, 1) if size is None else size


def _covers(one: Elastic, other: Size) -> bool:
    if one == other:
        return True
    if not isinstance(other, Elastic) or (one.multiple, one.offset) != (other.multiple, other.offset):
        return False
    return one.alpha >= other.alpha and one.beta >= other.beta and one.minimum >= other.minimum


def _fixed(wanted: float, length: int, sink_size: int, block: int, minimum: int) -> Pattern:
    size = max(block * round(wanted * length / block), minimum)
    return causal() & (window(size - sink_size) | sink(sink_size))


def _band(plan: Plan, density: float | None, length: int | None, sink_size: int) -> Pattern:
    """The two-sided window whose mean row share is nearest to the wanted one."""
    if length is None:
        raise ValueError(
            "uniform_plan of a bidirectional plan needs length=N: the share of a window that sees both "
            "sides depends on how near the borders are"
        )
    wanted = plan.density(length) if density is None else density
    low, high = 1, length
    while low < high:
        middle = (low + high) // 2
        if share(window(middle) | sink(sink_size), length) < wanted:
            low = middle + 1
        else:
            high = middle
    rules = [window(size) | sink(sink_size) for size in (max(1, low - 1), low)]
    return min(rules, key=lambda rule: abs(share(rule, length) - wanted))
