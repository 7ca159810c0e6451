"""Second pass: questions about the weights, answered without ever holding all of them.

The weights are formed anew, 64 rows at a time, from queries, keys and the row statistics of a `State`:
w_ij = exp(logit_ij - lse_i); without a state the normaliser runs again on each block. Without gradient.
Legend: B batch, H query heads, G KV heads, N queries, M keys, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attlas.attend.edge import only_there
from attlas.attend.edge_weights import divisor, request_for, softmax_weight, working
from attlas.attend.normaliser import Normaliser, RowContext
from attlas.attend.reducers import Reducer, Seen
from attlas.attend.reference import in_head_order
from attlas.attend.request import Piece, Request, take
from attlas.attend.row_blocks import RowWork
from attlas.attend.sender_pass import shared_out
from attlas.attend.state import State
from attlas.graph import Graph
from attlas.pattern import Pattern, Tokens
from attlas.score import Score

__all__ = ["Above", "edges_above", "reduce"]


class Above(NamedTuple):
    """Edges as CSR over the B * H * N rows (batch row, head, query): row_ptr, key numbers, weights."""

    row_ptr: Tensor
    col: Tensor
    weight: Tensor


def reduce(
    query: Tensor,
    key: Tensor,
    state: State | None = None,
    reducers: Sequence[Reducer] = (),
    *,
    pattern: Pattern | Graph | None = None,
    score: Score | None = None,
    normaliser: Normaliser | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
) -> dict[str, Tensor]:
    """Reduce the weights of softmax (or of any normaliser, then without a state) to {reducer.name: result}.

    query (B, H, N, D), key (B, G, M, D). Cost: one forward's logits, O(N * 64) memory. Without gradient.
    ValueError: no reducers, two of one name, a state that is not softmax's.
    """
    names = [reducer.name for reducer in reducers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"reduce: reducers must be one or more of different names, got {names or 'none'}")
    with torch.no_grad():
        request = shared_out(_of_pairs(request_for(query, key, pattern, score, normaliser, q_at, k_at)))
        pieces = request.pieces()
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for piece in pieces:
            sizes = (request.batch, len(piece.heads), request.queries, request.keys)
            like = query.new_zeros(0, dtype=working(query.dtype))
            totals: list[Any] = [reducer.empty(*sizes, like) for reducer in reducers]
            for seen in _stream(request, piece, state):
                for reducer, total in zip(reducers, totals, strict=True):
                    reducer.add(total, seen)
            for reducer, total in zip(reducers, totals, strict=True):
                found[reducer.name].append(reducer.finish(total, request.queries))
        return {name: in_head_order(pieces, parts) for name, parts in found.items()}


def edges_above(
    query: Tensor,
    key: Tensor,
    state: State | None = None,
    tau: float = 0.01,
    *,
    pattern: Pattern | Graph | None = None,
    score: Score | None = None,
    normaliser: Normaliser | None = None,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
) -> Above:
    """All edges whose weight is at least tau, as CSR over (batch row, head, query). Without gradient."""
    if not tau > 0:
        raise ValueError(f"edges_above: tau must be positive, got {tau}")
    with torch.no_grad():
        request = shared_out(_of_pairs(request_for(query, key, pattern, score, normaliser, q_at, k_at)))
        heads, queries = request.heads, request.queries
        rows, cols, values = [], [], []
        for piece in request.pieces():
            head = torch.tensor(piece.heads, device=query.device)
            for seen in _stream(request, piece, state):
                at = (seen.weights >= tau).nonzero(as_tuple=True)
                rows.append((at[0] * heads + head[at[1]]) * queries + seen.rows[at[2]])
                cols.append(seen.keys[at[3]])
                values.append(seen.weights[at])
        row, col, value = (torch.cat(part) for part in (rows, cols, values))
        # Within a block the edges come head by head: sort by row, then by key.
        order = torch.argsort(row * max(1, request.keys) + col)
        counts = torch.bincount(row, minlength=request.batch * heads * queries)
        return Above(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), col[order], value[order])


def _of_pairs(request: Request) -> Request:
    """The request itself, if it asks about pairs and not about edges."""
    reason = only_there(request, "rows")
    if reason is not None:
        raise ValueError(f"second pass: {reason}; weights(query, key, graph=graph) gives those of all edges")
    return request


def _stream(request: Request, piece: Piece, state: State | None) -> Iterator[Seen]:
    """The weights of a piece's heads, a block of rows at a time."""
    work = RowWork(request, piece)
    query = take(request.query, piece.heads).unflatten(1, (len(piece.kv_heads), piece.group))
    wide = [tensor.to(work.dtype) for tensor in (query, piece.key, piece.value, *work.operands())]
    every = torch.arange(piece.k_at.length, device=query.device)
    for block in work.blocks:
        rows, keys, values, operands = work.inputs(block, wide)
        score, own, *_ = work.split(operands)
        pairs = work.pairs(block, rows, keys, values, score)
        i, j = pairs.edge.query_position, pairs.edge.key_position
        if state is None:
            ctx = RowContext(i, j, pairs.seen.sum(-1, keepdim=True))
            found = request.normaliser.rows(pairs.logit, pairs.seen, ctx, *own)
        else:
            lse = divisor(request, state, piece)[:, :, :, block.r0 : block.r1, None]
            found = softmax_weight(pairs.logit, pairs.seen, lse)
        yield Seen(
            found.flatten(1, 2).expand(request.batch, -1, -1, -1),
            torch.arange(block.r0, block.r1, device=found.device),
            block.of_keys(every, 0),
            i.flatten(1),
            j.flatten(1),
        )
