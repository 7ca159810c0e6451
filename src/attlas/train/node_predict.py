"""What a finished run's model says of its own graph or of another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from attlas._common.errors import UsageError
from attlas._common.files import check_folder
from attlas.graph import Graph
from attlas.tasks.node_tables import read_features
from attlas.train.checkpoint import load_tensors
from attlas.train.node_files import GraphFile, ReadGraph, digest_of
from attlas.train.node_model import NodeInputs, NodeSettings, edge_reading, node_inputs
from attlas.train.node_predictions import answer, write_predictions
from attlas.train.node_run import load_node_run, made_model

__all__ = ["predict_nodes"]


def predict_nodes(
    folder: str | Path,
    out: str | Path,
    *,
    graph: str | None = None,
    features: str | None = None,
    nodes: str | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> int:
    """Write what a run's model says of every node of its own graph, or of another one; how many nodes.

    graph, features, nodes: other files, read as the run's own were. told: gets a sentence about each of the
    run's own files that is another one now. UsageError: as in training; features, types or numbers of edges
    that the model was not made for, or none where it was.
    """
    record = load_node_run(folder)
    check_folder(Path(out).parent)
    tensors, facts = load_tensors(Path(folder) / "model.safetensors")
    settings, made = NodeSettings(**facts["settings"]), facts["made"]
    file = GraphFile.from_dict(record["graph"])
    if nodes is not None and graph is None:
        raise UsageError("--nodes belongs to another graph: give its file, too")
    if graph is not None:
        file = file.other(graph, nodes)
    read = file.read(types=record["types"])
    names = record["feature_names"]
    path = features or (record["features"] if graph is None else None)
    if (path is None) != (names is None):
        known = (
            "made of degrees, without features"
            if names is None
            else f"made with features ({', '.join(names)})"
        )
        raise UsageError(
            f"the model of {folder} was {known}: "
            + ("leave out" if names is None else "give")
            + " --features"
        )
    x = None if path is None else read_features(path, read.names, names).x
    inputs = _inputs(file.path, read, x, settings, record, made)
    own = {} if graph is not None else {"graph": file.path, "nodes": file.nodes}
    _tell_changes(own | ({"features": path} if features is None else {}), record["digests"], told)
    model = made_model(settings, made)
    model.load_state_dict(tensors)
    model.eval()
    write_predictions(Path(out), answer(model, inputs), record["classes"], read.names, None)
    return read.graph.nodes


def _inputs(
    path: str,
    read: ReadGraph,
    x: Tensor | None,
    settings: NodeSettings,
    record: dict[str, Any],
    made: dict[str, Any],
) -> NodeInputs:
    """The net's inputs; UsageError where the edges have not what the model was trained on."""
    _refuse_other_edges(path, read.graph, settings.model, record.get("edges", {}).get("reads"))
    inputs = node_inputs(read.graph, x, settings, large=True)
    kinds = read.graph.edge_type
    if made["edge_kinds"] and kinds is not None and len(kinds) and int(kinds.max()) >= made["edge_kinds"]:
        raise UsageError(
            f"{path} has edge type {int(kinds.max())}, the model knows {made['edge_kinds']} types"
        )
    if (
        inputs.edge is not None
        and inputs.edge.is_floating_point()
        and inputs.edge.shape[1] != made["edge_width"]
    ):
        raise UsageError(
            f"{path} has {inputs.edge.shape[1]} numbers per edge, the model reads {made['edge_width']}"
        )
    return inputs


def _refuse_other_edges(path: str, graph: Graph, model: str, wanted: str | None) -> None:
    here = edge_reading(graph, model)
    if wanted is None or here == wanted:
        return
    if here == "nothing":
        raise UsageError(f"{path} has no {wanted} of edges, which the model was trained on: give them")
    without = "without any" if wanted == "nothing" else f"on {wanted}"
    raise UsageError(f"{path} has {here} of edges, but the model was trained {without}: leave them out")


def _tell_changes(
    files: dict[str, str | None], digests: dict[str, str | None], told: Callable[[str], None]
) -> None:
    for name, path in files.items():
        if path is not None and digest_of(path) != digests.get(name):
            told(f"{path} has changed since the training: what is told is of the file as it is now")
