"""`attend` against formulas written out, its choice of backend, its errors, and its companions."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas import attend as room
from attlas.attend import (
    BACKENDS,
    Identity,
    KVGroup,
    KVView,
    Mean,
    Ratio,
    Sigmoid,
    Softmax,
    attend,
    counting,
    explain,
    lssar,
    merge,
    plan,
)
from attlas.pattern import Tokens, causal, elastic, per_head, sink, window
from attlas.score import Cosine, DistanceBias, Dot, Edge, EdgeBias, PairResult, Score

NATIVE = ("reference", "rows")


def qkv(
    length: int = 50, heads: int = 4, kv_heads: int = 2, width: int = 8, **kind: Any
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, heads, length, width), (2, kv_heads, length, width), (2, kv_heads, length, width))
    query, key, value = (torch.randn(*shape, generator=generator, **kind) for shape in shapes)
    return query, key, value


@pytest.mark.parametrize("backend", NATIVE)
def test_written_out(backend: str) -> None:
    query, key, value = qkv(dtype=torch.float64)
    mask = torch.ones(50, 50, dtype=torch.bool).tril() & ~torch.ones(50, 50, dtype=torch.bool).tril(-9)
    mask[:, :2] = torch.ones(50, 50, dtype=torch.bool).tril()[:, :2]
    logits = query @ key.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)
    weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
    out, state = attend(
        query, key, value, pattern=causal() & (window(9) | sink(2)), backend=backend, return_state=True
    )
    torch.testing.assert_close(out, weights @ value.repeat_interleave(2, 1))
    torch.testing.assert_close(state.lse, logits.masked_fill(~mask, -math.inf).logsumexp(-1))


def test_room_is_the_function() -> None:
    query, key, value = qkv()
    assert torch.equal(at.attend(query, key, value), attend(query, key, value))
    assert at.attend.plan is plan and at.attend.merge is merge and room.attend is attend
    code = "import sys, attlas.attend; print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "sdpa"),
        ({"pattern": causal()}, "sdpa"),
        ({"pattern": causal(), "score": Cosine()}, "sdpa"),
        ({"pattern": causal() & (window(20) | sink(4))}, "block"),
        ({"pattern": window(20), "score": Dot() + DistanceBias(torch.ones(4))}, "block"),
        ({"pattern": causal() & window(20), "normaliser": Softmax(0.5)}, "block"),
        ({"pattern": causal(), "return_state": True}, "block"),
        ({"pattern": causal() & window(20), "normaliser": Sigmoid()}, "block"),
        ({"pattern": causal(), **lssar(8)}, "block"),
        ({"pattern": causal(), "normaliser": Ratio("relu")}, "rows"),
        ({"pattern": causal(), "dropout": 0.1}, "rows"),
        ({"pattern": causal(), "k_at": Tokens.at(torch.arange(1024).flip(0))}, "rows"),
        ({"pattern": causal(), "k_at": Tokens(1024, valid=torch.arange(1024) > 5)}, "rows"),
        ({"score": Dot() + EdgeBias(torch.randn(1024, 1024))}, "sdpa"),
        ({"pattern": causal(), "score": Dot() + EdgeBias(torch.randn(1024, 1024))}, "rows"),
        ({"score": Dot() + EdgeBias(torch.randn(1024, 1024).requires_grad_())}, "rows"),
        ({"aggregate": Mean()}, "rows"),
    ],
)
def test_automatic_choice(options: dict[str, Any], wanted: str) -> None:
    tensors = qkv(1024)
    text = explain(*tensors, **options)
    assert f"backend     {wanted}: " in text
    assert ("fallback" in text) == (wanted == "rows")
    with counting() as outer, counting() as heard:
        attend(*tensors, **options)
    assert len(heard) == len(outer) == (1 if wanted == "rows" else 0)
    if wanted == "rows":
        (record,) = heard.records()
        assert (
            record["what"] == "attend ran on rows" and "sdpa: " in str(record["why"]) and record["count"] == 1
        )
        with pytest.raises(
            ValueError, match="strict=True forbids a fallback, but the generic row-block backend"
        ):
            attend(*tensors, strict=True, **options)


def test_explain_tells_the_exact_pairs_of_a_pattern_whatever_the_backend_computes() -> None:
    # Rows 0..31 see 1..32 keys, the other 224 see 32: 528 + 224 * 32 in each of 4 heads.
    exact, whole = 4 * (528 + 224 * 32), 4 * 256 * 256
    for backend in ("block", "rows", "sdpa"):
        text = explain(*qkv(256), pattern=causal() & window(32), backend=backend)
        assert f"pairs       {exact} of the pattern, a density of {exact / whole:.1%}; " in text
    assert f"{whole} computed, {exact / whole:.0%} of them useful" in text  # sdpa masks the square
    assert f"pairs       {whole} of the pattern, a density of 100.0%; {whole} computed" in explain(*qkv(256))


def test_a_named_backend_refuses_by_name() -> None:
    with pytest.raises(
        ValueError, match="backend 'sdpa' cannot run this request: it has no gate; use backend='auto'"
    ):
        attend(*qkv(), gate=torch.ones(1, 1, 50, 1), backend="sdpa")
    with pytest.raises(
        ValueError, match="backend must be 'auto' or one of reference, sdpa, flex, rows, block, decode"
    ):
        attend(*qkv(), backend="fast")


def test_plan_decides_once() -> None:
    query, key, value = qkv()
    pattern = causal() & window(9)
    step = plan(query, key, value, pattern=pattern, backend="rows")
    later = qkv(33)
    torch.testing.assert_close(step(*later), attend(*later, pattern=pattern, backend="reference"))
    at_end = Tokens(1, start=32)
    one = step(later[0][:, :, -1:], later[1], later[2], q_at=at_end)
    torch.testing.assert_close(one, step(*later)[:, :, -1:])


@pytest.mark.parametrize("backend", ["reference", "rows", "block", "sdpa"])
def test_decoding_is_a_row_of_the_whole(backend: str) -> None:
    query, key, value = qkv(dtype=torch.float64)
    pattern = causal() & (window(elastic(4, 0.1)) | sink(2))
    spaces = {"q_at": Tokens(50, total=50), "k_at": Tokens(50, total=50)}
    whole = attend(query, key, value, pattern=pattern, backend=backend, **spaces)
    for row in (0, 17, 49):
        here = {"q_at": Tokens(1, start=row, total=50), "k_at": Tokens(row + 1, total=50)}
        one = attend(
            query[:, :, row : row + 1],
            key[:, :, : row + 1],
            value[:, :, : row + 1],
            pattern=pattern,
            backend=backend,
            **here,
        )
        torch.testing.assert_close(one, whole[:, :, row : row + 1])


@pytest.mark.parametrize("backend", [*NATIVE, "sdpa"])
def test_batched_positions_and_padding(backend: str) -> None:
    query, key, value = qkv(dtype=torch.float64)
    pads = (0, 13)
    valid = torch.stack([torch.arange(50) >= pad for pad in pads])
    index = torch.stack([(torch.arange(50) - pad).clamp_min(0) for pad in pads])
    space = Tokens.at(index, valid=valid)
    pattern = causal() & (window(7) | sink(3))
    dirty = (tensor.masked_fill(~valid[:, None, :, None], math.nan) for tensor in (key, value))
    padded = attend(query, *dirty, pattern=pattern, q_at=space, k_at=space, backend=backend)
    for row, pad in enumerate(pads):
        part = (slice(row, row + 1), slice(None), slice(pad, None))
        alone = attend(query[part], key[part], value[part], pattern=pattern, backend=backend)
        torch.testing.assert_close(padded[part], alone)
        assert (padded[row, :, :pad] == 0).all()


def test_views_equal_tensors() -> None:
    query, key, value = qkv(dtype=torch.float64)
    pattern = per_head([causal() & window(7), causal(), causal() & (window(30) | sink(4)), causal()])
    kept = torch.cat((torch.arange(4), torch.arange(20, 50), torch.tensor([0, 0])))
    used = torch.arange(36) < 34
    groups = (
        KVGroup(
            (1,),
            key[:, 1:][:, :, kept].masked_fill(~used[:, None], math.nan),
            value[:, 1:][:, :, kept],
            kept,
            used,
        ),
        KVGroup((0,), key[:, :1], value[:, :1], torch.arange(50)),
    )
    space = Tokens(1, start=49)
    last = query[:, :, -1:]
    wanted = attend(query, key, value, pattern=pattern & ~(sink(20) & window(0)), backend="reference")[
        :, :, -1:
    ]
    # Head 3 is causal over what its KV head has kept.
    alone = attend(
        last[:, 3:], key[:, 1:][:, :, kept[:34]], value[:, 1:][:, :, kept[:34]], backend="reference"
    )
    for backend in NATIVE:
        got = attend(last, KVView(groups), pattern=pattern, q_at=space, backend=backend)
        torch.testing.assert_close(got[:, :3], wanted[:, :3])
        torch.testing.assert_close(got[:, 3:], alone)


def test_automatic_choice_for_views() -> None:
    query, key, value = qkv()
    view = KVView.of(key, value)
    assert "backend     decode: " in explain(query[:, :, -1:], view)
    assert "backend     rows: " in explain(query[:, :, -1:], view, normaliser=Identity())
    torch.testing.assert_close(
        attend(query[:, :, -1:], view), attend(query, key, value)[:, :, -1:], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("backend", ["reference", "rows", "sdpa", "block"])
def test_one_attention_for_many_values(backend: str) -> None:
    query, key, value = qkv(dtype=torch.float64)
    leaves = [
        query[:1].clone().requires_grad_(),
        key[:1].clone().requires_grad_(),
        value.clone().requires_grad_(),
    ]
    out = attend(*leaves, pattern=causal(), backend=backend)
    rows = [
        attend(leaves[0], leaves[1], leaves[2][b : b + 1], pattern=causal(), backend="reference")
        for b in range(2)
    ]
    torch.testing.assert_close(out, torch.cat(rows))
    found = torch.autograd.grad(out.sin().sum(), leaves)
    wanted = torch.autograd.grad(torch.cat(rows).sin().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", NATIVE)
def test_no_keys_at_all(backend: str) -> None:
    query, key, value = qkv()
    out, state = attend(query, key[:, :, :0], value[:, :, :0], backend=backend, return_state=True)
    assert out.shape == query.shape and (out == 0).all() and (state.lse == -math.inf).all()
    assert attend(query[:, :, :0], key, value, backend="rows").shape == (2, 4, 0, 8)


class _Difference(Score):
    """Returns k_j - q_i as the edge's new feature and carries v_j + that."""

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult((query * key).sum(-1), value + (key - query), key - query)


