"""Intervals for few measurements: over seeds by Student's t, over timings by order statistics.

Seeds are few (three to ten) and the difference between two arms that share a seed is a sum of many
small effects, so the t-interval of the paired differences is the right tool; a bootstrap of three
values can only ever return those three. Timings are the opposite: many, skewed (an interruption
only ever adds), so they get their median and an interval that assumes no shape at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# Below this many seeds an interval would be wider than any question asked of it.
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Interval:
    """A mean over n values with its 95% interval.

    `low` and `high` are NaN where n is too small for an interval; `mean` is NaN where n is 0.

    Example:
        >>> Interval(mean=2.0, low=1.5, high=2.5, n=3).bounded
        True
        >>> Interval(mean=2.0, low=float("nan"), high=float("nan"), n=1).bounded
        False
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def bounded(self) -> bool:
        """Whether there are enough values for an interval at all."""
        return self.low <= self.high


def t_tail(t: float, degrees: int) -> float:
    """P(|T| > t) for Student's t with a whole number of degrees of freedom.

    With theta = atan(t / sqrt(degrees)) the inside probability is a finite sum of odd powers
    (odd degrees) or even powers (even degrees) of cos(theta): Abramowitz and Stegun, 26.7.3 and
    26.7.4.

    Example:
        >>> round(t_tail(12.706, 1), 4), round(t_tail(4.303, 2), 4)
        (0.05, 0.05)
    """
    theta = math.atan(t / math.sqrt(degrees))
    sin, cos = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cos if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    inside = 2 / math.pi * (theta + sin * total) if odd else sin * total
    return 1 - inside


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence, to twelve digits by bisection.

    Raises ``ValueError`` if degrees is below one or confidence not inside (0, 1).

    Example:
        >>> round(t_quantile(2), 3), round(t_quantile(9), 3)
        (4.303, 2.262)
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > 1 - confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > 1 - confidence else (low, middle)
    return high


def t_interval(values: Sequence[float]) -> Interval:
    """mean ± t * s / sqrt(n), s the sample's standard deviation (n - 1 in the denominator).

    Without bounds where there are fewer than three values.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 3), interval.mean, round(interval.high, 3)
        (-0.484, 2.0, 4.484)
    """
    n = len(values)
    mean = sum(values) / n if n else math.nan
    if n < FEWEST_FOR_INTERVAL:
        return Interval(mean, math.nan, math.nan, n)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def median_interval(values: Sequence[float]) -> Interval:
    """The median, between the order statistics that hold the true one with 95% probability.

    The k-th smallest and the k-th largest of n independent values enclose the median with
    probability 1 - 2 P(Binomial(n, 1/2) < k), whatever their distribution; k is the largest for
    which that is at least 95%. Below six values there is none, and the interval has no bounds.

    Example:
        >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 90.0, 6.0])
        Interval(mean=4.0, low=1.0, high=90.0, n=7)
        >>> median_interval([5.0, 1.0]).mean
        3.0
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    ordered = sorted(values)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    outside, k = 2 * 0.5**n, 0
    while outside <= 1 - CONFIDENCE:
        k += 1
        outside += 2 * math.comb(n, k) * 0.5**n
    if k == 0:
        return Interval(median, math.nan, math.nan, n)
    return Interval(median, ordered[k - 1], ordered[n - k], n)


def sign_test(first: int, second: int) -> float:
    """The two-sided p of `first` against `second` cases if each were as likely as the other.

        p = min(1, 2 P(Binomial(first + second, 1/2) <= min(first, second)))

    Example:
        >>> sign_test(6, 0), sign_test(0, 5), sign_test(2, 2), sign_test(0, 0)
        (0.03125, 0.0625, 1.0, 1.0)
    """
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    return min(1.0, 2 * tail)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The t-interval of second - first, value by value: what two arms share cancels.

    Raises ``ValueError`` if there are not as many of one as of the other.

    Example:
        >>> paired_difference([1.0, 2.0, 9.0], [1.5, 2.5, 9.5])
        Interval(mean=0.5, low=0.5, high=0.5, n=3)
    """
    return t_interval([b - a for a, b in _pairs(first, second)])


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The median and its interval of second / first, round by round of an interleaved timing.

    Raises ``ValueError`` if there are not as many of one as of the other.

    Example:
        >>> paired_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).mean
        2.0
    """
    return median_interval([b / a for a, b in _pairs(first, second)])


def _pairs(first: Sequence[float], second: Sequence[float]) -> list[tuple[float, float]]:
    if len(first) != len(second):
        raise ValueError(f"pairs need as many of each, got {len(first)} and {len(second)}")
    return list(zip(first, second, strict=True))
