"""A run on a user's graph from its files to its folder: train, and go on after an interruption."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, check_schema, read_json, to_json, write_json
from attlas._common.machine import machine, versions
from attlas.graph import Graph
from attlas.graph.summary import summary
from attlas.tasks.node_tables import SPLITS, read_features, read_labels, split_nodes
from attlas.train.checkpoint import save_tensors
from attlas.train.node_files import GraphFile, ReadGraph, digest_of
from attlas.train.node_model import NodeInputs, NodeModel, NodeSettings, edge_reading, node_inputs
from attlas.train.node_predictions import answer, drawing, pairs, write_predictions
from attlas.train.node_scores import baselines, confusion, scores
from attlas.train.node_training import LabelledNodes, train_nodes

__all__ = ["NAME", "SCHEMA", "VERSION", "NodeRun", "load_node_run", "made_model", "train_node_run"]

SCHEMA, VERSION, NAME = "attlas.graph_run", 1, "graph_run"
STATE = "state"


class NodeRun(NamedTuple):
    """What a run reads: the graph's file, tables of labels and features (or None), settings.

    read: the graph, where it has been read already.
    """

    graph: GraphFile
    labels: str
    features: str | None
    settings: NodeSettings
    large: bool = False
    read: ReadGraph | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same: settings, and files by how they are read and what they hold."""
        files = {
            "graph": self.graph.path,
            "nodes": self.graph.nodes,
            "labels": self.labels,
            "features": self.features,
        }
        return {
            "settings": self.settings.to_dict(),
            "graph": self.graph.to_dict(),
            "labels": self.labels,
            "features": self.features,
            "digests": {name: None if path is None else digest_of(path) for name, path in files.items()},
        }


