"""Time and bytes of a plan beside the dense model: prefill and decoding, end to end and attention alone.

Everything is measured in one process with the rates (memory bandwidth, matrix products) that the bounds need,
because a shared machine's absolute times mean little. Caches are filled with random keys and values: what
attention costs does not depend on them, and no long prompt of eight rows need be read first.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attlas.attend import Shapes, attend, cost, forget_layouts
from attlas.bridges import applied, describe
from attlas.cache import RaggedCache
from attlas.pattern import ModelShape, Plan, Tokens, causal

__all__ = ["Rates", "measure", "measure_rates"]


@dataclass(frozen=True)
class Rates:
    """What the machine can do: bytes read per second, FLOP per second of products in the model's type."""

    bandwidth: float
    flops: float


@torch.inference_mode()
def measure_rates(dtype: torch.dtype) -> Rates:
    """Best of several: sum of 256 MiB; a product of 2048 x 2048 matrices."""
    data = torch.ones(1 << 26)
    matrix = torch.randn(2048, 2048).to(dtype)
    bandwidth = data.nbytes / _best(lambda: data.sum(), 5)
    return Rates(bandwidth, 2 * 2048**3 / _best(lambda: matrix @ matrix, 5))


@torch.inference_mode()
def measure(
    model: nn.Module,
    plan: Plan | None,
    length: int,
    rates: Rates,
    *,
    batch: int = 8,
    new_tokens: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """The "time" entry of results.json for one method (None: dense, transformers' SDPA) at one length N.

    Prefill: one row of N tokens whose length was never seen before, so that the layouts of its patterns are
    made within the time. Decode: `batch` rows whose prompt and new tokens make N together; times per step.
    Attention: the same attention calls of all layers alone, one after the other, their layouts known. Bounds:
    the pattern's pairs at the measured product rate (prefill), the deployed density's bytes at the measured
    bandwidth (decode). `kv_bytes` is what the cache really allocates. `decode_ms_single`: at batch 1.
    """
    shape, parameter = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    ids = torch.randint(0, int(config.vocab_size), (1, length), generator=generator)
    make = _Random(shape, parameter.dtype, generator)
    prompt = length - new_tokens
    found: dict[str, Any] = {"batch": batch, "prefill_batch": 1}
    with nullcontext() if plan is None else applied(model, plan, total=length) as handle:
        found["prefill_seconds"] = _prefill(model, handle, ids)
        for rows, suffix in ((1, "_single"), (batch, "")):
            cache = _filled(model, handle, make, rows, prompt)
            found[f"decode_ms{suffix}"] = 1e3 * _decode(model, cache, rows, new_tokens)
        found["kv_bytes"] = _bytes(cache)
    del cache
    attention = (
        _dense_decode(make, batch, length) if plan is None else _plan_decode(plan, make, batch, length)
    )
    dense_bytes = (
        2 * batch * shape.layers * shape.kv_heads * length * shape.head_width * parameter.element_size()
    )
    density = 1.0 if plan is None else plan.density(length)
    found["kv_bytes_bound"] = round(density * dense_bytes)
    found["decode_attention_ms"] = 1e3 * attention
    found["decode_bound_ms"] = 1e3 * found["kv_bytes_bound"] / rates.bandwidth
    found["decode_fraction"] = found["decode_bound_ms"] / found["decode_attention_ms"]
    found["prefill_attention_seconds"], flops = _prefill_attention(plan, make, length)
    found["prefill_bound_seconds"] = flops / rates.flops
    found["prefill_fraction"] = found["prefill_bound_seconds"] / found["prefill_attention_seconds"]
    return found


@dataclass(frozen=True)
class _Random:
    """Makes random tensors of the model's shapes."""

    shape: ModelShape
    dtype: torch.dtype
    generator: torch.Generator

    def query(self, batch: int, tokens: int) -> Tensor:
        return self._draw(batch, self.shape.heads, tokens)

    def key_value(self, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
        return self._draw(batch, self.shape.kv_heads, tokens), self._draw(batch, self.shape.kv_heads, tokens)

    def _draw(self, batch: int, heads: int, tokens: int) -> Tensor:
        # One row's values for all: drawing 1e8 normals would cost more than the measurement.
        one = torch.randn(1, heads, tokens, self.shape.head_width, generator=self.generator)
        return one.to(self.dtype).expand(batch, -1, -1, -1).contiguous()


def _prefill(model: nn.Module, handle: Any, ids: Tensor) -> float:
    def run(tokens: Tensor) -> None:
        forget_layouts()
        cache = None if handle is None else handle.new_cache()
        model(input_ids=tokens, past_key_values=cache, use_cache=True, **last)

    last = {"logits_to_keep": 1}
    run(ids[:, : min(256, ids.shape[1])])
    return _best(lambda: run(ids), 2)


def _filled(model: nn.Module, handle: Any, make: _Random, batch: int, prompt: int) -> Any:
    """A cache that holds `prompt` random tokens per row."""
    from transformers import DynamicCache

    config: Any = model.config
    cache: Any = DynamicCache(config=config) if handle is None else handle.new_cache()
    for layer in range(make.shape.layers):
        key, value = make.key_value(batch, prompt)
        if handle is None:
            cache.update(key, value, layer)
        else:
            cache.append(key, value, layer)
    return cache


def _decode(model: nn.Module, cache: Any, batch: int, steps: int) -> float:
    """Median seconds per step; the first two steps warm up."""
    ids = torch.zeros(batch, 1, dtype=torch.long)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        times.append(time.perf_counter() - start)
    return _median(times[min(2, steps - 1) :])


def _bytes(cache: Any) -> int:
    if isinstance(cache, RaggedCache):
        return cache.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _dense_decode(make: _Random, batch: int, length: int) -> float:
    """Seconds of one step's attention over all layers, each with its own keys so that no CPU cache helps."""
    layers = [make.key_value(batch, length) for _ in range(make.shape.layers)]
    query = make.query(batch, 1)

    def step() -> None:
        for key, value in layers:
            scaled_dot_product_attention(query, key, value, enable_gqa=True)

    return _best(step, 5)


def _plan_decode(plan: Plan, make: _Random, batch: int, length: int) -> float:
    cache = RaggedCache(plan, total=length)
    query = make.query(batch, 1)
    for layer in range(make.shape.layers):
        cache.append(*make.key_value(batch, length - 1), layer)
    patterns = [plan.pattern(layer).bind(N=length) for layer in range(make.shape.layers)]
    at = Tokens(1, start=length - 1, total=length)
    parts = [cache.append(*make.key_value(batch, 1), layer)[0] for layer in range(make.shape.layers)]

    def step() -> None:
        for part, pattern in zip(parts, patterns, strict=True):
            attend(query, part.key, part.value, pattern=None if part.exact else pattern, q_at=at)

    return _best(step, 5)


def _prefill_attention(plan: Plan | None, make: _Random, length: int) -> tuple[float, float]:
    """Seconds of all layers' attention over one row of `length` tokens, and the FLOPs of their pairs."""
    shape = make.shape
    query, (key, value) = make.query(1, length), make.key_value(1, length)
    shapes = Shapes(1, shape.heads, length, shape.head_width, kv_heads=shape.kv_heads, dtype=make.dtype)
    if plan is None:
        flops = cost(causal(), shapes, tiles=False).flops

        def whole() -> None:
            scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

        return shape.layers * _best(whole, 3), shape.layers * flops
    seconds = flops_sum = 0.0
    known: dict[Any, tuple[float, float]] = {}
    for layer in range(shape.layers):
        pattern = plan.pattern(layer).bind(N=length)
        if pattern not in known:
            spent = _best(lambda bound=pattern: attend(query, key, value, pattern=bound), 2)  # type: ignore[misc]
            known[pattern] = spent, cost(pattern, shapes, tiles=False).flops
        seconds, flops_sum = seconds + known[pattern][0], flops_sum + known[pattern][1]
    return seconds, flops_sum


def _best(run: Callable[[], Any], times: int) -> float:
    """Least seconds of several runs."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
