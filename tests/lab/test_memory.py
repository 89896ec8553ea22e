"""The measured bytes of tensors, against counts by hand."""

import pytest
import torch
import torch.nn.functional as F

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.lab.memory import peak_tensor_bytes

CPU = torch.device("cpu")


def test_the_peak_is_the_most_at_once_not_the_sum():
    def compute():
        for _ in range(3):
            torch.ones(700)

    assert peak_tensor_bytes(compute, CPU) == 4 * 700


def test_views_and_writes_into_what_is_there_cost_nothing():
    x = torch.ones(5, 7)

    def compute():
        x.add_(1)
        return x.view(35)[3:].unsqueeze(0), x.transpose(0, 1)

    assert peak_tensor_bytes(compute, CPU) == 0


def test_memory_that_backward_keeps_counts():
    x = torch.ones(1000, requires_grad=True)
    # Two results are alive with the graph, the sum, its gradient, and that of each product.
    kept = peak_tensor_bytes(lambda: torch.autograd.grad((x * x * x).sum(), x), CPU)
    forward = peak_tensor_bytes(lambda: (x * x * x).sum(), CPU)
    assert forward == 2 * 4000 + 4
    assert kept > forward


@pytest.mark.parametrize("length", [33, 96])
def test_a_formed_score_matrix_is_seen_and_a_fused_one_is_not(length):
    query, key, value = (torch.randn(1, 3, length, 8) for _ in range(3))
    scores = 4 * 3 * length * length

    def fused():
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def formed():
        return sigmoid_attention(query, key, value, is_causal=True, impl="reference")

    assert peak_tensor_bytes(formed, CPU) >= 2 * scores
    assert peak_tensor_bytes(fused, CPU) < scores


@pytest.mark.parametrize("length", [33, 96])
def test_the_kernel_is_seen_by_its_results(length):
    if loaded() is None:
        pytest.skip("there is no CPU kernel here")
    inputs = [torch.randn(1, 3, length, 8).requires_grad_() for _ in range(3)]
    result = 4 * 3 * length * 8

    def training():
        out = sigmoid_attention(*inputs, is_causal=True, impl="cpu")
        return torch.autograd.grad(out, inputs, torch.ones_like(out))

    # The output, its gradient, and those of the inputs; a count of 8 bytes a block of queries.
    blocks = peak_tensor_bytes(training, CPU) - 5 * result
    assert 0 < blocks <= 8 * 3 * length
    assert blocks % 24 == 0


def test_the_same_number_every_time():
    x = torch.randn(65, 33, requires_grad=True)
    numbers = {
        peak_tensor_bytes(lambda: torch.autograd.grad(x.softmax(-1).square().sum(), x), CPU)
        for _ in range(3)
    }
    assert len(numbers) == 1
