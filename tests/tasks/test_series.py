"""Series from files and packages, and windows to forecast."""

import importlib.util
import math

import pytest
import torch

from attlas._common.errors import UsageError
from attlas.tasks import forecasts, load_series
from attlas.tasks.series import Series
from skips import needs


def write(folder, text):
    path = folder / "mine.csv"
    path.write_text(text)
    return path


def line(count, channels=1):
    values = torch.arange(float(count), dtype=torch.float64).reshape(-1, 1).repeat(1, channels)
    return Series("line", "none", "made up", values, torch.zeros(count, 1))


def test_a_file_of_the_user(tmp_path):
    found = load_series(write(tmp_path, "day,a,b\nMon,1,5\nTue,,6\nWed,NA,7\nThu,4,nan\n"))
    assert found.values.tolist() == [[1, 5], [2, 6], [3, 7], [4, 7]], "gaps are joined, ends repeated"
    assert found.marks.flatten().tolist() == pytest.approx([-0.5, -1 / 6, 1 / 6, 0.5])
    numbers = load_series(write(tmp_path, "a,b\n1,2\n3,4\n"))
    assert numbers.values.tolist() == [[1, 2], [3, 4]], "a first column of numbers is a channel"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n1\n", "must have a header and at least 2 rows, got 2 lines"),
        ("a,b\n1,2\n3\n", "row 3 of .*mine.csv has 1 fields, its header 2"),
        ("a,b\n1,2\n3,x\n", "row 3 of .*mine.csv has 'x' where a number is expected"),
        ("day,b\nx,\ny,\n", "a column of the series holds no number"),
    ],
)
def test_damaged_files(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        load_series(write(tmp_path, text))


def test_unknown_names_and_a_missing_package(monkeypatch):
    with pytest.raises(
        UsageError, match=r"unknown series 'sun': neither a name \(co2, elnino\) nor an existing"
    ):
        load_series("sun")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match="'co2' is a file of the package statsmodels, which is not installed"
    ):
        load_series("co2")


@needs("statsmodels")
def test_shipped_series():
    elnino, co2 = load_series("elnino"), load_series("co2")
    assert elnino.values.shape == (732, 1) and co2.values.shape == (2284, 1)
    assert elnino.values[0, 0] == 23.11 and elnino.values[12, 0] == 24.19
    assert elnino.marks[0, 0] == -0.5 and elnino.marks[11, 0] == 0.5 and elnino.marks[12, 0] == -0.5
    # Week 6 of the file has no value: half way between 316.9 and 317.5.
    assert co2.values[6, 0] == pytest.approx((316.9 + 317.5) / 2) and torch.isfinite(co2.values).all()
    assert co2.marks.min() == -0.5 and co2.marks.max() <= 0.5


def test_windows_ask_only_for_steps_of_their_part():
    data = forecasts(line(100), 10, 5)
    assert (data.train[0], data.train[-1]) == (0, 55)
    assert (data.validation[0], data.validation[-1]) == (60, 65)
    assert (data.test[0], data.test[-1]) == (70, 85)
    given = torch.arange(70.0)
    scaled = (torch.arange(100.0) - given.mean()) / given.std(unbiased=False)
    values, marks, answers = data.windows(data.test)
    assert values.shape == (16, 10, 1) and marks.shape == (16, 15, 1) and answers.shape == (16, 5, 1)
    assert torch.allclose(values[0, :, 0], scaled[70:80]) and torch.allclose(answers[-1, :, 0], scaled[95:])
    batch = next(data.batches(4, seed=3))
    assert torch.equal(batch[0], next(data.batches(4, seed=3))[0]) and batch[0].shape == (4, 10, 1)


def test_a_constant_series_stays_finite():
    flat = Series("flat", "none", "made up", torch.ones(60, 2, dtype=torch.float64), torch.zeros(60, 1))
    assert math.isfinite(forecasts(flat, 5, 2).values.abs().max())


def test_window_errors():
    with pytest.raises(
        ValueError, match="line has 40 steps: its training part is too short for windows of 30"
    ):
        forecasts(line(40), 30, 5)
    with pytest.raises(ValueError, match="validation part is too short"):
        forecasts(line(100), 10, 20)
    with pytest.raises(ValueError, match="length and horizon must be at least 1 step, got 0 and 3"):
        forecasts(line(40), 0, 3)
