"""torch's `scaled_dot_product_attention`: dense and causal attention without a mask, anything else with one.

On the CPU its fused kernel works on equal widths and equal batches, adjacent numbers of a row and a bias
without gradient; elsewhere torch falls back *silently* to plain matrix products with an N × M matrix. What
can be brought into that form is; `inner_fallback` tells of the rest beforehand, and of an N × M mask.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from attlas.attend.cost import Cost, cost
from attlas.attend.fused import beyond_softmax
from attlas.attend.reference import shapes_of
from attlas.attend.request import Request, present
from attlas.attend.state import Part, State
from attlas.pattern import Pattern, dense
from attlas.score import EdgeBias, Score, ScoreSum

__all__ = [
    "NAME",
    "estimate",
    "inner_fallback",
    "is_causal_square",
    "run",
    "sees_all",
    "split_bias",
    "supports",
]

NAME = "sdpa"
FEW_ROWS = 64
"""Queries up to which a mask is linear in the keys: as many rows as a block of `rows` holds at a time."""
MASKED = 2.0
"""A boolean mask costs about twice the time of the whole square without one (measured, torch 2.13 CPU)."""


def supports(request: Request) -> str | None:
    """None, or the reason why this backend cannot answer the request."""
    if request.view is not None:
        return "it takes key and value tensors, not a KVView"
    score, _ = split_bias(request.score)
    if score is None or not score.lowers(request.dtype):
        return f"the score {request.score.name} is no dot product in {request.dtype}"
    if request.return_state:
        return "it returns no differentiable state"
    return beyond_softmax(request, "its dropout is not the counter-based one")


def split_bias(score: Score) -> tuple[Score | None, EdgeBias | None]:
    """(the rest, one `EdgeBias` that can be an additive mask); the rest is None where nothing remains."""
    if score.lowers(torch.float32):
        return score, None
    tables = [term for term in score.terms() if type(term) is EdgeBias and not term.lowers(torch.float32)]
    others = [term for term in score.terms() if term not in tables]
    if len(tables) != 1 or not others:
        return None if tables else score, None
    rest = others[0]
    for term in others[1:]:
        rest = ScoreSum(rest, term)
    return rest, tables[0]


def sees_all(request: Request) -> bool:
    """Whether every query sees every key."""
    if not (request.q_at.valid is None and request.k_at is not None and request.k_at.valid is None):
        return False
    return request.pattern is None or request.pattern == dense()


def is_causal_square(request: Request) -> bool:
    """Whether the pattern is exactly the causal triangle of equal, contiguous queries and keys."""
    if request.pattern is None or request.k_at is None or not (request.q_at.plain and request.k_at.plain):
        return False
    if request.queries != request.keys or request.q_at.start != request.k_at.start:
        return False
    return all(_is_causal(one, request.k_at.extent) for one in set(request.patterns) if one is not None)


def _is_causal(pattern: Pattern, extent: int) -> bool:
    form = pattern.sink_window()
    if form is None:
        return False
    window = form[1]
    return window is None or (isinstance(window, int) and window >= extent)


def maskless(request: Request) -> bool:
    """Whether no mask is needed, so that torch's kernel does no work in vain."""
    return split_bias(request.score)[1] is None and (sees_all(request) or is_causal_square(request))


def inner_fallback(request: Request) -> str | None:
    """Why torch would leave its fused kernel, or why an N × M mask would be built for it, or None."""
    _, bias = split_bias(request.score)
    if bias is not None and torch.is_grad_enabled() and bias.values.requires_grad:
        return "sdpa computes the whole N × M matrix when a bias needs gradient"
    if request.queries <= FEW_ROWS or maskless(request):
        return None
    if bias is not None and sees_all(request) and bias.values.dtype == request.dtype:
        return None  # the caller's own table is the mask
    return "sdpa needs an N × M mask here"


def estimate(request: Request) -> Cost:
    """The triangle or the rectangle; a mask hides pairs and saves none of them."""
    shapes = shapes_of(request)
    if is_causal_square(request):
        return cost(request.pattern, shapes, q_at=request.q_at, k_at=request.k_at)
    dense = cost(None, shapes)
    return dense if sees_all(request) else dense.times(MASKED)


def run(request: Request) -> Part:
    """(out (B, H, N, V), state); the state is the empty one unless asked for, which `supports` refuses."""
    request = request.expanded()
    if request.key is None or request.value is None:
        raise ValueError("sdpa needs key and value tensors")
    score, bias = split_bias(request.score)
    lowered = None if score is None else score.lower(request.query, request.key, request.edge)
    if lowered is None:
        raise ValueError(f"sdpa: the score {request.score.name} is no dot product; see supports()")
    key, value = present(lowered.key, request.k_at), present(request.value, request.k_at)
    width = max(lowered.query.shape[-1], request.value_width)
    causal = is_causal_square(request)
    mask, empty = _mask(request, bias, causal)
    out = functional.scaled_dot_product_attention(
        _padded(lowered.query, width),
        _padded(key, width),
        _padded(value, width),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=lowered.scale,
        enable_gqa=request.group > 1,
    )[..., : request.value_width]
    if empty is not None:
        out = out.masked_fill(empty, 0.0)
    missing = request.query.new_full(
        (request.batch, request.heads, request.queries), math.nan, dtype=torch.float32
    )
    return out, State(missing)


def _padded(tensor: Tensor, width: int) -> Tensor:
    """Zero columns keep torch on its fused path, which needs equal widths and adjacent numbers of a row."""
    if tensor.shape[-1] != width:
        return functional.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _mask(request: Request, bias: EdgeBias | None, causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """(mask for SDPA, rows without edges (…, N, 1)); both None where no mask is needed."""
    everything = sees_all(request)
    if bias is None and (causal or everything):
        return None, None
    if bias is not None and everything:
        return bias.tensors()[0].to(request.dtype), None
    allowed = _allowed(request)
    empty = ~allowed.any(-1, keepdim=True)
    # Rows without edges look at everything and are zeroed after: no NaN in either direction.
    allowed = allowed | empty
    if bias is None:
        return allowed, empty
    table = bias.tensors()[0].to(request.dtype)
    return table.masked_fill(~allowed, -float("inf")), empty


def _allowed(request: Request) -> Tensor:
    if request.k_at is None:
        raise ValueError("sdpa needs key tensors")
    if request.pattern is None:
        whole = torch.ones(request.queries, request.keys, dtype=torch.bool, device=request.device)
        for space, axis in ((request.q_at, -1), (request.k_at, -2)):
            if space.valid is not None:
                whole = whole & space.valid.to(request.device).unsqueeze(axis)
        return whole.unsqueeze(-3) if whole.dim() == 3 else whole[None, None]
    mask = request.pattern.mask(request.q_at, request.k_at, request.device)
    if request.pattern.heads is None:
        return mask.unsqueeze(-3) if mask.dim() == 3 else mask[None, None]
    mask = mask if mask.dim() == 4 else mask[None]
    return mask if mask.shape[1] == request.heads else mask.repeat_interleave(request.group, 1)
