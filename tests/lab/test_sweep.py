"""Sweeps: any executor, no task run twice, and no finished task lost by a failure or a signal."""

import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from rich.console import Console

from sigmoid_attention.lab import sweep as sweep_module
from sigmoid_attention.lab.archive import Archive
from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.lab.sweep import sweep
from tests.support.studies.squares_study import broken, deadly, diary, held_up, square, study, task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def rows(out, *tasks):
    """The rows of every task, as text, as a NaN equals nothing."""
    results = Archive(out).results(tasks)
    return [[repr(row) for row in measured.rows] for runs in results.values() for measured in runs]


def expected(*tasks):
    return [[repr(row) for row in square(each.setting)] for each in tasks]


def test_processes_of_one_thread_each_and_nothing_twice(out, tmp_path):
    book = tmp_path / "diary"
    tasks = [task(number, number + 1, diary=str(book), seconds=0.2) for number in range(8)]
    assert sweep([study(*tasks[:6])], out, workers=2) == []
    done = diary(book)
    assert len(done) == 6
    assert {line[1] for line in done} == {1}
    processes = {line[0] for line in done}
    assert len(processes) == 2 and os.getpid() not in processes

    shown = io.StringIO()
    console = Console(file=shown, width=100)
    with ThreadPoolExecutor(1) as executor:
        assert sweep([study(*tasks)], out, executor=executor, console=console) == []
    assert len(diary(book)) == 8
    assert shown.getvalue().splitlines() == [
        "6 of 8 tasks are done already",
        "2/2 squares, cell 7, late",
    ]
    assert rows(out, *tasks) == expected(*tasks)
    # When all tasks are done, no executor is used.
    assert sweep([study(*tasks)], out, executor=None, workers=2) == []


def test_studies_share_what_they_have_in_common(out, tmp_path, threads):
    book = tmp_path / "diary"
    common, separate = task(1, diary=str(book)), task(2, diary=str(book))
    other = task(1, diary=str(book), cell="another name", part="control")
    studies = [study(common), study(other, separate, name="cubes")]
    assert sweep(studies, out, executor=threads) == []
    assert sorted(line[-1] for line in diary(book)) == [1, 2]
    assert list(Archive(out).results([other])) == [("another name", "control")]


def test_the_longest_go_first(out, tmp_path):
    book = tmp_path / "diary"
    tasks = [task(number, work=work, diary=str(book)) for number, work in ((1, 1), (2, 9), (3, 4))]
    with ThreadPoolExecutor(1) as executor:
        sweep([study(*tasks)], out, executor=executor)
    assert [line[-1] for line in diary(book)] == [2, 3, 1]


def test_a_damaged_file_is_named_and_computed_again(out, threads):
    damaged, other = task(1), task(2)
    sweep([study(damaged, other)], out, executor=threads)
    path = Archive(out).path(damaged.key)
    before, untouched = path.read_bytes(), Archive(out).path(other.key).stat().st_mtime_ns
    path.write_bytes(before[:-40])
    shown = io.StringIO()
    console = Console(file=shown, width=60)
    assert sweep([study(damaged, other)], out, executor=threads, console=console) == []
    lines = shown.getvalue().splitlines()
    assert f"{damaged.key}.parquet is damaged" in lines[0]
    assert lines[0].endswith("it is computed again")
    assert len(lines) == 3
    assert rows(out, damaged, other) == expected(damaged, other)
    assert Archive(out).path(other.key).stat().st_mtime_ns == untouched


def test_a_task_that_raises_loses_only_itself(out, threads):
    bad, good = task(1, run=broken, work=5.0), task(2)
    for _ in range(2):
        assert sweep([study(bad, good)], out, executor=threads) == [
            "squares, cell 1, late: ZeroDivisionError: nothing goes into nothing"
        ]
        assert not Archive(out).has(bad.key)
        assert rows(out, good) == expected(good)


