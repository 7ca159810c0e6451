"""Run a program: forward with merging, backward by recomputation, once differentiable."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attlas.attend.block_program import Call, Program
from attlas.attend.block_schedule import Heads, Step, View, head_sets, schedule
from attlas.attend.tiles import Kernel, kernel_for

__all__ = ["block_attention"]

_HeadSets = tuple[tuple[Program, tuple[Heads, ...]], ...]


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, programs: Program | Sequence[Program], scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the pairs of `programs`, one for all heads or one per query head.

    query (B, H, N, D), key (B, G, M, D), value (B, G, M, V), H a multiple of G; key heads are shared by their
    group of query heads, not repeated. Returns out (B, H, N, V) (in memory (B, N, H, V)) and lse (B, H, N) in
    float32 (float64 for float64); a row without keys has out 0, lse -inf, gradient 0. Both are
    differentiable, once. Memory: out, lse and one workspace for the outputs of a call; backward recomputes
    the weights.
    """
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            "block attention: query, key and value must have 4 axes (batch, heads, tokens, width), got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    query_heads, key_heads = query.shape[1], key.shape[1]
    if key_heads == 0 or query_heads % key_heads:
        raise ValueError(
            f"block attention: {query_heads} query heads are no multiple of {key_heads} key heads; "
            "each key head must serve the same number of query heads"
        )
    per_head = [programs] * query_heads if isinstance(programs, Program) else list(programs)
    if len(per_head) != query_heads:
        raise ValueError(
            f"block attention: expected one program per query head ({query_heads}), got {len(per_head)}"
        )
    for program in per_head:
        if (program.rows, program.keys) != (query.shape[2], key.shape[2]):
            raise ValueError(
                f"block attention: program is for {program.rows} rows and {program.keys} keys, "
                f"tensors have {query.shape[2]} and {key.shape[2]}"
            )
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (_batched(tensor, batch) for tensor in (query, key, value))
    width = value.shape[-1]
    query, key, value = _equal_width(query, key, value)
    out, lse = _Block.apply(query, key, value, head_sets(per_head, key_heads), scale)
    return out[..., :width], lse


def _batched(tensor: Tensor, batch: int) -> Tensor:
    return tensor if tensor.shape[0] == batch else tensor.expand(batch, -1, -1, -1)


def _equal_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zero columns change neither logits nor the other outputs; the kernel wants one width."""
    width = max(query.shape[-1], value.shape[-1])
    padded = [
        tensor if tensor.shape[-1] == width else functional.pad(tensor, (0, width - tensor.shape[-1]))
        for tensor in (query, key, value)
    ]
    return padded[0], padded[1], padded[2]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sets: _HeadSets, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        query, key, value = (_unit_stride(tensor) for tensor in (query, key, value))
        out, lse = _forward(query, key, value, sets, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.sets, ctx.scale = sets, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        if grad_out is None and grad_lse is None:
            return None, None, None, None, None
        given = [grad for grad in (grad_out, grad_lse) if grad is not None]
        with torch.no_grad():
            grads = _backward(query, key, value, out, lse, grad_out, grad_lse, ctx.sets, ctx.scale)
        if torch.is_grad_enabled():
            grads = _Once.apply(*grads, *given, query, key, value)
        return *grads, None, None


class _Once(torch.autograd.Function):
    """Hands on the three gradients and refuses to be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, *sources: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return dq.view_as(dq), dk.view_as(dk), dv.view_as(dv)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "block attention is differentiable once: its backward recomputes weights in a kernel without a "
            "derivative of its own; use backend='reference' for second derivatives"
        )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _at(tensor: Tensor, view: View) -> Tensor:
    return tensor.as_strided(view.size, view.stride, tensor.storage_offset() + view.start)


def _steps(
    sets: _HeadSets, query: Tensor, key: Tensor, value: Tensor, most_keys: int | None = None
) -> list[Step]:
    batch, query_heads, rows, width = query.shape
    shape = (batch, query_heads, key.shape[1], rows, key.shape[2], width)
    return [
        step
        for program, heads in sets
        for part in heads
        for step in schedule(program, part, shape, query.stride(), key.stride(), value.stride(), most_keys)
    ]


