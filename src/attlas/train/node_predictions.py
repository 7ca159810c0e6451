"""What a trained net says of nodes: as a table for the user, and on a drawing."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attlas._common.files import write_atomic
from attlas.graph.drawing import layout
from attlas.tasks.node_tables import SPLITS, NodeNames
from attlas.train.node_model import NodeInputs, NodeModel
from attlas.train.node_training import LabelledNodes

__all__ = ["answer", "drawing", "pairs", "write_predictions"]

SHOWN = 400  # test nodes whose targets are drawn


def answer(model: NodeModel, inputs: NodeInputs) -> Tensor:
    """(n, classes) probabilities, or (n,) targets, float64."""
    with torch.no_grad():
        out = model(inputs).double()
        return out.softmax(1) if model.outputs > 1 else model.unscaled(out)[:, 0]


def _rows(
    out: Tensor, classes: Sequence[str], nodes: Sequence[int]
) -> list[tuple[str | float, float | None]]:
    """(prediction, its probability or None) of nodes."""
    if not classes:
        return [(float(out[node]), None) for node in nodes]
    most, place = out.max(1)
    return [(classes[int(place[node])], float(most[node])) for node in nodes]


def write_predictions(
    path: Path, out: Tensor, classes: Sequence[str], names: NodeNames, labels: LabelledNodes | None
) -> None:
    """node, prediction, probability (of classes), and where they are known split and label."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    known = {} if labels is None else _known(labels, classes)
    heading = [
        "node",
        "prediction",
        *(["probability"] if classes else []),
        *(["split", "label"] if known else []),
    ]
    table.writerow(heading)
    for node, (told, sure) in enumerate(_rows(out, classes, range(len(out)))):
        shown = [told if isinstance(told, str) else f"{told:.6g}", *([] if sure is None else [f"{sure:.4f}"])]
        table.writerow([names.name(node), *shown, *(known.get(node, ("", "")) if known else ())])
    write_atomic(path, stream.getvalue())


def pairs(labels: LabelledNodes, out: Tensor) -> list[list[float]]:
    """[target, prediction] of test nodes, the first few hundred."""
    nodes, wanted = labels.of(2)
    return torch.stack([wanted, out[nodes]], 1)[:SHOWN].tolist()


def _known(labels: LabelledNodes, classes: Sequence[str]) -> dict[int, tuple[str, str | float]]:
    return {
        node: (SPLITS[split], classes[int(value)] if classes else value)
        for node, split, value in zip(
            labels.node.tolist(), labels.split.tolist(), labels.value.tolist(), strict=True
        )
    }


def drawing(
    inputs: NodeInputs,
    labels: LabelledNodes,
    out: Tensor,
    classes: Sequence[str],
    names: NodeNames,
    seed: int,
) -> dict[str, Any]:
    """The layout with name, split, label and prediction of its nodes."""
    found = layout(inputs.graph, around=labels.of(2)[0], seed=seed)
    known = _known(labels, classes)
    nodes = [row["node"] for row in found["nodes"]]
    for row, (told, _) in zip(found["nodes"], _rows(out, classes, nodes), strict=True):
        split, label = known.get(row["node"], (None, None))
        row |= {"name": names.name(row["node"]), "prediction": told, "split": split, "label": label}
    return found
