"""A graph whose nodes carry features and labels, and texts as hashed bags of words."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attlas.graph import Graph
from attlas.tasks.glosses import words_of

__all__ = ["LabelledGraph", "hashed_words"]


@dataclass(frozen=True, eq=False)
class LabelledGraph:
    """A graph, features x (n, C) float32 and labels (n,) int64 of its nodes, and the names behind numbers.

    names: of the labels; kinds: of the edge types; nodes: of the nodes, for people to read.
    """

    graph: Graph
    x: Tensor
    labels: Tensor
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    nodes: tuple[str, ...]

    def split(self, *counts: int, seed: int) -> tuple[Tensor, ...]:
        """Disjoint sets of nodes of these sizes, drawn by `seed`: `train, test = data.split(90, 10, seed=0)`.

        ValueError: fewer nodes than asked for.
        """
        if not counts or min(counts) < 1 or sum(counts) > self.graph.nodes:
            raise ValueError(
                f"split: counts must be at least 1 each and {self.graph.nodes} together at most, got {counts}"
            )
        order = torch.randperm(self.graph.nodes, generator=torch.Generator().manual_seed(seed))
        return order[: sum(counts)].split(list(counts))


def hashed_words(texts: Sequence[str], width: int) -> Float[Tensor, "n width"]:
    """How often words stand in each text, added up by their hash modulo `width` (CRC-32 of the UTF-8 bytes).

    Words as in `words_of`; the same on every machine. Cost: O(words).
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    places: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        for word in words_of(text):
            place = places.get(word)
            if place is None:
                place = places[word] = zlib.crc32(word.encode()) % width
            rows.append(row)
            columns.append(place)
    codes = np.array(rows, dtype=np.int64) * width + np.array(columns, dtype=np.int64)
    counts = np.bincount(codes, minlength=len(texts) * width).astype(np.float32)
    return torch.from_numpy(counts.reshape(len(texts), width))
