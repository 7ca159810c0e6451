"""Weights of chosen pairs, and of the edges of a graph.

Legend: B batch, H query heads, G KV heads, N queries, E edges.
"""

from typing import Any

import torch
from torch import Tensor

from attlas.attend.backends import choose, execute
from attlas.attend.edge_rows import along_edges, graph_of
from attlas.attend.normaliser import Normaliser, Softmax
from attlas.attend.request import Piece, Request, make_request, take
from attlas.attend.senders import Shares
from attlas.attend.state import State
from attlas.graph import Graph
from attlas.pattern import Pattern, Tokens
from attlas.pattern.tokens import common_sizes
from attlas.score import Edge, Score

__all__ = ["divisor", "request_for", "softmax_weight", "weights", "working"]

CHUNK = 65536
"""Edges (times heads) that are worked on at a time."""


def weights(
    query: Tensor,
    key: Tensor,
    *,
    edges: tuple[Tensor, Tensor] | None = None,
    columns: Tensor | None = None,
    graph: Graph | None = None,
    state: State | None = None,
    pattern: Pattern | Graph | None = None,
    score: Score | None = None,
    normaliser: Normaliser | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
) -> Tensor:
    """Weights of chosen pairs: edges=(rows (E,), keys (E,)) gives (B, H, E), columns=(C,) (B, H, N, C).

    graph, or a Graph as the pattern and nothing chosen: those of all its edges, (B, H, E) in its order, of
    any normaliser. Chosen pairs are softmax's; outside the pattern they have weight 0. Differentiable in
    queries, keys, score tensors and the state's lse. Without a state the row statistics are computed first.
    Weights from a state, and of chosen pairs, are exp(logit - lse) with an lse rounded to its type: off by a
    factor of 1 ± |lse| 2^-23 in float32. Those of all edges without a state are exact at any logit.
    """
    if graph is not None and (pattern is not None or edges is not None or columns is not None):
        raise ValueError("weights: graph=... asks for all its edges, and takes no pattern, edges or columns")
    whole = graph if graph is not None else pattern if isinstance(pattern, Graph) else None
    if whole is not None and edges is None and columns is None:
        return _of_graph(request_for(query, key, whole, score, normaliser, q_at, k_at), state)
    if (edges is None) == (columns is None):
        raise ValueError(
            "weights: give either edges=(rows, keys) or columns=key numbers, or graph= for all its edges"
        )
    request = request_for(query, key, pattern, score, normaliser, q_at, k_at)
    if request.edge_tensors:
        raise ValueError(
            f"weights: the score {request.score.name} has tensors of edges, so that pairs have no logit: ask "
            "for those of all edges with graph=graph, in its order, and choose among them"
        )
    state = state if state is not None else state_of(request)
    if edges is None and columns is not None:
        _within("columns", "key", columns, request.keys)
        count = columns.numel()
        rows = torch.arange(request.queries, device=query.device).repeat_interleave(count)
        found = _of_edges(request, state, rows, columns.repeat(request.queries))
        return found.unflatten(2, (request.queries, count))
    if edges is None or len(edges) != 2 or edges[0].shape != edges[1].shape or edges[0].dim() != 1:
        raise ValueError("weights: edges must be two index tensors (rows, keys) of the same length")
    _within("edges[0]", "query", edges[0], request.queries)
    _within("edges[1]", "key", edges[1], request.keys)
    return _of_edges(request, state, edges[0], edges[1])


def _of_graph(request: Request, state: State | None) -> Tensor:
    """(B, H, E) in the order of the graph that is the request's pattern."""
    graph = graph_of(request)
    if (request.queries, request.keys) != (graph.receivers, graph.senders):
        raise ValueError(
            f"weights: a graph of {graph.receivers} receivers and {graph.senders} senders needs as many "
            f"queries and keys, got {request.queries} and {request.keys}"
        )
    if state is not None:
        request = request.but(normaliser=Shares(divisor(request, state).unsqueeze(3)))
    return along_edges(request).to(request.dtype)


def _within(name: str, what: str, chosen: Any, count: int) -> None:
    if not isinstance(chosen, Tensor) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        got = chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__
        raise TypeError(f"weights: {name} must be an integer tensor of {what} numbers, got {got}")
    if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < count):
        raise ValueError(
            f"weights: {name} must hold {what} numbers 0..{count - 1}, got {int(chosen.min())}.."
            f"{int(chosen.max())}"
        )


