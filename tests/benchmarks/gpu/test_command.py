"""`python -m benchmarks gpu`, targets and page, from rows that a test made up."""

import json
import math
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

import benchmarks.__main__ as command_line
from benchmarks.__main__ import main
from benchmarks.gpu import command, driver, plan, stamp
from benchmarks.gpu.command import REFERENCE, Store, gpu_results, readings_file
from benchmarks.gpu.measures import with_ours
from benchmarks.gpu.page import PAGE, gpu_pages
from benchmarks.gpu.peers import OURS
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import SMI_SECONDS, Reading
from benchmarks.listing import listing
from benchmarks.operations import Case, flops
from benchmarks.rows import Row, merged, read, write
from benchmarks.targets import (
    GPU_TARGETS,
    INCOMPLETE,
    MET,
    NOT_MEASURED,
    NOT_MET,
    read_targets,
    standing,
)  # fmt: skip

STAMP = {
    "machine": {"accelerator": "NVIDIA H200", "device": "cuda:0"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "driver": "570.1", "switches": {}, "source": "0123", "kernel": "gpu",
    "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip
FORWARD = Case("forward", "bf16", 16384, 128, "full", heads=16)
DECODE = Case("decode", "bf16", 32768, 128, "full", heads=32, batch=1, key_heads=8)
COPY = Case("copy", "bf16", 2**31, heads=1)
ERROR = Case("error", "bf16", 2048, 128, "causal", heads=2, batch=2)


def row(case: Case, peer: str, seconds: float | None = None, beside=None, **others) -> Row:
    """A row; `beside` is what gluon and triton cost in the same rounds."""
    wall = () if seconds is None else (seconds, seconds * 1.1, seconds * 0.9)
    stamp = STAMP | ({"auto": ["triton"]} if peer in OURS else {})
    if beside is not None:
        stamp |= {"beside": dict(zip(OURS, beside, strict=True))}
    return Row(case, peer, 0, wall=wall, stamp=stamp, **others)


def rows(*found: Row):
    return merged({}, found)


def at(case: Case, tflops: float) -> float:
    return flops(case) / tflops / 1e12


# The plan -----------------------------------------------------------------------------------------


def test_each_unit_comes_once_and_the_targets_before_the_rest():
    everything = units()
    named = [(u.kind, u.case, u.reading, peer) for u in everything for peer in u.peers or ("",)]
    assert len(set(named)) == len(named)
    wanted = {case for target in read_targets(GPU_TARGETS) for case, _, _ in target.keys}
    order: dict = {}
    for place, unit in enumerate(everything):
        for peer in unit.peers:
            order.setdefault((unit.case, peer), place)
    goals = [order[case, "triton"] for case in wanted]
    tuned = [order[own] for own in order if own[1] in ("triton-sigmoid", "flex-sigmoid")]
    features = [order[c, "triton"] for c in plan.cases("error") if c.length == plan.FEATURE_LENGTH
                and (c, "triton") in order]  # fmt: skip
    # Ours first, then those that compile for long, then what no goal needs.
    assert max(goals) < min(tuned) < min(features)
    # What decoding is compared with is measured before it.
    assert order[COPY, "copy"] < order[DECODE, "triton"]
    for length in plan.ALIBI_LENGTHS:
        timed = Case("alibi-forward", "bf16", length, 128, "causal", heads=16)
        assert order[plan.alibi_error(length), "gluon"] + 1 == order[timed, "gluon"]


def test_a_kernel_s_first_call_is_short_and_not_waited_for_long():
    first = {}
    for unit in units():
        for peer in unit.peers:
            first.setdefault(peer, unit)
    for peer in OURS:
        case = first[peer].case
        assert case is not None and (case.operation, case.length) == ("error", 512)
        assert first[peer].patience == 30.0 and first[peer].peers == (peer,)


def test_triton_sigmoid_is_timed_before_its_errors_and_long_before_short_rows():
    everything = [unit for unit in units() if "triton-sigmoid" in unit.peers]
    # Only what no goal needs comes after; for that it chooses anew.
    own = [u for u in everything if u.case and u.case.length not in plan.OTHERS]
    assert [unit.kind for unit in own] == sorted((u.kind for u in own), reverse=True)
    speed = [unit for unit in everything if unit.kind == "speed"]
    assert all(unit.peers == ("triton-sigmoid",) and unit.beside == OURS for unit in speed)
    chosen: dict = {}
    for unit in speed:
        assert unit.case is not None
        end = next(end for end in (512, 2048, 8192, 16384) if unit.case.length <= end)
        key = unit.case.operation, unit.case.dim, unit.case.mask, end
        assert chosen.setdefault(key, unit.case.length) >= unit.case.length
        assert (unit.seconds >= 20) == (chosen[key] == unit.case.length)


def test_gluon_is_checked_with_all_that_it_takes():
    asked = {
        (u.case.dim, u.case.feature)
        for u in units(("errors",))
        if u.case and "gluon" in u.peers and u.case.length == plan.FEATURE_LENGTH
    }
    wanted = ("window", "head bias", "fixed head bias", "alibi", "bounded alibi", "fewer queries")
    assert asked >= {(dim, feature) for dim in (64, 128) for feature in wanted}


def test_all_kinds_and_all_of_the_issue_s_peers_are_in_the_plan():
    assert {unit.kind for unit in units()} == set(KINDS)
    assert {unit.kind for unit in units(("errors",))} == {"errors"}
    peers = {peer for unit in units() if unit.case == FORWARD for peer in unit.peers}
    assert peers >= {"gluon", "triton", "sdpa-flash", "sdpa-cudnn", "flash-attn-2"}
    assert peers >= {"flash-attn-3", "flex-sigmoid", "triton-sigmoid"}
    errors = {c.length for c in plan.cases("error") if not c.feature}
    assert (min(errors), max(errors)) == (128, 131072)
    assert {c.batch for c in plan.cases("decode") if not c.feature} == {1, 2, 4, 8, 16, 32, 64}


# Targets ------------------------------------------------------------------------------------------


def target(name: str):
    (found,) = [t for t in read_targets(GPU_TARGETS) if t.name.startswith(name)]
    return found


@pytest.mark.parametrize(("tflops", "verdict"), [(681, MET), (679, NOT_MET)])
def test_rates_count_matrix_products(tflops, verdict):
    found = standing(
        target("TFLOP/s: forward full 128"),
        with_ours(rows(row(FORWARD, "triton", at(FORWARD, tflops)))),
    )
    assert found.verdict == verdict
    assert found.worst is not None and found.worst[1] == pytest.approx(tflops)


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
    both = [replace(own, stamp=STAMP | {"auto": auto or []}) for own in both]
    for order in ((0, 1), (1, 0)):
        found = with_ours(rows(*(both[i] for i in order))).get((FORWARD, "ours", 0))
        assert (found and found.stamp["by"]) == by
        # Who hangs is what a user gets, too.
        assert found is None or found.refused == (refused if by == "gluon" else None)


def test_who_ended_the_process_before_it_told_is_not_passed_over():
    gone = Row(FORWARD, "triton", 0, refused="the process ended (3)", stamp=STAMP)
    assert with_ours(rows(gone))[FORWARD, "ours", 0].refused == gone.refused


@pytest.mark.parametrize(("ours", "verdict"), [(0.95, MET), (0.96, NOT_MET)])
def test_the_best_softmax_is_what_counts(ours, verdict):
    found = rows(
        row(FORWARD, "triton", 7.0),  # from other rounds
        row(FORWARD, "sdpa-flash", 2.0, beside=(0.1, ours)),
        row(FORWARD, "sdpa-cudnn", 1.0, beside=(0.1, ours)),
        row(FORWARD, "flash-attn-3", refused="not installed"),
        row(FORWARD, "triton-sigmoid", 0.1, beside=(0.1, ours)),  # no softmax
    )
    judged = standing(target("times the best softmax: full"), with_ours(found))
    assert (judged.verdict, judged.by) == (verdict, ("triton",))
    assert judged.against == ("sdpa-flash", "sdpa-cudnn")


def test_to_be_faster_than_a_slow_softmax_decides_nothing():
    own = target("times the best softmax: full")
    found = rows(row(FORWARD, "triton", 1.0), row(FORWARD, "sdpa-flash", 2.0, beside=(1.0, 1.0)))
    assert standing(own, with_ours(found)).verdict == INCOMPLETE
    found |= rows(row(FORWARD, "sdpa-flash", 0.5, beside=(1.0, 1.0)))
    assert standing(own, with_ours(found)).verdict == NOT_MET


def test_nobody_at_all_may_be_faster_on_short_rows():
    own = target("short rows, times the best peer: 2048 128")
    found = {}
    for case, _, _ in own.keys:
        found |= rows(row(case, "triton", 1.0), row(case, "sdpa-cudnn", 1.5, beside=(1.0, 1.0)))
    assert standing(own, with_ours(found)).verdict == INCOMPLETE
    for case, _, _ in own.keys:
        # Measured in rounds of its own, in which ours was as much slower.
        found |= rows(row(case, "triton-sigmoid", 2.02, beside=(9.0, 2.0)))
    assert standing(own, with_ours(found)).verdict == MET
    found |= rows(row(own.keys[0][0], "triton-sigmoid", 1.98, beside=(0.1, 2.0)))
    assert standing(own, with_ours(found)).verdict == NOT_MET


@pytest.mark.parametrize(("share", "verdict"), [(0.86, MET), (0.84, NOT_MET)])
def test_decoding_is_measured_by_a_copy(share, verdict):
    own = target("decoding")
    copied = 4e12
    found = rows(row(COPY, "copy", 2 * 2 * 2**31 / copied))
    for case, _, _ in own.keys:
        # Keys and values of 8 heads, two bytes a number.
        read_bytes = 2 * case.batch * 8 * 32768 * 128 * 2
        found |= rows(row(case, "triton", read_bytes / (share * copied)))
    judged = standing(own, with_ours(found))
    assert judged.verdict == verdict
    assert judged.worst is not None and judged.worst[1] == pytest.approx(share)


@pytest.mark.parametrize(
    ("worst", "verdict"), [(1.1, MET), (1.11, NOT_MET), (math.nan, NOT_MET), (math.inf, NOT_MET)]
)
def test_the_worst_part_decides_about_errors(worst, verdict):
    own = target("error in units of rounding: 2048")
    found = {}
    for case, _, _ in own.keys:
        found |= rows(row(case, "triton", error={"output": 1.0, "key": worst}))
    assert standing(own, with_ours(found)).verdict == NOT_MEASURED  # gluon errs, too
    for case, _, _ in own.keys:
        found |= rows(row(case, "gluon", error={"output": 1.0, "key": 1.0}))
    assert standing(own, with_ours(found)).verdict == verdict


@pytest.mark.parametrize(
    ("refused", "verdict"), [("NotImplementedError: no", MET), ("the process ended (3)", NOT_MET)]
)
def test_a_kernel_need_not_take_a_case_but_must_survive_it(refused, verdict):
    own = target("ALiBi as it is timed, error in units of rounding: 16384")
    ((case, _, _),) = own.keys
    assert case == plan.alibi_error(16384)
    found = rows(row(case, "triton", error={"key": 1.0}), row(case, "gluon", refused=refused))
    assert standing(own, with_ours(found)).verdict == verdict


# Keeping rows -------------------------------------------------------------------------------------


def test_rows_and_readings_carry_the_device_and_are_not_measured_twice(tmp_path, monkeypatch):
    asked: list = []
    monkeypatch.setattr(
        command, "asked_for_state", lambda gpu: asked.append(gpu) or {"clocks.sm": 1980.0}
    )
    path = tmp_path / "gpu-x.jsonl"
    store = Store(path, STAMP, "GPU-0")
    unit = Unit("speed", FORWARD, ("gluon", "triton"), 1.0)
    tanh, rates = (Unit("readings", None, (), 1.0, name) for name in ("tanh", "rates"))
    plan = [unit, tanh, rates]
    assert store.left(plan) == plan
    store.keep(Row(FORWARD, "gluon", 0, wall=(1.0,), stamp={"graph": False}))
    # After what nobody tried.
    assert store.left(plan) == [tanh, rates, unit]
    store.keep(Row(FORWARD, "triton", 0, refused="NotImplementedError: no"))
    store.keep(Reading("tanh.approx.f32, largest relative error", "relative", (1e-5,)))
    assert store.left(plan) == [rates]
    assert Store(path, STAMP).left(plan) == [rates]
    kept = read(path)[FORWARD, "gluon", 0]
    assert kept.stamp["state"] == {"clocks.sm": 1980.0}
    assert kept.stamp["driver"] == "570.1" and kept.stamp["graph"] is False
    assert asked == ["GPU-0"]  # not for every row
    for changed in ({"source": "4"}, {"bench": "5"}, {"driver": "6"}, {"switches": {"A": "1"}}):
        assert Store(path, STAMP | changed).left(plan) == plan
    host = {"machine": STAMP["machine"] | {"cores": 3, "memory_bytes": 5}}
    assert Store(path, STAMP | host).left(plan) == [rates]


def test_who_failed_is_tried_again_beside_ours(monkeypatch):
    monkeypatch.setattr(command, "asked_for_state", lambda gpu: {})
    store = Store(None, STAMP)
    unit = Unit("speed", FORWARD, ("gluon", "triton", "sdpa-flash", "flash-attn-3"), 1.0)
    for peer in ("gluon", "triton"):
        store.keep(Row(FORWARD, peer, 0, wall=(1.0,)))
    store.keep(Row(FORWARD, "flash-attn-3", 0, refused="ModuleNotFoundError: none"))
    store.keep(Row(FORWARD, "sdpa-flash", 0, refused="OutOfMemoryError: CUDA out of memory"))
    assert store.left([unit]) == [replace(unit, peers=("sdpa-flash",), beside=OURS)]
    # All are compared with ours: without them nobody's row is worth anything.
    store.keep(Row(FORWARD, "triton", 0, refused="no answer within 60 s; it was ended"))
    assert store.left([unit]) == [unit]


def test_nvidia_smi_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    asked: list = []

    def stuck(query, timeout, **_):
        asked.append((query[-1], timeout))
        raise subprocess.TimeoutExpired(query, timeout)

    monkeypatch.setattr(command.of_device.shutil, "which", lambda name: name)
    monkeypatch.setattr(command.of_device.subprocess, "run", stuck)
    path = tmp_path / "gpu-x.jsonl"
    store = Store(path, STAMP, "GPU-0")
    for peer in ("gluon", "triton"):
        store.keep(Row(FORWARD, peer, 0, refused="no"))
    assert asked == [("--id=GPU-0", 3.0)]
    assert [row.stamp["state"] for row in read(path).values()] == [{}, {}]


def test_the_benchmark_s_own_source_is_part_of_the_conditions():
    for name in stamp.MEASURING:
        assert (stamp.HERE / f"{name}.py").exists()


def test_a_run_is_the_plan_of_what_was_asked_for(tmp_path, monkeypatch, capsys):
    seen = []

    def carried_out(plan, worker, keep, seconds, watched, ends):
        seen.append((plan, worker.command[-1], seconds))
        with watched(plan[0]):
            for peer in plan[0].peers:
                keep(Row(plan[0].case, peer, 0, wall=(1.0, 1.5)))
        return plan[1:]

    monkeypatch.setattr(command, "without_gpu", lambda: "")
    monkeypatch.setattr(command, "gpu_id", lambda device: "GPU-0")
    monkeypatch.setattr(command, "gpu_stamp", lambda device: STAMP)
    monkeypatch.setattr(command, "asked_for_state", lambda gpu: {})
    monkeypatch.setattr(command, "carry_out", carried_out)
    asked = ["gpu", "--only", "speed", "--minutes", "2", "--out", str(tmp_path)]
    assert main(asked) == 0
    ((first, device, seconds),) = seen
    assert (device, seconds) == ("cuda:0", 120.0)
    assert {unit.kind for unit in first} == {"speed"}
    said = capsys.readouterr().out
    assert f"no time was left for {len(first) - 1} of the plan" in said
    assert len(read(tmp_path / "gpu-nvidia-h200.jsonl")) == len(first[0].peers)
    assert main([*asked, "--resume"]) == 0
    assert seen[1][0] == first[1:]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gpu", "gpu: this is why"),
        ("gpu --only spead", "--only: must be of readings, errors, speed, got spead"),
        ("gpu --resume", "--resume: needs --out"),
    ],
    ids=["no-gpu", "kind", "resume"],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(command, "without_gpu", lambda: "this is why")
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("cuda", "available", "driver", "sentence"),
    [
        (None, False, True, "torch .* is built without CUDA"),
        ("13.0", False, False, "torch finds no NVIDIA GPU"),
        (
            "13.0",
            False,
            True,
            r"cannot use .* NVIDIA driver 550\.54: too old for CUDA 13",
        ),
        ("13.0", True, True, "^$"),
    ],
    ids=["cpu-build", "no-gpu", "old-driver", "gpu"],
)
def test_why_there_is_no_gpu(cuda, available, driver, sentence, monkeypatch, tmp_path):
    if driver:
        (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX  550.54  Fri")
    monkeypatch.setattr(command, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert re.search(sentence, command.without_gpu())


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
    page = gpu_pages({"NVIDIA H200": (made_up(), readings)})[PAGE]
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


def test_what_the_host_may_have_been_is_marked_and_no_reason_breaks_a_table():
    bound = replace(row(FORWARD, "triton", at(FORWARD, 700)), cpu=(at(FORWARD, 700) * 1.1,) * 3)
    free = replace(row(FORWARD, "gluon", at(FORWARD, 700)), cpu=(at(FORWARD, 700) * 0.5,) * 3)
    refused = Reading("x", "a clock", refused="a | b")
    page = gpu_pages({"NVIDIA H200": (rows(bound, free), {"x": refused})})[PAGE]
    assert lines_of(page, "| this operator, triton")[0].endswith("700 ±10%, host |")
    assert lines_of(page, "| this operator, gluon")[0].endswith("700 ±10% |")
    assert "| x | – | a clock | a \\| b |" in page


def test_goals_say_by_whom_and_against_whom():
    found = rows(
        row(FORWARD, "triton", at(FORWARD, 700)),
        row(FORWARD, "sdpa-cudnn", 1.0, beside=(0.5, 0.6)),
    )
    page = gpu_pages({"NVIDIA H200": (found, {})})[PAGE]
    (goal,) = lines_of(page, "| times the best softmax: full")
    assert goal.endswith("| 1.67 | met | triton | SDPA, cuDNN |")


def test_each_device_has_its_picture():
    files = gpu_pages({"NVIDIA H200": (made_up(), {}), "NVIDIA A100": (made_up(), {})})
    assert len(files) == 3
    for name in ("gpu-nvidia-h200.svg", "gpu-nvidia-a100.svg"):
        assert f"(benchmarks/{name})" in files[PAGE]
        assert name[11:15].upper() in files[f"docs/benchmarks/{name}"]


def test_the_command_ends_in_nine_minutes_whatever_happens():
    # With twenty seconds to start and to publish.
    longest = 60 * command_line.Gpu().minutes + driver.PATIENCE_AT_END + SMI_SECONDS + 20
    assert longest < 540
    assert {unit.seconds <= 40 for unit in units()} == {True}


def test_a_copy_has_no_flops():
    ((*_, rate, _, _, _),) = zip(
        *(column.cells for column in listing([row(COPY, "copy", 1.0)]).columns), strict=True
    )
    assert rate == "–"


def test_nothing_measured_is_said_to_be_so():
    files = gpu_pages(gpu_results(command.Path("nowhere")))
    assert files.keys() == {PAGE}
    page = files[PAGE]
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
    kinds = [element.get("class", "") for element in root.iter()]
    # In the legend and in the panel.
    assert kinds.count("line gluon") == kinds.count("line gluon mean") == 1
    assert kinds.count("line sdpa-cudnn mean") == 1 and "line triton mean" not in kinds
    titles = [text.text for text in root.iter() if text.get("class") == "title"]
    assert titles == ["TFLOP/s on NVIDIA H200", "Forward, full"]
    width = float(root.get("width", "0"))
    for box in root:
        assert float(box.get("x", "0")) + float(box.get("width", "0")) <= width


def test_a_machine_with_a_gpu_alone_publishes_and_judges(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    results = tmp_path / "results"
    write(results / "gpu-nvidia-h200.jsonl", made_up())
    command.of_device.write(
        readings_file(results / "gpu-nvidia-h200.jsonl"), [Reading("a", "x", (1.0,))]
    )
    assert main(["publish", str(results)]) == 0
    assert "| a | 1 | x | 1 to 1 |" in (tmp_path / PAGE).read_text()
    assert (tmp_path / "docs/benchmarks/gpu-nvidia-h200.svg").exists()
    assert not (tmp_path / "README.md").exists()
    assert main(["targets", str(results)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("NVIDIA H200:")
    assert f" of {len(read_targets(GPU_TARGETS))} targets met" in said


def test_rows_are_lines_that_say_everything(tmp_path):
    write(tmp_path / "gpu-x.jsonl", made_up())
    for line in (tmp_path / "gpu-x.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values["machine"]["accelerator"] == "NVIDIA H200" and values["driver"]
        assert values["versions"]["torch"] and values["threads"] == 0
