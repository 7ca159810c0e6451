"""Row blocks: every score, normaliser and aggregate in O(n * 64) memory.

64 rows at a time look at the keys that they see and at no others; nothing of a block is kept: the backward
computes it again. A normaliser over senders takes one pass more (`sender_pass`). Works in float32 (float64
for float64 input). Differentiable once.
Legend: B batch, G KV heads, g query heads per KV head, r rows and c keys of a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attlas.attend.cost import Cost, cost
from attlas.attend.once import once
from attlas.attend.reference import assemble, shapes_of
from attlas.attend.request import Piece, Request, Result, present, take
from attlas.attend.row_blocks import RowWork
from attlas.attend.sender_pass import shared_out
from attlas.attend.state import Part
from attlas.attend.work import Work

__all__ = ["NAME", "estimate", "evaluate", "in_blocks", "run", "supports"]

NAME = "rows"
NATIVE = True
OVERHEAD = 5.0
"""Time against a fused kernel's bound: several passes over each tile instead of none (measured 4 to 6)."""


def supports(request: Request) -> str | None:
    """Everything; it is the generic backend."""
    return None


def estimate(request: Request) -> Cost:
    """The pairs that the blocks touch, at several times a fused kernel's cost."""
    if request.view is None:
        passes = 2.0 if request.normaliser.axis == "senders" else 1.0
        whole = cost(request.pattern, shapes_of(request), q_at=request.q_at, k_at=request.k_at)
        return whole.times(OVERHEAD * passes)
    return cost(None, shapes_of(request)).times(OVERHEAD)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state)."""
    result = evaluate(request)
    return result.out, request.normaliser.state(result.lse, result.total)


def evaluate(request: Request) -> Result:
    """Out, row statistics and edge states."""
    request = shared_out(request)
    pieces = request.pieces()
    return assemble(request, pieces, [_piece(request, piece) for piece in pieces])


def _piece(request: Request, piece: Piece) -> Result:
    work = RowWork(request, piece)
    query = take(request.query, piece.heads).unflatten(1, (len(piece.kv_heads), piece.group))
    key, value = present(piece.key, piece.k_at), present(piece.value, piece.k_at)
    out, lse, total, edges = in_blocks(work, query, key, value, *work.operands())
    if out is None or lse is None:
        raise ValueError("rows: a block gave no out or no lse")
    return Result(
        out.flatten(1, 2),
        lse.flatten(1, 2),
        None if total is None else total.flatten(1, 2),
        None if edges is None else edges.flatten(1, 2),
    )


def in_blocks(work: Work[Any], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """What `work.tile` gives, all blocks together: differentiable once, nothing of a block is kept.

    (out (B, G, g, n, V), lse and total (B, G, g, n), edge states (B, G, g, E, ...)), each None where a tile
    gives none. inputs: query, key, value and operands, as `work.inputs` takes them.
    """
    return _RowBlocks.apply(work, *inputs)


class _RowBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work[Any], *inputs: Tensor) -> Any:
        ctx.work = work
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        wide = _widened(work, inputs)
        pieces: list[list[Tensor]] = [[], [], [], []]
        ctx.edges = []
        for block in work.blocks:
            found = work.tile(block, *work.inputs(block, wide))
            for store, tensor in zip(pieces, found, strict=True):
                if tensor is not None:
                    store.append(tensor.to(inputs[0].dtype) if store is pieces[0] else tensor)
            ctx.edges.append(0 if found[3] is None else found[3].shape[3])
        if not work.blocks:
            return work.nothing()
        outputs = tuple(torch.cat(store, 3) if store else None for store in pieces)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        again = torch.is_grad_enabled()
        with torch.no_grad():
            work = ctx.work
            found = _backward(work, ctx.saved_tensors, ctx.needs_input_grad[1:], grads, ctx.edges)
        if again:
            found = once(found, (*ctx.saved_tensors, *(g for g in grads if g is not None)), work.who)
        return None, *found


def _widened(work: Work[Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to(work.dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def _backward(
    work: Work[Any],
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
    edges: Sequence[int],
) -> list[Tensor | None]:
    """Each block once more with gradients on; gradients are summed in the working precision."""
    wide = _widened(work, saved)
    totals = [torch.zeros_like(tensor) if need else None for tensor, need in zip(wide, needed, strict=True)]
    done = 0
    for block, count in zip(work.blocks, edges, strict=True):
        query, key, value, operands = work.inputs(block, wide)
        leaves = [
            part.detach().requires_grad_(need)
            for part, need in zip((query, key, value, *operands), needed, strict=True)
        ]
        with torch.enable_grad():
            outputs = work.tile(block, leaves[0], leaves[1], leaves[2], leaves[3:])
        rows = [None if g is None else g[:, :, :, block.r0 : block.r1] for g in grads[:3]]
        rows.append(None if grads[3] is None else grads[3][:, :, :, done : done + count])
        done += count
        pairs = [
            (out, grad.to(work.dtype))
            for out, grad in zip(outputs, rows, strict=True)
            if out is not None and grad is not None and out.requires_grad
        ]
        wanted = [number for number, need in enumerate(needed) if need]
        if not pairs:
            continue
        parts = torch.autograd.grad(
            [out for out, _ in pairs], [leaves[n] for n in wanted], [g for _, g in pairs], allow_unused=True
        )
        for number, part in zip(wanted, parts, strict=True):
            total = totals[number]
            if part is not None and total is not None:
                work.give_back(number, total, block, part)
    return [None if t is None else t.to(s.dtype) for t, s in zip(totals, saved, strict=True)]
