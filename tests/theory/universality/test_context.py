"""The contextual mapping gives every token of every sequence its own code; tested exhaustively."""

import itertools
from fractions import Fraction

import pytest
import torch

from sigmoid_attention.theory.universality import Grid, Network, Plan
from sigmoid_attention.theory.universality.context import selected_sum, selective_shift
from sigmoid_attention.theory.universality.layers import AffineFunction, attention_layer
from sigmoid_attention.theory.universality.mapping import contexts
from tests.support.theory.constructions import GRIDS, construction, grid_id


def states_of_all(built, steepness=None):
    """Codes (S, N) of every *ordered* sequence of the grid, and the letters they stand for."""
    grid = built.plan.grid
    letters_SN = torch.tensor(list(itertools.product(range(grid.letters), repeat=grid.n)))
    cells_SND = letters_SN[..., None] // grid.weights_D.long() % grid.cells
    mapper = built.mapper if steepness is None else built.mapper.with_steepness(steepness)
    with torch.no_grad():
        return mapper(grid.centres(cells_SND)) @ grid.weights_D, letters_SN


@pytest.mark.parametrize("steep", [False, True], ids=["heaviside", "sigmoid"])
@pytest.mark.parametrize("sizes", GRIDS, ids=grid_id)
def test_codes_are_distinct_for_distinct_contexts_and_equal_for_equal_ones(sizes, steep):
    built = construction("centre", *sizes)
    codes_SN, letters_SN = states_of_all(built, built.plan.steepness if steep else None)
    code_of = {}
    for codes, letters in zip(codes_SN.tolist(), letters_SN.tolist(), strict=True):
        for code, letter in zip(codes, letters, strict=True):
            code_of.setdefault((letter, *sorted(letters)), []).append(code)
    assert len(code_of) == built.plan.grid.contexts
    # Orders of a sequence, and its equal tokens, agree within a quarter of the gap.
    spread = max(max(codes) - min(codes) for codes in code_of.values())
    assert spread <= (built.plan.gap / 2 if steep else 0)
    ordered = sorted(codes[0] for codes in code_of.values())
    apart = min((b - a for a, b in itertools.pairwise(ordered)), default=float("inf"))
    assert apart >= built.plan.gap * (0.5 if steep else 1)


@pytest.mark.parametrize("sizes", [(3, 1, 5), (4, 1, 3), (2, 2, 3)], ids=grid_id)
def test_codes_are_those_of_the_formula_in_exact_arithmetic(sizes):
    """Symbol plus gap times the number whose digits are n letter + m, letters ascending."""
    built = construction("centre", *sizes)
    plan = built.plan
    codes_SN, letters_SN = states_of_all(built)
    for codes, letters in zip(codes_SN.tolist(), letters_SN.tolist(), strict=True):
        register = 0
        for letter in sorted(set(letters)):
            register = register * plan.radix + plan.grid.n * letter + letters.count(letter)
        for code, letter in zip(codes, letters, strict=True):
            symbol = plan.zone + (plan.grid.n + 1) * letter + letters.count(letter)
            assert Fraction(code) == symbol + Fraction(plan.gap) * register


def one_layer(heads, codes):
    layer = attention_layer(torch.ones(1, dtype=torch.float64), len(codes), heads)
    x_BND = torch.tensor(codes, dtype=torch.float64)[None, :, None]
    with torch.no_grad():
        return layer(x_BND).flatten().tolist()


def test_four_heads_shift_the_tokens_below_a_threshold_and_no_others():
    moved = one_layer(selective_shift(below=1.5, constant=12.0, n=5), [0.0, 3.0, 1.0, 2.0, 1.0])
    assert moved == [15.0, 0.0, 15.0, 0.0, 15.0]
    assert one_layer(selective_shift(below=1.5, constant=12.0, n=2), [3.0, 2.0]) == [0.0, 0.0]


def test_two_heads_add_what_lies_between_two_thresholds_to_every_token():
    heads = selected_sum(1.5, 3.5, AffineFunction(factor=10.0, shift=1.0))
    assert one_layer(heads, [0.0, 3.0, 2.0, 4.0]) == [52.0] * 4


def test_a_collision_would_be_counted():
    built = construction("centre", 2, 1, 3)
    only_rounded = Network(list(built.mapper.layers)[:4])
    outputs_SND = torch.zeros(built.plan.grid.sequences, 2, 1, dtype=torch.float64)
    collisions = contexts(only_rounded, built.plan, outputs_SND)
    assert (len(collisions.codes_C), collisions.duplicates) == (9, 6)
    assert collisions.smallest_gap == 0


def test_the_smallest_gap_is_reported_as_it_was_built():
    built_contexts = construction("max", 3, 1, 6).contexts
    codes = sorted(built_contexts.codes_C.tolist())
    assert built_contexts.smallest_gap == min(b - a for a, b in itertools.pairwise(codes))
    assert built_contexts.smallest_gap >= Plan(Grid(3, 1, 6), 0.0, 1.0).gap
