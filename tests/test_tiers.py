"""The sample of cases that `make test` runs, and the folders and files that have markers."""

from types import SimpleNamespace

import pytest

from tests.conftest import HERE, MARKERS, beyond_a_sample, left_out
from tests.support.tiers import sampled

DTYPES = pytest.mark.parametrize("dtype", [])
SHAPES = pytest.mark.parametrize(("rows", "columns"), [])


class Case:
    def __init__(self, *marks, **params):
        self.marks, self.callspec = marks, SimpleNamespace(params=params)

    def iter_markers(self, name):
        return [mark.mark for mark in self.marks if mark.mark.name == name]

    def get_closest_marker(self, name):
        return next(iter(self.iter_markers(name)), None)


def sample(cases):
    others = beyond_a_sample(cases)
    return [tuple(case.callspec.params.values()) for case in cases if case not in others]


def stacked(*marks):
    return [
        Case(DTYPES, SHAPES, *marks, dtype=dtype, rows=rows, columns=columns)
        for dtype in ("fp32", "bf16")
        for rows, columns in [(1, 1), (1, 2), (2, 1), (2, 2)]
    ]


def test_each_entry_of_stacked_lists_occurs_and_each_in_turn():
    chosen = sample(stacked())
    assert {case[1:] for case in chosen} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert len(chosen) == 4
    assert [dtype for dtype, *_ in chosen].count("bf16") == 2


def test_a_single_list_is_run_whole():
    cases = [Case(SHAPES, rows=1, columns=n) for n in range(9)]
    assert beyond_a_sample(cases) == []


def test_of_a_product_in_one_list_each_value_occurs():
    chosen = sample(stacked(pytest.mark.product))
    assert len(chosen) == 2
    for values in zip(*chosen, strict=True):
        assert len(set(values)) == 2


def test_cases_outside_a_sample_are_slow():
    cases = sampled({"one-by-one": (1, 1), "one-by-two": (1, 2), "none": (None,)}, "one-by-two")
    assert [(case.id, case.values) for case in cases] == [
        ("one-by-one", (1, 1)),
        ("one-by-two", (1, 2)),
        ("none", (None,)),
    ]
    assert [[mark.name for mark in case.marks] for case in cases] == [["slow"], [], ["slow"]]


@pytest.mark.parametrize("marker", MARKERS)
def test_marked_folders_and_files_exist(marker):
    assert [place for place in MARKERS[marker] if not (HERE / place).exists()] == []


@pytest.mark.parametrize(
    ("place", "expression", "left"),
    [
        ("studies", "not (slow or process)", True),
        ("studies/compare/test_run.py", "not (slow or process)", True),
        ("studies/compare/test_run.py", "not (slow or long)", False),
        ("nn/models", "not (models)", True),
        ("nn/test_norm.py", "not (slow or process or models)", False),
        # Its tests may have other markers too.
        ("studies", "process or slow", False),
        ("studies", "not process and slow", False),
        ("studies", "", False),
    ],
)
def test_places_that_a_run_leaves_out_are_not_imported(place, expression, left):
    assert left_out(HERE / place, expression) == left
