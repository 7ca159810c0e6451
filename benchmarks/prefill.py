"""Attention of one prefill under a pattern against causal SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attlas as at
from attlas.attend import Shapes, choose, make_request
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "Prefill: attention alone, against causal SDPA"
COLUMNS = [
    "heads",
    "pattern",
    "tokens",
    "dtype",
    "pass",
    "sdpa_ms",
    "attlas_ms",
    "speedup",
    "bound",
    "of_bound",
    "extra_mb",
    "sdpa_extra_mb",
    "backend",
]
NOTES = [
    "Batch 1, width 64, 8 heads or SmolLM2-135M's 9 query heads on 3 key-value heads; random numbers. "
    "Medians of runs in turns in one process; each result is compared with dense attention before.",
    "bound: pairs of dense causal attention / pairs of the pattern; of_bound: speedup / bound. It may exceed "
    "1: the dense kernel computes whole blocks of 256 x 512 pairs on the diagonal.",
    "extra_mb: largest memory held above the inputs, the result included.",
    "Patterns of density 0.5 keep N/2 keys per key-value head on average, sinks included.",
]
SHAPES = {"8": (8, 8), "9 on 3": (9, 3)}
WIDTH = 64
CHECKED = 2048  # tokens up to which the oracle checks a result; a longer one is checked on its last rows


def patterns(tokens: int, kv_heads: int) -> dict[str, at.Pattern]:
    """The plans of density 0.5 and the fixed window of the project's targets."""
    half, least = at.span_rule(0, 0.5).bind(N=tokens), at.span_rule(0, 0).bind(N=tokens)
    full = at.causal()
    if kv_heads % 2:
        rest = at.causal() & (at.window(tokens // 2 - 192) | at.sink(64))
        mixed = at.per_kv_head([full, least, rest] * (kv_heads // 3))
    else:
        mixed = at.per_kv_head([full, least] * (kv_heads // 2))
    return {
        "uniform, density 0.5": half,
        "full and least heads, density 0.5": mixed,
        "window(256) | sink(4)": at.causal() & (at.window(256) | at.sink(4)),
    }


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per shape, length, dtype, pass and pattern."""
    for label, (heads, kv_heads) in SHAPES.items():
        for tokens in (1024,) if quick else (1024, 2048, 4096, 8192):
            for dtype in (torch.float32, torch.bfloat16):
                for name, pattern in patterns(tokens, kv_heads).items():
                    for backward in (False, True):
                        yield {"heads": label, "pattern": name} | _row(
                            heads, kv_heads, pattern, tokens, dtype, backward
                        )


def _row(
    heads: int, kv_heads: int, pattern: at.Pattern, tokens: int, dtype: torch.dtype, backward: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = [(1, tokens, heads, WIDTH), (1, tokens, kv_heads, WIDTH), (1, tokens, kv_heads, WIDTH)]
    # In memory as a model's projections leave them: (batch, tokens, heads, width).
    inputs = [torch.randn(size).to(dtype).transpose(1, 2).requires_grad_(backward) for size in shape]

    def dense() -> Tensor:
        return scaled_dot_product_attention(
            inputs[0], inputs[1], inputs[2], is_causal=True, enable_gqa=heads != kv_heads
        )

    def sparse() -> Tensor:
        return at.attend(*inputs, pattern=pattern)

    _check(inputs, pattern, sparse().detach())
    runs = [_with_backward(run) if backward else run for run in (dense, sparse)]
    base, ours = in_turns(runs, times=7 if tokens <= 2048 else 5)
    whole = heads * tokens * (tokens + 1) // 2
    shapes = Shapes(1, heads, tokens, WIDTH, kv_heads=kv_heads)
    pairs = at.cost(pattern, shapes, tiles=False).pairs
    return {
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "pass": "forward + backward" if backward else "forward",
        "sdpa_ms": round(1e3 * base, 2),
        "attlas_ms": round(1e3 * ours, 2),
        "speedup": round(base / ours, 2),
        "bound": round(whole / pairs, 2),
        "of_bound": round(base / ours * pairs / whole, 2),
        "extra_mb": round(extra_bytes(runs[1]) / 1e6, 1),
        "sdpa_extra_mb": round(extra_bytes(runs[0]) / 1e6, 1),
        "backend": choose(make_request(*inputs, pattern=pattern)).name,
    }


def _check(inputs: list[Tensor], pattern: at.Pattern, out: Tensor) -> None:
    """Compare the last rows (all that is cheap) with dense attention under the pattern's mask."""
    query, key, value = (tensor.detach().float() for tensor in inputs)
    tokens = query.shape[2]
    start = max(0, tokens - CHECKED // 8)
    q_at, k_at = at.Tokens(tokens - start, start), at.Tokens(tokens)
    masks = [one.mask(q_at, k_at) for one in pattern.expand(query.shape[1], key.shape[1])]
    wanted = scaled_dot_product_attention(
        query[:, :, start:], key, value, attn_mask=torch.stack(masks), enable_gqa=True
    )
    gate(f"prefill of {pattern}", out[:, :, start:], wanted)


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both
