"""Runs on a user's graph: exact resumption, what is written, and what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.train.checkpoint import load_tensors, save_tensors
from attlas.train.node_files import GraphFile
from attlas.train.node_model import NodeSettings, _Scaled, node_inputs
from attlas.train.node_predict import predict_nodes
from attlas.train.node_run import NodeRun, load_node_run, train_node_run

NODES = 60
SMALL = {"width": 8, "heads": 2, "steps": 12, "check": 4, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of nodes, most edges inside one; a feature that tells a little; targets; types; numbers."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    group = np.arange(NODES) % 2
    ends = []
    while len(ends) < 240:
        a, b = random.integers(0, NODES, 2)
        if group[a] == group[b] or random.random() < 0.1:
            ends.append((a, b))
    kinds = ["near", "far"]
    rows = [f"n{a},n{b},{kinds[(a + b) % 2]},{random.normal():.3f}" for a, b in ends]
    (folder / "edges.csv").write_text("\n".join(["source,target,kind,weight", *rows, "n0,n60,far,1"]) + "\n")
    noise = random.normal(size=NODES + 1)
    (folder / "labels.csv").write_text(
        "node,label\n" + "".join(f"n{i},{'even' if group[i] == 0 else 'odd'}\n" for i in range(NODES))
    )
    (folder / "targets.csv").write_text(
        "node,label\n" + "".join(f"n{i},{100 + 20 * group[i]}\n" for i in range(NODES))
    )
    (folder / "features.csv").write_text(
        "node,hint,none\n"
        + "".join(f"n{i},{(i % 2) + noise[i]:.4f},{noise[-1 - i]:.4f}\n" for i in range(NODES + 1))
    )
    return folder


def run_of(files: Path, *, labels: str = "labels.csv", features: bool = True, **said: object) -> NodeRun:
    columns = {"sender": "source", "receiver": "target", "undirected": True}
    if said.pop("typed", False):
        columns["kind"] = "kind"
    if said.pop("weighted", False):
        columns["values"] = ("weight",)
    settings = NodeSettings(**SMALL | said)  # type: ignore[arg-type]
    feature_file = str(files / "features.csv") if features else None
    return NodeRun(
        GraphFile(str(files / "edges.csv"), **columns), str(files / labels), feature_file, settings
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said", [{"encodings": "laplacian:3,rwse:2"}, {"batch": 7, "fanout": 3, "model": "sage"}]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(files: Path, tmp_path: Path, said: dict) -> None:
    run = run_of(files, **said)

    def stop(done: int) -> None:
        if done == 7:  # between two checkpoints
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_node_run(run, tmp_path / "cut", told=stop)
    with pytest.raises(UsageError, match="is not finished; give its train command again to go on"):
        load_node_run(tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "state" / "checkpoint.safetensors"
    tensors, facts = load_tensors(checkpoint)
    save_tensors(checkpoint, tensors, facts | {"seconds": facts["seconds"] + 1e4})
    steps: list[int] = []
    train_node_run(run, tmp_path / "cut", told=steps.append)
    train_node_run(run, tmp_path / "whole")
    assert steps == [4, *range(5, 13)]
    first, second = (load_node_run(tmp_path / name) for name in ("cut", "whole"))
    assert first["seconds"] > 1e4 > second["seconds"]  # those before the interruption count
    for name in ("curve", "scores", "best_step", "confusion", "drawing"):
        assert first[name] == second[name]
    for name in ("model.safetensors", "predictions.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_folder_of_a_run(files: Path, tmp_path: Path) -> None:
    record = train_node_run(run_of(files, steps=40), tmp_path, command="attlas graph train ...")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "graph_run.json",
        "model.safetensors",
        "predictions.csv",
        "state",
    ]
    assert record == json.loads((tmp_path / "graph_run.json").read_text())
    assert record["labelled"] == {"train": 36, "valid": 12, "test": 12} and record["classes"] == [
        "even",
        "odd",
    ]
    assert record["scores"]["test"]["accuracy"] > 0.7  # chance is a half, the hint alone tells about 0.6
    assert np.sum(record["confusion"]) == 12
    assert record["baselines"]["constant"]["accuracy"] == 0.5
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 61 and set(rows[0]) == {"node", "prediction", "probability", "split", "label"}
    by_node = {row["node"]: row for row in rows}
    assert (by_node["n60"]["split"], by_node["n60"]["label"]) == (
        "",
        "",
    )  # without a label, told all the same
    asked = [row for row in rows if row["split"] == "test"]
    right = sum(row["prediction"] == row["label"] for row in asked) / len(asked)
    assert right == pytest.approx(record["scores"]["test"]["accuracy"])
    assert predict_nodes(tmp_path, tmp_path / "again.csv") == 61
    with (tmp_path / "again.csv").open() as stream:
        again = list(csv.DictReader(stream))
    assert [(row["node"], row["prediction"], row["probability"]) for row in rows] == [
        tuple(row.values()) for row in again
    ]


def test_a_finished_run_is_read_and_another_one_is_refused(files: Path, tmp_path: Path) -> None:
    run = run_of(files, features=False)
    record = train_node_run(run, tmp_path)
    steps: list[int] = []
    assert train_node_run(run, tmp_path, told=steps.append) == record and steps == [12]
    other = run._replace(settings=NodeSettings(**SMALL | {"width": 4}))
    with pytest.raises(
        UsageError, match=r"holds a run of other settings or files \(width 8 there, 4 here\); choose"
    ):
        train_node_run(other, tmp_path)
    assert train_node_run(other, tmp_path, fresh=True)["settings"]["width"] == 4
    changed = tmp_path / "labels.csv"
    changed.write_text((files / "labels.csv").read_text().replace("n1,odd", "n1,even"))
    with pytest.raises(UsageError, match="labels [0-9a-f]{16} there, [0-9a-f]{16} here"):
        train_node_run(other._replace(labels=str(changed)), tmp_path)


def test_a_refused_run_leaves_its_folder_free(files: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    run = run_of(files, steps=1)._replace(labels=str(table))
    table.write_text("node,label\nn0,even\nnowhere,odd\n")
    with pytest.raises(UsageError, match="line 3: the graph has no node 'nowhere'"):
        train_node_run(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    table.write_text((files / "labels.csv").read_text())
    record = train_node_run(run, tmp_path / "run")
    table.write_text("node,label\nnowhere,odd\n")
    with pytest.raises(UsageError, match="the graph has no node"):
        train_node_run(run, tmp_path / "run", fresh=True)
    assert load_node_run(tmp_path / "run") == record  # forgotten only where another one begins


def test_nodes_without_edges_are_told_too(files: Path, tmp_path: Path) -> None:
    table = tmp_path / "nodes.csv"
    table.write_text("node\nn0\nalone\n")
    run = run_of(files, features=False, steps=1)
    run = run._replace(graph=GraphFile(**run.graph.to_dict() | {"nodes": str(table)}))
    record = train_node_run(run, tmp_path / "run")
    assert (record["summary"]["nodes"], record["summary"]["isolated"]) == (62, 1)
    assert "alone," in (tmp_path / "run" / "predictions.csv").read_text()
    lines: list[str] = []
    assert predict_nodes(tmp_path / "run", tmp_path / "x.csv", told=lines.append) == 62 and lines == []
    table.write_text("node\nalone\nother\n")
    assert predict_nodes(tmp_path / "run", tmp_path / "x.csv", told=lines.append) == 63
    assert lines == [f"{table} has changed since the training: what is told is of the file as it is now"]
    with pytest.raises(UsageError, match="--nodes belongs to another graph: give its file, too"):
        predict_nodes(tmp_path / "run", tmp_path / "x.csv", nodes=str(table))


def test_edges_must_have_what_the_model_was_trained_on(files: Path, tmp_path: Path) -> None:
    said = {"model": "gine", "features": False, "steps": 1}
    record = train_node_run(run_of(files, weighted=True, typed=True, **said), tmp_path / "numbers")
    assert record["edges"] == {"reads": "numbers", "unread": ["types"]}
    assert train_node_run(run_of(files, **said), tmp_path / "bare")["edges"]["reads"] == "nothing"
    other = tmp_path / "other.npz"
    ends = np.array([[0, 1], [1, 0]])
    np.savez(other, edge_index=ends)
    with pytest.raises(
        UsageError, match=r"other.npz has no numbers of edges, which the model was trained on"
    ):
        predict_nodes(tmp_path / "numbers", tmp_path / "x.csv", graph=str(other))
    assert predict_nodes(tmp_path / "bare", tmp_path / "x.csv", graph=str(other)) == 2
    np.savez(other, edge_index=ends, edge_attr=np.ones((2, 1)))
    assert predict_nodes(tmp_path / "numbers", tmp_path / "x.csv", graph=str(other)) == 2
    with pytest.raises(
        UsageError, match="has numbers of edges, but the model was trained without any: leave"
    ):
        predict_nodes(tmp_path / "bare", tmp_path / "x.csv", graph=str(other))
    large = Graph.from_edge_index(
        torch.from_numpy(ends), edge_attr=torch.full((2,), 1e300, dtype=torch.float64)
    )
    with pytest.raises(UsageError, match="a number of an edge is not finite in float32: scale them"):
        node_inputs(large, None, NodeSettings(model="gine"))


def test_targets_come_in_their_own_unit(files: Path, tmp_path: Path) -> None:
    record = train_node_run(run_of(files, labels="targets.csv", task="regression", steps=40), tmp_path)
    assert record["classes"] == [] and record["confusion"] is None and len(record["pairs"]) == 12
    assert 80 < np.mean([pair[1] for pair in record["pairs"]]) < 140
    assert (
        record["scores"]["test"]["mae"] < record["baselines"]["constant"]["mae"] == pytest.approx(10, abs=2)
    )


@pytest.mark.parametrize("said", [{"typed": True}, {"weighted": True}, {}])
def test_layers_of_edge_features_get_types_numbers_or_a_constant(
    files: Path, tmp_path: Path, said: dict
) -> None:
    record = train_node_run(run_of(files, model="gine", steps=2, check=1, **said), tmp_path)
    wanted = (None, 2) if "typed" in said else (1, None)
    assert (record["made"]["edge_width"], record["made"]["edge_kinds"]) == wanted


def test_another_graph_has_its_types_by_name(files: Path, tmp_path: Path) -> None:
    run = run_of(files, model="kgat", typed=True, features=False, steps=2, check=1)
    record = train_node_run(run, tmp_path / "run")
    assert record["types"] == sorted(record["types"], key=["near", "far"].index) or set(record["types"])
    mine = (files / "edges.csv").read_text().splitlines()
    turned = [mine[0], *sorted(mine[1:], reverse=True)]
    other = tmp_path / "other.csv"
    other.write_text("\n".join(turned) + "\n")
    predict_nodes(tmp_path / "run", tmp_path / "other_out.csv", graph=str(other))
    said = []
    for file in (tmp_path / "run" / "predictions.csv", tmp_path / "other_out.csv"):
        with file.open() as stream:
            said.append({row["node"]: float(row["probability"]) for row in csv.DictReader(stream)})
    assert said[0].keys() == said[1].keys()
    assert all(said[1][name] == pytest.approx(value, abs=2e-4) for name, value in said[0].items())
    other.write_text("source,target,kind,weight\na,b,across,1\n")
    with pytest.raises(UsageError, match="the model knows no edge type 'across', only "):
        predict_nodes(tmp_path / "run", tmp_path / "x.csv", graph=str(other))


def test_features_are_asked_for_as_the_model_was_made(files: Path, tmp_path: Path) -> None:
    train_node_run(run_of(files, steps=1, check=1), tmp_path / "with")
    train_node_run(run_of(files, steps=1, check=1, features=False), tmp_path / "without")
    graph = str(files / "edges.csv")
    with pytest.raises(UsageError, match=r"was made with features \(hint, none\): give --features"):
        predict_nodes(tmp_path / "with", tmp_path / "x.csv", graph=graph)
    with pytest.raises(UsageError, match="was made of degrees, without features: leave out --features"):
        predict_nodes(tmp_path / "without", tmp_path / "x.csv", features=str(files / "features.csv"))
    assert predict_nodes(tmp_path / "with", tmp_path / "x.csv", features=str(files / "features.csv")) == 61


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"model": "gpt"}, "graph layer must be one of .*gin.*, got 'gpt'"),
        ({"task": "ranking"}, "task must be classification or regression, got 'ranking'"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"batch": -1}, "batch must be 0 .the whole graph. or more nodes, got -1"),
        ({"learning_rate": 0.0}, "learning rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": float("inf")}, "learning rate must be a finite number above 0, got inf"),
        ({"weight_decay": float("nan")}, "weight decay must be a finite number from 0, got nan"),
        ({"weight_decay": -1.0}, "weight decay must be a finite number from 0, got -1.0"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"encodings": "rrwp"}, "training takes the encodings degree, rwse and laplacian, got rrwp"),
    ],
)
def test_settings_that_cannot_be(said: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        NodeSettings(**said)


def test_equal_numbers_have_no_unit_of_their_own() -> None:
    scaled = _Scaled(3)
    rows = torch.tensor([[0.1, 1e9, 5.0], [0.1, 1e9, 7.0], [0.1, 1e9, 6.0]], dtype=torch.float64)
    scaled.fit(rows)
    assert scaled.scale.tolist() == pytest.approx([1, 1, (2 / 3) ** 0.5])
    assert scaled(rows).abs().max() < 2
    none = _Scaled(2)
    none.fit(torch.zeros(0, 2))
    assert none.mean.tolist() == [0, 0] and none.scale.tolist() == [1, 1]


def test_graphs_that_cannot_be(files: Path, tmp_path: Path) -> None:
    graph = Graph.from_edge_index([[0], [1]])
    with pytest.raises(
        UsageError, match=r"model kgat reads types of edges, but the graph has none: name their"
    ):
        node_inputs(graph, None, NodeSettings(model="kgat"))
    two = Graph.from_edge_index([[0], [1]], num_nodes=2, num_receivers=2)
    with pytest.raises(
        UsageError, match="senders and receivers of two kinds: training needs one kind of nodes"
    ):
        node_inputs(two, None, NodeSettings())
    with pytest.raises(UsageError, match="model gps cannot be made: "):
        train_node_run(run_of(files, model="gps", width=9, heads=2), tmp_path)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("classification", "node,label\nn0,a\nn1,b\nn2,a\nn3,b\nn4,a\n"),  # one test node is drawn
        ("regression", "node,label,split\nn0,1,train\nn2,3,test\n"),
    ],
)
def test_one_training_or_test_node_is_enough(files: Path, tmp_path: Path, task: str, text: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(text)
    run = run_of(files, task=task, steps=1)._replace(labels=str(table))
    record = train_node_run(run, tmp_path / "run")
    assert record["labelled"]["test"] == 1 and set(record["baselines"]) == {"constant", "linear"}


def test_a_class_without_training_nodes_is_refused(files: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("node,label,split\nn0,a,train\nn1,b,train\nn2,c,test\n")
    run = run_of(files)._replace(labels=str(table))
    with pytest.raises(UsageError, match="no training node has the class 'c': it could never be told"):
        train_node_run(run, tmp_path / "run")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    file = save_tensors(tmp_path / "one.safetensors", {"a": torch.ones(2)}, {"done": 3})
    tensors, facts = load_tensors(file)
    assert facts == {"done": 3} and tensors["a"].tolist() == [1.0, 1.0]
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(UsageError, match=r"one.safetensors is damaged .*; begin the run again \(--fresh\)"):
        load_tensors(file)
    with pytest.raises(UsageError, match="nothing.safetensors does not exist; check the folder of the run"):
        load_tensors(tmp_path / "nothing.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(UsageError, match="is not a file of schema 'attlas.checkpoint' version 1: found None"):
        load_tensors(file)
