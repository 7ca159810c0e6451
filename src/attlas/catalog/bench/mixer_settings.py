"""What a comparison of token mixers is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attlas._common.errors import UsageError
from attlas.catalog.bench.mixer_speed import FITTED
from attlas.catalog.bench.mixer_tasks import TASKS

__all__ = ["MixerSettings"]


@dataclass(frozen=True)
class MixerSettings:
    """Which mixers on which tasks, at which sizes.

    mixers: registered names, or "package.module:Class". widths: of the networks, each mixer is trained at all
    of them; heads: of every mixer. rates: tried with a seed and data of their own, the best one is taken for
    all `seeds`. steps: of the reference, in place of the tasks' own. lengths: for time and memory of one
    layer of width `speed_width` and `speed_heads`, at least 4 for the fits; none: not measured.
    """

    mixers: tuple[str, ...] = ("softmax", "window", "based_linear")
    tasks: tuple[str, ...] = ("mqar", "text")
    seeds: int = 3
    rates: tuple[float, ...] = (1e-3, 3e-3)
    steps: int | None = None
    widths: tuple[int, ...] = (64,)
    heads: int = 2
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    speed_width: int = 256
    speed_heads: int = 4

    def __post_init__(self) -> None:
        for name in ("mixers", "tasks", "rates", "widths", "lengths"):
            given = getattr(self, name)
            if not given and name != "lengths":
                raise UsageError(f"give at least one of {name}")
            if len(set(given)) < len(given):
                raise UsageError(f"{name} must differ, got {', '.join(map(str, given))}")
        for task in self.tasks:
            if task not in TASKS:
                raise UsageError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if any(not 0 < rate < 1 for rate in self.rates):
            raise UsageError(f"rates are learning rates between 0 and 1, got {_said(self.rates)}")
        for name, least in (("seeds", 1), ("steps", 1), ("heads", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise UsageError(f"{name} must be at least {least}, got {number}")
        if any(width < self.heads or width % self.heads for width in self.widths):
            raise UsageError(f"widths must be multiples of the {self.heads} heads, got {_said(self.widths)}")
        if any(length < 1 for length in self.lengths) or list(self.lengths) != sorted(self.lengths):
            raise UsageError(f"lengths must be at least 1 and ascend, got {_said(self.lengths)}")
        if 0 < len(self.lengths) < FITTED:
            raise UsageError(
                f"lengths must be at least {FITTED}, through fewer any curve goes, or none to leave out time "
                f"and memory; got {_said(self.lengths)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def command(self) -> str:
        """The command that measures this again, without what is as by default and where it is written."""
        usual = MixerSettings()
        words = ["attlas bench mixers"]
        for option, name in (("mixer", "mixers"), ("task", "tasks")):
            if getattr(self, name) != getattr(usual, name):
                words += [f"--{option} {value}" for value in getattr(self, name)]
        for name in ("seeds", "rates", "steps", "widths", "heads", "lengths"):
            value = getattr(self, name)
            if value != getattr(usual, name):
                words.append(f"--{name} {_said(value) or repr('') if isinstance(value, tuple) else value}")
        return " ".join(words)


def _said(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
