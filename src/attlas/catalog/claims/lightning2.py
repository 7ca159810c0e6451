"""Lightning-2's claim: a text without end at constant time and memory per token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.machine import peak_memory, resident_memory
from attlas._common.measuring import in_turns
from attlas.catalog.claim import Claim, Step, Values, Verdict, remember, spread
from attlas.layers.lightning import alibi_by_layer, log_decay_of
from attlas.scan import State, scan

__all__ = ["CLAIM", "dense_end", "judge", "measure"]

TOKENS, LONG_TOKENS, PIECE, HEADS, WIDTH = 2**20, 2**23, 8192, 2, 32
WARM, COMPARED, ONE_SHOT, SEEN, ROWS, DECODED = 1, 20, 32768, 16384, 64, 200
HELD = SEEN // PIECE  # pieces that are kept for the comparison at the end
FLAT_MEMORY, FLAT_TIME, SAME = 0.05, 1.5, 1e-5
SETTINGS = {
    "tokens": f"{TOKENS} ({LONG_TOKENS} with --long) in pieces of {PIECE}",
    "heads": HEADS,
    "width": WIDTH,
    "dtype": "float32",
    "slopes": "alibi_by_layer, first layer",
    "compared": f"median of pieces {WARM + 1} to {WARM + COMPARED} and of the last {COMPARED}; one shot of "
    f"{ONE_SHOT} tokens; the last {ROWS} rows dense in float64 over {SEEN} keys; {DECODED} decoded tokens",
}


def measure(seed: int, *, long: bool, folder: Path, step: Step) -> Values:
    """CPU seconds per piece, resident memory, and errors of one stream of random tokens."""
    return remember(folder, "stream", partial(_stream, seed, LONG_TOKENS if long else TOKENS, step))


@torch.no_grad()
def _stream(seed: int, tokens: int, step: Step) -> Values:
    log_decay = log_decay_of(alibi_by_layer(HEADS), torch.zeros(()))
    generator = torch.Generator().manual_seed(seed)
    state: State | None = None
    first: State | None = None
    seconds, memory = [], []
    tail: list[tuple[list[Tensor], Tensor]] = []
    for index in range(tokens // PIECE):
        piece = _tokens(PIECE, generator)
        start = time.process_time()
        out, state = scan(*piece, log_decay=log_decay, state=state, return_state=True)
        seconds.append(time.process_time() - start)
        memory.append(float(resident_memory() or peak_memory()))
        first = state if first is None else first
        tail = [*tail, (piece, out)][-HELD:]
        if (index + 1) % COMPARED == 0:
            step(f"{(index + 1) * PIECE} of {tokens} tokens")
    assert state is not None and first is not None
    end = dense_end(_joined([piece for piece, _ in tail]), log_decay, ROWS)
    early, late = seconds[WARM : WARM + COMPARED], seconds[-COMPARED:]
    settled = memory[HELD:]
    decode = in_turns(
        [partial(_decode, first, log_decay), partial(_decode, state, log_decay)],
        DECODED,
        clock=time.process_time,
    )
    return {
        "ms of an early piece": 1e3 * statistics.median(early),
        "ms of a late piece": 1e3 * statistics.median(late),
        "resident MiB, least": min(settled) / 2**20,
        "resident MiB, largest": max(settled) / 2**20,
        "bytes of the state": float(state.nbytes),
        "difference from one shot": _against_one_shot(seed, log_decay),
        "difference from dense at the end": _error(tail[-1][1][:, :, -ROWS:].double(), end),
        "microseconds of a decoded token, early": 1e6 * decode[0],
        "microseconds of a decoded token, late": 1e6 * decode[1],
        "tokens": float(state.position.item()),
    }


def _against_one_shot(seed: int, log_decay: Tensor) -> float:
    """The first tokens of the same stream again, in pieces and at once."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [_tokens(PIECE, generator) for _ in range(ONE_SHOT // PIECE)]
    state, found = None, []
    for piece in pieces:
        out, state = scan(*piece, log_decay=log_decay, state=state, return_state=True)
        found.append(out)
    return _error(torch.cat(found, 2), torch.as_tensor(scan(*_joined(pieces), log_decay=log_decay)))


