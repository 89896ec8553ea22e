"""Study on scikit-learn data sets: learning curves and stability of experts for each gate.

Shape letters: n observations, d features, k experts, Q probes, S classes.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn import datasets
from sklearn.metrics import log_loss

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.statistics import ONE_SIDE, Interval, paired_difference
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures.estimators import (
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)
from sigmoid_attention.mixtures.rates.verdict import (
    FEWEST_CONVERGED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
)

GATES = ("softmax", "sigmoid")
RESAMPLES = 20
# Shares of a data set used for training; the rest after the largest share is held out.
SHARES = (0.2, 0.6)
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
PILOTS = 3
PROBES = 200
# A lower limit of probabilities in the log loss, so that a single row does not dominate the mean.
LEAST_PROBABILITY = 1e-3

Table = tuple[np.ndarray, np.ndarray]


def _whole(load: Callable[..., Any]) -> Table:
    return load(return_X_y=True)


def _column(load: Callable[..., Any], name: str) -> Table:
    """A regression of one continuous feature of a classification set on the others."""
    bunch = load()
    column = list(bunch.feature_names).index(name)
    return np.delete(bunch.data, column, axis=1), bunch.data[:, column]


def _patches(size: int, count: int) -> Table:
    """Patches of a photograph in grey, and the brightness of the pixel right of the middle row."""
    grey = datasets.load_sample_image("china.jpg").mean(axis=2) / 255
    rng = np.random.default_rng(0)
    rows = rng.integers(0, grey.shape[0] - size, count)
    columns = rng.integers(0, grey.shape[1] - size - 1, count)
    patches = [grey[r : r + size, c : c + size] for r, c in zip(rows, columns, strict=True)]
    target = grey[rows + size // 2, columns + size]
    return np.stack(patches).reshape(count, -1), target


def _parity() -> Table:
    """Odd or even digits, from 64 pixels; a third of the rows, since a large d is slow."""
    pixels, digit = _whole(datasets.load_digits)
    return pixels[::3], digit[::3] % 2


PARITY = "digits: odd or even (d = 64)"
# The name of each set, its loader, and True for classification.
SETS: dict[str, tuple[Callable[[], Table], bool]] = {
    "diabetes: progression (d = 10)": (
        lambda: _whole(datasets.load_diabetes), False,
    ),
    "wine: alcohol from the rest (d = 12)": (
        lambda: _column(datasets.load_wine, "alcohol"), False,
    ),
    "breast cancer: mean texture from the rest (d = 29)": (
        lambda: _column(datasets.load_breast_cancer, "mean texture"), False,
    ),
    "photograph: next pixel of a 4 × 4 patch (d = 16)": (
        lambda: _patches(4, 1500), False,
    ),
    "iris: species (d = 4)": (
        lambda: _whole(datasets.load_iris), True,
    ),
    "wine: cultivar (d = 13)": (
        lambda: _whole(datasets.load_wine), True,
    ),
    "breast cancer: diagnosis (d = 30)": (
        lambda: _whole(datasets.load_breast_cancer), True,
    ),
    PARITY: (_parity, True),
}  # fmt: skip


@cache
def table(name: str) -> Table:
    """Features (n, d) and targets (n,) of a set."""
    return SETS[name][0]()


@dataclass(frozen=True)
class LearningSetting:
    """One set under one gate; resamples are the same for both.

    The penalty of each gate and size is the best of ``alphas`` on ``pilots`` resamples of its own.
    """

    data: str
    gate: str
    n_experts: int = 3
    expert: str = "linear"
    starts: int = 2
    max_iter: int = 150
    shares: tuple[float, ...] = SHARES
    resamples: int = RESAMPLES
    alphas: tuple[float, ...] = ALPHAS
    pilots: int = PILOTS


def measure(setting: LearningSetting) -> Iterator[Row]:
    """Held-out error of every resample and size, and the similarity of experts of two resamples."""
    features, _ = table(setting.data)
    probes = features[:: max(1, len(features) // PROBES)]
    alphas = {share: _penalty(setting, share) for share in setting.shares}
    for share, alpha in alphas.items():
        yield Row("alpha", alpha, n=round(share * len(features)))
    before = None
    for resample in range(setting.resamples):
        for share, alpha in alphas.items():
            n, model, error = _learned(setting, share, alpha, resample)
            yield Row("error", error, n=n, replicate=resample, converged=model.converged_)
        answers = _flat(model.contributions(probes))
        if before is not None:
            yield Row("stability", stability(before, answers), n=n, replicate=resample - 1)
        before = answers


def _penalty(setting: LearningSetting, share: float) -> float:
    """The penalty with the least geometric mean error over separate resamples."""
    pilots = range(setting.resamples, setting.resamples + setting.pilots)
    errors = [
        sum(math.log(_learned(setting, share, alpha, pilot)[2]) for pilot in pilots)
        for alpha in setting.alphas
    ]
    return setting.alphas[int(np.argmin(errors))]


def _learned(setting: LearningSetting, share: float, alpha: float, resample: int):
    """The number of rows of one resample, the model fitted to them, and its held-out error."""
    features, target = table(setting.data)
    order = np.random.default_rng(resample).permutation(len(features))
    rows = order[: round(share * len(features))]
    held_out = order[round(max(setting.shares) * len(features)) :]
    make = MixtureOfExpertsClassifier if SETS[setting.data][1] else MixtureOfExpertsRegressor
    model = make(
        setting.n_experts, gate=setting.gate, expert=setting.expert, alpha=alpha,
        n_init=setting.starts, max_iter=setting.max_iter, random_state=resample,
    )  # fmt: skip
    with warnings.catch_warnings():
        # Warnings of constant pixels, few data and missing convergence are expected; the rows
        # record which fits did not converge.
        warnings.simplefilter("ignore", UserWarning)
        model.fit(features[rows], target[rows])
    return len(rows), model, _error(model, features[held_out], target[held_out])


def _error(model, features: np.ndarray, target: np.ndarray) -> float:
    """The unexplained share of variance; for classes the mean log loss in nats."""
    if isinstance(model, MixtureOfExpertsRegressor):
        return 1 - model.score(features, target)
    probability = model.predict_proba(features).clip(LEAST_PROBABILITY, 1)
    probability /= probability.sum(axis=1, keepdims=True)
    return float(log_loss(target, probability, labels=model.classes_))


def _flat(contributions: np.ndarray) -> np.ndarray:
    """Contributions (Q, k), or (Q, k, S) of a classifier, with one row for each expert."""
    return np.moveaxis(contributions, 1, 0).reshape(contributions.shape[1], -1)


def stability(first: np.ndarray, second: np.ndarray) -> float:
    """The similarity of two fits' experts: the mean cosine of matched contributions, at most 1.

    Contributions have one row for each expert. Rows are matched by the assignment with the largest
    sum (Hungarian method), since experts have no order.

    Example:
        >>> fit = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
        >>> round(stability(fit, fit[::-1]), 6)
        1.0
        >>> round(stability(np.eye(2), np.array([[1.0, 1.0], [1.0, -1.0]])), 3)
        0.707
    """
    tiny = np.finfo(float).tiny
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), tiny)
            for rows in (first, second)]  # fmt: skip
    cosines = unit[0] @ unit[1].T
    matched = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[matched].mean())


# Verdicts -------------------------------------------------------------------------------------

RULE = f"""Three experts (with two, the sigmoid family would hold the softmax family), linear ones,
and constant ones for 64 features; the same {RESAMPLES} resamples for both gates, and for each gate
and training size the best of {len(ALPHAS)} L2 penalties on {PILOTS} other resamples, since one
penalty would weigh differently on either. Of the held-out error (share of variance left; log loss)
the logarithm of sigmoid's over softmax's is averaged over the training sizes, of the stability of
experts between one resample and the next, at the largest size, the difference; both then over
resamples, with a 95 % t-interval. *{REPRODUCED}*: the whole interval lies on the claimed side, less
error or more stability. *{NOT_REPRODUCED}*: on the other side. *{UNDECIDED}*: on both, or fewer
than {FEWEST_CONVERGED:.0%} of a gate's fits converged. Resamples share observations, so that
intervals are on the narrow side."""


def judge(results: Results) -> list[Finding]:
    """For each set a line for its learning curve and one for the stability of its experts."""
    findings = []
    for name in dict.fromkeys(cell for cell, _ in results):
        if all((name, gate) in results for gate in GATES):
            arms = [results[name, gate][0] for gate in GATES]
            findings += [_curve(name, *arms), _steady(name, *arms)]
    return findings


def verdict_of(difference: Interval, converged: float, less_is_claimed: bool) -> str:
    """The rule, from sigmoid minus softmax and the smaller share of converged fits."""
    if converged < FEWEST_CONVERGED:
        return UNDECIDED
    low, high = difference.low, difference.high
    if less_is_claimed:
        low, high = -high, -low
    if low > 0:
        return REPRODUCED
    return NOT_REPRODUCED if high < 0 else UNDECIDED


def _curve(name: str, softmax: Measured, sigmoid: Measured) -> Finding:
    sizes, first = _grid(softmax)
    _, second = _grid(sigmoid)
    logs = [np.log(errors).mean(axis=0).tolist() for errors in (first, second)]
    difference = paired_difference(*logs)
    value, low, high = np.exp([difference.mean, difference.low, difference.high])
    curve = "; ".join(
        f"n = {n:.0f}: {a.mean():.3f} and {b.mean():.3f}"
        for n, a, b in zip(sizes, first, second, strict=True)
    )
    return Finding(
        f"{name}: held-out error",
        "less error under sigmoid",
        f"softmax and sigmoid at {curve}",
        verdict_of(difference, _converged(softmax, sigmoid), less_is_claimed=True),
        f"sigmoid's error is {value:.3f} [{low:.3f}, {high:.3f}] of softmax's",
        f"converged {softmax.share('error'):.0%} and {sigmoid.share('error'):.0%}; penalties "
        f"{_penalties(softmax)} and {_penalties(sigmoid)}",
        ONE_SIDE,
    )


def _converged(softmax: Measured, sigmoid: Measured) -> float:
    return min(softmax.share("error"), sigmoid.share("error"))


def _penalties(measured: Measured) -> str:
    return ", ".join(f"{alpha:g}" for alpha in measured.values("alpha"))


def _steady(name: str, softmax: Measured, sigmoid: Measured) -> Finding:
    first, second = (measured.values("stability").tolist() for measured in (softmax, sigmoid))
    difference = paired_difference(first, second)
    return Finding(
        f"{name}: stability of experts",
        "experts are found again more surely under sigmoid",
        f"softmax {np.mean(first):.2f}, sigmoid {np.mean(second):.2f}, "
        f"difference {_said(difference)}",
        verdict_of(difference, _converged(softmax, sigmoid), less_is_claimed=False),
        f"{len(first)} pairs of resamples",
        chance=ONE_SIDE,
    )


def _said(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _grid(measured: Measured) -> tuple[list[float], np.ndarray]:
    """Sizes, and errors (N, R) of all fits, converged or not."""
    rows = [row for row in measured.rows if row.quantity == "error"]
    sizes = sorted({row.n for row in rows})
    return sizes, np.array([[row.value for row in rows if row.n == n] for n in sizes])


# Tasks and figure -----------------------------------------------------------------------------


def tasks() -> list[Task]:
    """Every set under either gate."""
    tasks = []
    for name in SETS:
        expert = "constant" if name == PARITY else "linear"
        work = 4.0 if expert == "constant" else 1.0
        tasks += [
            Task(name, gate, LearningSetting(name, gate, expert=expert), measure, work)
            for gate in GATES
        ]
    return tasks


def draw(results: Results) -> Figure:
    """Learning curves, a panel a set."""
    names = list(dict.fromkeys(cell for cell, _ in results))
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name)
        axis.set_ylabel("log loss" if SETS[name][1] else "share of variance left")
        for gate in GATES:
            sizes, errors = _grid(results[name, gate][0])
            loglog(axis, np.array(sizes), errors, gate, colour=gate)
    return figure


STUDY = Study(
    "real_data",
    "Real data",
    "A sigmoid gate needs fewer samples for the same error, and its experts, which do not compete, "
    "are found again more surely. The papers show it for synthetic data and language models; "
    "whether it carries over to small tables is asked here, not claimed there.",
    "extrapolated from Nguyen et al. 2024 and Yan et al. 2025",
    RULE,
    tasks,
    judge,
    draw,
)
