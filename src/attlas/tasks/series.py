"""Long time series: two that the package statsmodels ships, or a user's CSV file; windows to forecast."""

import csv
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import torch
from torch import Tensor

from attlas._common.errors import UsageError

__all__ = ["SERIES", "Forecasts", "Series", "forecasts", "load_series"]

# Ends of the parts to train and to validate on, as shares of the series: 7 : 1 : 2 as in Informer.
SHARES = (0.7, 0.8)


@dataclass(frozen=True, eq=False)
class Series:
    """Values (n, channels), float64, at equal steps; marks (n, features) of the calendar in -0.5 .. 0.5.

    period: steps of its season, None if not known.
    """

    name: str
    licence: str
    origin: str
    values: Tensor
    marks: Tensor
    period: int | None = None


def load_series(name: str | Path) -> Series:
    """The series of a known name (see SERIES) or of a CSV file with a header and a row per time step.

    Columns that hold numbers are channels, in order; a first column that holds none (a date) is left out.
    Empty fields, "nan" and "NA" are filled linearly from their neighbours. Marks of a file: the place in the
    series. Raises UsageError for an unknown name, a missing package, a file without numbers or a damaged row.
    """
    if str(name) in SERIES:
        return SERIES[str(name)]()
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"unknown series {str(name)!r}: neither a name ({', '.join(sorted(SERIES))}) nor an existing "
            "CSV file"
        )
    rows = _rows(path)
    columns = [index for index in range(len(rows[0])) if index or any(_number(row[0]) for row in rows)]
    values = _filled([[_value(row[index], at, path) for index in columns] for at, row in enumerate(rows, 2)])
    marks = torch.linspace(-0.5, 0.5, len(rows)).reshape(-1, 1)
    return Series(path.name, "as given by the user", "file of the user", values, marks)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"series file {path} cannot be read as UTF-8 CSV: {error}") from error
    if len(rows) < 3:
        raise UsageError(f"series file {path} must have a header and at least 2 rows, got {len(rows)} lines")
    for at, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise UsageError(
                f"row {at} of {path} has {len(row)} fields, its header {len(rows[0])}; mend the file"
            )
    return rows[1:]


def _number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _value(text: str, row: int, path: Path) -> float:
    if text.strip().lower() in ("", "nan", "na"):
        return math.nan
    if not _number(text):
        raise UsageError(f"row {row} of {path} has {text!r} where a number is expected; mend the file")
    return float(text)


def _filled(rows: list[list[float]]) -> Tensor:
    """Gaps joined by straight lines, ends repeated."""
    import numpy as np

    values = np.asarray(rows, dtype=np.float64)
    steps = np.arange(len(values))
    for column in values.T:
        known = ~np.isnan(column)
        if not known.any():
            raise UsageError("a column of the series holds no number; leave it out")
        column[~known] = np.interp(steps[~known], steps[known], column[known])
    return torch.from_numpy(values)


def _shipped(name: str) -> list[list[str]]:
    """Rows of a data file of statsmodels, read without importing it (it would load pandas)."""
    found = importlib.util.find_spec("statsmodels")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"the series {name!r} is a file of the package statsmodels, which is not installed: "
            "pip install statsmodels, or give a CSV file of your own"
        )
    return _rows(Path(found.submodule_search_locations[0], "datasets", name, f"{name}.csv"))


def _elnino() -> Series:
    rows = _shipped("elnino")
    values = torch.tensor([float(field) for row in rows for field in row[1:]], dtype=torch.float64)
    month = torch.arange(len(values)) % 12
    origin = "sea surface temperature in degrees Celsius, Nino 1+2, monthly 1950-2010, NOAA; from statsmodels"
    marks = (month / 11 - 0.5).reshape(-1, 1).to(torch.float32)
    return Series("elnino", "public domain", origin, values.reshape(-1, 1), marks, period=12)


def _co2() -> Series:
    rows = _shipped("co2")
    values = _filled([[float(field) if field else math.nan] for _, field in rows])
    first = rows[0][0]
    began = date(int(first[:4]), int(first[4:6]), int(first[6:]))
    weeks = [(began + timedelta(weeks=index)).isocalendar().week for index in range(len(rows))]
    marks = ((torch.tensor(weeks) - 1) / 52 - 0.5).reshape(-1, 1)
    origin = "atmospheric CO2 at Mauna Loa in ppmv, weekly 1958-2001, CDIAC; from statsmodels"
    return Series("co2", "public domain", origin, values, marks, period=52)


SERIES: dict[str, Callable[[], Series]] = {"elnino": _elnino, "co2": _co2}


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Windows of a standardised series: the first `length` steps are given, `horizon` are asked for.

    values (n, channels) and marks (n, features), float32, standardised by mean and standard deviation of the
    part to train on; train, validation and test: first steps of the windows. Validation and test windows ask
    only for steps of their own part, and are given steps from before it, as in the source.
    """

    values: Tensor
    marks: Tensor
    length: int
    horizon: int
    train: Tensor
    validation: Tensor
    test: Tensor

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (b, length, channels), marks (b, length + horizon, features), answers (b, horizon, ...)."""
        at = starts[:, None] + torch.arange(self.length + self.horizon)
        found = self.values[at]
        return found[:, : self.length], self.marks[at], found[:, self.length :]

    def batches(self, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless batches of windows to train on, drawn with replacement."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.windows(self.train[torch.randint(0, len(self.train), (count,), generator=generator)])


def forecasts(series: Series, length: int, horizon: int) -> Forecasts:
    """Cut a series into windows; ValueError where a part is too short for one."""
    if length < 1 or horizon < 1:
        raise ValueError(f"length and horizon must be at least 1 step, got {length} and {horizon}")
    count = len(series.values)
    trained, validated = (int(share * count) for share in SHARES)

    def starts_of(first: int, end: int) -> Tensor:
        # Windows that ask for steps from `first` + length on and before `end`.
        first = max(0, first)
        return torch.arange(first, max(first, end - length - horizon + 1))

    parts = {
        "training": starts_of(0, trained),
        "validation": starts_of(trained - length, validated),
        "test": starts_of(validated - length, count),
    }
    for name, starts in parts.items():
        if not len(starts):
            raise ValueError(
                f"series {series.name} has {count} steps: its {name} part is too short for windows of "
                f"{length} steps and {horizon} to forecast"
            )
    given = series.values[:trained]
    scaled = (series.values - given.mean(0)) / given.std(0, unbiased=False).clamp_min(1e-12)
    return Forecasts(
        scaled.to(torch.float32), series.marks.to(torch.float32), length, horizon, *parts.values()
    )
