"""The functions that transformers calls in place of its own attention, and who answers for which module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from attlas.bridges.mask import TokenMask, token_mask
from attlas.bridges.models import UnsupportedModel, Wiring

__all__ = ["NAME", "Handler", "installed", "register"]

NAME = "attlas"

# Arguments of transformers' attention functions that do not change the result of ours: positions are already
# in the rotated keys, the window is in the mask, the rest configures other kernels or the model's outputs.
IGNORED = frozenset(
    (
        "cache_position",
        "deterministic",
        "is_causal",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    )
)


@runtime_checkable
class Handler(Protocol):
    """Computes one layer's attention: (B, H, n, width) in, (B, H, n, value width) out."""

    def attention(
        self, layer: int, query: Tensor, key: Any, value: Any, mask: TokenMask, scaling: float, dropout: float
    ) -> Tensor: ...


_HANDLERS: dict[int, tuple[Handler, int]] = {}


def register() -> None:
    """Make `attlas` known to transformers' attention and mask interfaces; safe to call again.

    Nothing is registered on import, and a model changes only inside `applied` or `capture`.
    """
    AttentionInterface.register(NAME, _attention)
    # Without its own mask function the mask would silently be None, and padded rows wrong.
    AttentionMaskInterface.register(NAME, token_mask)


@contextmanager
def installed(model: nn.Module, wired: Wiring, handler: Handler, overrides: dict[str, Any]) -> Iterator[None]:
    """Route the model's attention to `handler`, with instance `overrides` on the model; undone on leaving.

    RuntimeError when the model is already routed (nested `applied` or `capture`).
    """
    if any(id(module) in _HANDLERS for module in wired.modules):
        raise RuntimeError(
            f"{wired.shape.name} already has a plan applied (or is being captured): applied() and capture() "
            "cannot be nested on one model. Leave the outer block first"
        )
    register()
    config = wired.config
    before = {
        key: config.__dict__[key] for key in ("_attn_implementation_internal",) if key in config.__dict__
    }
    for layer, module in enumerate(wired.modules):
        _HANDLERS[id(module)] = (handler, layer)
    try:
        config.__dict__["_attn_implementation_internal"] = NAME
        for name, value in overrides.items():
            model.__dict__[name] = value
        yield
    finally:
        for module in wired.modules:
            _HANDLERS.pop(id(module), None)
        config.__dict__.pop("_attn_implementation_internal", None)
        config.__dict__.update(before)
        for name in overrides:
            model.__dict__.pop(name, None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, H, n, D), keys with their own fewer heads -> (B, n, H,
    V), contiguous because some models view it without a copy."""
    found = _HANDLERS.get(id(module))
    if found is None:
        raise RuntimeError(
            f"{type(module).__name__} asks for the attention named {NAME!r}, but no plan is applied to its "
            "model: run it inside attlas.applied(model, plan) instead of setting attn_implementation"
        )
    handler, layer = found
    for name, given in kwargs.items():
        if given is not None and given is not False and name not in IGNORED:
            raise UnsupportedModel(_refusal(module, name))
    if not isinstance(attention_mask, TokenMask):
        attention_mask = _without_mask(module, query, key, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = handler.attention(layer, query, key, value, attention_mask, scale, dropout)
    return out.transpose(1, 2).contiguous(), None


def _refusal(module: nn.Module, name: str) -> str:
    model = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    reasons = {
        "softcap": "soft-capped logits",
        "s_aux": "learned attention sinks",
        "sinks": "learned attention sinks",
        "position_bias": "an additive position bias",
        "head_mask": "a head mask",
        "output_attentions": "attention weights as an output: there is no n x n matrix to return",
        "cache": "a paged cache",
    }
    what = reasons.get(name, "an argument that is not implemented")
    return (
        f"{model} ({type(module).__name__}) passes {name} to its attention ({what}), which is not supported"
    )


def _without_mask(module: nn.Module, query: Tensor, key: Any, mask: Any) -> TokenMask:
    if mask is not None:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedModel(
            f"{type(module).__name__} passes a mask of its own ({shape}) to its attention; only masks made "
            "by transformers' mask functions from a 2-D attention_mask are supported"
        )
    causal = getattr(module, "is_causal", True) is not False
    columns = query.shape[2]
    if isinstance(key, Tensor) and key.shape[2] != columns:
        raise UnsupportedModel(
            f"{type(module).__name__} attends {columns} queries to {key.shape[2]} keys without a mask, so "
            "their positions are unknown (cross-attention is not supported)"
        )
    return TokenMask(columns, columns, 0, 0, None, None, causal)
