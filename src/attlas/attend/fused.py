"""What all fused kernels refuse alike."""

from attlas.attend.request import Request

__all__ = ["beyond_softmax"]


def beyond_softmax(request: Request, dropout: str = "it has no dropout") -> str | None:
    """What keeps a kernel of softmax and sum from this request, whatever its score and tokens; or None.

    dropout: the reason to give where dropout is asked for.
    """
    if not request.plain_softmax:
        return f"its normaliser is softmax, not {request.normaliser.name}"
    if request.aggregate.name != "sum":
        return f"its aggregate is the sum, not {request.aggregate.name}"
    refused = (
        (request.gate is not None, "it has no gate"),
        (bool(request.extra), "it has no extra terms"),
        (bool(request.dropout), dropout),
        (request.return_edge, "it returns no edge states"),
    )
    return next((reason for asked, reason in refused if asked), None)
