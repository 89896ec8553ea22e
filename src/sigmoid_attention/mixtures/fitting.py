"""Helpers of the estimators: parameter checks, standardisation, and rollback of a failed fit."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from sigmoid_attention.attention import arguments
from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np
    from sklearn.utils._param_validation import Interval, InvalidParameterError, make_constraint


def centre_and_spread(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each column's mean, standard deviation (1 if constant), and a flag for constant columns.

    Rounding alone gives a column of n equal numbers m a spread of up to n eps |m|, and an error of
    the same size in the mean. A column with no larger spread counts as constant, as for
    scikit-learn's StandardScaler.

    Example:
        >>> _, spread, constant = centre_and_spread(np.array([[1.0, 0.3], [3.0, 0.1 + 0.2]]))
        >>> spread.tolist(), constant.tolist()
        ([1.0, 1.0], [False, True])
    """
    # In units of the largest number: squares of 1e200 are infinite, and those of 1e-200 are zero.
    # Division by a power of two is exact.
    unit = np.ldexp(1.0, np.frexp(np.abs(X).max(axis=0))[1] - 1)
    mean, variance = (X / unit).mean(axis=0), (X / unit).var(axis=0)
    rounding = len(X) * np.finfo(np.float64).eps
    spread = unit * np.sqrt(variance)
    constant = variance <= rounding * variance + (rounding * mean) ** 2
    # Division by a subnormal number overflows.
    constant |= spread < np.finfo(np.float64).tiny
    return unit * mean, np.where(constant, 1.0, spread), constant


def all_or_nothing(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``fit``, so that a fit that fails restores the results of an earlier one."""

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


class FiniteInterval(Interval):
    """scikit-learn's ``Interval``, but without booleans and numbers too large for a float."""

    def is_satisfied_by(self, val: Any) -> bool:
        if not isinstance(val, self.type) or isinstance(val, bool):
            return False
        try:
            return math.isfinite(val) and float(val) in self
        except OverflowError:
            return False


def check_parameters(constraints: Mapping[str, list], parameters: Mapping[str, Any]) -> None:
    """Refuse a parameter that satisfies none of its scikit-learn constraints.

    The messages of scikit-learn's own check differ from the rest of this library and print large
    values in full.
    """
    for name, value in parameters.items():
        allowed = [make_constraint(constraint) for constraint in constraints[name]]
        if not any(constraint.is_satisfied_by(value) for constraint in allowed):
            wanted = " or ".join(map(str, allowed))
            raise InvalidParameterError(f"{name} must be {wanted}, got {arguments.shown(value)}")


def check_target(y: Any) -> None:
    """Refuse strings in a target; scikit-learn's message would not name the argument."""
    values = np.asarray(y)
    if values.dtype.kind in "SUO":
        for number in values.ravel().tolist():
            if isinstance(number, str | bytes):
                raise ValueError(f"y must hold numbers, got {arguments.shown(number)}")
