"""One group of chunks of a scan: quadratic inside a chunk, by states between chunks.

Exponents are differences of running sums, never above 0 (or above the running maximum of the gates), formed
in float64 where a decay is one number per token. Legend: B batch, H heads, C chunks of c tokens, D width,
F features, E columns of values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.scan.kernels import Kernel
from attlas.scan.terms import FLOOR

__all__ = ["Group", "group_step"]


@dataclass(frozen=True, eq=False)
class Group:
    """What of a scan falls into C chunks of c tokens.

    query, key (B, H or 1, C, c, D), value (B, H, C, c, E); decay (B or 1, H, C or 1, c), with a last axis D
    where every channel decays by itself; gate (B, H, C, c); live, fresh bool (B, H or 1, C, c); positions
    (B, C c); sums (B, H, F, E) and scale (B, H) before them; running: rows have a running maximum.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor | None
    gate: Tensor | None
    live: Tensor | None
    fresh: Tensor | None
    positions: Tensor
    sums: Tensor
    scale: Tensor
    kernel: Kernel
    running: bool

    @property
    def channels(self) -> bool:
        """Whether every key channel decays by itself."""
        return self.decay is not None and self.decay.dim() == 5


@dataclass(frozen=True, eq=False)
class _Logs:
    """Running sums of a group: `past` inside every chunk, `starts` (.., C + 1) of whole chunks, in float64
    unless per channel; `runs` count the resets up to a token and `before` those before a chunk; `tops` (B, H,
    C, c) and `scales` (B, H, C + 1) are the running maxima of rows and before chunks, None for 0."""

    past: Tensor | None
    starts: Tensor | None
    runs: Tensor | None
    before: Tensor | None
    tops: Tensor | None = None
    scales: Tensor | None = None


