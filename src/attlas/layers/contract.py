"""What a token mixer declares, checked on a small one: `check_mixer` lists where it breaks its word.

The four patterns and the test by prefixes are CAB's (arXiv 2210.07661). Legend: B batch, N tokens, M context.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attlas.layers.mixers import FORMS, MixerEntry, Setting

__all__ = ["CHECKS", "Finding", "check_mixer"]

TOLERANCE = 1e-8  # of float64 outputs, relative to the largest where that is above 1
DISTURBED = 0.1  # standard deviation of what is added to the weights
PIECES = ((1,), (3,), (5,), (2, 7, 1))  # tokens per step of incremental runs, over and over
SHORT = 5  # tokens in the check of gradients


@dataclass(frozen=True)
class Finding:
    """A promise that a mixer does not keep: in which of FORMS, which check of CHECKS found it, and how."""

    form: str
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.form} {self.check}: {self.text}"


@dataclass(eq=False)
class _Probe:
    """One form of a mixer in float64 and evaluation mode, and inputs for it."""

    entry: MixerEntry
    setting: Setting
    length: int
    normalised: bool
    module: nn.Module = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.module = self.entry.build(self.setting).double().eval()
        with torch.no_grad():
            # A path that starts at zero would hide a leak.
            for weight in self.module.parameters():
                weight.add_(DISTURBED * self.random(*weight.shape))

    @property
    def form(self) -> str:
        return self.setting.form

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def inputs(self, batch: int, length: int | None = None) -> tuple[Tensor, ...]:
        """(x,), or (x, context) with another number of tokens."""
        count = self.length if length is None else length
        counts = (count, max(1, count - 2)) if self.setting.cross else (count,)
        return tuple(self.random(batch, tokens, self.setting.width) for tokens in counts)

    def run(self, *inputs: Tensor, valid: Tensor | None = None) -> Tensor:
        named = {} if valid is None else {"valid": valid}
        out: Tensor = self.module(*inputs, **named)
        return out

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.length,) if self.setting.grid else (1, 2, 7, self.length)


def check_mixer(
    entry: MixerEntry,
    *,
    forms: tuple[str, ...] | None = None,
    width: int = 8,
    heads: int = 2,
    length: int = 13,
    grid: tuple[int, int] | None = None,
    normalised: bool = False,
    checks: tuple[str, ...] | None = None,
) -> list[Finding]:
    """Make the mixer small, in float64 and evaluation mode, and check what its entry declares.

    forms: which of its forms; all by default. checks: which of CHECKS; all that apply by default.
    grid: of image tokens, for noncausal mixers that need one (then `length` is its size).
    normalised: also that weights sum to 1, so that equal keys and values give equal outputs; no entry says so
    of itself.

    Returns findings, none if all is kept; an error that the mixer raises is a finding. Cost: about 100
    forward passes per form, a second or two. ValueError: an unknown form or check.
    """
    for name, given, known in (("forms", forms, FORMS), ("checks", checks, tuple(CHECKS))):
        wrong = sorted(set(given or ()) - set(known))
        if wrong:
            raise ValueError(f"check_mixer: {name} must be of {', '.join(known)}, got {', '.join(wrong)}")
    findings = []
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
            probe = _Probe(entry, setting, length, normalised)
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


def _gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative where outputs are large; infinite for other shapes or no number."""
    if found.shape != wanted.shape:
        return float("inf")
    gap = (found - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)
    return float(gap) if torch.isfinite(gap) else float("inf")


def _differs(found: Tensor, wanted: Tensor, text: str) -> list[str]:
    gap = _gap(found, wanted)
    return [f"{text} (by {gap:.1e})"] if gap > TOLERANCE else []


def _shape(probe: _Probe) -> Iterator[str]:
    """Any number of tokens, one and odd ones too: an output of the queries' shape, all numbers."""
    for length in probe.lengths:
        given = probe.inputs(2, length)
        out = probe.run(*given)
        if out.shape != given[0].shape:
            yield f"{length} tokens: the output has shape {tuple(out.shape)}, not {tuple(given[0].shape)}"
        elif not torch.isfinite(out).all():
            yield f"{length} tokens: the output is not finite"


def _repeats(probe: _Probe) -> Iterator[str]:
    """The same input gives the same output again."""
    given = probe.inputs(2)
    yield from _differs(probe.run(*given), probe.run(*given), "a second run gives another output")


def _future(probe: _Probe) -> Iterator[str]:
    """Causal forms: output i neither depends on later tokens nor on how many there are."""
    if not probe.setting.causal:
        return
    x, *context = probe.inputs(2)
    whole = probe.run(x, *context)
    for count in range(1, x.shape[1]):
        text = f"the output of the first {count} tokens changes with the {x.shape[1] - count} after them"
        other = torch.cat([x[:, :count], 3 * probe.random(*x[:, count:].shape)], 1)
        found = _differs(probe.run(other, *context)[:, :count], whole[:, :count], text)
        text = f"the first {count} tokens alone give another output than before {x.shape[1] - count} more"
        found += _differs(probe.run(x[:, :count], *context), whole[:, :count], text)
        if found:
            yield from found
            return


