"""Any composition along the edges of a graph: equal to the reference, to loops over edges, and to itself."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attlas as at
from attlas.attend import (
    L1,
    Max,
    SenderSoftmax,
    Sigmoid,
    Softmax,
    Sum,
    Threshold,
    counting,
    edge_rows,
    explain,
    plan,
)
from attlas.graph import Graph, coalesce, keep_edges
from attlas.pattern import window
from attlas.score import Cosine, Dot, Edge, EdgeBias, PairResult, Score
from contracts.normalisers import HEADS, NORMALISERS
from contracts.table import AGGREGATES, EXTRAS, SCORES, WIDTH, Inputs
from graph.test_edge_tensors import Features
from graph.test_graph import drawn

PLAIN = {"score": Cosine(2.0)}
"""A request that no compiled form runs."""


@pytest.fixture(autouse=True)
def _many_rectangles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_rows, "EDGES", (8, 16))


def small(nodes: int, edges: int, seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes, (2, edges), generator=generator)
    return Graph.from_edge_index(ends, num_nodes=nodes)


def answers(leaves: list[Tensor], backend: str, **options: Any) -> list[Tensor]:
    out = at.attend(*leaves[:3], backend=backend, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    found = torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True)
    return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))]


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(st.integers(2, 14), st.integers(0, 40), st.integers(0, 10**6)),
    st.sampled_from(sorted(SCORES)),
    st.sampled_from(sorted(NORMALISERS)),
    st.sampled_from(sorted(AGGREGATES)),
    st.sampled_from(sorted(EXTRAS)),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_edges_equal_the_reference(
    size: tuple[int, int, int], score: str, normaliser: str, aggregate: str, extra: str, group: int, own: bool
) -> None:
    graph, _ = coalesce(small(*size))
    found = []
    for backend in ("edge", "reference"):  # leaves of their own: some scores are made of them
        inputs = Inputs(size[0], torch.float64, torch.Generator().manual_seed(size[2]), [])
        for heads, width in ((HEADS, WIDTH), (HEADS // group, WIDTH), (HEADS // group, 5)):
            inputs.leaf(2, heads, size[0], width)
        scored = SCORES[score](inputs)
        more = {} if (normaliser, extra) == ("sender softmax", "extra") else EXTRAS[extra](inputs)
        options = {
            "pattern": graph,
            "score": scored + Bias(inputs.leaf(graph.edges, HEADS)) if own else scored,
            "normaliser": NORMALISERS[normaliser](inputs),
            "aggregate": AGGREGATES[aggregate],
            **more,
        }
        found.append(answers(inputs.leaves, backend, **options))
    factor = options["normaliser"].amplification * (size[0] if normaliser in ("identity", "sigmoid") else 1)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7 * factor, atol=1e-7 * factor)


class Bias(Score):
    """logit = a number per edge and head."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        return PairResult(tensors[0], value)


