"""Softmax attention of tokens to themselves where queries are the keys: each logit is computed once.

Legend: B batch, H heads, N tokens, D width, V value width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attlas.attend.once import once

__all__ = ["one_triangle"]

BLOCK = 256
WHO = "one_triangle, which is attend(query, query, value),"


def one_triangle(
    query: Float[Tensor, "B H N D"], value: Float[Tensor, "B H N V"], *, scale: float | None = None
) -> Float[Tensor, "B H N V"]:
    """out_i = sum_j softmax_j(scale q_i . q_j) v_j, every token seeing all; scale 1 / sqrt(D) unless given.

    S = Q Q^T is symmetric before the softmax, not after it: a block of S above the diagonal serves its rows,
    and transposed its columns, each with their own running maximum and sum. Products for a pair of tokens:
    1.5 in place of 2 forward, 3.5 in place of 5 backward; memory O(N 256). Differentiable once.
    """
    out: Tensor = _OneTriangle.apply(query, value, query.shape[-1] ** -0.5 if scale is None else scale)
    return out


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _upper(query: Tensor, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, logits) of the blocks on and above the diagonal."""
    parts = _blocks(query.shape[2])
    for index, rows in enumerate(parts):
        scaled = query[:, :, rows] * scale
        for columns in parts[index:]:
            yield rows, columns, scaled @ query[:, :, columns].mT


class _OneTriangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, value: Tensor, scale: float) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        q, v = query.to(wide), value.to(wide)
        largest = q.new_full((*q.shape[:3], 1), -float("inf"))
        total = torch.zeros_like(largest)
        out = torch.zeros((*q.shape[:3], v.shape[3]), dtype=wide, device=q.device)

        def add(rows: slice, logits: Tensor, values: Tensor) -> None:
            before = largest[:, :, rows]
            after = torch.maximum(before, logits.amax(-1, keepdim=True))
            kept, weights = (before - after).exp(), (logits - after).exp_()
            out[:, :, rows] = out[:, :, rows] * kept + weights @ values
            total[:, :, rows] = total[:, :, rows] * kept + weights.sum(-1, keepdim=True)
            largest[:, :, rows] = after

        for rows, columns, logits in _upper(q, scale):
            add(rows, logits, v[:, :, columns])
            if columns != rows:
                add(columns, logits.mT, v[:, :, rows])
        out /= total
        ctx.save_for_backward(query, value, out, largest + total.log())
        ctx.scale = scale
        return out.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        again = torch.is_grad_enabled()
        with torch.no_grad():
            found: Any = _OneTriangle._gradients(ctx, grad)
        if again:
            found = once(found, (*ctx.saved_tensors[:2], grad), WHO)
        return *found, None

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        query, value, out, lse = ctx.saved_tensors
        q, v, g = (part.to(out.dtype) for part in (query, value, grad))
        own = (g * out).sum(-1, keepdim=True)
        dq, dv = torch.zeros_like(q), torch.zeros_like(v)
        for rows, columns, logits in _upper(q, ctx.scale):

            def part(to: slice, at: slice, seen: Tensor) -> Tensor:
                """d loss / d logits of receivers `to` and senders `at`; adds what reaches the values."""
                weights = (seen - lse[:, :, to]).exp_()
                dv[:, :, at] += weights.mT @ g[:, :, to]
                return weights.mul_((g[:, :, to] @ v[:, :, at].mT).sub_(own[:, :, to]))

            there = part(rows, columns, logits)
            if columns == rows:
                dq[:, :, rows] += ((there + there.mT) @ q[:, :, rows]) * ctx.scale
                continue
            both = there.add_(part(columns, rows, logits.mT).mT)
            dq[:, :, rows] += (both @ q[:, :, columns]) * ctx.scale
            dq[:, :, columns] += (both.mT @ q[:, :, rows]) * ctx.scale
        return dq.to(query.dtype), dv.to(value.dtype)
