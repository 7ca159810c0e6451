"""Knowledge graphs of triples for link prediction: small ones that pykeen ships, or the user's own files.

Origin of the small ones, as text files of PyPI pykeen (MIT): Nations and Kinships (Kemp et al. 2006, after
Rummel 1950 and Denham 1973), UMLS (McCray 2003, semantic network, public).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.tasks.packaged import packaged_file, table_lines

__all__ = ["KNOWLEDGE_GRAPHS", "KnowledgeGraph", "knowledge_graph", "read_triples"]

KNOWLEDGE_GRAPHS = ("nations", "kinships", "umls")
VERSION = "1.11.1"


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Triples (n, 3) int64, head, relation, tail, to train, validate and test with, and the names.

    Questions are asked in both directions: (head, relation, ?), and (tail, relation + R, ?) for the head.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    def graph(self) -> Graph:
        """The training triples: edges from head to tail of their relation's type, in the order of `train`."""
        count = len(self.entities)
        head, kind, tail = (part.contiguous() for part in self.train.unbind(1))
        return Graph(head, tail, count, count, edge_type=kind)

    def questions(self, triples: Tensor) -> Tensor:
        """(2 n, 3): source, relation asked (+ R for the head), answer; tails first, then heads."""
        head, kind, tail = triples.unbind(1)
        back = torch.stack([tail, kind + len(self.relations), head], 1)
        return torch.cat([torch.stack([head, kind, tail], 1), back])

    def answers(self, questions: Tensor) -> Tensor:
        """(questions, entities) bool: every entity that any part of the data knows as an answer."""
        if not len(questions):
            return torch.zeros(0, len(self.entities), dtype=torch.bool)
        every = self.questions(torch.cat([self.train, self.valid, self.test]))
        relations = 2 * len(self.relations)
        code, asked = (part[:, 0] * relations + part[:, 1] for part in (every, questions))
        unique, row = torch.unique(asked, return_inverse=True)
        place = torch.searchsorted(unique, code).clamp(max=len(unique) - 1)
        found = torch.zeros(len(unique), len(self.entities), dtype=torch.bool)
        mine = unique[place] == code
        found[place[mine], every[mine, 2]] = True
        return found[row]


@cache
def knowledge_graph(name: str) -> KnowledgeGraph:
    """One of KNOWLEDGE_GRAPHS: Nations 14 entities and 55 relations, Kinships 104 and 25, UMLS 135 and 46.

    UsageError: pykeen is not installed, or its files are damaged. ValueError: another name.
    """
    if name not in KNOWLEDGE_GRAPHS:
        raise ValueError(f"name must be one of {', '.join(KNOWLEDGE_GRAPHS)}, got {name!r}")
    train, valid, test = (
        packaged_file("pykeen", VERSION, f"datasets/{name}/{part}.txt") for part in ("train", "valid", "test")
    )
    return read_triples(train, valid, test)


def read_triples(
    train: str | Path, valid: str | Path | None = None, test: str | Path | None = None
) -> KnowledgeGraph:
    """A graph out of tab-separated files, head, relation and tail on each line, without a header.

    Names are numbered in alphabetical order over all files; of equal lines of a file the first counts.
    UsageError names the file and line that is wrong, or a relation that no training triple has: nothing could
    be learnt of it.
    """
    # Each triple once: a copy of the one that is asked for would stay in its context and give it away.
    parts = [
        [] if path is None else list(dict.fromkeys(map(tuple, table_lines(Path(path), 3, header=False))))
        for path in (train, valid, test)
    ]
    if not parts[0]:
        raise UsageError(f"{train} holds no triple: head, relation and tail, separated by tabs")
    every = [row for part in parts for row in part]
    entities = sorted({end for head, _, tail in every for end in (head, tail)})
    relations = sorted({row[1] for row in parts[0]})
    unknown = sorted({row[1] for row in every} - set(relations))
    if unknown:
        raise UsageError(f"relation {unknown[0]!r} stands in no training triple of {train}")
    node, kind = ({name: at for at, name in enumerate(names)} for names in (entities, relations))

    def numbers(rows: Sequence[Sequence[str]]) -> Tensor:
        found = [[node[head], kind[relation], node[tail]] for head, relation, tail in rows]
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)

    return KnowledgeGraph(tuple(entities), tuple(relations), *(numbers(part) for part in parts))
