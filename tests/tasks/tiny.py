"""A tiny tokenizer and tiny random decoders, made in memory."""

import random
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CHAT", "WORDS", "tiny_model", "tiny_tokenizer"]

CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}:{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
_DRAW = random.Random(5)
# Made-up words: a text that repeats itself would be cut short before it is split.
WORDS = " ".join("".join(_DRAW.choices(ascii_lowercase, k=_DRAW.randint(3, 9))) for _ in range(14_000))


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, with <s> and </s>; no merges, so that lengths are easy to reckon with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def tiny_model(*, layers: int = 2, kv_heads: int = 2, context: int = 4096) -> LlamaForCausalLM:
    """A random Llama, float32, always the same."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()
