"""LongLoRA's fine-tuning recipe: low-rank updates of the attention, embeddings and norms trained whole."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from attlas._common.errors import UsageError

__all__ = ["PROJECTIONS", "lora"]

PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("query", "key", "value", "out"),
)
"""Names of the query, key, value and output projections: of most Hugging Face decoders, and of ours."""


def lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    whole: Sequence[str] | None = None,
) -> Any:
    """The model with W + (alpha / rank) B A on its attention projections, as a `peft.PeftModel`.

    targets: full names of the linear layers that get an update (default: the query, key, value and output
    projections); whole: of the modules that are trained themselves (default: embeddings and norms, without
    which long contexts are not learned, arXiv 2309.12307). Everything else is frozen. B starts at 0.
    The result is peft's: `merge_and_unload()` gives a plain model with the updates added, `merge_adapter()`
    and `unmerge_adapter()` switch, `save_pretrained(folder)` writes safetensors and JSON, read again by
    `peft.PeftModel.from_pretrained(model, folder)`. The layers of `model` itself are wrapped.
    UsageError: peft is missing. ValueError: no projections are found, rank below 1.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("fine-tuning by LoRA needs the package peft: pip install 'attlas[tune]'")
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise ValueError(f"lora: rank must be at least 1, got {rank}")
    chosen = _projections(model) if targets is None else list(targets)
    if not chosen:
        raise ValueError(
            f"lora: {type(model).__name__} has no linear layers named "
            f"{' or '.join(', '.join(names) for names in PROJECTIONS)}; give their names by targets="
        )
    trained = _whole(model) if whole is None else list(whole)
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float serves as well
        lora_dropout=dropout,
        target_modules=chosen,
        modules_to_save=trained,
        # Where the output layer is the embedding, both must stay one tensor.
        ensure_weight_tying=tied and bool(trained),
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by a name that it will lose.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def _projections(model: nn.Module) -> list[str]:
    """Linear layers named as projections, where a module holds a whole set of them."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = []
    for name, _ in model.named_modules():
        for names in PROJECTIONS:
            full = [f"{name}.{part}" if name else part for part in names]
            if linear.issuperset(full):
                found += full
    return found


def _whole(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or type(module).__name__.endswith("Norm")
    ]
