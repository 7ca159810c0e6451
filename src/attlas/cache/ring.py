"""The slots of KV heads that keep equally many tokens: a sink part and a ring part in one buffer.

Absolute position p lives in slot p if p < sink, else in slot sink + (p - sink) mod ring; keys are stored
after the rotary embedding, so nothing is rotated again when a slot is reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attlas.attend.view import KVGroup
from attlas.cache.rows import Job, Step
from attlas.cache.spans import Span

__all__ = ["Placement", "Ring", "segments"]

GROWTH = 1.5  # of a buffer whose final length is unknown; amortises the copies to O(1) per token


@lru_cache(maxsize=4096)
def segments(start: int, end: int, sink: int, ring: int | None) -> tuple[tuple[int, int, int], ...]:
    """Runs (slot, first position, length) that hold what is kept of positions [start, end), in order.

    At most one run of sinks and two of the ring (before and after its wrap-around).
    """
    if ring is None:
        return ((start, start, end - start),) if end > start else ()
    runs = [(start, start, min(end, sink) - start)] if start < min(end, sink) else []
    first = max(start, sink, end - ring)
    while first < end:
        slot = sink + (first - sink) % ring
        length = min(end - first, sink + ring - slot)
        runs.append((slot, first, length))
        first += length
    return tuple(runs)


@dataclass(frozen=True)
class Placement:
    """Where one decoded token goes and what is then visible: computed once per step for all layers.

    slots: one for all rows, or (B,) with rows 0..B-1; filled: slots in use; positions (m,) or (B, m);
    valid (B, m) or None.
    """

    slots: int | Tensor
    filled: int
    positions: Tensor
    valid: Tensor | None
    rows: Tensor | None = None


def place(step: Step, span: Span, own: Mapping[int | None, Span], device: torch.device) -> Placement:
    """Slots and visibility of the token at each row's position; rows may differ in position and in length."""
    ring = span.ring if span.ring is not None else max(step.starts) + 1
    sink = span.sink
    if len(set(step.starts)) == 1 and len(set(step.totals)) == 1:
        position = step.starts[0]
        slot = position if position < sink else sink + (position - sink) % ring
        filled = min(position + 1, sink + ring)
        return Placement(
            slot, filled, _positions(torch.arange(filled, device=device), position, sink, ring), None
        )
    at = torch.tensor(step.starts, device=device)[:, None]
    slots = torch.where(at < sink, at, sink + (at - sink) % ring)[:, 0]
    filled = min(max(step.starts) + 1, sink + ring)
    positions = _positions(torch.arange(filled, device=device)[None, :], at, sink, ring)
    rows = torch.arange(len(step.starts), device=device)
    mine = [own[total] for total in step.totals]
    shorter = any((one.sink, one.ring) != (sink, span.ring) for one in mine)
    if not shorter and min(step.starts) + 1 >= filled:
        return Placement(slots, filled, positions, None, rows)
    valid = positions >= 0
    if shorter:
        own_sink = torch.tensor([one.sink for one in mine], device=device)[:, None]
        lengths = [ring if one.ring is None else one.ring for one in mine]
        own_ring = torch.tensor(lengths, device=device)[:, None]
        valid = valid & ((positions < own_sink) | (at - positions < own_ring))
    return Placement(slots, filled, positions, valid, rows)


def _positions(slot: Tensor, at: int | Tensor, sink: int, ring: int) -> Tensor:
    """Newest position <= at that lives in each slot; -1 where the slot is still empty."""
    newest = torch.where(slot < sink, slot, at - (at - slot) % ring)
    return torch.where((newest > at) | (newest < slot), -1, newest)


