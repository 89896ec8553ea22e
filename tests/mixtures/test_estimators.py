"""The estimators follow scikit-learn's conventions, agree with the solver, and report errors."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from sigmoid_attention.mixtures import Mixture, RawData
from sigmoid_attention.mixtures.estimators import (
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)
from sigmoid_attention.mixtures.fitting import centre_and_spread
from sigmoid_attention.mixtures.rates.setting import RateSetting, draw_truth
from sigmoid_attention.mixtures.solver import ParameterBox, minimise

both = pytest.mark.parametrize(
    "kind", (MixtureOfExpertsRegressor, MixtureOfExpertsClassifier), ids=("regressor", "classifier")
)


# The checks' data are tiny and some columns constant, which is warned of, and checks run over a
# hundred fits: two starts of few steps.
@pytest.mark.filterwarnings("ignore:X. :UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([MixtureOfExpertsRegressor(n_init=2, max_iter=60)])
def test_conventions_of_regressors(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X. :UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([MixtureOfExpertsClassifier(n_init=2, max_iter=60)])
def test_conventions_of_classifiers(estimator, check):
    check(estimator)


def waves(n: int = 400, sigma: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal units, and a target that a mixture of two tanh experts makes."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (n, 2)) * (10.0, 0.1) + (5.0, 0.0)
    u = (X - (5.0, 0.0)) / (10.0, 0.1)
    y = 3 / (1 + np.exp(-4 * u[:, 0])) * np.tanh(2 * u[:, 1]) + 7 + sigma * rng.standard_normal(n)
    return X, y


def corners(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).uniform(-1, 1, (n, 2))
    return X, np.where(X[:, 0] * X[:, 1] > 0, "same", "other")


def data_for(kind):
    return waves() if kind is MixtureOfExpertsRegressor else corners()


# What they find -------------------------------------------------------------------------------


def test_without_a_penalty_it_is_the_least_squares_estimate():
    X, y = waves()
    model = MixtureOfExpertsRegressor(2, expert="tanh", alpha=0.0, random_state=0).fit(X, y)
    assert model.converged_ and model.n_at_bounds_ == 0
    inputs = (X - X.mean(0)) / X.std(0)
    target = (y - y.mean()) / y.std()
    family = Mixture("sigmoid", "tanh", k=2, d=2)
    sigma = model.noise_ / y.std()
    theta = torch.from_numpy(model.theta_)[None]
    box = ParameterBox.around_zero(family.size, 30.0)
    polished = minimise(family, RawData.of(inputs, target), theta, sigma=sigma, box=box)
    rss = ((model.predict(X) - y) ** 2).sum() / y.std() ** 2
    assert rss / sigma**2 - polished.chi2_B.item() < 1e-2
    assert model.noise_ == pytest.approx(
        np.sqrt(((model.predict(X) - y) ** 2).sum() / (400 - family.size)), rel=1e-2
    )


def test_a_fit_stops_in_units_of_the_noise_that_it_finds():
    """However small that is beside the target: with a tol of 1, within a unit of the optimum."""
    rng = np.random.default_rng(2)
    X, family = rng.uniform(-1, 1, (300, 2)), Mixture("sigmoid", "tanh", k=2, d=2)
    truth = 2 * torch.arange(10).double().sin()
    y = family.predict(truth, torch.from_numpy(X)).numpy() + 1e-5 * rng.standard_normal(300)
    model = MixtureOfExpertsRegressor(
        2, expert="tanh", alpha=0.0, tol=1.0, standardize=False, random_state=0
    ).fit(X, y)
    assert model.noise_ == pytest.approx(1e-5, rel=0.15)
    theta, box = torch.from_numpy(model.theta_)[None], ParameterBox.around_zero(10, 30.0)
    best = minimise(family, RawData.of(X, y), theta, sigma=1e-5, box=box)
    assert ((model.predict(X) - y) ** 2).sum() / 1e-10 - best.chi2_B.item() < 1


def test_data_without_noise_are_fitted_to_rounding():
    rng = np.random.default_rng(2)
    X, family = rng.uniform(-1, 1, (300, 2)), Mixture("sigmoid", "linear", k=2, d=2)
    truth = 2 * torch.arange(12).double().sin()
    y = family.predict(truth, torch.from_numpy(X)).numpy()
    model = MixtureOfExpertsRegressor(alpha=0.0, standardize=False, random_state=0).fit(X, y)
    assert model.converged_
    assert model.noise_ < 1e-6 * y.std()


def test_parameters_keep_to_the_box_and_hits_are_counted():
    X, y = waves()
    model = MixtureOfExpertsRegressor(bound=0.7, random_state=0).fit(X, y)
    assert (abs(model.theta_) <= 0.7).all()
    assert model.n_at_bounds_ == (abs(model.theta_) == 0.7).sum() > 0


def test_the_penalised_minimum_does_not_depend_on_the_noise():
    """Its slope is zero: 2 J'r = 2 alpha theta."""
    X, y = waves()
    model = MixtureOfExpertsRegressor(2, alpha=1.0, tol=1e-10, random_state=0).fit(X, y)
    assert model.converged_
    inputs = torch.from_numpy((X - X.mean(0)) / X.std(0))
    theta = torch.from_numpy(model.theta_)
    answer, jacobian = model.family_.predict_with_jacobian(theta, inputs)
    residual = torch.from_numpy((y - y.mean()) / y.std()) - answer
    torch.testing.assert_close(jacobian.mT @ residual, theta, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gate", ("softmax", "normalised_sigmoid"))
def test_one_linear_expert_of_a_competing_gate_is_linear_regression(gate):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 3))
    y = X @ [1.0, -2.0, 0.5] + 4 + 0.3 * rng.standard_normal(200)
    model = MixtureOfExpertsRegressor(1, gate=gate, alpha=1e-9, random_state=0).fit(X, y)
    expected = LinearRegression().fit(X, y).predict(X)
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-4)
    # A score that changes nothing is no parameter that the data determine.
    assert model.noise_ == pytest.approx(np.sqrt(((expected - y) ** 2).sum() / (200 - 4)))


