"""The user's tables about nodes: labels with or without a split, and features; wrong lines are named.

Legend: n nodes, F features.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attlas._common.errors import UsageError
from attlas.graph.tables import column_of, is_finite, refuse_lines, rows_of

__all__ = ["SPLITS", "NodeFeatures", "NodeLabels", "NodeNames", "read_features", "read_labels", "split_nodes"]

SPLITS = ("train", "valid", "test")
SHARES = (0.6, 0.2, 0.2)
LARGEST = float(np.finfo(np.float32).max)  # nets compute in float32: what is above it would be infinite
LIMIT = f" up to {LARGEST:.1e}"


class NodeNames:
    """Numbers of nodes by the names that they have in files: those of the graph's file, or 0 .. n - 1."""

    def __init__(self, names: Sequence[str], nodes: int) -> None:
        self._number = {name: number for number, name in enumerate(names)} if names else None
        self._names = names
        self.nodes = nodes

    def number(self, name: str) -> int | None:
        """The node of that name, None if there is none."""
        if self._number is not None:
            return self._number.get(name)
        return int(name) if name.isdecimal() and int(name) < self.nodes else None

    def unknown(self, name: str) -> str:
        """What is wrong with a name that no node has."""
        if self._number is None:
            return f"the graph has no node {name!r} (its nodes are the numbers below {self.nodes})"
        return f"the graph has no node {name!r} (name nodes without edges in a table: --nodes)"

    def name(self, number: int) -> str:
        """What a node is called."""
        return self._names[number] if self._number is not None else str(number)


@dataclass(frozen=True, eq=False)
class NodeLabels:
    """Labels of some nodes: node (m,) int64; value (m,) int64 classes or float64 targets; split or None.

    classes: the names of the classes in their order, empty for targets. split: (m,) int64, a place in SPLITS.
    """

    node: Tensor
    value: Tensor
    classes: tuple[str, ...]
    split: Tensor | None


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """Features (n, F) float32 of all nodes, and the names of the columns."""

    x: Tensor
    names: tuple[str, ...]


def read_labels(
    path: str | os.PathLike[str], nodes: NodeNames, *, regression: bool = False, classes: Sequence[str] = ()
) -> NodeLabels:
    """A table with the columns node, label and maybe split (train, valid or test) in its first line.

    classes: those that a model knows, in its order; by default those in the table, sorted. regression:
    labels are numbers. UsageError names the line of a node that is not there or stands twice, an empty or
    unknown label, another word for a split; or says that there are fewer than two classes.
    """
    place = Path(path)
    titles, rows = _table(place, ("node", "label"), "give a table with the columns node and label")
    asked = ("node", "label", *(["split"] if "split" in titles else []))
    columns = [column_of(place, titles, name) for name in asked]
    seen: dict[int, int] = {}
    texts: list[str] = []
    splits: list[int] = []
    wrong: list[str] = []
    known = None if regression else set(classes)
    for line, number, cells in _nodes_of(titles, rows, nodes, columns[0], seen, wrong):
        label, split = cells[columns[1]], cells[columns[2]] if len(columns) > 2 else None
        if told := _problem(label, split, known):
            wrong.append(f"line {line}: {told}")
            continue
        seen[number] = line
        texts.append(label)
        splits += [] if split is None else [SPLITS.index(split)]
    refuse_lines(place, wrong)
    if not texts:
        raise UsageError(f"{place} holds no label: a line per labelled node is expected")
    node = torch.tensor(list(seen))
    split_of = torch.tensor(splits) if splits else None
    if regression:
        return NodeLabels(
            node, torch.tensor([float(text) for text in texts], dtype=torch.float64), (), split_of
        )
    order = tuple(classes) or tuple(sorted(set(texts)))
    if len(order) < 2:
        raise UsageError(
            f"{place} has one class alone ({order[0]}): two or more are needed to tell them apart"
        )
    place_of = {name: number for number, name in enumerate(order)}
    return NodeLabels(node, torch.tensor([place_of[text] for text in texts]), order, split_of)


