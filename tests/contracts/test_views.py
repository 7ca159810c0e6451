"""`decode` equals the reference on every kind of view: ragged, with absent slots, positions per row."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attlas.attend import KVGroup, KVView, attend
from attlas.pattern import Pattern, Tokens
from contracts.table import BATCH, GROUPS, HEADS, PATTERNS, VALUE_WIDTHS, WIDTH, pattern_at
from contracts.test_operators import TOLERANCE

PAST = 90  # tokens before the first query
KINDS = ("one group", "ragged", "absent slots", "positions per row")
ROWS = (1, 5, 63)  # a token, a few, a chunk: the three paths of the backend


@dataclass(frozen=True)
class ViewCase:
    """One line of the table: a pattern and a kind of view, the other columns in turn."""

    pattern: str
    kind: str
    rows: int
    group: int
    value_width: int

    def __str__(self) -> str:
        return f"{self.pattern}-{self.kind}-{self.rows}-{self.group}-{self.value_width}".replace(" ", "_")

    @property
    def total(self) -> int:
        return PAST + self.rows

    def bound(self) -> Pattern | None:
        return pattern_at(self.pattern, self.total)

    def build(self, dtype: torch.dtype) -> tuple[Tensor, KVView, Tokens]:
        """(query, view, where the queries stand)."""
        generator = torch.Generator().manual_seed(self.rows)
        heads = list(range(HEADS // self.group))

        def draw(count: int, tokens: int, width: int) -> Tensor:
            shape = (BATCH, count, tokens, width)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        def of(ids: list[int], positions: Tensor, valid: Tensor | None = None) -> KVGroup:
            size = positions.shape[-1]
            key, value = (draw(len(ids), size, width) for width in (WIDTH, self.value_width))
            if valid is not None:  # what lies behind absent slots must not matter
                key, value = (t.masked_fill(~valid[:, None, :, None], math.nan) for t in (key, value))
            return KVGroup(tuple(ids), key, value, positions, valid)

        every = torch.arange(self.total)
        kept = torch.cat((every[:4], every[self.total // 2 :]))
        q_at = Tokens(self.rows, start=PAST)
        if self.kind == "ragged":
            groups = [of(heads[-1:], kept), *([of(heads[:-1], every)] if len(heads) > 1 else [])]
        elif self.kind == "absent slots":
            valid = torch.rand(BATCH, len(kept), generator=generator) < 0.7
            valid[0] = False
            groups = [of(heads, kept, valid)]
        elif self.kind == "positions per row":
            shift = torch.arange(BATCH)[:, None]
            groups = [of(heads, kept - shift.flip(0) * (kept > 9))]
            q_at = Tokens.at(every[None, PAST:] - shift.flip(0))
        else:
            groups = [of(heads, every)]
        return draw(HEADS, self.rows, WIDTH), KVView(tuple(groups)), q_at


def table() -> list[ViewCase]:
    others = itertools.cycle(itertools.product(ROWS, GROUPS, VALUE_WIDTHS))
    return [
        # A pattern per KV head fits one number of KV heads.
        ViewCase(pattern, kind, rows, 2 if pattern == "per KV head" else group, width)
        for pattern, kind in itertools.product(PATTERNS, KINDS)
        for rows, group, width in itertools.islice(others, 2)
    ]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", table(), ids=str)
@torch.no_grad()
def test_decode_equals_reference(case: ViewCase, dtype: torch.dtype) -> None:
    query, view, q_at = case.build(dtype)
    exact = tuple(
        KVGroup(g.heads, g.key.double(), g.value.double(), g.positions, g.valid) for g in view.groups
    )
    options = {"pattern": case.bound(), "q_at": q_at, "return_state": True}
    got, state = attend(query, view, backend="decode", **options)
    wanted, other = attend(query.double(), KVView(exact), backend="reference", **options)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)
    some = other.lse > -math.inf
    assert torch.equal(state.lse > -math.inf, some) and (got[~some] == 0).all()
    torch.testing.assert_close(state.lse[some].double(), other.lse[some], rtol=rtol, atol=atol)


def test_the_table_meets_every_row_of_every_column() -> None:
    met = table()
    for kind in KINDS:
        mine = [case for case in met if case.kind == kind]
        assert {case.pattern for case in mine} == set(PATTERNS)
        assert {case.rows for case in mine} == set(ROWS) and {case.group for case in mine} == set(GROUPS)
        assert {case.value_width for case in mine} == set(VALUE_WIDTHS)
