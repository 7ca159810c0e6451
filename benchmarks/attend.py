"""The block engine, forward and backward, against its bound, dense SDPA and FlexAttention."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attlas as at
from attlas.attend import Shapes, block, choose, flex, make_request
from attlas.attend.block import forget_layouts
from attlas.attend.strips import joined, strips_of
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "The block engine: windows, plans and grids against their bound"
COLUMNS = [
    "pattern", "tokens", "dtype", "pass", "sdpa_ms", "flex_ms", "attlas_ms", "speedup", "bound", "of_bound",
    "layout_ms", "layout_share", "extra_mb", "kernel",
]  # fmt: skip
FLEX_TOKENS = 8192
NOTES = [
    "Batch 1, 8 heads of width 64, random numbers; medians of runs in turns in one process (from "
    "16384 tokens on one run of SDPA, then three in turns of the patterns). Some rows of each result are "
    "compared with dense attention before.",
    "sdpa_ms: torch's causal attention; for grids, attention without a mask. bound: its pairs / pairs of "
    "the pattern; of_bound: speedup / bound. It may exceed 1: the kernels differ also on dense attention.",
    "The aims at 4096 tokens and more: of_bound 0.5 for windows and plans and 0.3 for grids, forward and "
    "with backward; layout_share 0.05 at 8192 tokens.",
    "flex_ms: FlexAttention compiled by torch, forward, its block mask made before and not counted; it has "
    f"no backward on the CPU. Up to {FLEX_TOKENS} tokens: making its mask holds all pairs as integers.",
    "layout_ms: what the first call on a pattern costs beyond the next one (forward, up to 8192 tokens), at "
    "131072 tokens the strips alone; layout_share: of the forward pass.",
    "extra_mb: largest memory held above the inputs, the result (and gradients) included.",
    "The plan: 8 heads of sinks and windows, from 4 % of the tokens to all of them, 25 % of the causal pairs "
    "together. break-even: the shortest length of 64, 128, 256, ... at which the window beats causal SDPA.",
]
HEADS, WIDTH = 8, 64
CHECKED = 256  # rows of a result that are compared with dense attention
# Windows of the heads as shares of the tokens, 1: full.
SHARES = (0.04, 0.04, 0.05, 0.06, 0.08, 0.09, 0.16, 1.0)
GRIDS = (
    ({"H": 64, "W": 64}, {"H": 13, "W": 13}),
    ({"H": 64, "W": 64}, {"H": 7, "W": 7}),
    ({"H": 128, "W": 128}, {"H": 13, "W": 13}),
    ({"F": 16, "H": 32, "W": 32}, {"F": 5, "H": 7, "W": 7}),
)


@dataclass(frozen=True)
class Case:
    """A pattern on a token space, and whether its dense base is causal."""

    name: str
    pattern: at.Pattern
    space: at.Tokens
    causal: bool


def sequences(tokens: int) -> list[Case]:
    """The two patterns of the project's targets."""
    space = at.Tokens(tokens, total=tokens)
    plan = at.per_head(
        [at.causal() & (at.window(max(64, int(tokens * share))) | at.sink(4)) if share < 1 else at.causal()
         for share in SHARES]
    )  # fmt: skip
    window = at.causal() & at.window(256)
    return [Case("window(256)", window, space, True), Case("plan of 25 %", plan, space, True)]


def grids() -> list[Case]:
    """Neighbourhoods on images and videos."""
    found = []
    for sizes, windows in GRIDS:
        pattern = None
        for axis, size in windows.items():
            one = at.along(axis, size)
            pattern = one if pattern is None else pattern & one
        name = f"{'x'.join(map(str, windows.values()))} on {'x'.join(map(str, sizes.values()))}"
        found.append(Case(name, pattern, at.Tokens.grid(**sizes), False))
    return found


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per pattern, length, dtype and pass."""
    for tokens in (1024,) if quick else (2048, 4096, 8192, 16384, 32768):
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                yield from _together(sequences(tokens), dtype, backward)
    for case in grids()[:1] if quick else grids():
        for backward in (False, True):
            yield from _together([case], torch.float32, backward)
    for dtype in (torch.float32, torch.bfloat16):
        yield _break_even(dtype)
    yield _long_layout(131072)


def _together(cases: list[Case], dtype: torch.dtype, backward: bool) -> Iterator[dict[str, Any]]:
    """Cases of one length against one run of the dense base, in turns."""
    space = cases[0].space
    tokens = space.length
    inputs = _inputs(tokens, dtype, backward)

    def dense() -> Tensor:
        return scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=cases[0].causal)

    runs: list[Callable[[], Any]] = [dense, *(_sparse(case, inputs) for case in cases)]
    layouts: list[float | None] = []
    for case, run in zip(cases, runs[1:], strict=True):
        _check(case, inputs, run().detach())
        layouts.append(_first_call_seconds(run) if not backward and tokens <= 8192 else None)
    runs = [_with_backward(run) if backward else run for run in runs]
    flexes = [None if backward else _flex(case, inputs) for case in cases]
    runs += [run for run in flexes if run is not None]
    if tokens <= 8192:
        spent = in_turns(runs, times=5 if tokens <= 4096 else 3, warm=1)
    else:
        spent = in_turns(runs[:1], times=1, warm=0) + in_turns(runs[1:], times=3, warm=1)
    flex_spent = iter(spent[1 + len(cases) :])
    for case, run, layout, other, seconds in zip(cases, runs[1:], layouts, flexes, spent[1:], strict=False):
        base = spent[0]
        pairs = at.cost(
            case.pattern, Shapes(1, HEADS, tokens, WIDTH), q_at=space, k_at=space, tiles=False
        ).pairs
        whole = HEADS * (tokens * (tokens + 1) // 2 if case.causal else tokens * tokens)
        request = make_request(*inputs, pattern=case.pattern, q_at=space, k_at=space)
        choice = choose(request)
        yield {
            "pattern": case.name,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "pass": "forward + backward" if backward else "forward",
            "sdpa_ms": round(1e3 * base, 1),
            "flex_ms": None if other is None else round(1e3 * next(flex_spent), 1),
            "attlas_ms": round(1e3 * seconds, 1),
            "speedup": round(base / seconds, 2),
            "bound": round(whole / pairs, 2),
            "of_bound": round(base / seconds * pairs / whole, 3),
            "layout_ms": None if layout is None else round(1e3 * layout, 2),
            "layout_share": None if layout is None else round(layout / seconds, 3),
            "extra_mb": round(extra_bytes(run) / 1e6, 1),
            "kernel": block.detail(request) if choice.name == block.NAME else choice.name,
        }


def _inputs(tokens: int, dtype: torch.dtype, grad: bool) -> list[Tensor]:
    """In memory as a model's projections leave them: (batch, tokens, heads, width)."""
    torch.manual_seed(0)
    made = (torch.randn(1, tokens, HEADS, WIDTH).to(dtype).transpose(1, 2) for _ in range(3))
    return [tensor.requires_grad_(grad) for tensor in made]