def test_one_linear_expert_of_a_competing_gate_is_logistic_regression():
    X, y = load_breast_cancer(return_X_y=True)
    model = MixtureOfExpertsClassifier(1, gate="softmax", alpha=0.1, tol=1e-10, random_state=0)
    model.fit(X, y)
    assert model.converged_ and model.n_at_bounds_ == 0
    # A column of ones, because we penalise the intercept like the rest.
    design = np.insert((X - X.mean(0)) / X.std(0), 0, 1.0, axis=1)
    theirs = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-10, max_iter=5000).fit(
        design, y
    )
    np.testing.assert_allclose(model.predict_proba(X), theirs.predict_proba(design), atol=1e-5)
    np.testing.assert_array_equal(model.predict(X), theirs.predict(design))
    ours = -2 * np.log(model.predict_proba(X)[np.arange(len(y)), y]).sum()
    assert model.deviance_ == pytest.approx(ours)


def test_a_mixture_sees_corners_that_one_expert_does_not():
    X, y = corners()
    two = MixtureOfExpertsClassifier(2, random_state=0).fit(X, y)
    single = MixtureOfExpertsClassifier(1, gate="softmax", random_state=0).fit(X, y)
    assert two.score(X, y) > 0.95 > 0.75 > single.score(X, y)
    assert two.classes_.tolist() == ["other", "same"]


@both
@pytest.mark.parametrize("gate", ("sigmoid", "softmax"))
def test_contributions_sum_to_the_answer(kind, gate):
    X, y = data_for(kind)
    model = kind(3, gate=gate, random_state=0).fit(X, y)
    parts, weights = model.contributions(X), model.gate_weights(X)
    assert weights.shape == (400, 3) and parts.shape[:2] == (400, 3)
    if gate == "softmax":
        np.testing.assert_allclose(weights.sum(1), 1)
        assert (model.theta_[2 * model.family_.atom_size :][:3] == 0).all()  # the reference
    if kind is MixtureOfExpertsRegressor:
        np.testing.assert_allclose(model.offset_ + parts.sum(1), model.predict(X))
    else:
        logits = parts.sum(1)
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(model.predict_proba(X), expected)
        np.testing.assert_array_equal(logits[:, -1], 0)