def leaves(nodes: int, heads: int = 2, width: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, nodes, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def test_equal_edges_and_loops_are_messages_under_any_normaliser() -> None:
    graph = small(7, 60, 3)
    assert graph.has_equal_edges
    q, k, v = leaves(7)
    features = torch.randn(60, 2, dtype=torch.float64, requires_grad=True)
    logits = (q[0, :, graph.receiver] * k[0, :, graph.sender]).sum(-1) + features.T  # (H, E)
    weights = {
        "softmax": (Softmax() >> Threshold(0.0), lambda x: by_end(x, graph.receiver, 7)),
        "senders": (SenderSoftmax(), lambda x: by_end(x, graph.sender, 7)),
        "sigmoid": (Sigmoid(bias=0.5), lambda x: (x + 0.5).sigmoid()),
    }
    for normaliser, definition in weights.values():
        out = at.attend(q, k, v, pattern=graph, score=Features(features), normaliser=normaliser)
        wanted = torch.zeros_like(out[0]).index_add(
            1, graph.receiver, definition(logits)[..., None] * v[0, :, graph.sender]
        )
        torch.testing.assert_close(out[0], wanted)
        for one, other in zip(
            torch.autograd.grad(out.square().sum(), (q, k, v, features), retain_graph=True),
            torch.autograd.grad(wanted.square().sum(), (q, k, v, features), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


def by_end(logits: Tensor, end: Tensor, nodes: int) -> Tensor:
    """Softmax of (H, E) over the edges of each node, one by one."""
    weights = torch.zeros_like(logits)
    for node in range(nodes):
        mine = (end == node).nonzero().squeeze(1)
        weights = weights.index_copy(1, mine, logits[:, mine].softmax(-1))
    return weights


def test_edge_states_stand_in_the_order_of_the_graph() -> None:
    graph = small(6, 30, 1)
    q, k, v = leaves(6)
    features = torch.randn(30, 2, 3, dtype=torch.float64, requires_grad=True)
    score = Features(features)
    out, state, edges = at.attend(
        q, k, v, pattern=graph, score=score, return_edge=True, return_state=True, backend="edge"
    )
    torch.testing.assert_close(edges, 2 * features.transpose(0, 1)[None])
    plain = at.attend(q, k, v, pattern=graph, score=score)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    weight = torch.randn_like(edges)
    (grad,) = torch.autograd.grad((edges * weight).sum(), features)
    torch.testing.assert_close(grad, 2 * weight[0].transpose(0, 1))
    assert state.lse.shape == (1, 2, 6)
    single, _ = coalesce(graph)
    few = features.detach()[: single.edges]
    for backend in ("edge", "reference"):
        mixed = keep_edges(single, torch.arange(single.edges - 1, -1, -1))
        _, found = at.attend(q, k, v, pattern=mixed, score=Features(few), return_edge=True, backend=backend)
        torch.testing.assert_close(found, 2 * few.transpose(0, 1)[None])


def test_gradients_by_differences_with_states_and_edge_tensors() -> None:
    graph = small(5, 12, 2)
    q, k, v = leaves(5, width=3)
    features = torch.randn(12, 2, 2, dtype=torch.float64, requires_grad=True)
    seen = graph.in_degree > 0

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, state, edges = at.attend(
            *tensors[:3],
            pattern=graph,
            score=Features(tensors[3]),
            normaliser=L1("softplus"),
            return_state=True,
            return_edge=True,
        )
        return out, state.total[:, :, seen], edges

    given = (q, k, v, features)
    assert torch.autograd.gradcheck(outputs, given, eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
    with pytest.raises(RuntimeError, match=r"attend: the backend 'edge' is differentiable once"):
        out = outputs(q, k, v, features)[0]
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        torch.autograd.grad(first.sum(), q)


def test_nothing_changes_with_threads_or_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_rows, "EDGES", (512, 2048))
    graph = drawn(500, 8000)
    inputs = [x.detach().float().requires_grad_() for x in leaves(500, width=8)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(answers(inputs, "edge", pattern=graph, aggregate=Max(), **PLAIN))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_absent_edges_and_nodes_without_edges() -> None:
    graph = Graph.from_edge_index([[0, 1, 0, 2], [1, 1, 2, 2]], num_nodes=4)
    q, k, v = leaves(4)
    away = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf], dtype=torch.float64)
    out, state = at.attend(
        q, k, v, pattern=graph, score=Cosine() + Features(away), aggregate=Sum(), return_state=True
    )
    torch.testing.assert_close(out[:, :, 1], v[:, :, 0])
    assert not out[:, :, [0, 2, 3]].any() and bool((state.lse[:, :, [0, 2, 3]] == -torch.inf).all())
    for grad in torch.autograd.grad(out.square().sum(), (q, k, v)):
        assert not grad.isnan().any() and not grad[:, :, 3].any()
    nothing = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=4)
    assert not at.attend(q, k, v, pattern=nothing, **PLAIN).any()


def test_what_is_no_number_stays_where_its_edges_lead() -> None:
    graph = Graph.from_edge_index([[0, 1, 2, 2, 1], [1, 2, 0, 3, 3]], num_nodes=5)
    q, k, v = (x.detach() for x in leaves(5))
    k[0, :, 0], v[0, :, 0] = torch.nan, torch.nan
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = at.attend(q, k, v, pattern=graph, backend="edge", **PLAIN)
    assert out[:, :, 1].isnan().all() and not out[:, :, [0, 2, 3, 4]].isnan().any()
    grads = torch.autograd.grad(out[:, :, [0, 2, 3, 4]].sum(), (q, k, v))
    assert not any(grad[:, :, [1, 2, 3, 4]].isnan().any() for grad in grads[1:])


def test_equal_edges_are_dropped_one_by_one() -> None:
    graph = Graph.from_edge_index([[0] * 400, [0] * 400], num_nodes=1)
    one = torch.ones(1, 1, 1, 1)
    out = at.attend(one, one, one, pattern=graph, dropout=0.5, seed=1, **PLAIN)
    assert 0.7 < float(out) < 1.3 and float(out) != 1.0


def test_a_large_graph_needs_no_more_than_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs of 200,000 nodes would be 40 thousand million."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(0, 200_000, (2, 600_000), generator=generator)
    ends[1, :100_000] = 7  # and one node that hears from many
    graph = Graph.from_edge_index(ends, num_nodes=200_000)
    monkeypatch.setattr(edge_rows, "EDGES", (2**10, 2**16))
    q, k, v = torch.randn(3, 1, 1, 200_000, 4, generator=generator).requires_grad_()
    assert "rows of equal numbers of edges" in explain(q, k, v, pattern=graph, normaliser=Sigmoid(bias=0.0))
    out = at.attend(q, k, v, pattern=graph, normaliser=Sigmoid(bias=0.0))
    torch.autograd.grad(out.sum(), q)
    logits = (q * 0.5)[0, 0, 7] @ k[0, 0, ends[0, ends[1] == 7]].T
    wanted = logits.sigmoid() @ v[0, 0, ends[0, ends[1] == 7]]
    torch.testing.assert_close(out[0, 0, 7], wanted, rtol=1e-3, atol=1e-2)


def test_it_is_told_which_form_runs() -> None:
    graph = drawn(100, 400)
    q, k, v = (x.detach().float() for x in leaves(100))
    told = explain(q, k, v, pattern=graph, **PLAIN)
    assert "backend     edge: it runs everything along edges" in told
    assert "rows of equal numbers of edges in plain torch" in told
    assert "softmax of dot products, compiled" in explain(q, k, v, pattern=graph)
    with counting() as heard:
        at.attend(q, k, v, pattern=graph, **PLAIN)
    (record,) = heard.records()
    assert record["what"] == "attend ran on edge" and "no compiled form" in str(record["why"])
    with pytest.raises(ValueError, match="strict=True forbids a fallback, but .*the generic rows of edges"):
        at.attend(q, k, v, pattern=graph, strict=True, **PLAIN)
    step = plan(q, k, v, pattern=graph, **PLAIN)
    assert torch.equal(step(q, k, v), at.attend(q, k, v, pattern=graph, **PLAIN))


def test_a_graph_composed_with_other_patterns() -> None:
    from attlas.pattern import GraphEdges

    graph, _ = coalesce(drawn(30, 120))
    q, k, v = leaves(30)
    for pattern in (GraphEdges(graph) | window(5), GraphEdges(graph) & window(5), ~GraphEdges(graph)):
        got = at.attend(q, k, v, pattern=pattern, score=Cosine())
        torch.testing.assert_close(
            got, at.attend(q, k, v, pattern=pattern, score=Cosine(), backend="reference")
        )
    with pytest.raises(ValueError, match="pattern must be that Graph and nothing else"):
        at.attend(
            q, k, v, pattern=GraphEdges(graph) | window(5), score=Dot() + Bias(torch.zeros(graph.edges))
        )


def test_numbers_of_pairs_on_a_bipartite_graph() -> None:
    graph = Graph.from_edge_index([[0, 6, 3, 6], [1, 1, 0, 1]], num_nodes=7, num_receivers=3)
    q, (k, v) = leaves(3)[0], leaves(7)[:2]
    table = torch.randn(3, 7, dtype=torch.float64)
    out = at.attend(q, k, v, pattern=graph, score=EdgeBias(table), normaliser=Softmax(0.3))
    logits = table[1, [0, 6, 6]]
    weights = logits.exp() / (logits.exp().sum() + torch.tensor(0.3).exp())
    torch.testing.assert_close(out[0, :, 1], torch.einsum("j,hjv->hv", weights, v[0, :, [0, 6, 6]]))
