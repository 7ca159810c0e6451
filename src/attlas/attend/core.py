"""`attend` itself, and its companions `explain` and `plan`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from attlas.attend import edge, reference, rows
from attlas.attend.aggregate import Aggregate, Sum
from attlas.attend.backends import Choice, choose, core_of, execute, settled, tell
from attlas.attend.cost import Cost, cost
from attlas.attend.edge_walk import pair_number
from attlas.attend.normaliser import Normaliser, Softmax
from attlas.attend.observing import observed
from attlas.attend.request import Request, make_request
from attlas.attend.view import KVView
from attlas.graph import Graph
from attlas.pattern import GraphEdges, Pattern, Tokens
from attlas.score import Dot, Score

__all__ = ["Planned", "attend", "explain", "plan"]

_DOT, _SOFTMAX, _SUM = Dot(), Softmax(), Sum()


def attend(
    query: Float[Tensor, "_ H N D"],
    key: Float[Tensor, "_ G M D"] | KVView,
    value: Float[Tensor, "_ G M V"] | None = None,
    *,
    pattern: Pattern | Graph | None = None,
    score: Score = _DOT,
    normaliser: Normaliser = _SOFTMAX,
    aggregate: Aggregate = _SUM,
    q_at: Tokens | None = None,
    k_at: Tokens | None = None,
    gate: Tensor | None = None,
    extra: Sequence[tuple[Tensor, Tensor]] | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    return_state: bool = False,
    return_edge: bool = False,
    backend: str = "auto",
    strict: bool = False,
) -> Any:
    """Attention as message passing: each query gathers the values of the keys that its pattern lets it see.

        logit_ij = score(q_i, k_j, e_ij)     for (i, j) in pattern
        w_i.     = normaliser(logit_i.)      over the edges of i
        out_i    = aggregate_j(w_ij, v_j)

    query (B, H, N, D), key (B, G, M, D), value (B, G, M, V), H a multiple of G (consecutive query heads
    share a KV head, which is never repeated in memory), batch sizes equal or 1; or key a `KVView` and no
    value.

    pattern: who sees whom, on the positions of `q_at` and `k_at` (default: both from 0), or a Graph, whose
        receivers see their senders; None: all see all.
    gate: a factor after the normaliser, broadcasting to (B, H, N, M). extra: [(logit, value)], one more
    edge of every row each, (B, H, N, 1) and (B, H, N, V), axes of length 1 broadcast: learned sinks, a self
    term. dropout: share of the pattern's edges that is dropped; its bits follow from `seed` (drawn from
    torch's generator by default) and the positions alone. A row without edges gives 0.

    Returns out (B, H, N, V) in the input's dtype; with return_state (out, State), for `merge`; with
    return_edge also the score's new edge features (B, H, edges, ...) in the order of `pattern.edges`, those
    of a Graph in its own: one pattern for all heads, key and value tensors, the same edges in all batch rows;
    on the backends edge, rows (counted as a fallback) or reference.

    backend: "auto" takes the cheapest that can run the request (`explain` tells which and why), or a name.
    strict=True refuses a fallback to a slower path, which is otherwise counted (`counting()`).
    TypeError and ValueError name the argument, what was expected, what came, and what to do.
    """
    request = make_request(
        query, key, value, pattern=pattern, score=score, normaliser=normaliser, aggregate=aggregate,
        q_at=q_at, k_at=k_at, gate=gate, extra=extra, dropout=dropout, seed=seed, return_state=return_state,
        return_edge=return_edge, strict=strict,
    )  # fmt: skip
    return _answer(request, choose(request, backend))


def _answer(request: Request, choice: Choice) -> Any:
    observed(request)
    if request.return_edge:
        tell(choice)
        found = {"reference": reference, "edge": edge}.get(choice.name, rows).evaluate(request)
        if found.edge is None:
            raise ValueError(
                f"attend: return_edge=True, but the score {request.score.name} gives no edge features"
            )
        edges = found.edge
        if isinstance(request.pattern, GraphEdges) and choice.name != edge.NAME:
            edges = edges[:, :, pair_number(request.pattern.graph)]
        state = request.normaliser.state(found.lse, found.total)
        return (found.out, state, edges) if request.return_state else (found.out, edges)
    out, state = execute(request, choice)
    return (out, state) if request.return_state else out


def explain(query: Tensor, key: Tensor | KVView, value: Tensor | None = None, **options: Any) -> str:
    """Which backend `attend` would run with these arguments, why, and what the others said, as text."""
    backend, strict = options.pop("backend", "auto"), options.pop("strict", False)
    request = make_request(query, key, value, **options)
    choice = choose(request, backend)
    detail = getattr(choice.backend, "detail", None)
    lines = [
        f"pattern     {'dense' if request.pattern is None else request.pattern}",
        f"score       {request.score.name}",
        f"normaliser  {request.normaliser.name}",
        f"backend     {choice.name}: {choice.why}",
        *([] if detail is None else [f"kernel      {detail(core_of(request, choice.backend))}"]),
        f"cost        {choice.cost.flops:.3g} FLOPs, {choice.cost.bytes:.3g} bytes",
        _pairs(request, choice.cost),
    ]
    for name, other in choice.costs.items():
        lines.append(f"  {name:<10}could run: estimated {other.seconds * 1e3:.3g} ms")
    lines += [f"  {name:<10}cannot: {reason}" for name, reason in choice.refused.items()]
    if choice.fallback is not None:
        lines.append(f"fallback    {choice.fallback}{' (strict=True forbids it)' if strict else ''}")
    return "\n".join(lines)


def _pairs(request: Request, estimate: Cost) -> str:
    """The exact pairs of the pattern, whatever the backend computes to get them."""
    whole = request.heads * request.q_at.length * request.keys
    if request.k_at is None or request.pattern is None:
        exact = estimate.pairs if request.k_at is None else whole
    elif isinstance(request.pattern, GraphEdges):
        exact = request.pattern.graph.edges * request.heads
    else:
        exact = cost(
            request.pattern, reference.shapes_of(request), q_at=request.q_at, k_at=request.k_at
        ).pairs
    return (
        f"pairs       {exact} of the pattern, a density of {exact / max(whole, 1):.1%}; "
        f"{estimate.computed} computed, {exact / max(estimate.computed, 1):.0%} of them useful"
    )


@dataclass(frozen=True)
class Planned:
    """A resolved `attend`: call it with new tensors of the same kind; nothing is decided per call.

    Only query, key, value and the token spaces change from call to call; shapes may differ in batch and
    tokens. A call that the planned backend cannot run is a ValueError; one that makes it fall back is
    counted.
    """

    request: Request
    choice: Choice
    options: dict[str, Any] = field(repr=False)

    def __call__(
        self,
        query: Tensor,
        key: Tensor | KVView,
        value: Tensor | None = None,
        *,
        q_at: Tokens | None = None,
        k_at: Tokens | None = None,
    ) -> Any:
        spaces = {"q_at": q_at, "k_at": k_at}
        request = make_request(query, key, value, **{**self.options, **spaces})
        return _answer(request, settled(request, self.choice))


def plan(query: Tensor, key: Tensor | KVView, value: Tensor | None = None, **options: Any) -> Planned:
    """Resolve the backend once: `step = plan(q, k, v, pattern=...)`, then `step(q, k, v)` per call."""
    backend = options.pop("backend", "auto")
    request = make_request(query, key, value, **options)
    kept = {name: option for name, option in options.items() if name not in ("q_at", "k_at")}
    return Planned(request, choose(request, backend), kept)