def test_units_do_not_matter_where_data_are_standardised():
    X, y = waves()
    model = MixtureOfExpertsRegressor(random_state=0).fit(X, y)
    other = MixtureOfExpertsRegressor(random_state=0).fit(X * (1e-3, 1e5) + 2, 50 * y - 3)
    np.testing.assert_allclose(other.predict(X * (1e-3, 1e5) + 2), 50 * model.predict(X) - 3)
    assert other.noise_ == pytest.approx(50 * model.noise_)
    plain = MixtureOfExpertsRegressor(standardize=False, random_state=0).fit(X, y)
    assert plain.offset_ == 0 and plain.unit_ == 1
    assert (plain.mean_ == 0).all() and (plain.scale_ == 1).all()


def test_starts_are_reported_and_more_of_them_are_no_worse():
    X, y = waves()
    few = MixtureOfExpertsRegressor(3, expert="tanh", n_init=1, random_state=1).fit(X, y)
    many = MixtureOfExpertsRegressor(3, expert="tanh", n_init=12, random_state=1).fit(X, y)
    assert few.init_excess_.shape == (1,) and many.init_excess_.shape == (12,)
    assert (many.init_excess_ == 0).any() and (many.init_excess_ > -0.1).all()
    assert many.init_excess_.max() > 1
    assert many.score(X, y) >= few.score(X, y) - 1e-4


# What is wrong --------------------------------------------------------------------------------


@both
def test_a_fit_that_ran_out_of_steps_warns_and_says_so(kind):
    X, y = data_for(kind)
    with pytest.warns(ConvergenceWarning, match=r"^the fit did not converge in 2 iterations"):
        model = kind(max_iter=2, random_state=0).fit(X, y)
    assert model.converged_ is False and model.n_iter_ == 2


COUNT = r"must be an int in the range \[1, inf\)"
POSITIVE = r"must be a float in the range \(0.0, inf\)"
NOT_NEGATIVE = r"must be a float in the range \[0.0, inf\)"
SWITCH = "must be an instance of 'bool' or an instance of 'numpy.bool'"
TENSOR = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    (
        ({"n_experts": 0}, f"n_experts {COUNT}, got 0"),
        ({"n_experts": 1.5}, f"n_experts {COUNT}, got 1.5"),
        ({"n_experts": True}, f"n_experts {COUNT}, got True"),
        ({"n_init": 0}, f"n_init {COUNT}, got 0"),
        ({"n_init": TENSOR}, f"n_init {COUNT}, got a Param.*"),
        ({"max_iter": 0}, f"max_iter {COUNT}, got 0"),
        ({"max_iter": 10**400}, f"max_iter {COUNT}, got a number of 1329 bits"),
        ({"init_scale": 0.0}, f"init_scale {POSITIVE}, got 0.0"),
        ({"init_scale": "2"}, f"init_scale {POSITIVE}, got the string '2'"),
        ({"init_scale": TENSOR}, f"init_scale {POSITIVE}, got a Param.*"),
        ({"bound": -1}, f"bound {POSITIVE}, got -1"),
        ({"bound": 10**400}, f"bound {POSITIVE}, got a number of 1329 bits"),
        ({"tol": 0}, f"tol {POSITIVE}, got 0"),
        ({"tol": True}, f"tol {POSITIVE}, got True"),
        ({"tol": np.nan}, f"tol {POSITIVE}, got nan"),
        ({"alpha": -0.1}, f"alpha {NOT_NEGATIVE}, got -0.1"),
        ({"alpha": np.inf}, f"alpha {NOT_NEGATIVE}, got inf"),
        ({"alpha": None}, f"alpha {NOT_NEGATIVE}, got None"),
        ({"standardize": "no"}, f"standardize {SWITCH}, got the string 'no'"),
        ({"standardize": None}, f"standardize {SWITCH}, got None"),
        ({"temperature": None}, f"temperature {SWITCH}, got None"),
        ({"temperature": 0.5}, f"temperature {SWITCH}, got 0.5"),
        ({"gate": "step"}, "gate must be a str among {'sigmoid', .*}, got the string 'step'"),
        ({"gate": ["sigmoid"]}, r"gate must be a str among .*, got \['sigmoid'\]"),
        ({"expert": "tree"}, "expert must be a str among {'relu', .*}, got the string 'tree'"),
        ({"expert": ["linear"]}, r"expert must be a str among .*, got \['linear'\]"),
        ({"gate_score": {}}, "gate_score must be a str among {'linear', .*}, got .*dict.*"),
        ({"gate_score": None}, "gate_score must be a str among {'linear', .*}, got None"),
        ({"random_state": "x"}, "random_state must be .*, got the string 'x'"),
    ),
)
@both
def test_a_parameter_that_breaks_its_constraint_is_refused(kind, parameters, sentence):
    with pytest.raises(InvalidParameterError, match=f"^{sentence}$") as refusal:
        kind(**parameters).fit(*data_for(kind))
    assert isinstance(refusal.value, ValueError) and isinstance(refusal.value, TypeError)


