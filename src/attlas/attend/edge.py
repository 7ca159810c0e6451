"""The `edge` backend: attention along the edges of a graph, compiled loops over its sorted edges.

Softmax of dot products with sum, forward and backward, on CPU. What else is asked of a graph runs on `rows`.
Legend: B batch, H query heads, E edges, D width, V value width.
"""

from attlas.attend.cost import Cost, pair_cost
from attlas.attend.edge_kernel import edge_attention, refusal
from attlas.attend.fused import beyond_softmax
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request
from attlas.attend.state import Part, State
from attlas.pattern import GraphEdges, Tokens

__all__ = ["NAME", "equal_edges", "estimate", "run", "supports"]

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
    if request.score.kernel != "dot":
        return f"its score is the dot product, not {request.score.name}"
    return beyond_softmax(request) or refusal(request.dtype, request.query.device)


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


def estimate(request: Request) -> Cost:
    """Every edge costs a pair; no pair beside the edges is touched."""
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("edge: it takes a Graph as the pattern")
    graph = request.pattern.graph
    pairs = graph.edges * request.query.shape[1]
    return pair_cost(shapes_of(request), pairs, graph.senders).times(OVERHEAD)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); out lies in memory as (B, N, H, V)."""
    if not isinstance(request.pattern, GraphEdges):
        raise ValueError("edge: it takes a Graph as the pattern")
    scale = request.score.scale_for(request.width)  # type: ignore[attr-defined]
    out, lse = edge_attention(request.query, request.key, request.value, request.pattern.graph, scale)  # type: ignore[arg-type]
    return out, State(lse)
