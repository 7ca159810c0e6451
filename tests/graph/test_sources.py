"""Graphs out of files, what is told of them, encodings by name, and where to draw their nodes."""

import json
from pathlib import Path

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

from attlas._common.errors import UsageError
from attlas.graph import Graph, random_walk_diagonals, save_graph
from attlas.graph.drawing import layout
from attlas.graph.encode import Encoding, encode, parse_encodings
from attlas.graph.sources import read_graph
from attlas.graph.summary import summary

ENDS = [[0, 1, 1, 3, 3, 0], [1, 0, 2, 3, 2, 1]]  # 0 -> 1 twice, 3 has a loop


def edges(graph: Graph) -> list[list[int]]:
    return graph.edge_index.tolist()


def test_an_npz_of_arrays_is_read_by_pygs_names(tmp_path: Path) -> None:
    file = tmp_path / "graph.npz"
    np.savez(file, edge_index=ENDS, x=np.zeros((5, 2)), edge_type=np.arange(6), edge_attr=np.ones((6, 3)))
    found = read_graph(file)
    assert (found.graph.nodes, edges(found.graph), found.nodes, found.types) == (5, ENDS, (), ())
    assert found.graph.edge_type is not None and found.graph.edge_attr is not None
    assert found.graph.edge_attr.shape == (6, 3)
    np.savez(file, edge_index=ENDS, num_nodes=9, batch=np.zeros(9, np.int64))
    assert (read_graph(file).graph.nodes, read_graph(file).graph.graphs) == (9, 1)


def test_a_sparse_matrix_is_read_by_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "matrix.npz"
    matrix = scipy.sparse.csr_array(np.array([[0, 2, 0], [0, 0, 0], [1, 0, 0]]))
    scipy.sparse.save_npz(file, matrix)
    assert edges(read_graph(file).graph) == [[1, 0], [0, 2]]  # rows receive
    np.savez(
        file,
        adj_data=matrix.data,
        adj_indices=matrix.indices,
        adj_indptr=matrix.indptr,
        adj_shape=matrix.shape,
    )
    assert sorted(zip(*edges(read_graph(file).graph), strict=True)) == [(0, 1), (2, 0)]  # rows send


def test_folders_and_edge_lists_are_read_as_ever(tmp_path: Path) -> None:
    save_graph(Graph.from_edge_index(ENDS), tmp_path / "saved")
    assert edges(read_graph(tmp_path / "saved", mapped=True).graph) == ENDS
    file = tmp_path / "list.tsv"
    file.write_text("a\tb\nb\tc\n")
    found = read_graph(file, undirected=True)
    assert (found.nodes, edges(found.graph)) == (("a", "b", "c"), [[0, 1, 1, 2], [1, 2, 0, 1]])


def test_nodes_without_edges_stand_in_a_table(tmp_path: Path) -> None:
    file, table = tmp_path / "edges.csv", tmp_path / "nodes.csv"
    file.write_text("b,a\n")
    table.write_text("colour,node\nred,a\nblue,c\nred,c\n")
    found = read_graph(file, nodes=table)
    assert found.nodes == ("b", "a", "c") and found.graph.nodes == 3
    table.write_text("node,colour\na,red\n,blue\n")
    with pytest.raises(UsageError, match="nodes.csv, line 3: a name is empty"):
        read_graph(file, nodes=table)


def test_columns_of_a_file_that_has_none_are_refused(tmp_path: Path) -> None:
    save_graph(Graph.from_edge_index(ENDS), tmp_path / "saved")
    np.savez(tmp_path / "x.npz", edge_index=ENDS)
    for name in ("saved", "x.npz"):
        with pytest.raises(
            UsageError, match="is no edge list: --kind, --values would not be read; leave out"
        ):
            read_graph(tmp_path / name, kind="rel", values=("weight",))


def test_a_line_of_titles_is_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "edges.csv"
    file.write_text("Source,target\na,b\n")
    with pytest.raises(
        UsageError, match=r"line 1 looks like column names \(Source, target\): say that it is"
    ):
        read_graph(file)
    assert read_graph(file, header=True).nodes == ("a", "b")
    assert read_graph(file, header=False).nodes == ("Source", "target", "a", "b")
    assert read_graph(file, sender="Source", receiver="target").nodes == ("a", "b")
    file.write_text("user,item\n1,2\n")
    with pytest.raises(UsageError, match=r"line 1 looks like column names \(user, item\)"):
        read_graph(file)
    for text in ("a,b\n1,c\n", "1,b\n2,3\n"):
        file.write_text(text)
        assert len(read_graph(file).nodes) == 4


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"z": [1], "y": [2]}, "holds y, z: edge_index .2, edges., a matrix of scipy.sparse.save_npz, or"),
        ({"edge_index": [[0], [7]], "num_nodes": 3}, "holds no graph: graph: receiver of edge 0 is 7"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict, text: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=text):
        read_graph(tmp_path / "x.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; give a file with one edge a line"):
        read_graph(tmp_path / "nothing.csv")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UsageError, match="cannot be read as an .npz file of plain arrays"):
        read_graph(tmp_path / "text.npz")


