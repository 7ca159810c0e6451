"""Normalisers in one engine: sigmoid, LSSA, LSSAR and sender softmax against softmax and dense SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attlas as at
from attlas.attend import block, choose, make_request
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "Normalisers in one engine: time against softmax"
COLUMNS = [
    "normaliser", "pattern", "tokens", "dtype", "pass", "ms", "to_softmax", "to_sdpa", "extra_mb",
    "kernel",
]  # fmt: skip
NOTES = [
    "Batch 1, 8 heads of width 64, random numbers; medians of runs in turns in one process. Some rows of "
    "each result are compared with the dense definition before (sender softmax with all rows, up to 1024 "
    "tokens).",
    "to_softmax: time over that of softmax on the same pattern in the same engine (backend block; kernel "
    "says which: with matrix units for bfloat16 torch's own takes tiles of it). to_sdpa: time over torch's "
    "causal attention, also for windows. Below 1 is faster.",
    "sigmoid: bias -log of the tokens; lssar: p = 15, two sweeps over the keys, its backward two more. "
    "sender softmax runs on the generic row blocks in two passes; up to 4096 tokens.",
    "extra_mb: largest memory held above the inputs, the result (and gradients) included.",
]
HEADS, WIDTH = 8, 64
CHECKED, WHOLE = 64, 1024  # rows that are compared; tokens up to which all of them are
GENERIC_TOKENS = 4096


def arms(tokens: int) -> dict[str, dict[str, Any]]:
    """Score and normaliser of every row; the first is what others are compared with."""
    return {
        "softmax": {},
        "sigmoid": {"normaliser": at.flash_sigmoid(tokens)},
        "lssa": {**at.lssa(WIDTH)},
        "lssar": {**at.lssar(WIDTH, 15.0)},
        "sender softmax": {"normaliser": at.SenderSoftmax()},
    }


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per normaliser, pattern, length and pass; float32, and bfloat16 forward."""
    for tokens in (256,) if quick else (2048, 4096, 8192):
        patterns = {"causal": at.causal(), "window(256)": at.causal() & at.window(64 if quick else 256)}
        for name, pattern in patterns.items():
            for dtype, backward in (
                (torch.float32, False),
                (torch.float32, True),
                (torch.bfloat16, False),
            ):
                yield from _together(name, pattern, tokens, dtype, backward)


def _together(
    name: str, pattern: at.Pattern, tokens: int, dtype: torch.dtype, backward: bool
) -> Iterator[dict[str, Any]]:
    """All normalisers and dense SDPA on one pattern, in turns."""
    inputs = _inputs(tokens, dtype, backward)
    options = {
        arm: named
        for arm, named in arms(tokens).items()
        if arm != "sender softmax" or tokens <= GENERIC_TOKENS
    }
    runs: dict[str, Callable[[], Any]] = {
        "sdpa": lambda: scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=True)
    }
    for arm, named in options.items():
        runs[arm] = _run(inputs, pattern, named)
        if tokens <= WHOLE or arm != "sender softmax":
            _check(f"{arm} on {name}", inputs, pattern, named, runs[arm]().detach())
    if backward:
        runs = {arm: _with_backward(run) for arm, run in runs.items()}
    spent = dict(
        zip(runs, in_turns(list(runs.values()), times=5 if tokens <= 2048 else 3, warm=1), strict=True)
    )
    for arm, named in options.items():
        request = make_request(*inputs, pattern=pattern, **named)
        choice = choose(request)
        yield {
            "normaliser": arm,
            "pattern": name,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward + backward" if backward else "forward",
            "ms": round(1e3 * spent[arm], 1),
            "to_softmax": round(spent[arm] / spent["softmax"], 2),
            "to_sdpa": round(spent[arm] / spent["sdpa"], 2),
            "extra_mb": round(extra_bytes(runs[arm]) / 1e6, 1),
            "kernel": block.detail(request) if choice.name == block.NAME else choice.name,
        }


def _inputs(tokens: int, dtype: torch.dtype, grad: bool) -> list[Tensor]:
    """In memory as a model's projections leave them: (batch, tokens, heads, width)."""
    torch.manual_seed(0)
    made = (torch.randn(1, tokens, HEADS, WIDTH).to(dtype).transpose(1, 2) for _ in range(3))
    return [tensor.requires_grad_(grad) for tensor in made]


def _run(inputs: list[Tensor], pattern: at.Pattern, named: dict[str, Any]) -> Callable[[], Tensor]:
    # Softmax too: the same engine, whatever torch's own kernel would do on a causal pattern.
    backend = "auto" if isinstance(named.get("normaliser"), at.SenderSoftmax) else "block"
    return lambda: at.attend(*inputs, pattern=pattern, backend=backend, **named)


def _check(name: str, inputs: list[Tensor], pattern: at.Pattern, named: dict[str, Any], out: Tensor) -> None:
    """Compare some rows with the definition in float64; sender softmax needs all rows."""
    query, key, value = (tensor.detach() for tensor in inputs)
    tokens = query.shape[2]
    senders = isinstance(named.get("normaliser"), at.SenderSoftmax)
    chosen = torch.arange(tokens) if senders else torch.linspace(0, tokens - 1, CHECKED).long()
    space = at.Tokens(len(chosen), index=chosen, total=tokens)
    wanted = at.attend(
        query[:, :, chosen], key, value, pattern=pattern, q_at=space, k_at=at.Tokens(tokens, total=tokens),
        backend="reference", **named,
    )  # fmt: skip
    gate(f"attend, {name}", out[:, :, chosen], wanted.float())


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both
