"""Kernels that crash or hang cost a row and not the run; time that is up ends it."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import worker as measuring
from benchmarks.gpu.driver import Worker, carry_out, measured, worker_command
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.readings import Reading
from benchmarks.operations import Case
from benchmarks.rows import Row

CASE = Case("forward", "bf16", 64)
COMMAND = [sys.executable, str(Path(__file__).with_name("measuring.py"))]


@pytest.fixture
def worker():
    own = Worker(COMMAND, patience=30.0)
    yield own
    own.stop()


def unit(*peers: str) -> Unit:
    return Unit("speed", CASE, peers, 1.0)


def found(worker: Worker, *peers: str) -> dict[str, Row]:
    rows = [row for row in measured(unit(*peers), worker) if isinstance(row, Row)]
    assert len({row.peer for row in rows}) == len(rows)
    return {row.peer: row for row in rows}


def test_a_crash_is_a_row_of_whose_turn_it_was(worker):
    rows = found(worker, "a", "crash", "b")
    assert rows["crash"].refused == "the process died of signal 6"
    assert rows["a"].wall == rows["b"].wall == (1.0,)
    assert rows["a"].stamp["process"] != rows["b"].stamp["process"]


def test_who_is_waited_for_in_vain_is_ended(worker):
    list(measured(unit("a"), worker))  # so that it has started
    worker.patience = 1.0
    rows = found(worker, "hang", "a")
    assert rows["hang"].refused == "no answer within 1 s; it was ended"
    worker.patience = 30.0
    assert found(worker, "a")["a"].refused is None


def test_who_spoils_the_device_keeps_its_own_words(worker):
    rows = found(worker, "spoil", "a", "b")
    assert rows["spoil"].refused == "it says"
    assert rows["a"].refused is rows["b"].refused is None


def test_a_case_that_ends_the_process_before_anybody_s_turn_is_refused_for_all(worker):
    rows = found(worker, "crash-at-once", "a")
    assert {row.refused for row in rows.values()} == {"the process ended (4)"}
    assert len(rows) == 2


def test_a_reading_that_crashes_says_so(worker):
    one, other = (
        list(measured(Unit("readings", None, (), 1.0, name), worker)) for name in ("crash", "y")
    )
    assert one == [Reading("crash", "", refused="the process ended (3)")]
    assert other == [Reading("y", "x", (1.0,))]


def test_what_would_not_be_done_in_time_is_left_for_the_next_run(worker):
    clock = iter(range(0, 1000, 10))
    plan = [unit("a"), Unit("speed", CASE, ("b",), 35.0), unit("c"), unit("d")]
    kept: list = []
    left = carry_out(plan, worker, kept.append, seconds=32.0, now=lambda: next(clock))
    # At 10, 20, 30 and 40 seconds: the second would take too long, the fourth comes too late.
    assert [row.peer for row in kept] == ["a", "c"]
    assert left == [plan[1], plan[3]]
    assert worker.process is None


# The process itself, on a CPU ---------------------------------------------------------------------


def served(*units: Unit) -> list[dict]:
    asked = io.StringIO("".join(json.dumps(own.to_json()) + "\n" for own in units))
    answers = io.StringIO()
    measuring.serve(asked, answers, torch.device("cpu"))
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_errors_are_measured_and_refusals_are_rows():
    case = Case("error", "bf16", 40, 8, heads=2, feature="softcap")
    first, row, second, refused, done = served(Unit("errors", case, ("cpu", "nobody"), 1.0))
    assert (first, second, done) == ({"trying": "cpu"}, {"trying": "nobody"}, {"done": True})
    own = Row.from_json(row["row"])
    assert own.error is not None and own.error.keys() == own.stamp["floor"].keys()
    assert own.error.keys() == {"output", "query", "key", "value"}
    assert "nobody" in str(Row.from_json(refused["row"]).refused)


def test_what_a_device_does_not_have_is_a_reading_that_says_so():
    _, refused, done = served(Unit("readings", None, (), 1.0, "rates"))
    assert Reading.from_json(refused["reading"]).refused
    assert done == {"done": True}


def test_a_device_that_is_gone_ends_the_process(monkeypatch):
    monkeypatch.setattr(measuring, "leave_behind", lambda device: 1 / 0)
    case = Case("error", "bf16", 40, 8, heads=2)
    *_, trouble = served(Unit("errors", case, ("cpu", "tiled"), 1.0), unit("a"))
    assert trouble == {"trouble": "ZeroDivisionError: division by zero"}


def test_units_survive_the_way_to_the_process():
    for own in (unit("a", "b"), Unit("readings", None, (), 2.5, "tanh")):
        assert Unit.from_json(json.loads(json.dumps(own.to_json()))) == own


def test_the_command_is_that_of_a_module():
    python, *module = worker_command("cuda:0")
    assert module == ["-m", "benchmarks.gpu.worker", "cuda:0"]
    assert Path(python).exists()
