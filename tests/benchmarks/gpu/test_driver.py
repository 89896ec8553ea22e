"""Kernels that crash or hang cost one row and not the run; the deadline ends the run."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import worker as measuring
from benchmarks.gpu.driver import (
    Worker,
    WorkerUnkillable,
    execute_plan,
    measure_unit,
    worker_command,
)
from benchmarks.gpu.plan import Unit
from benchmarks.gpu.readings import Reading
from benchmarks.memory import ROOT
from benchmarks.operations import Case
from benchmarks.rows import Row
from tests.support.benchmarks import stub_worker

CASE = Case("forward", "bf16", 64)
COMMAND = [sys.executable, stub_worker.__file__]


@pytest.fixture
def worker():
    process = Worker(COMMAND, timeout=30.0)
    yield process
    process.stop()


def unit(*peers: str) -> Unit:
    return Unit("speed", CASE, peers, 1.0)


def measured(worker: Worker, *peers: str) -> dict[str, Row]:
    rows = [row for row in measure_unit(unit(*peers), worker) if isinstance(row, Row)]
    assert len({row.peer for row in rows}) == len(rows)
    return {row.peer: row for row in rows}


def test_a_crash_is_a_row_of_whose_turn_it_was(worker):
    rows = measured(worker, "a", "crash", "b")
    assert rows["crash"].refused == "the process died of signal 6"
    assert rows["a"].wall == rows["b"].wall == (1.0,)
    assert rows["a"].stamp["process"] != rows["b"].stamp["process"]


def test_a_process_that_exceeds_its_time_is_ended(worker):
    list(measure_unit(unit("a"), worker))  # so that it has started
    worker.timeout = 1.0
    rows = measured(worker, "hang", "a")
    assert rows["hang"].refused == "no answer within 1 s; it was killed"
    worker.timeout = 30.0
    assert measured(worker, "a")["a"].refused is None


def test_a_peer_that_breaks_the_device_keeps_its_message(worker):
    rows = measured(worker, "spoil", "a", "b")
    assert rows["spoil"].refused == "it says"
    assert rows["a"].refused is rows["b"].refused is None


def test_a_case_that_ends_the_process_before_the_first_turn_is_refused_for_all(worker):
    rows = measured(worker, "crash-at-once", "a")
    assert {row.refused for row in rows.values()} == {"the process ended (4)"}
    assert len(rows) == 2


def test_a_reading_that_crashes_says_so(worker):
    left, right = (
        list(measure_unit(Unit("readings", None, (), 1.0, name), worker)) for name in ("crash", "y")
    )
    assert left == [Reading("crash", "", refused="the process ended (3)")]
    assert right == [Reading("y", "x", (1.0,))]


def test_units_that_exceed_the_time_wait_for_the_next_run(worker):
    worker.now = Clock(0.0, kept := [])
    plan = [unit("a"), Unit("speed", CASE, ("b",), 35.0), unit("c"), Unit("speed", CASE, ("d",), 6)]
    left = execute_plan(plan, worker, kept.append, seconds=25.0)
    # Ten seconds a row: the second would take too long, the fourth comes too late.
    assert [row.peer for row in kept] == ["a", "c"]
    assert left == [plan[1], plan[3]]
    assert worker.process is None


class Clock:
    """Ten seconds for each row that was kept, and the clock on the wall where it is hurried."""

    def __init__(self, hurry: float, kept: list) -> None:
        self.hurry, self.kept, self.started = hurry, kept, time.monotonic()

    def __call__(self) -> float:
        return 10.0 * len(self.kept) + self.hurry * (time.monotonic() - self.started)


def test_after_the_deadline_nothing_is_awaited_and_no_row_is_written(worker):
    list(measure_unit(unit("a"), worker))  # so that it has started
    kept: list = []
    # Two rows are kept, then it hangs for the second that is left.
    worker.now = Clock(1.0, kept)
    plan = [unit("a"), unit("b", "hang"), unit("c")]
    started = time.monotonic()
    assert execute_plan(plan, worker, kept.append, seconds=21.0) == plan[1:]
    assert time.monotonic() - started < 5
    assert [row.peer for row in kept] == ["a", "b"]
    assert worker.process is None


@pytest.mark.parametrize("ending", ["crash", "hang", "spoil"])
def test_a_peer_that_ends_the_process_twice_has_no_row(worker, ending):
    list(measure_unit(unit("a"), worker))
    worker.timeout, kept = 0.5, []
    plan = [unit(ending, "a")] * 3 + [unit(ending)]
    assert execute_plan(plan, worker, kept.append, seconds=600.0) == []
    peers = [row.peer for row in kept]
    assert peers.count(ending) == 2 and peers.count("a") == 3


def test_a_crash_of_a_peer_beside_costs_no_row(worker):
    rows = list(measure_unit(Unit("speed", CASE, ("a", "b"), 1.0, beside=("crash",)), worker))
    assert [row.peer for row in rows if isinstance(row, Row)] == ["a", "b"]


def test_lines_of_others_are_not_answers(worker):
    assert measured(worker, "prints", "a")["a"].refused is None


def test_a_process_that_does_not_end_is_named_after_its_row(monkeypatch, worker):
    list(measure_unit(unit("a"), worker))
    process = worker.process

    def wait(timeout=None):
        assert timeout is not None, "this would wait for ever"
        raise subprocess.TimeoutExpired("worker", timeout)

    kept: list = []
    with monkeypatch.context() as held:
        held.setattr(process, "wait", wait)
        worker.timeout = 0.5
        with pytest.raises(WorkerUnkillable, match=r"the measuring process \d+ does not end"):
            execute_plan([unit("hang", "a"), unit("a")], worker, kept.append, seconds=600.0)
    assert [row.peer for row in kept] == ["hang"] and "does not end" in kept[0].refused
    process.wait()
    process.stdout.close()


# The process itself, on a CPU ---------------------------------------------------------------------


def served(*units: Unit) -> list[dict]:
    requests = io.StringIO("".join(json.dumps(unit.to_json()) + "\n" for unit in units))
    answers = io.StringIO()
    measuring.serve(requests, answers, torch.device("cpu"))
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_errors_are_measured_and_refusals_are_rows():
    case = Case("error", "bf16", 40, 8, heads=2, feature="softcap")
    first, row, second, refused, done = served(Unit("errors", case, ("cpu", "missing"), 1.0))
    assert (first, second, done) == ({"trying": "cpu"}, {"trying": "missing"}, {"done": True})
    measured_row = Row.from_json(row["row"])
    assert (
        measured_row.error is not None
        and measured_row.error.keys() == measured_row.stamp["floor"].keys()
    )
    assert measured_row.error.keys() == {"output", "query", "key", "value"}
    assert "missing" in str(Row.from_json(refused["row"]).refused)


def test_a_reading_that_a_device_lacks_is_refused():
    _, refused, done = served(Unit("readings", None, (), 1.0, "rates"))
    assert Reading.from_json(refused["reading"]).refused
    assert done == {"done": True}


def test_a_device_that_is_gone_ends_the_process(monkeypatch):
    monkeypatch.setattr(measuring, "free_memory", lambda device: 1 / 0)
    case = Case("error", "bf16", 40, 8, heads=2)
    *_, trouble = served(Unit("errors", case, ("cpu", "tiled"), 1.0), unit("a"))
    assert trouble == {"trouble": "ZeroDivisionError: division by zero"}


def test_units_survive_the_way_to_the_process():
    beside = Unit("speed", CASE, ("a",), 2.0, beside=("b", "c"), timeout=3.0)
    for original in (unit("a", "b"), Unit("readings", None, (), 2.5, "tanh"), beside):
        assert Unit.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_the_command_is_that_of_a_module():
    python, *module = worker_command("cuda:0")
    assert module == ["-m", "benchmarks.gpu.process", "cuda:0"]
    assert Path(python).exists()


PROCESS = """
import runpy, sys, types
worker = types.ModuleType("benchmarks.gpu.worker")
worker.serve = lambda asked, answers, device: (print("noise"), answers.write(device + asked.read()))
sys.modules[worker.__name__] = worker
sys.path.insert(0, "{folder}")
sys.argv[1:] = ["cuda:0"]
runpy.run_module("benchmarks.gpu.process", run_name="__main__")
"""


def test_output_of_other_code_does_not_mix_with_the_rows(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported'); device = str")
    child = subprocess.run(
        [sys.executable, "-c", PROCESS.format(folder=tmp_path)],
        cwd=ROOT, input=" asked", capture_output=True, text=True,
    )  # fmt: skip
    assert (child.stdout, child.stderr) == ("cuda:0 asked", "imported\nnoise\n")


def test_peers_tune_again_after_errors_were_measured(monkeypatch):
    forgotten: list = []
    monkeypatch.setattr(measuring, "clear_tuning", lambda: forgotten.append(1))
    monkeypatch.setattr(measuring, "measure", lambda unit, device, tell: [])
    monkeypatch.setattr(measuring, "free_memory", lambda device: None)
    error = Unit("errors", CASE, ("missing",), 1.0)
    served(error, unit("missing"), unit("missing"), error, unit("missing"))
    assert len(forgotten) == 2
