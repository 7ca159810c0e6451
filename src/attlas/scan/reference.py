"""The backend 'reference': every weight written down, n x n; the oracle."""

import torch
from torch import Tensor

from attlas.scan.terms import FLOOR, Terms

__all__ = ["everywhere", "reference"]


def reference(terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the sums after the last token, their log-scale, and all weights (B, H, n, n).

    Cost: n^2 (D + V) time, n^2 memory (times D for decays per channel).
    """
    dtype = terms.sums.dtype
    phi_query, phi_key = (
        terms.kernel.features(x.to(dtype), terms.positions) for x in (terms.query, terms.key)
    )
    fading = None if terms.decay is None else terms.decay.cumsum(2)
    alive = _edges(terms, causal=True)
    gate = torch.zeros_like(terms.value[..., 0], dtype=dtype) if terms.gate is None else terms.gate
    exponent = gate[..., None, :]
    if fading is not None and not terms.channels:
        exponent = exponent + fading[..., :, None] - fading[..., None, :]
    exponent = exponent.expand(*alive.shape).masked_fill(~alive, -torch.inf)
    entered = _entered(terms)
    running = terms.normalise and terms.gate is not None
    level = terms.scale[..., None] + (0.0 if fading is None or terms.channels else fading)
    level = torch.where(entered, level, FLOOR)
    top = torch.maximum(exponent.amax(-1), level).clamp(min=FLOOR).detach() if running else None
    if top is not None:
        exponent, level = exponent - top[..., None], level - top
    if terms.channels and fading is not None:
        gone = (fading[..., :, None, :] - fading[..., None, :, :]).masked_fill(~alive[..., None], -torch.inf)
        kappa = torch.einsum(
            "bhid,bhjd,bhijd->bhij", *torch.broadcast_tensors(phi_query, phi_key), gone.exp()
        )
        seen = phi_query * fading.exp()
    else:
        kappa, seen = phi_query @ phi_key.transpose(-1, -2), phi_query
    weights = kappa * exponent.exp()
    kept = torch.where(entered, level, -torch.inf).exp()[..., None]
    found = weights @ terms.columns(terms.value) + kept * (seen @ terms.sums)
    sums = _last(terms, phi_key, exponent, fading, kept)
    scale = terms.scale if top is None else top[..., -1]
    out = terms.finish(found).to(terms.value.dtype)
    if terms.normalise:
        total = found[..., -1:] + terms.eps
        weights = weights / torch.where(total == 0, 1.0, total)
    if terms.shown is not None:
        out = out.masked_fill(~terms.shown[:, None, :, None], 0.0)
        weights = weights.masked_fill(~terms.shown[:, None, :, None], 0.0)
    return out, sums, scale, weights


def _edges(terms: Terms, *, causal: bool) -> Tensor:
    """Which pairs (B, H, n, n) are edges: live keys of the row's own sequence."""
    batch, heads, length, _ = terms.value.shape
    alive = torch.ones(length, length, dtype=torch.bool, device=terms.value.device)
    alive = (alive.tril() if causal else alive).expand(batch, heads, length, length)
    if terms.fresh is not None:
        runs = terms.fresh.cumsum(2)
        alive = alive & (runs[..., :, None] == runs[..., None, :])
    return alive if terms.live is None else alive & terms.live[..., None, :]


def _entered(terms: Terms) -> Tensor:
    """Whether a row still sees the state from before the sequence, (B, H or 1, n)."""
    if terms.fresh is None:
        return torch.ones_like(terms.value[..., 0], dtype=torch.bool)
    return (terms.fresh.cumsum(2) == 0).expand(terms.value.shape[:3])


def _last(terms: Terms, key: Tensor, exponent: Tensor, fading: Tensor | None, kept: Tensor) -> Tensor:
    """Sums after the last token, relative to its running maximum."""
    key = key * exponent[:, :, -1, :, None].exp()
    before = terms.sums * kept[:, :, -1:]
    if terms.channels and fading is not None:
        key = key * (fading[:, :, -1:] - fading).exp()
        before = before * fading[:, :, -1, :, None].exp()
    return key.transpose(-1, -2) @ terms.columns(terms.value) + before


def everywhere(terms: Terms) -> tuple[Tensor, Tensor]:
    """Outputs and weights (B, H, n, n) where every row sees every key of its segment."""
    dtype = terms.sums.dtype
    query, key = (terms.kernel.features(x.to(dtype), terms.positions) for x in (terms.query, terms.key))
    alive = _edges(terms, causal=False)
    weights = (query @ key.transpose(-1, -2)).expand_as(alive)
    if terms.gate is not None:
        gate = terms.gate[..., None, :].expand_as(alive).masked_fill(~alive, FLOOR)
        weights = weights * (gate - gate.amax(-1, keepdim=True) * terms.normalise).exp()
    weights = weights.masked_fill(~alive, 0.0)
    if terms.normalise:
        total = weights.sum(-1, keepdim=True) + terms.eps
        weights = weights / torch.where(total == 0, 1.0, total)
    if terms.shown is not None:
        weights = weights.masked_fill(~terms.shown[:, None, :, None], 0.0)
    return (weights @ terms.value.to(dtype)).to(terms.value.dtype), weights
