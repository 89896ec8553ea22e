"""95% intervals: Student's t over seeds, order statistics of the median over timings.

Seeds are few (three to ten). The difference between two arms with the same seed is a sum of many
small effects, so a t-interval of paired differences is suitable; a bootstrap of three values
contains only those three. Timings are many and skewed, because an interruption only adds time. They
get a median and an interval that assumes no distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# scipy imports its subpackages on first use; importing scipy.stats takes longer than numpy.
import scipy

CONFIDENCE = 0.95
# An interval misses the truth on one side by chance this often.
ONE_SIDE = (1 - CONFIDENCE) / 2
# An interval over fewer seeds would be too wide for every comparison here.
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Interval:
    """A mean over n values with its 95% interval.

    `low` and `high` are NaN if n is too small for an interval; `mean` is NaN if n is 0.

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
        """Whether there are enough values for an interval."""
        return self.low <= self.high

    def signed(self, digits: int, unit: str = "") -> str:
        """The mean and, where there is one, the interval, with signs.

        Example:
            >>> Interval(mean=-2.0, low=-3.0, high=1.0, n=3).signed(1, " %")
            '-2.0 % (-3.0 to +1.0)'
        """
        mean = f"{self.mean:+.{digits}f}{unit}"
        if not self.bounded:
            return mean
        return f"{mean} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence, for Student's t with ``degrees`` degrees of freedom.

    Raises ``ValueError`` if degrees is below one or confidence not inside (0, 1).

    Example:
        >>> round(t_quantile(2), 3), round(t_quantile(9), 3)
        (4.303, 2.262)
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return float(scipy.stats.t.ppf((1 + confidence) / 2, degrees))


def t_interval(values: Sequence[float]) -> Interval:
    """mean ± t * s / sqrt(n), s the sample's standard deviation (n - 1 in the denominator).

    The bounds are NaN for fewer than three values.

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
    """The median, with the order statistics that enclose the true median with 95% probability.

    The interval of `scipy.stats.quantile_test` assumes no distribution: the k-th smallest and the
    k-th largest of n independent values enclose the median with probability
    1 - 2 P(Binomial(n, 1/2) < k). Below six values there is no such k, and no interval.

    Example:
        >>> median_interval([5.0, 1.0, 2.0, 3.0, 4.0, 90.0, 6.0])
        Interval(mean=4.0, low=1.0, high=90.0, n=7)
        >>> median_interval([5.0, 1.0]).mean
        3.0
    """
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    low, high = scipy.stats.quantile_test(values).confidence_interval(CONFIDENCE)
    return Interval(median(values), float(low), float(high), len(values))


def sign_test(first: int, second: int) -> float:
    """The two-sided p-value of `first` against `second` cases, if both kinds are equally likely.

        p = min(1, 2 P(Binomial(first + second, 1/2) <= min(first, second)))

    Example:
        >>> sign_test(6, 0), sign_test(0, 5), sign_test(2, 2), sign_test(0, 0)
        (0.03125, 0.0625, 1.0, 1.0)
    """
    # scipy's test raises an error for zero cases.
    return float(scipy.stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The t-interval of second - first, value by value; effects common to both arms cancel.

    Raises ``ValueError`` if the numbers of values differ.

    Example:
        >>> paired_difference([1.0, 2.0, 9.0], [1.5, 2.5, 9.5])
        Interval(mean=0.5, low=0.5, high=0.5, n=3)
    """
    return t_interval([b - a for a, b in _pairs(first, second)])


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The median of second / first and its interval, over the rounds of an interleaved timing.

    Raises ``ValueError`` if the numbers of values differ.

    Example:
        >>> paired_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).mean
        2.0
    """
    return median_interval([b / a for a, b in _pairs(first, second)])


def _pairs(first: Sequence[float], second: Sequence[float]) -> list[tuple[float, float]]:
    if len(first) != len(second):
        raise ValueError(f"pairs need as many of each, got {len(first)} and {len(second)}")
    return list(zip(first, second, strict=True))
