"""KGAT's two objectives in turns, BPR-MF's one, and the draws of wrong items and tails.

Source: Wang et al. 2019, arXiv 1905.07854; Rendle et al. 2009, arXiv 1205.2618. Legend: m pairs or triples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.graph import Graph
from attlas.layers.kgat import RelationAttention, relation_groups
from attlas.models.kgat import KGAT

__all__ = ["Known", "Recommending", "bpr_loss", "train_bpr", "train_kgat", "transr_loss"]


class Known:
    """What is true: rows of numbers in a sorted list of codes, to draw something that is not among them."""

    def __init__(self, rows: Int[Tensor, "m a"], count: int) -> None:
        """rows: (..., end) with ends in 0 .. count - 1; the other columns ask."""
        asked = rows[:, :-1].amax(0) + 1 if len(rows) else torch.zeros(rows.shape[1] - 1, dtype=torch.int64)
        self.sizes = [*asked.tolist(), count]
        self.codes = torch.unique(self._code(rows))

    def _code(self, rows: Tensor) -> Tensor:
        code = rows[:, 0]
        for column, size in zip(rows.unbind(1)[1:], self.sizes[1:], strict=True):
            code = code * size + column
        # Beyond the sizes a code would be that of another row; -1 is of none.
        inside = ((rows >= 0) & (rows < rows.new_tensor(self.sizes))).all(1)
        return torch.where(inside, code, -1)

    def has(self, rows: Int[Tensor, "m a"]) -> Tensor:
        """Whether each row is true."""
        code = self._code(rows)
        if not len(self.codes):
            return torch.zeros_like(code, dtype=torch.bool)
        place = torch.searchsorted(self.codes, code).clamp(max=len(self.codes) - 1)
        return (self.codes[place] == code) & (code >= 0)

    def other(self, rows: Int[Tensor, "m a"], generator: torch.Generator) -> Int[Tensor, "m"]:
        """For each row an end, evenly drawn, that makes it untrue.

        ValueError after 1000 draws for a row that has no untrue end, or as good as none.
        """
        count = self.sizes[-1]
        drawn = torch.randint(0, count, (len(rows),), generator=generator)
        left = torch.arange(len(rows))
        for _ in range(1000):
            left = left[self.has(torch.cat([rows[left, :-1], drawn[left, None]], 1))]
            if not left.numel():
                return drawn
            drawn[left] = torch.randint(0, count, (len(left),), generator=generator)
        raise ValueError(f"no untrue end found for row {rows[int(left[0])].tolist()}: all {count} seem true")


def bpr_loss(
    final: Float[Tensor, "n C"], users: Tensor, right: Tensor, wrong: Tensor, penalty: float
) -> Float[Tensor, ""]:
    """mean softplus(-(y_right - y_wrong)) + penalty * half the squares of the batch's embeddings / its size.

    users, right, wrong (m,): rows of `final`.
    """
    user, good, bad = final[users], final[right], final[wrong]
    ranking = functional.softplus((user * bad).sum(1) - (user * good).sum(1)).mean()
    squares = user.square().sum() + good.square().sum() + bad.square().sum()
    return ranking + penalty * 0.5 * squares / len(users)


def transr_loss(
    attention: RelationAttention, x: Float[Tensor, "n d"], triples: Tensor, others: Tensor, penalty: float
) -> Float[Tensor, ""]:
    """mean softplus(-(g(h, r, t') - g(h, r, t))) + penalty * half the projected vectors' squares / m."""
    right, wrong, squares = attention.energy(x, triples, others)
    return functional.softplus(right - wrong).mean() + penalty * 0.5 * squares / len(triples)


@dataclass(frozen=True)
class Recommending:
    """How to train: epochs of batches of pairs (and triples) with Adam; the best epoch counts.

    pairs (m, 2): users and items, both from 0. quality: of final embeddings, larger is better, asked every
    `every` epochs; after `patience` asked epochs without a better one training ends. penalties: of pairs and
    of triples.
    """

    pairs: Tensor
    items: int
    quality: Callable[[Tensor], float]
    epochs: int = 1000
    rate: float = 1e-4
    batch: int = 1024
    triple_batch: int = 2048
    penalties: tuple[float, float] = (1e-5, 1e-5)
    patience: int = 10
    every: int = 1
    seed: int = 0
    step: Callable[[str], None] = field(default=lambda text: None)


@dataclass
class _Best:
    quality: float = -float("inf")
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)


def train_bpr(model: nn.Module, users: int, plan: Recommending, final: Callable[[], Tensor]) -> int:
    """Train by pairs alone; the best epoch, whose parameters the model has then. 0: the start was the best.

    final: the embeddings (users, then items) that the model has now.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=plan.rate)

    def epoch(generator: torch.Generator) -> None:
        _pairs(model, users, plan, final, optimiser, generator)

    return _epochs(model, plan, epoch, final)


def train_kgat(
    model: KGAT, graph: Graph, plan: Recommending, *, attentive: bool = True, translation: bool = True
) -> tuple[int, Tensor]:
    """Every epoch: all pairs (Adam), all triples of the graph (another Adam), then alpha anew.

    Returns the best epoch, whose parameters the model has then, and its alpha.

    attentive=False: alpha stays 1 / edges of the head. translation=False: no triples are trained, so that
    only pairs move what alpha is made of: the paper's ablations.
    """
    groups = relation_groups(graph, _types(graph), model.relations)
    even = graph.in_degree[graph.receiver].to(model.embedding.dtype).reciprocal()
    weights = start = model.initial_weights(graph) if attentive else even
    by_pairs, by_triples = (torch.optim.Adam(model.parameters(), lr=plan.rate) for _ in range(2))
    triples = torch.stack([graph.receiver, _types(graph), graph.sender], 1)
    known = Known(triples, graph.nodes) if translation else None

    def final() -> Tensor:
        found: Tensor = model(graph, weights)
        return found

    def epoch(generator: torch.Generator) -> None:
        nonlocal weights
        _pairs(model, model.users, plan, final, by_pairs, generator)
        for mine in _batches(len(triples), plan.triple_batch, generator) if known is not None else ():
            others = known.other(triples[mine], generator)  # type: ignore[union-attr]
            loss = transr_loss(model.attention, model.embedding, triples[mine], others, plan.penalties[1])
            by_triples.zero_grad(set_to_none=True)
            loss.backward()
            by_triples.step()
        if attentive:
            weights = model.weights(graph, groups)

    best = _epochs(model, plan, epoch, final)
    # alpha follows from the parameters, except before the first refresh.
    return best, model.weights(graph, groups) if attentive and best else start


def _types(graph: Graph) -> Tensor:
    if graph.edge_type is None:
        raise ValueError("train_kgat: graph must have an edge_type for every edge, got none")
    return graph.edge_type


def _pairs(
    model: nn.Module, users: int, plan: Recommending, final: Callable[[], Tensor],
    optimiser: torch.optim.Optimizer, generator: torch.Generator,
) -> None:  # fmt: skip
    known = Known(plan.pairs, plan.items)
    for mine in _batches(len(plan.pairs), plan.batch, generator):
        pairs = plan.pairs[mine]
        wrong = known.other(pairs, generator)
        loss = bpr_loss(final(), pairs[:, 0], users + pairs[:, 1], users + wrong, plan.penalties[0])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.randperm(count, generator=generator).split(size)


def _epochs(
    model: nn.Module,
    plan: Recommending,
    epoch: Callable[[torch.Generator], None],
    final: Callable[[], Tensor],
) -> int:
    generator = torch.Generator().manual_seed(plan.seed)
    best = _Best()
    for done in range(plan.epochs + 1):
        if done:
            model.train()
            epoch(generator)
        if done % plan.every:
            continue
        model.eval()
        with torch.no_grad():
            quality = plan.quality(final())
        if math.isnan(quality):
            raise ValueError(
                f"quality of epoch {done} is NaN: no epoch can be the best; is the rate too large?"
            )
        plan.step(f"epoch {done} of {plan.epochs}, validation {quality:.4f}")
        if quality > best.quality:
            kept = {name: part.clone() for name, part in model.state_dict().items()}
            best = _Best(quality, done, kept)
        elif done - best.epoch >= plan.patience * plan.every:
            break
    model.load_state_dict(best.state)
    model.eval()
    return best.epoch