class Ring:
    """Keys and values of the KV heads `heads`, all of the storage span `span`.

    own: the span of each total length in the batch (rows of shorter requests see less); limit: slots that can
    ever be used, or None while the length of the request is unknown.
    """

    def __init__(
        self, heads: tuple[int, ...], kv_heads: int, own: Mapping[int | None, Span], span: Span
    ) -> None:
        self.heads, self.span, self.own = heads, span, dict(own)
        totals = [total for total in own if total is not None]
        known = [length for length in (span.length, max(totals, default=None)) if length is not None]
        self.limit: int | None = min(known) if known else None
        self.bounded = bool(totals)
        # Rings of one kind place every token alike; text, because its hash is computed only once.
        self.kind = repr((span, self.own))
        self.index: slice | Tensor | None = None
        if len(heads) < kv_heads:
            adjacent = heads[-1] - heads[0] + 1 == len(heads)
            self.index = slice(heads[0], heads[-1] + 1) if adjacent else torch.tensor(heads)
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def select(self, states: Tensor) -> Tensor:
        """This ring's heads of a (B, G, n, width) tensor."""
        if self.index is None:
            return states
        if isinstance(self.index, slice):
            return states.narrow(1, self.index.start, len(self.heads))
        return states.index_select(1, self.index.to(states.device))

    def reserve(self, needed: int, batch: int, key: Tensor, value: Tensor) -> None:
        """Have room for `needed` slots; the final size at once if the length is known, else geometric
        growth."""
        held = 0 if self.key is None else self.key.shape[2]
        needed = needed if self.limit is None else min(needed, self.limit)
        if held >= needed:
            return
        size = max(needed, int(held * GROWTH))
        if self.limit is not None:
            size = self.limit if self.bounded else min(size, self.limit)
        self.key, self.value = _grown(self.key, key, batch, size), _grown(self.value, value, batch, size)

    def decode(self, step: Step, key: Tensor, value: Tensor) -> KVGroup:
        """Store one token per row and hand out the filled slots, with no mask when all of them are
        visible."""
        placement = step.memo.get(self.kind)
        if placement is None:
            placement = step.memo[self.kind] = place(step, self.span, self.own, key.device)
        key, value, filled = self.select(key), self.select(value), placement.filled
        if self.key is None or self.value is None or self.key.shape[2] < filled:
            self.reserve(filled, key.shape[0], key, value)
        held_key, held_value = self._buffers()
        for buffer, states in ((held_key, key), (held_value, value)):
            new = states.detach().select(2, 0)
            if isinstance(placement.slots, int):
                buffer.select(2, placement.slots).copy_(new)
            else:
                buffer[placement.rows, :, placement.slots] = new
        if held_key.shape[2] != filled:
            held_key, held_value = held_key.narrow(2, 0, filled), held_value.narrow(2, 0, filled)
        return KVGroup(self.heads, held_key, held_value, placement.positions, placement.valid)

    def extend(self, job: Job, batch: int, key: Tensor, value: Tensor) -> KVGroup:
        """Store a job's tokens; hand out what was kept before together with all new tokens, by position.

        A chunk's early queries still see keys that its late tokens overwrite, hence the copy once a ring
        wraps.
        """
        key, value = self.select(key), self.select(value)
        span, end = self.span, job.end
        self.reserve(end, batch, key, value)
        device = key.device
        if span.length is None or end <= span.length:
            self._store(job, key, value)
            kept_key, kept_value = self._rows(job)
            return KVGroup(
                self.heads,
                kept_key[:, :, :end],
                kept_value[:, :, :end],
                torch.arange(end, device=device),
                None,
            )
        kept_key, kept_value = self._rows(job)
        runs = _kept(job.start, span)
        keys = [kept_key[:, :, slot : slot + length] for slot, _, length in runs]
        values = [kept_value[:, :, slot : slot + length] for slot, _, length in runs]
        group = KVGroup(
            self.heads,
            torch.cat([*keys, key], dim=2),
            torch.cat([*values, value], dim=2),
            torch.cat(
                [torch.arange(first, first + length, device=device) for _, first, length in runs]
                + [torch.arange(job.start, end, device=device)]
            ),
            None,
        )
        self._store(job, key, value)
        return group

    def store(self, job: Job, batch: int, key: Tensor, value: Tensor) -> None:
        """Keep what the span keeps of a first chunk, without handing out a view."""
        key, value = self.select(key), self.select(value)
        self.reserve(job.end, batch, key, value)
        self._store(job, key, value)

    def _store(self, job: Job, key: Tensor, value: Tensor) -> None:
        held_key, held_value = self._buffers()
        for slot, first, length in segments(job.start, job.end, self.span.sink, self.span.ring):
            source = slice(first - job.start, first - job.start + length)
            held_key[job.rows, :, slot : slot + length] = key[:, :, source].detach()
            held_value[job.rows, :, slot : slot + length] = value[:, :, source].detach()

    def _rows(self, job: Job) -> tuple[Tensor, Tensor]:
        key, value = self._buffers()
        return (key, value) if job.whole else (key[job.rows], value[job.rows])

    def _buffers(self) -> tuple[Tensor, Tensor]:
        if self.key is None or self.value is None:
            raise RuntimeError("the ring has no buffer: nothing was stored yet")
        return self.key, self.value

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in (self.key, self.value) if buffer is not None)

    def index_select(self, rows: Tensor) -> None:
        """Keep (and repeat) rows of the batch."""
        if self.key is not None and self.value is not None:
            self.key = self.key.index_select(0, rows.to(self.key.device))
            self.value = self.value.index_select(0, rows.to(self.value.device))

    def reset(self) -> None:
        """Forget everything; buffers are dropped, so the next prefill may have another batch size."""
        self.key = self.value = None


def _kept(end: int, span: Span) -> tuple[tuple[int, int, int], ...]:
    """Runs that hold what a ring still has after `end` tokens."""
    return segments(0, end, span.sink, span.ring)


def _grown(buffer: Tensor | None, like: Tensor, batch: int, size: int) -> Tensor:
    # Zeros, not empty memory: a masked slot has weight 0, and 0 times a NaN would be a NaN.
    grown = torch.zeros(batch, like.shape[1], size, like.shape[3], dtype=like.dtype, device=like.device)
    if buffer is not None:
        grown[:, :, : buffer.shape[2]] = buffer
    return grown
