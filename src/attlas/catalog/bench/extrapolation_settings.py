"""What a comparison of length extrapolation is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attlas._common.errors import UsageError
from attlas.catalog.bench.extrapolation_arms import ARMS

__all__ = ["ExtrapolationSettings"]


@dataclass(frozen=True)
class ExtrapolationSettings:
    """Which mixers, trained at the first of `lengths` and judged at all of them.

    mixers: of the bench's own arms, registered names, or "package.module:Class". steps: of training, 16
    windows each. windows: of held-out text, whose last bytes (as many as the first length) are judged.
    """

    mixers: tuple[str, ...] = tuple(name for name, arm in ARMS.items() if arm.usual)
    seeds: int = 3
    steps: int = 300
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    windows: int = 16

    def __post_init__(self) -> None:
        if not self.mixers:
            raise UsageError("give at least one of mixers")
        if len(set(self.mixers)) < len(self.mixers):
            raise UsageError(f"mixers must differ, got {', '.join(self.mixers)}")
        for name in ("seeds", "steps", "windows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        rising = all(a < b for a, b in zip(self.lengths, self.lengths[1:], strict=False))
        if len(self.lengths) < 2 or self.lengths[0] < 2 or not rising:
            raise UsageError(
                "lengths must be two or more that ascend, the first to train at (at least 2), got "
                f"{','.join(map(str, self.lengths))}"
            )

    @property
    def trained(self) -> int:
        """The length of training, and the bytes at the end of every window that are judged."""
        return self.lengths[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def command(self) -> str:
        """The command that measures this again, without what is as by default and where it is written."""
        usual = ExtrapolationSettings()
        words = ["attlas bench extrapolation"]
        if self.mixers != usual.mixers:
            words += [f"--mixer {name}" for name in self.mixers]
        for name in ("seeds", "steps", "lengths", "windows"):
            value = getattr(self, name)
            if value != getattr(usual, name):
                said = ",".join(map(str, value)) if isinstance(value, tuple) else value
                words.append(f"--{name} {said}")
        return " ".join(words)
