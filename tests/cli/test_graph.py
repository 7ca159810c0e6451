"""attlas graph: inspect, encode, train, predict, layers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from attlas.graph import Graph, save_graph
from attlas.layers import GRAPH_LAYERS

NODES = 24


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rings of twelve nodes, joined by one edge, and which ring a node is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "attlas.report.graph_page.png", lambda chart, scale: b""
    )  # drawn by the report's tests
    ends = [
        (ring * 12 + i, ring * 12 + (i + step) % 12)
        for ring in range(2)
        for i in range(12)
        for step in (1, 2)
    ]
    (tmp_path / "edges.csv").write_text("".join(f"v{a},v{b},k{a % 2}\n" for a, b in [*ends, (0, 12)]))
    (tmp_path / "labels.csv").write_text(
        "node,label\n" + "".join(f"v{i},{'first' if i < 12 else 'second'}\n" for i in range(NODES))
    )
    return tmp_path


def test_inspect(attlas_says, files):
    code, said, _ = attlas_says("graph", "inspect", "edges.csv", "--kind", "2")
    assert code == 0
    for words in ("nodes", "24", "edges", "49", "1, the largest of 24 nodes", "Types of edges", "k0"):
        assert words in said
    code, said, _ = attlas_says("graph", "inspect", "edges.csv", "--undirected", "--kind", "2", "--json")
    found = json.loads(said)
    assert (code, found["edges"], found["directed"], found["types"]) == (0, 98, False, [50, 48])
    assert found["type_names"] == ["k0", "k1"]
    save_graph(Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=3, num_receivers=2), "two")
    _, said, _ = attlas_says("graph", "inspect", "two")
    assert "senders" in said and "receivers" in said


def test_encode(attlas_says, files):
    code, said, error = attlas_says(
        "graph", "encode", "edges.csv", "--encoding", "rwse:3,paths:4", "--out", "a.npz"
    )
    assert (code, said.splitlines()[-1]) == (0, "written to a.npz")
    assert "rwse:3" in error and "rwse             24 x 3" in said
    with np.load("a.npz", allow_pickle=False) as stored:
        assert stored["node"][:2].tolist() == ["v0", "v1"]
        assert stored["rwse"].shape == (24, 3) and stored["paths_index"].shape == (2, 576)
    attlas_says("graph", "encode", "edges.csv", "--out", "b.safetensors")
    with safe_open("b.safetensors", "pt") as stored:
        assert set(stored.keys()) == {"rwse", "laplacian", "laplacian_values"}
        assert json.loads(stored.metadata()["nodes"])[:2] == ["v0", "v1"]


def test_train_and_predict(attlas_says, files):
    options = [
        "--undirected",
        "--kind",
        "2",
        "--encodings",
        "laplacian:2",
        "--width",
        8,
        "--steps",
        4,
        "--model",
        "gin",
    ]
    command = ["graph", "train", "edges.csv", "--labels", "labels.csv", "--out", "run", *options]
    code, said, error = attlas_says(*command)
    assert code == 0, error
    assert "gin, test" in said and "linear, no messages, test" in said and "training" in error
    page = Path("run/report.html").read_text()
    assert "gin on edges.csv" in page and page.count("data:image/png;base64,") == 4
    assert sorted(file.name for file in Path("run/pictures").iterdir()) == [
        "degrees.png", "drawing.png", "mistakes.png", "training.png",
    ]  # fmt: skip
    assert "gin does not read the types of the edges" in error
    code, said, _ = attlas_says(*command, "--json")
    assert code == 0 and json.loads(said)["labelled"] == {"train": 14, "valid": 5, "test": 5}
    assert attlas_says("graph", "predict", "run", "--out", "told.csv")[1] == "24 nodes written to told.csv\n"
    with Path("told.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["node", "prediction", "probability"] and len(rows) == 24


def test_layers(attlas_says, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, said, _ = attlas_says("graph", "layers")
    assert code == 0 and all(name in said for name in GRAPH_LAYERS) and "any node" in said
    _, said, _ = attlas_says("graph", "layers", "--json")
    assert {row["name"]: row["reach"] for row in json.loads(said)}["gin"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "none.csv"), "graph none.csv does not exist; give a file with one edge a line"),
        (("inspect", "edges.csv", "--kind", "9"), "edges.csv, line 1: 10 columns are expected, it has 3"),
        (("encode", "edges.csv", "--encoding", ""), "no encoding is named; give some of degree, rwse"),
        (("encode", "edges.csv", "--out", "a.pt"), "--out must end in .safetensors or .npz, got a.pt"),
        (("encode", "edges.csv", "--out", "edges.csv/a.npz"), "edges.csv is a file, but a folder is needed"),
        (("inspect", "two", "--kind", "2"), "two is no edge list: --kind would not be read"),
        (
            ("train", "edges.csv", "--labels", "labels.csv", "--out", "run", "--weight-decay", "nan"),
            "got nan",
        ),
        (("encode", "two"), "two has senders and receivers of two kinds: encodings need one kind of nodes"),
        (("encode", "large", "--encoding", "rwse"), "rwse of a graph of 10,002 nodes goes through"),
        (("train", "edges.csv", "--labels", "labels.csv", "--out", "run", "--model", "no"), "got 'no'"),
        (("train", "edges.csv", "--labels", "edges.csv", "--out", "run"), "has no column 'node'"),
        (("train", "edges.csv", "--labels", "labels.csv", "--out", "edges.csv"), "edges.csv is a file, but"),
        (("predict", "nothing"), "nothing/graph_run.json does not exist"),
    ],
)
def test_what_is_refused(refused, files, arguments, words):
    save_graph(Graph.from_edge_index([[0, 1], [1, 0]], num_nodes=3, num_receivers=2), "two")
    save_graph(Graph.from_edge_index(torch.tensor([[10_001], [0]])), "large")
    assert words in refused("graph", *arguments)
    assert not Path("run/graph_run.json").exists()


def test_a_training_that_goes_wrong_says_what_to_do(attlas_says, files):
    options = ("--labels", "labels.csv", "--out", "run", "--learning-rate", "1e30", "--width", 8)
    code, _, error = attlas_says("graph", "train", "edges.csv", *options)
    assert (code, error.splitlines()[-1]) == (
        2,
        "attlas: the loss of step 2 is nan: try a smaller learning rate (--learning-rate)",
    )


def test_the_usual_batch_goes_by_the_size_of_the_graph(attlas_says, files, monkeypatch):
    monkeypatch.setattr("attlas.cli.graph.LARGE_GRAPH", 40)
    monkeypatch.setattr("attlas.cli.graph.USUAL_BATCH", 5)
    command = ["graph", "train", "edges.csv", "--labels", "labels.csv", "--steps", 3, "--width", 8]
    assert attlas_says(*command, "--out", "sampled")[0] == 0
    assert attlas_says(*command, "--out", "whole", "--batch", 0)[0] == 0
    batch = [
        json.loads(Path(name, "graph_run.json").read_text())["settings"]["batch"]
        for name in ("sampled", "whole")
    ]
    assert batch == [5, 0]
    assert "5 nodes, fan-out 10" in Path("sampled/report.html").read_text()
