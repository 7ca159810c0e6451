"""Work along the edges of a graph, cut into units of about equal size, and what was cut put together again.

The cut depends on the graph alone, so that results are the same for any number of threads.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Units", "add_parts", "merge_parts", "units_of"]

PIECES = 64
"""Units, about: enough for the threads to end together."""
LONGEST = 4096
"""Edges of one node that are never cut."""


class Units(NamedTuple):
    """table (units, 5) of `edge_scores.CALL`; huge: nodes of more edges are cut; cut: the slots of each."""

    table: Tensor
    huge: int
    cut: dict[int, slice]

    @property
    def slots(self) -> int:
        """Parts of cut nodes."""
        return max((part.stop for part in self.cut.values()), default=0)


def units_of(pointer: Tensor) -> Units:
    """Units of the nodes whose sorted edges begin at `pointer` (nodes + 1,)."""
    nodes, edges = pointer.numel() - 1, int(pointer[-1])
    degree = pointer.diff()
    size = (edges + nodes) / PIECES
    huge = max(LONGEST, int(2 * size))
    rows, cut, slot = [], {}, 0
    for node in (degree > huge).nonzero().flatten().tolist():
        first, count = int(pointer[node]), int(degree[node])
        parts = -(-count // max(LONGEST // 2, int(size)))
        ends = [first + count * part // parts for part in range(parts + 1)]
        cut[node] = slice(slot, slot + parts)
        rows += [(node, node + 1, ends[part], ends[part + 1], slot + part) for part in range(parts)]
        slot += parts
    work = torch.zeros(nodes + 1, dtype=torch.int64)
    torch.cumsum(degree.masked_fill(degree > huge, 0) + 1, 0, out=work[1:])
    cuts = torch.arange(PIECES + 1) * (int(work[-1]) / PIECES)
    starts = torch.searchsorted(work.double(), cuts.double()).clamp_(max=nodes)
    starts[0], starts[-1] = 0, nodes
    whole = torch.zeros(PIECES, 5, dtype=torch.int64)
    whole[:, 0], whole[:, 1], whole[:, 4] = starts[:-1], starts[1:], -1
    return Units(torch.cat([torch.tensor(rows, dtype=torch.int64).reshape(-1, 5), whole]), huge, cut)


def merge_parts(
    units: Units, out: Tensor, tops: Tensor, lse: Tensor, part_out: Tensor, part_tops: Tensor
) -> None:
    """Softmax over the edges of cut nodes: out (B, R, H, V), tops, lse (B, R, H) from those of parts."""
    for node, slots in units.cut.items():
        part, totals = part_tops[:, slots].unbind(2)
        top = part.amax(1, keepdim=True)
        powers = torch.where(totals == 0, totals, totals * (part - top).exp2())
        total = powers.sum(1, keepdim=True)
        tops[:, node] = torch.cat([top, total], 1)
        lse[:, node] = (top + total.log2())[:, 0] * math.log(2)
        out[:, node] = (powers / torch.where(total == 0, 1, total))[..., None].mul(part_out[:, slots]).sum(1)


def add_parts(units: Units, total: Tensor, parts: Tensor) -> None:
    """Gradients of cut nodes, (B, nodes, ...), from those of parts (B, slots, ...)."""
    for node, slots in units.cut.items():
        total[:, node] = parts[:, slots].sum(1)
