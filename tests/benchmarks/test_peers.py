"""Every peer computes its declared function: softmax or sigmoid attention, at the same shape."""

import math

import pytest
import torch

from benchmarks.operations import Case, inputs
from benchmarks.peers import OWN, PEERS, eager

SOFTMAX = ("sdpa", "eager-softmax")
SIGMOID = ("eager-sigmoid", *OWN)
CPU = torch.device("cpu")


def expected(case: Case, *, softmax: bool) -> torch.Tensor:
    tensors = inputs(case, CPU)
    query, key, value = (x.double() for x in (tensors.query, tensors.key, tensors.value))
    scores = query @ key.mT / case.dim**0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    if case.is_causal and case.queries > 1:
        scores = scores.masked_fill(hidden, -math.inf)
    weights = scores.softmax(-1) if softmax else (scores - math.log(case.length)).sigmoid()
    return weights @ value


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("peer", [*SOFTMAX, *SIGMOID])
def test_attention(peer, mask):
    case = Case("forward", "fp32", 96, dim=16, mask=mask, heads=2, batch=2)
    tensors = inputs(case, CPU)
    out = PEERS[peer](case)(tensors.query, tensors.key, tensors.value)
    torch.testing.assert_close(
        out.double(), expected(case, softmax=peer in SOFTMAX), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("peer", [*SOFTMAX, "eager-sigmoid", "ours"])
def test_decoding(peer):
    case = Case("decode", "fp32", 96, dim=16, heads=2)
    tensors = inputs(case, CPU)
    assert tensors.query.shape == (1, 2, 1, 16)
    out = PEERS[peer](case)(tensors.query, tensors.key, tensors.value)
    torch.testing.assert_close(
        out.double(), expected(case, softmax=peer in SOFTMAX), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("peer", ["mm", "onednn"])
def test_product(peer):
    # Square matrices: a linear layer's product takes its second one transposed.
    case = Case("gemm", "fp32", 64)
    tensors = inputs(case, CPU)
    out = PEERS[peer](case)(tensors.query, tensors.key, tensors.value)
    right = tensors.key.T if peer == "onednn" else tensors.key
    torch.testing.assert_close(out, tensors.query @ right)


def test_skipping_is_the_one_difference_between_ours_and_dense(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "benchmarks.peers.sigmoid_attention", lambda *_, **options: calls.append(options)
    )
    case = Case("alibi-forward", "bf16", 8, mask="causal")
    for peer in ("ours", "dense"):
        PEERS[peer](case)(*[torch.zeros(1)] * 3)
    ours, dense = calls
    assert (ours.pop("skip_tolerance"), dense.pop("skip_tolerance")) == ("rounding", 0.0)
    slopes = ours.pop("alibi_slopes")
    assert slopes.tolist() == dense.pop("alibi_slopes").tolist() == [2.0**-h for h in range(1, 9)]
    assert ours == dense == {"bias": -math.log(8), "impl": "auto", "is_causal": True}


def test_eager_refuses_what_does_not_fit():
    make = eager(torch.sigmoid, biased=True)
    make(Case("forward", "bf16", 4096))
    with pytest.raises(MemoryError, match=r"its scores would take 3\.0 GiB"):
        make(Case("forward", "bf16", 8192))