def group_step(group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of every row, (B, H, C, c, E), then the sums and the scale after the group."""
    dtype = group.sums.dtype
    query, key = group.query.to(dtype), group.key.to(dtype)
    logs = _logs(group)
    exponents = _exponents(group, logs)
    if group.running:
        logs = _with_maxima(group, logs, exponents)
    pairs = _pairs(group, query, key, logs, exponents)
    query, key = _features(group, query), _features(group, key)
    states = _states(group, key, logs)
    if group.channels and logs.past is not None:
        query = query * logs.past.exp()
    outer = query @ states[:, :, :-1]
    entering = _entering(group, logs)
    if entering is not None:
        outer = outer * entering[..., None].to(dtype)
    last = group.scale if logs.scales is None else logs.scales[..., -1]
    return pairs @ group.value + outer, states[:, :, -1].clone(), last


def _features(group: Group, x: Tensor) -> Tensor:
    flat = group.kernel.features(x.flatten(2, 3), group.positions)
    return flat.unflatten(2, x.shape[2:4])


def _logs(group: Group) -> _Logs:
    past = starts = runs = before = None
    chunks = group.value.shape[2]
    if group.decay is not None:
        past = (group.decay if group.channels else group.decay.double()).cumsum(3)
        totals = past.select(3, -1).double()
        totals = totals.expand(*totals.shape[:2], chunks, *totals.shape[3:])
        starts = torch.cat([torch.zeros_like(totals[:, :, :1]), totals.cumsum(2)], 2)
    if group.fresh is not None:
        runs = group.fresh.flatten(2).cumsum(2).unflatten(2, group.fresh.shape[2:])
        before = torch.cat([torch.zeros_like(runs[:, :, :1, -1]), runs[..., -1]], 2)
    return _Logs(past, starts, runs, before)


def _exponents(group: Group, logs: _Logs) -> Tensor | None:
    """log of every pair's weight without the kernel (B, H, C, c, c), -inf off the edges; None: all 0.

    A channel's own decay is left out.
    """
    count = group.value.shape[3]
    seen = torch.ones(count, count, dtype=torch.bool, device=group.value.device).tril()
    if logs.runs is not None:
        seen = seen & (logs.runs[..., :, None] == logs.runs[..., None, :])
    if group.live is not None:
        seen = seen & group.live[..., None, :]
    found = None
    if logs.past is not None and not group.channels:
        found = logs.past[..., :, None] - logs.past[..., None, :]
    if group.gate is not None:
        gate = group.gate[..., None, :]
        found = gate.expand(*gate.shape[:3], count, count) if found is None else found + gate
    if found is None:
        return None if seen.dim() == 2 else torch.where(seen, 0.0, -torch.inf).to(group.sums.dtype)
    return found.masked_fill(~seen, -torch.inf)


def _with_maxima(group: Group, logs: _Logs, exponents: Tensor | None) -> _Logs:
    """The running maximum of a row's exponents, chunk by chunk; constants for the gradient."""
    assert exponents is not None  # a running maximum is kept only where there are gates
    inside = exponents.detach().amax(-1).clamp(min=FLOOR)
    level, tops, scales = group.scale.to(inside.dtype), [], [group.scale.to(inside.dtype)]
    for chunk in range(inside.shape[2]):
        carried = level[..., None].expand_as(inside[:, :, 0])
        if logs.past is not None and not group.channels:
            carried = carried + logs.past.detach()[:, :, min(chunk, logs.past.shape[2] - 1)]
        if logs.runs is not None and logs.before is not None:
            same = logs.runs[:, :, chunk] == logs.before[:, :, chunk, None]
            carried = torch.where(same, carried, FLOOR)
        top = torch.maximum(inside[:, :, chunk], carried).clamp(min=FLOOR)
        level = top[..., -1]
        tops.append(top)
        scales.append(level)
    found = torch.stack(tops, 2), torch.stack(scales, 2)
    return _Logs(logs.past, logs.starts, logs.runs, logs.before, *found)


def _pairs(group: Group, query: Tensor, key: Tensor, logs: _Logs, exponents: Tensor | None) -> Tensor:
    """Weights of the pairs inside every chunk, (B, H, C, c, c)."""
    if group.channels and logs.past is not None:
        kappa = _decayed_products(query, key, logs.past)
    else:
        known = group.kernel.pair(query, key)
        if known is None:
            known = _features(group, query) @ _features(group, key).transpose(-1, -2)
        kappa = known
    if exponents is None:
        return kappa.tril()
    if logs.tops is not None:
        exponents = exponents - logs.tops[..., None]
    return kappa * exponents.exp().to(kappa.dtype)


def _decayed_products(query: Tensor, key: Tensor, past: Tensor) -> Tensor:
    """sum_d q_id k_jd exp(past_id - past_jd) for j <= i, else 0; short chunks only: c c D numbers."""
    count = past.shape[3]
    later = torch.ones(count, count, dtype=torch.bool, device=past.device).triu(1)
    gone = past[..., :, None, :] - past[..., None, :, :]
    decayed = gone.masked_fill(later[..., None], -torch.inf).exp() * key[..., None, :, :]
    return (decayed @ query[..., None]).squeeze(-1)


def _states(group: Group, key: Tensor, logs: _Logs) -> Tensor:
    """Sums before every chunk and after the last, (B, H, C + 1, F, E), relative to `logs.scales`."""
    remaining = _remaining(group, logs)
    if group.channels and logs.past is not None:
        key = key * (logs.past[..., -1:, :] - logs.past).exp()
    value = group.value if remaining is None else group.value * remaining[..., None].to(group.value.dtype)
    added = key.transpose(-1, -2) @ value
    parts = torch.cat([group.sums[:, :, None], added], 2)
    carried = _carried(group, logs)
    if group.channels:
        return (carried @ parts.transpose(2, 3)).transpose(2, 3)
    return (carried @ parts.flatten(3)).unflatten(3, parts.shape[3:])


def _remaining(group: Group, logs: _Logs) -> Tensor | None:
    """What is left of every key at the end of its chunk, (B, H, C, c); None: all of it."""
    found, kept = None, group.live
    if logs.past is not None and not group.channels:
        found = logs.past[..., -1:] - logs.past
    if group.gate is not None:
        found = group.gate if found is None else found + group.gate
    if logs.scales is not None and found is not None:
        found = found - logs.scales[:, :, 1:, None]
    if logs.runs is not None:
        last = logs.runs == logs.runs[..., -1:]
        kept = last if kept is None else kept & last
    if found is None:
        return None if kept is None else kept.to(group.sums.dtype)
    return (found if kept is None else found.masked_fill(~kept, -torch.inf)).exp()


def _carried(group: Group, logs: _Logs) -> Tensor:
    """Factors from the start of chunk s to that of chunk r >= s, (.., C + 1, C + 1), per channel if so."""
    count = group.value.shape[2] + 1
    seen = torch.ones(count, count, dtype=torch.bool, device=group.value.device).tril()
    if logs.before is not None:
        seen = seen & (logs.before[..., :, None] == logs.before[..., None, :])
    exponent = torch.zeros(count, count, dtype=torch.float64, device=group.value.device)
    if logs.starts is not None:
        starts = logs.starts.movedim(2, -1)
        exponent = starts[..., :, None] - starts[..., None, :]
        if group.channels:
            seen = seen if seen.dim() == 2 else seen[:, :, None]
    if logs.scales is not None:
        change = logs.scales[..., None, :] - logs.scales[..., :, None]
        exponent = exponent + (change[:, :, None] if group.channels else change)
    return exponent.masked_fill(~seen, -torch.inf).exp().to(group.sums.dtype)


def _entering(group: Group, logs: _Logs) -> Tensor | None:
    """What of the state before its chunk a row still sees, (B, H, C, c); None: all of it."""
    found = None if logs.past is None or group.channels else logs.past
    if logs.scales is not None and logs.tops is not None:
        change = logs.scales[:, :, :-1, None] - logs.tops
        found = change if found is None else found + change
    if logs.runs is None or logs.before is None:
        return None if found is None else found.exp()
    same = logs.runs == logs.before[:, :, :-1, None]
    if found is None:
        return same.to(group.sums.dtype)
    return found.masked_fill(~same, -torch.inf).exp()
