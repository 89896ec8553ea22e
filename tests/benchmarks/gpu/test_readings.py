"""The readings follow from the timed loops, and these loops hold the intended instructions."""

import json
import math
import subprocess
import types

import pytest
import torch

from benchmarks.gpu import mufu, readings
from benchmarks.gpu.readings import Reading, errors_of, rates_of, read, write
from benchmarks.timing import Seconds
from tests.support.attention.cross_compile import cross_compile

CPU = torch.device("cpu")


def test_rates_are_relative_to_that_of_the_fma():
    seconds = {"fma.rn.f32": [1.0, 2.0], "tanh.approx.f32": [8.0, 16.0], "pair": [8.0, 32.0]}
    results = {"fma.rn.f32": 1, "tanh.approx.f32": 1, "pair": 2}
    fma, tanh, pair = rates_of(seconds, results)
    assert fma.values == (128.0, 128.0)
    assert tanh.values == (16.0, 16.0) and tanh.name == "rate of tanh.approx.f32"
    assert pair.values == (32.0, 16.0) and pair.value == 24.0


def test_errors_of_a_tanh_are_those_that_it_was_given():
    def coarse(x):
        return x.tanh() * (1 - 1e-5)

    tanh, *weights = errors_of(coarse, CPU)
    assert tanh.value == pytest.approx(1e-5, rel=0.05)
    # Where the weight is 1 / n, an error of 5e-6 is n times as large.
    for n, reading in zip(readings.LENGTHS, weights, strict=True):
        assert str(n) in reading.name
        middle = 5e-6 * math.sinh(2) ** 0.5 * n
        assert reading.value == pytest.approx(middle, rel=0.5)


@pytest.mark.parametrize("instruction", mufu.INSTRUCTIONS)
def test_a_loop_holds_nothing_but_the_instruction(instruction):
    results = mufu.INSTRUCTIONS[instruction]
    constants = {
        "STEPS": mufu.STEPS, "UNROLLED": mufu.UNROLLED, "SIZE": mufu.SIZE,
        "ASM": mufu.asm(instruction), "PAIRS": results == 2,
    }  # fmt: skip
    code = cross_compile(mufu.chain, {"out": "*fp32"}, constants, num_warps=mufu.WARPS)
    name = "FFMA" if instruction == mufu.FMA else "MUFU"
    (loop,) = code.inner(name)
    # Of a pair each half is an instruction of its own.
    assert loop.count(name) % (mufu.UNROLLED * mufu.NUMBERS_A_THREAD * results) == 0
    beside = len(loop) - loop.count(name) - loop.count("FADD")
    assert beside <= 0.1 * loop.count(name)
    assert code.spills == 0


def test_the_tanh_that_errs_is_the_hardware_s():
    signature = {"x": "*fp32", "out": "*fp32", "size": "i32"}
    code = cross_compile(mufu.hardware_tanh, signature, {"BLOCK": 1024}, num_warps=4)
    assert code.count("MUFU.TANH") == 1024 // 128


def test_a_reading_takes_the_place_of_the_older(tmp_path):
    path = tmp_path / "gpu-readings.jsonl"
    assert read(path) == {}
    write(path, [Reading("a", "x", (1.0, 3.0, 2.0), stamp={"date": "now"}), Reading("b", "y")])
    assert read(path)["a"] == Reading("a", "x", (1.0, 3.0, 2.0), stamp={"date": "now"})
    assert read(path)["a"].value == 2.0
    assert len(path.read_text().splitlines()) == 2
    assert json.loads(path.read_text().splitlines()[1])["refused"] is None


@pytest.mark.parametrize("ended", [(), (1, 3)], ids=["loaded", "idle-twice"])
def test_clocks_are_read_under_load(ended, monkeypatch):
    looks, queued = iter(range(9)), []

    class Event:
        def record(self):
            queued.append("end")

        def query(self):
            return next(looks) in ended

    for name, stub in (("Event", Event), ("synchronize", lambda device: queued.append("wait"))):
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch, "mm", lambda left, right: queued.append("product"))
    monkeypatch.setattr(readings, "PRODUCT", 4)
    monkeypatch.setattr(readings, "gpu_id", lambda device: "GPU-0")
    monkeypatch.setattr(readings, "gpu_stopwatch", lambda: lambda work: Seconds(0.25, 0.0))
    monkeypatch.setattr(
        readings, "query_state", lambda gpu: queued.append(gpu) or {"clocks.sm": 1980.0}
    )
    by_name = {reading.name: reading for reading in readings.clocks(CPU)}
    assert by_name["clocks.sm under load"].values == (1980.0,) * (5 - len(ended))
    assert "does not report" in str(by_name["power.draw under load"].refused)
    # A second of work before each reading, without a wait in between.
    assert queued == (["product"] * 4 + ["end", "GPU-0"]) * 5 + ["wait"]


def test_a_gpu_is_known_by_its_uuid(monkeypatch):
    for uuid, name in (("1-2", "GPU-1-2"), ("GPU-1-2", "GPU-1-2"), ("", "")):
        properties = types.SimpleNamespace(uuid=uuid)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, own=properties: own)
        assert readings.gpu_id(CPU) == name


@pytest.mark.parametrize("error", [OSError(), subprocess.TimeoutExpired("x", 3)], ids=repr)
def test_state_is_nothing_where_nvidia_smi_fails(error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(readings.shutil, "which", lambda name: name)
    monkeypatch.setattr(readings.subprocess, "run", fails)
    assert readings.query_state("GPU-0") == {}


def test_state_is_empty_without_a_source(monkeypatch):
    monkeypatch.setattr(readings.shutil, "which", lambda name: None)
    assert readings.query_state() == {}
