"""A graph out of whatever file a user has: an edge list, arrays, a sparse matrix, a saved graph."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attlas._common.errors import UsageError
from attlas.graph.change import undirected as both_ways
from attlas.graph.files import load_graph
from attlas.graph.graph import Graph
from attlas.graph.make import from_scipy
from attlas.graph.tables import NamedGraph, read_edges, read_nodes, rows_of

__all__ = ["is_edge_list", "read_graph"]

TITLES = frozenset(
    ("source", "target", "sender", "receiver", "src", "dst", "from", "to", "head", "tail", "node1", "node2")
)
"""Words that name columns in most edge lists; a node is hardly ever called so."""
FORMS = "a file with one edge a line (.csv, .tsv, or blanks between), an .npz file, or a saved graph's folder"


def is_edge_list(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read as an edge list, to which columns belong."""
    return Path(path).suffix.lower() != ".npz" and not Path(path).is_dir()


def read_graph(
    path: str | os.PathLike[str],
    *,
    sender: str | int = 0,
    receiver: str | int = 1,
    kind: str | int | None = None,
    values: tuple[str | int, ...] = (),
    header: bool | None = None,
    nodes: str | os.PathLike[str] | None = None,
    undirected: bool = False,
    mapped: bool = False,
) -> NamedGraph:
    """The graph of a file; where its nodes or types have no names there, `nodes` or `types` is empty.

    - a folder that `save_graph` wrote; mapped: left on disk;
    - .npz with edge_index (2, E) and maybe num_nodes, edge_attr, edge_type, batch, as PyG names them; or a
      matrix of `scipy.sparse.save_npz`, whose rows receive; or adj_data, adj_indices, adj_indptr, adj_shape,
      whose rows send, as in the data sets of PyG that are kept so;
    - anything else: an edge list, see `read_edges`; the columns, header and nodes are for it alone.

    nodes: a table with the column node, for nodes without edges. undirected: every edge also backwards.
    UsageError: a file that is none of these, columns of what has none, wrong lines, or a first
    line that looks like column names (words that name them, or text above numbers) and nothing said of it
    (header=).
    """
    place = Path(path)
    if not place.exists():
        raise UsageError(f"graph {place} does not exist; give {FORMS}")
    if not is_edge_list(place):
        _refuse_columns(place, (sender, receiver, kind, values, header, nodes))
    if place.is_dir():
        found = NamedGraph(load_graph(place, mapped=mapped), (), ())
    elif place.suffix.lower() == ".npz":
        found = NamedGraph(_arrays(place), (), ())
    else:
        if header is None:
            _ask_about_titles(place, (sender, receiver))
        columns: dict[str, Any] = {"sender": sender, "receiver": receiver, "kind": kind, "values": values}
        others = () if nodes is None else read_nodes(nodes)
        found = read_edges(place, **columns, header=header, nodes=others)
    if undirected:
        found = NamedGraph(both_ways(found.graph)[0], found.nodes, found.types)
    return found


def _refuse_columns(path: Path, given: tuple[Any, ...]) -> None:
    usual = (0, 1, None, (), None, None)
    names = ("--sender", "--receiver", "--kind", "--values", "--header", "--nodes")
    told = [name for name, one, same in zip(names, given, usual, strict=True) if one != same]
    if told:
        raise UsageError(
            f"{path} is no edge list: {', '.join(told)} would not be read; leave out what belongs to columns "
            "(an .npz file or a saved graph holds edge_type, edge_attr and the number of nodes itself)"
        )


def _ask_about_titles(path: Path, ends: tuple[str | int, str | int]) -> None:
    """UsageError for a first line of words that name columns, or of text above numbers of nodes."""
    places = [column for column in ends if isinstance(column, int)]
    if len(places) < len(ends):
        return
    rows = [cells for _, cells in islice(rows_of(path, None, f"give {FORMS}"), 2)]
    if not rows or max(*places, 1) >= min(map(len, rows)):
        return  # what is wrong with such lines is said when they are read
    known = sum(cell.lower() in TITLES for cell in rows[0]) >= 2
    numbers = [[cells[column].lstrip("-").isdecimal() for column in places] for cells in rows]
    if known or (len(rows) > 1 and not any(numbers[0]) and all(numbers[1])):
        raise UsageError(
            f"{path}: line 1 looks like column names ({', '.join(rows[0])}): say that it is one (--header, "
            "header=True), or that it is an edge (--no-header, header=False)"
        )


def _arrays(path: Path) -> Graph:
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    try:
        return _graph_of(path, parts)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} holds no graph: {error}") from error


def _graph_of(path: Path, parts: dict[str, np.ndarray]) -> Graph:
    import scipy.sparse

    if "edge_index" in parts:
        given: dict[str, Any] = {
            name: torch.from_numpy(parts[name])
            for name in ("edge_attr", "edge_type", "batch")
            if name in parts
        }
        if "num_nodes" in parts or "x" in parts:
            given["num_nodes"] = int(parts["num_nodes"]) if "num_nodes" in parts else len(parts["x"])
        return Graph.from_edge_index(torch.from_numpy(parts["edge_index"]), **given)
    if {"format", "data", "shape"} <= set(parts):
        return from_scipy(scipy.sparse.load_npz(path))
    if {"adj_data", "adj_indices", "adj_indptr", "adj_shape"} <= set(parts):
        rows = scipy.sparse.csr_array(
            (parts["adj_data"], parts["adj_indices"], parts["adj_indptr"]), tuple(parts["adj_shape"])
        )
        return from_scipy(rows.T)
    raise UsageError(
        f"{path} holds {', '.join(sorted(parts)) or 'nothing'}: edge_index (2, edges), a matrix of "
        "scipy.sparse.save_npz, or adj_data, adj_indices, adj_indptr and adj_shape are expected"
    )
