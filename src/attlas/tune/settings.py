"""What a tuning run is asked for, and the checks that are made before it starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from attlas._common.errors import UsageError

__all__ = ["Calibration", "Settings"]

# Twice the last of the default lengths, as far as the paper extends its own (8192 to 16384).
EXTENSION = 4096
TAGS = ("needle", "text", "passage")


@dataclass(frozen=True)
class Calibration:
    """Profiled items per length, by tag; their influence is kept apart and weighed only in the search.

    `needle`: contexts with `per_item` hidden facts, asked for. `text`: questions about the text itself,
    answered in up to `answer_tokens`. `passage`: the text alone, every token predicted, so that plain
    language modelling has a voice. `mixes`: weights of (needle, text, passage) to search with; the
    validation chooses among them.
    """

    needle: int = 5
    text: int = 1
    passage: int = 3
    per_item: int = 4
    answer_tokens: int = 48
    mixes: tuple[tuple[float, float, float], ...] = ((1.0, 0.1, 0.3), (1.0, 0.1, 1.0), (1.0, 0.1, 2.0))

    def __post_init__(self) -> None:
        if min(self.counts.values()) < 0 or not any(self.counts.values()):
            told = ", ".join(f"{count} {tag}" for tag, count in self.counts.items())
            raise UsageError(f"calibration needs at least one item and no negative count, got {told}")
        if not self.mixes or any(
            len(mix) != len(TAGS) or min(mix) < 0 or max(mix) <= 0 for mix in self.mixes
        ):
            raise UsageError(f"mixes are weights >= 0 of ({', '.join(TAGS)}), got {self.mixes}")

    @property
    def counts(self) -> dict[str, int]:
        """Profiled items per length, by tag."""
        return dict(zip(TAGS, (self.needle, self.text, self.passage), strict=True))

    def weights(self) -> list[dict[str, float]]:
        """The distinct mixes as weights by tag, of the tags that are profiled."""
        found: list[dict[str, float]] = []
        for mix in self.mixes:
            weights = {tag: weight for tag, weight in zip(TAGS, mix, strict=True) if self.counts[tag]}
            if any(weights.values()) and weights not in found:
                found.append(weights)
        return found or [dict.fromkeys((tag for tag in TAGS if self.counts[tag]), 1.0)]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's outcome; a folder holds the run of one of these.

    `extend`: longest length that the plan is made for; None: 4096, as far as the model's context reaches and
    never below the last of `lengths`, which means no extension. `needles` per length, `per_item` facts to a
    context; 0: no evaluation.
    `multi_key_needles`: facts of the multi-key variant at the shortest length, for dense, plan and uniform.
    `candidates`: Pareto plans to validate in all, `baseline_candidates` per baseline, `extra_candidates` per
    extra budget; `validations`: contexts of the unprofiled length on which, with `calibration.per_item` facts
    each. A single candidate, the middle of its front, is not validated.
    `text_rise`: nats by which the loss of plain text may rise over dense in the validation; a plan that
    exceeds it is taken only if all do. `block`, `sink`, `alpha_step`, `betas`: the rule grid,
    `tune.rules.rule_grid`.
    """

    budget: float = 0.5
    lengths: tuple[int, ...] = (1024, 2048)
    extend: int | None = None
    seed: int = 0
    needles: int = 40
    per_item: int = 5
    calibration: Calibration = Calibration()
    candidates: int = 9
    validations: int = 6
    text_rise: float = 0.01
    baseline_candidates: int = 3
    extra_candidates: int = 1
    extra_budgets: tuple[float, ...] = (0.35, 0.25)
    extra_needles: int = 20
    block: int = 64
    sink: int = 64
    alpha_step: int | None = None
    betas: int = 9
    multi_key_needles: int = 16
    timing: bool = True

    def __post_init__(self) -> None:
        budgets = (self.budget, *self.extra_budgets)
        for budget in budgets:
            if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
                raise UsageError(f"budget must lie in (0, 1], the share of the cache to keep, got {budget!r}")
        lengths = self.lengths
        if not lengths or any(b <= a for a, b in pairwise(lengths)) or lengths[0] < 1:
            raise UsageError(f"lengths must be given and increase, such as 1024,2048, got {_listed(lengths)}")
        if self.extend is not None and self.extend < lengths[-1]:
            raise UsageError(
                f"extend must be at least the last of lengths ({lengths[-1]}), got {self.extend}; give "
                f"{lengths[-1]} to plan for the profiled lengths only"
            )
        odd = [length for length in self.all_lengths if length % self.block]
        if odd:
            raise UsageError(
                f"lengths and extend must be multiples of the block of {self.block}, got {_listed(odd)}"
            )
        if self.validation in self.lengths or self.validation < 2 * self.block:
            raise UsageError(
                f"lengths {_listed(lengths)} leave no length between for the validation, which must not be "
                f"profiled; they must be at least {2 * self.block} tokens apart"
            )
        if self.needles < 0 or self.extra_needles < 0:
            raise UsageError(f"needles must be >= 0, got {self.needles} and {self.extra_needles} (extra)")
        for name in ("candidates", "baseline_candidates", "extra_candidates", "validations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.text_rise >= 0:
            raise UsageError(f"text_rise must be a number of nats >= 0, got {self.text_rise!r}")

    @property
    def extension(self) -> int | None:
        """The length beyond the profiled ones; None where there is none."""
        longest = EXTENSION // self.block * self.block if self.extend is None else self.extend
        return longest if longest > self.lengths[-1] else None

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Profiled lengths and the extension."""
        return self.lengths if self.extension is None else (*self.lengths, self.extension)

    def within(self, context: int | None) -> "Settings":
        """`extend` as a number: what was asked for, else as far as the model's context reaches."""
        if self.extend is not None:
            return self
        longest = self.all_lengths[-1]
        if context is not None:
            longest = min(longest, context // self.block * self.block)
        return replace(self, extend=max(longest, self.lengths[-1]))

    @property
    def validation(self) -> int:
        """The length of the validation, which is never profiled: between the last two lengths."""
        known = self.lengths if len(self.lengths) > 1 else (self.lengths[0] // 2, self.lengths[0])
        return (known[-2] + known[-1]) // 2 // self.block * self.block

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        data = asdict(self) | {"lengths": list(self.lengths), "extra_budgets": list(self.extra_budgets)}
        data["calibration"]["mixes"] = [list(mix) for mix in self.calibration.mixes]
        return data | {"validation": self.validation}

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """What another run's `to_dict` has otherwise, as "budget 0.4 there, 0.5 here"."""
        mine = self.to_dict()
        names = [field.name for field in fields(self)]
        return [
            f"{name} {other.get(name)} there, {mine[name]} here"
            for name in names
            if other.get(name) != mine[name]
        ]


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers)) or "none"