def request_for(
    query: Tensor,
    key: Tensor,
    pattern: Pattern | Graph | None,
    score: Score | None,
    normaliser: Normaliser | None,
    q_at: Tokens | None,
    k_at: Tokens | None,
) -> Request:
    if not isinstance(key, Tensor) or (key.dim() == 4 and not key.shape[2]):
        raise ValueError(
            "second pass: key must be a tensor (batch, heads, keys, width) with at least one key"
        )
    # The values play no part: one column of the keys stands in for them.
    return make_request(
        query, key, key[..., :1], pattern=pattern, score=score, normaliser=normaliser, q_at=q_at, k_at=k_at
    )


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def state_of(request: Request) -> State:
    asked = request.but(return_state=True)
    return execute(asked, choose(asked))[1]


def divisor(request: Request, state: State, piece: Piece | None = None) -> Tensor:
    """The logarithm of the divisor, (B, H, N) or (B, G', g, N) for a piece; with the sink, if any."""
    if type(request.normaliser) is not Softmax:
        raise ValueError(
            f"a state gives weights for softmax only, not {request.normaliser.name}; leave it out"
        )
    lse, sink = state.lse, request.normaliser.sink
    if sink is not None:
        logit = torch.as_tensor(sink, dtype=lse.dtype, device=lse.device).view(1, -1, 1)
        lse = torch.logaddexp(lse, logit)
    return lse if piece is None else take(lse, piece.heads).unflatten(1, (len(piece.kv_heads), piece.group))


def softmax_weight(logit: Tensor, mask: Tensor, lse: Tensor) -> Tensor:
    safe = torch.where(torch.isfinite(lse), lse, 0.0)
    return torch.where(mask, (logit.masked_fill(~mask, -float("inf")) - safe).exp(), 0.0)


def _of_edges(request: Request, state: State, rows: Tensor, keys: Tensor) -> Tensor:
    """(B, H, E), gathered; the score is the same text as on tiles."""
    if request.k_at is None or request.key is None or request.value is None:
        raise ValueError("weights: key must be a tensor, not a KVView")
    step = max(1, CHUNK // request.heads)
    lse = divisor(request, state)
    parts = [
        _edge_chunk(request, lse, rows[start : start + step], keys[start : start + step])
        for start in range(0, max(1, rows.numel()), step)
    ]
    return torch.cat(parts, 2)


def _edge_chunk(request: Request, lse: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    if request.k_at is None or request.key is None or request.value is None:
        raise ValueError("weights: key must be a tensor, not a KVView")
    dtype = working(request.dtype)
    owner = torch.arange(request.heads, device=rows.device) // request.group
    query = request.query[:, :, rows].to(dtype)
    key, value = (tensor[:, :, keys].to(dtype)[:, owner] for tensor in (request.key, request.value))
    i = request.q_at.positions(rows.device)[..., rows].view(-1, 1, rows.numel())
    j = request.k_at.positions(rows.device)[..., keys].view(-1, 1, rows.numel())
    tensors = [_gathered(tensor, rows, keys).to(dtype) for tensor in request.score.tensors()]
    logit = request.score.pair(query, key, value, Edge(i, j), *tensors).logit
    mask = _edge_mask(request, rows, keys, i, j)
    return softmax_weight(logit, mask, lse[:, :, rows])


def _edge_mask(request: Request, rows: Tensor, keys: Tensor, i: Tensor, j: Tensor) -> Tensor:
    if request.k_at is None:
        raise ValueError("weights: key must be a tensor, not a KVView")
    sizes = common_sizes(request.q_at, request.k_at)
    seen = [
        torch.ones_like(i + j, dtype=torch.bool) if p is None else p.pair(i, j, sizes)
        for p in request.patterns
    ]
    batch = max(one.shape[0] for one in seen)
    mask = torch.cat([one.expand(batch, 1, -1) for one in seen], 1)
    for space, at in ((request.q_at, rows), (request.k_at, keys)):
        if space.valid is not None:
            mask = mask & space.valid.to(at.device)[..., at].view(-1, 1, at.numel())
    return mask


def _gathered(tensor: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    first = rows if tensor.shape[2] > 1 else torch.zeros_like(rows)
    second = keys if tensor.shape[3] > 1 else torch.zeros_like(keys)
    return tensor[:, :, first, second]
