"""Slopes of a loss against n on logarithmic axes, with intervals over truths or over replicates.

Truths differ more than replicates do, so an interval is Student's over the slopes of several
truths; their spread holds that of the replicates. For one truth it is a bootstrap over replicates,
and speaks of that truth alone.

The bootstrap is our own. `scipy.stats.bootstrap` refuses samples of one fit, and its random numbers
would change every published interval.

Shape letters: N sample sizes, R replicates, T truths, S draws of the bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.parts import named

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np
    import scipy


DRAWS = 1000
COVERED = (0.025, 0.975)
# Two values have an interval of 13 standard errors on each side, which says nothing.
FEWEST_TRUTHS = 3


@dataclass(frozen=True)
class Slope:
    """A slope, or another number, with its 95 % interval.

    Attributes:
        spread: standard deviation of the truths' values; NaN for one truth.
        noise: the part of ``spread`` that replicates alone cause.
        truths: the number of truths that have a value.
    """

    value: float
    low: float
    high: float
    spread: float = np.nan
    noise: float = np.nan
    truths: int = 1

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "no slope"
        if np.isnan(self.low):
            return f"{self.short} (no interval)"
        return f"{self.short} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def short(self) -> str:
        """The slope without its interval."""
        return "none" if np.isnan(self.value) else f"{self.value:+.2f}"

    def near(self, claim: float, margin: float = 0.0) -> bool:
        """True if the interval comes within ``margin`` of a claim."""
        return self.low - margin <= claim <= self.high + margin

    def within(self, claim: float, margin: float) -> bool:
        """True if the whole interval lies within ``margin`` of a claim."""
        return claim - margin <= self.low and self.high <= claim + margin

    def outside(self, claim: float, margin: float) -> bool:
        """True if the whole interval lies farther than ``margin`` from a claim, on one side."""
        return self.low > claim + margin or self.high < claim - margin

    def apart(self, other: "Slope") -> float:
        """The distance between two intervals; 0 where they touch or overlap."""
        return max(self.low - other.high, other.low - self.high, 0.0)


def slope(
    sizes: Sequence[float],
    losses_TNR: np.ndarray | Sequence[np.ndarray],
    *,
    statistic: str = "median",
    draws: int = DRAWS,
    seed: int = 0,
) -> Slope:
    r"""The least-squares slope of log loss on log n, averaged over truths.

    .. math::
        \hat s = \frac1T \sum_t \frac{\sum_n (\log n - \overline{\log n}) \log m_{tn}}
                                     {\sum_n (\log n - \overline{\log n})^2}

    with m the median (or mean) of the replicates. The interval of several truths is `over_truths`.
    That of one truth is a bootstrap, which resamples replicates within each n. A loss of NaN (a fit
    that did not converge) is left out. A size without any loss is left out of the line of that
    truth.

    Args:
        losses_TNR: (T, N, R), or (N, R) of one truth.
        statistic: "median" or "mean".

    Raises:
        ValueError: fewer than two sizes, shapes that do not fit, or an unknown statistic.

    Example:
        >>> import numpy as np
        >>> sizes = [10, 100, 1000]
        >>> losses = np.array([[n**-0.5] * 5 for n in sizes])
        >>> print(slope(sizes, losses))
        -0.50 [-0.50, -0.50]
    """
    losses = np.asarray(losses_TNR, dtype=float)
    if losses.ndim == 2:
        losses = losses[None]
    if len(sizes) < 2 or losses.shape[1] != len(sizes):
        raise ValueError(
            f"losses must be (truths, {len(sizes)} sizes, replicates) with 2 sizes or more, "
            f"got {losses.shape}"
        )
    centres = {"median": _median, "mean": _mean}
    centre = named("statistic", centres, statistic)
    log_n = np.log(np.asarray(sizes, dtype=float))
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, losses.shape[-1], (draws, *losses.shape))
    resampled = np.take_along_axis(np.broadcast_to(losses, chosen.shape), chosen, axis=-1)
    slopes_T, resampled_ST = (_lines(log_n, centre(values)) for values in (losses, resampled))
    if len(slopes_T) > 1:
        there_ST = resampled_ST[:, np.isfinite(slopes_T)]
        noise = np.sqrt(np.nanvar(there_ST, axis=0).mean()) if there_ST.size else np.nan
        return over_truths(slopes_T, float(noise))
    low, high = np.quantile(resampled_ST[:, 0], COVERED)
    return Slope(float(slopes_T[0]), float(low), float(high))


def slopes_of_truths(
    sizes: Sequence[float], losses_TNR: np.ndarray, *, statistic: str = "median"
) -> np.ndarray:
    """The slope of each truth, (T,), as in `slope`; NaN where a truth has no line."""
    centre = {"median": _median, "mean": _mean}[statistic]
    return _lines(np.log(np.asarray(sizes, dtype=float)), centre(losses_TNR))


def over_truths(values_T: Sequence[float] | np.ndarray, noise: float = np.nan) -> Slope:
    r"""The mean of the truths' values with Student's 95 % interval.

    .. math:: \bar v \pm t_{T-1}\, s / \sqrt T

    Truths without a value (NaN) are left out; fewer than three have no interval.

    Example:
        >>> print(over_truths([-0.4, -0.5, -0.6]))
        -0.50 [-0.75, -0.25]
    """
    there = np.asarray(values_T, dtype=float)
    there = there[np.isfinite(there)]
    if len(there) < FEWEST_TRUTHS:
        value = float(there.mean()) if len(there) else np.nan
        return Slope(value, np.nan, np.nan, noise=noise, truths=len(there))
    spread = float(there.std(ddof=1))
    half = _student(len(there) - 1) * spread / np.sqrt(len(there))
    mean = float(there.mean())
    return Slope(mean, float(mean - half), float(mean + half), spread, noise, len(there))


# Simulations of the rule ask for the same quantile thousands of times.
@lru_cache(maxsize=64)
def _student(degrees: int) -> float:
    return float(scipy.stats.t.ppf(COVERED[1], degrees))


def factor_over_truths(factors_T: Sequence[float] | np.ndarray) -> Slope:
    """The geometric mean of the truths' factors, with the interval of `over_truths` of their logs.

    Example:
        >>> print(factor_over_truths([1.0, 2.0, 4.0]))
        +2.00 [+0.36, +11.19]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = over_truths(np.log(np.asarray(factors_T, dtype=float)))
    value, low, high = np.exp([logs.value, logs.low, logs.high]).tolist()
    return Slope(value, low, high, truths=logs.truths)


