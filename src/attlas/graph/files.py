"""A graph as a folder of plain .npy arrays and a JSON file: no pickle, and readable without loading it."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas._common.files import check_schema, read_json, write_json
from attlas.graph.graph import Graph

__all__ = ["load_graph", "save_graph"]

SCHEMA = "attlas.graph"
PARTS = ("sender", "receiver", "edge_attr", "edge_type", "pointer")


def save_graph(graph: Graph, folder: str | os.PathLike[str]) -> Path:
    """Write the graph to a folder: graph.json and one .npy file per tensor.

    The folder appears whole or not at all; a graph that was there before is replaced. UsageError: the folder
    holds something else. bfloat16 features, which numpy lacks, are refused.
    """
    target = Path(folder)
    if target.exists() and not (target / "graph.json").is_file():
        raise UsageError(f"{target} exists and is no graph: give a new folder, or one with a graph.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    temporary.chmod(0o755)  # a graph is as readable as any other new folder
    try:
        present = {name: part for name in PARTS if (part := getattr(graph, name)) is not None}
        for name, part in present.items():
            np.save(temporary / f"{name}.npy", _array(name, part), allow_pickle=False)
        write_json(temporary / "graph.json", _header(graph, sorted(present)))
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _array(name: str, part: Tensor) -> np.ndarray:
    if part.dtype == torch.bfloat16:
        raise TypeError(f"{name} is bfloat16, which .npy files cannot hold: save it as float32")
    return part.detach().cpu().numpy()


def _header(graph: Graph, parts: list[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": 1,
        "senders": graph.senders,
        "receivers": graph.receivers,
        "bipartite": graph.bipartite,
        "edges": graph.edges,
        "tensors": parts,
    }


def load_graph(folder: str | os.PathLike[str], *, mapped: bool = False) -> Graph:
    """The graph of a folder that `save_graph` wrote.

    mapped: leave the tensors on disk and let the system read what is used, for graphs larger than memory;
    their ends are then not checked one by one before they are used. UsageError: no such folder, a newer
    version, a missing or damaged file.
    """
    place = Path(folder)
    if not (place / "graph.json").is_file():
        raise UsageError(
            f"{place} is no graph: a folder with graph.json, as save_graph writes it, is expected"
        )
    header = read_json(place / "graph.json")
    check_schema(header, SCHEMA, 1, source=str(place / "graph.json"))
    names = ("senders", "receivers", "edges", "bipartite", "tensors")
    absent = [name for name in names if name not in header] or [
        name for name in PARTS[:2] if name not in header["tensors"]
    ]
    if absent:
        raise UsageError(f"{place / 'graph.json'} is damaged: it does not say {', '.join(absent)}")
    parts: dict[str, Any] = {
        name: _read(place / f"{name}.npy", mapped) for name in header["tensors"] if name in PARTS
    }
    for name, part in parts.items():
        _check_part(place / f"{name}.npy", name, part, header["edges"])
    fields = {name: header[name] for name in ("senders", "receivers", "bipartite")}
    try:
        return (_unchecked if mapped else Graph)(**fields, **parts)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{place} holds no graph: {error}; save it again") from error


def _check_part(path: Path, name: str, part: Tensor, edges: int) -> None:
    """What can be told of a tensor without reading it."""
    if name not in ("edge_attr",) and (part.dtype != torch.int64 or part.dim() != 1):
        raise UsageError(f"{path} must hold int64 in one axis, got {part.dtype} {tuple(part.shape)}")
    if name != "pointer" and (part.dim() < 1 or len(part) != edges):
        raise UsageError(f"{path} must have a row for each of {edges} edges, got {tuple(part.shape)}")


def _read(path: Path, mapped: bool) -> Tensor:
    try:
        # "c": a write would change memory only, and torch takes no array that cannot be written to.
        array = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as an .npy array ({error}); save the graph again") from error
    return torch.from_numpy(array)


def _unchecked(**fields: Any) -> Graph:
    """A graph whose ends are not read: `save_graph` wrote them out of a graph that was checked."""
    graph = object.__new__(Graph)
    for name in ("edge_attr", "edge_type", "pointer"):
        fields.setdefault(name, None)
    for name, value in fields.items():
        object.__setattr__(graph, name, value)
    return graph