def test_a_worker_that_dies_is_named_in_one_sentence(out):
    good = task(1, work=2.0)
    fatal = [task(number, run=deadly) for number in (2, 3)]
    (message,) = sweep([study(good, *fatal)], out, workers=1)
    assert message.startswith("a worker died") and "2 tasks are left" in message
    assert rows(out, good) == expected(good)


class Unfinished(Executor):
    """Runs the first task at once, and leaves the others pending."""

    def __init__(self):
        self.futures = []

    def submit(self, run, /, *arguments):
        self.futures.append(Future())
        if len(self.futures) == 1:
            self.futures[0].set_result(run(*arguments))
        return self.futures[-1]


def test_an_interrupt_cancels_the_pending_tasks_of_an_executor(out, monkeypatch):
    first, second = task(1, work=2.0), task(2)
    executor = Unfinished()

    def interrupted(futures, **options):
        if Archive(out).has(first.key):
            raise KeyboardInterrupt
        return wait(futures, **options)

    monkeypatch.setattr(sweep_module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep([study(first, second)], out, executor=executor)
    assert executor.futures[1].cancelled()
    assert rows(out, first) == expected(first)


SCRIPT = """
import signal
import sys
from pathlib import Path
from sigmoid_attention.lab.sweep import sweep
from tests.support.studies.squares_study import held_up
# What a shell runs in its background begins with an interrupt that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sweep([held_up(sys.argv[2])], Path(sys.argv[1]), workers=2)
"""


def until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def gone(process):
    """Whether a process has ended; it may still be a zombie."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("send", "what"),
    [
        pytest.param(os.kill, signal.SIGKILL, id="killed"),
        pytest.param(os.killpg, signal.SIGINT, id="interrupted", marks=pytest.mark.slow),
    ],
)
def test_after_a_signal_finished_rows_remain_and_all_workers_end(send, what, out, tmp_path):
    book = tmp_path / "diary"
    quick = held_up(str(book)).tasks()[1:]
    archive = Archive(out)
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(book)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        # Then one worker is in the middle of a task, and one waits for another.
        until(lambda: all(archive.has(each.key) for each in quick))
        workers = {line[0] for line in diary(book)}
        assert len(workers) == 2 and child.pid not in workers
        # Control-C reaches them as well, but what becomes of it is for the parent to say.
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        time.sleep(0.5)
        assert not any(map(gone, workers))
    finally:
        send(child.pid, what)
        errors = child.communicate(timeout=20)[1].decode()
    until(lambda: all(map(gone, workers)), seconds=10)
    assert "SpawnProcess" not in errors
    assert [path.stem for path in sorted((out / "rows").iterdir())] == sorted(
        each.key for each in quick
    )
    # The same again, but that the slow task is of another setting, which no longer takes long.
    again = held_up(str(book), seconds=0.0)
    with ThreadPoolExecutor(1) as executor:
        assert sweep([again], out, executor=executor) == []
    assert sorted(line[-1] for line in diary(book)) == [1, 2, 3, 3]
    assert rows(out, *again.tasks()) == expected(*again.tasks())


def test_a_full_disk_is_not_a_failure_of_the_task(out, threads, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        sweep([study(task(1))], out, executor=threads)


@pytest.mark.parametrize("workers", [0, -2])
def test_fewer_than_one_worker_is_refused(workers, out):
    with pytest.raises(ValueError, match=f"workers must be 1 or more, got {workers}"):
        sweep([study(task(1))], out, workers=workers)
    assert not out.exists()


def blocked():
    """Which signals are kept from this process, as from its first moment."""
    time.sleep(0.2)
    return os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no masks")
def test_no_worker_can_be_interrupted_while_it_starts():
    with process_pool(2) as pool:
        blocked_by_process = dict(
            future.result() for future in [pool.submit(blocked) for _ in range(4)]
        )
    assert all(signal.SIGINT in masked for masked in blocked_by_process.values())
    assert signal.SIGINT not in blocked()[1]
