"""Commands on a user's graph: attlas graph inspect, encode, train, predict, layers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from attlas._common.errors import UsageError
from attlas._common.files import check_folder, to_json, write_atomic
from attlas.cli.app import GRAPHS, app, command
from attlas.cli.bars import Bars
from attlas.cli.graph_options import (
    File,
    Header,
    Json,
    Kind,
    Nodes,
    Receiver,
    Sender,
    Undirected,
    Values,
    columns,
)

__all__ = ["encode", "graph", "inspect", "layers", "predict", "train"]

graph = typer.Typer(
    help="Look at a graph, encode it, and train a graph layer on it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(graph, name="graph", rich_help_panel=GRAPHS)

LARGE_GRAPH, USUAL_BATCH = 1_000_000, 1024


@command(GRAPHS, graph)
def inspect(
    file: File,
    sender: Sender = "0",
    receiver: Receiver = "1",
    kind: Kind = None,
    values: Values = "",
    header: Header = None,
    undirected: Undirected = False,
    nodes: Nodes = None,
    as_json: Json = False,
) -> None:
    """Show what a graph is like: size, direction, components, loops, equal edges, the tail of its degrees."""
    from attlas.graph.summary import summary
    from attlas.report import print_summary
    from attlas.train.node_files import GraphFile

    options = columns(sender, receiver, kind, values, header, undirected, nodes)
    read = GraphFile(file, **options).read(mapped=True)
    found = summary(read.graph)
    if as_json:
        print(to_json(found | {"type_names": list(read.types)}), end="")
        return
    print_summary(found, read.types)


@command(GRAPHS, graph)
def encode(
    file: File,
    encoding: Annotated[
        str,
        typer.Option(help="degree, rwse, laplacian, rrwp, paths, joined by commas; a size as in rwse:16."),
    ] = "rwse,laplacian",
    out: Annotated[Path, typer.Option(help="File to write, .safetensors or .npz.")] = Path(
        "encodings.safetensors"
    ),
    sender: Sender = "0",
    receiver: Receiver = "1",
    header: Header = None,
    undirected: Undirected = False,
    nodes: Nodes = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go through all pairs of more than 10,000 nodes, too.")
    ] = False,
) -> None:
    """Compute encodings of a graph's nodes (degree, rwse, laplacian) or pairs (rrwp, paths) into a file.

    Row i is node i; the names of an edge list's nodes stand in the file beside the numbers.
    """
    from attlas.graph.encode import encode as encoded
    from attlas.graph.encode import parse_encodings, refuse_pairs
    from attlas.train.node_files import GraphFile

    asked = parse_encodings(encoding)
    if not asked:
        raise UsageError(
            "no encoding is named; give some of degree, rwse, laplacian, rrwp, paths (--encoding)"
        )
    if out.suffix not in (".safetensors", ".npz"):
        raise UsageError(f"--out must end in .safetensors or .npz, got {out}")
    check_folder(out.parent)
    options = columns(sender, receiver, None, "", header, undirected, nodes)
    read = GraphFile(file, **options).read()
    if read.graph.bipartite:
        raise UsageError(f"{file} has senders and receivers of two kinds: encodings need one kind of nodes")
    for one in asked:
        refuse_pairs(read.graph, one, force)
    tensors: dict[str, Any] = {}
    with Bars() as progress:
        for one in asked:
            progress.stage(str(one), 1)
            tensors |= encoded(read.graph, one, large=force)
            progress.advance()
    names = [read.names.name(node) for node in range(read.graph.nodes)]
    write_atomic(out, _encoded_bytes(out.suffix, tensors, names, encoding))
    for name, one in tensors.items():
        print(f"{name:<17}{' x '.join(f'{size:,}' for size in one.shape)}")
    print(f"written to {out}")


@command(GRAPHS, graph)
def train(
    file: File,
    labels: Annotated[
        Path,
        typer.Option(
            help="Table with the columns node, label, and split (train, valid, test) if it is settled.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    model: Annotated[str, typer.Option(help="A graph layer; attlas graph layers shows them.")] = "gin",
    features: Annotated[
        Path | None,
        typer.Option(
            help="Table with the column node and a column of numbers per feature; by default degrees.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="classification, or regression.")] = "classification",
    encodings: Annotated[
        str, typer.Option(help="degree, rwse, laplacian, joined by commas; a size as in rwse:16.")
    ] = "",
    depth: Annotated[int, typer.Option(help="Layers.")] = 2,
    width: Annotated[int, typer.Option(help="Channels of a node.")] = 64,
    heads: Annotated[int, typer.Option(help="Heads of attention, where the layer has some.")] = 4,
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 5e-3,
    weight_decay: Annotated[float, typer.Option(help="Decay of matrices.")] = 5e-4,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Labelled nodes per step, with sampled neighbours; 0: the whole graph in every step. By "
            "default 0 up to a million edges, 1024 above.",
            show_default=False,
        ),
    ] = None,
    fanout: Annotated[int, typer.Option(help="Edges into a node that are sampled, per layer.")] = 10,
    check: Annotated[int, typer.Option(help="Steps between looks at the validation nodes.")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides every random choice.")] = 0,
    sender: Sender = "0",
    receiver: Receiver = "1",
    kind: Kind = None,
    values: Values = "",
    header: Header = None,
    undirected: Undirected = False,
    nodes: Nodes = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go through all pairs of more than 10,000 nodes for rwse.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the run that is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Train a graph layer to tell the nodes' labels, and write what it says of every node.

    Into the folder come report.html, predictions.csv, model.safetensors and graph_run.json. An interrupted
    run continues when the same command is given again, and ends as if it had not been interrupted.
    """
    from attlas.train.fit import Diverged
    from attlas.train.node_files import GraphFile
    from attlas.train.node_model import NodeSettings
    from attlas.train.node_run import NodeRun, train_node_run

    place = GraphFile(file, **columns(sender, receiver, kind, values, header, undirected, nodes))
    said: dict[str, Any] = {
        "model": model, "task": task, "depth": depth, "width": width, "heads": heads, "steps": steps,
        "learning_rate": learning_rate, "weight_decay": weight_decay, "encodings": encodings,
        "fanout": fanout, "check": check, "seed": seed,
    }  # fmt: skip
    # What can be refused without the graph is refused before it is read.
    NodeSettings(**said, batch=batch or 0)
    check_folder(out)
    read = None
    if batch is None:
        read = place.read(mapped=True)
        batch = USUAL_BATCH if read.graph.edges > LARGE_GRAPH else 0
    run = NodeRun(
        place,
        str(labels),
        None if features is None else str(features),
        NodeSettings(**said, batch=batch),
        force,
        None if Path(file).is_dir() else read,  # a saved graph was left on disk
    )
    with Bars() as progress:
        done: list[int] = []

        def told(now: int) -> None:
            if not done:
                progress.stage("training", steps)
            progress.advance(now - (done[-1] if done else 0))
            done.append(now)

        try:
            record = train_node_run(run, out, command=_said(), fresh=fresh, told=told)
        except Diverged as error:
            raise UsageError(str(error)) from error
    from attlas.report import print_graph_run, write_graph_run

    page = write_graph_run(out).page
    for part in record.get("edges", {}).get("unread", ()):
        print(f"attlas: {model} does not read the {part} of the edges", file=sys.stderr)
    if as_json:
        print(
            to_json({name: record[name] for name in ("scores", "baselines", "labelled", "best_step")}), end=""
        )
        return
    print_graph_run(record)
    print(f"report       {page}\npredictions  {out / 'predictions.csv'}")


