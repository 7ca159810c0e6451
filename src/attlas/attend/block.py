"""The `block` backend: attention over the blocks of pairs that a pattern has, with gradient.

On CPU in float32 and bfloat16 a compiled kernel takes strips of 64 queries and the runs of keys that they see
(`strips`, `strip_kernel`). Elsewhere plain torch takes the tiles of the pattern's layout: each piece is one
call of a dense kernel, and pieces of a row merge by their lse (`block_program`, `block_kernel`). Strips also
run other normalisers than softmax, in one sweep over the keys or in two (`streaming`).
Differentiable once, with lse; grouped queries without repeated keys; heads with different patterns each cost
their own pairs.
A value that is no number (NaN, infinite) reaches every row of its group of four queries, four from the
first row of a strip, as soon as one of them sees it, earlier rows included: the strips multiply what a row
does not see by 0. Rows of groups in which nobody sees it are as without it.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width, V value width.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from attlas.attend.block_kernel import block_attention
from attlas.attend.block_program import Program, compile_layout, forget_masks
from attlas.attend.block_schedule import forget_steps
from attlas.attend.cost import Cost, pair_cost
from attlas.attend.fused import beyond_softmax, beyond_sum
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request
from attlas.attend.scatter import laid_out, scattered
from attlas.attend.state import Part, State
from attlas.attend.streaming import beyond_form, form_of, streamed
from attlas.attend.strip_kernel import refusal, strip_attention, tiles_of_bfloat16
from attlas.attend.strips import Strips, forget_strips, joined, strips_of
from attlas.attend.team import missing
from attlas.pattern import GraphEdges, Pattern, Tokens, clear_layouts, dense

__all__ = ["NAME", "detail", "estimate", "forget_layouts", "inner_fallback", "programs_of", "run", "supports"]

NAME = "block"
FILLED = 0.05
"""Edges of a graph over pairs of nodes from which tiles can be the faster way."""
SWEEP = 1.3
"""Time of a sweep by another normaliser against one of softmax, about (`benchmarks/normalisers.py`)."""


def supports(request: Request) -> str | None:
    """None, or the reason why this backend cannot answer the request."""
    if request.view is not None:
        return "it takes key and value tensors, not a KVView"
    if not request.score.lowers(request.dtype):
        return f"the score {request.score.name} is no dot product in {request.dtype}"
    if request.k_at is None or not (request.q_at.plain and request.k_at.plain):
        return "its tokens stand at contiguous positions and are all valid"
    if isinstance(request.pattern, GraphEdges) and _sparse(request.pattern):
        return "the edges of the graph are too few and too scattered for tiles of pairs"
    if request.pattern is not None and request.pattern.batch is not None and _without_strips(request):
        return "its tiles are the same for every batch row, and the pattern has pairs of its own for each"
    if request.plain_softmax or form_of(request.normaliser) is None:
        return beyond_softmax(request)
    return beyond_form(request) or beyond_sum(request) or _no_strips(request)


def _sparse(pattern: GraphEdges) -> bool:
    """Whether a graph has fewer edges than tiles need to fill."""
    graph = pattern.graph
    return graph.edges < FILLED * graph.receivers * graph.senders


def inner_fallback(request: Request) -> str | None:
    """Why the tiles of some head would be many small pieces or hold an N × M mask, or None."""
    if request.k_at is None or _without_strips(request) is None:
        return None
    different = dict.fromkeys(request.patterns)
    reasons = (scattered(one, request.q_at, request.k_at) for one in different if one is not None)
    return next((reason for reason in reasons if reason is not None), None)


def detail(request: Request) -> str:
    """Which of its kernels runs, and why not the faster one."""
    why = _without_strips(request)
    form = None if request.plain_softmax else form_of(request.normaliser)
    if form is not None:
        sweeps = "one sweep" if form.passes == 1 else f"{form.passes} sweeps"
        return f"strips, compiled, in {sweeps} over the keys"
    return "strips, compiled" if why is None else f"tiles in plain torch (strips, compiled: {why})"


def _no_strips(request: Request) -> str | None:
    """None, or why the compiled kernel could not run the request."""
    if request.pattern is not None and request.pattern.opaque_parts:
        return "a predicate of the pattern has no ranges of keys"
    return refusal(request.dtype, request.query.device)


def _without_strips(request: Request) -> str | None:
    """None, or why the compiled kernel does not run the request."""
    why = _no_strips(request)
    # Tiles of torch's own kernel are softmax's alone.
    narrow = request.plain_softmax and request.dtype == torch.bfloat16
    if why is None and narrow and tiles_of_bfloat16() and _in_tiles(request):
        return "torch's own kernel uses this processor's bfloat16 tiles (AMX)"
    return why


def _in_tiles(request: Request) -> bool:
    """Whether the pairs fill tiles of consecutive rows: no grid, nothing scattered or of batch rows."""
    if request.k_at is None or len(request.q_at.axes) > 1:
        return False
    if request.pattern is not None and request.pattern.batch is not None:
        return False
    different = (one for one in dict.fromkeys(request.patterns) if one is not None)
    return all(scattered(one, request.q_at, request.k_at) is None for one in different)


def estimate(request: Request) -> Cost:
    """The pairs that its calls compute."""
    shapes = shapes_of(request)
    if _without_strips(request) is None:
        found = _request_strips(request)
        computed = sum(one.computed for row in found for one in row) // len(found)  # of one batch row
        form = None if request.plain_softmax else form_of(request.normaliser)
        one = pair_cost(shapes, computed, request.keys * request.kv_heads)
        return one if form is None else one.times(SWEEP * form.passes)
    programs = _request_programs(request)
    seen = sum(
        max(program.seen_keys for program in programs[head : head + request.group])
        for head in range(0, request.heads, request.group)
    )
    return pair_cost(shapes, sum(program.pairs for program in programs), seen)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); out lies in memory as (B, N, H, V)."""
    if request.key is None or request.value is None:
        raise ValueError("block: it takes key and value tensors, not a KVView")
    if not request.plain_softmax:
        found = _request_strips(request)
        out, lse = streamed(request, joined(found), lambda: _counts(found, request.device))
        return out, request.normaliser.state(lse, None)
    lowered = request.score.lower(request.query, request.key, request.edge)
    if lowered is None:
        raise ValueError(f"block: the score {request.score.name} is no dot product")
    tensors = (lowered.query, lowered.key, request.value)
    if _without_strips(request) is None:
        out, lse = strip_attention(*tensors, joined(_request_strips(request)), lowered.scale)
    else:
        _tell_what_is_missing(request)
        out, lse = block_attention(*tensors, _request_programs(request), lowered.scale)
    if request.return_state and lowered.shift is not None:
        lse = lse + lowered.shift
    return out, State(lse)


