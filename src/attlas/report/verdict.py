"""The verdict of a run in plain words, every sentence computed from its numbers, whichever way they fall."""

from __future__ import annotations

from dataclasses import dataclass

from attlas.report import cost_findings as costs
from attlas.report import findings as on
from attlas.report.compare import apart, fewest_needles, kept_share
from attlas.report.findings import Finding, Three
from attlas.report.run import Run

__all__ = ["Finding", "Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """A headline and the findings behind it."""

    headline: str
    findings: tuple[Finding, ...]


def verdict(run: Run) -> Verdict:
    """What the run shows for the plan against dense and against each baseline, in both directions."""
    dense, plan = run.method("dense"), run.method("plan")
    if plan is None or dense is None:
        return Verdict("No verdict: it takes a plan and the dense model, and this run lacks one of them.", ())
    three = Three(dense, plan, run.method("uniform"))
    baselines = [m for m in run.main_methods if m.name not in ("dense", "plan", "dense_attlas")]
    others = {m.name: on.against(run, plan, m) for m in baselines}
    findings = (
        on.exact(run, three),
        on.few_needles(run, three),
        on.answers(run, three),
        on.text(run, three),
        *others.values(),
        on.not_compared(run, [name for name, found in others.items() if found]),
        on.extension(run, three),
        on.multi_key(run, three),
        costs.memory(run, three),
        costs.speed(run, three, "prefill"),
        costs.speed(run, three, "decode"),
    )
    return Verdict(_headline(run, three), tuple(finding for finding in findings if finding is not None))


def _headline(run: Run, three: Three) -> str:
    lengths = run.judged_lengths
    densities = [d for n in lengths if (d := three.plan.density_at(n)) is not None]
    memory = f"With {max(densities):.0%} of the KV memory" if densities else "At its budget"
    share = kept_share(three.dense, three.plan, lengths)
    if share is None:
        return f"{memory}, no share of the dense model's needles can be given: see the table."
    least = fewest_needles((three.dense, three.plan, three.uniform), lengths)
    few = (
        f", on only {least} needle{'s' * (least > 1)} per length" if least and least < on.FEW_NEEDLES else ""
    )
    text = f"{memory} the plan keeps {share:.0%} of the dense model's exact matches"
    if share > 1:
        text = f"{memory} the plan finds more needles than the dense model ({share:.0%} of its exact matches)"
    other = kept_share(three.dense, three.uniform, lengths) if three.uniform else None
    if three.uniform is None or other is None:
        return f"{text}{few}; no uniform window was measured beside it."
    unequal = apart(three.plan, three.uniform, lengths)
    window = f"a uniform window with {unequal[1]:.0%}" if unequal else "a uniform window of the same size"
    if other == share:
        return f"{text}{few}, and so does {window}."
    return f"{text}{'; ' if other < share else ', but '}{window} keeps {other:.0%}{few}."