def _sparse(case: Case, inputs: list[Tensor]) -> Callable[[], Tensor]:
    return lambda: at.attend(*inputs, pattern=case.pattern, q_at=case.space, k_at=case.space)


def _first_call_seconds(run: Callable[[], Any]) -> float:
    """What the first call of a pattern costs beyond the next one: choice, layout, all that is kept."""

    def first() -> None:
        forget_layouts()
        run()

    fresh, again = in_turns([first, run], times=5, warm=1)
    return max(0.0, fresh - again)


def _layout_seconds(case: Case) -> float:
    """Seconds for the strips of all heads, made anew."""

    def make() -> None:
        forget_layouts()
        patterns = case.pattern.expand(HEADS, HEADS)
        made = {one: strips_of(one, case.space, case.space) for one in dict.fromkeys(patterns)}
        joined([[made[one] for one in patterns]])

    return in_turns([make], times=5, warm=1)[0]


def _flex(case: Case, inputs: list[Tensor]) -> Callable[[], Any] | None:
    """FlexAttention with its block mask made, or None where that would take too long."""
    request = make_request(*inputs, pattern=case.pattern, q_at=case.space, k_at=case.space)
    if not case.causal or request.queries > FLEX_TOKENS:
        return None
    # Otherwise torch compiles some shapes only and runs the next ones without its kernel.
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = flex.block_mask(request)
        run = flex.compiled()

        def answer() -> Any:
            with torch.no_grad():
                return run(*inputs, block_mask=mask)

        answer()
    return answer


def _check(case: Case, inputs: list[Tensor], out: Tensor) -> None:
    """Compare some rows with dense attention under the pattern's mask."""
    query, key, value = (tensor.detach().float() for tensor in inputs)
    tokens = query.shape[2]
    chosen = torch.linspace(0, tokens - 1, CHECKED).long()
    q_at = at.Tokens(CHECKED, index=chosen, total=tokens, axes=case.space.axes)
    masks = [one.mask(q_at, case.space) for one in case.pattern.expand(HEADS, HEADS)]
    wanted = scaled_dot_product_attention(query[:, :, chosen], key, value, attn_mask=torch.stack(masks))
    gate(f"attend on {case.name}", out[:, :, chosen], wanted)


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both


def _break_even(dtype: torch.dtype) -> dict[str, Any]:
    """The shortest length at which the window is faster than causal SDPA, forward."""
    row = {
        "pattern": "window(256), break-even",
        "dtype": str(dtype).removeprefix("torch."),
        "pass": "forward",
    }
    for power in range(6, 14):
        tokens = 2**power
        inputs = _inputs(tokens, dtype, False)
        base, ours = in_turns([_causal(inputs), _sparse(sequences(tokens)[0], inputs)], times=15)
        if ours < base:
            return row | {
                "tokens": tokens,
                "sdpa_ms": round(1e3 * base, 2),
                "attlas_ms": round(1e3 * ours, 2),
            }
    return row


def _causal(inputs: list[Tensor]) -> Callable[[], Tensor]:
    return lambda: scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], is_causal=True)


def _long_layout(tokens: int) -> dict[str, Any]:
    """Strips and exact pairs of a sequence that no n x n mask could hold."""
    case = sequences(tokens)[0]
    forget_layouts()
    tracemalloc.start()
    at.cost(case.pattern, Shapes(1, HEADS, tokens, WIDTH), q_at=case.space, k_at=case.space)
    _, held = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "pattern": "window(256), laid out and counted only",
        "tokens": tokens,
        "layout_ms": round(1e3 * _layout_seconds(case), 1),
        "extra_mb": round(held / 1e6, 1),
    }
