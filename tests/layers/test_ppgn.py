"""PPGN against sums over all vertices on dense tensors, graph by graph."""

import networkx
import pytest
import torch

from attlas.graph import Graph, batch, from_networkx, pairs_of
from attlas.layers.gin import GIN
from attlas.layers.graph_layers import graph_entry
from attlas.layers.ppgn import PPGN, PPGNBlock, matrix_product, pair_product

SUMS = {matrix_product: "acz,cbz->abz", pair_product: "acz,adz,bcz,bdz,cdz->abz"}


def graphs():
    """Directed and irregular, with a loop and equal edges; two of one size; without edges; empty."""
    return [
        Graph.from_edge_index([[0, 2, 3, 3, 1, 2], [1, 1, 1, 1, 2, 2]], num_nodes=5),
        Graph.from_edge_index([[0, 1], [1, 2]], num_nodes=3),
        Graph.from_edge_index([], num_nodes=0),
        Graph.from_edge_index([], num_nodes=3),
    ]


@pytest.mark.parametrize("products", [(matrix_product,), (pair_product,), (matrix_product, pair_product)])
def test_blocks_are_their_sums_in_every_graph(products):
    torch.manual_seed(0)
    pairs = pairs_of(batch(graphs()))
    block = PPGNBlock(3, 4, inner=2, products=products).double()
    e = torch.randn(pairs.pairs, 3, dtype=torch.float64, requires_grad=True)
    wanted, start = [], 0
    for size in (5, 3, 0, 3):
        own = e[start : start + size * size].view(size, size, 3)
        start += size * size
        operands, found = [operand(own) for operand in block.operands], [own]
        for product in products:
            count = SUMS[product].split("->")[0].count(",") + 1
            found.append(torch.einsum(SUMS[product], *operands[:count]))
            operands = operands[count:]
        wanted.append(block.leave(torch.cat(found, -1)).reshape(-1, 4))
    out, dense = block(e, pairs), torch.cat(wanted)
    torch.testing.assert_close(out, dense, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(one.sin().sum(), (e, *block.parameters())) for one in (out, dense)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_the_net_reads_edges_at_receiver_and_sender_and_sums_both_ways():
    torch.manual_seed(0)
    graph, net = graphs()[0], PPGN(4, layers=1, inner=3, edge_width=2).double()
    x, attr = torch.randn(5, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    count, features = torch.zeros(5, 5, 1).double(), torch.zeros(5, 5, 2).double()
    for edge, (sender, receiver) in enumerate(graph.edge_index.T.tolist()):
        count[receiver, sender] += 1
        features[receiver, sender] += attr[edge]
    e = net.joined(torch.cat([count, count.transpose(0, 1)], -1))
    e = e + net.edge(torch.cat([features, features.transpose(0, 1)], -1))
    e = e + torch.diag_embed(net.node(x).T).permute(1, 2, 0)
    e = net.blocks[0](e.reshape(25, -1), pairs_of(Graph.from_edge_index([], num_nodes=5))).view(5, 5, -1)
    diagonal = e.diagonal(dim1=0, dim2=1).T
    wanted = net.leave(torch.cat([diagonal, e.sum(1), e.sum(0)], -1))
    torch.testing.assert_close(net(x, graph, attr), wanted, rtol=1e-9, atol=1e-9)


def rook_and_shrikhande():
    rook = networkx.line_graph(networkx.complete_bipartite_graph(4, 4))
    steps = [(0, 1), (1, 0), (1, 1)]
    shrikhande = networkx.Graph(
        ((a, b), ((a + x) % 4, (b + y) % 4)) for a in range(4) for b in range(4) for x, y in steps
    )
    return [from_networkx(net)[0] for net in (rook, shrikhande)]


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lambda: GIN(4), False),
        (lambda: PPGN(4, layers=3), False),
        (lambda: PPGN(4, layers=3, products=(matrix_product, pair_product)), True),
    ],
)
def test_what_tells_strongly_regular_graphs_apart(make, apart):
    torch.manual_seed(0)
    net = make().double().eval()
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.mul_(2)  # away from the nearly linear start
    one, other = (
        net(torch.ones(16, 4, dtype=torch.float64), graph).sum(0) for graph in rook_and_shrikhande()
    )
    share = ((one - other).abs().max() / one.abs().max()).item()
    assert share > 1e-8 if apart else share < 1e-12


def test_rows_of_the_pair_product_are_not_kept_for_the_gradient():
    kept = []
    y = [torch.randn(1, 2, 12, 12, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.append(one.numel()) or one, lambda one: one
    ):
        pair_product(*y)
    assert sum(kept) <= 12 * 5 * 2 * 12**2 + 12**3  # references to the operands, no products


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"products must be some of matrix_product and pair_product"):
        PPGNBlock(3, products=())
    with pytest.raises(ValueError, match=r"PPGN: layers must be at least 1, got 0"):
        PPGN(3, layers=0)
    with pytest.raises(ValueError, match=r"ppgn: edge_attr must be none, as edge_width says, got \(6, 2\)"):
        PPGN(4)(torch.randn(5, 4), graphs()[0], torch.randn(6, 2))
    assert graph_entry("ppgn").edges == "features"
