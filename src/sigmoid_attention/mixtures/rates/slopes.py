"""Slopes of a loss against n on logarithmic axes, with bootstrap intervals.

The bootstrap is our own. `scipy.stats.bootstrap` refuses samples of one fit, and its random numbers
would change every published interval.

Shape letters: N sample sizes, R replicates, T truths, S draws of the bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.parts import named

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np


DRAWS = 1000
COVERED = (0.025, 0.975)


@dataclass(frozen=True)
class Slope:
    """A slope with a 95 % bootstrap interval over replicates."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "no slope"
        return f"{self.short} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def short(self) -> str:
        """The slope without its interval."""
        return "none" if np.isnan(self.value) else f"{self.value:+.2f}"

    def near(self, claim: float, margin: float = 0.0) -> bool:
        """True if the interval comes within ``margin`` of a claim."""
        return self.low - margin <= claim <= self.high + margin

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

    with m the median (or mean) of the replicates. The bootstrap resamples replicates within each
    truth and n. A loss of NaN (a fit that did not converge) is left out. A size without any loss is
    left out of the line of that truth.

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
    low, high = np.quantile(_lines(log_n, centre(resampled)).mean(-1), COVERED)
    return Slope(float(_lines(log_n, centre(losses)).mean()), float(low), float(high))


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
    return Slope(float(value[0]), *(float(q) for q in np.quantile(ratios, COVERED)))


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
