"""WordNet as a graph: synsets and the pointers between them, labelled by lexicographer file (45 classes).

Origin: WordNet 3.0, Princeton University (WordNet licence), data.noun, data.verb, data.adj and data.adv of
Debian's wordnet-base. 117,659 synsets, 377,592 pointers of 26 kinds between 183,798 pairs of synsets.
"""

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.tasks.glosses import FOLDER, WORDNET_VARIABLE
from attlas.tasks.labelled_graph import LabelledGraph, hashed_words

__all__ = ["LEXICOGRAPHER_FILES", "WORDNET_PARTS", "wordnet_folder", "wordnet_graph"]

WORDNET_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
"""Part of speech and its letter, in the order of the nodes."""
LEXICOGRAPHER_FILES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact",
    "noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling",
    "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object", "noun.person",
    "noun.phenomenon", "noun.plant", "noun.possession", "noun.process", "noun.quantity", "noun.relation",
    "noun.shape", "noun.state", "noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition",
    "verb.communication", "verb.competition", "verb.consumption", "verb.contact", "verb.creation",
    "verb.emotion", "verb.motion", "verb.perception", "verb.possession", "verb.social", "verb.stative",
    "verb.weather", "adj.ppl",
)  # fmt: skip
"""The labels, by file number (lexnames(5WN))."""


def wordnet_folder() -> Path:
    """The folder of WordNet's four data files; UsageError where one is missing."""
    given = os.environ.get(WORDNET_VARIABLE)
    folder = Path(given) if given else FOLDER
    absent = [f"data.{part}" for part in WORDNET_PARTS if not (folder / f"data.{part}").is_file()]
    if absent:
        raise UsageError(
            f"WordNet is not there: {folder} lacks {', '.join(absent)}; install Debian's package "
            f"wordnet-base (apt-get install wordnet-base), or set {WORDNET_VARIABLE} to a folder with them"
        )
    return folder


def wordnet_graph(*, width: int = 300) -> LabelledGraph:
    """All synsets: edges from a synset to those it points to, features of the gloss, label = its file.

    x (n, width): hashed bag of the gloss's words, examples included. The file number, the part of speech and
    the kinds of pointers are not in it. Kinds of pointers are edge types: they give the label's group away,
    so that what reads them solves another task. Pointers between single words of synsets are pointers between
    their synsets, so equal edges occur. Nodes are named by their first word.

    Read from /usr/share/wordnet (Debian's package wordnet-base), or from the folder that the environment
    variable ATTLAS_WORDNET names; a few seconds. UsageError: files that are missing or not WordNet's.
    """
    graph, glosses, labels, kinds, nodes = _read(wordnet_folder())
    return LabelledGraph(graph, hashed_words(glosses, width), labels, LEXICOGRAPHER_FILES, kinds, nodes)


@cache
def _read(folder: Path) -> tuple[Graph, tuple[str, ...], Tensor, tuple[str, ...], tuple[str, ...]]:
    number: dict[str, int] = {}  # "n00001740" -> node
    glosses: list[str] = []
    labels: list[int] = []
    nodes: list[str] = []
    ends: list[tuple[int, str]] = []
    symbols: list[str] = []
    for part, letter in WORDNET_PARTS.items():
        file = folder / f"data.{part}"
        for line_number, line in enumerate(_lines(file), start=1):
            if line.startswith("  ") or not line.strip():  # the licence at the top is set in by two spaces
                continue
            entry, bar, gloss = line.partition(" | ")
            try:
                offset, label, word, pointers = _synset(entry.split())
            except (ValueError, IndexError):
                label, bar = -1, ""
            if not bar or not 0 <= label < len(LEXICOGRAPHER_FILES):
                raise UsageError(
                    f"line {line_number} of {file} is no synset of WordNet (offset, file number 00 to 44, "
                    f"..., | gloss): {line[:60]!r}; give the files of WordNet 3.0 or 3.1"
                )
            node = number[letter + offset] = len(nodes)
            nodes.append(word)
            labels.append(label)
            glosses.append(gloss.strip())
            ends += [(node, place + target) for _, target, place in pointers]
            symbols += [symbol for symbol, _, _ in pointers]
    if not nodes:
        raise UsageError(f"{folder} holds no synset; give the data files of WordNet 3.0 or 3.1")
    return (
        _graph(number, ends, symbols, folder),
        tuple(glosses),
        torch.tensor(labels),
        _kinds(symbols),
        tuple(nodes),
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as a data file of WordNet: {error}") from error


def _synset(fields: list[str]) -> tuple[str, int, str, list[tuple[str, str, str]]]:
    """Offset, file number, first word, and (symbol, offset, part of speech) of every pointer."""
    words = int(fields[3], 16)
    first = 4 + 2 * words
    count = int(fields[first])
    pointers = fields[first + 1 : first + 1 + 4 * count]
    if words < 1 or len(pointers) < 4 * count:
        raise ValueError("cut off")
    found = list(zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True))
    return fields[0], int(fields[1]), fields[4], found


def _kinds(symbols: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(symbols)))


def _graph(number: dict[str, int], ends: list[tuple[int, str]], symbols: list[str], folder: Path) -> Graph:
    absent = next((target for _, target in ends if target not in number), None)
    if absent is not None:
        raise UsageError(
            f"a pointer leads to synset {absent!r}, which no file in {folder} holds: the data files must "
            "be of one version of WordNet"
        )
    kind = {name: place for place, name in enumerate(_kinds(symbols))}
    pairs = torch.tensor([(node, number[target]) for node, target in ends], dtype=torch.int64).reshape(-1, 2)
    types = torch.tensor([kind[symbol] for symbol in symbols], dtype=torch.int64)
    return Graph.from_edge_index(pairs.T, num_nodes=len(number), edge_type=types)
