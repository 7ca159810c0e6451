"""The verdict of a run in plain words, every sentence computed from its numbers, whichever way they fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from attlas.report.run import Method, Quality, Run

__all__ = ["Finding", "Verdict", "beats", "kept_share", "verdict"]

JUDGED_APART = ("dense", "plan", "uniform")  # the first sentences are about these three
EQUAL_DENSITY = 0.02  # relative difference of deployed densities up to which two methods cost the same


@dataclass(frozen=True)
class Finding:
    """One sentence; `good`: True in the plan's favour, False against it, None mixed or merely a fact."""

    text: str
    good: bool | None

    @property
    def mark(self) -> str:
        return {True: "+", False: "-", None: "~"}[self.good]


@dataclass(frozen=True)
class Verdict:
    """A headline and the findings behind it."""

    headline: str
    findings: tuple[Finding, ...]


def verdict(run: Run) -> Verdict:
    """What the run shows for the plan against dense and against each baseline, in both directions."""
    dense, plan, uniform = run.method("dense"), run.method("plan"), run.method("uniform")
    if plan is None or dense is None:
        return Verdict("No verdict: the run holds no plan beside the dense model.", ())
    findings = [
        finding
        for finding in (
            _exact(run, dense, plan, uniform),
            _answers(run, dense, plan, uniform),
            _text(run, dense, plan, uniform),
            *(_against(run, plan, method) for method in run.main_methods if method.kind not in JUDGED_APART),
            _extension(run, dense, plan, uniform),
            _memory(run, dense, plan),
            _speed(run, dense, plan, "prefill"),
            _speed(run, dense, plan, "decode"),
        )
        if finding is not None
    ]
    return Verdict(_headline(run, dense, plan, uniform), tuple(findings))


def kept_share(run: Run, dense: Method, other: Method, lengths: Sequence[int]) -> float | None:
    """Exact match of `other` as a share of dense's, needles of all `lengths` pooled; None if undefined."""
    pairs = [
        (a.exact, b.exact, a.needles or 1)
        for n in lengths
        if (a := dense.quality.get(n)) and (b := other.quality.get(n))
    ]
    known = [(a * n, b * n) for a, b, n in pairs if a is not None and b is not None]
    found = sum(a for a, _ in known)
    return sum(b for _, b in known) / found if found else None


def beats(plan: Method, other: Method, lengths: Sequence[int]) -> bool | None:
    """Whether the plan is better than `other` at `lengths`.

    True: lower answer CE and no fewer exact matches at every length; False: lower CE at none; None: in
    between, or not measured.
    """
    pairs = [(p, o) for n in lengths if (p := plan.quality.get(n)) and (o := other.quality.get(n))]
    losses = [(p.answer_ce, o.answer_ce) for p, o in pairs]
    lower = [a < b for a, b in losses if a is not None and b is not None]
    matches = [(p.exact, o.exact) for p, o in pairs]
    found = [a >= b for a, b in matches if a is not None and b is not None]
    if not lower:
        return None
    if all(lower) and all(found):
        return True
    return None if any(lower) else False


def _judged(run: Run) -> tuple[int, ...]:
    return tuple(n for n in run.quality_lengths if not run.lengths or n in run.lengths)


def _headline(run: Run, dense: Method, plan: Method, uniform: Method | None) -> str:
    lengths = _judged(run)
    densities = [d for n in lengths if (d := plan.density_at(n)) is not None]
    memory = f"With {max(densities):.0%} of the KV memory" if densities else "At its budget"
    share = kept_share(run, dense, plan, lengths)
    if share is None:
        return f"{memory}, no share of the dense model's needles can be given: see the table."
    text = f"{memory} the plan keeps {share:.0%} of the dense model's exact matches"
    other = kept_share(run, dense, uniform, lengths) if uniform else None
    if other is None:
        return text + "."
    link = "; a uniform window of the same size keeps" if other < share else ", but a uniform window keeps"
    return f"{text}{link} {other:.0%}."


_Reading = Callable[[Quality], float | None]


def _compared(
    run: Run, methods: tuple[Method, Method, Method | None], read: _Reading, show: Callable[..., str]
) -> tuple[list[str], list[tuple[float, float]]]:
    """One phrase per profiled length from `show(plan, dense, uniform, n)`, and the (plan, uniform) pairs."""
    dense, plan, uniform = methods
    phrases, pairs = [], []
    for n in _judged(run):
        d, p, u = (read(m.quality.get(n, Quality())) if m else None for m in (dense, plan, uniform))
        if p is None or d is None:
            continue
        phrases.append(f"at {n:,} tokens {show(p, d, u, n)}")
        if u is not None:
            pairs.append((p, u))
    return phrases, pairs


def _exact(run: Run, dense: Method, plan: Method, uniform: Method | None) -> Finding | None:
    def show(p: float, d: float, u: float | None, n: int) -> str:
        needles = dense.quality[n].needles
        count = f" ({needles} needles)" if needles else ""
        return f"plan {p:.0%}, dense {d:.0%}" + ("" if u is None else f", uniform window {u:.0%}") + count

    phrases, pairs = _compared(run, (dense, plan, uniform), lambda q: q.exact, show)
    if not phrases:
        return None
    return Finding(f"Exact match of the needle: {'; '.join(phrases)}.", _agree([p > u for p, u in pairs]))


