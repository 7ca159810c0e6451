"""Scores that own tensors of a graph's edges: what they are given, and what is refused."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas.graph import Graph, coalesce
from attlas.pattern import window
from attlas.score import Dot, Edge, PairResult, Score
from graph.test_graph import drawn


@dataclass(frozen=True, eq=False)
class Features(Score):
    """logit = q . k + Σ_c features_ijc; the state is twice the features."""

    features: Tensor

    def edge_tensors(self) -> tuple[Tensor, ...]:
        return (self.features,)

    def pair(self, query: Tensor, key: Tensor, value: Tensor, edge: Edge, *tensors: Tensor) -> PairResult:
        dot = (query * key).sum(-1)
        more = tensors[0].sum(-1) if tensors[0].dim() > dot.dim() else tensors[0]
        return PairResult(dot + more, value, 2 * tensors[0])


def inputs(nodes: int, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(nodes)
    shape = (1, heads, nodes, 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("shape", [(), (2,), (1,), (2, 3)])
def test_the_reference_puts_every_edge_where_it_belongs(shape: tuple[int, ...]) -> None:
    graph, _ = coalesce(drawn(9, 40))
    features = torch.randn(graph.edges, *shape, dtype=torch.float64).requires_grad_()
    q, k, v = inputs(9)
    out = at.attend(q, k, v, pattern=graph, score=Features(features), backend="reference")
    flat = features if features.dim() < 3 else features.sum(-1)
    per_head = (flat if flat.dim() == 2 else flat[:, None]).expand(-1, 2)
    logits = (q[0, :, graph.receiver] * k[0, :, graph.sender]).sum(-1) + per_head.T
    for node in range(9):
        mine = graph.receiver == node
        wanted = (logits[:, mine].softmax(-1)[..., None] * v[0, :, graph.sender[mine]]).sum(1)
        torch.testing.assert_close(out[0, :, node], wanted)
    (grad,) = torch.autograd.grad(out.square().sum(), features)
    assert grad.shape == features.shape and bool(grad.abs().sum() > 0)


def test_what_edge_tensors_need() -> None:
    graph = Graph.from_edge_index([[0, 1, 2], [1, 2, 0]], num_nodes=3)
    q, k, v = inputs(3)
    ask = {"score": Features(torch.zeros(3))}
    with pytest.raises(ValueError, match="has tensors of the edges of a graph, so that the pattern must be"):
        at.attend(q, k, v, **ask)
    with pytest.raises(ValueError, match="must be that Graph and nothing else, got window"):
        at.attend(q, k, v, pattern=window(2), **ask)
    with pytest.raises(ValueError, match=r"one row for each of 3 edges, in the order .* got shape \(4,\)"):
        at.attend(q, k, v, pattern=graph, score=Features(torch.zeros(4)))
    with pytest.raises(ValueError, match=r"with 2 heads or 1, got shape \(3, 5\); write edge\[:, None\]"):
        at.attend(q, k, v, pattern=graph, score=Dot() + Features(torch.zeros(3, 5)))
    with pytest.raises(ValueError, match=r"backend 'rows' cannot run .* has tensors of edges, which"):
        at.attend(q, k, v, pattern=graph, backend="rows", **ask)
    twice = Graph.from_edge_index([[0, 0, 2], [1, 1, 0]], num_nodes=3)
    with pytest.raises(ValueError, match="'reference' cannot run .* the graph has equal edges"):
        at.attend(q, k, v, pattern=twice, backend="reference", **ask)
