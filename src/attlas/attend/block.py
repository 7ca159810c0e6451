"""The `block` backend: softmax attention over the tiles of a layout, in plain torch.

The layout of the pattern says which keys each block of rows needs; each piece is one call of a dense kernel,
and pieces of a row merge by their lse. Differentiable once, with lse; grouped queries without repeated keys;
heads with different patterns each cost their own tiles.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width, V value width.
"""

from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from attlas.attend.block_kernel import block_attention
from attlas.attend.block_program import Program, compile_layout, forget_masks
from attlas.attend.block_schedule import forget_steps
from attlas.attend.cost import Cost, pair_cost
from attlas.attend.fused import beyond_softmax
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request
from attlas.attend.scatter import laid_out, scattered
from attlas.attend.state import Part, State
from attlas.pattern import Pattern, Tokens, clear_layouts, dense

__all__ = ["NAME", "estimate", "forget_layouts", "inner_fallback", "programs_of", "run", "supports"]

NAME = "block"


def supports(request: Request) -> str | None:
    """None, or the reason why this backend cannot answer the request."""
    if request.view is not None:
        return "it takes key and value tensors, not a KVView"
    if not request.score.lowers(request.dtype):
        return f"the score {request.score.name} is no dot product in {request.dtype}"
    if request.k_at is None or not (request.q_at.plain and request.k_at.plain):
        return "its tokens stand at contiguous positions and are all valid"
    if request.pattern is not None and request.pattern.batch is not None:
        return "its tiles are the same for every batch row, and the pattern has pairs of its own for each"
    return beyond_softmax(request)


def inner_fallback(request: Request) -> str | None:
    """Why the tiles of some head would be many small pieces or hold an N × M mask, or None."""
    if request.k_at is None:
        return None
    different = dict.fromkeys(request.patterns)
    reasons = (scattered(one, request.q_at, request.k_at) for one in different if one is not None)
    return next((reason for reason in reasons if reason is not None), None)


def estimate(request: Request) -> Cost:
    """The pairs that its calls compute."""
    programs = _request_programs(request)
    seen = sum(
        max(program.seen_keys for program in programs[head : head + request.group])
        for head in range(0, request.heads, request.group)
    )
    return pair_cost(shapes_of(request), sum(program.pairs for program in programs), seen)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); out lies in memory as (B, N, H, V)."""
    if request.key is None or request.value is None:
        raise ValueError("block: it takes key and value tensors, not a KVView")
    lowered = request.score.lower(request.query, request.key, request.edge)
    if lowered is None:
        raise ValueError(f"block: the score {request.score.name} is no dot product")
    out, lse = block_attention(
        lowered.query, lowered.key, request.value, _request_programs(request), lowered.scale
    )
    if request.return_state and lowered.shift is not None:
        lse = lse + lowered.shift
    return out, State(lse)


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
    forget_masks()


def _compiled(pattern: Pattern | None, q_at: Tokens, k_at: Tokens) -> Program:
    seen = dense() if pattern is None else pattern
    found, block = laid_out(seen, q_at, k_at)

    def pair(q0: int, q1: int, k0: int, k1: int) -> Tensor:
        return seen.tile(q_at, k_at, q0, q1, k0, k1)

    return compile_layout(found, q_at.length, k_at.length, pair, block=block, lasting=not seen.bound_parts)


_program = lru_cache(maxsize=256)(_compiled)