def _answers(run: Run, dense: Method, plan: Method, uniform: Method | None) -> Finding | None:
    def show(p: float, d: float, u: float | None, n: int) -> str:
        text = f"plan {p:.3f}, dense {d:.3f}"
        if u is None:
            return text
        return f"{text}, uniform window {u:.3f}" + (f" (plan / uniform {p / u:.2f})" if u else "")

    phrases, pairs = _compared(run, (dense, plan, uniform), lambda q: q.answer_ce, show)
    if not phrases:
        return None
    apart = _unequal(plan, uniform, _judged(run)) if uniform else ""
    return Finding(
        f"Answer cross-entropy in nats: {'; '.join(phrases)}.{apart}", _agree([p < u for p, u in pairs])
    )


def _text(run: Run, dense: Method, plan: Method, uniform: Method | None) -> Finding | None:
    def show(p: float, d: float, u: float | None, n: int) -> str:
        return f"plan {p - d:+.3f}" + ("" if u is None else f", uniform window {u - d:+.3f}")

    phrases, pairs = _compared(run, (dense, plan, uniform), lambda q: q.text_nll, show)
    if not phrases:
        return None
    return Finding(
        f"Text NLL against dense, nats per token: {'; '.join(phrases)}.", _agree([p <= u for p, u in pairs])
    )


def _against(run: Run, plan: Method, other: Method) -> Finding | None:
    lengths = _judged(run)
    won = beats(plan, other, lengths)
    errors, matches, unclear = [], [], False
    for n in lengths:
        p, o = plan.quality.get(n, Quality()), other.quality.get(n, Quality())
        if p.answer_ce is None or o.answer_ce is None:
            continue
        errors.append(f"{p.answer_ce:.3f} against {o.answer_ce:.3f}")
        if p.exact is not None and o.exact is not None:
            matches.append(f"{p.exact:.0%} against {o.exact:.0%}")
            unclear = unclear or not _clear(p, o)
    if not errors:
        return None
    answer = {True: "yes", False: "no", None: "only in part"}[won]
    text = f"Better than “{other.label}”: {answer}; answer CE {', '.join(errors)}"
    if matches:
        text += f"; exact match {', '.join(matches)}"
    text += f" at {_listed([f'{n:,}' for n in lengths])} tokens"
    if unclear:
        text += " (with this few needles one of these matches could be chance: less than two standard errors)"
    return Finding(f"{text}.{_unequal(plan, other, lengths)}", won)


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _unequal(plan: Method, other: Method, lengths: Sequence[int]) -> str:
    pairs = [(a, b) for n in lengths if (a := plan.density_at(n)) and (b := other.density_at(n))]
    apart = [(a, b) for a, b in pairs if abs(a - b) > EQUAL_DENSITY * a]
    if not apart:
        return ""
    a, b = max(apart, key=lambda pair: abs(pair[0] - pair[1]))
    return f" Not at equal memory: the plan keeps {a:.1%}, the other {b:.1%}."


def _clear(one: Quality, two: Quality) -> bool:
    """Whether two shares differ by more than two standard errors of their difference (binomial)."""
    if one.exact is None or two.exact is None or not one.needles or not two.needles:
        return True
    variance = one.exact * (1 - one.exact) / one.needles + two.exact * (1 - two.exact) / two.needles
    return abs(one.exact - two.exact) > 2 * sqrt(variance)


def _extension(run: Run, dense: Method, plan: Method, uniform: Method | None) -> Finding | None:
    if run.extend is None or run.extend in run.lengths:
        return None
    d, p = dense.quality.get(run.extend), plan.quality.get(run.extend)
    if d is None or p is None or d.exact is None or p.exact is None:
        return None
    u = uniform.quality.get(run.extend, Quality()) if uniform else Quality()
    text = f"At {run.extend:,} tokens, never profiled: exact match plan {p.exact:.0%}, dense {d.exact:.0%}"
    if u.exact is not None:
        text += f", uniform window {u.exact:.0%}"
    if p.answer_ce is not None and u.answer_ce is not None:
        text += f"; answer CE plan {p.answer_ce:.3f}, uniform window {u.answer_ce:.3f}"
    good = None if uniform is None else beats(plan, uniform, (run.extend,))
    return Finding(f"{text}.", good)


def _memory(run: Run, dense: Method, plan: Method) -> Finding | None:
    for n in reversed(run.time_lengths):
        d, p = dense.time.get(n), plan.time.get(n)
        if d is None or p is None or not d.kv_bytes or not p.kv_bytes:
            continue
        share, density = p.kv_bytes / d.kv_bytes, plan.density_at(n)
        text = f"The KV cache takes {share:.1%} of dense's bytes at {n:,} tokens"
        if density is not None:
            text += f" (the plan promises {density:.1%})"
        return Finding(f"{text}.", share < 1)
    return None


def _speed(run: Run, dense: Method, plan: Method, phase: str) -> Finding | None:
    total, alone = ("prefill_seconds", "prefill_attention_seconds")
    name = "Prefill"
    if phase == "decode":
        total, alone, name = "decode_ms", "decode_attention_ms", "A decoding step"
    for n in reversed(run.time_lengths):
        d, p = dense.time.get(n), plan.time.get(n)
        if d is None or p is None or not getattr(d, total) or not getattr(p, total):
            continue
        ratio = getattr(p, total) / getattr(d, total)
        text = f"{name} of the whole model takes {ratio:.2f} × dense's time at {n:,} tokens"
        if p.batch:
            text += f", batch {p.batch}"
        if getattr(d, alone) and getattr(p, alone):
            text += f"; attention alone {getattr(p, alone) / getattr(d, alone):.2f} ×"
        fraction = getattr(p, f"{phase}_fraction")
        if fraction is not None:
            text += f", which is {fraction:.0%} of its bound"
        return Finding(f"{text}.", ratio < 1)
    return None


def _agree(better: Sequence[bool]) -> bool | None:
    if not better or (any(better) and not all(better)):
        return None
    return better[0]
