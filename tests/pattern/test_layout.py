"""The layouts that speed depends on, tile by tile."""

from __future__ import annotations

import pytest

from attlas.pattern import (
    Pattern,
    Tokens,
    causal,
    clear_layouts,
    dense,
    distance,
    rounded,
    sink,
    span_rule,
    window,
)

Tiles = list[tuple[int, int, list[tuple[int, int, str]]]]


def tiles_of(pattern: Pattern, q_at: Tokens, k_at: Tokens | None = None, block: int = 128) -> Tiles:
    layout = pattern.layout(q_at, q_at if k_at is None else k_at, block=block)
    return [(t.q0, t.q1, [(p.k0, p.k1, p.kind) for p in t.parts]) for t in layout.tiles]


def test_a_causal_run_is_one_tile() -> None:
    assert tiles_of(causal(), Tokens(100_000)) == [(0, 100_000, [(0, 100_000, "causal")])]
    assert tiles_of(dense(), Tokens(1000)) == [(0, 1000, [(0, 1000, "full")])]
    # A span that covers the request is dense causal, also as a rule of a plan.
    assert tiles_of(span_rule(0, 1).bind(N=3000), Tokens(3000)) == [(0, 3000, [(0, 3000, "causal")])]


def test_a_later_chunk_is_full_and_causal() -> None:
    chunk, keys = Tokens(300, start=500), Tokens(800)
    assert tiles_of(causal(), chunk, keys) == [(0, 300, [(0, 500, "full"), (500, 800, "causal")])]
    # Keys that start late (a shard): rows before them see nothing; key rows count from the shard's first.
    assert tiles_of(causal(), Tokens(400), Tokens(200, start=200)) == [
        (0, 200, []),
        (200, 400, [(0, 200, "causal")]),
    ]
    assert causal().layout(Tokens(400), Tokens(200, start=200)).empty_rows == ((0, 200),)


def test_an_empty_first_row_does_not_spoil_the_tile() -> None:
    assert tiles_of(distance(1), Tokens(500)) == [(0, 1, []), (1, 500, [(0, 499, "causal")])]


def test_a_decoded_token_reads_its_sink_and_window() -> None:
    pattern = causal() & (window(256) | sink(4))
    assert tiles_of(pattern, Tokens(1, start=999), Tokens(1000)) == [
        (0, 1, [(0, 4, "full"), (744, 1000, "full")])
    ]


def test_window_and_sink() -> None:
    tiles = tiles_of(causal() & (window(256) | sink(4)), Tokens(1000))
    # Until the window leaves the sink, everything before a row is seen.
    assert tiles[0] == (0, 260, [(0, 260, "causal")])
    assert tiles[1] == (
        260,
        388,
        [(0, 4, "full"), (5, 132, "partial"), (132, 260, "full"), (260, 388, "causal")],
    )
    assert tiles[2] == (
        388,
        516,
        [(0, 4, "full"), (133, 260, "partial"), (260, 388, "full"), (388, 516, "causal")],
    )
    assert tiles[-1] == (
        900,
        1000,
        [(0, 4, "full"), (645, 744, "partial"), (744, 900, "full"), (900, 1000, "causal")],
    )


def test_two_sided_window() -> None:
    tiles = tiles_of(window(256), Tokens(1000))
    assert tiles[0] == (0, 256, [(0, 255, "full"), (255, 511, "causal")])
    assert tiles[1] == (256, 384, [(1, 128, "partial"), (128, 511, "full"), (511, 639, "causal")])


def test_rounded_blocks_have_nothing_partial() -> None:
    pattern = rounded(64, causal() & (window(256) | sink(4))) & causal()
    layout = pattern.layout(Tokens(1000), Tokens(1000), block=64)
    assert layout.computed == layout.pairs
    assert {p.kind for t in layout.tiles for p in t.parts} == {"full", "causal"}


def test_a_smaller_block_computes_less() -> None:
    pattern, space = causal() & window(64), Tokens(2000)
    waste = [
        pattern.layout(space, space, block=b).computed / pattern.count(space, space)
        for b in (16, 32, 64, 128)
    ]
    assert waste == sorted(waste) and waste[0] < 1.13 and waste[-1] > 1.9


def test_long_contexts_are_laid_out_row_by_row_not_pair_by_pair() -> None:
    space = Tokens(131_072)
    pattern = causal() & (window(4096) | sink(64) | distance(20_000, 20_100))
    layout = pattern.layout(space, space, block=256)
    assert layout.pairs == pattern.count(space, space)
    # 1 + r keys until the window leaves the sink; window + sink + 100 at the end.
    assert pattern.row_counts(space, space)[[0, 4159, 131_071]].tolist() == [1, 4160, 4260]
    assert layout.computed < 1.15 * layout.pairs
    assert len(layout.tiles) < 600


def test_layouts_are_kept() -> None:
    clear_layouts()
    pattern = causal() & window(9)
    one = pattern.layout(Tokens(50), Tokens(50))
    assert (causal() & window(9)).layout(Tokens(50), Tokens(50)) is one
    assert pattern.layout(Tokens(50), Tokens(50), block=64) is not one
    assert span_rule(0, 1).bind(N=50).layout(Tokens(50), Tokens(50)) is not one


def test_no_rows_and_no_keys() -> None:
    assert tiles_of(causal(), Tokens(0), Tokens(5)) == []
    assert tiles_of(causal(), Tokens(5), Tokens(0)) == [(0, 5, [])]
    assert causal().layout(Tokens(5), Tokens(0)).empty_rows == ((0, 5),)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1000])
def test_every_length_of_a_rule(n: int) -> None:
    layout = span_rule(0, 0.25).bind(N=n).layout(Tokens(n), Tokens(n), block=32)
    size = span_rule(0, 0.25).bind(N=n).sink_window()
    assert size is not None
    kept = size[0] + size[1]  # type: ignore[operator]
    assert layout.pairs == sum(min(row + 1, kept) for row in range(n))
