"""The strip kernel as torch operators: softmax attention over strips, forward and backward, on CPU.

`attlas::strips` and `attlas::strips_backward` take tensors and numbers only, so that torch.compile keeps them
whole. `numba` is imported, and the loops are compiled (some seconds, once for each type and machine: kept on
disk in numba's cache), with the first call.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width, V value width.
"""

import ctypes
import struct
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from attlas.attend.team import machine_code, missing, run

__all__ = ["refusal", "strip_attention", "tiles_of_bfloat16"]

_CALL = struct.Struct("34qd")  # strip_loops.CALL
_MULTIPLE = 16  # numbers of a row of keys or values
_PIECES = 8  # pieces of work of a backward pass, at least about so many
_ALONE = 1 << 18  # pairs below which a second thread is not worth its call


def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """None, or why tensors of this kind run in plain torch."""
    if device.type != "cpu":
        return "it runs on CPU"
    if dtype not in (torch.float32, torch.bfloat16):
        return "it takes float32 and bfloat16"
    return missing()


@cache
def tiles_of_bfloat16() -> bool:
    """Whether matrix units (AMX) multiply bfloat16, several times faster than vectors multiply float32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def strip_attention(
    query: Tensor, key: Tensor, value: Tensor, parts: tuple[Tensor, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention of query (B, H, N, D), key (B, G, M, D), value (B, G, M, V) over strips.

    parts: (order, strips, runs, masks, first (B or 1, H, 2)) as in `strips.Strips` and `strips.joined`.
    Returns out (B, H, N, V), in memory (B, N, H, V), and lse (B, H, N) in float32; a row without keys: 0 and
    -inf. Differentiable once. The result is bitwise the same for any number of threads. Memory: out and lse;
    backward: the gradients and up to 8 / (B G) times those of key and value in float32.
    """
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (query, key, value)):
        raise NotImplementedError(
            "block attention has no forward-mode derivative; use backend='reference' for products with "
            "a Jacobian"
        )
    width = value.shape[-1]
    query, key, value = (_padded(tensor) for tensor in (query, key, value))
    batch = max(query.shape[0], key.shape[0])
    query, key, value = (
        tensor if tensor.shape[0] == batch else tensor.expand(batch, -1, -1, -1)
        for tensor in (query, key, value)
    )
    out, lse = torch.ops.attlas.strips(query, key, value, *parts, scale)
    return out[..., :width].transpose(1, 2), lse


def _padded(tensor: Tensor) -> Tensor:
    """Zero columns up to a whole vector: they change neither logits nor the other outputs."""
    missing_columns = -tensor.shape[-1] % _MULTIPLE
    if missing_columns:
        return functional.pad(tensor, (0, missing_columns))
    return tensor


def _loops(what: str, narrow: bool) -> tuple[int, Any]:
    def make() -> int:
        from attlas.attend.strip_loops import compiled

        return compiled(what, narrow)

    return machine_code((what, narrow), make)


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _call(
    what: str,
    tensors: tuple[Tensor, Tensor, Tensor],
    parts: tuple[Tensor, ...],
    out: Tensor | None,
    lse: Tensor,
    backward: tuple[int, ...],
    scale: float,
) -> None:
    query, key, value = tensors
    batch, heads, rows, width = query.shape
    order, strips, runs, masks, first = parts
    _check(query, key, parts)
    first = first.expand(batch, heads, 2).contiguous()
    counter = torch.zeros(1, dtype=torch.int64, device="cpu")
    call = ctypes.create_string_buffer(_CALL.size)
    _CALL.pack_into(
        call, 0,
        query.data_ptr(), *query.stride()[:3], key.data_ptr(), *key.stride()[:3],
        value.data_ptr(), *value.stride()[:3],
        0 if out is None else out.data_ptr(), lse.data_ptr(), order.data_ptr(), strips.data_ptr(),
        runs.data_ptr(), masks.data_ptr(), first.data_ptr(), counter.data_ptr(),
        batch, heads, key.shape[1], rows, key.shape[2], width, value.shape[3], query.element_size(),
        *backward, scale,
    )  # fmt: skip
    work = int((strips[:, 1] * strips[:, 4]).sum()) * batch * heads
    threads = 1 if work < _ALONE else torch.get_num_threads()
    run(_loops(what, query.dtype == torch.bfloat16), call, threads)


def _check(query: Tensor, key: Tensor, parts: tuple[Tensor, ...]) -> None:
    """What would otherwise read or write beyond memory, or leave rows out."""
    order, strips, runs, masks, first = parts
    rows, keys = query.shape[2], key.shape[2]
    if first.shape[-2:] != (query.shape[1], 2) or first.shape[0] not in (1, query.shape[0]):
        raise ValueError(
            f"strips: first must be (batch or 1, {query.shape[1]} heads, 2), got {tuple(first.shape)}"
        )
    if int(first.min()) < 0 or int(first.max()) > len(strips):
        raise ValueError(f"strips: first names strip {int(first.max())} of {len(strips)}")
    before = functional.pad(strips[:, 1].cumsum(0), (1, 0))
    held = before[first[..., 1]] - before[first[..., 0]]
    if bool((held != rows).any()) or (len(order) and not 0 <= int(order.min()) <= int(order.max()) < rows):
        raise ValueError(f"strips: they are for {int(held.max())} rows, the query has {rows}")
    if len(runs) != len(masks) or (len(runs) and int(runs.sum(1).max()) > keys):
        raise ValueError(f"strips: their runs end beyond the {keys} keys")


