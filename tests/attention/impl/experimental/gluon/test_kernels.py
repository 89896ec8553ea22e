"""The kernels' source against the definition, in the emulator: values, barriers and races."""

from dataclasses import replace

import pytest
import torch

from sigmoid_attention.attention.impl.experimental.gluon import configs
from sigmoid_attention.attention.impl.experimental.gluon.configs import Forward
from tests.support.gluon.kernels import Case, run_backward, run_forward

# Units of queries visit units of keys from the first up to the last number; between the other two
# they need the full sigmoid. Two heads, whose ranges differ: the first one's first unit has none.
SPANS = torch.tensor(
    [[[[0, 0, 1], [0, 1, 2]]], [[[0, 0, 1], [0, 1, 2]]],
     [[[0, 2, 3], [1, 2, 3]]], [[[0, 2, 3], [2, 2, 3]]]]
)  # fmt: skip
# The same from the keys: of queries.
OF_KEYS = torch.tensor(
    [[[[1, 1, 2], [0, 0, 2]]], [[[1, 1, 2], [0, 0, 2]]],
     [[[2, 3, 3], [1, 2, 3]]], [[[2, 3, 3], [1, 2, 3]]]]
)  # fmt: skip

CASES = (
    Case(1, 2, 1, 150, 200),
    Case(1, 3, 3, 130, 130, right=0, seed=1),
    Case(2, 2, 1, 300, 190, left=40, right=0, bias=True, seed=2),
    Case(1, 2, 2, 190, 300, left=90, right=20, slopes=True, seed=3),
    Case(1, 2, 1, 300, 60, right=0, seed=4),
    Case(1, 2, 2, 350, 350, spans=SPANS, of_keys=OF_KEYS, slopes=True, bias=True, seed=5),
    Case(1, 2, 1, 350, 350, right=0, spans=SPANS, of_keys=OF_KEYS, seed=6),
)


def small(case: Case, consumers: int, stages: int) -> Forward:
    """Short tiles, so that short sequences have many of them."""
    sizes = {"head_dim": 16, "block_k": 32, "consumers": consumers}
    return Forward(**vars(case.features), **sizes, stages=stages, q_stages=stages)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """To float64's rounding: planned cases have logits at which the tail form is that exact."""
    return bool((actual - expected).abs().max() <= 1e-11 * expected.abs().max())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("stages", "programs"), [(1, 3), (2, 2), (3, 1)])
def test_forward_is_the_definition_in_any_order_of_warp_groups(case, stages, programs):
    config = small(case, 2 if case.spans is not None or stages == 2 else 3, stages)
    out = run_forward(case, config, programs)
    assert close(out, case.expected(*case.tensors(config.head_dim)[:3]))


def test_queries_that_see_no_key_get_zeros():
    case = Case(1, 2, 1, 300, 60, right=0, seed=4)
    assert not run_forward(case, small(case, 2, 2), 2)[:, :, : 300 - 60].any()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("stages", "programs", "head_dim"), [(1, 3, 64), (2, 1, 128)])
def test_backward_is_the_definitions_derivative(case, stages, programs, head_dim):
    config = replace(configs.backward(head_dim, case.features), stages=stages)
    actual = run_backward(case, config, programs)
    *inputs, on_out = case.tensors(head_dim)
    for each in inputs:
        each.requires_grad_()
    case.expected(*inputs).backward(on_out)
    for gradient, each in zip(actual, inputs, strict=True):
        assert each.grad is not None
        assert close(gradient, each.grad)
