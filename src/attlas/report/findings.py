"""Sentences on quality, each computed from the run's numbers, with what was asked and whether it was met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attlas.report.compare import agree, apart, beats, fewest_needles, may_be_chance, outcome
from attlas.report.run import Method, Quality, Run

__all__ = [
    "FEW_NEEDLES", "Finding", "Three", "against", "answers", "at_lengths", "exact", "extension",
    "few_needles", "judged", "multi_key", "not_compared", "text",
]  # fmt: skip

# Asked of a plan at half the cache before anything was measured; shown for every budget.
EXACT_OF_DENSE = 0.65
ANSWER_OF_UNIFORM = 0.5
TEXT_RISE = 0.03  # nats per token
FEW_NEEDLES = 40
SAME_ANSWER = 0.01  # relative difference of answer CE up to which two ways of scoring agree

BASELINES = {
    "uniform": "the uniform window",
    "per_layer": "one rule per layer",
    "shuffled": "the shuffled plan",
    "mean_attention": "the plan profiled by mean attention",
}


@dataclass(frozen=True)
class Finding:
    """One sentence; `good`: True in the plan's favour, False against it, None mixed or merely a fact."""

    text: str
    good: bool | None

    @property
    def mark(self) -> str:
        return {True: "+", False: "-", None: "~"}[self.good]


@dataclass(frozen=True)
class Three:
    """The three methods that the first sentences are about."""

    dense: Method
    plan: Method
    uniform: Method | None

    def at(self, length: int) -> tuple[Quality, Quality, Quality]:
        """Quality of dense, plan and uniform; empty where not measured."""
        uniform = self.uniform.quality if self.uniform else {}
        return (
            self.dense.quality.get(length, Quality()),
            self.plan.quality.get(length, Quality()),
            uniform.get(length, Quality()),
        )


def at_lengths(lengths: Sequence[int]) -> str:
    """ "at 1,024 and 2,048 tokens"."""
    names = [f"{n:,}" for n in lengths]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"at {listed} tokens"


def judged(asked: str, met: Mapping[int, bool]) -> str:
    """ " Asked: …; met at …, missed at …."; nothing where nothing could be judged."""
    if not met:
        return ""
    said = [
        f"{word} {at_lengths(lengths)}"
        for word, value in (("met", True), ("missed", False))
        if (lengths := [n for n, good in met.items() if good is value])
    ]
    return f" Asked: {asked}; {', '.join(said)}."


def exact(run: Run, three: Three) -> Finding | None:
    phrases, met = [], {}
    for n in run.judged_lengths:
        d, p, u = three.at(n)
        if p.exact is None or d.exact is None:
            continue
        if d.exact:
            met[n] = p.exact >= EXACT_OF_DENSE * d.exact
        ratio = f" ({p.exact / d.exact:.2f} × dense)" if d.exact else ""
        window = "" if u.exact is None else f", uniform window {u.exact:.0%}"
        count = f" of {p.needles} needles" if p.needles else ""
        phrases.append(f"at {n:,} tokens plan {p.exact:.0%}{count}{ratio}, dense {d.exact:.0%}{window}")
    if not phrases:
        return None
    asked = judged(f"at least {EXACT_OF_DENSE} × dense", met)
    return Finding(f"Exact match of the needle: {'; '.join(phrases)}.{asked}", agree(met.values()))


def few_needles(run: Run, three: Three) -> Finding | None:
    least = fewest_needles((three.dense, three.plan, three.uniform), run.judged_lengths)
    if least is None or least >= FEW_NEEDLES:
        return None
    needles = "a single needle" if least == 1 else f"only {least} needles"
    return Finding(
        f"Shares rest on {needles} per length: one needle more or less is {1 / least:.1%} of them. "
        f"Asked: at least {FEW_NEEDLES}.",
        None,
    )


def answers(run: Run, three: Three) -> Finding | None:
    phrases, met = [], {}
    for n in run.judged_lengths:
        d, p, u = three.at(n)
        if p.answer_ce is None or d.answer_ce is None:
            continue
        window = ""
        if u.answer_ce is not None:
            met[n] = p.answer_ce <= ANSWER_OF_UNIFORM * u.answer_ce
            ratio = f" (plan / uniform {p.answer_ce / u.answer_ce:.2f})" if u.answer_ce else ""
            window = f", uniform window {u.answer_ce:.3f}{ratio}"
        phrases.append(f"at {n:,} tokens plan {p.answer_ce:.3f}, dense {d.answer_ce:.3f}{window}")
    if not phrases:
        return None
    asked = judged(f"at most {ANSWER_OF_UNIFORM} × the uniform window's", met)
    unequal = _unequal(three.plan, three.uniform, run.judged_lengths) if three.uniform else ""
    return Finding(
        f"Answer cross-entropy in nats: {'; '.join(phrases)}.{asked}{unequal}", agree(met.values())
    )


