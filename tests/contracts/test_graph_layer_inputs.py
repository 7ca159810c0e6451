"""What every registered graph layer refuses by name, and what it keeps of a graph."""

import pytest
import torch

from attlas.graph import Graph
from attlas.layers import GRAPH_LAYERS, GraphSetting, RaggedBatchNorm
from attlas.layers.graph_layers import graph_of
from attlas.layers.grit import GRITLayer
from attlas.layers.virtual_node import VirtualNodeStack

WIDTH = 8
ENDS = torch.tensor([[0, 1, 2, 2], [1, 2, 3, 3]])


def made(name):
    """(layer in float32, features or types of the edges of ENDS)."""
    entry = GRAPH_LAYERS[name]
    numbers = entry.edges in ("features", "state")
    kinds = 3 if entry.edges == "types" else None
    layer = entry.make(GraphSetting(WIDTH, 2, WIDTH if numbers else None, kinds))
    edge = torch.randn(4, WIDTH) if numbers else torch.tensor([0, 1, 2, 1]) if kinds else None
    return layer.eval(), edge


@pytest.mark.parametrize("name", sorted(GRAPH_LAYERS))
def test_wrong_nodes_are_refused_by_name(name):
    layer, edge = made(name)
    x = torch.randn(4, WIDTH)
    layer(x, ENDS, edge)
    for wrong, text in (
        (x.double(), r"x must have the dtype of the layer's weights, torch.float32, got torch.float64"),
        (x.long(), r"x must be floating, got torch.int64: give x.float\(\)"),
        (x > 0, "x must be floating, got torch.bool"),
        (x[:, :7], r"x must be \(nodes, 8\), got \(4, 7\)"),
        (x[0], r"x must be \(nodes, channels\), got \(8,\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^\w+: {text}"):
            layer(wrong, ENDS, edge)


READ = [name for name, entry in sorted(GRAPH_LAYERS.items()) if entry.edges in ("features", "state")]


@pytest.mark.parametrize("name", READ)
def test_wrong_edges_are_refused_by_name(name):
    layer, edge = made(name)
    x = torch.randn(4, WIDTH)
    for wrong, text in (
        (None, r"edge_attr must be \(edges, 8\), got none"),
        (edge[:, :7], r"edge_attr must be \(edges, 8\), got \(4, 7\)"),
        (edge[:, 0], r"edge_attr must be \(edges, 8\), got \(4,\)"),
        (edge.double(), "edge_attr must have the dtype of x, torch.float32, got torch.float64"),
        (edge.long(), "edge_attr must have the dtype of x, torch.float32, got torch.int64"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^\w+: {text}"):
            layer(x, ENDS, wrong)


def test_dtypes_are_free_under_autocast():
    layer = torch.nn.Linear(3, 3)
    x, edge = torch.randn(4, 3, dtype=torch.bfloat16), torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        graph, found = graph_of("it", x, ENDS, edge, width=3, edge_width=2, layer=layer)
    assert graph.edges == 4 and found is edge


@pytest.mark.parametrize("name", sorted(GRAPH_LAYERS))
def test_what_a_layer_keeps_of_a_graph_stands_in_one_place(name):
    layer, edge = made(name)
    graph = Graph.from_edge_index(ENDS, num_nodes=4)
    layer(torch.randn(4, WIDTH), graph, edge)
    own = {name for name in graph.__dict__ if hasattr(Graph, name) or name in Graph.__dataclass_fields__}
    assert set(graph.__dict__) <= own | {"_kept"}


def test_parameters_are_named_as_with_torch_s_batch_norm():
    with_torch = VirtualNodeStack([torch.nn.Identity()] * 2, 4, norm=torch.nn.BatchNorm1d)
    assert list(VirtualNodeStack([torch.nn.Identity()] * 2, 4).state_dict()) == list(with_torch.state_dict())
    assert "norm.running_mean" in GRITLayer(4, 2).state_dict()
    rows = torch.randn(5, 4)
    torch.testing.assert_close(RaggedBatchNorm(4)(rows), torch.nn.BatchNorm1d(4)(rows), rtol=0, atol=0)
