"""Graphs from other libraries and files, and back."""

import os
import re
from pathlib import Path

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch

from attlas._common.errors import UsageError
from attlas.graph import (
    Graph,
    from_networkx,
    from_pyg,
    from_scipy,
    load_graph,
    read_edges,
    save_graph,
    to_networkx,
    to_scipy,
)
from attlas.graph import graph as graphs
from graph.test_graph import drawn


def test_scipy_rows_receive() -> None:
    matrix = scipy.sparse.coo_array(([2.0, 3.0, 5.0], ([0, 2, 2], [1, 0, 0])), (3, 3))
    graph = from_scipy(matrix, weights=True)
    assert graph.edge_index.tolist() == [[1, 0, 0], [0, 2, 2]]
    assert graph.edge_attr is not None and graph.edge_attr[:, 0].tolist() == [2.0, 3.0, 5.0]
    x = np.arange(3.0)
    assert np.allclose(to_scipy(graph, graph.edge_attr[:, 0]) @ x, matrix @ x)
    assert from_scipy(scipy.sparse.coo_array((2, 5))).bipartite


@pytest.mark.parametrize(
    "kind", [networkx.Graph, networkx.DiGraph, networkx.MultiGraph, networkx.MultiDiGraph]
)
def test_networkx_edges_come_over_with_loops_and_equal_edges(kind: type) -> None:
    given = kind([("a", "b"), ("b", "b"), ("a", "b"), ("c", "a")])
    given.add_node("alone")
    graph, names = from_networkx(given)
    listed = sorted((names[a], names[b]) for a, b in graph.edge_index.T.tolist())
    wanted = [(a, b) for a, b in given.edges()]
    if not given.is_directed():
        wanted += [(b, a) for a, b in given.edges() if a != b]
    assert listed == sorted(wanted)
    assert names == list(given.nodes) and graph.nodes == 4
    back = to_networkx(graph)
    assert sorted(back.edges()) == sorted(map(tuple, graph.edge_index.T.tolist()))


def test_networkx_numbers_become_features_or_an_error() -> None:
    given = networkx.Graph()
    given.add_edge(0, 1, length=2.5)
    given.add_edge(1, 2, length=1)
    graph, _ = from_networkx(given, edge_attr=["length"])
    assert graph.edge_attr is not None and graph.edge_attr[:, 0].tolist() == [2.5, 1.0, 2.5, 1.0]
    given.add_edge(3, 2, length=np.float32(0.5))
    given.add_edge(3, 1, length=np.int64(2))
    graph, _ = from_networkx(given, edge_attr=["length"])
    assert graph.edge_attr is not None and graph.edge_attr[2:4, 0].tolist() == [2.0, 0.5]
    given.add_edge(2, 0)
    with pytest.raises(ValueError, match=r"edge_attr 'length' of the edge 0 - 2 must be a number, got None"):
        from_networkx(given, edge_attr=["length"])


def test_what_pyg_calls_data_is_read_by_its_names() -> None:
    class Data:
        edge_index = torch.tensor([[0, 2], [1, 3]])
        num_nodes = 4
        edge_attr = torch.rand(2, 3)
        batch = torch.tensor([0, 0, 1, 1])

    graph = from_pyg(Data())
    assert graph.graphs == 2 and graph.edge_attr is Data.edge_attr
    with pytest.raises(TypeError, match="must be a PyG Data or Batch with an edge_index, got dict"):
        from_pyg({})


@pytest.mark.parametrize("mapped", [False, True])
def test_a_saved_graph_comes_back(tmp_path: Path, mapped: bool) -> None:
    graph = drawn(
        5, 9, edge_attr=torch.rand(9, 2), edge_type=torch.arange(9), batch=torch.zeros(5, dtype=torch.int64)
    )
    save_graph(drawn(2, 2), tmp_path / "g")
    save_graph(graph, tmp_path / "g")  # takes the place of the former
    again = load_graph(tmp_path / "g", mapped=mapped)
    for name in ("sender", "receiver", "edge_attr", "edge_type", "pointer"):
        assert torch.equal(getattr(again, name), getattr(graph, name))
    assert (again.nodes, again.bipartite, again.graphs) == (5, False, 1)
    for side in ("by_receiver", "by_sender"):
        for one, other in zip(getattr(again, side), getattr(graph, side), strict=True):
            assert torch.equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_a_mapped_graph_is_not_sorted_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = drawn(5, 9)
    save_graph(graph, tmp_path / "g")
    save_graph(graph, tmp_path / "plain", sort=False)
    wanted = [[part.tolist() for part in side] for side in (graph.by_receiver, graph.by_sender)]
    again = load_graph(tmp_path / "plain", mapped=True)
    assert [[part.tolist() for part in side] for side in (again.by_receiver, again.by_sender)] == wanted
    monkeypatch.setattr(graphs, "_sorted", lambda *_: pytest.fail("sorted in memory"))
    again = load_graph(tmp_path / "g", mapped=True)
    assert [[part.tolist() for part in side] for side in (again.by_receiver, again.by_sender)] == wanted


