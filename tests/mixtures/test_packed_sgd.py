"""Packed SGD against the training through Jacobians, and its variants."""

import pytest
import torch

from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.packed_sgd import packed_sgd
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, paper_mode

N, RUNS, D = 37, 3, 5


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("expert", ("relu+bias", "linear", "poly2"))
@pytest.mark.parametrize("gate", ("sigmoid", "softmax"))
def test_with_one_batch_an_epoch_the_steps_are_those_of_paper_mode(gate, expert):
    family = Mixture(gate, expert, k=3, d=D)
    inputs, observations = drawn(RUNS, N, D), drawn(RUNS, 2, N)
    start, rates = 0.3 * drawn(RUNS, family.size), torch.tensor([0.02, 0.005])
    begin = start.clone()
    ours = packed_sgd(family, inputs, observations, start, rate_V=rates, epochs=4, batch=N)
    assert torch.equal(start, begin)
    for variant, rate in enumerate(rates.tolist()):
        recipe = StochasticRecipe(learning_rate=rate, epochs=4, batch=N)
        data = Samples(inputs, observations[:, variant])
        expected = paper_mode(family, data, start, sigma=1.0, recipe=recipe).theta_BP
        torch.testing.assert_close(ours[:, variant], expected, rtol=1e-6, atol=1e-8)


def test_an_epoch_takes_every_observation_once_and_epochs_differ_in_order():
    """One gate that stays at 1 and an expert that is its intercept: a step of 1/2 sets it to y."""
    family = Mixture("sigmoid", "linear", k=1, d=1)
    inputs = torch.zeros(1, 7, 1, dtype=torch.float64)
    observations = torch.arange(1.0, 8.0, dtype=torch.float64).reshape(1, 1, 7)
    start = torch.tensor([[0.0, 60.0, 0.0, 0.0]], dtype=torch.float64)
    half = torch.tensor([0.5])
    ends = [
        packed_sgd(family, inputs, observations, start, rate_V=half, epochs=e, batch=1)[0, 0, 3]
        for e in range(1, 9)
    ]
    assert {round(end.item(), 9) for end in ends} <= set(range(1, 8))
    assert len({round(end.item(), 9) for end in ends}) > 1
    # Batches of 4 and 3: the last one is the mean of three observations, not of four.
    small = packed_sgd(family, inputs, observations, start, rate_V=half, epochs=1, batch=4)[0, 0, 3]
    assert (3 * small).item() == pytest.approx(round((3 * small).item()))


def test_a_diverged_variant_changes_no_other():
    family = Mixture("sigmoid", "poly3", k=2, d=D)
    inputs, observations = drawn(RUNS, N, D), drawn(RUNS, 2, N)
    start = 0.1 * drawn(RUNS, family.size)
    both = packed_sgd(
        family, inputs, observations, start, rate_V=torch.tensor([0.01, 1e6]), epochs=3, batch=8
    )
    alone = packed_sgd(
        family, inputs, observations[:, :1], start, rate_V=torch.tensor([0.01]), epochs=3, batch=8
    )
    assert not both[:, 1].isfinite().all(-1).any()
    torch.testing.assert_close(both[:, :1], alone)


@pytest.mark.parametrize(
    "family",
    (
        Mixture("sigmoid", "relu", d=D),
        Mixture("sigmoid", "gelu+bias+scale", d=D),
        Mixture("sigmoid", "constant", d=D),
        Mixture("sigmoid", "linear", "euclidean", d=D),
        Mixture("sigmoid", "linear", d=D, temperature=True),
    ),
    ids=lambda family: f"{family.expert} {family.score}",
)
def test_other_families_are_refused(family):
    with pytest.raises(ValueError, match=r"^family must have linear scores without a temperature"):
        packed_sgd(
            family, drawn(1, N, D), drawn(1, 1, N), drawn(1, family.size),
            rate_V=torch.ones(1), epochs=1, batch=8,
        )  # fmt: skip
