"""The float64 oracle of the correctness matrix equals the operator's definition, with gradients."""

import math

import pytest
import torch

from benchmarks.gpu.errors import FEATURES, build, errors, measure_errors
from benchmarks.gpu.exact import expected, to_dtype
from benchmarks.operations import Case

CPU = torch.device("cpu")


def case(feature: str, dtype: str = "fp32", length: int = 57, mask: str = "causal") -> Case:
    return Case(
        "error", dtype, length, dim=12, mask=mask, heads=4, batch=2, key_heads=2, feature=feature
    )


def in_float64(call):
    """The call with all its numbers in float64, and the answer of the definition."""
    wide = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in call.arguments.items()
    }
    return type(call)(call.operator, wide, call.pieces, call.cut, call.learns).answer("reference")


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("feature", FEATURES)
def test_agrees_with_the_definition_in_every_feature(feature, mask):
    call = build(case(feature, mask=mask), CPU)
    arguments = in_float64(call)
    assert arguments.keys() - {"output"} <= {*call.learns} and ("query" in arguments) == bool(
        call.learns
    )
    for place, piece in enumerate(call.pieces):
        rows, columns = (torch.arange(x.shape[1]) for x in (piece.query, piece.key))
        exact = expected(piece, rows, columns, lambda result: result)
        for name, whole in arguments.items():
            actual = call.cut(name, whole)[place]
            torch.testing.assert_close(actual, exact[name].view_as(actual), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("feature", ["", "all terms", "packed alibi"])
def test_sampled_rows_and_columns_are_those_of_the_whole(feature):
    piece = build(case(feature), CPU).pieces[0]
    all_rows = torch.arange(57)
    some, others = torch.tensor([0, 31, 56]), torch.tensor([5, 40])
    whole = expected(piece, all_rows, all_rows, lambda result: result)
    part = expected(piece, some, others, lambda result: result)
    assert part.keys() == {"output", "query", "key", "value"}
    for name, sampled in part.items():
        target = whole[name][:, some if name in ("output", "query") else others]
        torch.testing.assert_close(sampled, target)


@pytest.mark.parametrize("name", ["output", "query", "key", "value"])
def test_a_wrong_row_shows_in_its_part(name):
    call = build(case("", "bf16"), CPU)
    answer = call.answer("cpu")
    answer[name] = answer[name].clone()
    # The last query, the first key: of causal rows and columns those with the most terms.
    answer[name][1, 1, -1 if name in ("output", "query") else 0] *= 1.5
    actual, _ = errors(call, answer, torch.bfloat16)
    assert actual[name] > 3
    assert all(units < 1.1 for part, units in actual.items() if part != name)


@pytest.mark.parametrize("feature", ["bounded alibi", "fixed head bias"])
def test_terms_without_gradients_get_none(feature):
    # Gluon hands it, and all gradients with it, to the other kernels.
    call = build(case(feature), CPU)
    assert call.answer("cpu").keys() == {"output", "query", "key", "value"}


def test_errors_and_times_under_alibi_have_the_same_inputs():
    case = Case("error", "bf16", 90, 64, "causal", heads=2, feature="bounded alibi")
    call = build(case, CPU)
    for name in ("query", "key"):
        norms = call.arguments[name].float().norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, 8.0), rtol=0.01, atol=0)


def test_the_error_of_a_nan_is_infinite():
    call = build(case("", "bf16"), CPU)
    answer = call.answer("cpu")
    answer["key"] = answer["key"].clone()
    answer["key"][0, 0, 0, 0] = torch.nan
    units, _ = errors(call, answer, torch.bfloat16)
    assert units["key"] == math.inf and units["output"] < 1.1


def test_the_floor_is_what_it_is_measured_in():
    call = build(case("", "bf16"), CPU)
    rounded = {}
    for name in ("output", "query", "key", "value"):
        parts = []
        for piece in call.pieces:
            rows = torch.arange(57)
            parts.append(expected(piece, rows, rows, to_dtype(torch.bfloat16))[name])
        rounded[name] = torch.stack(parts)
    units, floor = errors(call, rounded, torch.bfloat16)
    assert all(error == pytest.approx(1.0) for error in units.values())
    assert all(1e-3 < error < 4e-3 for error in floor.values())


@pytest.mark.parametrize("feature", FEATURES)
def test_the_cpu_kernel_keeps_to_the_floor(feature):
    units, _ = measure_errors(case(feature, "bf16", length=150), "cpu", CPU)
    assert units and all(error < 1.1 for error in units.values()), units


def test_long_problems_are_sampled_and_short_rows_are_many():
    units, _ = measure_errors(case("", "bf16", length=2100), "cpu", CPU)
    assert units.keys() == {"output", "query", "key", "value"}
    assert all(error < 1.1 for error in units.values())


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"feature must be of .*softcap.*, got 'magic'"):
        build(case("magic"), CPU)
    with pytest.raises(ValueError, match="triton-sigmoid is compared without softcap alone"):
        measure_errors(case("softcap"), "triton-sigmoid", CPU)
