"""What a comparison of static patterns is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attlas._common.errors import UsageError

__all__ = ["DENSITY", "Settings", "Small"]

DENSITY = 0.25
LEAST = 64  # tokens below which patterns cannot be told apart


@dataclass(frozen=True)
class Small:
    """The small language model and its training, the same for every pattern."""

    length: int = 256
    batch: int = 8
    steps: int = 300
    layers: int = 2
    width: int = 64
    heads: int = 4
    test_windows: int = 64

    def to_dict(self) -> dict[str, int]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Settings:
    """What is compared. `density` None: on a sequence that of the plan, or DENSITY without one, on a grid
    that of Radial, whose size cannot be chosen.

    grid: frames, height, width; None: no grid. heads: of the timed call and of patterns per head. seeds:
    small models trained per pattern, 0 for none. needles: facts asked of the pretrained model.
    """

    length: int = 4096
    density: float | None = None
    layers: int = 4
    grid: tuple[int, int, int] | None = (48, 8, 16)
    heads: int = 8
    timing: bool = True
    seeds: int = 0
    needles: int = 40
    per_item: int = 5
    seed: int = 0
    data: str = "python-docs"
    small: Small = Small()

    def __post_init__(self) -> None:
        if self.length < LEAST:
            raise UsageError(f"length must be at least {LEAST} tokens, got {self.length}")
        if self.density is not None and not 0 < self.density < 1:
            raise UsageError(
                f"density is a share of the pairs and must lie between 0 and 1, got {self.density}"
            )
        if self.grid is not None and min(self.grid) < 1:
            raise UsageError(f"grid must be FRAMESxHEIGHTxWIDTH, each at least 1, got {self.grid}")
        for name, least in (("layers", 1), ("heads", 1), ("seeds", 0), ("needles", 1), ("per_item", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"grid": None if self.grid is None else list(self.grid)}

    def command(self, model: str | None = None, plan: Path | None = None) -> str:
        """The command that measures this again, without what is as by default and where it is written."""
        given: dict[str, Any] = {
            name: getattr(self, name) for name in ("length", "density", "layers", "grid")
        }
        given |= {"model": model, "plan": None if plan is None else plan.name if plan.is_absolute() else plan}
        given |= {"needles": self.needles, "seeds": self.seeds}
        words = ["attlas bench patterns"]
        for name, value in given.items():
            if value != getattr(Settings, name, None):
                shown = "x".join(map(str, value or [])) or "''" if name == "grid" else value
                words.append(f"--{name} {shown}")
        return " ".join(words) + ("" if self.timing else " --no-timing")