def _tell_what_is_missing(request: Request) -> None:
    """A kernel that could run, were it installed, is a fallback."""
    if missing() is None or _without_strips(request) != missing():
        return
    if request.strict:
        raise ValueError(
            "attend: strict=True forbids a fallback, but block would run on tiles in plain torch: "
            f"{missing()}; install what is missing, or allow the fallback with strict=False"
        )
    from attlas.attend.backends import record_fallback  # it imports this module

    record_fallback("block ran on tiles in plain torch instead of strips", str(missing()))


def _counts(found: list[list[Strips]], device: torch.device) -> Tensor:
    """Edges of every row, (batch rows or 1, H, N)."""
    return torch.stack([torch.stack([one.counts for one in heads]) for heads in found]).to(device)


def _request_strips(request: Request) -> list[list[Strips]]:
    """The strips of every head, in every batch row where rows have pairs of their own."""
    if request.k_at is None:
        raise ValueError("block: it takes key and value tensors, not a KVView")
    batch = None if request.pattern is None else request.pattern.batch
    made = request.memo  # a choice and its run ask for the same strips
    found: list[list[Strips]] = []
    for row in range(batch or 1):
        found.append([])
        for one in request.patterns:
            if ("strips", one, row) not in made:
                mine = one if one is None or batch is None else one.batch_row(row)
                made["strips", one, row] = strips_of(mine, request.q_at, request.k_at)
            found[-1].append(made["strips", one, row])
    return found


def _request_programs(request: Request) -> tuple[Program, ...]:
    if request.k_at is None:
        raise ValueError("block: it takes key and value tensors, not a KVView")
    return programs_of(request.patterns, request.q_at, request.k_at)


def programs_of(patterns: Sequence[Pattern | None], q_at: Tokens, k_at: Tokens) -> tuple[Program, ...]:
    """One program per pattern (None: everything is seen); equal patterns share theirs."""
    # No cache keeps a pattern that is bound to tensors of this call, nor what follows from it.
    bound = {pattern for pattern in patterns if pattern is not None and pattern.bound_parts}
    fresh = {pattern: _compiled(pattern, q_at, k_at) for pattern in bound}
    return tuple(
        _program(pattern, q_at, k_at) if pattern is None or pattern not in fresh else fresh[pattern]
        for pattern in patterns
    )


def forget_layouts() -> None:
    """Forget all layouts and what was made of them: the next call pays for its own, as a new length does."""
    clear_layouts()
    _program.cache_clear()
    forget_steps()
    forget_strips()
    forget_masks()


def _compiled(pattern: Pattern | None, q_at: Tokens, k_at: Tokens) -> Program:
    seen = dense() if pattern is None else pattern
    found, block = laid_out(seen, q_at, k_at)

    def pair(q0: int, q1: int, k0: int, k1: int) -> Tensor:
        return seen.tile(q_at, k_at, q0, q1, k0, k1)

    return compile_layout(found, q_at.length, k_at.length, pair, block=block, lasting=not seen.bound_parts)


_program = lru_cache(maxsize=256)(_compiled)
