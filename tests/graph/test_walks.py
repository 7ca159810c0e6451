"""Neighbourhoods of random walks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from attlas.graph import Graph, batch, subgraph, unbatch, walk_tokens


def drawn(seed=0, nodes=9, edges=16):
    """Asymmetric, with equal edges and loops; the last node has no sender."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, nodes - 1, (2, edges), generator=generator)
    ends[:, 1] = ends[:, 0]
    return Graph.from_edge_index(ends, num_nodes=nodes)


def sets(tokens):
    return [tokens.node[one:two].tolist() for one, two in pairwise(tokens.graph.pointer.tolist())]


def test_many_walks_visit_all_that_some_walk_of_that_length_reaches():
    graph = drawn()
    tokens = walk_tokens(graph, walks=3000, length=3, repeats=1)
    step = torch.zeros(9, 9, dtype=torch.bool)
    step[graph.receiver, graph.sender] = True
    within = [torch.eye(9, dtype=torch.bool)]
    for _ in range(3):
        within.append(within[-1] | (within[-1].float() @ step.float()).bool())
    found = sets(tokens)
    for node in range(9):
        wanted = [within[length][node].nonzero()[:, 0].tolist() for length in (3, 2, 1, 0)]
        assert found[4 * node : 4 * node + 4] == wanted


def test_walks_go_along_edges_evenly():
    """One walk of one step visits the node and one of its senders, equal edges counted."""
    graph = Graph.from_edge_index([[0, 1, 2, 2], [3, 3, 3, 3]], num_nodes=4)
    many = walk_tokens(batch([graph] * 2000), walks=1, length=1, repeats=1, streams=torch.arange(2000))
    counts = torch.zeros(4)
    for visited in sets(many)[6::8]:
        assert visited[-1] % 4 == 3 and len(visited) == 2
        counts[visited[0] % 4] += 1
    torch.testing.assert_close(counts[:3] / 2000, torch.tensor([0.25, 0.25, 0.5]), atol=0.04, rtol=0)


def test_the_chance_to_reach_the_opposite_node_of_a_ring():
    """2^(1 - r/2) for a walk of r/2 steps; 8 walks of r steps: .80 at r = 12 (the sheet's figure)."""
    found = {}
    for size, steps, walks in ((8, 4, 1), (12, 12, 8)):
        nodes = torch.arange(size)
        ends = torch.stack([nodes.repeat(2), torch.cat([nodes + 1, nodes - 1]) % size])
        rings, streams = batch([Graph.from_edge_index(ends)] * 300), torch.arange(300)
        tokens = walk_tokens(rings, walks=walks, length=steps, repeats=1, streams=streams)
        longest = sets(tokens)[:: tokens.count]
        own = torch.arange(300 * size)
        opposite = (own // size * size + (own % size + size // 2) % size).tolist()
        hits = [node in token for node, token in zip(opposite, longest, strict=True)]
        found[size] = sum(hits) / len(hits)
    assert found[8] == pytest.approx(2**-3, abs=0.02)
    assert found[12] == pytest.approx(0.80, abs=0.02)


def test_tokens_are_induced_subgraphs():
    graph = drawn(1)
    tokens = walk_tokens(graph, walks=2, length=3, repeats=2)
    for nodes, part in zip(sets(tokens), unbatch(tokens.graph), strict=True):
        wanted, _ = subgraph(graph, torch.tensor(nodes))
        both = [sorted(zip(g.sender.tolist(), g.receiver.tolist(), strict=True)) for g in (part, wanted)]
        assert both[0] == both[1] and part.nodes == len(nodes)
    ends = graph.edge_index[:, tokens.edge]
    assert torch.equal(tokens.node[tokens.graph.sender], ends[0])
    assert torch.equal(tokens.node[tokens.graph.receiver], ends[1])


def test_draws_depend_on_seed_stream_and_place_alone():
    graphs = [drawn(2), drawn(3)]
    options = {"walks": 2, "length": 4, "repeats": 3}
    both = sets(walk_tokens(batch(graphs), **options))
    alone = [sets(walk_tokens(graph, **options)) for graph in graphs]
    assert both[: len(alone[0])] == alone[0]
    assert [[node - 9 for node in token] for token in both[len(alone[0]) :]] == alone[1]
    shuffled = torch.randperm(graphs[0].edges)
    other = Graph.from_edge_index(graphs[0].edge_index[:, shuffled], num_nodes=9)
    assert sets(walk_tokens(other, **options)) == alone[0]
    assert sets(walk_tokens(graphs[0], **options, seed=1)) != alone[0]
    assert sets(walk_tokens(graphs[0], **options, streams=torch.tensor([5]))) != alone[0]


def test_without_walks_a_node_is_its_only_token():
    tokens = walk_tokens(drawn(), walks=1, length=0, repeats=3)
    assert tokens.count == 1 and sets(tokens) == [[node] for node in range(9)]


def test_a_graph_without_edges_and_errors():
    empty = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), num_nodes=2)
    assert sets(walk_tokens(empty, walks=2, length=2, repeats=1)) == [[0]] * 3 + [[1]] * 3
    with pytest.raises(ValueError, match="length must be 0 or more, got -1"):
        walk_tokens(empty, walks=1, length=-1, repeats=1)
    with pytest.raises(ValueError, match="one number for each of 1 graphs, got \\(2,\\)"):
        walk_tokens(empty, walks=1, length=1, repeats=1, streams=torch.zeros(2, dtype=torch.int64))
