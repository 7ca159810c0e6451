"""The oracle: attention by its definition, dense, in float64, with torch's own autograd.

Cost: B H N M (D + V) numbers for scores that are not dot products, B H N M otherwise. Never chosen by `auto`.
"""

import torch
from torch import Tensor

from attlas.attend.cost import Cost, Shapes, cost
from attlas.attend.dropout import drop, keeps
from attlas.attend.normaliser import RowContext
from attlas.attend.request import Piece, Request, Result, present, take
from attlas.attend.state import Part
from attlas.pattern import GraphEdges, Tokens
from attlas.score import Edge

__all__ = [
    "NAME",
    "assemble",
    "dense_mask",
    "estimate",
    "evaluate",
    "in_head_order",
    "run",
    "shapes_of",
    "supports",
    "weights_of",
]

NAME = "reference"
NATIVE = True
EXACT = torch.float64


def supports(request: Request) -> str | None:
    """Everything."""
    return None


def estimate(request: Request) -> Cost:
    """The dense rectangle in float64, with a pass over memory for every step."""
    return cost(None, shapes_of(request)).times(20.0)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state)."""
    result = evaluate(request)
    return result.out, request.normaliser.state(result.lse, result.total)


def evaluate(request: Request) -> Result:
    """Out, row statistics and edge states, piece by piece."""
    pieces = request.pieces()
    return assemble(request, pieces, [_attention(request, piece)[0] for piece in pieces])


def weights_of(request: Request) -> Tensor:
    """The full weight matrix (B, H, N, M) after normaliser, gate and dropout; N × M memory, float64."""
    pieces = request.pieces()
    if request.view is not None:
        raise ValueError("weights of a KVView: its groups differ in length; ask for one group at a time")
    parts = [_attention(request, piece)[1] for piece in pieces]
    return in_head_order(pieces, parts)


def _attention(request: Request, piece: Piece) -> tuple[Result, Tensor]:
    query = take(request.query, piece.heads).to(EXACT)
    key, value = (_repeated(tensor, piece) for tensor in (piece.key, piece.value))
    mask = dense_mask(piece, request)
    tensors = [take(tensor, piece.heads).to(EXACT) for tensor in request.score.tensors()]
    tensors += [_of_pairs(request, tensor) for tensor in request.edge_tensors]
    edge = Edge(_at(request.q_at, request)[..., :, None], _at(piece.k_at, request)[..., None, :])

    logit, carried, state = request.score.pair(
        query.unsqueeze(3), key.unsqueeze(2), value.unsqueeze(2), edge, *tensors
    )
    allowed = mask
    logit = logit.expand(torch.broadcast_shapes(logit.shape, (*query.shape[:3], 1), mask.shape))
    mask = mask & (logit != -float("inf"))  # a NaN stays, and shows
    columns = mask.shape[-1]
    for extra_logit, extra_value in request.extra:
        rows = (*logit.shape[:2], request.queries)
        more = take(extra_logit, piece.heads).to(EXACT).expand(*rows, 1)
        logit = torch.cat((logit, more), -1)
        mask = torch.cat((mask, more != -float("inf")), -1)
        added = take(extra_value, piece.heads).to(EXACT).unsqueeze(3)
        lead = torch.broadcast_shapes(added.shape[:3], carried.shape[:3])
        carried = torch.cat((carried.expand(*lead, -1, -1), added.expand(*lead, -1, -1)), 3)

    ctx = RowContext(edge.query_position, edge.key_position, mask.sum(-1, keepdim=True))
    own = [take(tensor, piece.heads).to(EXACT) for tensor in request.normaliser.tensors()]
    weights = request.normaliser.rows(logit, mask, ctx, *own)
    weights = _gated_and_dropped(request, piece, weights, edge, columns)
    out = request.aggregate.rows(weights, carried, mask)

    statistics = {name: found.squeeze(-1) for name, found in ctx.statistics.items()}
    edges = None
    if request.return_edge and state is not None:
        edges = state[:, :, allowed[0, 0]]
    return Result(out, statistics["lse"], statistics.get("total"), edges), weights


def _of_pairs(request: Request, tensor: Tensor) -> Tensor:
    """A tensor of a graph's edges (E, ...) as one of pairs (1, H or 1, N, M, ...); off the graph any."""
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("a tensor of edges needs a Graph as the pattern")
    graph = request.pattern.graph
    wide = tensor.to(EXACT) if tensor.is_floating_point() else tensor
    wide = wide if wide.dim() > 1 else wide.unsqueeze(1)
    # Not zeros off the graph: a logarithm of them would have an infinite slope, and 0 times that is NaN.
    edge = torch.zeros(graph.receivers, max(1, graph.senders), dtype=torch.int64, device=wide.device)
    edge[graph.receiver, graph.sender] = torch.arange(graph.edges, device=wide.device)
    found = wide[edge] if graph.edges else wide.new_zeros(*edge.shape, *wide.shape[1:])
    return found.movedim(2, 0).unsqueeze(0)


