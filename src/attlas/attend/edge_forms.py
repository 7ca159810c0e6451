"""The fused forms of the `edge` backend: what compiled loops along edges answer, in order of preference."""

import math
from collections.abc import Callable
from typing import NamedTuple

from attlas.attend.edge_kernel import EdgeScore, edge_attention, refusal
from attlas.attend.fused import beyond_softmax
from attlas.attend.request import Request, Result
from attlas.score import Additive, Clamped, EdgeProduct, GraphBias, Score, TypedBias

__all__ = ["FORMS", "FusedForm", "fitting"]


class FusedForm(NamedTuple):
    """A compiled form: `fits` gives None or the reason why it cannot answer, `run` answers.

    The request is of a Graph, with key and value tensors, and all nodes of the graph in their order.
    `run` gives out (B, H, N, V) and lse (B, H, N), total or None, and with return_edge the states
    (B, H, E, ...) in the graph's order.
    """

    name: str
    fits: Callable[[Request], str | None]
    run: Callable[[Request], Result]


def _beyond_dot(request: Request) -> str | None:
    return _beyond(request, _dot_score(request), "the dot product, also with a bias of edges")


def _beyond_additive(request: Request) -> str | None:
    return _beyond(request, _additive_score(request), "additive")


def _beyond_product(request: Request) -> str | None:
    # It is also asked for its states, which beyond_softmax refuses.
    alone = request.but(return_edge=False)
    return _beyond(alone, _product_score(request), "a product with edge features")


def _beyond(request: Request, score: EdgeScore | None, wanted: str) -> str | None:
    if score is None:
        return f"its score is {wanted}, not {request.score.name}"
    if request.batch > 1 and (score.bias is not None or score.edge is not None):
        return "its tensors of edges go with a batch of one"
    return beyond_softmax(request) or refusal(request.dtype, request.query.device)


def _limits(score: Score) -> tuple[Score, tuple[float, float]]:
    """The score inside a clamp, and the clamp."""
    if type(score) is not Clamped:
        return score, (-math.inf, math.inf)
    return score.inner, (score.low, score.high)


def _dot_score(request: Request) -> EdgeScore | None:
    score, (low, high) = _limits(request.score)
    terms = score.terms()
    dots = [term for term in terms if term.kernel == "dot"]
    biased = sum(type(term) in (GraphBias, TypedBias) for term in terms)
    if len(dots) != 1 or biased + 1 != len(terms):
        return None
    columns = [one if one.dim() == 2 else one[:, None] for one in request.edge_tensors]
    bias = sum(columns[1:], start=columns[0]) if columns else None
    scale = dots[0].scale_for(request.width)  # type: ignore[attr-defined]
    return EdgeScore("dot", scale, bias=bias, low=low, high=high)


def _additive_score(request: Request) -> EdgeScore | None:
    score, (low, high) = _limits(request.score)
    if type(score) is not Additive or score.slope <= 0 or request.width != 1:
        return None
    columns = [one if one.dim() == 2 else one[:, None] for one in request.edge_tensors]
    return EdgeScore("additive", slope=score.slope, bias=columns[0] if columns else None, low=low, high=high)


def _product_score(request: Request) -> EdgeScore | None:
    score, (low, high) = _limits(request.score)
    if type(score) is not EdgeProduct or score.edge.shape[1:] != (request.heads, request.width):
        return None
    return EdgeScore("product", 1.0 / math.sqrt(request.width), edge=score.edge, low=low, high=high)


def _run(make: Callable[[Request], EdgeScore | None]) -> Callable[[Request], Result]:
    def run(request: Request) -> Result:
        score = make(request)
        if score is None or request.key is None or request.value is None:
            raise ValueError(f"edge: no compiled form of {request.score.name}")
        graph = request.pattern.graph  # type: ignore[union-attr]
        state = request.return_edge
        out, lse, states = edge_attention(
            request.query, request.key, request.value, graph, score, state=state
        )
        return Result(out, lse, edge=states)

    return run


FORMS: tuple[FusedForm, ...] = (
    FusedForm("softmax of dot products", _beyond_dot, _run(_dot_score)),
    FusedForm("softmax of additive scores", _beyond_additive, _run(_additive_score)),
    FusedForm("softmax of products with edges", _beyond_product, _run(_product_score)),
)
"""The first form that fits runs."""


def fitting(request: Request) -> tuple[FusedForm | None, dict[str, str]]:
    """The form that runs a request, if any, and why those before it cannot; found once for a request."""
    known = request.__dict__.get("_fitting")
    if known is None:
        known = request.__dict__["_fitting"] = _fitting(request)
    return known


def _fitting(request: Request) -> tuple[FusedForm | None, dict[str, str]]:
    reasons: dict[str, str] = {}
    for form in FORMS:
        reason = form.fits(request)
        if reason is None:
            return form, reasons
        reasons[form.name] = reason
    return None, reasons