@torch.library.custom_op("attlas::strips", mutates_args=(), device_types="cpu")
def _strips(
    query: Tensor, key: Tensor, value: Tensor,
    order: Tensor, strips: Tensor, runs: Tensor, masks: Tensor, first: Tensor, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, heads, rows, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    tensors = (_unit_stride(query), _unit_stride(key), _unit_stride(value))
    _call("forward", tensors, (order, strips, runs, masks, first), out, lse, (0,) * 6, scale)
    return out, lse


@_strips.register_fake
def _(query, key, value, order, strips, runs, masks, first, scale):  # type: ignore[no-untyped-def]
    batch, heads, rows, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    return out, query.new_empty(batch, heads, rows, dtype=torch.float32)


@torch.library.custom_op("attlas::strips_backward", mutates_args=(), device_types="cpu")
def _strips_backward(
    grad: Tensor, delta: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor,
    order: Tensor, strips: Tensor, runs: Tensor, masks: Tensor, first: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, heads, rows, width = query.shape
    kv_heads, keys, value_width = value.shape[1:]
    pieces = max(1, min(-(-_PIECES // (batch * kv_heads)), len(strips)))
    tensors = (_unit_stride(query), _unit_stride(key), _unit_stride(value))
    grad, delta = grad.contiguous(), delta.contiguous()
    grad_query = query.new_empty(batch, rows, heads, width)
    grad_key = key.new_zeros(pieces, batch, kv_heads, keys, width, dtype=torch.float32)
    grad_value = value.new_zeros(pieces, batch, kv_heads, keys, value_width, dtype=torch.float32)
    pointers = (grad, delta, grad_query, grad_key, grad_value)
    backward = (*(tensor.data_ptr() for tensor in pointers), pieces)
    _call("backward", tensors, (order, strips, runs, masks, first), None, lse.contiguous(), backward, scale)
    summed = [one[0] if pieces == 1 else one.sum(0) for one in (grad_key, grad_value)]
    return grad_query.transpose(1, 2), summed[0].mul_(scale).to(key.dtype), summed[1].to(value.dtype)


@_strips_backward.register_fake
def _(grad, delta, query, key, value, lse, order, strips, runs, masks, first, scale):  # type: ignore[no-untyped-def]
    batch, heads, rows, width = query.shape
    grad_query = query.new_empty(batch, rows, heads, width).transpose(1, 2)
    return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, *parts, out, lse = ctx.saved_tensors
    if grad_out is None and grad_lse is None:
        return (None,) * 9
    delta = torch.zeros_like(lse)
    if grad_out is not None:
        # d logits_ij = w_ij (grad . v_j - grad . out + grad_lse)
        delta = (grad_out.to(torch.float32) * out.to(torch.float32)).sum(-1).transpose(1, 2)
    if grad_lse is not None:
        delta = delta - grad_lse
    grad = torch.zeros_like(out) if grad_out is None else grad_out
    grads = torch.ops.attlas.strips_backward(grad, delta, query, key, value, lse, *parts, ctx.scale)
    return *grads, *(None,) * 6


_strips.register_autograd(_differentiate, setup_context=_keep)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no second derivative."""


def _once(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "block attention is differentiable once: its backward recomputes weights in a kernel without a "
        "derivative of its own; use backend='reference' for second derivatives"
    )


_strips_backward.register_autograd(_once, setup_context=_keep_nothing)


def _pairs(query: Tensor, strips: Tensor, first: Tensor) -> int:
    """Pairs of rows and keys that the loops compute, over the batch and the heads."""
    before = functional.pad((strips[:, 1] * strips[:, 4]).cumsum(0), (1, 0))
    held = before[first[..., 1]] - before[first[..., 0]]
    return int(held.expand(query.shape[0], query.shape[1]).sum())


@register_flop_formula(torch.ops.attlas.strips, get_raw=True)
def _flops(query, key, value, order, strips, runs, masks, first, scale, out_val=None):  # type: ignore[no-untyped-def]
    """Two products per pair."""
    return 2 * _pairs(query, strips, first) * (query.shape[3] + value.shape[3])


@register_flop_formula(torch.ops.attlas.strips_backward, get_raw=True)
def _flops_backward(  # type: ignore[no-untyped-def]
    grad, delta, query, key, value, lse, order, strips, runs, masks, first, scale, out_val=None
):
    """Five products per pair: logits again, and the gradients of weights, value, query and key."""
    return 2 * _pairs(query, strips, first) * (3 * query.shape[3] + 2 * value.shape[3])
