"""One finding on released code: what the paper says, what the file computes, and the figures that show it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attlas.catalog.claim import Values, spread

__all__ = ["Released", "check_values", "filled"]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
NOT_COMPARED = "The released file was read; it was not run beside this library's form."


@dataclass(frozen=True)
class Released:
    """What the released code of one system really computes.

    system: key of its card. point: the finding in a few words, the heading on the page. repository
    "owner/name", `file` and `function` there; `commit` that was read. `paper`, `release`, `consequence`: one
    or two sentences each. `switch`: how the released behaviour is asked for here. `figures(seed)`: named
    finite numbers, computed with this library's form of the release in seconds. `shown`: the sentence with
    the figures, a format string over their names (no dots or brackets in them): `"{rows lost:.0f} of
    {rows:.0f} rows"` gives means over the seeds, `"{error:.3f±}"` mean ± standard deviation. `compared`: what
    was compared with the released file itself, and how well it agreed; the default says that it was not.

    Raises ValueError, naming the field, where one is empty or has the wrong form.
    """

    system: str
    point: str
    repository: str
    file: str
    function: str
    paper: str
    release: str
    consequence: str
    switch: str
    figures: Callable[[int], Mapping[str, float]]
    shown: str
    commit: str | None = None
    compared: str = NOT_COMPARED

    def __post_init__(self) -> None:
        for field, text in self.texts().items():
            if text is not None and not text.strip():
                raise ValueError(f"released {self.system!r}: {field} is empty; every entry says it")
        if not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(
                f"released {self.system!r}: repository reads 'owner/name', got {self.repository!r}"
            )
        if self.commit is not None and not _COMMIT.fullmatch(self.commit):
            raise ValueError(
                f"released {self.system!r}: commit is 40 hexadecimal digits, got {self.commit!r}"
            )

    def texts(self) -> dict[str, Any]:
        """The fields that are text, as JSON values."""
        names = "system point repository file function paper release consequence switch shown commit compared"
        return {name: getattr(self, name) for name in names.split()}

    @property
    def name(self) -> str:
        """Names a file of this entry: the system and the point."""
        return f"{self.system}-{re.sub('[^a-z0-9]+', '_', self.point.lower()).strip('_')}"


def check_values(entry: Released, seed: int, values: Mapping[str, float]) -> dict[str, float]:
    """`values` as floats; ValueError where one is not finite."""
    found = {name: float(value) for name, value in values.items()}
    bad = sorted(name for name, value in found.items() if not math.isfinite(value))
    if bad:
        raise ValueError(
            f"released {entry.name}: seed {seed} gave values that are not finite: {', '.join(bad)}"
        )
    return found


def filled(entry: Released, runs: Sequence[Values]) -> str:
    """The sentence `shown` with the figures of the runs; ValueError names a figure that no run has."""
    table = spread(runs)
    figures = {name: _Figure(row["mean"], row["sd"]) for name, row in table.items()}
    try:
        return entry.shown.format_map(figures)
    except KeyError as error:
        raise ValueError(
            f"released {entry.name}: shown names the figure {error}, measured are {', '.join(figures)}"
        ) from None


class _Figure:
    """Formats as its mean, and with a style that ends in ± as mean ± standard deviation."""

    def __init__(self, mean: float, sd: float) -> None:
        self.mean, self.sd = mean, sd

    def __format__(self, style: str) -> str:
        if style.endswith("±"):
            return f"{format(self.mean, style[:-1])} ± {format(self.sd, style[:-1])}"
        return format(self.mean, style)
