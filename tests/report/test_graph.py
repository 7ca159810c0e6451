"""The page and the tables of a run on a graph's nodes, from a record that is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.graph.summary import summary
from attlas.report import summary_tables, write_graph_run
from attlas.report.graph_figures import (
    confusion_figure,
    curve_figure,
    degree_figure,
    drawing_figure,
    target_figure,
)
from attlas.report.graph_tables import graph_run_tables, headline

GRAPH = Graph.from_edge_index([[0, 1, 1], [1, 0, 2]], num_nodes=4)
SCORES = {"accuracy": 0.75, "cross_entropy": 0.5, "macro_f1": 0.7}


def record(**changed: object) -> dict:
    """Of four nodes and two classes."""
    nodes = [("a", "cat", "cat"), ("b", "cat", "dog"), ("<c>", "dog", None), ("d", "dog", "dog")]
    return {
        "schema": "attlas.graph_run",
        "version": 1,
        "title": "gin on <edges>.csv",
        "command": "attlas graph train",
        "settings": {
            "model": "gin",
            "depth": 2,
            "width": 8,
            "encodings": "",
            "steps": 20,
            "batch": 0,
            "fanout": 10,
            "seed": 0,
        },
        "summary": summary(GRAPH),
        "types": [],
        "edges": {"reads": "numbers", "unread": ["types"]},
        "feature_names": None,
        "classes": ["cat", "dog"],
        "labelled": {"train": 2, "valid": 0, "test": 4},
        "split": "that of the table",
        "parameters": 1234,
        "curve": [{"step": 10, "train": 0.9, "valid": None}, {"step": 20, "train": 0.4, "valid": 0.6}],
        "best_step": 20,
        "scores": {"train": SCORES, "valid": None, "test": SCORES},
        "baselines": {"constant": {**SCORES, "accuracy": 0.5}, "linear": {**SCORES, "accuracy": 0.625}},
        "confusion": [[3, 1], [0, 0]],
        "pairs": None,
        "drawing": {
            "whole": False,
            "nodes": [
                {
                    "node": i,
                    "x": i / 4,
                    "y": -i / 4,
                    "name": name,
                    "prediction": told,
                    "label": label,
                    "split": None,
                }
                for i, (name, told, label) in enumerate(nodes)
            ],
            "edges": [[0, 1], [1, 2]],
        },
        "seconds": 3.2,
        "versions": {"attlas": "0.1.0"},
        "machine": {"processor": "some", "cores": 2},
        **changed,
    }


def values(spec: dict, place: int) -> list[dict]:
    """The rows of a layer, which may stand beside it."""
    own = (spec["layer"][place] if "layer" in spec else spec).get("data", spec.get("data"))
    return own["values"] if "values" in own else spec["datasets"][own["name"]]


def test_the_page_tells_the_run_and_fetches_nothing(tmp_path: Path) -> None:
    (tmp_path / "graph_run.json").write_text(json.dumps(record()))
    files = write_graph_run(tmp_path)
    page = files.page.read_text()
    assert "gin on &lt;edges&gt;.csv" in page and "default-src 'none'" in page and "<script" not in page
    assert "gin tells 75.0% of 4 test nodes right; a linear model without messages 62.5%" in page
    assert page.count("data:image/png;base64,") == 4 == len(files.pictures)
    assert 'src="http' not in page and '<link rel="icon" href="data:,">' in page


def test_tables() -> None:
    scores, classes, facts, degrees, made = graph_run_tables(record())
    assert [row[0] for row in scores.rows] == [
        "gin, train",
        "gin, test",
        "one answer for all, test",
        "linear, no messages, test",
    ]
    assert scores.columns == ("", "nodes", "accuracy", "macro F1", "cross-entropy")
    assert classes.rows == (("cat", "4", "75%", "100%", "dog (1)"), ("dog", "0", "–", "0%", "–"))
    assert (
        dict(facts.rows)["components"] == "2, the largest of 3 nodes"
        and dict(facts.rows)["directed"] == "yes"
    )
    assert not any(" " in heading for heading in degrees.columns)  # a terminal breaks headings at blanks
    assert degrees.rows[0] == ("into a node", "0.75", "1", "1", "1", "1", "33%")
    assert dict(made.rows)["reads of edges"] == "numbers; their types are not read"
    assert (
        dict(made.rows)["features"] == "log degrees" and dict(made.rows)["steps"] == "20 of the whole graph"
    )
    typed = Graph.from_edge_index([[0, 1], [1, 0]], edge_type=torch.tensor([0, 1]))
    assert summary_tables(summary(typed), ("is", "has"))[-1].rows == (("is", "1"), ("has", "1"))


def test_the_drawing_shows_what_is_wrong() -> None:
    spec = drawing_figure(record()).to_dict()
    edges, nodes = values(spec, 0), values(spec, 1)
    assert len(edges) == 2 and [node["wrong"] for node in nodes] == [False, True, False, False]
    assert spec["title"]["subtitle"].startswith(
        "4 of 4 nodes around one of them, coloured by prediction; a black"
    )
    colours = spec["layer"][1]["encoding"]["color"]["scale"]
    assert colours["domain"] == ["cat", "dog"] and len(set(colours["range"])) == 2


def test_other_pictures_hold_the_numbers() -> None:
    cells = values(confusion_figure(record()).to_dict(), 0)
    assert [cell["nodes"] for cell in cells] == [3, 1, 0, 0] and cells[0]["share"] == 0.75
    curve = curve_figure(record()).to_dict()
    lines = values(curve, 0)
    assert curve["layer"][0]["encoding"]["x"]["axis"]["tickMinStep"] == 1
    assert [(row["step"], row["nodes"]) for row in lines] == [(10, "train"), (20, "train"), (20, "valid")]
    bars = values(degree_figure(summary(GRAPH)).to_dict(), 0)
    assert {(bar["edges"], bar["direction"]): bar["nodes"] for bar in bars} == {
        ("0", "in"): 1,
        ("1", "in"): 3,
        ("0", "out"): 2,
        ("1", "out"): 1,
        ("2–3", "out"): 1,
    }


def test_a_regression() -> None:
    errors = {"mae": 2.0, "rmse": 3.0}
    told = record(
        classes=[],
        confusion=None,
        pairs=[[1.0, 2.0], [3.0, 2.5]],
        scores={"train": errors, "valid": None, "test": errors},
        baselines={"constant": {"mae": 5.0, "rmse": 6.0}, "linear": {"mae": 4.0, "rmse": 5.0}},
    )
    assert headline(told).startswith(
        "gin is off by 2 on average over 4 test nodes; a linear model without messages by 4"
    )
    assert len(values(target_figure(told).to_dict(), 1)) == 2
    assert graph_run_tables(told)[0].columns == ("", "nodes", "MAE", "RMSE")
    for row in told["drawing"]["nodes"]:
        row["prediction"] = 1.0
    assert drawing_figure(told).to_dict()["layer"][1]["encoding"]["color"]["type"] == "quantitative"


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="graph_run.json does not exist; check the path"):
        write_graph_run(tmp_path)
