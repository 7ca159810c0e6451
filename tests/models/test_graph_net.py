"""The net around graph layers: embeddings, edge states, readout, encodings."""

import pytest
import torch
from torch import nn

from attlas.graph import Graph, batch
from attlas.models import GraphNet, pooled
from attlas.tasks import MoleculeBatch
from attlas.train import absolute_loss


class Neighbours(nn.Module):
    """x plus the sum of neighbours and edges; the edge state doubles."""

    def forward(self, x, graph, edge_attr=None, batch=None):
        if edge_attr is None:
            return x + torch.zeros_like(x).index_add(0, graph.receiver, x[graph.sender])
        sent = x[graph.sender] + edge_attr
        return x + torch.zeros_like(x).index_add(0, graph.receiver, sent), 2 * edge_attr


class Beside(nn.Module):
    """Two of three columns, times the nodes of the graph."""

    width = 2

    def forward(self, extra, graph):
        return extra[:, :2] * graph.nodes


def ring(nodes, kinds=2):
    at = torch.arange(nodes)
    return Graph.from_edge_index(torch.stack([at, (at + 1) % nodes]), num_nodes=nodes, edge_attr=at % kinds)


def net(**more):
    torch.manual_seed(0)
    arguments = {"depth": 2, "width": 8, "outputs": 3, "node_kinds": 5, "edge_kinds": 2} | more
    return GraphNet(Neighbours, **arguments).double()


def test_edge_states_go_from_layer_to_layer():
    model, graph, x = net(), ring(4), torch.tensor([0, 1, 2, 3])
    h, state = model.nodes(x), model.edges(graph.edge_attr)
    for factor in (1, 2):
        sent = h[graph.sender] + factor * state
        h = h + torch.stack([sent[graph.receiver == node].sum(0) for node in range(4)])
    torch.testing.assert_close(model(x, graph), model.head(h.sum(0, keepdim=True)))


@pytest.mark.parametrize("readout", ["sum", "mean", None])
def test_a_batch_is_its_graphs_one_by_one(readout):
    model, graphs = net(readout=readout), [ring(3), ring(5), ring(1)]
    x = torch.arange(9) % 5
    alone = torch.cat([model(part, graph) for part, graph in zip(x.split([3, 5, 1]), graphs, strict=True)])
    together = batch(graphs)
    torch.testing.assert_close(model(x, together), alone)
    found = model(x, together.edge_index, together.edge_attr, together.graph_of)
    torch.testing.assert_close(found, alone)


def test_pooling_an_empty_graph_gives_zero():
    graph = Graph.from_edge_index([[], []], num_nodes=3).replace(pointer=torch.tensor([0, 0, 3]))
    x = torch.tensor([[1.0], [2.0], [6.0]])
    assert pooled(x, graph, "sum").tolist() == [[0.0], [9.0]]
    assert pooled(x, graph, "mean").tolist() == [[0.0], [3.0]]


def test_encodings_are_added_or_stand_beside():
    graph, x, extra = ring(4), torch.arange(4), torch.randn(4, 3).double()
    added = net(extra=3, readout=None, depth=0)
    torch.testing.assert_close(added(x, graph, extra=extra), added.head(added.nodes(x) + added.extra(extra)))
    encoder = Beside()
    beside = net(extra=encoder, readout=None, depth=0)
    assert beside.nodes.embedding_dim == 6
    joined = torch.cat([beside.nodes(x), encoder(extra, graph)], -1)
    torch.testing.assert_close(beside(x, graph, extra=extra), beside.head(joined))


def test_the_loss_is_the_mean_absolute_error():
    model, graph = net(outputs=1), batch([ring(3), ring(4)])
    x, target = torch.arange(7) % 5, torch.tensor([[1.0], [-2.0]]).double()
    loss = absolute_loss(model, MoleculeBatch(x, graph, target))
    torch.testing.assert_close(loss, (model(x, graph) - target).abs().mean())


def test_errors_say_what_to_give():
    graph, x = ring(4), torch.arange(4)
    with pytest.raises(ValueError, match="readout must be 'sum', 'mean' or None, got 'max'"):
        net(readout="max")
    with pytest.raises(ValueError, match="give node_kinds or node_width, not both"):
        net(node_width=3)
    with pytest.raises(ValueError, match="give node_kinds or node_width"):
        net(node_kinds=None)
    with pytest.raises(ValueError, match=r"made with encodings \(extra=\), but got none"):
        net(extra=3)(x, graph)
    with pytest.raises(ValueError, match=r"made without encodings \(extra=\), but got some"):
        net()(x, graph, extra=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="reads edge features, but neither edge_attr nor the graph has any"):
        net()(x, Graph.from_edge_index(graph.edge_index, num_nodes=4))
