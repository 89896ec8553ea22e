"""What the estimators do around a fit: standardise, and leave nothing of a fit that fails."""

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from sigmoid_attention.attention import arguments
from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np


def centre_and_spread(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each column's mean and standard deviation, 1 where it is constant, and whether it is.

    Rounding alone gives a column of n equal numbers m a spread of up to n eps |m|, and a mean that
    is off by as much. What varies by no more is constant, as for scikit-learn's StandardScaler.

    Example:
        >>> _, spread, constant = centre_and_spread(np.array([[1.0, 0.3], [3.0, 0.1 + 0.2]]))
        >>> spread.tolist(), constant.tolist()
        ([1.0, 1.0], [False, True])
    """
    # In units of the largest number: squares of 1e200 are infinite, and those of 1e-200 are zero.
    # Powers of two change no digit.
    unit = np.ldexp(1.0, np.frexp(np.abs(X).max(axis=0))[1] - 1)
    mean, variance = (X / unit).mean(axis=0), (X / unit).var(axis=0)
    rounding = len(X) * np.finfo(np.float64).eps
    spread = unit * np.sqrt(variance)
    constant = variance <= rounding * variance + (rounding * mean) ** 2
    # A quotient by a number below the normal ones overflows.
    constant |= spread < np.finfo(np.float64).tiny
    return unit * mean, np.where(constant, 1.0, spread), constant


def all_or_nothing(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A fit that fails leaves what an earlier one has found."""

    @functools.wraps(fit)
    def fitted(self, X, y):
        before = vars(self).copy()
        try:
            return fit(self, X, y)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fitted


def real(given: Any) -> float:
    """A parameter that has to be a number; NaN, which fits no range, for what is none."""
    if not isinstance(given, Real) or isinstance(given, bool):
        return math.nan
    try:
        return float(given)
    except OverflowError:
        return math.inf


def check_target(y: Any) -> None:
    """Refuse words, of which scikit-learn tells neither where they are nor, always, that."""
    given = np.asarray(y)
    if given.dtype.kind in "SUO":
        for number in given.ravel().tolist():
            if isinstance(number, str | bytes):
                raise ValueError(f"y must hold numbers, got {arguments.shown(number)}")
