"""Options of the commands on a graph's file."""

from typing import Annotated, Any

import typer

__all__ = [
    "File", "Header", "Json", "Kind", "Nodes", "Receiver", "Sender", "Undirected", "Values", "columns",
]  # fmt: skip

File = Annotated[
    str,
    typer.Argument(
        help="Edge list (.csv, .tsv, or blanks between), .npz, or the folder of a saved graph.",
        show_default=False,
    ),
]
Sender = Annotated[str, typer.Option(help="Edge lists: column of senders, name or place from 0.")]
Receiver = Annotated[str, typer.Option(help="Edge lists: column of receivers.")]
Kind = Annotated[str | None, typer.Option(help="Edge lists: column of edge types.", show_default=False)]
Values = Annotated[str, typer.Option(help="Edge lists: columns of numbers, joined by commas.")]
Header = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Edge lists: whether line 1 names the columns.")
]
Nodes = Annotated[
    str | None,
    typer.Option(
        help="Edge lists: table whose column node names nodes without edges, too.", show_default=False
    ),
]
Undirected = Annotated[bool, typer.Option("--undirected", help="Take every edge in both directions.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def columns(
    sender: str,
    receiver: str,
    kind: str | None,
    values: str,
    header: bool | None,
    undirected: bool,
    nodes: str | None,
) -> dict[str, Any]:
    """The options of an edge list, columns by name or place."""
    return {
        "sender": _column(sender),
        "receiver": _column(receiver),
        "kind": None if kind is None else _column(kind),
        "values": tuple(_column(part) for part in values.split(",") if part.strip()),
        "header": header,
        "undirected": undirected,
        "nodes": nodes,
    }


def _column(text: str) -> str | int:
    text = text.strip()
    return int(text) if text.isdecimal() else text
