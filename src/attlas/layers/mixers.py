"""The register of token mixers: what every one declares, and is tested for.

A mixer is a module that maps (B, N, width) to (B, N, width): `module(x, valid=None)`, or across sequences
`module(x, context, valid=None)` with `valid` (B, M) of the context. A stateful one also has `start(batch)`
and `advance(x, state)`: the same outputs piece by piece.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal

from torch import nn

__all__ = ["FORMS", "MIXERS", "MixerEntry", "Setting", "mixer_entry", "register_mixer"]

FORMS = ("NS", "CS", "NC", "CC")
"""Noncausal or causal, self or cross: the four patterns of CAB (arXiv 2210.07661)."""


@dataclass(frozen=True)
class Setting:
    """What a mixer is made for.

    width, heads; causal: outputs see no later input (in a cross form: no later query); cross: keys and values
    come from another sequence; length: the longest sequence, for mixers with parameters per position;
    grid: (height, width) of image tokens in row-major order, None for a sequence.
    """

    width: int
    heads: int
    causal: bool = True
    cross: bool = False
    length: int | None = None
    grid: tuple[int, int] | None = None

    @property
    def form(self) -> str:
        """The one of FORMS that is asked for."""
        return ("C" if self.causal else "N") + ("C" if self.cross else "S")

    @property
    def fixed_length(self) -> int:
        """`length`; ValueError where there is none."""
        if self.length is None:
            raise ValueError("this mixer is made for a fixed number of tokens: the setting needs a length")
        return self.length

    @property
    def fixed_grid(self) -> tuple[int, int]:
        """`grid`; ValueError where there is none."""
        if self.grid is None:
            raise ValueError("this mixer is made for the tokens of an image: the setting needs a grid")
        return self.grid


@dataclass(frozen=True)
class MixerEntry:
    """A mixer and what it promises; `make(setting)` builds the module for one of `forms`.

    stateful: its "CS" form has start and advance. padding: takes `valid`, and what stands in padding changes
    nothing. differentiable: "almost" where a choice (top-k, argmax) or a kink (relu) has no gradient;
    gradients are checked at random inputs, and "everywhere" also where all tokens are equal. permutes: the
    "NS" form commutes with permutations of the tokens. local: self forms see tokens nearby alone, as windows
    and short convolutions do. shares: in training mode rows of a batch share a choice or a statistic.
    tokens: how many it maps, "any" number (up to Setting.length, if it needs one), exactly the "length", or
    exactly those of the "grid"; the last two are for the form "NS", and the setting must tell.
    why_not: why a form is missing, in a sentence.
    """

    name: str
    make: Callable[[Setting], nn.Module]
    forms: frozenset[str]
    stateful: bool = False
    padding: bool = False
    differentiable: Literal["everywhere", "almost"] = "everywhere"
    permutes: bool = False
    local: bool = False
    shares: bool = False
    tokens: Literal["any", "length", "grid"] = "any"
    why_not: str = ""

    def __post_init__(self) -> None:
        wrong = sorted(self.forms - set(FORMS))
        if wrong or not self.forms:
            raise ValueError(
                f"mixer {self.name}: forms must be some of {', '.join(FORMS)}, got {wrong or 'none'}"
            )
        if self.stateful and "CS" not in self.forms:
            raise ValueError(f"mixer {self.name}: stateful needs the form CS, got {', '.join(self.forms)}")
        if self.tokens != "any" and self.forms != {"NS"}:
            raise ValueError(
                f"mixer {self.name}: with a fixed number of tokens it has the form NS alone, got "
                f"{', '.join(sorted(self.forms))}"
            )

    def build(self, setting: Setting) -> nn.Module:
        """The module for `setting`; ValueError: a form that the mixer lacks, a size that it misses."""
        if setting.form not in self.forms:
            why = f" ({self.why_not})" if self.why_not else ""
            have = ", ".join(form for form in FORMS if form in self.forms)
            raise ValueError(f"mixer {self.name} has no {setting.form} form, only {have}{why}")
        return self.make(setting)


MIXERS: dict[str, MixerEntry] = {}
"""Every mixer by its name; importing `attlas.layers` fills it."""


def register_mixer(entry: MixerEntry) -> MixerEntry:
    """Enter a mixer under its name; ValueError if the name is taken."""
    if entry.name in MIXERS:
        raise ValueError(f"a mixer named {entry.name!r} is already registered")
    MIXERS[entry.name] = entry
    return entry


def mixer_entry(name: str) -> MixerEntry:
    """The entry of a registered name, or of a class of yours as "package.module:Class".

    Such a class is made as Class(width, heads) and is taken to be causal (form "CS"), local and "almost"
    differentiable, or is itself a MixerEntry that says more. The entry has the name that was asked for.
    ValueError: an unknown name, a module or class that is not there.
    """
    if name in MIXERS:
        return MIXERS[name]
    module, found, attribute = name.partition(":")
    if not found:
        raise ValueError(
            f"mixer must be one of {', '.join(sorted(MIXERS))}, or package.module:Class, got {name!r}"
        )
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"mixer {name!r} cannot be imported: {error}") from error
    if isinstance(kind, MixerEntry):
        return replace(kind, name=name)  # its own name may be that of a registered mixer
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"mixer {name!r} must be a torch.nn.Module class or a MixerEntry, got {kind!r}")
    stateful = hasattr(kind, "start") and hasattr(kind, "advance")
    return MixerEntry(
        name,
        lambda setting: kind(setting.width, setting.heads),
        frozenset({"CS"}),
        stateful=stateful,
        # A class does not say whether it chooses, nor how far it sees.
        differentiable="almost",
        local=True,
        why_not="a class without an entry is taken to be causal, of one sequence",
    )
