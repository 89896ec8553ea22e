"""Means over a grid keep the statistics of least squares, in a few dimensions."""

import numpy as np
import pytest
import torch

from sigmoid_attention.mixtures import Mixture, RawData, binned
from sigmoid_attention.mixtures.solver import ParameterBox, chi2, minimise


def drawn(n: int, d: int) -> tuple[Mixture, torch.Tensor, np.ndarray, np.ndarray]:
    family = Mixture("sigmoid", "tanh", k=2, d=d)
    theta = 2 * torch.sin(torch.arange(family.size).double())
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (n, d))
    y = family.predict(theta, torch.from_numpy(x)).numpy() + 0.1 * rng.standard_normal(n)
    return family, theta, x, y


@pytest.mark.parametrize(("d", "bins"), ((1, 500), (2, 100), (3, 40)), ids=lambda n: str(n))
@pytest.mark.long
def test_a_fit_to_cells_is_nearly_that_to_rows(d, bins):
    family, theta, x, y = drawn(20_000, d)
    raw, cells = RawData.of(x, y), binned(x, y, bins)
    assert len(cells.inputs_Qd) <= min(bins**d, len(x))
    box = ParameterBox.around_zero(family.size, 20.0)
    fits = [minimise(family, data, theta[None], sigma=0.1, box=box) for data in (raw, cells)]
    above = chi2(family, raw, fits[1].theta_BP, 0.1) - fits[0].chi2_B
    # Of a twentieth of a standard error in each parameter there would be 0.03.
    assert abs(above.item()) < 0.05


def test_sums_are_kept_to_the_last_row():
    x = np.array([[0.0, 5.0], [0.1, 5.0], [1.0, 5.0]])  # a constant column, and both ends
    y = np.array([1.0, 3.0, 7.0])
    data = binned(x, y, bins=2)
    np.testing.assert_allclose(data.inputs_Qd, [[0.05, 5.0], [1.0, 5.0]])
    assert data.mean_BQ.tolist() == [[2.0, 7.0]]
    assert data.count_BQ.tolist() == [[2.0, 1.0]]
    assert data.within_B.item() == pytest.approx(2.0)
    assert data.n_B.item() == 3


@pytest.mark.parametrize(
    ("x", "y", "bins", "sentence"),
    [
        (np.zeros(3), np.zeros(3), 5, "data must be"),
        (np.zeros((3, 1)), np.zeros(2), 5, "data must be"),
        (np.zeros((3, 30)), np.zeros(3), 5, "bins: 5 along each of 30 axes"),
    ],
    ids=["one axis", "lengths", "cells"],
)
def test_bad_input_is_refused(x, y, bins, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        binned(x, y, bins)
