"""KG-R3's reader: a subgraph as tokens, a transformer masked by its triples, and the question that reads it.

Source: Pahuja et al. 2022, arXiv 2212.09724; OSU-NLP-Group/KG-R3.
Legend: B questions, n tokens of all contexts, C width, H heads, V entities, R relations, m triples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from attlas.attend import attend
from attlas.graph import Graph
from attlas.pattern import Pattern

__all__ = [
    "Context", "Mask", "PostNormLayer", "Reader", "Reading", "every_pair", "gather_contexts", "graph_pairs",
    "triple_tokens",
]  # fmt: skip

EPSILON = 1e-12  # of BERT's LayerNorm


class Context(NamedTuple):
    """A subgraph as tokens: entities (e,), the source first, each once; then one token for each triple.

    relations, heads, tails (m,): the relation of each triple, and where its ends stand among the entities.
    """

    entities: Tensor
    relations: Tensor
    heads: Tensor
    tails: Tensor


def triple_tokens(triples: Int[Tensor, "m 3"], source: int) -> Context:
    """Tokens of (head, relation, tail) triples around a source; without triples the source alone."""
    ends = torch.cat([triples.new_tensor([source]), triples[:, [0, 2]].flatten()])
    names, which = torch.unique(ends, return_inverse=True)
    first = torch.full_like(names, len(ends)).scatter_reduce_(0, which, torch.arange(len(ends)), "amin")
    order = torch.argsort(first)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    heads, tails = place[which[1:]].view(-1, 2).unbind(1)
    return Context(names[order], triples[:, 1], heads, tails)


def graph_pairs(context: Context) -> Int[Tensor, "2 pairs"]:
    """The mask "type_1", (sees, is seen): entities all, relations all, a relation and its head and tail."""
    count, triples = len(context.entities), len(context.relations)
    token = torch.arange(count, count + triples)
    links = torch.cat([torch.stack([token, context.heads]), torch.stack([token, context.tails])], 1)
    links = torch.unique(torch.cat([links, links.flip(0)], 1), dim=1)
    among = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    between = torch.cartesian_prod(token, token).T if triples else token.new_zeros(2, 0)
    return torch.cat([among, between, links], 1)


def every_pair(context: Context) -> Int[Tensor, "2 pairs"]:
    """The mask "type_5": every token sees every other."""
    every = torch.arange(len(context.entities) + len(context.relations))
    return torch.cartesian_prod(every, every).reshape(-1, 2).T


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch of questions with their contexts, ragged: nothing is padded.

    tokens (n,): entity e as e, relation r as V + r; kinds (n,): 0 entity, 1 relation; first (B,): where the
    source of each context stands. seen: who sees whom within the contexts; asked: from 3 tokens of each
    question to those of its context.
    """

    tokens: Tensor
    kinds: Tensor
    first: Tensor
    seen: Graph
    asked: Graph
    source: Tensor
    relation: Tensor


def gather_contexts(
    contexts: Sequence[Context],
    pairs: Sequence[Tensor],
    relation: Int[Tensor, "B"],
    entities: int,
) -> Reading:
    """One ragged batch; pairs: of each context, from `graph_pairs` or `every_pair`. entities: V."""
    if not contexts or len(contexts) != len(pairs) or len(contexts) != len(relation):
        raise ValueError(
            "gather_contexts: contexts, pairs and relation must be of the same number, at least 1, got "
            f"{len(contexts)}, {len(pairs)} and {len(relation)}"
        )
    sizes = torch.tensor([len(one.entities) + len(one.relations) for one in contexts])
    ends = sizes.cumsum(0)
    first, count = ends - sizes, int(ends[-1])
    tokens = torch.cat([part for one in contexts for part in (one.entities, one.relations + entities)])
    kinds = torch.repeat_interleave(
        torch.tensor([0, 1]).repeat(len(contexts)),
        torch.tensor([len(part) for one in contexts for part in (one.entities, one.relations)]),
    )
    shift = torch.repeat_interleave(first, torch.tensor([one.shape[1] for one in pairs]))
    row, column = (torch.cat(list(pairs), 1) + shift).contiguous()
    question = torch.repeat_interleave(torch.arange(len(contexts)), sizes)
    asks = (3 * question + torch.arange(3)[:, None]).flatten()
    asked = Graph(torch.arange(count).repeat(3), asks, count, 3 * len(contexts), bipartite=True)
    source = torch.stack([one.entities[0] for one in contexts])
    return Reading(tokens, kinds, first, Graph(column, row, count, count), asked, source, relation)