class _Masks:
    """Additive masks of the calls of one pass, each built once."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.last: tuple[Call, Tensor | None] | None = None

    def __getitem__(self, call: Call) -> Tensor | None:
        if self.last is None or self.last[0] is not call:
            self.last = (call, call.additive_mask(self.dtype, self.device))
        return self.last[1]


def _forward(
    query: Tensor, key: Tensor, value: Tensor, sets: _HeadSets, scale: float
) -> tuple[Tensor, Tensor]:
    batch, query_heads, rows, width = query.shape
    kernel = kernel_for(query.device, query.dtype)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty(batch, rows, query_heads, width)
    lse = query.new_empty(batch, query_heads, rows, dtype=wide)
    _fill_holes(out, lse, sets, query_heads // key.shape[1])
    masks = _Masks(query.dtype, query.device)
    for step in _steps(sets, query, key, value):
        call = step.call
        part, part_lse = kernel.forward(
            _at(query, step.query),
            _at(key, step.key),
            _at(value, step.value),
            scale,
            call.causal,
            masks[call],
        )
        part = part.view(step.rows_out.size)
        part_lse = part_lse.view(step.rows_lse.size)
        if call.empty is not None:
            part_lse = part_lse.masked_fill(call.empty.to(part_lse.device), -float("inf"))
        target, target_lse = _at(out, step.rows_out), _at(lse, step.rows_lse)
        if call.first:
            target.copy_(part)
            target_lse.copy_(part_lse)
        else:
            _merge(target, target_lse, part, part_lse)
    return out.transpose(1, 2), lse


def _merge(target: Tensor, target_lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """target <- target + w (part - target), w = exp(part_lse) / (exp(part_lse) + exp(target_lse))."""
    weight = torch.sigmoid(part_lse - target_lse).nan_to_num_(0.0)  # NaN: both are empty
    target.lerp_(part, weight.unsqueeze(-1).to(target.dtype))
    target_lse.copy_(torch.logaddexp(target_lse, part_lse))


def _fill_holes(out: Tensor, lse: Tensor, sets: _HeadSets, group: int) -> None:
    for program, heads in sets:
        for start, stop in program.holes:
            for part in heads:
                for index in range(part.groups):
                    head = (part.first + index * part.step) * group + part.offset
                    out[:, start:stop, head : head + part.count] = 0.0
                    lse[:, head : head + part.count, start:stop] = -float("inf")


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    sets: _HeadSets,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    width = query.shape[-1]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    if grad_lse is not None:
        # d logits_ij = w_ij (grad . v_j - grad . out + grad_lse): one more value column of ones carries
        # grad_lse.
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(-1).to(out.dtype)], -1)
        value = functional.pad(value, (0, 1), value=1.0)
        out, query, key = (functional.pad(tensor, (0, 1)) for tensor in (out, query, key))
    dq, dk, dv = _gradients(query, key, value, out, lse, grad_out, sets, scale)
    return (
        dq[..., :width].to(query.dtype),
        dk[..., :width].to(key.dtype),
        dv[..., :width].to(value.dtype),
    )


def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    sets: _HeadSets,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel: Kernel = kernel_for(query.device, query.dtype)
    # (B, N, H, D) in memory, as the steps address rows.
    out_rows, grad_rows = (tensor.transpose(1, 2).contiguous() for tensor in (out, grad_out))
    finite_lse = lse.masked_fill(lse == -float("inf"), 0.0).contiguous()
    dq = torch.zeros_like(out_rows, dtype=lse.dtype)
    dk = torch.zeros(key.shape, dtype=lse.dtype, device=key.device)
    dv = torch.zeros(value.shape, dtype=lse.dtype, device=value.device)
    masks = _Masks(query.dtype, query.device)
    # Every tile gets dk and dv of its own, and tiles overlap: those of one step are no more than all keys.
    for step in _steps(sets, query, key, value, most_keys=key.shape[2]):
        q, k, v = _at(query, step.query), _at(key, step.key), _at(value, step.value)
        grad = _at(grad_rows, step.rows_out).reshape(q.shape)
        merged = _at(out_rows, step.rows_out).reshape(q.shape)
        merged_lse = _at(finite_lse, step.rows_lse).reshape(q.shape[:3])
        part_dq, part_dk, part_dv = kernel.backward(
            grad, q, k, v, merged, merged_lse, scale, step.call.causal, masks[step.call]
        )
        _at(dq, step.rows_out).add_(part_dq.reshape(step.rows_out.size))
        _add_keys(dk, part_dk, step)
        _add_keys(dv, part_dv, step)
        del part_dq, part_dk, part_dv  # or the next step's would come on top of them
    return dq.transpose(1, 2), dk, dv


def _add_keys(total: Tensor, part: Tensor, step: Step) -> None:
    """Add one call's key gradients: sum over the group's query heads, overlap-add over tiles."""
    view = step.keys_grad
    part = part.reshape(view.size)
    size, stride = list(view.size), list(view.stride)
    tile = step.tile
    if step.shared is not None:
        part = part.sum(step.shared, dtype=total.dtype)
        del size[step.shared], stride[step.shared]
        if tile is not None and tile > step.shared:
            tile -= 1
    block = size[-2] if tile is None else step.call.key_step
    # Pieces of one tile step: tiles of one piece never overlap, so each piece is a single addition.
    for low in range(0, size[-2], block):
        high = min(low + block, size[-2])
        target = total.as_strided(
            (*size[:-2], high - low, size[-1]), tuple(stride), view.start + low * stride[-2]
        )
        target.add_(part[..., low:high, :])