@command(GRAPHS, graph)
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    file: Annotated[
        str | None, typer.Argument(help="Another graph, read as the run's own was.", show_default=False)
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Features of the other graph's nodes.", show_default=False)
    ] = None,
    nodes: Nodes = None,
    out: Annotated[Path, typer.Option(help="Table to write.")] = Path("predictions.csv"),
) -> None:
    """Write what a run's model says of every node, of its own graph or of another one."""
    from attlas.train.node_predict import predict_nodes

    def told(line: str) -> None:
        print(f"attlas: {line}", file=sys.stderr)

    count = predict_nodes(run, out, graph=file, features=features, nodes=nodes, told=told)
    print(f"{count:,} nodes written to {out}")


@command(GRAPHS, graph)
def layers(as_json: Json = False) -> None:
    """List the graph layers that can be trained, what each reads of edges, and how far it looks."""
    from rich.console import Console
    from rich.table import Table

    from attlas.layers import GRAPH_LAYERS

    entries = [GRAPH_LAYERS[name] for name in sorted(GRAPH_LAYERS)]
    if as_json:
        rows = [
            {"name": one.name, "edges": one.edges, "reach": one.reach, "excused": dict(one.excused)}
            for one in entries
        ]
        print(to_json(rows), end="")
        return
    table = Table("layer", "reads of edges", "reach in hops")
    for one in entries:
        table.add_row(one.name, one.edges, "any node" if one.reach is None else str(one.reach))
    Console().print(table)


def _said() -> str:
    """The command as it was given."""
    return shlex.join(["attlas", *sys.argv[1:]]) if len(sys.argv) > 1 else "attlas graph train"


def _encoded_bytes(suffix: str, tensors: dict[str, Any], names: list[str], encoding: str) -> bytes:
    import io
    import json

    import numpy as np
    from safetensors.torch import save

    if suffix == ".safetensors":
        header = {
            "schema": "attlas.encodings",
            "version": "1",
            "nodes": json.dumps(names),
            "encodings": encoding,
        }
        return save({name: one.contiguous() for name, one in tensors.items()}, metadata=header)
    stream = io.BytesIO()
    np.savez_compressed(stream, node=np.array(names), **{name: one.numpy() for name, one in tensors.items()})
    return stream.getvalue()
