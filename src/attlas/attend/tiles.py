"""One tile of softmax attention and its backward: the CPU flash kernel, or plain matrix products elsewhere.

Both forms take q (X, Y, rows, D), k (X, Y, keys, D), v (X, Y, keys, D) of any strides (last one 1; stride 0
where several query heads share a key head) and return out (X, Y, rows, D) in the dtype of q and lse (X, Y,
rows) in float32 (float64 for float64).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Kernel", "flash", "flash_backward", "kernel_for", "matmul", "matmul_backward"]

LOGIT_ERROR = 1.6e-2
"""How much rounding to bfloat16 may change a logit: the relative error of its weight."""
_FLASH_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernel:
    """A tile kernel: `forward(q, k, v, scale, causal, mask)` and its backward with merged out and lse."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor, float, bool, Tensor | None], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`torch`'s CPU flash attention; mask is additive (rows, keys) in the dtype of query.

    A row without keys gives out 0 and, unlike elsewhere here, lse 0: its caller knows which rows those are.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) of one part of a row, exact if `out` and `lse` are those of the whole row."""
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    return dq, dk, dv


def matmul(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same tile as `flash` from matrix products, on any device; logits and weights are float32."""
    logits = _logits(query, key, scale, causal, mask)
    top = logits.amax(-1)
    empty = top == -float("inf")
    weights = logits.softmax(-1).masked_fill_(empty.unsqueeze(-1), 0.0)
    # The largest weight is exp(largest logit - lse): cheaper than a second pass of exponentials.
    lse = (top - weights.amax(-1).log()).masked_fill_(empty, 0.0)
    return torch.matmul(weights.to(value.dtype), value), lse


def matmul_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients as `flash_backward` from matrix products."""
    wide = _wide(query.dtype)
    grad_wide, query_wide, key_wide = grad.to(wide), query.to(wide), key.to(wide)
    weights = (_logits(query, key, scale, causal, mask) - lse.unsqueeze(-1)).exp()
    inner = (grad_wide * out.to(wide)).sum(-1, keepdim=True)
    slope = weights * (torch.matmul(grad_wide, value.to(wide).transpose(-1, -2)) - inner) * scale
    dv = torch.matmul(weights.transpose(-1, -2), grad_wide)
    dq = torch.matmul(slope, key_wide)
    dk = torch.matmul(slope.transpose(-1, -2), query_wide)
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype)


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel for tensors of this device and dtype, always the same one."""
    if device.type == "cpu" and dtype in _FLASH_DTYPES:
        return Kernel("flash", flash, flash_backward)
    return Kernel("matmul", matmul, matmul_backward)


def _logits(query: Tensor, key: Tensor, scale: float, causal: bool, mask: Tensor | None) -> Tensor:
    wide = _wide(query.dtype)
    if query.dtype == torch.bfloat16:
        logits = _product(query, key, scale)
    else:
        logits = torch.matmul(query.to(wide) * scale, key.to(wide).transpose(-1, -2))
    if mask is not None:
        logits += mask
    if causal:
        rows, keys = logits.shape[-2:]
        future = torch.ones(rows, keys, dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, -float("inf"))
    return logits


def _product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """scale q . k in float32 from products in bfloat16, so that no key is copied or widened.

    torch gives sums of float32 back in bfloat16. Where that rounding could change a logit by more than
    `LOGIT_ERROR`, a second product minus the first holds what it cut off.
    """
    rows, keys = query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2)
    first = torch.bmm(rows, keys)
    logits = first.float()
    largest = float(torch.linalg.vector_norm(logits, math.inf)) if logits.numel() else 0.0
    # Half a unit in the last of 8 places of the largest number.
    if abs(scale) * 2.0 ** (math.frexp(largest)[1] - 9) > LOGIT_ERROR:
        logits += torch.baddbmm(first, rows, keys, beta=-1)
    return logits.mul_(scale).view(*query.shape[:-1], key.shape[-2])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
