"""`python -m benchmarks gpu`: its plan, and the rows that it keeps."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import command, plan, stamp
from benchmarks.gpu.command import Store
from benchmarks.gpu.peers import OURS
from benchmarks.gpu.plan import KINDS, Unit, units
from benchmarks.gpu.readings import Reading
from benchmarks.operations import Case
from benchmarks.rows import Row, read
from benchmarks.targets import GPU_TARGETS, read_targets
from tests.support.benchmarks.gpu_rows import COPY, DECODE, FORWARD, STAMP

# The plan -----------------------------------------------------------------------------------------


def test_each_unit_comes_once_and_the_targets_before_the_rest():
    everything = units()
    named = [(u.kind, u.case, u.reading, peer) for u in everything for peer in u.peers or ("",)]
    assert len(set(named)) == len(named)
    targeted = {case for target in read_targets(GPU_TARGETS) for case, _, _ in target.keys}
    order: dict = {}
    for place, unit in enumerate(everything):
        for peer in unit.peers:
            order.setdefault((unit.case, peer), place)
    goals = [order[case, "triton"] for case in targeted]
    tuned = [order[each] for each in order if each[1] in ("triton-sigmoid", "flex-sigmoid")]
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
        assert first[peer].timeout == 30.0 and first[peer].peers == (peer,)


def test_triton_sigmoid_is_timed_before_its_errors_and_long_before_short_rows():
    everything = [unit for unit in units() if "triton-sigmoid" in unit.peers]
    # Only what no goal needs comes after; for that it chooses anew.
    timed = [u for u in everything if u.case and u.case.length not in plan.OTHERS]
    assert [unit.kind for unit in timed] == sorted((u.kind for u in timed), reverse=True)
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
    checked = {
        (u.case.dim, u.case.feature)
        for u in units(("errors",))
        if u.case and "gluon" in u.peers and u.case.length == plan.FEATURE_LENGTH
    }
    features = ("window", "head bias", "fixed head bias", "alibi", "bounded alibi", "fewer queries")
    assert checked >= {(dim, feature) for dim in (64, 128) for feature in features}


def test_all_kinds_and_all_of_the_issue_s_peers_are_in_the_plan():
    assert {unit.kind for unit in units()} == set(KINDS)
    assert {unit.kind for unit in units(("errors",))} == {"errors"}
    peers = {peer for unit in units() if unit.case == FORWARD for peer in unit.peers}
    assert peers >= {"gluon", "triton", "sdpa-flash", "sdpa-cudnn", "flash-attn-2"}
    assert peers >= {"flash-attn-3", "flex-sigmoid", "triton-sigmoid"}
    errors = {c.length for c in plan.cases("error") if not c.feature}
    assert (min(errors), max(errors)) == (128, 131072)
    assert {c.batch for c in plan.cases("decode") if not c.feature} == {1, 2, 4, 8, 16, 32, 64}


# Keeping rows -------------------------------------------------------------------------------------


def test_rows_and_readings_carry_the_device_and_are_not_measured_twice(tmp_path, monkeypatch):
    measured: list = []
    monkeypatch.setattr(
        command, "query_state", lambda gpu: measured.append(gpu) or {"clocks.sm": 1980.0}
    )
    path = tmp_path / "gpu-x.jsonl"
    store = Store(path, STAMP, "GPU-0")
    unit = Unit("speed", FORWARD, ("gluon", "triton"), 1.0)
    tanh, rates = (Unit("readings", None, (), 1.0, name) for name in ("tanh", "rates"))
    plan = [unit, tanh, rates]
    assert store.left(plan) == plan
    store.keep(Row(FORWARD, "gluon", 0, wall=(1.0,), stamp={"graph": False}))
    # After a case that was not tried.
    assert store.left(plan) == [tanh, rates, unit]
    store.keep(Row(FORWARD, "triton", 0, refused="NotImplementedError: no"))
    store.keep(Reading("tanh.approx.f32, largest relative error", "relative", (1e-5,)))
    assert store.left(plan) == [rates]
    assert Store(path, STAMP).left(plan) == [rates]
    kept = read(path)[FORWARD, "gluon", 0]
    assert kept.stamp["state"] == {"clocks.sm": 1980.0}
    assert kept.stamp["driver"] == "570.1" and kept.stamp["graph"] is False
    assert measured == ["GPU-0"]  # not for every row
    for changed in ({"source": "4"}, {"bench": "5"}, {"driver": "6"}, {"switches": {"A": "1"}}):
        assert Store(path, STAMP | changed).left(plan) == plan
    host = {"machine": STAMP["machine"] | {"cores": 3, "memory_bytes": 5}}
    assert Store(path, STAMP | host).left(plan) == [rates]


def test_a_peer_that_failed_is_measured_again_beside_ours(monkeypatch):
    monkeypatch.setattr(command, "query_state", lambda gpu: {})
    store = Store(None, STAMP)
    unit = Unit("speed", FORWARD, ("gluon", "triton", "sdpa-flash", "flash-attn-3"), 1.0)
    for peer in ("gluon", "triton"):
        store.keep(Row(FORWARD, peer, 0, wall=(1.0,)))
    store.keep(Row(FORWARD, "flash-attn-3", 0, refused="ModuleNotFoundError: none"))
    store.keep(Row(FORWARD, "sdpa-flash", 0, refused="OutOfMemoryError: CUDA out of memory"))
    assert store.left([unit]) == [replace(unit, peers=("sdpa-flash",), beside=OURS)]
    # All are compared with ours: without our rows no other row has a use.
    store.keep(Row(FORWARD, "triton", 0, refused="no answer within 60 s; it was killed"))
    assert store.left([unit]) == [unit]


def test_nvidia_smi_without_an_answer_is_called_once(tmp_path, monkeypatch):
    calls: list = []

    def stuck(query, timeout, **_):
        calls.append((query[-1], timeout))
        raise subprocess.TimeoutExpired(query, timeout)

    monkeypatch.setattr(command.reading_files.shutil, "which", lambda name: name)
    monkeypatch.setattr(command.reading_files.subprocess, "run", stuck)
    path = tmp_path / "gpu-x.jsonl"
    store = Store(path, STAMP, "GPU-0")
    for peer in ("gluon", "triton"):
        store.keep(Row(FORWARD, peer, 0, refused="no"))
    assert calls == [("--id=GPU-0", 3.0)]
    assert [row.stamp["state"] for row in read(path).values()] == [{}, {}]


def test_the_benchmark_s_own_source_is_part_of_the_conditions():
    for name in stamp.MEASURING:
        assert (stamp.HERE / f"{name}.py").exists()


def test_a_run_follows_the_options_of_the_command(tmp_path, monkeypatch, capsys):
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
    monkeypatch.setattr(command, "query_state", lambda gpu: {})
    monkeypatch.setattr(command, "execute_plan", carried_out)
    argv = ["gpu", "--only", "speed", "--minutes", "2", "--out", str(tmp_path)]
    assert main(argv) == 0
    ((first, device, seconds),) = seen
    assert (device, seconds) == ("cuda:0", 120.0)
    assert {unit.kind for unit in first} == {"speed"}
    output = capsys.readouterr().out
    assert f"no time was left for {len(first) - 1} of the plan" in output
    assert len(read(tmp_path / "gpu-nvidia-h200.jsonl")) == len(first[0].peers)
    assert main([*argv, "--resume"]) == 0
    assert seen[1][0] == first[1:]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gpu", "gpu: this is why"),
        ("gpu --only spead", "--only must be of readings, errors, speed, got spead"),
        ("gpu --resume", "--resume: needs --out"),
    ],
    ids=["no-gpu", "kind", "resume"],
)
def test_bad_input_gives_one_sentence_and_exit_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(command, "without_gpu", lambda: "this is why")
    assert main(arguments.split()) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


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
