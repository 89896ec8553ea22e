"""Least squares by mini-batch SGD or Adam for a fixed number of epochs, as in the papers.

Shape letters: B problems of N observations each, M of a batch, d dimension, P parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.model import Mixture
from sigmoid_attention.mixtures.parts import named
from sigmoid_attention.mixtures.solver import (
    DEFAULTS,
    Fit,
    ParameterBox,
    SolverSettings,
    chi2,
    minimise,
)

OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}

# Called with the number of steps and the parameters (B, P); it must not keep or change them.
Trace = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class StochasticRecipe:
    """An optimiser with a constant learning rate and a fixed number of epochs.

    Optimiser, rate and epochs of the defaults are those of Nguyen et al. 2024, section 4, which
    does not give the batch.

    Args:
        optimiser: "sgd" (no momentum) or "adam" (default betas).
        learning_rate: the learning rate for the mean squared error of a batch.
        epochs: passes over the data, each in a new random order.
        batch: observations a step; the last batch of an epoch may be smaller.

    Raises:
        ValueError: an unknown optimiser, or a number that is not positive.
    """

    optimiser: str = "sgd"
    learning_rate: float = 0.1
    epochs: int = 10
    batch: int = 256

    def __post_init__(self) -> None:
        named("optimiser", OPTIMISERS, self.optimiser)
        for name in ("learning_rate", "epochs", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def paper_mode(
    family: Mixture,
    data: Samples,
    start_BP: Tensor,
    *,
    sigma: float,
    recipe: StochasticRecipe = StochasticRecipe(),
    seed: int = 0,
    trace: Trace | None = None,
) -> Fit:
    """Mini-batch training of B problems side by side, each on its own data and in its own order.

    Training stops after a fixed number of epochs, without a test of convergence: ``converged`` is
    never true, ``iterations`` is the number of steps, and `excess` gives chi2 above the optimum. A
    problem that diverged has infinite ``chi2``. Parameters are not bounded. Since epochs are fixed,
    a larger n also means more steps: slopes on n mix statistics with optimisation.
    Source: the experiments of Nguyen et al. 2024 and Yan et al. 2025.

    Args:
        sigma: standard deviation of the noise, the unit of ``chi2``; training does not use it.
        trace: called before the first step and after every step.

    Raises:
        ValueError: starts that are not one for each problem.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.data import Samples
        >>> family = Mixture("sigmoid", "tanh", k=2, d=2)
        >>> truth = torch.arange(10).double().sin() * 2
        >>> data = Samples.draw(
        ...     lambda x: family.predict(truth, x), count=3, n=1000, d=2, sigma=0.1, seed=0
        ... )
        >>> steps = []
        >>> fit = paper_mode(
        ...     family, data, 0.5 * truth.expand(3, -1), sigma=0.1,
        ...     recipe=StochasticRecipe(epochs=2), trace=lambda step, theta: steps.append(step),
        ... )
        >>> steps
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
        >>> bool(fit.converged_B.any())
        False
    """
    problems, n = data.observations_BQ.shape
    if start_BP.shape != (problems, family.size):
        raise ValueError(
            f"start must be (problems, parameters) = {(problems, family.size)}, "
            f"got {tuple(start_BP.shape)}"
        )
    theta = start_BP.clone()
    optimiser = OPTIMISERS[recipe.optimiser]([theta], lr=recipe.learning_rate)
    rng = torch.Generator().manual_seed(seed)
    row = torch.arange(problems)[:, None]
    tell = trace or (lambda step, theta: None)
    tell(0, theta)
    step = 0
    for _ in range(recipe.epochs):
        order_BN = torch.rand(problems, n, generator=rng, dtype=torch.float32).argsort(-1)
        for place_BM in order_BN.split(recipe.batch, -1):
            inputs_BMd = data.inputs_BQd[row, place_BM]
            answer, jacobian = family.predict_with_jacobian(theta, inputs_BMd)
            error = answer - data.observations_BQ[row, place_BM]
            theta.grad = 2 * (error[:, None, :] @ jacobian)[:, 0] / error.shape[-1]
            optimiser.step()
            step += 1
            tell(step, theta)
    at_end = chi2(family, data, theta, sigma).nan_to_num(nan=torch.inf)
    never = torch.zeros(problems, dtype=torch.bool)
    return Fit(theta.detach(), at_end, never, torch.full((problems,), step), never)


def excess(
    family: Mixture,
    data: Samples,
    fit: Fit,
    *,
    sigma: float,
    box: ParameterBox,
    settings: SolverSettings = DEFAULTS,
) -> Tensor:
    """The decrease of chi2 by `minimise`, started from the end of training, (B,).

    For a least-squares fit it is below one. It is infinite where training diverged, and NaN where
    `minimise` did not converge either.
    """
    lost = ~fit.chi2_B.isfinite()
    begin = torch.where(lost[:, None], 0.0, fit.theta_BP)
    polished = minimise(family, data, begin, sigma=sigma, box=box, settings=settings)
    fall = torch.where(polished.converged_B, fit.chi2_B - polished.chi2_B, torch.nan)
    return torch.where(lost, torch.inf, fall)