def read_features(
    path: str | os.PathLike[str], nodes: NodeNames, columns: Sequence[str] = ()
) -> NodeFeatures:
    """A table with the column node and one column of numbers per feature, named in its first line.

    columns: which features, in that order; by default all. UsageError names the line of a node that is not
    there or stands twice or of a value that is no finite number of float32, a column that is missing, doubled
    or without a title, and a node without a line.
    """
    place = Path(path)
    titles, rows = _table(place, ("node", *columns), "give a table with the column node and features")
    wanted = tuple(columns) or tuple(title for title in titles if title != "node")
    if not wanted:
        raise UsageError(f"{place} has no column beside node: a column per feature is expected")
    if "" in wanted:
        raise UsageError(
            f"{place}: column {titles.index('') + 1} of {len(titles)} has no title: name it, or leave it out "
            "(pandas writes its index so: to_csv(index=False))"
        )
    at = [column_of(place, titles, name) for name in wanted]
    x = np.zeros((nodes.nodes, len(at)), np.float32)
    seen: dict[int, int] = {}
    wrong: list[str] = []
    for line, number, cells in _nodes_of(titles, rows, nodes, column_of(place, titles, "node"), seen, wrong):
        bad = next((column for column in at if not _finite(cells[column])), None)
        if bad is not None:
            wrong.append(f"line {line}: {titles[bad]} must be a finite number{LIMIT}, got {cells[bad]!r}")
            continue
        seen[number] = line
        x[number] = [float(cells[column]) for column in at]
    refuse_lines(place, wrong)
    if len(seen) < nodes.nodes:
        first = next(number for number in range(nodes.nodes) if number not in seen)
        raise UsageError(
            f"{place} has no line for {nodes.nodes - len(seen)} of {nodes.nodes} nodes, the first of them "
            f"{nodes.name(first)!r}; give every node its features"
        )
    return NodeFeatures(torch.from_numpy(x), wanted)


def split_nodes(labels: NodeLabels, seed: int) -> Tensor:
    """(m,) int64, a place in SPLITS per label: the table's own, or 60 / 20 / 20 % drawn by seed.

    Of classes the shares are alike in each where every class has enough nodes. UsageError: too few labels,
    a table without training or test nodes.
    """
    if labels.split is not None:
        for place in (0, 2):
            if not bool((labels.split == place).any()):
                raise UsageError(
                    f"no label is of the split {SPLITS[place]}: training needs train and test nodes"
                )
        return labels.split
    from sklearn.model_selection import train_test_split

    count = len(labels.node)
    if count < 5:
        raise UsageError(
            f"{count} labels are too few to be split into train, valid and test; give at least 5"
        )
    order = np.arange(count)
    found = torch.zeros(count, dtype=torch.int64)
    left = order
    for place, share in ((2, SHARES[2]), (1, SHARES[1] / (SHARES[0] + SHARES[1]))):
        classes = labels.value.numpy()[left] if labels.classes else None
        size = max(1, round(share * len(left)))
        if classes is not None and not _stratifies(classes, size):
            classes = None
        left, taken = train_test_split(left, test_size=size, random_state=seed, stratify=classes)
        found[torch.from_numpy(taken)] = place
    return found


def _problem(label: str, split: str | None, known: set[str] | None) -> str | None:
    """What is wrong with a label; known: the classes there may be, empty for any, None for numbers."""
    if known is None and not _finite(label):
        return f"the label must be a finite number{LIMIT}, got {label!r}"
    if not label:
        return "the label is empty: leave out the line of a node without one"
    if known and label not in known:
        return f"label {label!r} is none of the model's classes ({', '.join(sorted(known)[:10])})"
    if split is not None and split not in SPLITS:
        return f"split must be {', '.join(SPLITS)}, got {split!r}"
    return None


def _stratifies(classes: np.ndarray, size: int) -> bool:
    counts = np.bincount(classes)
    counts = counts[counts > 0]
    return bool(counts.min() >= 2 and size >= len(counts) and len(classes) - size >= len(counts))


def _table(path: Path, needed: tuple[str, ...], remedy: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    rows = list(rows_of(path, "," if not path.suffix else None, remedy, titled=True))
    if not rows:
        raise UsageError(f"{path} is empty: {remedy}")
    titles = rows[0][1]
    if missing := [name for name in needed if name not in titles]:
        raise UsageError(f"{path} has no column {missing[0]!r}; its first line names {', '.join(titles)}")
    return titles, rows[1:]


def _nodes_of(
    titles: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    nodes: NodeNames,
    column: int,
    seen: dict[int, int],
    wrong: list[str],
) -> Iterator[tuple[int, int, list[str]]]:
    """(line, node, cells) of the lines whose node is right; of the others why not goes to `wrong`."""
    for line, cells in rows:
        if len(cells) != len(titles):
            wrong.append(f"line {line}: {len(titles)} columns are expected, it has {len(cells)}")
            continue
        number = nodes.number(cells[column])
        if number is None:
            wrong.append(f"line {line}: {nodes.unknown(cells[column])}")
        elif number in seen:
            wrong.append(f"line {line}: node {cells[column]!r} stands in line {seen[number]} already")
        else:
            yield line, number, cells


def _finite(text: str) -> bool:
    return is_finite(text) and abs(float(text)) <= LARGEST
