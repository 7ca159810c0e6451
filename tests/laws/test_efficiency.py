"""Efficiency lengths against the two that can be recomputed from CAB's released costs."""

import pytest

from attlas.laws import efficiency_length

# Milliseconds and MB of softmax attention and ABC, from the cost table in Shark-NLP/CAB (scripts).
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
TIME = {
    "vanilla": (0.472, 0.628, 0.721, 0.981, 3.67, 18.437),
    "abc": (0.648, 0.59, 0.602, 0.91, 1.006, 1.509),
}
MEMORY = {"vanilla": (81, 265, 952, 3604, 14020, 55300), "abc": (42, 80, 156, 308, 612, 1220)}


def test_published_lengths_of_abc():
    assert round(efficiency_length(LENGTHS, TIME["vanilla"], TIME["abc"], skip=1).length) == 1877
    assert round(efficiency_length(LENGTHS, MEMORY["vanilla"], MEMORY["abc"]).length) == 70


def test_known_curves_cross_where_they_do():
    n = [10, 20, 40, 80]
    # 2 n^2 + n + 3 = 61 n + 53 at n = 30.81...
    found = efficiency_length(n, [2 * x * x + x + 3 for x in n], [61 * x + 53 for x in n])
    assert found.quadratic == pytest.approx((2, 1, 3)) and found.linear == pytest.approx((61, 53))
    assert 2 * found.length**2 + found.length + 3 == pytest.approx(61 * found.length + 53)
    assert found.length > 30 and found.fits == pytest.approx((1, 1))


def test_order_does_not_matter_and_skip_leaves_out_the_shortest():
    mixed = efficiency_length([80, 10, 40, 20], [6400, 100, 1600, 400], [160, 99, 80, 40], skip=1)
    assert mixed.linear == pytest.approx((2, 0), abs=1e-9) and mixed.length == pytest.approx(2)


def test_no_crossing():
    n = [1, 2, 3, 4]
    assert efficiency_length(n, [1, 4, 9, 16], [-15, -25, -35, -45]).length is None
    assert efficiency_length(n, [-1, -4, -9, -16], [1, 2, 3, 4]).length is None


@pytest.mark.parametrize(
    ("quadratic", "linear", "cheaper"),
    [
        ((11, 14, 19, 26), (1, 2, 3, 4), "always"),
        ((1, 2, 3, 4), (11, 12, 13, 14), "never"),  # both grow alike
        ((5, 6, 5, 2), (1, 2, 3, 4), "partly"),
    ],
)
def test_without_a_crossing_the_costs_say_who_costs_less(quadratic, linear, cheaper):
    found = efficiency_length([1, 2, 3, 4], quadratic, linear)
    assert found.length is None and found.cheaper == cheaper


def test_errors():
    with pytest.raises(
        ValueError, match=r"must be lists of one length, got shapes \(3,\), \(3,\) and \(2,\)"
    ):
        efficiency_length([1, 2, 3], [1, 2, 3], [1, 2])
    with pytest.raises(
        ValueError, match="at least 4 lengths for the parabola and 3 after skip=0 for the line, got 3 lengths"
    ):
        efficiency_length([1, 2, 3], [1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="and 3 after skip=2 for the line, got 4 lengths"):
        efficiency_length([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], skip=2)


def test_numbers_that_no_fit_can_take_are_refused():
    good, bad = [1, 2, 3, 4], [1, float("nan"), 3, 4]
    with pytest.raises(ValueError, match=r"linear must be finite numbers, got \[1.0, nan, 3.0, 4.0\]"):
        efficiency_length(good, good, bad)
    with pytest.raises(ValueError, match="quadratic must be finite numbers"):
        efficiency_length(good, [1, float("inf"), 3, 4], good)
    with pytest.raises(ValueError, match="lengths must be finite numbers"):
        efficiency_length(bad, good, good)
    with pytest.raises(
        ValueError, match=r"lengths must differ, one cost for each, got \[1.0, 2.0, 2.0, 4.0\]"
    ):
        efficiency_length([1, 2, 2, 4], good, good)
