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


def in_float64(own):
    """The call with all its numbers in float64, and the answer of the definition."""
    wide = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in own.arguments.items()
    }
    return type(own)(own.operator, wide, own.pieces, own.cut, own.learns).answer("reference")


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("feature", FEATURES)
def test_agrees_with_the_definition_in_every_feature(feature, mask):
    call = build(case(feature, mask=mask), CPU)
    given = in_float64(call)
    assert given.keys() - {"output"} <= {*call.learns} and ("query" in given) == bool(call.learns)
    for place, piece in enumerate(call.pieces):
        rows, columns = (torch.arange(x.shape[1]) for x in (piece.query, piece.key))
        exact = expected(piece, rows, columns, lambda result: result)
        for name, whole in given.items():
            found = call.cut(name, whole)[place]
            torch.testing.assert_close(found, exact[name].view_as(found), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("feature", ["", "all terms", "packed alibi"])
def test_sampled_rows_and_columns_are_those_of_the_whole(feature):
    piece = build(case(feature), CPU).pieces[0]
    all_rows = torch.arange(57)
    some, others = torch.tensor([0, 31, 56]), torch.tensor([5, 40])
    whole = expected(piece, all_rows, all_rows, lambda result: result)
    part = expected(piece, some, others, lambda result: result)
    assert part.keys() == {"output", "query", "key", "value"}
    for name, own in part.items():
        wanted = whole[name][:, some if name in ("output", "query") else others]
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("name", ["output", "query", "key", "value"])
def test_a_wrong_row_shows_in_its_part(name):
    call = build(case("", "bf16"), CPU)
    given = call.answer("cpu")
    given[name] = given[name].clone()
    # The last query, the first key: of causal rows and columns those with the most terms.
    given[name][1, 1, -1 if name in ("output", "query") else 0] *= 1.5
    found, _ = errors(call, given, torch.bfloat16)
    assert found[name] > 3
    assert all(units < 1.1 for part, units in found.items() if part != name)


@pytest.mark.parametrize("feature", ["bounded alibi", "fixed head bias"])
def test_where_nothing_is_learned_of_terms_their_gradient_is_not_asked_for(feature):
    # Gluon hands it, and all gradients with it, to the other kernels.
    call = build(case(feature), CPU)
    assert call.answer("cpu").keys() == {"output", "query", "key", "value"}


def test_what_is_timed_under_alibi_is_what_its_error_is_measured_of():
    own = Case("error", "bf16", 90, 64, "causal", heads=2, feature="bounded alibi")
    call = build(own, CPU)
    for name in ("query", "key"):
        norms = call.arguments[name].float().norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, 8.0), rtol=0.01, atol=0)


def test_what_is_no_number_is_infinitely_wrong():
    call = build(case("", "bf16"), CPU)
    given = call.answer("cpu")
    given["key"] = given["key"].clone()
    given["key"][0, 0, 0, 0] = torch.nan
    found, _ = errors(call, given, torch.bfloat16)
    assert found["key"] == math.inf and found["output"] < 1.1


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
    assert all(own == pytest.approx(1.0) for own in units.values())
    assert all(1e-3 < own < 4e-3 for own in floor.values())


@pytest.mark.parametrize("feature", FEATURES)
def test_the_cpu_kernel_keeps_to_the_floor(feature):
    units, _ = measure_errors(case(feature, "bf16", length=150), "cpu", CPU)
    assert units and all(own < 1.1 for own in units.values()), units


def test_long_problems_are_sampled_and_short_rows_are_many():
    units, _ = measure_errors(case("", "bf16", length=2100), "cpu", CPU)
    assert units.keys() == {"output", "query", "key", "value"}
    assert all(own < 1.1 for own in units.values())


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"feature must be of .*softcap.*, got 'magic'"):
        build(case("magic"), CPU)
    with pytest.raises(ValueError, match="triton-sigmoid is compared without softcap alone"):
        measure_errors(case("softcap"), "triton-sigmoid", CPU)
