"""One decoded token against a ragged cache: attention alone, against the bound of reading its keys and
values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attlas as at
from attlas.attend import KVGroup, KVView, Request, choose, make_request
from attlas.attend.backends import execute
from benchmarks._harness import extra_bytes, gate, in_turns, read_bandwidth

TITLE = "Decode: attention of one token over all layers' caches, against reading them"
COLUMNS = [
    "model",
    "cache",
    "batch",
    "tokens",
    "dtype",
    "kv_mb",
    "dense_ms",
    "attlas_ms",
    "speedup",
    "fewer_bytes",
    "of_bytes",
    "bound_ms",
    "of_bound",
    "call_us",
    "extra_mb",
]
NOTES = [
    "model smollm2: SmolLM2-135M's 30 layers of 9 query heads on 3 key-value heads, width 64; model heads: "
    "30 layers of 8 heads with keys of their own, width 64. All layers in turn, so that no layer's keys are "
    "still in a cache. Medians of runs in turns in one process; each result is checked before.",
    "dense_ms: SDPA on the full cache. fewer_bytes: bytes of the full cache over those that are kept, which "
    "is what a reader as good as SDPA would gain; of_bytes: the speedup as a share of it.",
    "The aim: of_bound 0.75 at batch 1 and 8. At batch 1 a layer's call, which is python, takes about as "
    "long as reading its keys; in bfloat16 the numbers must be widened before they are multiplied.",
    "bound_ms: bytes of keys and values / read bandwidth, measured in the same run. call_us: one layer's "
    "call on 64 kept tokens, which is nearly all overhead.",
]
WIDTH, LEAST = 64, 128


@dataclass(frozen=True)
class Model:
    """Layers and heads whose caches are read."""

    name: str
    layers: int
    heads: int
    kv_heads: int


SMOLLM2, HEADS = Model("smollm2", 30, 9, 3), Model("heads", 8, 8, 8)
UNEVEN = (6144, 3072, 2048, 1024, 1024, 512, 384, 210)  # 22 % of 8 heads' 8192 tokens


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per cache, batch, prompt length and dtype."""
    bandwidth = read_bandwidth()
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (1, 8):
            tokens = 1024 if quick else 4096
            caches = {
                "full": (tokens, tokens, tokens),
                "uniform, density 0.5": (tokens // 2,) * 3,
                "full and least heads, density 0.5": (tokens, LEAST, tokens // 2 - LEAST),
                "two spans, density 0.5": (tokens // 4, tokens // 4, tokens),
            }
            for name, spans in caches.items():
                yield {"cache": name} | _row(SMOLLM2, spans, batch, tokens, dtype, bandwidth)
            uneven = tuple(span // 8 for span in UNEVEN) if quick else UNEVEN
            yield {"cache": "uneven, density 0.22"} | _row(HEADS, uneven, batch, 2 * tokens, dtype, bandwidth)


def _row(
    model: Model, spans: tuple[int, ...], batch: int, tokens: int, dtype: torch.dtype, bandwidth: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    query = torch.randn(batch, model.heads, 1, WIDTH).to(dtype)
    views = [_view(spans, batch, dtype) for _ in range(model.layers)]
    full = [torch.randn(2, batch, model.kv_heads, tokens, WIDTH).to(dtype) for _ in range(model.layers)]
    step = _step(query, views[0], tokens)
    gate(f"decode on {spans}", step(views[0]), _dense(query, views[0]))

    def dense() -> None:
        for layer in full:
            scaled_dot_product_attention(query, layer[0], layer[1], enable_gqa=True)

    def ragged() -> None:
        for view in views:
            step(view)

    tiny = _view((64,) * model.kv_heads, batch, dtype)
    base, ours, call = in_turns([dense, ragged, lambda: step(tiny)], times=9)
    held = sum(view.nbytes for view in views)
    bound = held / bandwidth
    fewer = sum(layer.nbytes for layer in full) / held
    return {
        "model": model.name,
        "batch": batch,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "kv_mb": round(held / 1e6, 1),
        "dense_ms": round(1e3 * base, 2),
        "attlas_ms": round(1e3 * ours, 2),
        "speedup": round(base / ours, 2),
        "fewer_bytes": round(fewer, 2),
        "of_bytes": round(base / ours / fewer, 2),
        "bound_ms": round(1e3 * bound, 2),
        "of_bound": round(bound / ours, 2),
        "call_us": round(1e6 * call, 1),
        "extra_mb": round(extra_bytes(lambda: step(views[0])) / 1e6, 2),
    }


def _view(spans: tuple[int, ...], batch: int, dtype: torch.dtype) -> KVView:
    """KV heads grouped by span, as `attlas.cache` does."""
    groups = []
    for span in sorted(set(spans)):
        heads = tuple(head for head, own in enumerate(spans) if own == span)
        key, value = (torch.randn(batch, len(heads), span, WIDTH).to(dtype) for _ in range(2))
        groups.append(KVGroup(heads, key, value, torch.arange(span)))
    return KVView(tuple(groups))


def _step(query: Tensor, view: KVView, tokens: int) -> Callable[[KVView], Tensor]:
    """The call of one layer as `attlas.bridges` makes it: the backend is chosen once."""
    q_at = at.Tokens(1, tokens)
    choice = choose(make_request(query, view, q_at=q_at))

    def step(view: KVView) -> Tensor:
        return execute(Request(query, None, None, view, q_at, None, None), choice)[0]

    return step


def _dense(query: Tensor, view: KVView) -> Tensor:
    group = query.shape[1] // view.kv_heads
    out = torch.empty(*query.shape)
    for held in view.groups:
        for slot, head in enumerate(held.heads):
            part = slice(head * group, (head + 1) * group)
            key, value = (tensor[:, slot : slot + 1].float() for tensor in (held.key, held.value))
            out[:, part] = scaled_dot_product_attention(
                query[:, part].float(), key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
            )
    return out
