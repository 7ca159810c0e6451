"""Sigmoid, softplus and shifted powers over strips, as torch operators: CPU, forward and backward.

`attlas::weighted_strips` sweeps over the keys once (sigmoid, softplus divided by its sum) or twice (a power
of what exceeds the mean: the first sweep finds sum and maximum of the softplus), and so does its backward.
Nothing but numbers per row is kept.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width, V value width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from attlas.attend.lssa import offsets
from attlas.attend.strip_call import Own, Parts, backward_loops, forward_loops, pairs_of, same_batch
from attlas.attend.strip_rules import SHIFT_POWER, SIGMOID, SOFTPLUS

__all__ = ["weighted_strips"]

NARROW = 16  # columns of a value that nobody asks for
LOG2 = 1.4426950408889634


def weighted_strips(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: Parts,
    rows: Tensor,
    scale: float,
    rule: int,
    power: float = 1.0,
) -> Tensor:
    """out (B, H, N, V), in memory (B, N, H, V), by a rule of `strip_rules` other than softmax.

    rows (B or 1, H, N): of each row the bias (SIGMOID) or the number of its keys (SHIFT_POWER, with `power`
    at least 1), without gradient. A row without keys gives 0. Differentiable once in query, key and value.
    """
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (query, key, value)):
        raise NotImplementedError(
            "block attention has no forward-mode derivative; use backend='reference' for products with "
            "a Jacobian"
        )
    width = value.shape[-1]
    query, key, value = same_batch(query, key, value)
    rows = rows.to(torch.float32).expand(query.shape[:3])
    out, *_ = torch.ops.attlas.weighted_strips(query, key, value, *parts, rows, scale, rule, power)
    return out[..., :width].transpose(1, 2)


@torch.library.custom_op("attlas::weighted_strips", mutates_args=(), device_types="cpu")
def _weighted(
    query: Tensor, key: Tensor, value: Tensor,
    order: Tensor, strips: Tensor, runs: Tensor, masks: Tensor, first: Tensor,
    rows: Tensor, scale: float, rule: int, power: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out (B, N, H, V), and (B, H, N) each: sums of weights, and for SHIFT_POWER sums and maxima of u."""
    parts = (order, strips, runs, masks, first)
    tops, first_tops = torch.empty_like(rows.contiguous()), torch.zeros_like(rows.contiguous())
    first_sums = torch.zeros_like(first_tops)
    if rule == SHIFT_POWER:
        blank = torch.zeros_like(torch.stack((rows, rows)))
        own = Own(SOFTPLUS, blank, 0.0, first_tops)
        _, first_sums = forward_loops(query, key, value[..., :NARROW], parts, scale, own)
        constants = torch.stack(_shift(rows, first_sums, first_tops))
    else:
        constants = torch.stack((torch.zeros_like(rows), rows * LOG2))
    out, sums = forward_loops(query, key, value, parts, scale, Own(rule, constants, power, tops))
    return out, sums, first_sums, first_tops


