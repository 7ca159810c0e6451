"""Linear attention with a constant decay as it is written down, in plain autograd, to compare `scan` with.

query, key (B, H, N, F), value (B, H, N, E), log_decay (H,).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHUNK", "chunked", "loop"]

CHUNK = 64


def loop(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """S_t = lambda S_{t-1} + k_t v_t^T, o_t = q_t S_t, token by token."""
    kept = log_decay.exp().view(1, -1, 1, 1)
    state = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
    rows = []
    for index in range(query.shape[2]):
        state = kept * state + key[:, :, index, :, None] * value[:, :, index, None, :]
        rows.append(query[:, :, index, None, :] @ state)
    return torch.cat(rows, 2)


def chunked(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor) -> Tensor:
    """The published chunked form as it is written down: a mask inside a chunk, a state before it."""
    rate = log_decay.view(-1, 1, 1)
    state = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
    rows = []
    for start in range(0, query.shape[2], CHUNK):
        q, k, v = (part[:, :, start : start + CHUNK] for part in (query, key, value))
        count = q.shape[2]
        step = torch.arange(count).view(-1, 1)
        mask = (rate * (step - step.T).clamp_min(0)).exp().tril()
        inside = (q @ k.mT * mask) @ v
        rows.append(inside + (q * (rate * (step + 1)).exp()) @ state)
        fading = (rate * (count - 1 - step)).exp()
        state = (rate * count).exp() * state + (k * fading).mT @ v
    return torch.cat(rows, 2)
