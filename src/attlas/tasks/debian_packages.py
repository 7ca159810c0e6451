"""Debian's packages as a graph: which depends on which, labelled by section.

Origin: the package lists that `apt-get update` fetches (metadata of the Debian archive; descriptions are
under the licences of their packages). About 63,000 packages of one release, with heavy-tailed degrees.
"""

import bz2
import gzip
import lzma
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.tasks.labelled_graph import LabelledGraph, hashed_words

__all__ = ["RELATIONS", "debian_packages", "package_lists"]

RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Suggests", "Enhances")
"""The kinds of edges, by edge type."""
FOLDER = Path("/var/lib/apt/lists")
APT_HELPER = "/usr/lib/apt/apt-helper"
FIELD = re.compile(
    rf"^(Package|Section|Provides|Description|{'|'.join(RELATIONS)}): (.*(?:\n[ \t].*)*)", re.MULTILINE
)
NAME = re.compile(r"\s*([^\s:(\[<|,]+)")
HELP = "run `apt-get update` on a Debian system, or give a Packages file or a folder of them"


def package_lists(place: str | os.PathLike[str] | None = None) -> list[Path]:
    """The Packages files, by name, of apt's lists or of the given file or folder; UsageError without any."""
    given = FOLDER if place is None else Path(place)
    if given.is_file():
        return [given]
    found = sorted(
        file for file in given.glob("*Packages*") if file.suffix in ("", ".gz", ".xz", ".bz2", ".lz4")
        or file.name.endswith("_Packages")
    )  # fmt: skip
    if not found:
        raise UsageError(f"no list of Debian packages in {given}: {HELP}")
    return found


def debian_packages(place: str | os.PathLike[str] | None = None, *, width: int = 300) -> LabelledGraph:
    """Packages, edges from a package to each that it names in a relation, features of the short description.

    Every alternative of a relation (`a | b`) is an edge of its own; the name of a virtual package stands for
    all that provide it; names that no list holds are left out. Edge types: RELATIONS. x (n, width): hashed
    bag of the description's words; name and section are not in it. Label: the section without its archive
    area (contrib/games is games). Of a package in several lists the first counts, files in order of their
    names. Nodes stand in the order of their names.

    place: a Packages file (plain, .gz, .xz, .bz2, .lz4) or a folder of them, apt's own lists by default.
    UsageError: there are none (run `apt-get update`), or a file is none.
    """
    graph, texts, labels, names, nodes = _read(tuple(package_lists(place)))
    return LabelledGraph(graph, hashed_words(texts, width), labels, names, RELATIONS, nodes)


@cache
def _read(files: tuple[Path, ...]) -> tuple[Graph, tuple[str, ...], Tensor, tuple[str, ...], tuple[str, ...]]:
    packages: dict[str, dict[str, str]] = {}
    for file in files:
        before = len(packages)
        text = _text(file)
        for stanza in text.split("\n\n"):
            fields = {name: value for name, value in FIELD.findall(stanza)}
            if "Package" in fields and "Section" in fields:
                packages.setdefault(fields["Package"], fields)
        if len(packages) == before and text.strip() and "Package: " not in text:
            raise UsageError(f"{file} holds no package with a section, so it is no Packages file: {HELP}")
    if not packages:
        raise UsageError(f"{', '.join(map(str, files))}: no package in it; {HELP}")
    nodes = tuple(sorted(packages))
    sections = [packages[node]["Section"].rpartition("/")[2] for node in nodes]
    names = tuple(sorted(set(sections)))
    label = {name: place for place, name in enumerate(names)}
    labels = torch.tensor([label[section] for section in sections])
    texts = tuple(packages[node].get("Description", "").partition("\n")[0] for node in nodes)
    return _graph(nodes, packages), texts, labels, names, nodes


def _graph(nodes: tuple[str, ...], packages: dict[str, dict[str, str]]) -> Graph:
    number = {node: place for place, node in enumerate(nodes)}
    meant: dict[str, list[int]] = {}
    for node in nodes:
        for name in _names(packages[node].get("Provides", "")):
            if name not in number:
                meant.setdefault(name, []).append(number[node])
    meant |= {node: [place] for node, place in number.items()}
    edges = [
        (number[node], other, kind)
        for node in nodes
        for kind, relation in enumerate(RELATIONS)
        for name in _names(packages[node].get(relation, ""))
        for other in meant.get(name, ())
    ]
    columns = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T
    return Graph.from_edge_index(columns[:2], num_nodes=len(nodes), edge_type=columns[2].contiguous())


def _names(relation: str) -> list[str]:
    """The packages of a relation, alternatives too, without versions and architectures."""
    parts = (NAME.match(part) for part in re.split(r"[,|]", relation))
    return [part[1] for part in parts if part]


def _text(file: Path) -> str:
    try:
        return _bytes(file).decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a list of packages: {error}; {HELP}") from error


def _bytes(file: Path) -> bytes:
    opened = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    if file.suffix in opened:
        with opened[file.suffix](file) as stream:  # type: ignore[operator]
            return bytes(stream.read())
    if file.suffix != ".lz4":
        return file.read_bytes()
    # apt's own form where it keeps its lists small, and no module of Python's reads it.
    commands = [[APT_HELPER, "cat-file", str(file)], ["lz4", "-dc", str(file)]]
    known = [command for command in commands if shutil.which(command[0])]
    if not known:
        raise UsageError(f"{file} needs apt-helper (package apt) or lz4 to be read: apt-get install lz4")
    done = subprocess.run(known[0], capture_output=True)
    if done.returncode:
        raise UsageError(f"{file} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}; {HELP}")
    return done.stdout
