"""The `edge` backend: attention along the edges of a graph, compiled loops over its sorted edges.

The compiled forms, forward and backward, on CPU, are those of `edge_forms`. All else that is asked of a graph
runs in plain torch, by `edge_rows`.
Legend: B batch, H query heads, E edges, D width, V value width.
"""

from attlas.attend import edge_rows
from attlas.attend.cost import Cost, pair_cost
from attlas.attend.edge_forms import fitting
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request, Result
from attlas.attend.state import Part
from attlas.pattern import GraphEdges, Tokens

__all__ = ["NAME", "detail", "estimate", "evaluate", "inner_fallback", "only_there", "run", "supports"]

NAME = "edge"
OVERHEAD = 2.0
"""Time of a pair against one in a tile of dense pairs: its keys and values are read for it alone.

One over the density of a uniform graph at which tiles are as fast: 0.5 with a backward pass, more forward
(results/edge_density.json).
"""
ROWS_OVERHEAD = 20.0
"""The same without a compiled form."""


def supports(request: Request) -> str | None:
    """None, or the reason why this backend cannot answer the request."""
    pattern = request.pattern
    if not isinstance(pattern, GraphEdges):
        return "it takes a Graph as the pattern"
    if request.view is not None or request.k_at is None:
        return "it takes key and value tensors, not a KVView"
    graph = pattern.graph
    if not (_whole(request.q_at, graph.receivers) and _whole(request.k_at, graph.senders)):
        return "it takes all nodes of the graph, in their order"
    return None


def inner_fallback(request: Request) -> str | None:
    """Why none of the compiled forms runs the request, or None."""
    form, reasons = fitting(request)
    if form is not None:
        return None
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"edge has no compiled form of it, so it runs in plain torch ({told})"


def only_there(request: Request, backend: str) -> str | None:
    """Why a backend of pairs cannot answer where edges are counted; None for those that can.

    Edges of the graph are equal, and each is a message; or the score has tensors of edges, which `reference`
    alone spreads over pairs.
    """
    pattern = request.pattern
    if backend == NAME or not isinstance(pattern, GraphEdges):
        return None
    if backend != "reference" and request.edge_tensors:
        return f"the score {request.score.name} has tensors of edges, which the backend 'edge' reads"
    if not pattern.graph.has_equal_edges:
        return None
    return (
        "the graph has equal edges, each a message of its own, which only the backend 'edge' counts: join "
        "them first with attlas.graph.coalesce(graph)"
    )


def _whole(space: Tokens, nodes: int) -> bool:
    return space.plain and space.start == 0 and space.length == nodes


def detail(request: Request) -> str:
    """Which of its forms runs."""
    form, _ = fitting(request)
    if form is None:
        return "rows of equal numbers of edges in plain torch"
    return f"{form.name}, compiled"


def estimate(request: Request) -> Cost:
    """Every edge costs a pair; no pair beside the edges is touched."""
    graph = edge_rows.graph_of(request)
    pairs = graph.edges * request.query.shape[1]
    factor = OVERHEAD if fitting(request)[0] is not None else ROWS_OVERHEAD
    return pair_cost(shapes_of(request), pairs, graph.senders).times(factor)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); out lies in memory as (B, N, H, V)."""
    result = evaluate(request)
    return result.out, request.normaliser.state(result.lse, result.total)


def evaluate(request: Request) -> Result:
    """Out, row statistics and edge states."""
    form, _ = fitting(request)
    return edge_rows.evaluate(request) if form is None else form.run(request)
