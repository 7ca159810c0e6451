"""Keep each layer's queries, keys, values and the gradient of its attention output, for profiling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attlas.bridges.attention import installed
from attlas.bridges.mask import TokenMask
from attlas.bridges.models import wiring

__all__ = ["Captured", "Recording", "capture"]


@dataclass
class Captured:
    """One layer of one forward pass (and backward pass, once it ran), all detached.

    query (B, H, N, D), key (B, G, N, D) and value (B, G, N, V) after rotary embedding; grad_output: gradient
    of the loss by the attention output (B, H, N, V), None before backward(); valid (B, N) real tokens or
    None; window: the model's own sliding window; weights are softmax(scaling * query key^T) over the visible
    keys.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    causal: bool
    window: int | None
    valid: Tensor | None
    grad_output: Tensor | None = None


class Recording:
    """Layers captured by the last forward pass; `pop` hands them out one by one so that memory is freed."""

    def __init__(self) -> None:
        self.layers: dict[int, Captured] = {}

    def __len__(self) -> int:
        return len(self.layers)

    def pop(self, layer: int) -> Captured:
        """Take one layer out. ValueError when it was not captured."""
        if layer not in self.layers:
            raise ValueError(
                f"layer {layer} is not in the recording (it holds {sorted(self.layers)}): run the model "
                "inside capture() first, and pop each layer once"
            )
        return self.layers.pop(layer)

    def drain(self) -> Iterator[Captured]:
        """All layers in order, each released from the recording before the next."""
        for layer in sorted(self.layers):
            yield self.pop(layer)

    def attention(
        self, layer: int, query: Tensor, key: Any, value: Any, mask: TokenMask, scaling: float, dropout: float
    ) -> Tensor:
        """The model's own attention by SDPA, recorded; see `attlas.bridges.attention.Handler`."""
        if mask.query_start or not isinstance(key, Tensor):
            raise ValueError(
                "capture() records whole sequences: run the model without a cache (use_cache=False), "
                f"got {mask.queries} tokens after {mask.query_start} cached ones"
            )
        captured = Captured(
            layer,
            query.detach(),
            key.detach(),
            value.detach(),
            scaling,
            mask.causal,
            mask.window,
            mask.valid,
        )
        self.layers[layer] = captured
        allowed = mask.memo.get("sdpa")
        if allowed is None:
            allowed = mask.memo["sdpa"] = _allowed(mask, query.device)
        out = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed if isinstance(allowed, Tensor) else None,
            dropout_p=dropout,
            is_causal=allowed == "causal" if isinstance(allowed, str) else False,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        if out.requires_grad:
            out.register_hook(lambda gradient: _keep(captured, gradient))
        return out


@contextmanager
def capture(model: nn.Module, *, weight_gradients: bool = False) -> Iterator[Recording]:
    """Run the model on its own attention, keeping Q, K, V per layer and, after backward(), dO.

        with capture(model) as recording:
            loss_of(model(input_ids=ids, use_cache=False)).backward()
        for layer in recording.drain(): ...

    Gradients flow through activations only: unless weight_gradients, parameters are frozen inside the block
    (about a third of the backward pass saved) and as they were afterwards. Memory: activations of one pass.
    Works for decoders and encoders; each forward pass starts a new recording per layer.
    """
    wired = wiring(model)
    recording = Recording()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [] if weight_gradients else trainable
    hook = model.get_input_embeddings().register_forward_hook(_start_gradient)  # type: ignore[operator]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with installed(model, wired, recording, {}):
            yield recording
    finally:
        hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _start_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_(True)


def _keep(captured: Captured, gradient: Tensor) -> None:
    captured.grad_output = gradient.detach()


def _allowed(mask: TokenMask, device: torch.device) -> Tensor | str:
    """ "causal" or "full" where SDPA has its own flag, else a Bool mask (B or 1, 1, n, n)."""
    padded = mask.valid is not None and not (mask.causal and _only_right(mask.valid))
    window = mask.window if mask.window is not None and mask.window < mask.queries else None
    if not padded and window is None:
        return "causal" if mask.causal else "full"
    row = torch.arange(mask.queries, device=device)[:, None]
    column = torch.arange(mask.queries, device=device)[None, :]
    distance = row - column
    allowed = torch.ones_like(distance, dtype=torch.bool)
    if mask.causal:
        allowed = allowed & (distance >= 0)
    if window is not None:
        allowed = allowed & (distance.abs() < window)
    allowed = allowed[None, None]
    if padded and mask.valid is not None:
        allowed = allowed & mask.valid[:, None, None, : mask.queries]
    # A padded query must see something, or its NaN would reach the next layers; itself does.
    return allowed | (distance == 0)


def _only_right(valid: Tensor) -> bool:
    return bool((valid[:, 1:] <= valid[:, :-1]).all())