def _gated_and_dropped(request: Request, piece: Piece, weights: Tensor, edge: Edge, columns: int) -> Tensor:
    plain, rest = weights[..., :columns], weights[..., columns:]
    if request.gate is not None:
        plain = plain * take(request.gate, piece.heads).to(EXACT)
    if request.dropout:
        batch = torch.arange(request.batch, device=weights.device).view(-1, 1, 1, 1)
        head = torch.tensor(piece.heads, device=weights.device).view(1, -1, 1, 1)
        kept = keeps(request.seed, batch, head, edge.query_position, edge.key_position, request.dropout)
        plain = drop(plain, kept, request.dropout)
    if not rest.shape[-1]:
        return plain
    return torch.cat((plain, rest.expand(*plain.shape[:-1], -1)), -1)


def dense_mask(piece: Piece, request: Request) -> Tensor:
    """Allowed pairs (B or 1, 1, N, M), bool."""
    if piece.pattern is not None:
        mask = piece.pattern.mask(request.q_at, piece.k_at, request.device)
    else:
        mask = torch.ones(request.queries, piece.k_at.length, dtype=torch.bool, device=request.device)
        for space, axis in ((request.q_at, -1), (piece.k_at, -2)):
            if space.valid is not None:
                mask = mask & space.valid.to(request.device).unsqueeze(axis)
    return mask.unsqueeze(-3) if mask.dim() == 3 else mask[None, None]


def _repeated(tensor: Tensor, piece: Piece) -> Tensor:
    """Float64, one head per query head."""
    return present(tensor.to(EXACT).repeat_interleave(piece.group, 1), piece.k_at)


def _at(space: Tokens, request: Request) -> Tensor:
    """Positions (B or 1, 1, tokens)."""
    places = space.positions(request.device)
    return places.unsqueeze(-2) if places.dim() == 2 else places[None, None]


def assemble(request: Request, pieces: tuple[Piece, ...], results: list[Result]) -> Result:
    """Heads in order, the input's dtype, the full batch; statistics in float32 (float64 for float64)."""
    statistic = torch.float64 if request.dtype == torch.float64 else torch.float32

    def joined(name: str, dtype: torch.dtype) -> Tensor | None:
        parts = [getattr(result, name) for result in results]
        if any(part is None for part in parts):
            return None
        whole = in_head_order(pieces, parts).to(dtype)
        return whole.expand(request.batch, *whole.shape[1:])

    out, lse = joined("out", request.dtype), joined("lse", statistic)
    if out is None or lse is None:
        raise ValueError("a backend must give out and lse for every piece")
    return Result(out, lse, joined("total", statistic), joined("edge", request.dtype))


def in_head_order(pieces: tuple[Piece, ...], parts: list[Tensor]) -> Tensor:
    if len(parts) == 1 and pieces[0].heads == tuple(sorted(pieces[0].heads)):
        return parts[0]
    batch = max(part.shape[0] for part in parts)
    whole = torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], 1)
    order = [head for piece in pieces for head in piece.heads]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return whole.index_select(1, torch.tensor(inverse, device=whole.device))


def shapes_of(request: Request) -> Shapes:
    """The request's sizes, for `cost`."""
    return Shapes(
        request.batch,
        request.heads,
        max(1, request.queries),
        request.width,
        max(1, request.keys),
        request.kv_heads,
        request.value_width,
        request.dtype,
    )
