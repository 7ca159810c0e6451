"""The strip kernel as torch operators: softmax attention over strips, forward and backward, on CPU.

`attlas::strips` and `attlas::strips_backward` take tensors and numbers only, so that torch.compile keeps them
whole. `numba` is imported, and the loops are compiled (some seconds, once for each type and machine: kept on
disk in numba's cache), with the first call.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width, V value width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from attlas.attend.strip_call import backward_loops, forward_loops, pairs_of, same_batch
from attlas.attend.team import missing

__all__ = ["refusal", "strip_attention", "tiles_of_bfloat16"]


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
    query, key, value = same_batch(query, key, value)
    out, lse = torch.ops.attlas.strips(query, key, value, *parts, scale)
    return out[..., :width].transpose(1, 2), lse


@torch.library.custom_op("attlas::strips", mutates_args=(), device_types="cpu")
def _strips(
    query: Tensor, key: Tensor, value: Tensor,
    order: Tensor, strips: Tensor, runs: Tensor, masks: Tensor, first: Tensor, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return forward_loops(query, key, value, (order, strips, runs, masks, first), scale)


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
    parts = (order, strips, runs, masks, first)
    return backward_loops(grad, delta, query, key, value, lse, parts, scale)


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


@register_flop_formula(torch.ops.attlas.strips, get_raw=True)
def _flops(query, key, value, order, strips, runs, masks, first, scale, out_val=None):  # type: ignore[no-untyped-def]
    """Two products per pair."""
    return 2 * pairs_of(query, strips, first) * (query.shape[3] + value.shape[3])


@register_flop_formula(torch.ops.attlas.strips_backward, get_raw=True)
def _flops_backward(  # type: ignore[no-untyped-def]
    grad, delta, query, key, value, lse, order, strips, runs, masks, first, scale, out_val=None
):
    """Five products per pair: logits again, and the gradients of weights, value, query and key."""
    return 2 * pairs_of(query, strips, first) * (3 * query.shape[3] + 2 * value.shape[3])