@pytest.mark.parametrize("backend", NATIVE)
def test_edge_states_come_in_edge_order(backend: str) -> None:
    query, key, value = qkv(20, 2, 2, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    pattern = causal() & (window(4) | sink(1))
    out, edge = attend(*leaves, pattern=pattern, score=_Difference(), return_edge=True, backend=backend)
    row_ptr, col = pattern.edges(Tokens(20), Tokens(20))
    rows = torch.arange(20).repeat_interleave(torch.from_numpy(row_ptr).diff())
    wanted = key[:, :, torch.from_numpy(col)] - query[:, :, rows]
    torch.testing.assert_close(edge, wanted)
    found = torch.autograd.grad(edge.sin().sum() + out.sum(), leaves)
    other = attend(*leaves, pattern=pattern, score=_Difference(), backend="reference")
    expected = torch.autograd.grad(wanted.sin().sum() + other.sum(), leaves)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_second_derivatives() -> None:
    leaves = [tensor.requires_grad_() for tensor in qkv(9, dtype=torch.float64)]
    out = attend(*leaves, pattern=causal(), backend="rows")
    (first,) = torch.autograd.grad(out.sin().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="'rows' is differentiable once.*use backend='reference'"):
        torch.autograd.grad(first.sum(), leaves[1])
    exact = attend(*leaves, pattern=causal(), backend="reference")
    (again,) = torch.autograd.grad(exact.sin().sum(), leaves[0], create_graph=True)
    torch.testing.assert_close(first, again)
    assert torch.autograd.grad(again.sum(), leaves[1])[0].isfinite().all()


def test_registry_is_complete() -> None:
    for name, module in BACKENDS.items():
        assert isinstance(module, room.backends.Backend) and name == module.NAME
