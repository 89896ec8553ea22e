"""Classification: derivatives, counts against rows, the theoretical gain, and distances."""

import numpy as np
import pytest
import torch

from sigmoid_attention.mixtures import FiniteDesign, Mixture
from sigmoid_attention.mixtures.classification import (
    LogisticDeviance,
    LogisticMixture,
    hellinger,
    maximise_likelihood,
)
from sigmoid_attention.mixtures.labels import LabelCounts, RawLabels, draw_labels
from sigmoid_attention.mixtures.solver import ParameterBox

DESIGN = FiniteDesign.sobol(96, d=2)
INPUTS = DESIGN.inputs_Qd
EXACT = (
    LogisticMixture(Mixture("normalised_sigmoid", "tanh", k=2, d=2), classes=3),
    LogisticMixture(Mixture("softmax", "gelu", k=2, d=2), classes=3),
    LogisticMixture(Mixture("sigmoid", "tanh", k=2, d=2), classes=2),
)


def identity(family: LogisticMixture) -> str:
    logit = family.logit
    return f"{logit.gate}-{logit.expert}-k{logit.k}-d{logit.d}-S{family.classes}"


def drawn(family: LogisticMixture, count: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(count, family.size, generator=rng, dtype=torch.float64)


# The family -----------------------------------------------------------------------------------


def test_logits_are_one_mixture_a_class_with_common_gates():
    family = LogisticMixture(Mixture("softmax", "linear", k=2, d=2, temperature=True), classes=3)
    theta = drawn(family, 4)
    logits = family.logits(theta, INPUTS)
    assert logits.shape == (4, 96, 3)
    assert (logits[..., 2] == 0).all()
    atoms = family.atoms(theta)
    assert family.size == 2 * (3 + 2 * 3) + 1 and atoms.shape == (4, 2, 9)
    weights = family.gate_weights(theta, INPUTS)
    scores = torch.einsum("qd,akd->aqk", INPUTS, atoms[..., :2])
    scores = scores * torch.exp(-theta[:, -1])[:, None, None] + atoms[:, None, :, 2]
    torch.testing.assert_close(weights, scores.softmax(-1))
    for c in range(2):
        slope, intercept = atoms[..., 3 + 3 * c : 5 + 3 * c], atoms[:, None, :, 5 + 3 * c]
        value = torch.einsum("qd,akd->aqk", INPUTS, slope) + intercept
        torch.testing.assert_close(logits[..., c], (weights * value).sum(-1))
        assert family.parts[f"eta_a of {c}"] == slice(3 + 3 * c, 5 + 3 * c)
    torch.testing.assert_close(family.contributions(theta, INPUTS).sum(-2), logits)
    assert family.parts["beta1"] == slice(0, 2)


def test_only_the_reference_experts_score_is_held():
    free = EXACT[1].free_P
    assert free.numel() == 14 and (~free).nonzero().flatten().tolist() == [7, 8, 9]
    assert EXACT[0].free_P.all()


@pytest.mark.parametrize("family", EXACT, ids=identity)
def test_the_quadratic_model_has_the_gradient_and_fisher_information(family):
    theta = drawn(family, 3)
    law = family.probabilities(theta[0], INPUTS)
    data = draw_labels(DESIGN, law, [300] * 3, seed=1)
    objective, which = LogisticDeviance(family, data), torch.arange(3)
    moving = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective.cost(moving, which).sum(), moving)
    curvature, gradient = objective.quadratic(theta, which)
    torch.testing.assert_close(gradient, -slope / 2)
    for problem in range(3):
        slopes = torch.autograd.functional.jacobian(
            lambda theta: family.logits(theta, INPUTS), theta[problem]
        )
        p = family.probabilities(theta[problem], INPUTS)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        expected = torch.einsum("q,qcp,qce,qer->pr", data.count_BQ[problem], slopes, inner, slopes)
        torch.testing.assert_close(curvature[problem], expected)


# Data -----------------------------------------------------------------------------------------


def test_the_deviance_is_the_likelihood_above_that_of_the_shares():
    family = EXACT[0]
    theta = drawn(family, 2)
    law = family.probabilities(theta[0], INPUTS)
    data = draw_labels(DESIGN, law, [200, 5000], seed=0)
    log_p = family.logits(theta, INPUTS).log_softmax(-1)
    seen = data.share_BQS * data.count_BQ[..., None]
    of_shares = torch.special.xlogy(seen, data.share_BQS).sum((1, 2))
    expected = 2 * (of_shares - (seen * log_p).sum((1, 2)))
    torch.testing.assert_close(
        LogisticDeviance(family, data).cost(theta, torch.arange(2)), expected
    )


