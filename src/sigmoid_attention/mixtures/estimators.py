"""Mixtures of experts as scikit-learn estimators.

Shape letters: n observations, d features, k experts, S classes, P parameters.
"""

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.classification import LogisticDeviance, LogisticMixture
from sigmoid_attention.mixtures.data import ROWS_OF_A_CHUNK, RawData
from sigmoid_attention.mixtures.experts import EXPERTS
from sigmoid_attention.mixtures.fitting import (
    FiniteInterval,
    all_or_nothing,
    centre_and_spread,
    check_parameters,
    check_target,
)
from sigmoid_attention.mixtures.gates import GATES
from sigmoid_attention.mixtures.labels import RawLabels
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.multistart import Attempts, best_of, spread, uniform_starts
from sigmoid_attention.mixtures.objective import Objective, Penalised, SumOfSquares
from sigmoid_attention.mixtures.scores import SCORES
from sigmoid_attention.mixtures.solver import ParameterBox, SolverSettings

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import StrOptions
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data

# Numbers in the Jacobians of a chunk, so that these fit in the caches.
NUMBERS_OF_A_CHUNK = 2**21
# Relative to the spread of the target: smaller noise counts as rounding.
LEAST_NOISE = 1e-6


class _MixtureOfExperts(BaseEstimator):
    """Base class: parameters, standardisation, initialisations, and attributes of a fit."""

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "n_experts": [FiniteInterval(Integral, 1, None, closed="left")],
        "gate": [StrOptions(GATES.keys())],
        "expert": [StrOptions(EXPERTS.keys())],
        "gate_score": [StrOptions(SCORES.keys())],
        "temperature": ["boolean"],
        "alpha": [FiniteInterval(Real, 0, None, closed="left")],
        "n_init": [FiniteInterval(Integral, 1, None, closed="left")],
        "init_scale": [FiniteInterval(Real, 0, None, closed="neither")],
        "bound": [FiniteInterval(Real, 0, None, closed="neither")],
        "standardize": ["boolean"],
        "tol": [FiniteInterval(Real, 0, None, closed="neither")],
        "max_iter": [FiniteInterval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }
    family_: Mixture | LogisticMixture

    def __init__(
        self,
        n_experts: int = 2,
        *,
        gate: str = "sigmoid",
        expert: str = "linear",
        gate_score: str = "linear",
        temperature: bool = False,
        alpha: float = 0.01,
        n_init: int = 8,
        init_scale: float = 2.0,
        bound: float = 30.0,
        standardize: bool = True,
        tol: float = 1e-4,
        max_iter: int = 4000,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.gate = gate
        self.expert = expert
        self.gate_score = gate_score
        self.temperature = temperature
        self.alpha = alpha
        self.n_init = n_init
        self.init_scale = init_scale
        self.bound = bound
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _checked(self, X, y, **options: bool) -> tuple[np.ndarray, np.ndarray]:
        checked: Any = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, **options)
        return checked

    def _family_of_one_output(self, d: int) -> Mixture:
        return Mixture(self.gate, self.expert, self.gate_score, self.n_experts, d, self.temperature)

    def _standardised(self, X: np.ndarray) -> np.ndarray:
        """The standardised features; stores their mean and scale."""
        centre, spread, constant = centre_and_spread(X)
        if constant.any():
            warnings.warn(
                f"X: columns {np.flatnonzero(constant).tolist()} are constant and have no effect",
                stacklevel=4,
            )
        self.mean_ = centre if self.standardize else np.zeros(X.shape[1])
        self.scale_ = spread if self.standardize else np.ones(X.shape[1])
        # No data determine the effect of a constant column, so new values have none.
        self.constant_ = constant & bool(self.standardize)
        return self._scaled(X)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return np.where(self.constant_, 0.0, (X - self.mean_) / self.scale_)

    def _compare_counts(self, n: int, free: int) -> None:
        if self.n_experts > n:
            raise ValueError(
                f"n_experts must be at most the number of observations, {n}, got {self.n_experts}"
            )
        if n > free:
            return
        reason = f"X: {n} observations cannot determine {free} parameters"
        if self.alpha == 0:
            raise ValueError(f"{reason}; give more of them, fewer experts, or alpha above 0")
        warnings.warn(f"{reason}; alpha determines the rest", stacklevel=4)

    def _rows_of_a_chunk(self, numbers_a_row: int) -> int:
        rows = NUMBERS_OF_A_CHUNK // (self.n_init * numbers_a_row)
        return min(max(rows, 64), ROWS_OF_A_CHUNK)

    def _box(self, free_P: Tensor) -> ParameterBox:
        return ParameterBox.around_zero(len(free_P), self.bound).pinned(~free_P, torch.tensor(0.0))

    def _first_round(
        self, objective: Objective, family: Mixture | LogisticMixture, box: ParameterBox
    ) -> Attempts:
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        within = spread(family, float(self.init_scale))
        start = uniform_starts(within, problems=1, starts=self.n_init, seed=seed)
        return self._round(objective, start, box)

    def _round(self, objective: Objective, start_1SP: Tensor, box: ParameterBox) -> Attempts:
        settings = SolverSettings(tol=float(self.tol), max_iter=self.max_iter)
        return best_of(objective, start_1SP, box=box, settings=settings)

    def _remember(
        self, family: Mixture | LogisticMixture, attempts: Attempts, box: ParameterBox
    ) -> None:
        best = attempts.best
        theta = best.theta_BP[0]
        leans = ((theta <= box.low_P) | (theta >= box.high_P)) & (box.low_P < box.high_P)
        self.family_ = family
        self.theta_ = theta.numpy()
        self.converged_ = bool(best.converged_B)
        self.n_iter_ = int(best.iterations_B)
        self.n_at_bounds_ = int(leans.sum())
        self.init_excess_ = attempts.excess_BS[0].numpy()
        if not self.converged_:
            warnings.warn(
                f"the fit did not converge in {self.max_iter} iterations; raise max_iter or alpha",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _by_rows(self, function: Callable[[Tensor, Tensor], Tensor], X) -> np.ndarray:
        """A function of parameters and inputs at the rows of X, some rows at a time."""
        checked: Any = validate_data(self, X, reset=False, dtype=np.float64)
        inputs = torch.from_numpy(self._scaled(checked))
        theta = torch.from_numpy(self.theta_)
        return torch.cat([function(theta, rows) for rows in inputs.split(ROWS_OF_A_CHUNK)]).numpy()

    def gate_weights(self, X) -> np.ndarray:
        """The gate's weight of every expert at every row, (n, k)."""
        check_is_fitted(self)
        return self._by_rows(self.family_.gate_weights, X)


class MixtureOfExpertsRegressor(RegressorMixin, _MixtureOfExperts):
    r"""A mixture of experts as a regression function, by penalised least squares.

    .. math::
        \min_\theta \sum_{i=1}^n (y_i - f_\theta(x_i))^2 + \alpha \|\theta\|^2, \qquad
        f_\theta(x) = \sum_{j=1}^k g(s(x))_j\, h(x, \eta_j)

    in standardised features and targets. The result is the best of several random starts. A penalty
    of 0 gives the least-squares estimate of Nguyen et al. 2024, section 2, within bounds.

    Args:
        n_experts: k.
        gate, expert, gate_score, temperature: the family; see `Mixture`. ReLU, GELU and SiLU are
            almost zero for negative arguments and almost never negative, while half of a
            standardised target is below 0.
        alpha: weight of the penalty. It shrinks parameters, which the residuals then hold: for 100
            observations of twelve random members of the family with noise 0.1, unstandardised, the
            median of ``noise_`` is 0.120 with alpha 0.1, 0.104 with 0.01 and 0.102 with 0.001, and
            the median error of the function 0.080, 0.040 and 0.032.
        n_init: number of random initialisations, each with a full fit; more of them make it
            likelier that the best result is the global minimum.
        init_scale: size of the scores and of the experts' arguments at an initialisation.
        bound: largest absolute value of a parameter.
        standardize: scale features and target to mean 0 and variance 1 first. Without it alpha,
            init_scale and bound are in the units of the data. Few mixtures can add the mean of the
            target back, so that what is in the family may be outside of it afterwards: ``noise_``
            of the members above is then 0.128, with any small alpha, and up to 0.43.
        tol: a fit stops when a step can lower chi2, in units of the noise, by no more than this.
        max_iter: largest number of iterations from one initialisation. A fit has two rounds; the
            second uses the noise that the first has estimated.
        random_state: seed of the initialisations.

    Attributes:
        theta_: parameters of ``family_``, for standardised data. mean_, scale_: of the features.
        constant_: True for features that are constant up to rounding; predictions ignore them.
        offset_, unit_: mean and spread of the target.
        converged_: True if the stopping rule was met; otherwise there is a `ConvergenceWarning`.
        n_iter_: iterations of the best initialisation in the second round.
        noise_: standard deviation of the residuals, in units of y; its divisor is n minus the
            number of parameters that the data determine. It holds the misfit of the family too.
        init_excess_: chi2 of each initialisation's result above that of the best, (n_init,).
        n_at_bounds_: number of parameters at their bound.

    Raises:
        InvalidParameterError: by `fit`, a parameter of the wrong type or out of its range. It is a
            ``ValueError`` and a ``TypeError``.
        ValueError: by `fit`, data that are not finite, more experts than observations, or without a
            penalty as many parameters as observations.

    With a penalty, too many parameters cause a warning, as does a constant column. A fit that fails
    keeps the results of an earlier fit.

    Example:
        >>> import numpy as np
        >>> from sigmoid_attention.mixtures.estimators import MixtureOfExpertsRegressor
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(-1, 1, (500, 2))
        >>> y = np.abs(X[:, 0]) + 0.05 * rng.standard_normal(500)
        >>> model = MixtureOfExpertsRegressor(2, random_state=0).fit(X, y)
        >>> bool(model.converged_), round(model.score(X, y), 2)
        (True, 0.97)
        >>> model.gate_weights(X).shape, model.contributions(X).shape
        ((500, 2), (500, 2))
    """

    family_: Mixture

    @all_or_nothing
    def fit(self, X, y) -> "MixtureOfExpertsRegressor":
        """Fit to features (n, d) and targets (n,)."""
        check_parameters(self._parameter_constraints, self.get_params(deep=False))
        check_target(y)
        X, y = self._checked(X, y, y_numeric=True)
        inputs = self._standardised(X)
        n, d = inputs.shape
        family = self._family_of_one_output(d)
        box = self._box(free_parameters(family))
        self._compare_counts(n, box.free)
        self.offset_, self.unit_, target = 0.0, 1.0, y
        if self.standardize:
            (self.offset_,), (self.unit_,), (constant,) = map(
                np.ndarray.tolist, centre_and_spread(y[:, None])
            )
            target = np.zeros(n) if constant else (y - self.offset_) / self.unit_
        data = RawData.of(inputs, target, chunk=self._rows_of_a_chunk(family.size))
        # The stopping rule depends on the noise, which the first round estimates.
        guess = float(np.std(target)) or 1.0
        attempts = self._first_round(self._objective(family, data, guess), family, box)
        noise = self._noise(family, data, attempts.best.theta_BP, box)
        noise = max(noise, LEAST_NOISE * guess)
        attempts = self._round(self._objective(family, data, noise), attempts.theta_BSP, box)
        self._remember(family, attempts, box)
        self.noise_ = self.unit_ * self._noise(family, data, attempts.best.theta_BP, box)
        return self

    def _objective(self, family: Mixture, data: RawData, sigma: float) -> Penalised:
        # The penalty is in units of the residuals, so sigma does not change the minimum.
        return Penalised(SumOfSquares(family, data, sigma), float(self.alpha) / sigma**2)

    def _noise(self, family: Mixture, data: RawData, theta_1P: Tensor, box: ParameterBox) -> float:
        plain, only = SumOfSquares(family, data, 1.0), torch.arange(1)
        free = box.low_P < box.high_P
        seen = torch.linalg.eigvalsh(plain.quadratic(theta_1P, only)[0][0][free][:, free])
        # Each direction counts by the share that the data, and not the penalty, determine.
        against = max(float(self.alpha), 1e-12 * float(seen[-1]))
        determined = float((seen.clamp(min=0) / (seen.clamp(min=0) + against)).sum())
        rss = float(plain.cost(theta_1P, only))
        return (rss / (data.n - determined)) ** 0.5

    def predict(self, X) -> np.ndarray:
        """The regression function at the rows of X, (n,)."""
        check_is_fitted(self)
        return self.offset_ + self.unit_ * self._by_rows(self.family_.predict, X)

    def contributions(self, X) -> np.ndarray:
        """Each expert's part of the prediction, (n, k); their sum is ``predict(X) - offset_``."""
        check_is_fitted(self)
        return self.unit_ * self._by_rows(self.family_.contributions, X)


class MixtureOfExpertsClassifier(ClassifierMixin, _MixtureOfExperts):
    r"""A multinomial-logistic mixture of experts as a classifier, by penalised likelihood.

    .. math:: \min_\theta -2 \sum_{i=1}^n \log p_\theta(y_i \mid x_i) + \alpha \|\theta\|^2

    with the law of `LogisticMixture`: the logits of the experts are mixed, and the last class is
    the reference. The penalty keeps parameters finite where classes are separable.

    Args: as `MixtureOfExpertsRegressor`.

    Attributes: as there, without ``offset_``, ``unit_`` and ``noise_``, and with
        classes_: the labels, in the order of the columns of `predict_proba`.
        deviance_: -2 log likelihood.

    Raises:
        ValueError: as there, or labels that are not classes, or labels of one class only.

    Example:
        >>> import numpy as np
        >>> from sigmoid_attention.mixtures.estimators import MixtureOfExpertsClassifier
        >>> X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
        >>> y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
        >>> model = MixtureOfExpertsClassifier(2, random_state=0).fit(X, y)
        >>> model.score(X, y) > 0.95, model.predict_proba(X).shape
        (True, (300, 2))
    """

    family_: LogisticMixture

    @all_or_nothing
    def fit(self, X, y) -> "MixtureOfExpertsClassifier":
        """Fit to features (n, d) and labels (n,)."""
        check_parameters(self._parameter_constraints, self.get_params(deep=False))
        X, y = self._checked(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have 2 classes or more, got one class, {self.classes_[0]}")
        inputs = self._standardised(X)
        n, d = inputs.shape
        family = LogisticMixture(self._family_of_one_output(d), len(self.classes_))
        box = self._box(family.free_P)
        self._compare_counts(n, box.free)
        rows = self._rows_of_a_chunk(family.size + family.indices_CR.numel())
        deviance = LogisticDeviance(family, RawLabels.of(inputs, labels, len(self.classes_), rows))
        attempts = self._first_round(Penalised(deviance, float(self.alpha)), family, box)
        self._remember(family, attempts, box)
        self.deviance_ = float(deviance.cost(attempts.best.theta_BP, torch.arange(1)))
        return self

    def predict_proba(self, X) -> np.ndarray:
        """The probability of every class at the rows of X, (n, S)."""
        check_is_fitted(self)
        return self._by_rows(self.family_.probabilities, X)

    def predict(self, X) -> np.ndarray:
        """The likeliest class at the rows of X, (n,)."""
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]

    def contributions(self, X) -> np.ndarray:
        """Each expert's part of every class's logit, (n, k, S); 0 for the last class."""
        check_is_fitted(self)
        return self._by_rows(self.family_.contributions, X)