def text(run: Run, three: Three) -> Finding | None:
    phrases, met = [], {}
    for n in run.judged_lengths:
        d, p, u = three.at(n)
        if p.text_nll is None or d.text_nll is None:
            continue
        met[n] = p.text_nll - d.text_nll <= TEXT_RISE
        window = "" if u.text_nll is None else f", uniform window {u.text_nll - d.text_nll:+.3f}"
        phrases.append(f"at {n:,} tokens plan {p.text_nll - d.text_nll:+.3f}{window}")
    if not phrases:
        return None
    asked = judged(f"at most {TEXT_RISE:+.3f}", met)
    return Finding(
        f"Text NLL against dense, nats per token: {'; '.join(phrases)}.{asked}", agree(met.values())
    )


def against(run: Run, plan: Method, other: Method) -> Finding | None:
    """Whether the plan beats a baseline, length by length."""
    phrases, seen, absent, chance = [], [], [], False
    for n in run.judged_lengths:
        p, o = plan.quality.get(n, Quality()), other.quality.get(n, Quality())
        if p.answer_ce is None or o.answer_ce is None:
            absent.append(n)
            continue
        seen.append(n)
        figures = [f"answer CE {p.answer_ce:.3f} against {o.answer_ce:.3f}"]
        if p.exact is not None and o.exact is not None:
            figures.append(f"exact match {p.exact:.0%} against {o.exact:.0%}")
            chance = chance or may_be_chance(p, o)
        if p.text_nll is not None and o.text_nll is not None:
            figures.append(f"text NLL {p.text_nll - o.text_nll:+.3f}")
        phrase = f"at {n:,} tokens {_word(p, o)} ({', '.join(figures)})"
        phrases.append(phrase)
    if not seen:
        return None
    won = beats(plan, other, seen)
    answer = {True: "yes", False: "no", None: "only in part"}[won]
    said = f"Better than “{other.label}”: {answer}; {'; '.join(phrases)}."
    if chance:
        said += " With this few needles a difference of matches could be chance: at most two standard errors."
    said += _unequal(plan, other, seen)
    if absent:
        return Finding(f"{said} Not measured {at_lengths(absent)}.", won and None)
    return Finding(said, won)


def _word(one: Quality, two: Quality) -> str:
    if one.answer_ce == two.answer_ce and one.exact == two.exact:
        return "equal"
    return {True: "better", False: "worse", None: "mixed"}[outcome(one, two)]


def not_compared(run: Run, compared: Sequence[str]) -> Finding | None:
    """The baselines that the run lacks, so that silence is not taken for a win."""
    absent = [words for name, words in BASELINES.items() if name not in compared]
    if not absent:
        return None
    return Finding(f"Not compared with {', '.join(absent)}: this run has no figures of them.", None)


def extension(run: Run, three: Three) -> Finding | None:
    if run.extend is None or run.extend in run.lengths:
        return None
    d, p, u = three.at(run.extend)
    said = _side_by_side(d, p, u)
    if not said:
        return None
    return Finding(f"At {run.extend:,} tokens, never profiled: {said}.", outcome(p, u))


def multi_key(run: Run, three: Three) -> Finding | None:
    phrases, better = [], []
    for n in run.multi_key_lengths:
        d, p, u = (
            m.multi_key.get(n, Quality()) if m else Quality()
            for m in (three.dense, three.plan, three.uniform)
        )
        said = _side_by_side(d, p, u)
        if said:
            phrases.append(f"at {n:,} tokens {said}")
            better.append(outcome(p, u))
    if not phrases:
        return None
    return Finding(f"Two facts of one kind, told apart by owner: {'; '.join(phrases)}.", agree(better))


def _side_by_side(dense: Quality, plan: Quality, uniform: Quality) -> str:
    named = (("plan", plan), ("dense", dense), ("uniform window", uniform))
    parts = []
    measures: tuple[tuple[str, str, Callable[[Quality], float | None]], ...] = (
        ("exact match", ".0%", lambda q: q.exact),
        ("answer CE", ".3f", lambda q: q.answer_ce),
    )
    for title, digits, read in measures:
        known = [f"{name} {format(value, digits)}" for name, q in named if (value := read(q)) is not None]
        if read(plan) is not None and len(known) > 1:
            parts.append(f"{title} {', '.join(known)}")
    count = f" ({plan.needles} needles)" if parts and plan.needles else ""
    return "; ".join(parts) + count


def _unequal(plan: Method, other: Method, lengths: Sequence[int]) -> str:
    found = apart(plan, other, lengths)
    if found is None:
        return ""
    return f" Not at equal memory: the plan keeps {found[0]:.1%}, the other {found[1]:.1%}."
