"""The `edge` backend: attention along the edges of a graph, compiled loops over its sorted edges.

The fused forms, forward and backward, on CPU, are those of `edge_forms`. What else is asked of a graph runs
on `rows`.
Legend: B batch, H query heads, E edges, D width, V value width.
"""

from attlas.attend.cost import Cost, pair_cost
from attlas.attend.edge_forms import FusedForm, fitting
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request, Result
from attlas.attend.state import Part
from attlas.pattern import GraphEdges, Tokens

__all__ = ["NAME", "detail", "equal_edges", "estimate", "evaluate", "run", "supports"]

NAME = "edge"
OVERHEAD = 4.0
"""Time of a pair against one in a tile of dense pairs: its keys and values are read for it alone."""


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
    form, reasons = fitting(request)
    return None if form is not None else "; ".join(dict.fromkeys(reasons.values()))


def equal_edges(request: Request) -> str | None:
    """Why a backend of pairs cannot answer: edges of the graph are equal, and each is a message; or None."""
    pattern = request.pattern
    if not isinstance(pattern, GraphEdges) or not pattern.graph.has_equal_edges:
        return None
    return (
        "the graph has equal edges, each a message of its own, which only the backend 'edge' counts: join "
        "them first with attlas.graph.coalesce(graph)"
    )


def _whole(space: Tokens, nodes: int) -> bool:
    return space.plain and space.start == 0 and space.length == nodes


def detail(request: Request) -> str:
    """Which of its forms runs."""
    return f"{_form(request).name}, compiled"


def estimate(request: Request) -> Cost:
    """Every edge costs a pair; no pair beside the edges is touched."""
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("edge: it takes a Graph as the pattern")
    graph = request.pattern.graph
    pairs = graph.edges * request.query.shape[1]
    return pair_cost(shapes_of(request), pairs, graph.senders).times(OVERHEAD)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); out lies in memory as (B, N, H, V)."""
    result = evaluate(request)
    return result.out, request.normaliser.state(result.lse, result.total)


def evaluate(request: Request) -> Result:
    """Out, row statistics and edge states."""
    return _form(request).run(request)


def _form(request: Request) -> FusedForm:
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("edge: it takes a Graph as the pattern")
    form, reasons = fitting(request)
    if form is None:
        raise ValueError(f"edge: no form of it runs this request: {'; '.join(reasons.values())}")
    return form
