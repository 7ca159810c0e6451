"""Sentences on memory and time, each computed from the run's numbers."""

from __future__ import annotations

from attlas.report.compare import agree
from attlas.report.findings import Finding, Three, judged
from attlas.report.run import Run, Timing

__all__ = ["memory", "speed"]

BYTES_OFF = 0.05  # relative deviation from the promised bytes that was asked not to be exceeded
SAME_TIME = 0.02  # relative difference of times that a repetition may show as well


def _timed(run: Run, three: Three, field: str) -> list[tuple[int, Timing, Timing, Timing]]:
    """Length and timings of dense, plan and uniform wherever dense and plan have `field`."""
    uniform = three.uniform.time if three.uniform else {}
    rows = [
        (n, three.dense.time.get(n, Timing()), three.plan.time.get(n, Timing()), uniform.get(n, Timing()))
        for n in run.time_lengths
    ]
    return [row for row in rows if getattr(row[1], field) and getattr(row[2], field)]


def memory(run: Run, three: Three) -> Finding | None:
    """KV bytes of the plan as a share of dense's and beside what its density promises."""
    phrases: list[str] = []
    met: dict[int, bool] = {}
    for n, d, p, _ in _timed(run, three, "kv_bytes"):
        share = (p.kv_bytes or 0) / (d.kv_bytes or 1)
        phrase = f"{share:.1%} of dense's bytes at {n:,} tokens" if not phrases else f"{share:.1%} at {n:,}"
        if p.kv_off is not None:
            promise = "" if met else " the bytes that the plan promises"
            phrase += f" ({p.kv_off:+.1%} off{promise})"
            met[n] = abs(p.kv_off) <= BYTES_OFF
        phrases.append(phrase)
    if not phrases:
        return None
    asked = judged(f"within {BYTES_OFF:.0%} of the promise", met)
    return Finding(f"KV cache: {', '.join(phrases)}.{asked}", agree(met.values()))


def _share_of_kernel(run: Run, length: int, field: str, dense: float, plan: float) -> str:
    """What of a ratio of times is the kernel's: dense attention by Attlas's own kernels stands between."""
    method = run.method("dense_attlas")
    own = getattr(method.time.get(length, Timing()), field) if method else None
    if not own:
        return ""
    return (
        f" (Attlas's kernels on the dense pattern {own / dense:.2f} ×, so the plan itself {plan / own:.2f} ×)"
    )


def speed(run: Run, three: Three, phase: str) -> Finding | None:
    """Time of the whole model against dense at every timed length, of attention alone at the longest."""
    total, alone, batch = "prefill_seconds", "prefill_attention_seconds", "prefill_batch"
    name = "Prefill"
    if phase == "decode":
        total, alone, batch = "decode_ms", "decode_attention_ms", "batch"
        name = "A decoding step"
    rows = _timed(run, three, total)
    if not rows:
        return None
    phrases: list[str] = []
    faster: list[bool | None] = []
    for n, d, p, u in rows:
        ratio = getattr(p, total) / getattr(d, total)
        faster.append(None if abs(ratio - 1) <= SAME_TIME else ratio < 1)
        other = (
            f" (uniform window {getattr(u, total) / getattr(d, total):.2f} ×)" if getattr(u, total) else ""
        )
        where = f"at {n:,}" if phrases else f"dense's time at {n:,} tokens"
        phrases.append(f"{ratio:.2f} × {where}{other}")
    length, d, p, _ = rows[-1]
    rows_at_once = f", batch {getattr(p, batch)}" if getattr(p, batch) else ""
    text = f"{name} of the whole model{rows_at_once}: {', '.join(phrases)}"
    if getattr(d, alone) and getattr(p, alone):
        text += f"; attention alone {getattr(p, alone) / getattr(d, alone):.2f} × at {length:,} tokens"
        text += _share_of_kernel(run, length, alone, getattr(d, alone), getattr(p, alone))
        fraction = getattr(p, f"{phase}_fraction")
        text += "" if fraction is None else f", {fraction:.0%} of its bound"
    return Finding(f"{text}.", agree(faster))
