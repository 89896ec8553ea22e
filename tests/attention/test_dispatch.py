"""The choice of "auto" among implementations, its explanation, and the log of refusals."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor

from sigmoid_attention import (
    NegLogLength,
    explain,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention import dispatch, index_tensors
from sigmoid_attention.attention.dispatch import Backend
from sigmoid_attention.attention.impl import reference_blocks
from sigmoid_attention.attention.impl.cpu.ops import available
from tests.support.attention.fake_gpu import fake_gpu

OPTIONS = {"bias": NegLogLength(64), "is_causal": True}
with_kernel = pytest.mark.skipif(not available(), reason="no CPU kernel here")


def qkv(dtype=torch.float32, device="cpu", queries=9, **options) -> list[Tensor]:
    query = torch.zeros(2, 4, queries, 8, dtype=dtype, device=device, **options)
    return [query, *(torch.zeros(2, 4, 9, 8, dtype=dtype, device=device, **options),) * 2]


def packed(**options) -> tuple[Tensor, ...]:
    ends = torch.tensor([0, 4, 9], device=options.get("device", "cpu"))
    return *(torch.zeros(9, 4, 8, **options),) * 3, ends, ends


def reasons(explanation) -> dict[str, str]:
    return dict(explanation.refusals)


@with_kernel
def test_a_call_on_a_cpu():
    explanation = explain(*qkv(), **OPTIONS)
    assert explanation.implementation == "cpu"
    refusals = reasons(explanation)
    assert refusals.keys() == dispatch.BACKENDS.keys() - {"cpu"}
    assert refusals["reference"] == "cpu comes first"
    assert "above 8,388,608 scores" in refusals["tiled"] and "648" in refusals["tiled"]
    assert "name" in refusals["flex"]
    lines = str(explanation).splitlines()
    assert lines[0] == "impl='auto': cpu" and len(lines) == len(dispatch.BACKENDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.implementation = "flex"


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (qkv(torch.float64), {}, "no torch.float64"),
        (qkv(), {"dropout_p": 0.5}, "dropout_p"),
    ],
    ids=["fp64", "dropout"],
)
def test_the_reason_is_what_the_named_implementation_raises(arguments, options, reason):
    explanation = explain(*arguments, **OPTIONS, **options)
    assert explanation.implementation == "reference"
    assert reason in reasons(explanation)["cpu"]
    with pytest.raises(NotImplementedError) as refusal:
        sigmoid_attention(*arguments, **OPTIONS, **options, impl="cpu")
    assert str(refusal.value) == reasons(explanation)["cpu"]


def test_many_scores_go_to_tiles(monkeypatch):
    monkeypatch.setattr(reference_blocks, "DENSE_SCORES", 10)
    explanation = explain(*qkv(torch.float64), **OPTIONS)
    assert explanation.implementation == "tiled"
    assert reasons(explanation)["reference"] == "tiled comes first"


@with_kernel
def test_packed_and_cached_calls():
    tokens = packed()
    assert explain(*tokens, 5, 5, bias=-1.0).implementation == "cpu"
    named = dict(zip(("cu_seq_q", "cu_seq_k", "max_q", "max_k"), (*tokens[3:], 5, 5), strict=True))
    by_name = explain(*tokens[:3], **named, bias=-1.0)
    assert by_name == explain(*tokens, 5, 5, bias=-1.0)
    used = torch.tensor([9, 3])
    cached = explain(*qkv(queries=1), seqused_k=used, **OPTIONS)
    assert cached.implementation == "cpu"
    assert "one sequence a row" in reasons(cached)["tiled"]
    pages = torch.zeros(6, 3, 4, 8, requires_grad=True)
    table = torch.tensor([[0, 1, 2], [3, 4, 5]])
    paged = explain(qkv(queries=1)[0], pages, pages, seqused_k=used, block_table=table, **OPTIONS)
    assert paged.implementation == "reference"
    assert "no gradient of a paged cache" in reasons(paged)["cpu"]


def test_a_named_implementation():
    explanation = explain(*qkv(), **OPTIONS, impl="tiled")
    assert explanation.implementation == "tiled"
    assert reasons(explanation)["reference"] == "the call names impl='tiled'"
    refused = explain(*qkv(), **OPTIONS, impl="tiled", dropout_p=0.5)
    assert refused.implementation is None
    assert "dropout" in reasons(refused)["tiled"]
    assert str(refused).startswith("impl='tiled': raises NotImplementedError\n")


def test_under_transforms_the_definition_is_taken():
    explanations = []

    def call(query):
        explanations.append(explain(query, query, query, bias=-1.0))
        return query

    torch.func.vmap(call)(torch.zeros(3, 2, 4, 9, 8))
    assert explanations[0].implementation == "reference"
    assert "torch.func" in reasons(explanations[0])["tiled"]


def test_bad_arguments_are_refused_as_by_the_call():
    with pytest.raises(ValueError, match="impl must be auto"):
        explain(*qkv(), **OPTIONS, impl="flash")
    with pytest.raises(TypeError, match="scale must be"):
        explain(*qkv(), **OPTIONS, scale="1")


def test_no_implementation_runs(monkeypatch):
    def run(problem):
        raise AssertionError("it ran")

    for name, backend in dispatch.BACKENDS.items():
        monkeypatch.setitem(dispatch.BACKENDS, name, Backend(run, backend.refuse))
    explain(*qkv(), **OPTIONS)


class TestOnAGpu:
    def test_a_call(self):
        with fake_gpu(9, 0):
            explanation = explain(*qkv(torch.bfloat16, "cuda"), **OPTIONS)
        assert explanation.implementation == "triton"
        assert "the CPU kernel needs the CPU" in reasons(explanation)["cpu"]

    def test_fp64(self):
        with fake_gpu(9, 0):
            explanation = explain(*qkv(torch.float64, "cuda"), **OPTIONS)
        assert explanation.implementation == "reference"
        assert "no torch.float64" in reasons(explanation)["triton"]

    def test_an_old_one(self):
        with fake_gpu(7, 5):
            explanation = explain(*qkv(device="cuda"), **OPTIONS)
        assert explanation.implementation == "reference"
        assert "capability 7.5" in reasons(explanation)["triton"]

    def test_a_cache_whose_heads_only_the_decoding_kernel_takes(self):
        with fake_gpu(9, 0):
            query, cache = (torch.zeros(2, 4, n, 256, device="cuda") for n in (1, 9))
            used = torch.ones(2, dtype=torch.int64, device="cuda")
            cached = explain(query, cache, cache, seqused_k=used, **OPTIONS)
            many = explain(cache, cache, cache, **OPTIONS)
        assert cached.implementation == "triton"
        assert many.implementation == "reference"

    def test_packed_sequences(self, monkeypatch):
        places = torch.zeros(4, 2, dtype=torch.int64)
        # Without CUDA torch subtracts no fake tensors of a GPU.
        monkeypatch.setattr(index_tensors, "_between", lambda *_: places)
        with fake_gpu(9, 0):
            assert explain(*packed(device="cuda"), 5, 5, bias=-1.0).implementation == "triton"


CALLS = {
    "dense": lambda: sigmoid_attention(*qkv(torch.float64), **OPTIONS),
    "packed": lambda: sigmoid_varlen_attention(*packed(dtype=torch.float64), 5, 5, bias=-1.0),
    "cached": lambda: sigmoid_decode(
        *qkv(torch.float64, queries=1), seqused_k=torch.tensor([9, 3]), **OPTIONS
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_refusal_under_auto_is_logged(caplog, call):
    with caplog.at_level(logging.DEBUG, "sigmoid_attention"):
        call()
    (record,) = caplog.records
    assert record.name == "sigmoid_attention" and record.levelno == logging.DEBUG
    assert record.getMessage() == "cpu refuses the call: query: the CPU kernel has no torch.float64"
