"""Tiny random models of several families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GROUPED = {"num_key_value_heads": 2}

# name -> (class prefix, settings). The sliding windows are short, so that they matter at the tests' lengths.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "llama, grouped": ("Llama", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "gpt-neox": ("GPTNeoX", {}),
    "mistral, sliding": ("Mistral", {**GROUPED, "sliding_window": 9, "head_dim": 8}),
    "gemma3, partly sliding": (
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
    "phi": ("Phi", {}),
}


def tiny(prefix: str, **settings: Any) -> Any:
    """A random causal language model in eval mode, float32."""
    import transformers

    name = f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, name)(**{**SIZES, **settings})
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:  # the default init is so small that attention hardly matters
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def make_tiny() -> Callable[..., Any]:
    """`tiny`, for a family that only one test needs."""
    return tiny


@pytest.fixture(scope="session")
def families() -> Callable[[str], Any]:
    """A tiny model by family name; every test restores it."""
    made: dict[tuple[str, torch.dtype], Any] = {}

    def get(name: str, dtype: torch.dtype = torch.float32) -> Any:
        if (name, dtype) not in made:
            prefix, settings = FAMILIES[name]
            made[name, dtype] = tiny(prefix, **settings).to(dtype)
        return made[name, dtype]

    return get


@pytest.fixture
def dtype() -> torch.dtype:
    """What the models below compute in; a file of tests may have its own."""
    return torch.float32


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, families: Callable[..., Any], dtype: torch.dtype) -> Any:
    """Each family in turn."""
    return families(request.param, dtype)


@pytest.fixture
def llama(families: Callable[..., Any], dtype: torch.dtype) -> Any:
    return families("llama, grouped", dtype)


@pytest.fixture
def encoder(dtype: torch.dtype) -> Any:
    """A tiny BERT with a masked-language-model head."""
    from transformers import BertConfig, BertForMaskedLM

    settings = {key: value for key, value in SIZES.items() if key not in ("bos_token_id", "eos_token_id")}
    torch.manual_seed(7)
    model = BertForMaskedLM(BertConfig(**settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """Random token ids (batch, length), never the padding id 0."""

    def draw(batch: int, length: int, seed: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(2, VOCABULARY, (batch, length), generator=generator)

    return draw


@pytest.fixture
def padded() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """(input_ids, attention_mask, position_ids) of rows of different lengths, padded on one side."""

    def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            real = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
            ids[index, real], mask[index, real] = row, 1
        return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)

    return pad
