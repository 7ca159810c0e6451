"""The selective scan as torch operators, forward and backward: torch.compile keeps them whole.

Shapes and formula: `selective_chunk`. Both forms take float32 and float64.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attlas.scan import selective_chunk, selective_kernel
from attlas.scan.selective_shape import CHUNK

__all__ = ["selective"]

_FORMS = {"chunk": selective_chunk, "fused": selective_kernel}


def selective(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor, reset: Tensor | None, start: Tensor,
    form: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, last state); differentiable once in all but reset. form: "chunk" or "fused"."""
    tensors = (u, delta, rate, write, read, start)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    out, last, _ = torch.ops.attlas.selective(u, delta, rate, write, read, reset, start, form, keep)
    return out, last


@torch.library.custom_op("attlas::selective", mutates_args=())
def _selective(
    u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor, reset: Tensor | None, start: Tensor,
    form: str, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _FORMS[form].forward(u, delta, rate, write, read, reset, start, keep)


@_selective.register_fake
def _(u, delta, rate, write, read, reset, start, form, keep):  # type: ignore[no-untyped-def]
    chunks = -(-u.shape[1] // CHUNK) if keep else 0
    return u.new_empty(u.shape), start.new_empty(start.shape), u.new_empty(u.shape[0], chunks, *rate.shape)


@torch.library.custom_op("attlas::selective_backward", mutates_args=())
def _selective_backward(
    grad_out: Tensor, grad_last: Tensor, u: Tensor, delta: Tensor, rate: Tensor, write: Tensor, read: Tensor,
    reset: Tensor | None, states: Tensor, form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _FORMS[form].backward(grad_out, grad_last, u, delta, rate, write, read, reset, states)


@_selective_backward.register_fake
def _(grad_out, grad_last, u, delta, rate, write, read, reset, states, form):  # type: ignore[no-untyped-def]
    return tuple(one.new_empty(one.shape) for one in (u, delta, rate, write, read, grad_last))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, rate, write, read, reset, start, form, _ = inputs
    ctx.save_for_backward(u, delta, rate, write, read, reset, output[2])
    ctx.form, ctx.start = form, start.shape
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    u, *held = ctx.saved_tensors
    if grad_out is None and grad_last is None:
        return (None,) * 9
    grad_out = torch.zeros_like(u) if grad_out is None else grad_out
    grad_last = u.new_zeros(ctx.start) if grad_last is None else grad_last
    grads = torch.ops.attlas.selective_backward(grad_out, grad_last, u, *held, ctx.form)
    return *grads[:5], None, grads[5], None, None


_selective.register_autograd(_differentiate, setup_context=_keep)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Nothing: there is no second derivative."""


def _once(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "selective_scan is differentiable once: its backward computes states again without a derivative of "
        "its own; use backend='recurrent' for second derivatives"
    )


_selective_backward.register_autograd(_once, setup_context=_keep_nothing)


@register_flop_formula(torch.ops.attlas.selective, get_raw=True)
def _flops(u, delta, rate, *rest, out_val=None):  # type: ignore[no-untyped-def]
    """9 for every step, channel and state, as `selective_scan` says."""
    return 9 * u.numel() * rate.shape[0]


@register_flop_formula(torch.ops.attlas.selective_backward, get_raw=True)
def _flops_backward(  # type: ignore[no-untyped-def]
    grad_out, grad_last, u, delta, rate, *rest, out_val=None
):
    """The states again 7, their gradient 3, those of read, write, input and decay 2 each, of rates 4."""
    return 22 * u.numel() * rate.shape[0]