def test_ends_are_checked_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "CHUNK", 2)
    with pytest.raises(ValueError, match=r"sender of edge 3 is 7, but there are 4 .*2 edges are wrong"):
        Graph.from_edge_index([[0, 1, 2, 7, -1], [0, 1, 2, 3, 0]], num_nodes=4)
    with pytest.raises(ValueError, match=r"edge 2 \(1 -> 2\) leads from one graph"):
        Graph.from_edge_index([[0, 2, 1], [1, 3, 2]], batch=torch.tensor([0, 0, 1, 1]), num_nodes=4)


def test_the_old_graph_stays_until_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_graph(drawn(5, 9), tmp_path / "g")
    move = os.replace

    def broken(one: Path, other: Path) -> None:
        if str(one).endswith(".partial") and other == tmp_path / "g":
            raise OSError("no space")
        move(one, other)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        save_graph(drawn(2, 2), tmp_path / "g")
    assert load_graph(tmp_path / "g").edges == 9
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    (tmp_path / "g" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds more than a graph, notes\.txt: move that away"):
        save_graph(drawn(2, 2), tmp_path / "g")
    assert (tmp_path / "g" / "notes.txt").read_text() == "mine"


def test_files_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="exists and is no graph"):
        save_graph(drawn(2, 2), tmp_path / "other")
    with pytest.raises(UsageError, match="is no graph: a folder with graph.json"):
        load_graph(tmp_path / "none")
    save_graph(drawn(2, 2), tmp_path / "g")
    (tmp_path / "g" / "sender.npy").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"sender.npy cannot be read as an .npy array"):
        load_graph(tmp_path / "g")
    with pytest.raises(TypeError, match="edge_attr is bfloat16, which .npy files cannot hold"):
        save_graph(drawn(2, 2, edge_attr=torch.zeros(2, dtype=torch.bfloat16)), tmp_path / "h")
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("sender", np.array([0, 1, 7]), "but there are 3"),
        ("sender", np.array([0, 1, 2], dtype=np.int32), "must hold int64 in one axis"),
        ("receiver", np.array([0, 1]), "a row for each of 3 edges"),
        ("sender", np.array([[0, 1, 2]]), "must hold int64 in one axis"),
        ("receiver", np.array([0, 1, -1]), "receiver of edge 2 is -1, but there are 3"),
    ],
)
def test_damaged_arrays_are_found_before_they_are_used(
    tmp_path: Path, mapped: bool, name: str, array: np.ndarray, words: str
) -> None:
    save_graph(Graph.from_edge_index([[0, 1, 2], [1, 2, 0]], num_nodes=3), tmp_path / "g")
    np.save(tmp_path / "g" / f"{name}.npy", array)
    with pytest.raises(UsageError, match=words):
        load_graph(tmp_path / "g", mapped=mapped)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("by_sender.other", [0, 1, 3], r"by_sender\.other\.npy must hold numbers in 0 \.\. 2"),
        ("by_sender.order", [0, -1, 1], r"by_sender\.order\.npy must hold numbers in 0 \.\. 2"),
        ("by_receiver.order", [0, 1], r"by_receiver\.order\.npy must hold 3 of int64"),
        ("by_receiver.pointer", [0, 2, 1, 3], r"by_receiver\.pointer\.npy must rise from 0 to 3"),
    ],
)
def test_damaged_sorted_edges_are_found(tmp_path: Path, name: str, array: list[int], words: str) -> None:
    save_graph(Graph.from_edge_index([[0, 1, 2], [1, 2, 0]], num_nodes=3), tmp_path / "g")
    np.save(tmp_path / "g" / f"{name}.npy", np.array(array))
    with pytest.raises(UsageError, match=words):
        load_graph(tmp_path / "g", mapped=True)


