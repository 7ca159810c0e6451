"""The backend 'recurrent': the definition, one token after the other. Any device; plain autograd."""

import torch
from torch import Tensor

from attlas.scan.terms import FLOOR, Terms

__all__ = ["recurrent"]


def recurrent(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, H, n, V), the sums after the last token, their log-scale. Cost: n Python steps."""
    sums, scale, outs = terms.sums, terms.scale, []
    for token in range(terms.length):
        out, sums, scale = _step(terms, token, sums, scale)
        outs.append(out)
    found = torch.stack(outs, 2).to(terms.value.dtype)
    if terms.shown is not None:
        found = found.masked_fill(~terms.shown[:, None, :, None], 0.0)
    return found, sums, scale


def _step(terms: Terms, token: int, sums: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key = (
        terms.kernel.features(
            x[:, :, token : token + 1].to(sums.dtype), terms.positions[:, token : token + 1]
        )
        for x in (terms.query, terms.key)
    )
    added = key.transpose(-1, -2) * terms.columns(terms.value[:, :, token : token + 1])
    live = None if terms.live is None else terms.live[:, :, token]
    running = terms.normalise and terms.gate is not None
    if terms.fresh is not None:
        fresh = terms.fresh[:, :, token]
        sums = sums.masked_fill(fresh[..., None, None], 0.0)
        scale = scale.masked_fill(fresh, FLOOR) if running else scale
    fading = None if terms.decay is None else terms.decay[:, :, token]
    if running and terms.gate is not None:
        gate = terms.gate[:, :, token]
        faded = scale if fading is None or terms.channels else scale + fading.detach()
        arriving = gate.detach() if live is None else torch.where(live, gate.detach(), FLOOR)
        top = torch.maximum(faded, arriving).clamp(min=FLOOR)
        fading = _plus(fading, scale - top, terms.channels)
        added = added * (gate - top).masked_fill(arriving <= FLOOR, 0.0).exp()[..., None, None]
        scale = top
    elif terms.gate is not None:
        added = added * terms.gate[:, :, token].exp()[..., None, None]
    if live is not None:
        added = added.masked_fill(~live[..., None, None], 0.0)
    if fading is not None:
        factor = fading.exp()
        sums = sums * (factor[..., None] if factor.dim() == 3 else factor[..., None, None])
    sums = sums + added
    return terms.finish(query @ sums).squeeze(2), sums, scale


def _plus(fading: Tensor | None, change: Tensor, channels: bool) -> Tensor:
    if fading is None:
        return change
    return fading + (change[..., None] if channels else change)
