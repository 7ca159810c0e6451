"""Stochastic depth: residual steps that are left out at random in training."""

import torch
from torch import Tensor, nn

__all__ = ["StochasticDepth"]


class StochasticDepth(nn.Module):
    """In training 0 for a share `rate` of the batch rows, x / (1 - rate) for the others; else x.

    Source: arXiv 1603.09382; one draw per row of the batch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"stochastic depth: rate must be from 0 to below 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *(1,) * (x.dim() - 1), device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)