def _shift(counts: Tensor, sums: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    """a, b of y = max(0, a u - b) = max(0, n u / sum - offset) / its largest."""
    some = sums > 0
    mean = torch.where(some, sums / counts.clamp_min(1), 1.0)
    excess = tops / mean - 1.0
    offset = offsets(counts, excess)
    largest = torch.where(some, torch.where(offset > 0, excess, tops / mean), 1.0)
    return 1.0 / (mean * largest), offset / largest


@_weighted.register_fake
def _(query, key, value, order, strips, runs, masks, first, rows, scale, rule, power):  # type: ignore[no-untyped-def]
    batch, heads, length, _ = query.shape
    out = query.new_empty(batch, length, heads, value.shape[3])
    return out, *(query.new_empty(batch, heads, length, dtype=torch.float32) for _ in range(3))


@torch.library.custom_op("attlas::weighted_strips_backward", mutates_args=(), device_types="cpu")
def _weighted_backward(
    grad: Tensor, out: Tensor, sums: Tensor, first_sums: Tensor, first_tops: Tensor,
    query: Tensor, key: Tensor, value: Tensor,
    order: Tensor, strips: Tensor, runs: Tensor, masks: Tensor, first: Tensor,
    rows: Tensor, scale: float, rule: int, power: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parts = (order, strips, runs, masks, first)
    a = b = c = delta = mean = torch.zeros_like(sums)
    if rule == SIGMOID:
        b = rows * LOG2
    else:
        delta = _inner(grad, out)
        c = torch.where(sums > 0, 1.0 / sums, 0.0)
    if rule == SOFTPLUS:
        a = c
    elif rule == SHIFT_POWER:
        a, b = _shift(rows, first_sums, first_tops)
        # Σ_j of the gradients of the y_ij follows from a sweep with one power less.
        own = Own(SHIFT_POWER, torch.stack((a, b)), power - 1.0, torch.empty_like(sums))
        lower, lower_sums = forward_loops(query, key, value, parts, scale, own)
        slope = power * c * lower_sums * (_inner(grad, lower) - delta)
        mean = b * slope * torch.where(first_sums > 0, 1.0 / first_sums, 0.0)
    own = Own(rule, torch.stack((a, b, c, delta, mean)), power - 1.0)
    return backward_loops(grad, delta, query, key, value, sums, parts, scale, own)


def _inner(grad: Tensor, out: Tensor) -> Tensor:
    """grad . out of each row, (B, H, N), of tensors (B, N, H, V)."""
    return (grad.to(torch.float32) * out.to(torch.float32)).sum(-1).transpose(1, 2).contiguous()


@_weighted_backward.register_fake
def _(  # type: ignore[no-untyped-def]
    grad, out, sums, first_sums, first_tops, query, key, value, order, strips, runs, masks, first, rows,
    scale, rule, power,
):  # fmt: skip
    batch, heads, length, width = query.shape
    grad_query = query.new_empty(batch, length, heads, width).transpose(1, 2)
    return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, scale, rule, power = inputs
    out, *statistics = output
    ctx.save_for_backward(*tensors, *([] if rule == SIGMOID else [out]), *statistics)
    ctx.numbers = (scale, rule, power)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 12
    tensors, rest = ctx.saved_tensors[:9], ctx.saved_tensors[9:]
    out = grad if len(rest) == 3 else rest[0]  # sigmoid needs none
    found = torch.ops.attlas.weighted_strips_backward(grad, out, *rest[-3:], *tensors, *ctx.numbers)
    return *found, *(None,) * 9


_weighted.register_autograd(_differentiate, setup_context=_keep)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no second derivative."""


def _once(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "block attention is differentiable once: its backward recomputes weights in a kernel without a "
        "derivative of its own; use backend='reference' for second derivatives"
    )


_weighted_backward.register_autograd(_once, setup_context=_keep_nothing)


@register_flop_formula(torch.ops.attlas.weighted_strips, get_raw=True)
def _flops(  # type: ignore[no-untyped-def]
    query, key, value, order, strips, runs, masks, first, rows, scale, rule, power, out_val=None
):
    """Two products per pair; in the first of two sweeps the second product is narrow."""
    first_sweep = query.shape[3] + NARROW if rule == SHIFT_POWER else 0
    return 2 * pairs_of(query, strips, first) * (first_sweep + query.shape[3] + value.shape[3])


@register_flop_formula(torch.ops.attlas.weighted_strips_backward, get_raw=True)
def _flops_backward(  # type: ignore[no-untyped-def]
    grad, out, sums, first_sums, first_tops, query, key, value, order, strips, runs, masks, first, rows,
    scale, rule, power, out_val=None,
):  # fmt: skip
    """Five products per pair, and a forward sweep's two where there are two sweeps."""
    first_sweep = query.shape[3] + value.shape[3] if rule == SHIFT_POWER else 0
    return 2 * pairs_of(query, strips, first) * (first_sweep + 3 * query.shape[3] + 2 * value.shape[3])
