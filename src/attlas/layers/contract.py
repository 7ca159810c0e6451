"""What a token mixer declares, checked on a small one: `check_mixer` lists where it breaks its word.

The four patterns and the test by prefixes are CAB's (arXiv 2210.07661). Legend: B batch, N tokens, M context.
"""

from dataclasses import dataclass

import torch

from attlas.layers.contract_checks import CHECKS
from attlas.layers.contract_probe import Probe
from attlas.layers.mixers import FORMS, MixerEntry, Setting

__all__ = ["CHECKS", "Finding", "check_mixer"]

LENGTH = 37  # tokens: odd, and more than two windows of 16
GRID = (5, 7)  # of image tokens, for mixers that need one: odd, and no square


@dataclass(frozen=True)
class Finding:
    """A promise that a mixer does not keep: in which of FORMS, which check of CHECKS found it, and how."""

    form: str
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.form} {self.check}: {self.text}"


def check_mixer(
    entry: MixerEntry,
    *,
    forms: tuple[str, ...] | None = None,
    width: int = 8,
    heads: int = 2,
    length: int = LENGTH,
    grid: tuple[int, int] | None = None,
    normalised: bool = False,
    checks: tuple[str, ...] | None = None,
) -> list[Finding]:
    """Make the mixer small, in float64, and check what its entry declares.

    In evaluation mode; that no output sees the future or other rows, also in training mode where two runs are
    alike (no dropout).

    forms: which of its forms; all by default. checks: which of CHECKS; all that apply by default.
    grid: of image tokens, for noncausal mixers that take one (then `length` is its size); GRID for those
    that need one.
    normalised: also that weights sum to 1, so that equal keys and values give equal outputs; no entry says so
    of itself.

    Returns findings, none if all is kept; an error that the mixer raises is a finding. Cost: about 150
    forward passes per form, up to three seconds. ValueError: an unknown form or check.
    """
    for name, given, known in (("forms", forms, FORMS), ("checks", checks, tuple(CHECKS))):
        wrong = sorted(set(given or ()) - set(known))
        if wrong:
            raise ValueError(f"check_mixer: {name} must be of {', '.join(known)}, got {', '.join(wrong)}")
    findings = []
    if entry.tokens == "grid" and grid is None:
        grid = GRID
    if entry.forms != frozenset(FORMS) and not entry.why_not:
        missing = ", ".join(form for form in FORMS if form not in entry.forms)
        findings.append(Finding(missing, "forms", "missing, and why_not does not say why"))
    for form in FORMS:
        if form not in entry.forms or (forms is not None and form not in forms):
            continue
        noncausal = form == "NS"
        tokens = grid[0] * grid[1] if grid and noncausal else length
        setting = Setting(
            width, heads, causal=form[0] == "C", cross=form[1] == "C", length=tokens,
            grid=grid if noncausal else None,
        )  # fmt: skip
        findings += _check_form(entry, setting, tokens, normalised, checks)
    return findings


def _check_form(
    entry: MixerEntry, setting: Setting, length: int, normalised: bool, checks: tuple[str, ...] | None
) -> list[Finding]:
    findings = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            probe = Probe(entry, setting, length, normalised)
        except Exception as error:
            return [Finding(setting.form, "made", f"{type(error).__name__}: {error}")]
        for name, check in CHECKS.items():
            if checks is not None and name not in checks:
                continue
            try:
                with torch.set_grad_enabled(name == "gradient"):
                    findings += [Finding(setting.form, name, text) for text in check(probe)]
            except Exception as error:
                findings.append(Finding(setting.form, name, f"{type(error).__name__}: {error}"))
    return findings
