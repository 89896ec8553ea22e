"""The sampled float64 reference equals the operator's definition, and detects wrong outputs."""

import pytest
import torch

from benchmarks.accuracy import relative_errors, sampled_rows
from benchmarks.operations import Case, Inputs, alibi_slopes, inputs
from benchmarks.peers import minus_log_length
from sigmoid_attention import sigmoid_attention

LENGTH = 301


def attend_with(case: Case, slopes: torch.Tensor):
    def attend(query, key, value):
        return sigmoid_attention(
            query,
            key,
            value,
            bias=minus_log_length(case),
            alibi_slopes=slopes,
            is_causal=True,
            impl="reference",
        )

    return attend


def double_inputs(case: Case) -> Inputs:
    tensors = inputs(case, torch.device("cpu"))
    return Inputs(*(x.double() for x in vars(tensors).values()))


@pytest.mark.parametrize("operation", ["alibi-forward", "alibi-forward+backward"])
def test_definition_in_float64_has_no_error(operation):
    case = Case(operation, "fp32", LENGTH, dim=16, mask="causal", heads=3, batch=2)
    slopes = alibi_slopes(3).double()
    errors = relative_errors(case, double_inputs(case), attend_with(case, slopes))
    names = {"query", "key", "value"} if "backward" in operation else {"output"}
    assert errors.keys() == names
    assert max(errors.values()) < 1e-12


@pytest.mark.parametrize("operation", ["alibi-forward", "alibi-forward+backward"])
def test_a_slope_that_is_off_shows_in_every_part(operation):
    case = Case(operation, "fp32", LENGTH, dim=16, mask="causal", heads=3)
    slopes = alibi_slopes(3).double() * torch.tensor([1.0, 1.0, 1.02], dtype=torch.float64)
    errors = relative_errors(case, double_inputs(case), attend_with(case, slopes))
    assert min(errors.values()) > 1e-3


def test_sample_holds_both_ends_and_never_too_much():
    assert sampled_rows(16).tolist() == list(range(16))
    rows = sampled_rows(65536)
    assert 250 < len(rows) <= 256
    assert (rows[0], rows[-1]) == (0, 65535)
