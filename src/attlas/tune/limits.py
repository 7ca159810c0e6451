"""What a model's context and the machine's memory allow, said before a run or an answer begins."""

from typing import Any

from torch import nn

from attlas._common.errors import UsageError
from attlas._common.machine import available_memory
from attlas.tune.rules import RuleSet
from attlas.tune.settings import Settings

__all__ = [
    "answer_memory",
    "check_answer",
    "check_budget",
    "check_memory",
    "context_of",
    "fitted",
    "needed_memory",
]

GIB = 1 << 30


def context_of(model: nn.Module) -> int | None:
    """The most tokens that the model's configuration allows; None where it says nothing."""
    context = getattr(_config(model), "max_position_embeddings", None)
    return context if isinstance(context, int) else None


def fitted(model: nn.Module, settings: Settings, name: str, notes: list[str]) -> Settings:
    """`settings` with `extend` as a number that the model's context holds; less than the default is noted.

    UsageError: the model's context is shorter than a length that was asked for.
    """
    context = context_of(model)
    found = settings.within(context)
    longest = found.all_lengths[-1]
    if context is not None and longest > context:
        what = "extend" if longest == found.extension else "lengths"
        raise UsageError(
            f"{what} asks for {longest} tokens, above the context of {context} of {name}; use less"
        )
    if found.all_lengths != settings.all_lengths:
        reach = "no extension" if found.extension is None else f"the extension is {found.extension} tokens"
        notes.append(f"{reach}: the context of {name} is {context} tokens")
    return found


def check_budget(rules: RuleSet, settings: Settings) -> None:
    """Raise UsageError where even the smallest rule keeps more than the budget."""
    for length in settings.all_lengths:
        least = float(rules.density(length).min())
        if least > settings.budget:
            raise UsageError(
                f"budget {settings.budget} cannot be met at {length} tokens, where the smallest rule keeps "
                f"{round(least * length)} tokens, a density of {least:.4f}; raise the budget or use longer "
                "lengths"
            )


def needed_memory(model: nn.Module, settings: Settings) -> int:
    """Estimated bytes beside the weights: the largest of profiling, evaluation and timing.

    Profiling keeps the activations of one item for the backward pass, about 16 hidden and 4 inner vectors per
    token and layer, and a passage's logits in several forms; evaluation the logits and per_item + 1 caches;
    timing the dense cache of 8 rows.
    """
    config = _config(model)
    item = next(model.parameters()).element_size()
    layers, hidden = int(config.num_hidden_layers), int(config.hidden_size)
    heads, inner, cache = int(config.num_attention_heads), _inner(config), _cache(config) * item
    last, longest = settings.lengths[-1], settings.all_lengths[-1]
    blocks = sum((length // settings.block) ** 2 for length in settings.lengths)
    profiling = last * layers * (16 * hidden + 4 * inner) * item + 4 * 8 * layers * heads * blocks
    if settings.calibration.passage:  # logits, their float32 form, log-softmax, and the gradients of two
        profiling += last * int(config.vocab_size) * (2 * item + 3 * 4)
    scoring = longest * (int(config.vocab_size) * item + cache * (settings.per_item + 2) + 8 * inner * item)
    timing = 9 * longest * cache if settings.timing and settings.needles else 0
    return max(profiling, scoring if settings.needles else 0, timing)


def check_memory(model: nn.Module, settings: Settings) -> None:
    """Raise UsageError where the estimate exceeds what is available (no check where that is unknown)."""
    _check_available(
        needed_memory(model, settings),
        f"{settings.all_lengths[-1]} tokens",
        "use shorter lengths or a smaller extend",
    )


def answer_memory(model: nn.Module, prompt: int, new: int, *, kept: float, rows: int) -> int:
    """Estimated bytes beside the weights: `rows` caches of which a share is `kept`, and their prefill.

    As `needed_memory` counts evaluation: 8 inner vectors per token of the prompt; logits of the last token.
    """
    config, item = _config(model), next(model.parameters()).element_size()
    cache = kept * (prompt + new) * _cache(config)
    return int(rows * item * (cache + prompt * 8 * _inner(config) + int(config.vocab_size)))


def check_answer(model: nn.Module, name: str, prompt: int, new: int, *, kept: float, rows: int) -> None:
    """Raise UsageError where prompt and new tokens exceed the model's context or the memory.

    prompt, new: tokens read and at most written; kept: the plan's density at their sum; rows: beams.
    """
    context, total = context_of(model), prompt + new
    if context is not None and total > context:
        raise UsageError(
            f"the prompt has {prompt} tokens and up to {new} are to be written: {total} together, above the "
            f"context of {context} of {name}; shorten the prompt or lower max_new_tokens (--max-new-tokens)"
        )
    _check_available(
        answer_memory(model, prompt, new, kept=kept, rows=rows),
        f"{total} tokens" + (f" in {rows} beams" if rows > 1 else ""),
        "shorten the prompt, or write fewer tokens or with fewer beams",
    )


def _check_available(needed: int, what: str, remedy: str) -> None:
    available = available_memory()
    if available is not None and needed > available:
        raise UsageError(
            f"not enough memory for {what}: about {needed / GIB:.1f} GiB are needed beside the weights, "
            f"{available / GIB:.1f} GiB are available; {remedy}"
        )


def _config(model: nn.Module) -> Any:
    """The configuration of the text part, which is the whole one of most models."""
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _inner(config: Any) -> int:
    return int(getattr(config, "intermediate_size", None) or 4 * int(config.hidden_size))


def _cache(config: Any) -> int:
    """Numbers in the dense key-value cache per token."""
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or int(config.hidden_size) // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return 2 * int(config.num_hidden_layers) * kv_heads * width
