"""What all fused kernels refuse alike."""

from attlas.attend.aggregate import Aggregate, Sum
from attlas.attend.normaliser import Normaliser, Softmax
from attlas.attend.request import Request

__all__ = ["beyond_softmax", "beyond_sum"]


def beyond_softmax(request: Request, dropout: str = "it has no dropout") -> str | None:
    """What keeps a kernel of softmax and sum from this request, whatever its score and tokens; or None.

    dropout: the reason to give where dropout is asked for.
    """
    if not request.plain_softmax:
        return f"its normaliser is softmax, not {_named(request.normaliser, Softmax)}"
    return beyond_sum(request, dropout)


def beyond_sum(request: Request, dropout: str = "it has no dropout") -> str | None:
    """What keeps a kernel of a plain sum from this request, whatever its score, normaliser and tokens."""
    if type(request.aggregate) is not Sum:
        return f"its aggregate is the sum, not {_named(request.aggregate, Sum)}"
    refused = (
        (request.gate is not None, "it has no gate"),
        (bool(request.extra), "it has no extra terms"),
        (bool(request.dropout), dropout),
        (request.return_edge, "it returns no edge states"),
    )
    return next((reason for asked, reason in refused if asked), None)


def _named(part: Normaliser | Aggregate, kind: type) -> str:
    """Its name; the class too where it is a subclass, which may compute something else."""
    return (
        f"its subclass {type(part).__name__}"
        if isinstance(part, kind) and type(part) is not kind
        else part.name
    )