def test_a_summary_counts_what_networkx_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(0, 60, (2, 70), generator=generator)
    graph = Graph.from_edge_index(ends, num_nodes=80)
    oracle = networkx.DiGraph()
    oracle.add_nodes_from(range(80))
    oracle.add_edges_from(ends.T.tolist())
    found = summary(graph)
    loops = networkx.number_of_selfloops(oracle)
    assert found["loops"] == int((ends[0] == ends[1]).sum())
    assert found["equal_edges"] == 70 - oracle.number_of_edges()
    oracle.remove_edges_from(list(networkx.selfloop_edges(oracle)))
    assert found["reciprocal"] == pytest.approx(networkx.overall_reciprocity(oracle))
    assert found["isolated"] == networkx.number_of_isolates(oracle)
    parts = list(networkx.weakly_connected_components(oracle))
    assert found["components"] == {"count": len(parts), "largest": max(map(len, parts))}
    assert found["density"] == (oracle.number_of_edges() + loops) / 6400
    assert found["in_degree"]["max"] == int(graph.in_degree.max())
    assert sum(found["in_degree"]["histogram"]) == 80
    assert found["out_degree"]["histogram"][2] == int(
        ((graph.out_degree >= 2) & (graph.out_degree < 4)).sum()
    )
    json.dumps(found, allow_nan=False)


def test_a_summary_of_odd_graphs() -> None:
    empty = summary(Graph.from_edge_index([[], []], num_nodes=0))
    assert (empty["nodes"], empty["in_degree"], empty["directed"], empty["density"]) == (0, None, False, 0.0)
    both = summary(Graph.from_edge_index([[0, 1], [1, 0]], edge_type=torch.tensor([0, 2])))
    assert (both["directed"], both["reciprocal"], both["types"]) == (False, 1.0, [1, 0, 1])
    two = summary(Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=3, num_receivers=2))
    assert (two["senders"], two["receivers"], two["density"]) == (3, 2, 2 / 6) and "components" not in two


def test_encodings_by_name() -> None:
    assert parse_encodings("rwse:3, laplacian,") == (Encoding("rwse", 3), Encoding("laplacian", 8))
    graph = Graph.from_edge_index([[0, 1, 1, 2], [1, 0, 2, 1]])
    assert torch.equal(encode(graph, Encoding("rwse", 3))["rwse"], random_walk_diagonals(graph, 3))
    assert encode(graph, Encoding("laplacian", 2)).keys() == {"laplacian", "laplacian_values"}
    degree = encode(graph, Encoding("degree", 2))["degree"]
    assert torch.equal(degree, torch.tensor([[2.0, 2], [3, 3], [2, 2]], dtype=torch.float64).log())
    walks, paths = encode(graph, Encoding("rrwp", 2)), encode(graph, Encoding("paths", 5))
    assert walks["rrwp"].shape == (9, 2) and walks["rrwp_index"].shape == (2, 9)
    assert paths["paths"].view(3, 3).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rwse,page", "encodings are degree, rwse, .*got 'page'"),
        ("rwse:x", "the size of an encoding is a whole number from 1, as in rwse:16; got 'rwse:x'"),
        ("rwse:0", "got 'rwse:0'"),
        ("rwse:2,rwse:3", "encoding rwse is asked for twice; name each one once"),
    ],
)
def test_wrong_names_of_encodings(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_encodings(text)


def test_all_pairs_of_a_large_graph_are_refused() -> None:
    graph = Graph.from_edge_index([[0], [1]], num_nodes=10_001)
    for name in ("rwse", "rrwp", "paths"):
        with pytest.raises(
            UsageError, match=f"{name} of a graph of 10,001 nodes goes through 100,020,001 pairs"
        ):
            encode(graph, Encoding(name, 2))


def test_a_drawing_shows_all_of_a_small_graph_and_a_piece_of_a_large_one() -> None:
    small = layout(Graph.from_edge_index(ENDS, num_nodes=6))
    assert small["whole"] and [row["node"] for row in small["nodes"]] == list(range(6))
    assert small["edges"] == [[0, 1], [1, 2], [2, 3]]  # loops and equal edges are not drawn
    ring = torch.arange(500)
    large = Graph.from_edge_index(torch.stack([ring, (ring + 1) % 500]), num_nodes=501)
    piece = layout(large, around=torch.tensor([500, 40]), most=20, seed=3)
    nodes = {row["node"] for row in piece["nodes"]}
    assert not piece["whole"] and len(nodes) == 20 and 40 in nodes and 500 not in nodes
    assert len(piece["edges"]) == 19  # connected
    assert piece == layout(large, around=torch.tensor([500, 40]), most=20, seed=3)
    with pytest.raises(ValueError, match="a graph without nodes cannot be drawn"):
        layout(Graph.from_edge_index([[], []], num_nodes=0))
