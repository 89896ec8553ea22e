"""`python -m benchmarks gpu`, targets and page, from rows that a test made up."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

import benchmarks.__main__ as command_line
from benchmarks.__main__ import main
from benchmarks.gpu import command, plan
from benchmarks.gpu.command import REFERENCE, Store, gpu_results, readings_file
from benchmarks.gpu.measures import with_ours
from benchmarks.gpu.page import PAGE, gpu_pages
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import Reading
from benchmarks.operations import Case, flops
from benchmarks.rows import Row, merged, read, write
from benchmarks.targets import GPU_TARGETS, MET, NOT_MET, read_targets, standing

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


def row(case: Case, peer: str, seconds: float | None = None, **others) -> Row:
    wall = () if seconds is None else (seconds, seconds * 1.1, seconds * 0.9)
    return Row(case, peer, 0, wall=wall, stamp=STAMP, **others)


def rows(*found: Row):
    return merged({}, found)


def at(case: Case, tflops: float) -> float:
    return flops(case) / tflops / 1e12


# The plan -----------------------------------------------------------------------------------------


def test_each_unit_comes_once_and_the_targets_before_the_rest():
    everything = units()
    named = [(unit.kind, unit.case, unit.reading) for unit in everything]
    assert len(set(named)) == len(named)
    wanted = {case for target in read_targets(GPU_TARGETS) for case, _, _ in target.keys}
    order = {unit.case: place for place, unit in enumerate(everything) if unit.case}
    assert wanted <= order.keys()
    heaviest = {case for case in wanted if case.length == 16384}
    features = [order[c] for c in plan.cases("error") if c.feature]
    assert max(order[case] for case in heaviest) < min(features)
    # What decoding is compared with is measured before it.
    assert order[COPY] < order[DECODE]


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
    ("refused", "rate"), [(None, 700), ("no", 600)], ids=["gluon", "gluon-refuses"]
)
def test_ours_is_what_a_user_gets(refused, rate):
    gluon = row(FORWARD, "gluon", None if refused else at(FORWARD, 700), refused=refused)
    for order in ((0, 1), (1, 0)):
        both = [gluon, row(FORWARD, "triton", at(FORWARD, 600))]
        found = with_ours(rows(*(both[i] for i in order)))[FORWARD, "ours", 0]
        assert found.flops_per_second == pytest.approx(rate * 1e12)


@pytest.mark.parametrize(("ours", "verdict"), [(0.95, MET), (0.96, NOT_MET)])
def test_the_best_softmax_is_what_counts(ours, verdict):
    found = rows(
        row(FORWARD, "gluon", ours),
        row(FORWARD, "sdpa-flash", 2.0),
        row(FORWARD, "sdpa-cudnn", 1.0),
        row(FORWARD, "flash-attn-3", refused="not installed"),
        row(FORWARD, "triton-sigmoid", 0.1),  # no softmax
    )
    assert standing(target("times the best softmax: full"), with_ours(found)).verdict == verdict


def test_nobody_at_all_may_be_faster_on_short_rows():
    own = target("short rows, times the best peer: 2048 128")
    found = {}
    for case, _, _ in own.keys:
        found |= rows(row(case, "triton", 1.0), row(case, "triton-sigmoid", 1.01))
    assert standing(own, with_ours(found)).verdict == MET
    found |= rows(row(own.keys[0][0], "triton-sigmoid", 0.99))
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
    assert standing(own, with_ours(found)).verdict == verdict


# Keeping rows -------------------------------------------------------------------------------------


def test_rows_and_readings_carry_the_device_and_are_not_measured_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "asked_for_state", lambda: {"clocks.sm": 1980.0})
    path = tmp_path / "gpu-x.jsonl"
    store = Store(path, STAMP)
    unit = Unit("speed", FORWARD, ("gluon", "triton"), 1.0)
    tanh = Unit("readings", None, (), 1.0, "tanh")
    assert not store.has(unit) and not store.has(tanh)
    store.keep(Row(FORWARD, "gluon", 0, wall=(1.0,), stamp={"graph": False}))
    assert not store.has(unit)
    store.keep(Row(FORWARD, "triton", 0, refused="no"))
    store.keep(Reading("tanh.approx.f32, largest relative error", "relative", (1e-5,)))
    assert store.has(unit) and store.has(tanh)
    assert not store.has(Unit("readings", None, (), 1.0, "rates"))
    again = Store(path, STAMP)
    assert again.has(unit) and again.has(tanh)
    kept = read(path)[FORWARD, "gluon", 0]
    assert kept.stamp["state"] == {"clocks.sm": 1980.0}
    assert kept.stamp["driver"] == "570.1" and kept.stamp["graph"] is False
    changed = Store(path, STAMP | {"source": "4567"})
    assert not changed.has(unit) and not changed.has(tanh)


def test_a_run_is_the_plan_of_what_was_asked_for(tmp_path, monkeypatch, capsys):
    seen = []

    def carried_out(plan, worker, keep, seconds, watched):
        seen.append((plan, worker.command[-1], seconds))
        with watched(plan[0]):
            for peer in plan[0].peers:
                keep(Row(plan[0].case, peer, 0, wall=(1.0, 1.5)))
        return plan[1:]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "gpu_stamp", lambda device: STAMP)
    monkeypatch.setattr(command, "asked_for_state", dict)
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
        ("gpu", "gpu: torch finds no NVIDIA GPU on this machine"),
        ("gpu --only spead", "--only: must be of readings, errors, speed, got spead"),
        ("gpu --resume", "--resume: needs --out"),
    ],
    ids=["no-gpu", "kind", "resume"],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


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
        row(alibi, "sdpa-cudnn", 0.1),
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
    assert lines_of(page, "| softcap, triton | 0.98 |")
    assert "| rate of x | 16 | a clock | 15.5 to 16.5 |" in page
    assert "- flash_attn 3: ModuleNotFoundError: No module named 'x' (forward bf16)" in page
    assert "Driver 570.1, torch 2.11.0, triton 3.6.0, 2026-01-02; source 0123." in page


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
    root = ET.fromstring(gpu_pages({"NVIDIA H200": (made_up(), {})})["docs/benchmarks/gpu.svg"])
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
    assert (tmp_path / "docs/benchmarks/gpu.svg").exists()
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
