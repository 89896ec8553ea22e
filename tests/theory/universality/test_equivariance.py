"""Functions that are not permutation-equivariant are refused with a counterexample."""

import ast
import re

import pytest
import torch

from sigmoid_attention.theory.universality import FUNCTIONS, Grid, check_equivariance, function


@pytest.mark.parametrize("n", [1, 2, 3, 5], ids="n{}".format)
@pytest.mark.parametrize("d", [1, 3], ids="d{}".format)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_named_functions_are_equivariant(name, n, d):
    check_equivariance(FUNCTIONS[name], Grid(n, d, cells=1, low=-1.0, high=2.0))


def sort_list(x_ND):
    return x_ND.sort(0).values


def by_position(x_ND):
    return x_ND + torch.arange(len(x_ND), dtype=x_ND.dtype)[:, None]


def first_of_ties(x_ND):
    """1 for the first largest token: equivariant but where two are equal."""
    return (torch.arange(len(x_ND))[:, None] == x_ND.argmax(0)).double()


def beyond_four(x_ND):
    """Only the fifth token is treated in its own way."""
    return torch.cat([x_ND[:4], 2 * x_ND[4:]])


@pytest.mark.parametrize(
    ("f", "n"),
    [(sort_list, 3), (by_position, 2), (first_of_ties, 2), (beyond_four, 6)],
    ids=["sorted list", "by position", "ties broken by place", "fifth token"],
)
def test_other_functions_are_refused_with_a_valid_counterexample(f, n):
    with pytest.raises(ValueError, match="function must be permutation-equivariant") as error:
        check_equivariance(f, Grid(n, 1, cells=3))
    message = str(error.value)
    lists = [ast.literal_eval(text) for text in re.findall(r"\[\[.*?\]\]", message)]
    order = ast.literal_eval(re.search(r"in the order (\[[\d, ]+\])", message).group(1))
    x, answer, permuted, expected = (torch.tensor(text, dtype=torch.float64) for text in lists)
    assert torch.equal(f(x), answer)
    assert torch.equal(f(x[order]), permuted)
    assert torch.equal(answer[order], expected)
    assert not torch.allclose(permuted, expected)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: x.sum(0), r"must return a tensor of shape \(2, 1\), got \(1,\)"),
        (lambda x: 0.0, r"must return a tensor of shape \(2, 1\), got float"),
        (lambda x: x.float(), "must return float64, got torch.float32"),
        (lambda x: x / 0, "must be finite on the box, is not at"),
    ],
    ids=["shape", "number", "float32", "infinite"],
)
def test_answers_that_are_none(f, says):
    with pytest.raises(ValueError, match=f"function {says}"):
        check_equivariance(f, Grid(2, 1, cells=1))


def test_a_function_may_write_into_its_argument():
    check_equivariance(lambda x: x.mul_(2), Grid(3, 1, cells=1))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("median", "function must be one of sorting, centre, max, mix, edge, or package.module"),
        ("no_such_module:f", "'no_such_module:f' cannot be imported"),
        ("torch:no_such_thing", "'torch:no_such_thing' cannot be imported"),
        (":f", "':f' cannot be imported"),
        ("math:pi", "'math:pi' is a float and cannot be called"),
    ],
)
def test_names_that_mean_no_function(name, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        function(name)
