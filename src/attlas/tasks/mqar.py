"""Multi-query associative recall (MQAR): pairs of key and value, then some of the keys again.

Legend: V vocabulary, N length, P pairs, E examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["UNASKED", "Recall", "mqar"]

UNASKED = -100  # label where nothing is asked; `cross_entropy` ignores it
PIECE = 1024  # examples drawn at once: E x V / 2 random numbers would not fit


@dataclass(frozen=True, eq=False)
class Recall:
    """Sequences that ask for values, each tensor (examples, length).

    ids, int64: the tokens. labels, int64: the value of the key at a query, `UNASKED` elsewhere; the answer
    belongs to the query's own position and is not shown after it. distance, int64: from the key's (last)
    binding to its query in tokens, 0 elsewhere. rebound, bool: queries whose key was bound twice.
    """

    ids: Tensor
    labels: Tensor
    distance: Tensor
    rebound: Tensor

    def batches(self, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (ids, labels) of `count`: every example once per round, each round in a new order."""
        if not 1 <= count <= len(self.ids):
            raise ValueError(f"batches of {count} examples cannot be drawn from {len(self.ids)} examples")
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.ids), generator=generator)
            for chosen in order[: len(order) - len(order) % count].split(count):
                yield self.ids[chosen], self.labels[chosen]

    def accuracy(self, found: Tensor, *, where: Tensor | None = None) -> float:
        """Share of the queries answered right; found: tokens (examples, length); where: bool, of these only.

        Raises ValueError for other shapes and where nothing is asked.
        """
        if found.shape != self.labels.shape:
            raise ValueError(
                f"found must hold one token per place, {tuple(self.labels.shape)}, got {tuple(found.shape)}"
            )
        asked = self.labels != UNASKED
        asked = asked if where is None else asked & where
        if not asked.any():
            raise ValueError("no query is left to judge: where must select some place with a label")
        return (found[asked] == self.labels[asked]).double().mean().item()


def mqar(
    *,
    vocabulary: int,
    length: int,
    pairs: int,
    train: int,
    test: int,
    seed: int,
    power: float = 0.01,
    filler: str = "zero",
    first_slot: int = 0,
    rebound: float = 0.0,
) -> tuple[Recall, Recall]:
    """(train, test): k_0 v_0 k_1 v_1 ..., then the same P keys as queries among filler.

    Keys are drawn without replacement from 1 .. V/2 - 1, values from V/2 .. V - 1. What follows the pairs
    is cut into slots of two tokens; P of them, drawn without replacement with probability ∝ (g + 1)^(power-1)
    for slot g, get a key as their first token (the i-th slot drawn gets key i) and its value as the label
    there. All else is 0, or random tokens of the whole vocabulary (stray keys may then appear).

    Args:
        train, test: numbers of examples. One generator of `seed` draws the test part first and then the
            other, so that no seed of one can meet a seed of the other; the test part depends on `test` only.
        first_slot: queries stand in this slot or later. rebound: round(rebound P) of the keys are bound
            again, in random order after all pairs, to values that no pair uses; the last one is asked for.

    Raises ValueError where V, length and pairs do not fit. Source: Arora et al. 2023, arXiv 2312.04927,
    HazyResearch/zoology data/multiquery_ar.py; `first_slot` and `rebound` are ours (the latter after the
    overwritten keys of Titans).
    """
    if not 0 <= rebound <= 1:
        raise ValueError(f"rebound is a share of the keys, 0 to 1, got {rebound}")
    if train < 1 or test < 1:
        raise ValueError(f"train and test must be at least 1 example each, got {train} and {test}")
    task = _Task(vocabulary, length, pairs, round(rebound * pairs), first_slot, power, filler)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for count in (test, train):
        pieces = [task.draw(min(PIECE, count - start), generator) for start in range(0, count, PIECE)]
        parts.append(Recall(*(torch.cat(same) for same in zip(*pieces, strict=True))))
    return parts[1], parts[0]


@dataclass(frozen=True)
class _Task:
    vocabulary: int
    length: int
    pairs: int
    again: int  # keys bound twice
    first_slot: int
    power: float
    filler: str

    def __post_init__(self) -> None:
        vocabulary, length, pairs, bindings = (
            self.vocabulary,
            self.length,
            self.pairs,
            self.pairs + self.again,
        )
        if self.filler not in ("zero", "random"):
            raise ValueError(f"filler must be 'zero' or 'random', got {self.filler!r}")
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power}")
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        if length % 2:
            raise ValueError(f"length must be even, the task is made of slots of two tokens; got {length}")
        if 4 * pairs > length:
            raise ValueError(
                f"{pairs} pairs and their queries need a length of at least 4 x {pairs} = {4 * pairs}, "
                f"got {length}"
            )
        if vocabulary <= length:
            raise ValueError(
                f"vocabulary must be above the length, else keys and values run out; got {vocabulary} <= "
                f"{length}"
            )
        slots = length // 2 - bindings - self.first_slot
        if self.first_slot < 0 or slots < pairs:
            raise ValueError(
                f"{pairs} queries do not fit in the {max(slots, 0)} slots from first_slot {self.first_slot} "
                f"on after {bindings} bindings in a length of {length}"
            )

    def draw(self, examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids, labels, distance, rebound."""
        half, pairs, bindings = self.vocabulary // 2, self.pairs, self.pairs + self.again

        def even(size: int, count: int) -> Tensor:
            return _distinct(torch.ones(size, dtype=torch.float64), examples, count, generator)

        keys, values = 1 + even(half - 1, pairs), half + even(self.vocabulary - half, bindings)
        # Of every binding, which key it binds: all of them in order, then those bound again.
        which = torch.cat([torch.arange(pairs).expand(examples, -1), even(pairs, self.again)], 1)
        order = torch.arange(bindings).expand(examples, -1)
        last = torch.zeros(examples, pairs, dtype=torch.int64).scatter_reduce(1, which, order, "amax")
        slots = torch.arange(self.first_slot, self.length // 2 - bindings, dtype=torch.float64)
        chosen = self.first_slot + _distinct((slots + 1) ** (self.power - 1), examples, pairs, generator)
        asked = 2 * bindings + 2 * chosen

        ids = torch.zeros(examples, self.length, dtype=torch.int64)
        ids[:, 0 : 2 * bindings : 2] = keys.gather(1, which)
        ids[:, 1 : 2 * bindings : 2] = values
        ids.scatter_(1, asked, keys)
        labels = torch.full_like(ids, UNASKED).scatter_(1, asked, values.gather(1, last))
        distance = torch.zeros_like(ids).scatter_(1, asked, asked - 2 * last)
        rebound = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, asked, last >= pairs)
        if self.filler == "random":
            ids = torch.where(ids == 0, torch.randint(self.vocabulary, ids.shape, generator=generator), ids)
        return ids, labels, distance, rebound


def _distinct(weights: Tensor, rows: int, count: int, generator: torch.Generator) -> Tensor:
    """(rows, count): indices drawn one after the other without replacement, with probability ∝ weights.

    The least of independent exponentials of rate w comes first with probability w / Σ w, and so do those
    that remain: their order is that of drawing.
    """
    times = torch.empty(rows, len(weights), dtype=torch.float64).exponential_(generator=generator) / weights
    return times.topk(count, dim=1, largest=False).indices
