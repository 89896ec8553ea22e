"""Hierarchical mixtures: derivatives, special cases, and fits by the solver."""

import pytest
import torch

from sigmoid_attention.mixtures import GATES, FiniteDesign, Mixture
from sigmoid_attention.mixtures.hierarchy import Hierarchy
from sigmoid_attention.mixtures.solver import ParameterBox, chi2, minimise

INPUTS = FiniteDesign.sobol(64, d=2).inputs_Qd


def drawn(family: Hierarchy, *lead: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(*lead, family.size, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("score", ("linear", "fully_quadratic", "euclidean"))
@pytest.mark.parametrize("inner", ("sigmoid", "softmax"))
@pytest.mark.parametrize("gate", GATES)
def test_derivatives_are_those_of_autograd(gate, inner, score):
    family = Hierarchy(gate, Mixture(inner, "tanh", k=3, d=2), score, groups=4)
    theta, inputs = drawn(family, 2), torch.randn(2, 5, 2, dtype=torch.float64)
    answer, jacobian = family.predict_with_jacobian(theta, inputs)
    torch.testing.assert_close(answer, family.predict(theta, inputs))
    for theta_P, where, analytic in zip(theta, inputs, jacobian, strict=True):
        expected = torch.autograd.functional.jacobian(
            lambda theta, where=where: family.predict(theta, where), theta_P
        )
        torch.testing.assert_close(analytic, expected, rtol=1e-10, atol=1e-10)


def test_it_is_the_sum_of_its_groups_under_their_weights():
    family = Hierarchy("softmax", Mixture("sigmoid", "relu", k=2, d=2), groups=3)
    theta = drawn(family)
    outer, inner = family.split(theta)
    scores = INPUTS @ outer[:, :2].T + outer[:, 2]
    groups = [family.inner.predict(theta_P, INPUTS) for theta_P in inner]
    expected = (scores.softmax(-1) * torch.stack(groups, -1)).sum(-1)
    torch.testing.assert_close(family.predict(theta, INPUTS), expected)
    torch.testing.assert_close(family.group_weights(theta, INPUTS), scores.softmax(-1))
    torch.testing.assert_close(family.join(outer, inner), theta)


def test_groups_of_one_constant_weight_are_one_mixture():
    family = Hierarchy("relu", Mixture("sigmoid", "gelu", k=2, d=2), groups=3)
    _, inner = family.split(drawn(family))
    outer = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(3, 3)
    flat = Mixture("sigmoid", "gelu", k=6, d=2)
    torch.testing.assert_close(
        family.predict(family.join(outer, inner), INPUTS), flat.predict(inner.flatten(), INPUTS)
    )


def test_the_solver_finds_the_least_squares_estimate():
    family = Hierarchy("sigmoid", Mixture("softmax", "tanh", k=2, d=2), groups=2)
    truth = 2 * drawn(family, seed=3)
    design = FiniteDesign.sobol(128, d=2)
    data = design.draw(family.predict(truth, design.inputs_Qd), [10**7] * 40, sigma=0.1, seed=0)
    # Each inner softmax has a reference.
    held = torch.zeros(family.size, dtype=torch.bool)
    for group in range(2):
        last = 6 + group * 10 + 5
        held[last : last + 3] = True
    box = ParameterBox.around_zero(family.size, 20).pinned(held, truth[held])
    fit = minimise(family, data, truth.expand(40, -1), sigma=0.1, box=box)
    gain = chi2(family, data, truth.expand(40, -1), 0.1) - fit.chi2_B
    assert fit.converged_B.all()
    # Chi-squared: its mean over m fits errs by sqrt(2 free / m).
    assert abs(gain.mean() - box.free) < 4 * (2 * box.free / 40) ** 0.5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    (
        ({"gate": "step"}, "gate must be one of"),
        ({"score": "cubic"}, "score must be one of"),
        ({"groups": 0}, "groups must be 1 or more, got 0"),
    ),
)
def test_bad_families_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Hierarchy(**{"gate": "sigmoid", "inner": Mixture("sigmoid", "gelu"), **wrong})
