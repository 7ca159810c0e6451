"""The key numbers at the top of the page."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.report.compare import kept_share
from attlas.report.run import Method, Run, Timing

__all__ = ["Tile", "tiles"]


@dataclass(frozen=True)
class Tile:
    """A name, a figure, and what stands beside it."""

    name: str
    value: str
    beside: str


def tiles(run: Run) -> list[Tile]:
    """KV and exact match kept, answer and text loss, times against dense, as far as the run has them."""
    dense, plan, uniform = run.method("dense"), run.method("plan"), run.method("uniform")
    if dense is None or plan is None:
        return []
    lengths = run.judged_lengths
    found = [
        _memory(run, plan),
        _exact(run, dense, plan, uniform, lengths),
        _answers(plan, uniform, lengths),
        _text(dense, plan, lengths),
        _time(run, dense, plan, "prefill_seconds", "prefill_batch", "Prefill"),
        _time(run, dense, plan, "decode_ms", "batch", "Decode step"),
    ]
    return [tile for tile in found if tile is not None]


def _memory(run: Run, plan: Method) -> Tile | None:
    known = {n: d for n in run.plan_lengths if (d := plan.density_at(n)) is not None}
    if not known:
        return None
    longest = max(known)
    return Tile("KV cache kept", f"{known[longest]:.1%}", f"at {longest:,} tokens")


def _exact(
    run: Run, dense: Method, plan: Method, uniform: Method | None, lengths: tuple[int, ...]
) -> Tile | None:
    share = kept_share(dense, plan, lengths)
    if share is None:
        return None
    other = kept_share(dense, uniform, lengths) if uniform else None
    beside = "of dense" if other is None else f"of dense; uniform window {other:.0%}"
    return Tile("Exact match", f"{share:.0%}", beside)


def _answers(plan: Method, uniform: Method | None, lengths: tuple[int, ...]) -> Tile | None:
    if uniform is None:
        return None
    ratios = [
        p.answer_ce / u.answer_ce
        for n in lengths
        if (p := plan.quality.get(n))
        and (u := uniform.quality.get(n))
        and p.answer_ce is not None
        and u.answer_ce
    ]
    if not ratios:
        return None
    return Tile("Answer CE", f"{max(ratios):.2f} ×", "the uniform window's, worst length")


def _text(dense: Method, plan: Method, lengths: tuple[int, ...]) -> Tile | None:
    gaps = [
        p.text_nll - d.text_nll
        for n in lengths
        if (p := plan.quality.get(n))
        and (d := dense.quality.get(n))
        and p.text_nll is not None
        and d.text_nll is not None
    ]
    return Tile("Text NLL", f"{max(gaps):+.3f}", "nats against dense, worst length") if gaps else None


def _time(run: Run, dense: Method, plan: Method, field: str, rows: str, name: str) -> Tile | None:
    for n in reversed(run.time_lengths):
        d, p = (getattr(m.time.get(n, Timing()), field) for m in (dense, plan))
        if d and p:
            batch = getattr(plan.time[n], rows)
            beside = f"dense's time, {n:,} tokens" + (f", batch {batch}" if batch else "")
            return Tile(name, f"{p / d:.2f} ×", beside)
    return None
