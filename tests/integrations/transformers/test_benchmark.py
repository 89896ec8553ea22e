"""The benchmark runs; its measured times are not tested."""

import pytest

from benchmarks.integrations import QUICK, checks


def test_a_quick_run_compares_a_call_with_the_operator():
    results = list(checks(("overhead",), QUICK))
    assert [check.name.rpartition(",")[0] for check in results] == [
        f"call, {queries} x 48, bias {kind}"
        for queries in (1, 48)
        for kind in ("a number", "per head")
    ]
    assert all(check.value > 0 and len(check.values) == 1 for check in results)


def test_a_suite_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="--only must be of overhead, generation, got speed"):
        list(checks(("speed",), QUICK))