def ratio(first_R: np.ndarray, second_R: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Slope:
    """The ratio of the medians of two samples, second over first, with its bootstrap interval."""
    rng = np.random.default_rng(seed)

    def medians(values: np.ndarray) -> np.ndarray:
        flat = values[np.isfinite(values)]
        if len(flat) == 0:
            return np.full(draws, np.nan)
        return _median(flat[rng.integers(0, len(flat), (draws, len(flat)))])

    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = medians(second_R.ravel()) / medians(first_R.ravel())
        value = _median(second_R.reshape(1, -1)) / _median(first_R.reshape(1, -1))
    low, high = np.quantile(ratios, COVERED).tolist()
    return Slope(float(value[0]), low, high)


def _lines(log_n: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Slopes over the last axis, each from the points that are not NaN."""
    with np.errstate(divide="ignore"):
        heights = np.log(centres)
    there = np.isfinite(heights)
    count = there.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(there, log_n, 0.0)
        x = np.where(there, x - x.sum(-1, keepdims=True) / count, 0.0)
        return (x * np.where(there, heights, 0.0)).sum(-1) / (x * x).sum(-1)


def _median(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without NaN; numpy's own function is slow over many short rows."""
    ordered = np.sort(values, axis=-1)  # NaN comes last
    count = (~np.isnan(ordered)).sum(-1, keepdims=True)
    lower = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0), -1)
    upper = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), -1)
    return np.where(count > 0, (lower + upper) / 2, np.nan)[..., 0]


def _mean(values: np.ndarray) -> np.ndarray:
    count = (~np.isnan(values)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(values, -1) / count
