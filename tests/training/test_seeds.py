"""Random numbers as a function of (seed, step)."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.training.seeds import step_generator

numbers = st.integers(0, 2**40)


@given(numbers, numbers)
def test_the_same_place_gives_the_same_numbers(seed, step):
    a, b = step_generator(seed, step), step_generator(seed, step)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))


@given(numbers, numbers, numbers, numbers)
def test_heldout_never_meets_training(seed, step, other_seed, other_step):
    training = step_generator(seed, step).initial_seed()
    heldout = step_generator(other_seed, other_step, heldout=True).initial_seed()
    assert training % 2 == 0 and heldout % 2 == 1


def test_neighbours_differ():
    firsts = {
        torch.rand(1, generator=step_generator(seed, step)).item()
        for seed in range(20)
        for step in range(20)
    }
    assert len(firsts) > 395
