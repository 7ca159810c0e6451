"""The fused forms of the `edge` backend: what compiled loops along edges answer, in order of preference."""

from collections.abc import Callable
from typing import NamedTuple

from attlas.attend.edge_kernel import edge_attention, refusal
from attlas.attend.fused import beyond_softmax
from attlas.attend.request import Request, Result

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
    if request.score.kernel != "dot":
        return f"its score is the dot product, not {request.score.name}"
    return beyond_softmax(request) or refusal(request.dtype, request.query.device)


def _dot(request: Request) -> Result:
    graph = request.pattern.graph  # type: ignore[union-attr]
    scale = request.score.scale_for(request.width)  # type: ignore[attr-defined]
    return Result(*edge_attention(request.query, request.key, request.value, graph, scale))  # type: ignore[arg-type]


FORMS: tuple[FusedForm, ...] = (FusedForm("softmax of dot products", _beyond_dot, _dot),)
"""The first form that fits runs."""


def fitting(request: Request) -> tuple[FusedForm | None, dict[str, str]]:
    """The form that runs a request, if any, and why those before it cannot."""
    reasons: dict[str, str] = {}
    for form in FORMS:
        reason = form.fits(request)
        if reason is None:
            return form, reasons
        reasons[form.name] = reason
    return None, reasons
