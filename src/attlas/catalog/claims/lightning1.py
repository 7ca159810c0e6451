"""Lightning's claim: the time per token does not depend on the length of the sequence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attlas._common.measuring import in_turns
from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread
from attlas.layers.lightning import alibi_by_layer, lightning1, log_decay_of
from attlas.scan import scan

__all__ = ["CLAIM", "judge", "measure"]

TOKENS, LONG_TOKENS = 8192, 16384
HEADS, WIDTH, SHORTEST, SETTLED = 4, 64, 512, 2048
TILE = 256  # of the quadratic form: larger tiles mean fewer, faster products on a CPU
TIMES, TRAINED_TIMES = 7, 5
FLAT, GROWS, SAME = 2.0, 4.0, 1e-4
SETTINGS = {
    "tokens per batch": TOKENS,
    "lengths": f"{SHORTEST} .. {TOKENS}, doubled (to {LONG_TOKENS} of {LONG_TOKENS} with --long); training "
    f"at {SETTLED} and the longest",
    "heads": HEADS,
    "width": WIDTH,
    "dtype": "float32",
    "tile of Lightning-1": TILE,
    "figures": f"least CPU time of {TIMES} runs in turns over all lengths and forms "
    f"({TRAINED_TIMES} with gradients)",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """CPU milliseconds of a batch of equally many tokens, by length and form."""
    tokens = LONG_TOKENS if long else TOKENS
    found: dict[str, float] = {}
    for name, backward in (("prefill", False), ("training", True)):
        step(name)
        found |= remember(folder, name, partial(_timed, seed, tokens, backward))
    return found | {"longest": float(tokens)}


def _timed(seed: int, tokens: int, backward: bool) -> Values:
    lengths = [SETTLED, tokens] if backward else _lengths(tokens)
    log_decay = log_decay_of(alibi_by_layer(HEADS), torch.zeros(()))
    runs: dict[str, Callable[[], Any]] = {}
    worst = 0.0
    for length in lengths:
        given = _inputs(seed, tokens // length, length, backward)
        query, key, value = given
        forms: dict[str, Callable[[], Any]] = {
            "chunks": partial(scan, query, key, value, log_decay=log_decay),
            "softmax": partial(scaled_dot_product_attention, query, key, value, is_causal=True),
        }
        if not backward:
            forms["tiles"] = partial(lightning1, query, key, value, log_decay, tile=TILE)
        if length == lengths[0]:
            worst = _difference(given, log_decay)
        for form, run in forms.items():
            what = f"{'training' if backward else 'prefill'} ms, {form}, {length}"
            runs[what] = partial(_with_gradients, run) if backward else run
    times = TRAINED_TIMES if backward else TIMES
    seconds = in_turns(list(runs.values()), times, warm=1, taken=min, clock=time.process_time)
    values = {what: 1e3 * second for what, second in zip(runs, seconds, strict=True)}
    return values if backward else values | {"largest difference": worst}


def _lengths(tokens: int) -> list[int]:
    found = [SHORTEST]
    while found[-1] * 2 <= tokens:
        found.append(found[-1] * 2)
    return found


def _inputs(seed: int, batch: int, length: int, grad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, batch, HEADS, length, WIDTH, generator=generator)
    return [tensor.requires_grad_(grad) for tensor in made.unbind(0)]


@torch.no_grad()
def _difference(given: Sequence[Tensor], log_decay: Tensor) -> float:
    """Of the two forms, over the size of a result: no time for a wrong one."""
    query, key, value = (tensor[:1] for tensor in given)
    chunks: Any = scan(query, key, value, log_decay=log_decay)
    tiles = lightning1(query, key, value, log_decay, tile=TILE)
    return float((chunks - tiles).abs().max() / tiles.abs().max())


def _with_gradients(run: Callable[[], Tensor]) -> None:
    out = run()
    out.backward(torch.ones_like(out))


def judge(runs: Sequence[Values]) -> Verdict:
    """Every part of the rule, by the means over the seeds."""
    table = {name: row["mean"] for name, row in spread(runs).items()}
    longest = int(table["longest"])

    def took(form: str, length: int, what: str = "prefill") -> float:
        return table[f"{what} ms, {form}, {length}"]

    settled = [length for length in _lengths(longest) if length >= SETTLED]
    chunks = [took("chunks", length) for length in settled]
    flat = max(chunks) / min(chunks)
    grown = {form: took(form, longest) / took(form, SHORTEST) for form in ("softmax", "tiles")}
    trained = {
        form: took(form, longest, "training") / took(form, SETTLED, "training")
        for form in ("chunks", "softmax")
    }
    overtaken = [n for n in _lengths(longest) if took("chunks", n) < took("softmax", n)]
    ahead = {
        what: took("softmax", longest, what) / took("chunks", longest, what)
        for what in ("prefill", "training")
    }
    tiles = took("tiles", longest) / chunks[-1]
    measured = (
        f"{longest} tokens in sequences of {SETTLED} to {longest}: chunks {min(chunks):.0f} to "
        f"{max(chunks):.0f} ms of CPU time (x {flat:.2f}); from {SHORTEST} to {longest} causal softmax grows "
        f"{grown['softmax']:.1f} times, Lightning-1 {grown['tiles']:.1f}. At {longest} chunks are "
        f"{ahead['prefill']:.1f} times as fast as softmax and {tiles:.1f} times "
        f"as fast as Lightning-1; forward and backward {ahead['training']:.1f} times as fast as softmax, "
        f"growing {trained['chunks']:.2f} times from {SETTLED} on (softmax {trained['softmax']:.1f}). "
        f"{f'Faster than softmax from {overtaken[0]} tokens on.' if overtaken else 'Never faster.'}"
    )
    if grown["softmax"] <= GROWS:
        return Verdict("not shown at this scale", f"Softmax hardly grows at these lengths: {measured}")
    rules = {
        "the two forms agree": table["largest difference"] < SAME,
        f"chunks within {FLAT:g} times from {SETTLED} on": flat < FLAT,
        f"with gradients within {FLAT:g} times": trained["chunks"] < FLAT,
        f"Lightning-1 grows {GROWS:g} times": grown["tiles"] > GROWS,
        "faster than softmax at the longest": min(ahead.values()) > 1,
        "faster than Lightning-1 at the longest": tiles > 1,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


CLAIM = Claim(
    says=(
        "Lightning attention (2024) trains and reads at a constant speed per token at various lengths, where "
        "softmax attention and Lightning Attention-1 slow down with the length."
    ),
    rule=(
        f"Equally many tokens in sequences of growing length, {HEADS} heads of {WIDTH}, float32, least CPU "
        f"time of runs in turns, means over the seeds: from {SETTLED} tokens on the chunked form varies "
        f"less than {FLAT:g} times, forward and with gradients, while from {SHORTEST} to the longest "
        f"causal softmax and Lightning-1 grow more than {GROWS:g} times; at the longest the chunked form "
        "is faster than both. Nothing is shown where softmax grows less than that."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=3.0,
)
