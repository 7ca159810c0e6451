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
from attlas.graph.graph import CHUNK, Graph, Sorted

__all__ = ["load_graph", "save_graph"]

SCHEMA = "attlas.graph"
PARTS = ("sender", "receiver", "edge_attr", "edge_type", "pointer")
SIDES = ("by_receiver", "by_sender")
FILES = {"graph.json", *(f"{name}.npy" for name in PARTS)} | {
    f"{side}.{part}.npy" for side in SIDES for part in Sorted._fields
}


def save_graph(graph: Graph, folder: str | os.PathLike[str], *, sort: bool = True) -> Path:
    """Write the graph to a folder: graph.json and one .npy file per tensor.

    sort: write its edges sorted by receiver and by sender too, so that a mapped graph need not sort them in
    memory; 48 bytes an edge in place of 16. The folder appears whole or not at all; a graph that was there
    before is replaced, and interrupted at any moment the old one is there, perhaps renamed to .NAME....old.
    UsageError: the folder holds something else. bfloat16 features, which numpy lacks, are refused.
    """
    target = Path(folder)
    if target.exists():
        _check_replaced(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    temporary.chmod(0o755)  # a graph is as readable as any other new folder
    try:
        present = {name: part for name in PARTS if (part := getattr(graph, name)) is not None}
        for name, part in present.items():
            np.save(temporary / f"{name}.npy", _array(name, part), allow_pickle=False)
        for side in SIDES if sort else ():
            for name, part in getattr(graph, side)._asdict().items():
                np.save(temporary / f"{side}.{name}.npy", _array(name, part), allow_pickle=False)
        write_json(temporary / "graph.json", _header(graph, sorted(present), sort))
        _put(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _check_replaced(target: Path) -> None:
    if not (target / "graph.json").is_file():
        raise UsageError(f"{target} exists and is no graph: give a new folder, or one with a graph.json")
    foreign = sorted({path.name for path in target.iterdir()} - FILES)
    if foreign:
        raise UsageError(
            f"{target} holds more than a graph, {', '.join(foreign)}: move that away, or give a new folder"
        )


def _put(made: Path, target: Path) -> None:
    """The made folder in the place of the target, which is gone only when the other is there."""
    aside = made.with_suffix(".old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(made, target)
    except BaseException:
        if aside.exists():
            os.replace(aside, target)
        raise
    if aside.exists():
        shutil.rmtree(aside)


def _array(name: str, part: Tensor) -> np.ndarray:
    if part.dtype == torch.bfloat16:
        raise TypeError(f"{name} is bfloat16, which .npy files cannot hold: save it as float32")
    return part.detach().cpu().numpy()


def _header(graph: Graph, parts: list[str], sort: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "version": 1,
        "senders": graph.senders,
        "receivers": graph.receivers,
        "bipartite": graph.bipartite,
        "edges": graph.edges,
        "tensors": parts,
        "sorted": sort,
    }


def load_graph(folder: str | os.PathLike[str], *, mapped: bool = False) -> Graph:
    """The graph of a folder that `save_graph` wrote.

    mapped: leave the tensors on disk and let the system read what is used, for graphs larger than memory:
    features, edges, and the edges sorted by receiver and sender (unless saved with sort=False, when sorting
    takes some 24 bytes an edge of memory). All ends are read once and checked, a few million at a time. In
    memory are then tensors of nodes, and what a computation makes for each edge (`graph.edge_index`, say).
    UsageError: no such folder, a newer version, a missing or damaged file.
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
    kinds = {"senders": int, "receivers": int, "edges": int, "bipartite": bool}
    for name, kind in kinds.items():
        if type(header[name]) is not kind:
            raise UsageError(
                f"{place / 'graph.json'} is damaged: {name} must be {kind.__name__}, got {header[name]!r}"
            )
    parts: dict[str, Any] = {
        name: _read(place / f"{name}.npy", mapped) for name in header["tensors"] if name in PARTS
    }
    for name, part in parts.items():
        _check_part(place / f"{name}.npy", name, part, header["edges"])
    fields = {name: header[name] for name in ("senders", "receivers", "bipartite")}
    try:
        graph = Graph(**fields, **parts)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{place} holds no graph: {error}; save it again") from error
    if mapped and header.get("sorted"):
        # Put where the graph keeps what it sorts itself.
        sides = graph.receivers, graph.senders
        graph.__dict__["by_receiver"] = _side(place, "by_receiver", *sides, graph.edges)
        graph.__dict__["by_sender"] = _side(place, "by_sender", *sides[::-1], graph.edges)
    return graph


def _side(place: Path, side: str, nodes: int, others: int, edges: int) -> Sorted:
    """Sorted edges on disk; no number in them may lead out of a tensor."""
    found = Sorted(*(_read(place / f"{side}.{name}.npy", True) for name in Sorted._fields))
    below = {"pointer": edges + 1, "other": others, "order": edges}
    for name, part in found._asdict().items():
        path, length = place / f"{side}.{name}.npy", nodes + 1 if name == "pointer" else edges
        if part.dtype != torch.int64 or part.shape != (length,):
            raise UsageError(f"{path} must hold {length} of int64, got {part.dtype} {tuple(part.shape)}")
        if any(bool(((piece < 0) | (piece >= below[name])).any()) for piece in part.split(CHUNK)):
            raise UsageError(f"{path} must hold numbers in 0 .. {below[name] - 1}; save the graph again")
    if bool((found.pointer.diff() < 0).any()) or found.pointer[[0, -1]].tolist() != [0, edges]:
        raise UsageError(f"{place / side}.pointer.npy must rise from 0 to {edges}; save the graph again")
    return found


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
