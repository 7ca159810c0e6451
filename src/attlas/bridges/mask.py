"""What reaches the attention function in place of a mask: lengths, offsets and padding, never n x n."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attlas.bridges.models import UnsupportedModel
from attlas.cache.rows import Job, split_rows

__all__ = ["TokenMask", "token_mask"]


@dataclass(eq=False)
class TokenMask:
    """One forward pass: `queries` new columns from `query_start`, `keys` columns from `key_start` on.

    valid (B, >= query_start + queries) marks real tokens, or None when there is no padding; window: the
    model's own sliding window in this mask; causal: decoder or encoder. `memo` is shared by all layers of the
    pass.
    """

    queries: int
    keys: int
    query_start: int
    key_start: int
    valid: Tensor | None
    window: int | None
    causal: bool
    memo: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def new_valid(self) -> Tensor | None:
        """Real tokens among the new columns, (B, queries); None when all are."""
        if "new" not in self.memo:
            new = (
                None
                if self.valid is None
                else self.valid[:, self.query_start : self.query_start + self.queries]
            )
            self.memo["new"] = None if new is None or bool(new.all()) else new
        return self.memo["new"]

    def jobs(self, batch: int, total: int | Sequence[int] | None) -> tuple[tuple[Job, Job], ...]:
        """(queries, keys) of each attention call on keys that stand in one tensor, padding left out.

        Rows with the same real tokens share a call. N is `total`, or else a row's own real tokens while
        nothing precedes them, or else unknown (None).
        """
        if "jobs" not in self.memo:
            self.memo["jobs"] = self._plain(batch, total) if self.valid is None else self._padded(total)
        return self.memo["jobs"]

    def _plain(self, batch: int, total: int | Sequence[int] | None) -> tuple[tuple[Job, Job], ...]:
        own = self.queries if self.query_start == 0 else None
        totals = _per_row(total, batch, own)
        pairs = []
        for job in split_rows(None, [self.query_start] * batch, totals, self.queries):
            keys = Job(job.rows, slice(0, self.keys), self.key_start, self.keys, job.total)
            pairs.append((job, keys))
        return tuple(pairs)

    def _padded(self, total: int | Sequence[int] | None) -> tuple[tuple[Job, Job], ...]:
        if self.valid is None:
            raise ValueError("a mask without padding has no padded jobs")
        end = self.query_start + self.queries
        before, new = self.valid[:, : self.query_start], self.valid[:, self.query_start : end]
        seen = self.valid[:, self.key_start : self.key_start + self.keys]
        starts = [int(count) for count in before.sum(dim=1).tolist()]
        counts = [int(count) for count in new.sum(dim=1).tolist()]
        if self.query_start == 0 and total is None:
            totals: list[int | None] = list(counts)
        else:
            totals = _per_row(total, len(starts), None)
        self._check_kept(starts)
        pairs = []
        key_starts = [int(count) for count in self.valid[:, : self.key_start].sum(dim=1).tolist()]
        patterns = [tuple(row) for row in seen.tolist()]
        for job in split_rows(new, starts, totals, self.queries, also=patterns):
            row = _first_row(job)
            real = [column for column, here in enumerate(patterns[row]) if here]
            columns: slice | Tensor = torch.tensor(real, device=self.valid.device)
            if real[-1] - real[0] + 1 == len(real):
                columns = slice(real[0], real[-1] + 1)
            pairs.append((job, Job(job.rows, columns, key_starts[row], len(real), job.total)))
        return tuple(pairs)

    def _check_kept(self, starts: list[int]) -> None:
        """transformers' sliding cache keeps the last columns, which may be padding instead of tokens."""
        if self.valid is None or self.window is None or self.key_start == 0:
            return
        kept = self.valid[:, self.key_start : self.query_start].sum(dim=1).tolist()
        for row, (start, here) in enumerate(zip(starts, kept, strict=True)):
            if here < min(start, self.window - 1):
                raise ValueError(
                    f"transformers' sliding cache has dropped tokens of row {row} in favour of padding on "
                    "the right: pad on the left, or use the cache of handle.new_cache(total=...)"
                )


def token_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    config: Any = None,
    **kwargs: Any,
) -> TokenMask:
    """Mask function for transformers' AttentionMaskInterface; arguments are theirs (transformers 5.23).

    UnsupportedModel where the model asks for more than causal, sliding and padding: packed sequences, image
    blocks, other overlays.
    """
    causal = "allow_is_bidirectional_skip" not in kwargs
    skip = kwargs.get("allow_is_causal_skip" if causal else "allow_is_bidirectional_skip", True)
    if kwargs.get("use_vmap", False) or not skip:
        raise UnsupportedModel(
            f"{getattr(config, 'model_type', 'this model')} asks for a mask beyond causal, sliding window "
            "and padding (packed sequences through position_ids, image blocks or an overlay of its own), "
            "which is not supported; pass one sequence per row with an attention_mask"
        )
    start = int(q_offset)
    valid = attention_mask
    if valid is not None:
        if valid.shape[1] < start + q_length:
            raise ValueError(
                f"attention_mask must cover the {start} cached and the {q_length} new columns, "
                f"got {valid.shape[1]} columns"
            )
        valid = valid.to(torch.bool)
        if bool(valid.all()):
            valid = None
    # transformers' bidirectional window is inclusive (|i - j| <= w), its causal one is not (i - j < w).
    window = None if local_size is None else int(local_size) + (0 if causal else 1)
    return TokenMask(q_length, kv_length, start, int(kv_offset), valid, window, causal)


def _per_row(total: int | Sequence[int] | None, batch: int, default: int | None) -> list[int | None]:
    if total is None or isinstance(total, int):
        return [default if total is None else total] * batch
    if len(total) != batch:
        raise ValueError(f"total has {len(total)} entries, one per row, but the batch has {batch} rows")
    return list(total)


def _first_row(job: Job) -> int:
    if isinstance(job.rows, slice):
        return job.rows.start or 0
    return int(job.rows[0])
