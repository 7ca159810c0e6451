"""What Attlas needs to know of a Hugging Face model: its shape, its attention modules, its own windows."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from attlas._common.errors import UnsupportedModel
from attlas.pattern import ModelShape

__all__ = ["INSERTED", "UnsupportedModel", "Wiring", "describe", "fingerprint_without", "wiring"]

INSERTED = "attlas_"
"""In the names of modules that were inserted, inside the model's attention modules."""

# Sampled per tensor for the fingerprint; signs survive a change of precision, values do not.
SAMPLES = 64
RECURRENT_LAYERS = ("linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent")
NOT_PLAIN_LAYERS = {
    "chunked_attention": "attention in chunks",
    "compressed_sparse_attention": "compressed sparse attention",
    "heavily_compressed_attention": "compressed attention",
    "minimax_m3_sparse": "its own sparse attention",
    "indexed_attention": "its own indexed sparse attention",
}


@dataclass(frozen=True)
class Wiring:
    """A model as seen by the bridges: attention modules in layer order, and what they share.

    windows: the model's own sliding window per layer (None: full attention); causal: decoder or encoder.
    """

    shape: ModelShape
    config: Any
    modules: tuple[nn.Module, ...]
    windows: tuple[int | None, ...]
    causal: bool


def describe(model: nn.Module) -> ModelShape:
    """Name, family, layers, heads, KV heads, head width and fingerprint of a Hugging Face model.

    The fingerprint is a sha256 over the configuration's essentials and the signs of sampled weights: equal
    for the same weights in another precision, different for other weights. UnsupportedModel says what is
    missing.
    """
    return wiring(model).shape


def wiring(model: nn.Module) -> Wiring:
    """Find the attention modules that dispatch through transformers' attention interface, or say why not."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise UnsupportedModel(
            f"{type(model).__name__} is not a Hugging Face model: it has no config with a model_type"
        )
    name = type(model).__name__
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    _check_config(name, config, text)
    layers = int(text.num_hidden_layers)
    windows = _windows(name, text, layers)
    modules = _attention_modules(model, text)
    _check_modules(name, modules, layers)
    heads = int(text.num_attention_heads)
    kv_heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None) or heads
    if not isinstance(kv_heads, int):
        raise UnsupportedModel(
            f"{name}: layers differ in their number of KV heads ({kv_heads}), one is expected"
        )
    if heads % kv_heads:
        raise UnsupportedModel(f"{name}: {heads} query heads are not a multiple of {kv_heads} KV heads")
    width = _head_width(name, modules, text, heads)
    shape = ModelShape(
        name=PurePath(getattr(config, "_name_or_path", "") or name).name or name,
        family=str(text.model_type),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width,
        fingerprint=_fingerprint(model, [text.model_type, layers, heads, kv_heads, width, list(windows)], ()),
    )
    causal = all(getattr(module, "is_causal", True) is not False for module in modules)
    if not causal:  # transformers' bidirectional window is inclusive: |i - j| <= w
        windows = tuple(None if window is None else window + 1 for window in windows)
    return Wiring(shape, text, modules, windows, causal)


def _check_config(name: str, config: Any, text: Any) -> None:
    """Refuse what only the configuration tells: it would fail late or, where layers share keys, silently."""
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{name} is an encoder-decoder model: cross-attention is not supported, "
            "only decoders and encoders"
        )
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedModel(
            f"{name} has cross-attention (config.add_cross_attention), which is not supported"
        )
    crossing = list(getattr(text, "cross_attention_layers", None) or ())
    if crossing:
        raise UnsupportedModel(
            f"{name}: layers {_listed(crossing)} are cross-attention (config.cross_attention_layers), which "
            "is not supported"
        )
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    if shared or "reuse" in (getattr(text, "kv_sharing_modes", None) or ()):
        raise UnsupportedModel(
            f"{name}: {shared or 'some'} layers have no keys and values of their own but share those of "
            "earlier layers (config.num_kv_shared_layers), which is not supported: one span per layer and "
            "head is expected"
        )
    if hasattr(text, "lambda_std_dev"):
        raise UnsupportedModel(
            f"{name}: differential attention, the difference of two attentions per layer "
            "(config.lambda_std_dev), is not supported; one attention per layer is expected"
        )


def _windows(name: str, config: Any, layers: int) -> tuple[int | None, ...]:
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [
            "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        ] * layers
    recurrent = [index for index, kind in enumerate(kinds) if kind in RECURRENT_LAYERS]
    if recurrent:
        raise UnsupportedModel(
            f"{name}: layers {_listed(recurrent)} are linear attention or recurrent ({kinds[recurrent[0]]}); "
            "only models whose every layer is softmax attention are supported"
        )
    for index, kind in enumerate(kinds):
        if kind in NOT_PLAIN_LAYERS:
            raise UnsupportedModel(
                f"{name}: layer {index} uses {NOT_PLAIN_LAYERS[kind]} ({kind}), not supported"
            )
    window = getattr(config, "sliding_window", None)
    return tuple(
        int(window) if kind == "sliding_attention" and window else None for kind in list(kinds)[:layers]
    )


def _attention_modules(model: nn.Module, config: Any) -> tuple[nn.Module, ...]:
    return tuple(
        module
        for module in model.modules()
        if getattr(module, "config", None) is config and _dispatches(type(module).forward)
    )


@lru_cache(maxsize=256)
def _dispatches(forward: Callable[..., Any]) -> bool:
    """Whether a module's own forward asks transformers for its attention function."""
    try:
        source = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):
        return False
    return "get_interface(" in source and "._attn_implementation" in source