def _batch(probe: _Probe) -> Iterator[str]:
    """A row's output does not depend on the other rows of its batch."""
    given = probe.inputs(3)
    together = probe.run(*given)
    for row in range(3):
        alone = probe.run(*(part[row : row + 1] for part in given))
        yield from _differs(together[row : row + 1], alone, f"row {row} differs from the same row alone")


def _padding(probe: _Probe) -> Iterator[str]:
    """What stands in padding changes nothing, wherever it is; padding behind the end is as if cut off."""
    if not probe.entry.padding:
        return
    given = probe.inputs(2)
    count = given[-1].shape[1]
    steps = torch.arange(count)
    short = max(1, count - 3)
    masks = {
        "behind": torch.stack([steps < count, steps < short]),
        "in front": torch.stack([steps >= 0, steps >= count - short]),
        "in between": torch.stack([steps % 3 != 1, steps % 4 != 2]),
    }
    for where, valid in masks.items():
        noise = 10 * probe.random(*given[-1].shape)
        other = (*given[:-1], torch.where(valid[..., None], given[-1], noise))
        first, second = probe.run(*given, valid=valid), probe.run(*other, valid=valid)
        if not probe.setting.cross:
            first, second = first[valid], second[valid]
        yield from _differs(second, first, f"what stands in padding {where} changes the output")
    cut = (*(part[1:] for part in given[:-1]), given[-1][1:, :short])
    padded = probe.run(*given, valid=masks["behind"])[1:]
    padded = padded if probe.setting.cross else padded[:, :short]
    yield from _differs(padded, probe.run(*cut), "padding behind the end differs from cutting it off")


def _incremental(probe: _Probe) -> Iterator[str]:
    """Stateful: piece by piece as all at once, for any pieces; a state serves twice and by rows."""
    if probe.form != "CS" or not probe.entry.stateful:
        return
    module: Any = probe.module
    (x,) = probe.inputs(2)
    whole = probe.run(x)
    for sizes in PIECES:
        state, at = module.start(2), 0
        outs: list[Tensor] = []
        while at < x.shape[1]:
            size = sizes[len(outs) % len(sizes)]
            out, state = module.advance(x[:, at : at + size], state)
            outs.append(out)
            at += size
        text = f"pieces of {', '.join(map(str, sizes))} tokens differ from all at once"
        yield from _differs(torch.cat(outs, 1), whole, text)
        if state.position.tolist() != [x.shape[1]] * 2:
            yield f"the state stands at {state.position.tolist()} after {x.shape[1]} tokens"
    middle = x.shape[1] // 2
    _, state = module.advance(x[:, :middle], module.start(2))
    rest = x[:, middle:]
    first, _ = module.advance(rest, state)
    again, _ = module.advance(rest, state)
    yield from _differs(again, first, "going on twice from one state differs: the first time changed it")
    swapped, _ = module.advance(rest.flip(0), state.index_select(torch.tensor([1, 0])))
    yield from _differs(swapped.flip(0), first, "rows taken from a state by index_select are not its rows")


def _gradient(probe: _Probe) -> Iterator[str]:
    """Gradients of inputs and weights are those of finite differences."""
    given = tuple(part.requires_grad_() for part in probe.inputs(2, None if probe.setting.grid else SHORT))
    weights = {name: weight.detach().requires_grad_() for name, weight in probe.module.named_parameters()}

    def run(*tensors: Tensor) -> Tensor:
        named = dict(zip(weights, tensors[len(given) :], strict=True))
        out: Tensor = functional_call(probe.module, named, tensors[: len(given)])
        return out

    torch.autograd.gradcheck(run, (*given, *weights.values()), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)
    yield from ()


def _permutes(probe: _Probe) -> Iterator[str]:
    """Noncausal self, where declared: permuted tokens give the permuted output."""
    if probe.form != "NS" or not probe.entry.permutes:
        return
    (x,) = probe.inputs(2)
    order = torch.randperm(x.shape[1], generator=probe.generator)
    yield from _differs(
        probe.run(x[:, order]), probe.run(x)[:, order], "permuted tokens do not give the permuted output"
    )


def _constant(probe: _Probe) -> Iterator[str]:
    """Normalised: the mean of equal values is that value, however many there are and whoever asks."""
    if not probe.normalised:
        return
    *query, source = probe.inputs(2)
    out = probe.run(*query, source[:, :1].expand_as(source))
    yield from _differs(out, out[:, :1].expand_as(out), "equal tokens do not give equal outputs")


CHECKS: dict[str, Callable[[_Probe], Iterator[str]]] = {
    "shape": _shape,
    "repeats": _repeats,
    "future": _future,
    "batch": _batch,
    "padding": _padding,
    "incremental": _incremental,
    "gradient": _gradient,
    "permutes": _permutes,
    "constant": _constant,
}
"""The checks by name, in order; each has its sentence."""
