"""The counts of attention: products against torch, the rest against operations as they run."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from sigmoid_attention.lab.study import Measured
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED
from sigmoid_attention.studies.theory import attention_cost as study

aten = torch.ops.aten
EACH_ELEMENT = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.exp.default, aten.div.Tensor,
    aten.reciprocal.default, aten.rsub.Scalar,
}  # fmt: skip
N, D = 24, 32


class Counting(TorchDispatchMode):
    """Counts an operation for each output of a pointwise call, and each input of a sum."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in EACH_ELEMENT:
            self.flops += out.numel()
        elif func is aten.sum.dim_IntList:
            self.flops += args[0].numel()
        elif func not in (aten.mm.default, aten.t.default, aten.permute.default):
            raise AssertionError(f"{func} is not counted")
        return out


@pytest.mark.parametrize("kind", study.KINDS)
def test_what_is_beside_the_products_is_what_elementary_operations_do(kind):
    query, key, value, upstream = (torch.randn(N, D) for _ in range(4))
    with Counting() as forward:
        if kind == "sigmoid":
            # The sign goes into the scale and into the bias.
            negated = query @ key.T * -(D**-0.5) + 3.0
            weights = (negated.exp() + 1).reciprocal()
        else:
            raised = (query @ key.T * D**-0.5).exp()
            weights = raised / raised.sum(-1, keepdim=True)
    with Counting() as backward:
        pulled = upstream @ value.T
        if kind == "sigmoid":
            slope = weights * (1 - weights) * pulled * D**-0.5
        else:
            mean = (weights * pulled).sum(-1, keepdim=True)
            slope = weights * (pulled - mean) * D**-0.5
    reference = torch.sigmoid if kind == "sigmoid" else lambda scores: scores.softmax(-1)
    scores = (query @ key.T * D**-0.5 - 3.0 * (kind == "sigmoid")).requires_grad_(True)
    (expected,) = torch.autograd.grad(reference(scores), scores, pulled)
    torch.testing.assert_close(slope, expected * D**-0.5)
    for counted, is_backward in ((forward, False), (backward, True)):
        flops = study.plain_flops(kind, N, D, backward=is_backward)
        assert counted.flops == flops.pointwise + flops.rows


@pytest.mark.parametrize("kind", study.KINDS)
@pytest.mark.parametrize("d", (32, 128))
def test_products_are_those_that_torch_counts(kind, d):
    n, shape = 40, (1, 1, 40, d)
    plain = [study.plain_flops(kind, n, d, backward=b).products for b in (False, True)]
    assert tuple(plain) == study.torch_products(kind, n, d)
    fused = [study.fused_flops(kind, n, d, backward=b).products for b in (False, True)]
    assert fused == [
        sdpa_flop_count(shape, shape, shape),
        sdpa_backward_flop_count(shape, shape, shape, shape),
    ]


def test_bytes_of_one_block_are_those_of_its_tensors():
    # One block of queries and keys: 16-bit tensors of 64 x 64, 32-bit sums of 64 rows.
    tensor, of_rows = 64 * 64 * 2, 64 * 4
    for count in (study.least_bytes, study.block_bytes):
        assert count("sigmoid", 64, 64, backward=False) == 4 * tensor
        assert count("softmax", 64, 64, backward=False) == 4 * tensor + of_rows
    assert study.least_bytes("sigmoid", 64, 64, backward=True) == 7 * tensor
    assert study.least_bytes("softmax", 64, 64, backward=True) == 9 * tensor + 3 * of_rows
    # Two blocks of queries read keys and values twice.
    assert study.block_bytes("sigmoid", 256, 64, backward=False) == (4 + 2) * 256 * 64 * 2
    # K, V, dK, dV and dQ once; dQ cleared and read; Q, dO and the sums of dQ by block of keys.
    moved = 5 * 256 * 64 * 2 + 2 * 256 * 64 * 4 + 2 * (2 * 256 * 64 * 2 + 2 * 256 * 64 * 4)
    assert study.block_bytes("sigmoid", 256, 64, backward=True) == moved


def test_the_rule():
    assert study.verdict_of(study.FLOPS, np.array([0.001, 0.01])) == REPRODUCED
    assert study.verdict_of(study.FLOPS, np.array([0.001, 0.02])) == NOT_REPRODUCED
    assert study.verdict_of(study.FLOPS, np.array([-0.001, 0.01])) == NOT_REPRODUCED
    assert study.verdict_of(study.BYTES, np.array([-0.01, -0.2])) == REPRODUCED
    assert study.verdict_of(study.BYTES, np.array([-0.001, -0.2])) == NOT_REPRODUCED


def test_the_study_judges_and_draws_every_count():
    results = {
        (task.cell, task.part): [Measured(list(task.run(task.setting)))]
        for task in study.STUDY.tasks()
    }
    findings = study.STUDY.judge(results)
    assert [finding.cell for finding in findings[:2]] == [
        "forward: flops, plain", "forward: flops, fused",
    ]  # fmt: skip
    assert len(findings) == len(study.PASSES) * len(study.CELLS)
    # One flop a score more in 4 d + 4.
    assert f"{1 / (4 * 64 + 4):+.2%}" in findings[0].measured
    assert "torch counts 1.000 to 1.000" in findings[0].controls
    assert len(study.STUDY.draw(results).axes) == 3
