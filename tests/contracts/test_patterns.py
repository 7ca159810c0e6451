"""Every pattern of the table: mask = layout = edges = counts, at lengths that no block divides."""

import pytest
import torch

from attlas.pattern import Tokens
from contracts.table import HEADS, KV_HEADS, LENGTHS, PATTERNS

NAMES = [name for name, pattern in PATTERNS.items() if pattern is not None]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_mask_layout_edges_and_counts_agree(name: str, length: int) -> None:
    pattern = PATTERNS[name]
    assert pattern is not None
    space = Tokens(length)
    for one in set(pattern.bind(N=length).expand(HEADS, KV_HEADS)):
        mask = one.mask(space, space)
        row_ptr, col = one.edges(space, space)
        assert torch.equal(torch.from_numpy(row_ptr).diff(), mask.sum(1))
        assert torch.equal(torch.from_numpy(col), mask.nonzero()[:, 1])
        assert one.count(space, space) == int(mask.sum())
        layout = one.layout(space, space, block=32)
        painted = torch.zeros(length, length, dtype=torch.int64)
        for tile in layout.tiles:
            for part in tile.parts:
                box = painted[tile.q0 : tile.q1, part.k0 : part.k1]
                if part.kind == "full":
                    box += 1
                elif part.kind == "causal":
                    box += torch.ones_like(box).tril()
                else:
                    box += one.tile(space, space, tile.q0, tile.q1, part.k0, part.k1)
        assert torch.equal(painted, mask.long())
        assert int(mask.sum()) <= layout.pairs <= layout.computed
        # An arbitrary predicate has no analytic layout: its counts are bounds, and it says so.
        assert layout.exact == (not one.opaque_parts) and layout.exact <= (layout.pairs == int(mask.sum()))
