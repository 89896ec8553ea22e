"""One product per expert: values and derivatives of any order, and experts without rows."""

import pytest
import torch
from torch.func import jacrev, jvp, vmap

from sigmoid_attention.nn import grouped
from sigmoid_attention.nn.grouped import each_expert, grouped_linear, grouped_outer

# Rows of each expert: some of all, all of one, none of the first and the last, and no rows at all.
ROWS = [(2, 0, 0, 5), (0, 7, 0), (0, 3, 1, 0), (4,), (0, 0)]
each_split = pytest.mark.parametrize("rows", ROWS, ids=lambda rows: "+".join(map(str, rows)))


def drawn(rows, dtype=torch.float64, inputs=3, outputs=5):
    x = torch.randn(sum(rows), inputs, dtype=dtype)
    weight = torch.randn(len(rows), outputs, inputs, dtype=dtype)
    return x, weight, torch.tensor(rows).cumsum(0)


def one_by_one(x, weight, rows):
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
    return torch.einsum("soi,si->so", weight[owner], x)


@each_split
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_each_row_is_multiplied_by_its_experts_matrix(rows, dtype):
    x, weight, ends = drawn(rows, dtype)
    expected = one_by_one(x.double(), weight.double(), rows)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        grouped_linear(x, weight, ends).double(), expected, rtol=tolerance, atol=4 * tolerance
    )


@each_split
def test_the_sum_over_the_rows_of_each_expert_is_the_gradient_of_its_matrix(rows):
    x, weight, ends = drawn(rows)
    y = torch.randn(sum(rows), 5, dtype=torch.float64)
    weight.requires_grad_()
    one_by_one(x, weight, rows).backward(y)
    torch.testing.assert_close(grouped_outer(y, x, ends), weight.grad)


@each_split
def test_derivatives_of_first_and_second_order(rows):
    x, weight, ends = drawn(rows)
    y = torch.randn(sum(rows), 5, dtype=torch.float64)
    for operator, pair in ((grouped_linear, (x, weight)), (grouped_outer, (y, x))):
        operands = [operand.requires_grad_() for operand in pair]
        assert torch.autograd.gradcheck(operator, (*operands, ends))
        assert torch.autograd.gradgradcheck(operator, (*operands, ends))


def test_operators_keep_the_contracts_of_torchs_library():
    x, weight, ends = drawn((2, 0, 3), torch.float32)
    torch.library.opcheck(grouped_linear, (x.requires_grad_(), weight.requires_grad_(), ends))
    y = torch.randn(5, 4, requires_grad=True)
    torch.library.opcheck(grouped_outer, (y, x, ends))


@each_split
def test_torchs_grouped_kernel_in_the_loops_place_answers_the_same(rows, monkeypatch):
    """It is called on a GPU only, but a processor takes it too where the channels are aligned."""
    x, weight, ends = drawn(rows, torch.float32, inputs=8, outputs=16)
    expected = grouped_linear(x, weight, ends), grouped_outer(x, x, ends)
    monkeypatch.setattr(grouped, "takes_grouped_mm", lambda *operands: True)
    monkeypatch.setattr(grouped, "_ranges", None)
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected[0])
    torch.testing.assert_close(grouped_outer(x, x, ends), expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_processor_takes_the_loop(dtype):
    assert not grouped.takes_grouped_mm(torch.zeros(8, 8, dtype=dtype))


def test_torch_func_transforms_the_output_of_each_expert():
    x, weight, ends = torch.randn(7, 4), torch.randn(3, 5, 4), torch.tensor([2, 2, 7])
    x, weight = x.double(), weight.double()
    expected = grouped_linear(x, weight, ends)
    torch.testing.assert_close(vmap(each_expert)(x[None], weight[None], ends[None])[0], expected)
    change = torch.randn_like(x)
    out, derivative = jvp(lambda x: each_expert(x, weight, ends), (x,), (change,))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(derivative, grouped_linear(change, weight, ends))
    actual = jacrev(lambda weight: each_expert(x, weight, ends).sum())(weight)
    torch.testing.assert_close(actual, grouped_outer(torch.ones_like(expected), x, ends))
