"""Streaming forms of normalisers beyond softmax: by sweeps over the keys of 64 rows, on the strip kernel.

A form is found by the stages of a normaliser, so that chains have one as well; each says how many sweeps its
forward takes. Dense `rows` define what they compute.
Legend: B batch, H query heads, N queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attlas.attend.counts import OverCount, TimesLogCount
from attlas.attend.lssa import ShiftPower
from attlas.attend.normaliser import Normaliser, Sigmoid
from attlas.attend.ratio import L1
from attlas.attend.request import Request
from attlas.attend.strip_forms import weighted_strips
from attlas.attend.strip_rules import SHIFT_POWER, SIGMOID, SOFTPLUS
from attlas.score import Dot
from attlas.score.base import side_by_side

__all__ = ["Form", "beyond_form", "form_of", "streamed"]


@dataclass(frozen=True)
class Form:
    """How a normaliser runs on strips.

    rule: of `strip_rules`; passes: sweeps of the forward (the backward takes as many); bias: of sigmoid, None
    for -log of the row's edges; scaled: logits are multiplied by the logarithm of the row's edges; over: out
    is divided by the row's edges to this power; power: of SHIFT_POWER.
    """

    rule: int
    passes: int = 1
    bias: float | None = 0.0
    scaled: bool = False
    over: float = 0.0
    power: float = 1.0


def form_of(normaliser: Normaliser) -> Form | None:
    """The streaming form of a normaliser, or None."""
    stages = list(normaliser.stages())
    kinds = [type(stage) for stage in stages]  # a subclass may compute something else
    scaled = kinds[0] is TimesLogCount
    if scaled:
        stages, kinds = stages[1:], kinds[1:]
    if not stages:
        return None
    first = stages[0]
    if kinds[0] is Sigmoid and isinstance(first, Sigmoid) and not scaled:
        if kinds == [Sigmoid]:
            return Form(SIGMOID, bias=first.bias)
        if kinds == [Sigmoid, OverCount] and isinstance(stages[1], OverCount):
            return Form(SIGMOID, bias=first.bias, over=stages[1].power)
    if kinds[0] is L1 and isinstance(first, L1) and first.feature == "softplus":
        if kinds == [L1]:
            return Form(SOFTPLUS, scaled=scaled)
        if kinds == [L1, ShiftPower, L1]:
            _, shift, last = stages
            if isinstance(shift, ShiftPower) and isinstance(last, L1) and last.feature == "identity":
                return Form(SHIFT_POWER, passes=2, scaled=scaled, power=shift.power)
    return None


def beyond_form(request: Request) -> str | None:
    """What keeps the form of a normaliser from this request, or None."""
    if request.return_state and type(request.normaliser) is not Sigmoid:
        return f"it returns no state of {request.normaliser.name}"
    return None


def streamed(
    request: Request, parts: tuple[Tensor, ...], counts: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """(out (B, H, N, V), lse (B, H, N)) of a request with a form; parts: its strips.

    counts: makes the number of edges of each row (B or 1, H, N). In float32, unless bfloat16 enters the dot
    product as it is.
    """
    form = form_of(request.normaliser)
    if form is None or request.key is None or request.value is None:
        raise ValueError(f"streamed: {request.normaliser.name} has no streaming form here")
    query, key, value = request.query, request.key, request.value
    edges = counts()
    rows = edges.clamp_min(1).to(torch.float32)
    # Factors of rows and bounded cosines would be rounded to 8 bits.
    if type(request.score) is not Dot or form.scaled:
        query, key, value = (tensor.to(torch.float32) for tensor in (query, key, value))
    lowered = request.score.lower(query, key, request.edge)
    if lowered is None:
        raise ValueError(f"streamed: the score {request.score.name} is no dot product")
    query, key = lowered.query, lowered.key
    if lowered.shift is not None:
        # Softmax would not notice it: one more column, so that its gradient is that of the logits.
        shift = (lowered.shift / lowered.scale).unsqueeze(-1)
        query = side_by_side(query, shift.to(query.dtype))
        key = side_by_side(key, torch.ones_like(key[..., :1]))
    if form.scaled:
        query = query * rows.log().unsqueeze(-1)
    own = rows if form.rule == SHIFT_POWER else -rows.log() if form.bias is None else rows * 0 + form.bias
    out = weighted_strips(query, key, value, parts, own, lowered.scale, form.rule, form.power)
    if form.over:
        out = out * (rows**-form.over).unsqueeze(-1).to(out.dtype)
    lse = torch.where(edges > 0, 0.0, -float("inf")).to(torch.float32)
    return out.to(request.dtype), lse.expand(request.batch, request.heads, -1)
