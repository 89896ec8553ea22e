"""The targets and the page, from synthetic rows."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

import benchmarks.__main__ as command_line
from benchmarks.__main__ import main
from benchmarks.gpu import command, driver, plan
from benchmarks.gpu.command import REFERENCE, gpu_results, readings_file
from benchmarks.gpu.measures import with_ours
from benchmarks.gpu.page import PAGE, gpu_pages
from benchmarks.gpu.plan import units
from benchmarks.gpu.readings import SMI_SECONDS, Reading
from benchmarks.listing import listing
from benchmarks.operations import Case
from benchmarks.rows import Row, write
from benchmarks.targets import (
    GPU_TARGETS,
    INCOMPLETE,
    MET,
    NOT_MEASURED,
    NOT_MET,
    read_targets,
    standing,
)
from tests.support.benchmarks.gpu_rows import COPY, DECODE, ERROR, FORWARD, STAMP, at, row, rows

# Targets ------------------------------------------------------------------------------------------


def target(name: str):
    (match,) = [t for t in read_targets(GPU_TARGETS) if t.name.startswith(name)]
    return match


@pytest.mark.parametrize(("tflops", "verdict"), [(681, MET), (679, NOT_MET)])
def test_rates_count_matrix_products(tflops, verdict):
    actual = standing(
        target("TFLOP/s: forward full 128"),
        with_ours(rows(row(FORWARD, "triton", at(FORWARD, tflops)))),
    )
    assert actual.verdict == verdict
    assert actual.worst is not None and actual.worst[1] == pytest.approx(tflops)


@pytest.mark.parametrize(
    ("auto", "refused", "by"),
    [
        (["triton"], None, "triton"),
        (["gluon", "triton"], None, "gluon"),
        (["gluon", "triton"], "NotImplementedError: no", "triton"),
        (["gluon", "triton"], "no answer within 60 s", "gluon"),
        (["cpu"], None, None),
        (None, None, None),
    ],
    ids=["triton", "gluon", "gluon-refuses", "gluon-hangs", "other", "untold"],
)
def test_ours_is_what_a_user_gets(auto, refused, by):
    gluon = row(FORWARD, "gluon", None if refused else at(FORWARD, 600), refused=refused)
    both = [gluon, row(FORWARD, "triton", at(FORWARD, 700))]
    both = [replace(measured, stamp=STAMP | {"auto": auto or []}) for measured in both]
    for order in ((0, 1), (1, 0)):
        ours = with_ours(rows(*(both[i] for i in order))).get((FORWARD, "ours", 0))
        assert (ours and ours.stamp["by"]) == by
        # Who hangs is what a user gets, too.
        assert ours is None or ours.refused == (refused if by == "gluon" else None)


def test_a_row_of_a_process_that_ended_counts():
    gone = Row(FORWARD, "triton", 0, refused="the process ended (3)", stamp=STAMP)
    assert with_ours(rows(gone))[FORWARD, "ours", 0].refused == gone.refused


@pytest.mark.parametrize(("ours", "verdict"), [(0.95, MET), (0.96, NOT_MET)])
def test_the_best_softmax_is_what_counts(ours, verdict):
    table = rows(
        row(FORWARD, "triton", 7.0),  # from other rounds
        row(FORWARD, "sdpa-flash", 2.0, beside=(0.1, ours)),
        row(FORWARD, "sdpa-cudnn", 1.0, beside=(0.1, ours)),
        row(FORWARD, "flash-attn-3", refused="not installed"),
        row(FORWARD, "triton-sigmoid", 0.1, beside=(0.1, ours)),  # no softmax
    )
    judged = standing(target("times the best softmax: full"), with_ours(table))
    assert (judged.verdict, judged.by) == (verdict, ("triton",))
    assert judged.against == ("sdpa-flash", "sdpa-cudnn")


def test_a_ratio_to_a_slow_softmax_decides_nothing():
    goal = target("times the best softmax: full")
    table = rows(row(FORWARD, "triton", 1.0), row(FORWARD, "sdpa-flash", 2.0, beside=(1.0, 1.0)))
    assert standing(goal, with_ours(table)).verdict == INCOMPLETE
    table |= rows(row(FORWARD, "sdpa-flash", 0.5, beside=(1.0, 1.0)))
    assert standing(goal, with_ours(table)).verdict == NOT_MET


def test_no_peer_may_be_faster_on_short_rows():
    goal = target("short rows, times the best peer: 2048 128")
    table = {}
    for case, _, _ in goal.keys:
        table |= rows(row(case, "triton", 1.0), row(case, "sdpa-cudnn", 1.5, beside=(1.0, 1.0)))
    assert standing(goal, with_ours(table)).verdict == INCOMPLETE
    for case, _, _ in goal.keys:
        # Measured in rounds of its own, in which ours was as much slower.
        table |= rows(row(case, "triton-sigmoid", 2.02, beside=(9.0, 2.0)))
    assert standing(goal, with_ours(table)).verdict == MET
    table |= rows(row(goal.keys[0][0], "triton-sigmoid", 1.98, beside=(0.1, 2.0)))
    assert standing(goal, with_ours(table)).verdict == NOT_MET


@pytest.mark.parametrize(("share", "verdict"), [(0.86, MET), (0.84, NOT_MET)])
def test_decoding_is_measured_by_a_copy(share, verdict):
    goal = target("decoding")
    copied = 4e12
    table = rows(row(COPY, "copy", 2 * 2 * 2**31 / copied))
    for case, _, _ in goal.keys:
        # Keys and values of 8 heads, two bytes a number.
        read_bytes = 2 * case.batch * 8 * 32768 * 128 * 2
        table |= rows(row(case, "triton", read_bytes / (share * copied)))
    judged = standing(goal, with_ours(table))
    assert judged.verdict == verdict
    assert judged.worst is not None and judged.worst[1] == pytest.approx(share)


@pytest.mark.parametrize(
    ("worst", "verdict"), [(1.1, MET), (1.11, NOT_MET), (math.nan, NOT_MET), (math.inf, NOT_MET)]
)
def test_the_worst_part_decides_about_errors(worst, verdict):
    goal = target("error in units of rounding: 2048")
    table = {}
    for case, _, _ in goal.keys:
        table |= rows(row(case, "triton", error={"output": 1.0, "key": worst}))
    assert standing(goal, with_ours(table)).verdict == NOT_MEASURED  # gluon errs, too
    for case, _, _ in goal.keys:
        table |= rows(row(case, "gluon", error={"output": 1.0, "key": 1.0}))
    assert standing(goal, with_ours(table)).verdict == verdict


@pytest.mark.parametrize(
    ("refused", "verdict"), [("NotImplementedError: no", MET), ("the process ended (3)", NOT_MET)]
)
def test_a_kernel_need_not_take_a_case_but_must_survive_it(refused, verdict):
    goal = target("ALiBi as it is timed, error in units of rounding: 16384")
    ((case, _, _),) = goal.keys
    assert case == plan.alibi_error(16384)
    table = rows(row(case, "triton", error={"key": 1.0}), row(case, "gluon", refused=refused))
    assert standing(goal, with_ours(table)).verdict == verdict


# Publishing ---------------------------------------------------------------------------------------


def made_up():
    short = replace(FORWARD, length=4096, batch=4)
    paged = replace(DECODE, feature="paged 16")
    feature = Case(
        "error", "bf16", 1003, 80, "causal", heads=4, batch=2, key_heads=2, feature="softcap"
    )
    alibi = Case("alibi-forward", "bf16", 65536, 128, "causal", heads=16)
    return rows(
        row(FORWARD, "gluon", at(FORWARD, 700)),
        row(FORWARD, "sdpa-cudnn", at(FORWARD, 600)),
        row(FORWARD, "flash-attn-3", refused="ModuleNotFoundError: No module named 'x'"),
        row(short, "gluon", at(short, 500)),
        row(COPY, "copy", 2 * 2 * 2**31 / 4e12),
        row(DECODE, "triton", 2 * 8 * 32768 * 128 * 2 / 3e12),
        replace(
            row(paged, "triton", 2 * 8 * 32768 * 128 * 2 / 2e12), stamp=STAMP | {"graph": False}
        ),
        row(alibi, "gluon", 0.004),
        row(alibi, "sdpa-cudnn", 0.1, beside=(0.004, 0.005)),
        row(ERROR, "triton", error={"output": 1.02, "key": 1.04}),
        row(ERROR, "triton-sigmoid", error={"output": 20.5}),
        row(feature, "triton", error={"output": 0.98}),
    )


def lines_of(page: str, beginning: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(beginning)]


def test_the_page_holds_what_the_rows_hold():
    readings = {"rate of x": Reading("rate of x", "a clock", (15.5, 16.5, 16.0))}
    page = gpu_pages({"NVIDIA H200": (made_up(), readings)})[PAGE].decode()
    head, _, gluon, cudnn = page[page.index("| Forward, full, D = 128, TFLOP/s") :].splitlines()[:4]
    assert head.endswith("| n = 512 | n = 1k | n = 2k | n = 4k | n = 8k | n = 16k |")
    assert gluon.endswith("| – | – | – | 500 ±10% | – | 700 ±10% |")
    assert cudnn.endswith("| – | – | – | – | – | 600 ±10% |")
    assert "Forward, causal, D = 64, TFLOP/s: not measured on this device yet." in page
    (triton,) = [line for line in page.splitlines() if "3000 (75%)" in line]
    assert triton.endswith("2000 (50%), no graph | – | – |")
    assert any(line.endswith("| 4 (25.0×) |") for line in lines_of(page, "| this operator, gluon"))
    assert any("| 1.04 |" in line for line in lines_of(page, "| this operator, triton"))
    assert any("| 20.5 |" in line for line in lines_of(page, "| triton-sigmoid"))
    assert lines_of(page, "| softcap, triton | – | – | 0.98 |")
    assert "| rate of x | 16 | a clock | 15.5 to 16.5 |" in page
    assert (
        "- flash_attn 3: ModuleNotFoundError: No module named 'x' (forward bf16 D=128 n=16k)"
        in page
    )
    assert "Driver 570.1, torch 2.11.0, triton 3.6.0, 2026-01-02; source 0123." in page


def test_rows_limited_by_the_host_are_marked_and_table_cells_are_escaped():
    bound = replace(row(FORWARD, "triton", at(FORWARD, 700)), cpu=(at(FORWARD, 700) * 1.1,) * 3)
    free = replace(row(FORWARD, "gluon", at(FORWARD, 700)), cpu=(at(FORWARD, 700) * 0.5,) * 3)
    refused = Reading("x", "a clock", refused="a | b")
    page = gpu_pages({"NVIDIA H200": (rows(bound, free), {"x": refused})})[PAGE].decode()
    assert lines_of(page, "| this operator, triton")[0].endswith("700 ±10%, host |")
    assert lines_of(page, "| this operator, gluon")[0].endswith("700 ±10% |")
    assert "| x | – | a clock | a \\| b |" in page


def test_goals_say_by_whom_and_against_whom():
    table = rows(
        row(FORWARD, "triton", at(FORWARD, 700)),
        row(FORWARD, "sdpa-cudnn", 1.0, beside=(0.5, 0.6)),
    )
    page = gpu_pages({"NVIDIA H200": (table, {})})[PAGE].decode()
    (goal,) = lines_of(page, "| times the best softmax: full")
    assert goal.endswith("| 1.67 | met | triton | SDPA, cuDNN |")


def test_each_device_has_its_picture():
    files = gpu_pages({"NVIDIA H200": (made_up(), {}), "NVIDIA A100": (made_up(), {})})
    assert len(files) == 3
    for name in ("gpu-nvidia-h200.svg", "gpu-nvidia-a100.svg"):
        assert f"(benchmarks/{name})" in files[PAGE].decode()
        assert name[11:15].upper() in files[f"docs/benchmarks/{name}"].decode()


def test_the_command_ends_in_nine_minutes_in_every_case():
    # With twenty seconds to start and to publish.
    longest = 60 * command_line.Gpu().minutes + driver.EXIT_TIMEOUT + SMI_SECONDS + 20
    assert longest < 540
    assert {unit.seconds <= 40 for unit in units()} == {True}


def test_a_copy_has_no_flops():
    ((*_, rate, _, _, _),) = zip(
        *(column.cells for column in listing([row(COPY, "copy", 1.0)]).columns), strict=True
    )
    assert rate == "–"


def test_a_page_without_measurements_states_that():
    files = gpu_pages(gpu_results(command.Path("nowhere")))
    assert files.keys() == {PAGE}
    page = files[PAGE].decode()
    assert f"## {REFERENCE}\n\nNot measured on this device yet." in page
    assert not any(
        character.isdigit()
        for line in lines_of(page, "| TFLOP")
        for character in line.split("|")[3]
    )
    assert "svg" not in page


def test_the_picture_is_whole_and_has_a_line_a_peer():
    files = gpu_pages({"NVIDIA H200": (made_up(), {})})
    root = ET.fromstring(files["docs/benchmarks/gpu-nvidia-h200.svg"])
    classes = [element.get("class", "") for element in root.iter()]
    # In the legend and in the panel.
    assert classes.count("line gluon mean") == 2
    assert classes.count("line sdpa-cudnn mean") == classes.count("line sdpa-cudnn alone") == 1
    assert "line triton mean" not in classes
    titles = [group[0].text for group in root.iter() if group.get("class") == "title"]
    assert titles == ["TFLOP/s on NVIDIA H200", "Forward, full"]
    width = float(root.get("width", "0"))
    assert all(0 <= float(element.get("x", "0")) <= width for element in root.iter())


def test_a_machine_with_a_gpu_alone_publishes_and_judges(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    results = tmp_path / "results"
    write(results / "gpu-nvidia-h200.jsonl", made_up())
    command.reading_files.write(
        readings_file(results / "gpu-nvidia-h200.jsonl"), [Reading("a", "x", (1.0,))]
    )
    assert main(["publish", str(results)]) == 0
    assert "| a | 1 | x | 1 to 1 |" in (tmp_path / PAGE).read_text()
    assert (tmp_path / "docs/benchmarks/gpu-nvidia-h200.svg").exists()
    assert not (tmp_path / "docs/benchmarks.md").exists()
    assert main(["targets", str(results)]) == 1
    output = capsys.readouterr().out
    assert output.startswith("NVIDIA H200:")
    assert f" of {len(read_targets(GPU_TARGETS))} targets met" in output


def test_rows_are_lines_that_say_everything(tmp_path):
    write(tmp_path / "gpu-x.jsonl", made_up())
    for line in (tmp_path / "gpu-x.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["machine"]["accelerator"] == "NVIDIA H200" and values["driver"]
        assert values["versions"]["torch"] and values["threads"] == 0