@pytest.mark.long
def test_counts_are_as_good_as_rows():
    family = EXACT[0]
    rng = np.random.default_rng(0)
    place = rng.integers(0, 96, 4000)
    truth = drawn(family, 1)[0]
    law = family.probabilities(truth, INPUTS).numpy()
    labels = (rng.random(4000)[:, None] > law[place].cumsum(1)).sum(1)
    rows = RawLabels.of(INPUTS.numpy()[place], labels, classes=3, chunk=321)
    seen = np.zeros((96, 3))
    np.add.at(seen, (place, labels), 1)
    count = seen.sum(1)
    counts = LabelCounts(
        INPUTS,
        torch.from_numpy(seen / count[:, None])[None],
        torch.from_numpy(count)[None],
    )
    assert rows.n_B.tolist() == counts.n_B.tolist() == [4000.0]
    box = ParameterBox.around_zero(family.size, 20.0)
    ends = [maximise_likelihood(family, data, truth[None], box=box) for data in (rows, counts)]
    assert all(end.converged_B.all() for end in ends)
    torch.testing.assert_close(ends[0].theta_BP, ends[1].theta_BP, rtol=0, atol=1e-3)
    theta, only = torch.stack((truth, ends[0].theta_BP[0])), torch.arange(1)
    falls = [
        LogisticDeviance(family, data).cost(theta[:1], only)
        - LogisticDeviance(family, data).cost(theta[1:], only)
        for data in (rows, counts)
    ]
    torch.testing.assert_close(falls[0], falls[1], rtol=1e-9, atol=1e-9)


def test_drawn_labels_have_the_moments_of_their_law():
    law = EXACT[0].probabilities(drawn(EXACT[0], 1)[0], INPUTS)
    n = 10**6
    data = draw_labels(DESIGN, law, [n] * 100, seed=3)
    assert (data.n_B == n).all()
    torch.testing.assert_close(data.share_BQS.sum(-1), torch.ones(100, 96, dtype=torch.float64))
    variance = law * (1 - law) / data.count_BQ[..., None]
    z = (data.share_BQS - law) / variance.sqrt()
    # Of each node's three shares two are free.
    assert abs(z.mean()) < 0.05
    assert abs(z.square().mean() - 1) < 0.06


# Estimates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EXACT, ids=identity)
def test_the_gain_is_the_number_of_parameters_and_hellinger_falls_like_the_root(family):
    truth = drawn(family, 1, seed=5)[0]
    law = family.probabilities(truth, INPUTS)
    sizes, replicates = [10**6, 10**9, 10**12], 30
    data = draw_labels(DESIGN, law, [n for n in sizes for _ in range(replicates)], seed=0)
    start = truth.expand(len(sizes) * replicates, -1)
    free = family.free_P
    box = ParameterBox.around_zero(family.size, 50.0).pinned(~free, truth[~free])
    fit = maximise_likelihood(family, data, start, box=box)
    assert fit.converged_B.all()
    gain = LogisticDeviance(family, data).cost(start, torch.arange(len(start))) - fit.chi2_B
    assert (gain > 0).all()
    # The gain is chi-squared: its mean over m fits errs by sqrt(2 free / m).
    assert abs(gain.mean() - box.free) < 4 * (2 * box.free / len(gain)) ** 0.5
    distance = hellinger(family, fit.theta_BP, law, INPUTS).reshape(3, replicates).median(-1).values
    falls = (distance[:-1] / distance[1:]).log10() / 3
    torch.testing.assert_close(falls, torch.full((2,), 0.5).double(), rtol=0, atol=0.05)


def test_hellinger_is_0_between_equal_laws_and_1_between_disjoint_ones():
    family = LogisticMixture(Mixture("sigmoid", "constant", k=1), classes=2)
    ends = torch.tensor([[-1.0], [1.0]]).double()
    theta = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1600.0]]).double()
    even = torch.full((2, 2), 0.5).double()
    other = torch.tensor([[0.0, 1.0]] * 2).double()
    assert hellinger(family, theta[:1], even, ends).item() == 0
    assert hellinger(family, theta[1:], other, ends).item() == pytest.approx(1)
    expected = (1 - 0.5**0.5) ** 0.5  # between even and certain
    assert hellinger(family, theta[:1], other, ends).item() == pytest.approx(expected)


def test_certain_classes_lean_on_the_box_and_stay_finite():
    family = LogisticMixture(Mixture("sigmoid", "linear", k=1, d=1), classes=2)
    x = np.linspace(-1, 1, 50)[:, None]
    data = RawLabels.of(x, (x[:, 0] > 0).astype(int), classes=2)
    box = ParameterBox.around_zero(family.size, 40.0)
    start = torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    fit = maximise_likelihood(family, data, start, box=box)
    assert fit.at_box_B.all() and fit.chi2_B.isfinite().all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (lambda: LogisticMixture(Mixture("sigmoid", "tanh"), 1), "classes must be 2 or more"),
        (lambda: draw_labels(DESIGN, torch.ones(96, 1), [0], seed=0), "sizes must be 1 or more"),
        (lambda: RawLabels.of(np.zeros((3, 1)), np.zeros(2), 2), "data must be"),
        (lambda: RawLabels.of(np.array([[np.nan]]), np.zeros(1), 2), "data must be finite"),
        (
            lambda: RawLabels.of(np.zeros((3, 1)), np.array([0, 1, -1]), 2, chunk=2),
            "labels must be whole numbers from 0 to 1, got -1 in row 2$",
        ),
        (
            lambda: RawLabels.of(np.zeros((1, 1)), np.array([0.5]), 2),
            "labels must be whole numbers from 0 to 1, got 0.5 in row 0$",
        ),
    ),
)
def test_bad_input_is_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        make()
