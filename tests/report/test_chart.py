"""Axes contain their values, and their ticks are few, round and ordered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.lab.figure import pixels
from sigmoid_attention.report.chart import (
    ARM_SERIES,
    HEIGHT,
    WIDTH,
    Dots,
    Line,
    Panel,
    linear_axis,
    log_axis,
    ticked_axis,
)

finite = st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 6))
positive = st.floats(1e-9, 1e12)


@given(st.lists(finite, min_size=1, max_size=9))
def test_linear_axis_holds_its_values(values):
    axis = linear_axis(values, "", str)
    assert axis.low <= min(values) <= max(values) <= axis.high
    ticks = [value for value, _ in axis.ticks]
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= ticks[0] and ticks[-1] <= axis.high + slack


@pytest.mark.parametrize("binary", [False, True], ids=["powers-of-10", "powers-of-2"])
@given(values=st.lists(positive, min_size=1, max_size=9))
def test_log_axis_holds_its_values(binary, values):
    axis = log_axis(values, "", str, binary=binary)
    assert axis.low <= min(values) <= max(values) <= axis.high
    ticks = [value for value, _ in axis.ticks]
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert axis.low <= ticks[0] * (1 + 1e-6) and ticks[-1] <= axis.high * (1 + 1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.25, 2.35, [2.26, 2.28, 2.3, 2.32, 2.34]),
        (-0.03, 0.3, [0, 0.1, 0.2, 0.3]),
        (0.0, 400.0, [0, 100, 200, 300, 400]),
    ],
    ids=str,
)
def test_linear_ticks_are_round(low, high, expected):
    assert [tick for tick, _ in linear_axis([low, high], "", str, tight=True).ticks] == expected


def test_log_ticks_are_powers_where_there_are_enough():
    assert [tick for tick, _ in log_axis([0.02, 30.0], "", str).ticks] == [0.1, 1, 10]
    bytes_axis = log_axis([3e5, 8e6], "", str, binary=True)
    assert all(tick == 2 ** (int(tick).bit_length() - 1) for tick, _ in bytes_axis.ticks)


def drawn(x_axis, y_axis, *marks):
    """matplotlib's axes with the marks, without SVG."""
    figure = pixels(WIDTH, HEIGHT)
    Panel("A title", x_axis, y_axis, marks, "").draw(figure)
    return figure.axes[0]


def test_zero_stands_at_the_foot_of_a_log_axis():
    y_axis = log_axis([0.0, 0.1, 10.0], "", str)
    line = Line(((0.0, 0.0), (1.0, 10.0)), ARM_SERIES["sigmoid"], "mean")
    ax = drawn(linear_axis([0.0, 1.0], "", str), y_axis, line)
    assert ax.lines[0].get_ydata().tolist() == [y_axis.low, 10.0]


def test_marks_lie_at_their_values():
    lengths = ticked_axis([(256.0, "256"), (1024.0, "1k")], "length", log=True)
    dots = Dots(((256.0, 0.0), (1024.0, 1.0)), ARM_SERIES["softmax"], "seed")
    ax = drawn(lengths, linear_axis([0.0, 1.0], "", str), dots)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.lines[0].get_xydata().tolist() == [[256.0, 0.0], [1024.0, 1.0]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["256", "1k"]


def test_the_arms_differ_without_colour():
    softmax, sigmoid = ARM_SERIES["softmax"], ARM_SERIES["sigmoid"]
    assert softmax.dashes != sigmoid.dashes
    assert (softmax.marker, softmax.is_open) != (sigmoid.marker, sigmoid.is_open)