@both
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    (
        ({"n_experts": 500}, "n_experts must be at most the number of observations, 400, got 500"),
        (
            {"n_experts": 100, "alpha": 0},
            "X: 400 observations cannot determine 600 parameters; give more of them, .*",
        ),
    ),
)
def test_more_experts_than_the_data_determine_are_refused(kind, parameters, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        kind(**parameters).fit(*data_for(kind))


@both
@pytest.mark.parametrize(
    "parameters",
    [
        {"n_init": np.int64(2)},
        {name: Fraction(1, 10) for name in ("tol", "alpha", "init_scale", "bound")},
        {name: 1 for name in ("tol", "alpha", "init_scale", "bound")},
    ],
    ids=str,
)
def test_numbers_of_other_types_are_taken(kind, parameters):
    X, y = data_for(kind)
    kind(random_state=0, **({"n_init": 2} | parameters)).fit(X[:60], y[:60])


@both
def test_bad_data_are_refused(kind):
    X, y = data_for(kind)
    with pytest.raises(ValueError, match=r"Input X contains NaN"):
        kind().fit(np.where(X > 0.5, np.nan, X), y)
    model = kind(random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"Input X contains NaN"):
        model.predict(np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match=r"^X has 3 features, but"):
        model.predict(np.zeros((1, 3)))


@pytest.mark.parametrize("words", [["a", "b"], ["1", "2"], np.array([1.0, "b"], object)], ids=str)
def test_a_target_of_strings_is_refused_in_one_sentence(words):
    X, _ = waves()
    y = np.resize(np.asarray(words), len(X))
    with pytest.raises(ValueError, match=r"^y must hold numbers, got the string '[ab1]'$"):
        MixtureOfExpertsRegressor().fit(X, y)


def test_labels_must_be_classes_of_more_than_one_kind():
    X, _ = corners()
    with pytest.raises(ValueError, match=r"^y must have 2 classes or more, got one class, 7$"):
        MixtureOfExpertsClassifier().fit(X, np.full(400, 7))
    with pytest.raises(ValueError, match=r"^Unknown label type: continuous"):
        MixtureOfExpertsClassifier().fit(X, X[:, 0])


@both
def test_a_constant_column_is_warned_of_and_changes_nothing(kind):
    X, y = data_for(kind)
    wide = np.insert(X, 1, 3.0, axis=1)
    with pytest.warns(UserWarning, match=r"^X: columns \[1\] are constant and have no effect$"):
        model = kind(random_state=0).fit(wide, y)
    assert model.scale_[1] == 1
    assert model.score(wide, y) == pytest.approx(
        kind(random_state=0).fit(X, y).score(X, y), abs=0.02
    )


def rounded(value: float, n: int = 400) -> np.ndarray:
    """The same number n times, each up to its last bits."""
    return value * (1 + np.finfo(np.float64).eps * (np.arange(n) % 5 - 2))


@both
@pytest.mark.parametrize("value", [0.1, -3.0, 1e9, 1e-200, 1e200])
def test_a_column_that_varies_by_rounding_is_constant(kind, value):
    X, y = data_for(kind)
    wide, new = np.insert(X, 1, rounded(value), axis=1), np.insert(X, 1, 7 * value, axis=1)
    with pytest.warns(UserWarning, match=r"^X: columns \[1\] are constant and have no effect$"):
        model = kind(random_state=0, n_init=2).fit(wide, y)
    with pytest.warns(UserWarning, match="constant"):
        exact = kind(random_state=0, n_init=2).fit(np.insert(X, 1, value, axis=1), y)
    np.testing.assert_allclose(model.theta_, exact.theta_, atol=1e-9)
    # New values of the column have no effect.
    assert model.score(new, y) == model.score(wide, y) == pytest.approx(exact.score(new, y))
    assert model.scale_[1] == 1 and model.constant_.tolist() == [False, True, False]


@both
def test_a_column_that_varies_below_the_normal_numbers_is_constant(kind):
    X, y = data_for(kind)
    noise = 1e-320 * np.random.default_rng(0).standard_normal(len(X))
    wide, new = np.insert(X, 1, noise, axis=1), np.insert(X, 1, 7.0, axis=1)
    with pytest.warns(UserWarning, match=r"^X: columns \[1\] are constant and have no effect$"):
        model = kind(random_state=0, n_init=2).fit(wide, y)
    assert model.score(new, y) == model.score(wide, y)
    assert model.scale_[1] == 1 and model.constant_.tolist() == [False, True, False]


@both
@pytest.mark.parametrize("unit, offset", [(1.0, 1e9), (1e-9, 1.0), (1e200, 0.0), (1e-200, 0.0)])
def test_columns_of_any_size_and_offset_are_seen(kind, unit, offset):
    X, y = data_for(kind)
    model = kind(random_state=0, n_init=2).fit(unit * X + offset * unit, y)
    assert not model.constant_.any()
    expected = kind(random_state=0, n_init=2).fit(X, y)
    assert model.score(unit * X + offset * unit, y) == pytest.approx(expected.score(X, y), abs=1e-3)


def test_what_is_constant_is_what_scikit_learn_calls_so():
    rng, n = np.random.default_rng(5), 300
    spreads = 10.0 ** np.arange(-18, 1, 0.25)
    X = 1 + spreads * rng.standard_normal((n, 1))
    _, spread, constant = centre_and_spread(X)
    scaler = StandardScaler().fit(X)
    assert (constant == (scaler.scale_ == 1)).all() and 10 < constant.sum() < len(spreads)
    np.testing.assert_allclose(spread, scaler.scale_, rtol=1e-4)


def test_a_target_that_varies_by_rounding_is_constant():
    X, _ = waves()
    model = MixtureOfExpertsRegressor(random_state=0, n_init=2).fit(X, rounded(0.1))
    np.testing.assert_allclose(model.predict(10 * X), 0.1, rtol=1e-14)


@both
def test_a_fit_that_fails_leaves_what_an_earlier_one_found(kind):
    X, y = data_for(kind)
    model = kind(random_state=0, n_init=2).fit(X, y)
    answer = model.predict(X)
    model.set_params(n_experts=20, alpha=0)
    with pytest.raises(ValueError, match="observations cannot determine"):
        model.fit(100 * X[:30, :1], y[:30])
    assert (model.predict(X) == answer).all() and model.n_features_in_ == 2
    fresh = kind(n_experts=500)
    with pytest.raises(ValueError, match="n_experts"):
        fresh.fit(X, y)
    with pytest.raises(NotFittedError):
        fresh.predict(X)


@both
def test_fewer_observations_than_parameters_are_warned_of(kind):
    X, y = data_for(kind)
    with pytest.warns(
        UserWarning, match=r"^X: 10 observations cannot determine 12 parameters; alpha"
    ):
        kind(random_state=0).fit(X[:10], y[:10])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(random_state=0).fit(X[:60], y[:60])


def test_the_default_penalty_leaves_the_noise_as_it_is():
    """With ten times the penalty the noise of few observations looks a tenth larger and more."""
    truth = draw_truth(RateSetting("softmax", "gelu", extra=0, truth_seed=102))
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (100, 2))
    f = truth.family.predict(truth.theta_P, torch.from_numpy(X)).numpy()
    y = f + 0.1 * rng.standard_normal(100)

    def noise(**options) -> float:
        model = MixtureOfExpertsRegressor(
            2, gate="softmax", expert="gelu", standardize=False, random_state=0, **options
        )
        return model.fit(X, y).noise_

    exact = noise(alpha=1e-6)
    assert noise() < 1.03 * exact < 1.1 * exact < noise(alpha=0.1)
