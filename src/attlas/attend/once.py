"""Gradients that may be taken, and not differentiated again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["once"]


def once(
    found: Sequence[Tensor | None], inputs: Sequence[Tensor], who: str = "attend: the backend 'rows'"
) -> list[Tensor | None]:
    """The gradients `found`, tied to the `inputs` of their backward so that a second one is refused.

    `who`: begins the refusal's text.
    """
    held = [tensor for tensor in found if tensor is not None]
    tied = iter(_Once.apply(who, len(held), *held, *inputs))
    return [None if tensor is None else next(tied) for tensor in found]


class _Once(torch.autograd.Function):
    """Passes gradients on and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, who: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.who = who
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.who} is differentiable once, and a gradient of its gradient was asked for; use "
            "backend='reference' for second derivatives"
        )