def _tokens(count: int, generator: torch.Generator) -> list[Tensor]:
    return list(torch.randn(3, 1, HEADS, count, WIDTH, generator=generator).unbind(0))


def _joined(pieces: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts, 2) for parts in zip(*pieces, strict=True)]


def _error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest result."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def dense_end(given: Sequence[Tensor], log_decay: Tensor, rows: int) -> Tensor:
    """The last `rows` outputs from the given keys alone, in float64: what lies before has decayed."""
    query, key, value = (tensor.double() for tensor in given)
    count = key.shape[2]
    place = torch.arange(count)
    distance = (place[-rows:, None] - place).double()
    faded = (log_decay.double()[:, None, None] * distance.clamp(min=0)).exp() * (distance >= 0)
    return (query[:, :, -rows:] @ key.mT * faded) @ value


def _decode(state: State, log_decay: Tensor) -> None:
    one = torch.ones(1, HEADS, 1, WIDTH)
    scan(one, one, one, log_decay=log_decay, state=state, return_state=True)


def judge(runs: Sequence[Values]) -> Verdict:
    """Every part of the rule, by the means over the seeds; errors and memory with every seed."""
    table = {name: row["mean"] for name, row in spread(runs).items()}
    slower = table["ms of a late piece"] / table["ms of an early piece"]
    decode = table["microseconds of a decoded token, late"] / table["microseconds of a decoded token, early"]
    memory = max(run["resident MiB, largest"] / run["resident MiB, least"] - 1 for run in runs)
    shot = max(run["difference from one shot"] for run in runs)
    dense = max(run["difference from dense at the end"] for run in runs)
    measured = (
        f"{table['tokens']:.0f} tokens: a piece of {PIECE} takes {table['ms of an early piece']:.1f} ms of "
        f"CPU time at the start and {table['ms of a late piece']:.1f} at the end (x {slower:.2f}), a decoded "
        f"token x {decode:.2f}; resident memory varies by {memory:.1%} of {table['resident MiB, least']:.0f} "
        f"MiB, the state is {table['bytes of the state']:.0f} bytes. Differences: {shot:.1e} from one shot, "
        f"{dense:.1e} from dense attention at the end."
    )
    rules = {
        f"late pieces within {FLAT_TIME:g} times": slower <= FLAT_TIME,
        f"late tokens within {FLAT_TIME:g} times": decode <= FLAT_TIME,
        f"memory within {FLAT_MEMORY:.0%}": memory <= FLAT_MEMORY,
        f"equal to one shot to {SAME:g}": shot <= SAME,
        f"equal to dense at the end to {SAME:g}": dense <= SAME,
    }
    failed = [rule for rule, met in rules.items() if not met]
    if failed:
        return Verdict("does not hold", f"{measured} Not met: {'; '.join(failed)}.")
    return Verdict("holds", measured)


CLAIM = Claim(
    says=(
        "Chunks that are quadratic inside and linked by a state handle sequences of unlimited length: "
        "constant speed and constant memory, with the exact result."
    ),
    rule=(
        f"A million random tokens in pieces of {PIECE}, {HEADS} heads of {WIDTH}, float32: the median CPU "
        f"time of the last {COMPARED} pieces is at most {FLAT_TIME:g} times that of pieces {WARM + 1} to "
        f"{WARM + COMPARED}, a decoded token likewise; resident memory stays within {FLAT_MEMORY:.0%} after "
        f"{HELD} pieces; the outputs are those of one shot over the first {ONE_SHOT} tokens, and of dense "
        f"attention in float64 at the very end, within {SAME:g} of the largest output."
    ),
    settings=SETTINGS,
    measure=measure,
    judge=judge,
    minutes=0.5,
)
