"""Layers of attention along edges against PyG's, with copied weights."""

import pytest
import torch
from torch import Tensor

import attlas as at
from attlas.graph import Graph
from attlas.layers import AdditiveGraphAttention, DotGraphAttention
from graph.test_graph import drawn
from skips import needs

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def _compare(ours: torch.nn.Module, theirs: torch.nn.Module, x: Tensor, *given: Tensor) -> None:
    """Results, and gradients of the nodes and edge features."""
    tolerance = TOLERANCE[x.dtype]
    leaves = [x.requires_grad_(), *(part.requires_grad_() for part in given[1:])]
    found, wanted = (layer(x, *given) for layer in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    slope = torch.linspace(-1, 1, found.numel(), dtype=x.dtype).view(found.shape)
    pairs = (torch.autograd.grad((out * slope).sum(), leaves) for out in (found, wanted))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


@needs("torch_geometric")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", [{}, {"concat": False}, {"root_weight": False, "bias": False}])
def test_dot_products_are_pygs_transformer_conv(dtype: torch.dtype, options: dict[str, bool]) -> None:
    from torch_geometric.nn import TransformerConv

    torch.manual_seed(0)
    conv = TransformerConv(12, 5, heads=3, **options).to(dtype)
    x = torch.randn(30, 12, dtype=dtype)
    _compare(DotGraphAttention.from_pyg(conv), conv, x, drawn(30, 200).edge_index)


@needs("torch_geometric")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "options", [{}, {"concat": False, "bias": False}, {"add_self_loops": False, "negative_slope": 0.05}]
)
@pytest.mark.parametrize("edge_dim", [None, 4])
def test_additive_scores_are_pygs_gat_conv(
    dtype: torch.dtype, options: dict[str, bool], edge_dim: int | None
) -> None:
    from torch_geometric.nn import GATConv

    torch.manual_seed(0)
    conv = GATConv(12, 5, heads=3, edge_dim=edge_dim, **options).to(dtype)
    x, edge_index = torch.randn(30, 12, dtype=dtype), drawn(30, 200).edge_index
    given = [] if edge_dim is None else [torch.randn(200, edge_dim, dtype=dtype)]
    _compare(AdditiveGraphAttention.from_pyg(conv), conv, x, edge_index, *given)


@needs("torch_geometric")
def test_what_cannot_be_taken_from_pyg() -> None:
    from torch_geometric.nn import GATConv, TransformerConv

    with pytest.raises(ValueError, match=r"DotGraphAttention.from_pyg: it has not edge features in keys and"):
        DotGraphAttention.from_pyg(TransformerConv(4, 4, edge_dim=2))
    with pytest.raises(ValueError, match=r"it has not a residual connection, which this GATConv has"):
        AdditiveGraphAttention.from_pyg(GATConv(4, 4, residual=True))


def test_edge_features_are_a_bias_of_every_head() -> None:
    torch.manual_seed(0)
    graph, x, features = drawn(9, 40), torch.randn(9, 6).double(), torch.randn(40, 3).double()
    layer = DotGraphAttention(6, 2, edge_width=3, skip=False).double()
    query, key, value = layer.project(x).view(9, 3, 2, 3).unbind(1)
    assert layer.edge is not None
    bias = features @ layer.edge.weight.T
    wanted = torch.zeros(9, 2, 3).double()
    for node in range(9):
        mine = (graph.receiver == node).nonzero()[:, 0]
        logits = torch.einsum("hd,ehd->eh", query[node], key[graph.sender[mine]]) / 3**0.5 + bias[mine]
        wanted[node] = torch.einsum("eh,ehd->hd", logits.softmax(0), value[graph.sender[mine]])
    torch.testing.assert_close(layer(x, graph, features), wanted.flatten(1))


def test_loops_are_explicit() -> None:
    graph, x = Graph.from_edge_index([[0, 1], [1, 1]], num_nodes=3), torch.randn(3, 4)
    layer = AdditiveGraphAttention(4, 2, bias=False)
    assert not layer(x, graph)[[0, 2]].any()
    looped = AdditiveGraphAttention(4, 2, bias=False, self_loops=True)
    looped.load_state_dict(layer.state_dict())
    torch.testing.assert_close(looped(x, graph)[2], layer.value(x)[2])
    once = Graph.from_edge_index([[0, 0, 1, 2], [1, 0, 1, 2]], num_nodes=3)
    torch.testing.assert_close(looped(x, graph), layer(x, once))


def test_sizes_and_features_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"width must be a multiple of heads unless head_width is given, got"
    ):
        DotGraphAttention(5, 2)
    layer, graph = AdditiveGraphAttention(4, 2, edge_width=3), drawn(5, 9)
    with pytest.raises(ValueError, match=r"edge_attr must be \(edges, 3\), got none"):
        layer(torch.randn(5, 4), graph)
    assert at.layers.graph_entry("gat").reach == 1
