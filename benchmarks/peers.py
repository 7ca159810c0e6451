"""`scan` and `selective_scan` beside published code on CPU: flash-linear-attention's naive files, mambapy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from attlas.scan import Identity, Taylor, scan, selective_scan
from benchmarks._harness import extra_bytes, gate, in_turns

TITLE = "scan beside published code that runs on CPU"
COLUMNS = ["form", "peer", "pass", "tokens", "ms", "peer_ms", "speedup", "extra_mb", "peer_mb"]
HEADS, WIDTH, TAYLOR_WIDTH = 4, 64, 16
CHANNELS, STATES = 256, 16  # of Mamba's scan
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16384), (512,)
LOOP_TOKENS = 4096  # a loop over tokens takes too long beyond
PEERS = ("fla-core", "mambapy", "einops")
NOTES = [
    f"Batch 1, {HEADS} heads of width {WIDTH} (Taylor: queries and keys of {TAYLOR_WIDTH}); Mamba: "
    f"{CHANNELS} channels of {STATES} states; float32. Medians of runs in turns in one process; the "
    "peer's result is compared with ours before. Each gets its tensors in the layout that it asks for.",
    "The files named naive of fla-core are its readable definitions, not its speed: its kernels need a GPU "
    "with Triton and were not run. mambapy's parallel scan is meant for speed.",
    "extra_mb, peer_mb: largest memory held above the inputs, results and gradients included.",
]


@dataclass(frozen=True)
class Comparison:
    """One form: ours and the peer's, both functions of nothing that return (B, H or channels, N, ...)."""

    form: str
    peer: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per form, length and pass; one row that names what is not installed."""
    absent = [name for name in PEERS if not _installed(name)]
    if absent:
        yield {"form": "nothing measured", "peer": f"not installed: {', '.join(absent)}"}
        return
    for tokens in QUICK_LENGTHS if quick else LENGTHS:
        for backward in (False, True):
            for one in (*_linear(tokens, backward), _mamba(tokens, backward)):
                yield _row(one, tokens, backward)


def _installed(name: str) -> bool:
    try:
        version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _row(one: Comparison, tokens: int, backward: bool) -> dict[str, Any]:
    with torch.no_grad():
        theirs = one.theirs()
        size = float(theirs.abs().max())
        gate(f"{one.form} beside {one.peer} at {tokens} tokens", one.ours() / size, theirs / size)
    runs = [_with_backward(run) if backward else run for run in (one.ours, one.theirs)]
    ours, peer = in_turns(runs, times=7 if tokens <= 1024 else 3, warm=1)
    extra, peer_extra = (extra_bytes(run) / 1e6 for run in runs)
    return {
        "form": one.form,
        "peer": one.peer,
        "pass": "forward + backward" if backward else "forward",
        "tokens": tokens,
        "ms": round(1e3 * ours, 2),
        "peer_ms": round(1e3 * peer, 2),
        "speedup": round(peer / ours, 2),
        "extra_mb": round(extra, 1),
        "peer_mb": round(peer_extra, 1),
    }


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both


def _naive(system: str) -> ModuleType:
    """A naive file of fla-core, without the package around it, which wants Triton."""
    found = importlib.util.find_spec("fla")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    path = f"{folders[0]}/ops/{system}/naive.py"
    spec = importlib.util.spec_from_file_location(f"peer_{system}", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"fla-core has no file {path}; install fla-core=={version('fla-core')} again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _linear(tokens: int, grad: bool) -> Iterator[Comparison]:
    torch.manual_seed(0)
    # In memory (B, N, H, D), as that package takes it and a model's projections leave it.
    q, k, v = (torch.randn(1, tokens, HEADS, WIDTH).requires_grad_(grad) for _ in range(3))
    narrow = [torch.randn(1, tokens, HEADS, TAYLOR_WIDTH).requires_grad_(grad) for _ in range(2)]
    decay = -torch.rand(1, tokens, HEADS)
    rates = -torch.rand(1, tokens, HEADS, WIDTH)
    scale = WIDTH**-0.5

    def ours(**named: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            heads = (part.transpose(1, 2) for part in (q * scale, k, v))
            return torch.as_tensor(scan(*heads, kernel=Identity(), **named)).transpose(1, 2)

        return run

    linear, simple, based = (_naive(name) for name in ("linear_attn", "simple_gla", "based"))
    by_head = decay.transpose(1, 2)
    yield Comparison(
        "no decay", "fla-core, naive chunks", ours(), partial(linear.naive_chunk_linear_attn, q, k, v)
    )
    yield Comparison(
        "decay per token",
        "fla-core, naive chunks",
        ours(log_decay=by_head),
        lambda: simple.naive_chunk_simple_gla(q, k, v, decay)[0],
    )
    if tokens <= LOOP_TOKENS:
        yield Comparison(
            "decay per token and channel",
            "fla-core, naive loop over tokens",
            ours(log_decay=rates.transpose(1, 2)),
            lambda: _naive("gla").naive_recurrent_gla(q, k, v, rates)[0],
        )
    query, key, value = (part.transpose(1, 2) for part in (*narrow, v))
    yield Comparison(
        "Taylor, normalised",
        "fla-core, naive chunks",
        lambda: torch.as_tensor(scan(query, key, value, kernel=Taylor(), normalise=True)),
        partial(based.naive_chunk_based, query, key, value),
    )


def _mamba(tokens: int, grad: bool) -> Comparison:
    from mambapy.mamba import MambaBlock, MambaConfig

    torch.manual_seed(0)
    block = MambaBlock(MambaConfig(d_model=CHANNELS, n_layers=1, d_state=STATES, expand_factor=1))
    u = torch.randn(1, tokens, CHANNELS).requires_grad_(grad)
    delta = (0.1 * torch.rand(1, tokens, CHANNELS)).requires_grad_(grad)
    rate = nn.Parameter(-torch.arange(1.0, STATES + 1).expand(CHANNELS, STATES).contiguous())
    b, c = (torch.randn(1, tokens, STATES).requires_grad_(grad) for _ in range(2))
    direct = torch.ones(CHANNELS)
    return Comparison(
        "Mamba's selective scan",
        "mambapy, parallel scan",
        lambda: torch.as_tensor(selective_scan(u, delta, rate, b, c, direct, softplus=False)),
        lambda: torch.as_tensor(block.selective_scan(u, delta, rate, b, c, direct)),
    )
