"""Axes hold their values, and their ticks are few, round and in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.report.chart import Frame, linear_axis, log_axis, ticked_axis

finite = st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 6))
positive = st.floats(1e-9, 1e12)


@given(st.lists(finite, min_size=1, max_size=9))
def test_linear_axis_holds_its_values(values):
    axis = linear_axis(values, "", str)
    places = [axis.fraction(value) for value in values]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    ticks = [value for value, _ in axis.ticks]
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= axis.fraction(tick) <= 1 + 1e-6 for tick in ticks)


@pytest.mark.parametrize("binary", [False, True], ids=["powers-of-10", "powers-of-2"])
@given(values=st.lists(positive, min_size=1, max_size=9))
def test_log_axis_holds_its_values(binary, values):
    axis = log_axis(values, "", str, binary=binary)
    assert all(0 <= axis.fraction(value) <= 1 for value in values)
    ticks = [value for value, _ in axis.ticks]
    assert len(ticks) >= 2
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= axis.fraction(tick) <= 1 + 1e-6 for tick in ticks)


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


def test_zero_stands_at_the_foot_of_a_log_axis():
    axis = log_axis([0.0, 0.1, 10.0], "", str)
    assert axis.fraction(0.0) == 0.0


def test_frame_places_up_and_right():
    lengths = ticked_axis([(256.0, "256"), (1024.0, "1k")], "length", log=True)
    frame = Frame(lengths, linear_axis([0.0, 1.0], "", str))
    assert frame.left < frame.across(256) < frame.across(1024) < frame.right
    assert frame.bottom > frame.down(0.0) > frame.down(1.0)
