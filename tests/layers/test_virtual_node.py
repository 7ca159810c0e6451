"""Virtual nodes: the layer, the stack of the baselines and the extra node."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attlas.graph import Graph, batch, unbatch, with_virtual_nodes
from attlas.layers import GIN, GATv2Gather, VirtualNodeLayer, VirtualNodeStack
from skips import needs


def drawn(seed=0, sizes=(4, 1, 6), width=3):
    generator = torch.Generator().manual_seed(seed)
    graphs = [
        Graph.from_edge_index(torch.randint(0, n, (2, 3 * (n > 1) * n), generator=generator), num_nodes=n)
        for n in sizes
    ]
    return batch(graphs), torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("gather", ["sum", "mean"])
def test_a_round_by_hand(gather):
    graph, x = drawn()
    state = torch.randn(3, 2, dtype=torch.float64)
    layer = VirtualNodeLayer(
        lambda s, heard: torch.cat([s, heard], 1),
        lambda x, told, near: torch.cat([x, told, near], 1),
        to_virtual=lambda x, s: x * s[:, :1],
        from_virtual=lambda s: 2 * s,
        between=lambda x: x.square(),
        gather=gather,
        near=gather,
    )
    nodes, virtual = layer(x, state, graph)
    for i in range(graph.nodes):
        own = graph.graph_of[i]
        senders = graph.sender[graph.receiver == i]
        near = x[senders].square().sum(0)
        near = near / max(1, len(senders)) if gather == "mean" else near
        torch.testing.assert_close(nodes[i], torch.cat([x[i], 2 * state[own], near]))
    for g in range(3):
        sent = x[graph.graph_of == g] * state[g, :1]
        heard = sent.sum(0) if gather == "sum" else sent.mean(0)
        torch.testing.assert_close(virtual[g], torch.cat([state[g], heard]))


@needs("torch_geometric")
@pytest.mark.parametrize("heads", [1, 2])
def test_gatv2_gather_is_pygs(heads):
    from torch_geometric.nn import GATv2Conv

    graph, x = drawn(2)
    graph = Graph.from_edge_index(torch.unique(graph.edge_index, dim=1), num_nodes=11)
    theirs = GATv2Conv(3, 4 // heads, heads=heads, add_self_loops=False).double()
    ours = GATv2Gather(3, 3, 4, heads=heads).double()
    ours.send.load_state_dict(theirs.lin_l.state_dict())
    ours.receive.load_state_dict(theirs.lin_r.state_dict())
    ours.weight.data = theirs.att.data[0]
    torch.testing.assert_close(ours(x, x, graph), theirs(x, graph.edge_index))


def test_gatv2_gathers_to_virtual_nodes_and_learns():
    graph, x = drawn()
    layer = VirtualNodeLayer(lambda s, heard: heard, lambda x, told: x, gather=GATv2Gather(3, 2, 4).double())
    layer(x, torch.zeros(3, 2, dtype=torch.float64), graph)[1].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters() if p is not layer.gather.receive.weight)


@pytest.mark.parametrize("gathers", ["input", "output"])
@pytest.mark.parametrize("residual", [True, False])
def test_the_stack_of_the_baselines(gathers, residual):
    """Beside the published loop, written out; one virtual node per graph."""
    graph, x = drawn(1)
    stack = VirtualNodeStack([GIN(3) for _ in range(3)], 3, gathers=gathers, residual=residual).double()
    stack.start.data.normal_()
    stack.eval()
    h, s = x, stack.start.expand(3, 3)
    for number, layer in enumerate(stack.layers):
        told = h + s[graph.graph_of]
        h = layer(told, graph.edge_index)
        if number < 2:
            pooled = torch.stack(
                [(told if gathers == "input" else h)[graph.graph_of == g].sum(0) for g in range(3)]
            )
            new = stack.updates[number](pooled + s)
            s = s + new if residual else new
    torch.testing.assert_close(stack(x, graph), h)
    starts = graph.pointer.tolist()
    for part, start, stop in zip(unbatch(graph), starts, starts[1:], strict=False):
        torch.testing.assert_close(stack(x[start:stop], part), stack(x, graph)[start:stop])


def test_the_stack_starts_as_its_layers():
    graph, x = drawn()
    stack = VirtualNodeStack([GIN(3)], 3).double().eval()
    torch.testing.assert_close(stack(x, graph), stack.layers[0](x, graph))


def test_edge_states_pass_through_the_stack():
    class Doubling(nn.Module):
        def forward(self, x, graph, edge_attr):
            return x, 2 * edge_attr

    graph, x = drawn()
    stack = VirtualNodeStack([Doubling(), Doubling()], 3).double().eval()
    _, state = stack(x, graph, torch.ones(graph.edges, 2))
    assert torch.equal(state, torch.full((graph.edges, 2), 4.0))


@needs("torch_geometric")
def test_the_extra_node_is_pygs():
    from torch_geometric.data import Data
    from torch_geometric.transforms import VirtualNode

    graph, x = drawn(3, sizes=(5,))
    kinds = torch.arange(graph.edges) % 2
    made, old, new = with_virtual_nodes(graph.replace(edge_type=kinds, pointer=None), kinds=(2, 3))
    theirs = VirtualNode()(Data(x=x, edge_index=graph.edge_index, edge_type=kinds))
    assert torch.equal(made.edge_index, theirs.edge_index)
    assert torch.equal(made.edge_type, theirs.edge_type)
    assert old.tolist() == [0, 1, 2, 3, 4] and new.tolist() == [5]


def test_extra_nodes_of_a_batch():
    graph, _ = drawn()
    graph = graph.replace(edge_attr=torch.ones(graph.edges, 2))
    made, old, new = with_virtual_nodes(graph, fill=0.5)
    alone = [with_virtual_nodes(part, fill=0.5)[0] for part in unbatch(graph)]
    assert made.pointer.tolist() == [0, 5, 7, 14] and new.tolist() == [4, 6, 13]
    assert old.tolist() == [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    for one, two in zip(unbatch(made), alone, strict=True):
        ends = [sorted(map(tuple, part.edge_index.T.tolist())) for part in (one, two)]
        assert ends[0] == ends[1]
    assert made.edge_attr[graph.edges :].unique().tolist() == [0.5]


def test_errors_say_what_to_change():
    graph, x = drawn()
    with pytest.raises(ValueError, match="gather must be 'sum', 'mean' or a module, got 'most'"):
        VirtualNodeLayer(max, max, gather="most")
    with pytest.raises(ValueError, match="one row for each of 3 graphs, got \\(1, 2\\)"):
        VirtualNodeLayer(max, max)(x, torch.zeros(1, 2), graph)
    with pytest.raises(ValueError, match="layers must hold at least one layer"):
        VirtualNodeStack([], 3)
    with pytest.raises(ValueError, match="gathers must be 'input' or 'output', got 'both'"):
        VirtualNodeStack([GIN(3)], 3, gathers="both")
    with pytest.raises(ValueError, match="for no other; this one is untyped"):
        with_virtual_nodes(graph, kinds=(1, 2))
