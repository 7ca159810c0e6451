"""`scan` by length: time and memory per token, against causal SDPA and naive forms; one decoded token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attlas.layers import alibi_by_layer
from attlas.scan import Identity, State, Taylor, elu1, scan
from benchmarks._harness import extra_bytes, gate, in_turns
from benchmarks.naive import CHUNK, chunked, loop

TITLE = "scan: time and memory per token by length, against causal SDPA and naive forms"
COLUMNS = [
    "form", "pass", "tokens", "ms", "us_per_token", "slope", "extra_mb", "sdpa_ms", "speedup", "sdpa_mb",
    "loop_x", "chunked_x", "bytes", "sdpa_bytes",
]  # fmt: skip
HEADS, WIDTH, TAYLOR_WIDTH = 4, 64, 16
SHORTEST, LONGEST, QUICK = 256, 131072, 1024
# Beyond these lengths SDPA, the naive chunks and the loop over tokens take too long.
SDPA_TOKENS, CHUNKED_TOKENS, LOOP_TOKENS = 16384, 16384, 2048
SETTLED = 4096
CONTEXTS, QUICK_CONTEXTS = (1024, 8192, 65536), (256, 1024)
CHECKED = 512
NOTES = [
    f"Batch 1, {HEADS} heads of width {WIDTH} (Taylor: queries and keys of {TAYLOR_WIDTH}, as BASED has), "
    "float32, random numbers; medians of runs in turns in one process, every form beside SDPA of the same "
    "length. All forms are compared with their n x n definition in float64 before.",
    "plain: no decay. decayed: a constant decay per head (Lightning). gated: elu + 1 features, a weight per "
    "key, normalised. Taylor: 1 + z + z^2/2, normalised (BASED).",
    "slope: of log time against log tokens since the row of half the length, or over all lengths that a row "
    "names: 1 is linear. extra_mb: largest memory held above the inputs, results and gradients included.",
    "loop_x: the time of a plain loop over tokens, chunked_x: of a loop over chunks of "
    f"{CHUNK} in plain autograd, over that of scan; both with explicit features.",
    "efficiency length: where scan comes to cost less than causal SDPA and stays so, between the measured "
    "lengths by a straight line in logarithms; the shortest measured length where it does from there on.",
    "In memory causal SDPA is linear, too: a form whose efficiency length in memory is empty takes more.",
    "decode: one token after so many others, with its new state; bytes: of the state, and of the key-value "
    "cache that SDPA reads; its efficiency length in memory: tokens whose keys and values take as many.",
]


@dataclass(frozen=True)
class Form:
    """A scan to be measured."""

    name: str
    kernel: Any
    width: int = WIDTH
    decayed: bool = False
    gated: bool = False
    normalise: bool = False

    def named(self, given: Mapping[str, Tensor], tokens: slice = slice(None)) -> dict[str, Any]:
        """What `scan` is given beside q, k and v."""
        found: dict[str, Any] = {"kernel": self.kernel, "normalise": self.normalise}
        if self.decayed:
            found["log_decay"] = given["log_decay"]
        if self.gated:
            found["log_gate"] = given["log_gate"][:, :, tokens]
        return found


FORMS = (
    Form("plain", Identity()),
    Form("decayed", Identity(), decayed=True),
    Form("gated, normalised", elu1(), gated=True, normalise=True),
    Form("Taylor, normalised", Taylor(), TAYLOR_WIDTH, normalise=True),
)


def rows(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per form, length and pass, then slopes, efficiency lengths and decoded tokens."""
    for form in FORMS:
        _check(form)
    longest = QUICK if quick else LONGEST
    lengths = [SHORTEST * 2**power for power in range((longest // SHORTEST).bit_length())]
    for backward in (False, True):
        done: list[dict[str, Any]] = []
        for tokens in lengths:
            for row in _of_length(tokens, backward, done):
                done.append(row)
                yield row
        yield from _summaries(done)
    yield from _decoding(QUICK_CONTEXTS if quick else CONTEXTS)


def _inputs(tokens: int, grad: bool = False) -> dict[str, Tensor]:
    """In memory as a model's projections leave them: (batch, tokens, heads, width)."""
    torch.manual_seed(0)
    found = {
        name: torch.randn(1, tokens, HEADS, WIDTH).transpose(1, 2).requires_grad_(grad)
        for name in ("q", "k", "v")
    }
    found["log_gate"] = torch.randn(1, HEADS, tokens).requires_grad_(grad)
    found["log_decay"] = -torch.tensor(alibi_by_layer(HEADS))
    for name in ("q", "k"):
        narrow = found[name].detach()[..., :TAYLOR_WIDTH].transpose(1, 2).contiguous().transpose(1, 2)
        found[f"narrow {name}"] = narrow.requires_grad_(grad)
    return found


def _parts(form: Form, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    prefix = "" if form.width == WIDTH else "narrow "
    return given[prefix + "q"], given[prefix + "k"], given["v"]


def _scan(form: Form, given: Mapping[str, Tensor], **named: Any) -> Callable[[], Any]:
    query, key, value = _parts(form, given)
    return lambda: scan(query, key, value, **form.named(given), **named)


def _check(form: Form) -> None:
    """scan and both naive forms against the definition in float64, over the size of a result."""
    given = _inputs(CHECKED)
    exact = {name: tensor.double() for name, tensor in given.items()}
    wanted = _scan(form, exact, backend="reference")()
    size = float(wanted.abs().max())
    ways = {"scan": _scan(form, given), "a loop": _naive(form, given, loop)}
    ways["naive chunks"] = _naive(form, given, chunked)
    with torch.no_grad():
        for name, run in ways.items():
            gate(f"{name} of {form.name}", run() / size, (wanted / size).float())


def _of_length(tokens: int, backward: bool, done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """All forms of one length beside SDPA and the naive forms, in turns."""
    given = _inputs(tokens, backward)
    runs: dict[str, Callable[[], Any]] = {form.name: _scan(form, given) for form in FORMS}
    if tokens <= SDPA_TOKENS:
        q, k, v = (given[name] for name in "qkv")
        runs["sdpa"] = lambda: scaled_dot_product_attention(q, k, v, is_causal=True)
    for form in FORMS:
        if tokens <= LOOP_TOKENS:
            runs[f"loop, {form.name}"] = _naive(form, given, loop)
        if tokens <= CHUNKED_TOKENS:
            runs[f"chunked, {form.name}"] = _naive(form, given, chunked)
    if backward:
        runs = {name: _with_backward(run) for name, run in runs.items()}
    times = 7 if tokens <= SETTLED else 3
    spent = dict(zip(runs, in_turns(list(runs.values()), times, warm=1), strict=True))
    sdpa = spent.get("sdpa")
    sdpa_mb = None if sdpa is None else extra_bytes(runs["sdpa"]) / 1e6
    for form in FORMS:
        seconds = spent[form.name]
        row: dict[str, Any] = {"form": form.name, "pass": _pass(backward), "tokens": tokens}
        row |= {"ms": round(1e3 * seconds, 3), "us_per_token": round(1e6 * seconds / tokens, 3)}
        half = [one for one in done if one["form"] == form.name and 2 * one["tokens"] == tokens]
        row["slope"] = round(math.log2(row["ms"] / half[0]["ms"]), 2) if half else None
        row["extra_mb"] = round(extra_bytes(runs[form.name]) / 1e6, 2)
        if sdpa is not None and sdpa_mb is not None:
            row |= {"sdpa_ms": round(1e3 * sdpa, 3), "speedup": round(sdpa / seconds, 2)}
            row["sdpa_mb"] = round(sdpa_mb, 2)
        for column in ("loop", "chunked"):
            other = spent.get(f"{column}, {form.name}")
            row[f"{column}_x"] = None if other is None else round(other / seconds, 2)
        yield row


def _pass(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


def _with_backward(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def both() -> Tensor:
        out = run()
        out.backward(torch.ones_like(out))
        return out

    return both


def _summaries(done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The slope over the long lengths, and the lengths from which a form costs less than SDPA."""
    for form in FORMS:
        own = [row for row in done if row["form"] == form.name]
        long = [row for row in own if row["tokens"] >= SETTLED]
        if len(long) > 1:
            x, y = ([math.log(row[name]) for row in long] for name in ("tokens", "ms"))
            yield {
                "form": f"{form.name}, from {SETTLED} tokens on",
                "pass": own[0]["pass"],
                "slope": round(linear_regression(x, y).slope, 3),
            }
        for what, ours, theirs in (("time", "ms", "sdpa_ms"), ("memory", "extra_mb", "sdpa_mb")):
            compared = [(row["tokens"], row[ours], row[theirs]) for row in own if theirs in row]
            yield _summary(form, own[0]["pass"], what, efficiency_length(compared))


def _summary(form: Form, passed: str, what: str, tokens: int | None) -> dict[str, Any]:
    return {"form": f"{form.name}, efficiency length in {what}", "pass": passed, "tokens": tokens}


def efficiency_length(compared: Sequence[tuple[int, float, float]]) -> int | None:
    """Tokens from which on the first cost stays below the second; None if it is not at the end.

    compared: (tokens, cost, other cost) by growing tokens. Costs are joined by straight lines in logarithms.
    """
    gaps = [math.log(cost / other) for _, cost, other in compared]
    if not gaps or gaps[-1] >= 0:
        return None
    last = max((index for index, gap in enumerate(gaps) if gap >= 0), default=None)
    if last is None:
        return compared[0][0]
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    low, high = math.log(compared[last][0]), math.log(compared[last + 1][0])
    return round(math.exp(low + share * (high - low)))


@torch.no_grad()
def _decoding(contexts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One more token after each context: all contexts of a form in turns, SDPA beside them."""
    given = _inputs(max(contexts))
    one = {name: tensor[:, :, :1] for name, tensor in given.items() if tensor.dim() > 1}
    one["log_decay"] = given["log_decay"]
    caches = {
        count: (given["k"][:, :, :count].contiguous(), given["v"][:, :, :count].contiguous())
        for count in contexts
    }

    def read(count: int) -> Tensor:
        key, value = caches[count]
        return scaled_dot_product_attention(one["q"], key, value)

    for form in FORMS:
        states: dict[int, State] = {}
        for count in contexts:
            query, key, value = (part[:, :, :count] for part in _parts(form, given))
            answer: Any = scan(query, key, value, **form.named(given, slice(count)), return_state=True)
            states[count] = answer[1]
        runs = [_scan(form, one, state=states[count], return_state=True) for count in contexts]
        runs += [partial(read, count) for count in contexts]
        spent = in_turns(runs, times=101, warm=5)
        compared = list(zip(contexts, spent, spent[len(contexts) :], strict=False))
        for count, seconds, sdpa in compared:
            yield {
                "form": form.name,
                "pass": "decode",
                "tokens": count,
                "ms": round(1e3 * seconds, 4),
                "sdpa_ms": round(1e3 * sdpa, 4),
                "speedup": round(sdpa / seconds, 2),
                "bytes": states[count].nbytes,
                "sdpa_bytes": sum(part.nbytes for part in caches[count]),
            }
        yield _summary(form, "decode", "time", efficiency_length(compared))
        per_token = one["k"].nbytes + one["v"].nbytes
        yield _summary(form, "decode", "memory", math.ceil(states[contexts[0]].nbytes / per_token))


Naive = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _naive(form: Form, given: Mapping[str, Tensor], run: Naive) -> Callable[[], Tensor]:
    """Features, gates and denominator around a linear attention of fixed decay, all in plain autograd."""

    def whole() -> Tensor:
        query, key, value = _parts(form, given)
        places = torch.zeros(1, query.shape[2], dtype=torch.int64)
        query, key = form.kernel.features(query, places), form.kernel.features(key, places)
        if form.normalise:
            value = torch.cat([value, torch.ones_like(value[..., :1])], -1)
        if form.gated:
            log_gate = given["log_gate"]
            value = value * (log_gate - log_gate.detach().amax(-1, keepdim=True)).exp()[..., None]
        log_decay = given["log_decay"] if form.decayed else torch.zeros_like(given["log_decay"])
        out = run(query, key, value, log_decay)
        return out[..., :-1] / out[..., -1:] if form.normalise else out

    return whole