def test_a_header_that_says_too_little(tmp_path: Path) -> None:
    save_graph(drawn(3, 2), tmp_path / "g")
    header = tmp_path / "g" / "graph.json"
    text = header.read_text()
    header.write_text(text.replace('"senders": 3', '"senders": 3.0'))
    with pytest.raises(UsageError, match=r"is damaged: senders must be int, got 3\.0"):
        load_graph(tmp_path / "g", mapped=True)
    header.write_text(text.replace('"senders"', '"sanders"'))
    with pytest.raises(UsageError, match=r"is damaged: it does not say senders"):
        load_graph(tmp_path / "g")


def test_an_edge_list_is_read_by_name_or_place(tmp_path: Path) -> None:
    table = tmp_path / "edges.csv"
    table.write_text("# a remark\nwho,whom,how,much\nann,bob,likes,2\n\nbob,ann,knows,3.5\nann,cat,likes,1\n")
    named = read_edges(table, sender="who", receiver="whom", kind="how", values=("much",))
    assert named.nodes == ("ann", "bob", "cat") and named.types == ("likes", "knows")
    graph = named.graph
    assert graph.edge_attr is not None and graph.edge_attr.dtype == torch.float64
    assert graph.edge_index.tolist() == [[0, 1, 0], [1, 0, 2]]
    assert graph.edge_type is not None and graph.edge_type.tolist() == [0, 1, 0]
    assert graph.edge_attr is not None and graph.edge_attr[:, 0].tolist() == [2.0, 3.5, 1.0]
    plain = tmp_path / "edges.txt"
    plain.write_text("1 2\n# a remark\n2   3\n")
    assert read_edges(plain).nodes == ("1", "2", "3")


def test_a_row_of_a_node_whose_name_begins_with_a_hash_is_an_edge(tmp_path: Path) -> None:
    table = tmp_path / "edges.csv"
    table.write_text("# a remark\na,b\n#a,b\n")
    assert read_edges(table).nodes == ("a", "b", "#a")
    table.write_text("# a remark\na,b\n# another\n")
    with pytest.raises(UsageError, match="line 3: 2 columns are expected, it has 1"):
        read_edges(table)


@pytest.mark.parametrize(("name", "text"), [("e.csv", "#from,to\na,b\n"), ("e.txt", "# from to\na b\n")])
def test_titles_behind_a_hash_are_asked_about(tmp_path: Path, name: str, text: str) -> None:
    table = tmp_path / name
    table.write_text(text)
    with pytest.raises(UsageError, match="line 1 begins with # and has as many columns as line 2, which is"):
        read_edges(table, header=True)
    assert read_edges(table).nodes == ("a", "b")
    table.write_text(text.replace("from", "of 2020, from"))
    assert read_edges(table, header=False).nodes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "named", "words"),
    [
        ("a,b\nc\n", {}, "line 2: 2 columns are expected, it has 1; nothing was loaded"),
        ("a,b\nc\nd\n,e\n", {}, "line 2: 2 columns are expected, it has 1 (2 more lines are wrong)"),
        ("a,b\n,c\n", {}, "line 2: a name is empty"),
        ("a,b,x\n", {"values": (2,)}, "line 1: column 2 must be a finite number, got 'x'"),
        ("a,b,nan\n", {"values": (2,)}, "column 2 must be a finite number, got 'nan'"),
        ("a,b,1_000\n", {"values": (2,)}, "column 2 must be a finite number, got '1_000'"),
        ("a,to,to\nb,c,d\n", {"receiver": "to"}, "has 2 columns 'to': give every column a title of its own"),
        ('a,b\n"c,d\n', {}, "line 2: unexpected end of data; nothing was loaded"),
        ("a,b\n", {"separator": ";;"}, "separator must be one letter, got ';;'"),
        ("a,b\n", {"sender": "from"}, "has no column 'from'; its first line names a, b"),
        ("", {}, "holds no edge"),
        ("", {"sender": "a"}, "is empty: a line with the columns' names is expected"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, named: dict, words: str) -> None:
    table = tmp_path / "edges.csv"
    table.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_edges(table, **named)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_edges(tmp_path / "none.csv")
