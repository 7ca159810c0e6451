"""Small cases by hand: atoms, sizes, token spaces, and the words of every error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attlas.pattern import (
    Elastic,
    Mean,
    Pattern,
    Tokens,
    causal,
    dense,
    distance,
    elastic,
    group,
    key,
    opaque,
    parse,
    per_head,
    per_kv_head,
    register,
    rounded,
    sink,
    span_rule,
    window,
)

FIVE = Tokens(5)


def rows_of(pattern: Pattern) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in pattern.mask(FIVE, FIVE).tolist()]


def test_atoms_by_hand() -> None:
    assert rows_of(causal()) == ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]
    assert rows_of(causal() & (window(2) | sink(1))) == ["x....", "xx...", "xxx..", "x.xx.", "x..xx"]
    assert rows_of(window(2)) == ["xx...", "xxx..", ".xxx.", "..xxx", "...xx"]
    assert rows_of(distance(1, 3)) == [".....", "x....", "xx...", ".xx..", "..xx."]
    assert rows_of(distance(None, 0)) == [".xxxx", "..xxx", "...xx", "....x", "....."]
    assert rows_of(key(1, 3)) == [".xx.."] * 5
    assert rows_of(group(2)) == ["xx...", "xx...", "..xx.", "..xx.", "....x"]
    assert rows_of(group(3, shift=1)) == ["xx...", "xx...", "..xxx", "..xxx", "..xxx"]
    assert rows_of(group(3, shift=-1)) == ["x....", ".xxx.", ".xxx.", ".xxx.", "....x"]
    assert rows_of(rounded(2, causal() & window(1))) == ["xx...", "xx...", "..xx.", "..xx.", "....x"]
    assert rows_of(dense() - window(0)) == ["xxxxx"] * 5
    assert rows_of(window(0) | sink(0)) == ["....."] * 5


def test_rounding_ignores_where_the_tokens_end() -> None:
    # Decoding must see what the full forward sees, although the last block is not complete yet.
    pattern = rounded(4, distance(2, 4)) & causal()
    whole = pattern.mask(Tokens(16), Tokens(16))
    for n in range(1, 16):
        assert torch.equal(pattern.mask(Tokens(1, start=n - 1), Tokens(n))[0], whole[n - 1, :n])


def test_elastic_sizes() -> None:
    assert elastic(-1024, 0.5).value(4096) == 1024
    assert elastic(0, 2).value(100) == 100  # never more than N
    assert elastic(-1024, 0.5, minimum=128).value(1000) == 128
    assert elastic(100, 0, multiple=64).value(1000) == 128
    assert elastic(0, 0.3, minimum=128, multiple=64, offset=-64).value(1024) == 320 - 64
    assert Mean(((3, elastic(0, 1)), (1, elastic(0, 0.5))), multiple=64).value(1024) == 896
    assert Mean(((1, elastic(0, 1)), (1, elastic(64, 0))), multiple=64).value(128) == 128  # a tie goes up
    assert Mean(((1, elastic(10, 0)),), multiple=64, minimum=128, offset=-64).value(4096) == 64


def test_binding() -> None:
    rule = span_rule(-1024, 0.5)
    assert rule.free == {"N"} and causal().bind(N=9) == causal()  # N may always be stated
    with pytest.raises(ValueError, match=r"bind: causal & .* has no free name 'M'; its free names: N$"):
        rule.bind(M=3)
    with pytest.raises(ValueError, match=r"bind: causal has no free name 'line'; its free names: none$"):
        causal().bind(line=torch.zeros(3))
    bound = rule.bind(N=4096)
    assert bound == causal() & (window(960) | sink(64)) and not bound.free
    assert rule.sink_window() == (64, Elastic(-1024, 0.5, minimum=128, multiple=64, offset=-64))
    # A stated total binds; a default one does not: a decoded token does not know the request's length.
    assert torch.equal(
        rule.mask(Tokens(3, total=200), Tokens(150)), rule.bind(N=200).mask(Tokens(3), Tokens(150))
    )
    with pytest.raises(ValueError, match=r"pattern depends on N: call pattern\.bind\(N=\.\.\.\)"):
        rule.mask(FIVE, FIVE)
    with pytest.raises(ValueError, match=r"pattern depends on N: call pattern\.bind\(N=\.\.\.\)"):
        rule.layout(FIVE, FIVE)
    with pytest.raises(ValueError, match=r"different totals for axis N: \[7, 9\]"):
        rule.mask(Tokens(5, total=7), Tokens(5, total=9))
    with pytest.raises(ValueError, match=r"window size must be >= 0, got -46 \(binding .* at N=100\)"):
        window(elastic(4, 0, offset=-50)).bind(N=100)
    with pytest.raises(ValueError, match=r"bind needs a length >= 0 for N, got -1"):
        rule.bind(N=-1)
    with pytest.raises(ValueError, match=r"size elastic\(1, 0\) depends on a length: call pattern\.bind"):
        window(elastic(1, 0)).pair(torch.tensor(1), torch.tensor(1), {"N": 2})


def test_errors_of_sizes() -> None:
    with pytest.raises(ValueError, match=r"window size must be >= 0, got -1"):
        window(-1)
    with pytest.raises(ValueError, match=r"sink size must be >= 0, got -2"):
        sink(-2)
    with pytest.raises(ValueError, match=r"key lo must be >= 0, got -1"):
        key(-1, 4)
    with pytest.raises(ValueError, match=r"group size must be >= 1, got 0"):
        group(0)
    with pytest.raises(ValueError, match=r"group size must be >= 1, got 0 \(binding .* at N=3\)"):
        group(elastic(0, 0.25)).bind(N=3)
    with pytest.raises(ValueError, match=r"distance needs lo <= hi, got 4 and 3"):
        distance(4, 3)
    with pytest.raises(ValueError, match=r"rounded block must be an integer >= 1, got 0"):
        rounded(0, causal())
    with pytest.raises(ValueError, match=r"elastic alpha must be a finite number, got nan"):
        elastic(float("nan"), 0)
    with pytest.raises(ValueError, match=r"elastic multiple must be >= 1, got 0"):
        elastic(1, 1, multiple=0)
    with pytest.raises(ValueError, match=r"elastic minimum must be >= 0, got -1"):
        elastic(1, 1, minimum=-1)
    with pytest.raises(ValueError, match=r"elastic axis must be a name such as 'N', got 'a b'"):
        elastic(1, 1, axis="a b")
    with pytest.raises(ValueError, match=r"layout block must be an integer >= 1, got 0"):
        causal().layout(FIVE, FIVE, block=0)
    with pytest.raises(ValueError, match=r"draw needs n >= 1 tokens and pixels >= 1, got 0 and 256"):
        causal().draw(0)
    with pytest.raises(ValueError, match=r"reach rows must be in 0\.\.4, got \(5,\)"):
        causal().reach(5, rows=(5,))


def test_heads() -> None:
    pattern = causal() & per_kv_head([window(2), window(3) | sink(1), dense()])
    assert (pattern.heads, pattern.per) == (3, "kv_head")
    assert pattern.expand(6, 3) == tuple(pattern.head(h) for h in (0, 0, 1, 1, 2, 2))
    assert causal().expand(4, 2) == (causal(),) * 4
    assert per_head([causal(), dense()]).expand(2, 1) == (causal(), dense())
    assert pattern.mask(FIVE, FIVE).shape == (3, 5, 5)
    assert pattern.sink_window() is None and pattern.head(1).sink_window() == (1, 3)
    with pytest.raises(ValueError, match=r"per_kv_head has 3 patterns but key has 4 heads"):
        pattern.expand(8, 4)
    with pytest.raises(ValueError, match=r"per_head has 2 patterns but query has 3 heads"):
        per_head([causal(), dense()]).expand(3, 3)
    with pytest.raises(ValueError, match=r"query heads must be a multiple of KV heads, got 9 and 2"):
        causal().expand(9, 2)
    with pytest.raises(ValueError, match=r"head must be in 0\.\.2, got 3"):
        pattern.head(3)
    with pytest.raises(ValueError, match=r"per_head has 1 patterns: choose one with pattern\.head\(h\)"):
        per_head([causal()]).pair(torch.tensor(0), torch.tensor(0), {"N": 1})
    with pytest.raises(
        ValueError, match=r"and cannot combine per_head with 1 patterns and per_head with 2 pat"
    ):
        per_head([causal()]) & per_head([causal(), dense()])
    with pytest.raises(
        ValueError, match=r"per_head cannot hold a pattern that has heads of its own \(head 0"
    ):
        per_head([per_head([causal()])])
    with pytest.raises(ValueError, match=r"per_head needs at least one pattern"):
        per_head([])


def test_opaque() -> None:
    even = opaque(lambda i, j: (i + j) % 2 == 0, "even")
    assert rows_of(even & causal()) == ["x....", ".x...", "x.x..", ".x.x.", "x.x.x"]
    assert str(even & causal()) == "opaque('even') & causal"
    with pytest.raises(ValueError, match=r"holds the opaque predicate 'even', which is Python code"):
        (causal() & even).to_dict()
    with pytest.raises(TypeError, match=r"opaque 'sum' must return a bool tensor, got torch\.int64"):
        opaque(lambda i, j: i + j, "sum").mask(FIVE, FIVE)


def test_token_spaces() -> None:
    assert Tokens(3, start=4).positions().tolist() == [4, 5, 6]
    assert Tokens(3, 4) == Tokens(3, 4) and hash(Tokens(3, 4)) == hash(Tokens(3, 4)) != hash(Tokens(3, 5))
    ring = Tokens.at(torch.tensor([8, 9, 2, 7]), valid=torch.tensor([True, True, False, True]))
    assert (ring.extent, ring.contiguous, ring.plain, ring.batch) == (10, False, False, None)
    seen = (causal() & window(3)).mask(Tokens(1, start=9), ring)
    assert seen.tolist() == [[True, True, False, True]]
    with pytest.raises(ValueError, match=r"tokens start must be >= 0, got -1"):
        Tokens(3, start=-1)
    with pytest.raises(ValueError, match=r"tokens index must have shape \(3,\) or \(batch, 3\), got \(2,\)"):
        Tokens(3, index=torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"tokens index must be an integer tensor, got torch\.float32"):
        Tokens.at(torch.ones(2))
    with pytest.raises(TypeError, match=r"tokens valid must be a bool tensor, got torch\.int64"):
        Tokens(2, valid=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"total must be >= start \+ length = 7, got 6"):
        Tokens(3, start=4, total=6)
    with pytest.raises(ValueError, match=r"either start or index, not both"):
        Tokens(1, start=2, index=torch.tensor([1]))


def test_batched_spaces() -> None:
    index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])
    valid = torch.tensor([[True] * 4, [False, True, True, True]])
    space = Tokens.at(index, valid=valid)
    pattern = causal() & window(2)
    mask = pattern.mask(space, space)
    assert mask.shape == (2, 4, 4) and space.batch == 2
    for row in range(2):
        assert torch.equal(mask[row], pattern.mask(*[Tokens.at(index[row], valid=valid[row])] * 2))
    both = per_head([pattern, causal()]).mask(space, space)
    assert both.shape == (2, 2, 4, 4) and torch.equal(both[:, 0], mask)
    assert pattern.layout(space, space).tiles[0].parts[0].kind == "partial"
    with pytest.raises(ValueError, match=r"without a batch axis: call once per batch row"):
        pattern.count(space, space)
    with pytest.raises(ValueError, match=r"index and valid have different batch sizes: \[2, 3\]"):
        Tokens.at(index, valid=torch.ones(3, 4, dtype=torch.bool)).batch  # noqa: B018


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        (causal(), (0, None)),
        (causal() & dense(), (0, None)),
        (causal() & window(3), (0, 3)),
        (causal() & sink(3), (3, 0)),
        (causal() & (sink(2) | window(3)), (2, 3)),
        ((window(3) | sink(2) | sink(5)) & causal(), (5, 3)),
        (causal() & window(3) | causal() & sink(2), (2, 3)),
        (distance(0, 4), (0, 4)),
        (distance(0), (0, None)),
        (distance(0, 4) | causal() & sink(1), (1, 4)),
        (distance(1, 4), None),
        (window(3) | sink(2), None),
        (causal() & window(3) & window(2), None),
        (causal() & (window(3) | key(4, 5)), None),
        (causal() & window(elastic(0, 1)), (0, elastic(0, 1))),
        (causal() & (window(elastic(0, 1)) | window(3)), None),
    ],
)
def test_sink_window_form(pattern: Pattern, form: object) -> None:
    assert pattern.sink_window() == form


def test_density_counts_causal_or_all_pairs() -> None:
    assert (causal() & window(2)).density(FIVE, FIVE) == 9 / 15
    assert window(2).density(FIVE, FIVE) == 13 / 25
    assert per_head([causal(), causal() & window(1)]).density(FIVE, FIVE) == (15 + 5) / 30
    assert causal().density(Tokens(0), FIVE) == 0


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match=r"a pattern named 'causal' is already registered"):
        register("causal")(type("Again", (Pattern,), {}))


def test_a_new_atom_is_one_class() -> None:
    from dataclasses import dataclass

    from attlas.pattern import REGISTRY
    from attlas.pattern import intervals as sets

    @register("test_every_third")
    @dataclass(frozen=True)
    class EveryThird(Pattern):
        shift: int

        def pair(self, i, j, sizes):
            return (j + self.shift + 0 * i) % 3 == 0

        def intervals(self, rows, sizes, head=0):
            keys = np.arange(sizes["N"])
            return sets.from_bool(np.broadcast_to((keys + self.shift) % 3 == 0, (len(rows), len(keys))))

    try:
        pattern = causal() & EveryThird(1)
        assert parse(str(pattern)) == pattern and Pattern.from_dict(pattern.to_dict()) == pattern
        assert pattern.count(FIVE, FIVE) == pattern.mask(FIVE, FIVE).sum()
        assert pattern.layout(FIVE, FIVE).pairs == pattern.count(FIVE, FIVE)
    finally:
        del REGISTRY["test_every_third"]
