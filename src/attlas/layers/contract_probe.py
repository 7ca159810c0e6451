"""A small mixer and inputs for it, as the checks of `contract_checks` need them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attlas.layers.mixers import MixerEntry, Setting

__all__ = ["Probe", "differs", "gap"]

TOLERANCE = 1e-8  # of float64 outputs, relative to the largest where that is above 1
DISTURBED = 0.1  # standard deviation of what is added to the weights


@dataclass(eq=False)
class Probe:
    """One form of a mixer in float64, in evaluation mode unless training is asked for, and inputs for it."""

    entry: MixerEntry
    setting: Setting
    length: int
    normalised: bool = False
    training: bool = False
    module: nn.Module = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.module = self.entry.build(self.setting).double().train(self.training)
        with torch.no_grad():
            # A path that starts at zero would hide a leak.
            for weight in self.module.parameters():
                weight.add_(DISTURBED * self.random(*weight.shape))

    @property
    def form(self) -> str:
        return self.setting.form

    @property
    def fixed(self) -> bool:
        """Whether it takes `length` tokens and no other number."""
        return self.setting.grid is not None or self.entry.tokens != "any"

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.length,) if self.fixed else (1, 2, 7, self.length)

    @property
    def mode(self) -> str:
        """What a finding adds."""
        return " in training mode" if self.training else ""

    def longer(self, length: int) -> "Probe":
        """The same form made anew for more tokens."""
        return replace(self, setting=replace(self.setting, length=length), length=length)

    def in_training(self) -> "Probe | None":
        """The same form made anew in training mode; None if no two runs are alike there, as with dropout."""
        trained = replace(self, training=True)
        given = trained.inputs(2)
        return None if gap(trained.run(*given), trained.run(*given)) > TOLERANCE else trained

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


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative where outputs are large; infinite for other shapes or no number."""
    if found.shape != wanted.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    largest = (found - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)
    return float(largest) if torch.isfinite(largest) else float("inf")


def differs(found: Tensor, wanted: Tensor, text: str) -> list[str]:
    """`text` with the difference where there is one."""
    by = gap(found, wanted)
    return [f"{text} (by {by:.1e})"] if by > TOLERANCE else []
