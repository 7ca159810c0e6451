"""The files that a run on a user's graph reads, and what stands in them."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.graph.sources import is_edge_list, read_graph
from attlas.tasks.node_tables import NodeNames

__all__ = ["GraphFile", "ReadGraph", "digest_of"]

PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class ReadGraph:
    """A graph with the names of its nodes and types."""

    graph: Graph
    names: NodeNames
    types: tuple[str, ...]


@dataclass(frozen=True)
class GraphFile:
    """Where a graph is and how it is read; see `attlas.graph.sources.read_graph`."""

    path: str
    sender: str | int = 0
    receiver: str | int = 1
    kind: str | int | None = None
    values: tuple[str | int, ...] = ()
    header: bool | None = None
    undirected: bool = False
    nodes: str | None = None

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> "GraphFile":
        """Of `to_dict`."""
        return cls(**said | {"values": tuple(said["values"])})

    def other(self, path: str, nodes: str | None) -> "GraphFile":
        """Another file, read in the same way where it is an edge list too."""
        if is_edge_list(path):
            return replace(self, path=path, nodes=nodes)
        return GraphFile(path, undirected=self.undirected, nodes=nodes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def read(self, *, types: Sequence[str] = (), mapped: bool = False) -> ReadGraph:
        """The graph; types: those that a model knows, which numbers then mean.

        UsageError: as `read_graph`; a type that the model does not know.
        """
        options = self.to_dict()
        found = read_graph(options.pop("path"), **options, mapped=mapped)
        graph = found.graph
        if types and found.types and graph.edge_type is not None:
            if unknown := sorted(set(found.types) - set(types)):
                raise UsageError(
                    f"{self.path}: the model knows no edge type {unknown[0]!r}, only {', '.join(types)}"
                )
            number = torch.tensor([types.index(name) for name in found.types])
            graph = graph.replace(edge_type=number[graph.edge_type])
        nodes = 0 if graph.bipartite else graph.nodes
        return ReadGraph(graph, NodeNames(found.nodes, nodes), tuple(types) or found.types)


def digest_of(path: str | os.PathLike[str]) -> str:
    """Short name of the content of a file, or of a folder's files."""
    place = Path(path)
    found = hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        try:
            with file.open("rb") as stream:
                while piece := stream.read(PIECE):
                    found.update(piece)
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    return found.hexdigest()[:16]