def train_node_run(
    run: NodeRun,
    out: str | Path,
    *,
    command: str = "",
    fresh: bool = False,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Train and write `out`/graph_run.json, model.safetensors and predictions.csv; returns the first.

    Interrupted, the same call goes on from `out`/state, which is removed at the end. A finished run is read
    and returned. UsageError: bad files, a folder with a run of other settings or files (unless fresh).
    """
    folder = check_folder(out)
    state = folder / STATE
    identity = _identity(run, folder, fresh)
    if not fresh and (folder / f"{NAME}.json").exists():
        told(run.settings.steps)
        return load_node_run(folder)
    began = time.monotonic()
    read = run.read or run.graph.read()
    table = read_labels(run.labels, read.names, regression=run.settings.task == "regression")
    labels = LabelledNodes(table.node, table.value, split_nodes(table, run.settings.seed))
    features = None if run.features is None else read_features(run.features, read.names)
    inputs = node_inputs(read.graph, features.x if features else None, run.settings, large=run.large)
    made = _shapes(inputs, read.graph.edge_type, read.types, len(table.classes))
    _check_classes(labels, table.classes)
    model = made_model(run.settings, made)
    model.fit_scales(inputs, None if table.classes else labels.of(0)[1])
    # The folder is the run's from here on: what is refused above can be mended and given again.
    if fresh:
        _forget(folder)
    write_json(state / "run.json", identity)
    trained = train_nodes(
        model, inputs, labels, run.settings, state=state / "checkpoint.safetensors", told=told
    )
    told_of = answer(model, inputs)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": NAME,
        "title": f"{run.settings.model} on {Path(run.graph.path).name}",
        "command": command,
        **identity,
        "summary": summary(read.graph),
        "made": made,
        "edges": _of_edges(read.graph, run.settings.model),
        "feature_names": list(features.names) if features else None,
        "classes": list(table.classes),
        "types": list(read.types),
        "labelled": {name: int((labels.split == place).sum()) for place, name in enumerate(SPLITS)},
        "split": "drawn by the seed" if table.split is None else "that of the table",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "curve": trained.curve,
        "best_step": trained.best_step,
        "scores": scores(labels, told_of),
        "baselines": baselines(inputs, labels, len(table.classes)),
        "confusion": confusion(labels, told_of) if table.classes else None,
        "pairs": None if table.classes else pairs(labels, told_of),
        "drawing": drawing(inputs, labels, told_of, table.classes, read.names, run.settings.seed),
        "seconds": trained.earlier + time.monotonic() - began,
        "versions": versions(),
        "machine": machine(),
    }
    save_tensors(
        folder / "model.safetensors", model.state_dict(), {"settings": run.settings.to_dict(), "made": made}
    )
    write_predictions(folder / "predictions.csv", told_of, table.classes, read.names, labels)
    write_json(folder / f"{NAME}.json", record)
    (state / "checkpoint.safetensors").unlink(missing_ok=True)
    return record


def load_node_run(folder: str | Path) -> dict[str, Any]:
    """The record of a finished run; UsageError where there is none, or it is damaged."""
    path = Path(folder) / f"{NAME}.json"
    if not path.exists() and (Path(folder) / STATE).is_dir():
        raise UsageError(f"the run in {folder} is not finished; give its train command again to go on")
    return check_schema(read_json(path, what="run"), SCHEMA, VERSION, source=str(path))


def _identity(run: NodeRun, folder: Path, fresh: bool) -> dict[str, Any]:
    """The run's identity as JSON; unless fresh, UsageError names the difference to a run in its folder."""
    mine = json.loads(to_json(run.identity()))
    file = folder / STATE / "run.json"
    finished = folder / f"{NAME}.json"
    there = load_node_run(folder) if finished.exists() else read_json(file) if file.exists() else None
    if there is None or fresh:
        return mine
    wrong = [
        f"{name} {there.get(part, {}).get(name)} there, {value} here"
        for part in ("settings", "graph", "digests")
        for name, value in mine[part].items()
        if there.get(part, {}).get(name) != value
    ]
    if wrong:
        raise UsageError(
            f"{folder} holds a run of other settings or files ({'; '.join(wrong)}); choose another "
            "folder, or forget that run (--fresh)"
        )
    return mine


def _forget(folder: Path) -> None:
    for name in (f"{NAME}.json", "model.safetensors", "predictions.csv", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for name in ("run.json", "checkpoint.safetensors"):
        (folder / STATE / name).unlink(missing_ok=True)


def _of_edges(graph: Graph, model: str) -> dict[str, Any]:
    """What the model reads of the edges, and what they have beside it."""
    there = {"types": graph.edge_type, "numbers": graph.edge_attr}
    reads = edge_reading(graph, model)
    return {
        "reads": reads,
        "unread": [name for name, one in there.items() if one is not None and name != reads],
    }


def _shapes(inputs: NodeInputs, kinds: Tensor | None, types: Sequence[str], classes: int) -> dict[str, Any]:
    """What the net is made for, beside the settings."""
    real = inputs.edge is not None and inputs.edge.is_floating_point()
    counted = None if kinds is None or real else len(types) or int(kinds.max()) + 1
    return {
        "outputs": classes or 1,
        "features": inputs.x.shape[1],
        "extra": 0 if inputs.extra is None else inputs.extra.shape[1],
        "edge_width": inputs.edge.shape[1] if inputs.edge is not None and real else None,
        "edge_kinds": counted,
    }


def made_model(settings: NodeSettings, made: dict[str, Any]) -> NodeModel:
    """The net of those settings and sizes, its weights drawn by the seed; UsageError where it cannot be."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            return NodeModel(settings, **made)
        except (ValueError, TypeError) as error:
            raise UsageError(f"model {settings.model} cannot be made: {error}") from error


def _check_classes(labels: LabelledNodes, classes: Sequence[str]) -> None:
    seen = labels.of(0)[1].unique()
    if classes and len(seen) < len(classes):
        missing = next(name for place, name in enumerate(classes) if place not in seen.tolist())
        raise UsageError(
            f"no training node has the class {missing!r}: it could never be told; label one, or drop it"
        )
