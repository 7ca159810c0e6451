"""Calls of the strip kernel's loops: what they are told, checked, and what they share.

Legend: B batch, H query heads, N queries.
"""

import ctypes
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attlas.attend.strip_rules import SOFTMAX
from attlas.attend.team import machine_code, run

__all__ = ["Own", "Parts", "backward_loops", "forward_loops", "pairs_of", "same_batch"]

_CALL = struct.Struct("37q2d")  # strip_loops.CALL
_MULTIPLE = 16  # numbers of a row of keys or values
_PIECES = 8  # pieces of work of a backward pass, at least about so many
_ALONE = 1 << 18  # pairs below which a second thread is not worth its call


Parts = tuple[Tensor, ...]
"""order, strips, runs, masks, first (B or 1, H, 2), as in `strips.Strips` and `strips.joined`."""


class Own(NamedTuple):
    """A rule of `strip_rules`, its constants (2 or CONSTANTS, B, H, N), the power, where maxima go."""

    rule: int
    constants: Tensor | None = None
    power: float = 0.0
    tops: Tensor | None = None


SOFTMAX_ALONE = Own(SOFTMAX)


def same_batch(*tensors: Tensor) -> list[Tensor]:
    """The tensors with whole vectors of columns and, as views, with the largest batch of them."""
    batch = max(tensor.shape[0] for tensor in tensors)
    return [_padded(one if one.shape[0] == batch else one.expand(batch, -1, -1, -1)) for one in tensors]


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


def _pieces(value: Tensor, strips: Tensor) -> int:
    """Into how many pieces a KV head's strips are cut in a backward pass."""
    return max(1, min(-(-_PIECES // (value.shape[0] * value.shape[1])), len(strips)))


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def forward_loops(
    query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float, own: Own = SOFTMAX_ALONE
) -> tuple[Tensor, Tensor]:
    """out (B, N, H, V), and lse or, by another rule, sums of weights (B, H, N), in float32."""
    batch, heads, rows, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    sums = query.new_empty(batch, heads, rows, dtype=torch.float32)
    _call("forward", (query, key, value), parts, out, sums, (0,) * 6, scale, own)
    return out, sums


def backward_loops(
    grad: Tensor,
    delta: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    parts: Parts,
    scale: float,
    own: Own = SOFTMAX_ALONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; grad (B, N, H, V), delta and lse (B, H, N) are softmax's alone."""
    batch, heads, rows, width = query.shape
    kv_heads, keys, value_width = value.shape[1:]
    pieces = _pieces(value, parts[1])
    grad, delta = grad.contiguous(), delta.contiguous()
    grad_query = query.new_empty(batch, rows, heads, width)
    grad_key = key.new_zeros(pieces, batch, kv_heads, keys, width, dtype=torch.float32)
    grad_value = value.new_zeros(pieces, batch, kv_heads, keys, value_width, dtype=torch.float32)
    pointers = (grad, delta, grad_query, grad_key, grad_value)
    backward = (*(tensor.data_ptr() for tensor in pointers), pieces)
    _call("backward", (query, key, value), parts, None, lse.contiguous(), backward, scale, own)
    summed = [one[0] if pieces == 1 else one.sum(0) for one in (grad_key, grad_value)]
    return grad_query.transpose(1, 2), summed[0].mul_(scale).to(key.dtype), summed[1].to(value.dtype)


def _call(
    what: str,
    tensors: tuple[Tensor, Tensor, Tensor],
    parts: Parts,
    out: Tensor | None,
    lse: Tensor,
    backward: tuple[int, ...],
    scale: float,
    own: Own,
) -> None:
    """Run the loops on every thread."""
    query, key, value = (_unit_stride(tensor) for tensor in tensors)
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
        *backward, own.rule, *(0 if one is None else one.data_ptr() for one in (own.constants, own.tops)),
        scale, own.power,
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


def pairs_of(query: Tensor, strips: Tensor, first: Tensor) -> int:
    """Pairs of rows and keys that the loops compute, over the batch and the heads."""
    before = functional.pad((strips[:, 1] * strips[:, 4]).cumsum(0), (1, 0))
    held = before[first[..., 1]] - before[first[..., 0]]
    return int(held.expand(query.shape[0], query.shape[1]).sum())