def _check_modules(name: str, modules: tuple[nn.Module, ...], layers: int) -> None:
    if not modules:
        raise UnsupportedModel(
            f"{name} does not dispatch through transformers' attention interface: none of its modules asks "
            "ALL_ATTENTION_FUNCTIONS for its attention, so no other attention can be put in. Use a model "
            "class that does (most decoders of transformers 5 do)"
        )
    if len(modules) != layers:
        raise UnsupportedModel(
            f"{name}: {len(modules)} attention modules for {layers} layers dispatch through the attention "
            "interface, one per layer is expected (shared layers and layers without attention are "
            "not supported)"
        )


def _head_width(name: str, modules: tuple[nn.Module, ...], config: Any, heads: int) -> int:
    widths = set()
    for module in modules:
        for attribute in ("qk_head_dim", "head_dim", "head_size", "attention_head_size"):
            width = getattr(module, attribute, None)
            if isinstance(width, int):
                widths.add(width)
                break
    if len(widths) > 1:
        raise UnsupportedModel(
            f"{name}: layers differ in their head width ({sorted(widths)}), one is expected"
        )
    return widths.pop() if widths else getattr(config, "head_dim", None) or int(config.hidden_size) // heads


def weights_digest(model: nn.Module) -> str:
    """Short hash of sampled weights: changed values give another, unlike the fingerprint, which a fine-tuned
    or quantised model keeps so that its plan still applies."""
    found = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        sample = flat[_sampled(flat.numel()).to(flat.device)] if flat.device.type != "meta" else flat[:0]
        found.update(name.encode() + sample.double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def fingerprint_without(model: nn.Module, names: Collection[str]) -> str:
    """The fingerprint by all weights but the named ones: the same before and after these were trained."""
    wired = wiring(model)
    shape = wired.shape
    essentials = [shape.family, shape.layers, shape.heads, shape.kv_heads, shape.head_width]
    return _fingerprint(model, [*essentials, list(wired.windows)], names)


def _fingerprint(model: nn.Module, essentials: list[Any], without: Collection[str]) -> str:
    digest = hashlib.sha256(json.dumps(essentials, sort_keys=True).encode())
    for name, weight in sorted(model.named_parameters()):
        if INSERTED in name or name in without:  # a plan for the model still fits when something is inserted
            continue
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if weight.is_floating_point() and weight.numel() and weight.device.type != "meta":
            flat = weight.detach().reshape(-1)
            index = _sampled(flat.numel()).to(flat.device)
            digest.update(bytes((flat[index] > 0).to("cpu", torch.uint8).tolist()))
    return digest.hexdigest()


def _sampled(size: int) -> torch.Tensor:
    """Evenly spaced indices below `size`, in integers (float32 would overshoot beyond 2^24)."""
    count = min(SAMPLES, size)
    return torch.arange(count) * size // count


def _listed(indices: list[int], most: int = 6) -> str:
    text = ", ".join(map(str, indices[:most]))
    return text if len(indices) <= most else f"{text}, ... ({len(indices)} in all)"