class _Attention(nn.Module):
    """Multi-head attention with biases, W_o and dropout behind it: (B, N, C) from (B, M, C)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.share, self.dropout = dropout, nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, pattern: Pattern | Graph | None) -> Tensor:
        query, key, value = (
            make(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for make, part in ((self.query, x), (self.key, context), (self.value, context))
        )
        share = self.share if self.training else 0.0
        found = torch.as_tensor(attend(query, key, value, pattern=pattern, dropout=share))
        out: Tensor = self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return out


class PostNormLayer(nn.Module):
    """BERT's layer: x = LN(x + attention); [x = LN(x + attention to a context);] x = LN(x + W2 gelu(W1 x)).

    cross: with the step in brackets. Shapes: (B, N, C) and context (B', M, C) -> (B, N, C); for a ragged
    context the N tokens of all rows are seen as one sequence, and `asked` is a graph over it.
    """

    def __init__(
        self, width: int, heads: int, inner: int, *, dropout: float = 0.1, cross: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"PostNormLayer: width must be a multiple of heads, got {width} and {heads}")
        self.attention = _Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.cross = _Attention(width, heads, dropout) if cross else None
        self.cross_norm = nn.LayerNorm(width, eps=EPSILON) if cross else None
        self.enter, self.leave = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout, self.last_norm = nn.Dropout(dropout), nn.LayerNorm(width, eps=EPSILON)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        seen: Pattern | Graph | None = None,
        context: Float[Tensor, "A M C"] | None = None,
        asked: Graph | None = None,
    ) -> Float[Tensor, "B N C"]:
        """seen: the pattern among x, None for all; asked: that from x to the context."""
        x = self.norm(x + self.attention(x, x, seen))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            found = self.cross(x.reshape(1, -1, x.shape[-1]), context, asked)
            x = self.cross_norm(x + found.view_as(x))
        inner = functional.gelu(self.enter(x))
        return self.last_norm(x + self.dropout(self.leave(inner)))


class Reader(nn.Module):
    """Logits of all entities for questions (source, relation, ?), read off retrieved contexts.

    Context tokens, embedding + kind, go through masked layers; the question's tokens [CLS, source, relation]
    through unmasked ones, and then through layers that also attend to the context; z = W [CLS ; source in the
    context], logits = z . entity embeddings.

    Args:
        entities, relations: V, and R with the inverse relations that ask for heads.
        width, heads, inner, layers: of each of the three stacks. dropout: of the layers; drop: of the
            embeddings (output ones too) and of the question between its stacks.

    Cost: O(pairs C + n C^2) for the contexts, O(V C) for the logits. Contexts are ragged: a prediction does
    not depend on the others in its batch (the released code attends to padding).
    """

    def __init__(
        self,
        entities: int,
        relations: int,
        *,
        width: int = 320,
        heads: int = 8,
        inner: int = 1280,
        layers: int = 3,
        dropout: float = 0.1,
        drop: float = 0.6,
    ) -> None:
        super().__init__()
        self.entities, self.drop = entities, nn.Dropout(drop)
        self.embedding = nn.Embedding(entities + relations, width)
        self.kinds, self.places = nn.Embedding(2, width), nn.Embedding(3, width)
        self.start = nn.Parameter(torch.empty(width))
        self.norm, self.asking_norm, self.asked_norm = (nn.LayerNorm(width, eps=EPSILON) for _ in range(3))

        def stack(cross: bool) -> nn.ModuleList:
            made = (PostNormLayer(width, heads, inner, dropout=dropout, cross=cross) for _ in range(layers))
            return nn.ModuleList(made)

        self.reading, self.asking, self.crossing = stack(False), stack(False), stack(True)
        self.last = nn.Linear(2 * width, width)
        self.apply(_like_bert)
        nn.init.normal_(self.start, std=0.02)
        nn.init.xavier_uniform_(self.last.weight)

    def forward(self, batch: Reading) -> Float[Tensor, "B V"]:
        """A batch from `gather_contexts`."""
        context = self._read(batch)
        asking = self._ask(batch)
        for layer in self.crossing:
            asking = layer(asking, None, context, batch.asked)
        z = self.last(torch.cat([asking[:, 0], context[0, batch.first]], -1))
        logits: Tensor = z @ self.drop(self.embedding.weight[: self.entities]).T
        return logits

    def _read(self, batch: Reading) -> Tensor:
        x = self.norm(self.drop(self.embedding(batch.tokens) + self.kinds(batch.kinds)))[None]
        for layer in self.reading:
            x = layer(x, batch.seen)
        return x

    def _ask(self, batch: Reading) -> Tensor:
        source, relation = (self.embedding(ids) for ids in (batch.source, batch.relation + self.entities))
        tokens = torch.stack([self.start.expand_as(source), source, relation], 1)
        x: Tensor = self.asking_norm(self.drop(tokens + self.places.weight))
        for layer in self.asking:
            x = layer(x)
        return self.asked_norm(self.drop(x))


def _like_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


Mask = Callable[[Context], Tensor]
"""`graph_pairs`, `every_pair`, or another choice of who sees whom."""
