"""`python -m benchmarks` from end to end, at the smallest shapes."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.__main__ as command_line
from benchmarks.__main__ import main
from benchmarks.measure import measure
from benchmarks.mixtures import Check
from benchmarks.mixtures import write as write_checks
from benchmarks.operations import Case
from benchmarks.peers import PEERS
from benchmarks.rows import merged, read, results_file, write
from benchmarks.suites import CPU, Task
from benchmarks.timing import Budget

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
QUICK = [
    "cpu",
    "--quick",
    "--only",
    "gemm,forward",
    "--dtype",
    "fp32",
    "--peers",
    "mm,sdpa,ours",
    "--threads",
    "1",
]
FEW = Budget(seconds=0, least=2, most=2)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "cpu.jsonl"


def test_a_run_writes_rows_that_say_everything(out, capsys):
    assert main([*QUICK, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(line["operation"], line["peer"]) for line in lines} == {
        ("gemm", "mm"),
        ("forward", "sdpa"),
        ("forward", "ours"),
    }
    for line in lines:
        assert line["machine"]["cores"] >= 1
        assert line["versions"]["torch"]
        assert (line["threads"], line["refused"]) == (1, None)
        assert len(line["wall"]) == len(line["cpu"]) >= 2
        assert all(seconds > 0 for seconds in line["wall"] + line["cpu"])
    ours = [line for line in lines if line["peer"] == "ours"]
    assert all(line["ratio"]["baseline"] == "sdpa" for line in ours)
    assert "GFLOP/s" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_has_and_goes_on(out, monkeypatch, capsys):
    measured: list[tuple[str, int]] = []

    def stops_at_second(suite, task, threads):
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append((str(task.case), threads))
        return measure(suite, task, threads)

    monkeypatch.setattr(command_line, "measure", stops_at_second)
    assert main([*QUICK, "--out", str(out)]) == 130
    assert "--resume" in capsys.readouterr().err
    first = out.read_text()
    assert len(read(out)) == 1

    def counts(suite, task, threads):
        measured.append((str(task.case), threads))
        return measure(suite, task, threads)

    monkeypatch.setattr(command_line, "measure", counts)
    assert main([*QUICK, "--resume", "--out", str(out)]) == 0
    assert out.read_text().startswith(first)
    assert len(measured) == len(set(measured)) == 3

    whole = out.read_bytes()
    assert main([*QUICK, "--resume", "--out", str(out)]) == 0
    assert out.read_bytes() == whole
    assert len(measured) == 3
    # Another source of the operator is another thing to measure.
    monkeypatch.setattr("benchmarks.stamp.source_hash", lambda: "changed")
    assert main([*QUICK, "--resume", "--out", str(out)]) == 0
    assert len(measured) == 6
    assert {row.stamp["source"] for row in read(out).values()} == {"changed"}


def test_a_peer_that_refuses_gets_a_row_with_the_reason(monkeypatch):
    def absent(case):
        raise NotImplementedError("not\n  on this machine")

    def fails(case):
        return lambda *tensors: 1 / 0

    monkeypatch.setitem(PEERS, "flex", absent)
    monkeypatch.setitem(PEERS, "tiled", fails)
    task = Task(Case("forward", "fp32", 32), ("sdpa", "flex", "tiled"), FEW)
    sdpa, flex, tiled = measure(CPU, task, 1)
    assert flex.refused == "NotImplementedError: not on this machine"
    assert tiled.refused == "ZeroDivisionError: division by zero"
    assert flex.wall == flex.cpu == () and flex.ratio is None
    assert sdpa.refused is None and sdpa.ratio is not None and sdpa.ratio.value == 1


def test_a_baseline_that_refuses_leaves_no_ratio(monkeypatch):
    monkeypatch.setitem(PEERS, "sdpa", lambda case: 1 / 0)
    task = Task(Case("forward", "fp32", 32), ("sdpa", "eager-sigmoid"), FEW)
    sdpa, eager = measure(CPU, task, 1)
    assert sdpa.refused and eager.ratio is None and len(eager.wall) == 2


def test_memory_is_that_of_a_fresh_process():
    # Two or three (1, 4, 2048, 2048) arrays of scores against one (1, 4, 2048, 64) output. The
    # short case before it leaves a little that is used again.
    case = Case("memory-forward", "fp32", 2048, heads=4)
    once = Budget(least=1)
    sdpa, eager = measure(CPU, Task(case, ("sdpa", "eager-softmax"), once), 1)
    output, scores = 4 * 2048 * 64 * 4, 4 * 2048 * 2048 * 4
    assert 0.5 * output <= sdpa.cost < 8 * output
    assert 1.9 * scores <= eager.cost < 4 * scores
    assert sdpa.ratio is not None and sdpa.wall == ()
    assert eager.ratio is not None and eager.ratio.value == sdpa.cost / eager.cost


def test_a_memory_peer_that_fails_says_so():
    task = Task(Case("memory-forward", "fp32", 65536), ("eager-softmax",), Budget(least=2))
    (row,) = measure(CPU, task, 1)
    assert row.bytes == ()
    assert row.refused and "its scores would take 384.0 GiB" in row.refused


def test_targets_are_judged_from_a_file(out, capsys):
    assert main(["targets", str(out)]) == 2
    assert "there are no results" in capsys.readouterr().err
    assert main([*QUICK, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["targets", str(out)]) == 1
    output = capsys.readouterr().out
    assert re.search(r"headline.*not measured", output)
    assert re.search(r"^0 of \d+ targets met$", output, re.MULTILINE)


def test_results_are_published_where_they_belong(out, tmp_path, monkeypatch):
    assert main([*QUICK, "--out", str(out)]) == 0
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    page = tmp_path / command_line.CPU_PAGE
    page.parent.mkdir()
    page.write_text("# A\n<!-- benchmark -->\n<!-- /benchmark -->\nthe rest\n")
    theory = tmp_path / command_line.THEORY_PAGE
    theory.write_text(page.read_text())
    before = page.read_text()
    # Nothing of this length belongs into the picture, so nothing at all is written.
    assert main(["publish", str(out)]) == 2
    assert page.read_text() == before

    longer = [
        replace(row, case=replace(row.case, length=1024)) if row.case.length == 128 else row
        for row in read(out).values()
    ]
    write(out, merged({}, longer))
    assert main(["publish", str(out)]) == 0
    assert "| forward, causal, fp32 |" in page.read_text()
    assert page.read_text().endswith("the rest\n")
    assert (tmp_path / command_line.IMAGE).read_text().startswith("<svg")
    # The quick shape has one mask, and the split is of none.
    assert "Nothing has been measured" in theory.read_text()
    assert theory.read_text().endswith("the rest\n")


def test_costs_of_integrations_are_published_where_they_belong(tmp_path, monkeypatch):
    stamp = {"machine": {"processor": "Zen"}, "versions": {"torch": "2.13"}, "threads": 2}
    checks = [
        Check("overhead", "call", 1.0312, "x", 1.05, said="of 3", stamp=stamp),
        Check("generation", "token", 1.2, "x", 1.0, stamp=stamp),
    ]
    write_checks(results_file(tmp_path, "integrations"), checks)
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    monkeypatch.setattr(command_line, "_processor_rows", lambda *_: {})
    page = tmp_path / command_line.MODELS_PAGE
    page.parent.mkdir()
    page.write_text("before\n<!-- benchmark -->\n<!-- /benchmark -->\nafter\n")
    assert main(["publish", str(tmp_path)]) == 0
    text = page.read_text()
    assert "| call | <= 1.05 x | 1.031 x | met | of 3 |" in text
    assert "| token | <= 1 x | 1.200 x | not met |  |" in text
    assert "Measured on Zen, 2 threads, torch 2.13." in text
    assert text.startswith("before\n") and text.endswith("after\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("cpu --length 1k", "--length must be whole numbers between commas, got '1k'"),
        ("cpu --threads 0", "--threads must be positive, got '0'"),
        ("cpu --only backward", "--only must be of gemm"),
        ("cpu --resume", "--resume: needs --out"),
    ],
    ids=lambda text: text.replace(" ", "_"),
)
def test_bad_input_gives_one_sentence(arguments, sentence, capsys):
    assert main(arguments.split()) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1


def test_commands_of_the_page_exist(monkeypatch):
    parsed = []
    for name in ("cpu", "targets", "publish"):
        monkeypatch.setattr(command_line, name, lambda command: parsed.append(command) or 0)
    commands = re.findall(
        r"^python -m benchmarks (.*?)(?:  +#.*)?$", PAGE.read_text(), re.MULTILINE
    )
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert len(parsed) == len(commands) >= 2
