"""The operator that ran, in words; the choice without a kernel; and the ratio of the two."""

import ctypes
import io
import logging

import pytest
import torch
from rich.console import Console

from sigmoid_attention.attention import dispatch, explain
from sigmoid_attention.attention.impl.cpu import cache, library
from sigmoid_attention.attention.impl.cpu import ops as cpu_ops
from sigmoid_attention.attention.impl.cpu.compiler import NoCompiler, find_compiler
from sigmoid_attention.lab.rows import ARMS, ROW_SCHEMA, SIGMOID, SOFTMAX, ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.compare import implementation
from sigmoid_attention.studies.compare.implementation import Operator, fusion, operator_in_use
from sigmoid_attention.studies.compare.results import UNFUSED
from sigmoid_attention.studies.compare.summary import summarise
from sigmoid_attention.studies.compare.verdict import judge
from tests.support.attention.fake_gpu import fake_gpu

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def choose(monkeypatch, **choice):
    monkeypatch.setattr(implementation, "loaded", lambda: None)
    monkeypatch.setattr(implementation, "decision", lambda: library.Choice(**choice))
    monkeypatch.setattr(cpu_ops, "available", lambda: "library" in choice)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"library": ctypes.CDLL(None), "path": "avx2", "origin": "cached"},
         Operator("avx2", "the fused C++ kernel (vector path avx2)")),
        ({"library": ctypes.CDLL(None), "path": "avx2", "problem": "g++ failed"},
         Operator("avx2", "the fused C++ kernel (vector path avx2; g++ failed)")),
        ({"problem": "no C++ compiler was found"},
         Operator("", "PyTorch alone (no fused kernel: no C++ compiler was found)")),
    ],
    ids=["kernel", "lesser kernel", "no kernel"],
)  # fmt: skip
def test_the_operator_in_words(monkeypatch, choice, expected):
    choose(monkeypatch, **choice)
    assert operator_in_use(CPU, QUIET) == expected


def test_on_a_gpu_the_triton_kernels_are_named_and_no_cpu_kernel_is_built(monkeypatch):
    monkeypatch.setattr(implementation, "loaded", pytest.fail)
    with fake_gpu(9, 0):
        operator = operator_in_use(torch.device("cuda"), QUIET)
    assert operator == Operator("triton", "the fused Triton kernels on cuda")


def test_on_a_gpu_that_is_too_old_the_reason_is_named():
    with fake_gpu(7, 5):
        operator = operator_in_use(torch.device("cuda"), QUIET)
    assert operator.path == ""
    assert "PyTorch alone (no fused kernel: query: is on cuda:0 of capability 7.5" in operator.words


def test_on_a_gpu_the_head_dim_counts():
    with fake_gpu(9, 0):
        operator = operator_in_use(torch.device("cuda"), QUIET, head_dim=512)
    assert operator.path == "" and "head dims up to 128" in operator.words


def test_a_kernel_that_is_switched_off_is_none(monkeypatch):
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "off")
    words = "PyTorch alone (no fused kernel: switched off by SIGMOID_ATTENTION_CPU)"
    assert operator_in_use(CPU, QUIET) == Operator("", words)


@pytest.mark.slow
def test_compiling_prints_one_line(monkeypatch, tmp_path):
    try:
        find_compiler()
    except NoCompiler as error:
        pytest.skip(str(error))
    monkeypatch.setattr(library, "_choices", {})
    # Where this process has compiled before, it would compile nothing.
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(cache, "_process_folder", lambda: tmp_path / "own")
    monkeypatch.setenv("SIGMOID_ATTENTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SIGMOID_ATTENTION_CPU", "generic")
    log = logging.getLogger("sigmoid_attention")
    before = log.level, list(log.handlers)
    for text in ("compiling the CPU kernel for generic, once\n", ""):
        console = Console(file=io.StringIO(), width=20)
        assert operator_in_use(CPU, console).path == "generic"
        assert console.file.getvalue() == text
    assert (log.level, log.handlers) == before


@pytest.mark.parametrize("length", [1, 256, 2048, 2049, 4096])
def test_unfused_is_what_auto_takes_without_a_kernel(length):
    query = torch.zeros(1, 2, length, 1, dtype=torch.float64)  # which the CPU kernel refuses
    taken = explain(query, query, query, bias=-1.0, is_causal=True).implementation
    assert dispatch.unfused(1, 2, length, length) == taken


def rows(tmp_path, *parts, words="a kernel"):
    store = Store(tmp_path / "out", {}, {"machine": {implementation.OPERATOR: words}}, resume=False)
    store.put("cost", parts)
    return store.rows()


def steps(arm, *seconds, metric="step_seconds", length=-1):
    return [ArmRow(arm, metric, s, "seconds", step=i, length=length) for i, s in enumerate(seconds)]


def test_gains_are_ratios_by_round(tmp_path):
    fast = [1.0, 2.0, 1.0, 9.0, 1.0, 1.0, 1.0]
    slow = [4 * seconds for seconds in fast]
    reading = fusion(
        rows(
            tmp_path,
            *steps(SOFTMAX, *fast),
            *steps(SIGMOID, *fast),
            # A round that was not finished has no partner.
            *steps(UNFUSED, *slow, 5.0),
            *steps(SIGMOID, *fast, metric="operator_forward_seconds", length=64),
            *steps(UNFUSED, *fast, metric="operator_forward_seconds", length=64),
            *steps(SIGMOID, *fast, metric="operator_forward_seconds", length=32),
        )
    )
    assert reading is not None and reading.operator == "a kernel"
    step, operator = reading.gains
    assert (step.label, operator.label) == ("Training step", "Operator forward, 64 tokens")
    assert (step.unfused.mean, step.fused.mean) == (4.0, 1.0)
    assert (step.ratio.low, step.ratio.mean, step.ratio.high, step.ratio.n) == (0.25,) * 3 + (7,)
    assert operator.ratio.mean == 1.0 and operator.length == 64


def test_without_a_kernel_the_operator_is_named_and_nothing_gained(tmp_path):
    reading = fusion(rows(tmp_path, *(r for arm in ARMS for r in steps(arm, 1.0)), words="PyTorch"))
    assert reading is not None and (reading.operator, reading.gains) == ("PyTorch", [])


def test_without_times_there_is_nothing_to_say(tmp_path):
    assert fusion(ROW_SCHEMA.empty_table()) is None
    assert fusion(rows(tmp_path, *steps(SOFTMAX, 1.0))) is None


def test_the_unfused_arm_moves_neither_summary_nor_verdict(tmp_path):
    arms = [row for arm in ARMS for row in steps(arm, *[1.0, 1.1] * 4)]
    losses = [
        ArmRow(arm, "validation_bits_per_byte", 2.0 + seed / 100, "bits/byte", seed, length=64)
        for arm in ARMS
        for seed in range(3)
    ]
    plain = rows(tmp_path / "plain", *arms, *losses)
    more = rows(tmp_path / "more", *arms, *losses, *steps(UNFUSED, *[70.0] * 8))
    assert repr(summarise(more)) == repr(summarise(plain))
    verdict = judge(summarise(more), more)
    assert verdict == judge(summarise(plain), plain)
    assert verdict.headline.endswith("a training step takes as long")
