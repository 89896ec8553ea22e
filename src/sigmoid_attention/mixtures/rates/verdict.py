"""The rule that turns slopes and controls into a verdict on a claimed rate."""

import math
from dataclasses import dataclass

from sigmoid_attention.mixtures.rates.slopes import Slope

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
DEPENDS_ON_THE_START = "depends on the start"
NOT_IDENTIFIABLE = "not identifiable"
PRE_ASYMPTOTIC = "pre-asymptotic"
UNDECIDED = "undecided"
VERDICTS = (
    REPRODUCED, NOT_REPRODUCED, DEPENDS_ON_THE_START, NOT_IDENTIFIABLE, PRE_ASYMPTOTIC, UNDECIDED,
)  # fmt: skip

# Claims are up to logarithms, which bend a slope by 1 / log n: 0.05 at n = 1e8.
MARGIN = 0.05
# Slopes of two windows whose intervals lie farther apart than this still change with n.
BEND = 0.05
WIDEST = 0.15
FEWEST_CONVERGED = 0.8
# The largest factor by which a start ten or fifty times farther away may increase a loss.
START_FACTOR = 2.0
# The largest share of a loss that may remain without noise.
NOISELESS_SHARE = 1 / 3
# The allowed difference of gain and number of parameters: in standard errors, plus in chi2.
GAIN_ERRORS, GAIN_SLACK = 3.0, 0.5
DESIGN_FACTOR = 1.5
# The claimed rates: slower than any power, and the two powers of the papers' tables.
RATES = (0.0, -0.25, -0.5)

RULE = f"""The loss is the one that the claim is about. Its slope on log n is that of the median
over replicates, averaged over truths, with a bootstrap interval, in two windows of n. The first of
these that applies gives the verdict. A fit counts that met its stopping rule and ended no worse
than the truth would; others are no least-squares estimates.
(1) Without over-specification the Jacobian at a truth lacks rank: *{NOT_IDENTIFIABLE}*.
(2) At the largest n the loss without any noise is above a third of the loss with it, or a start
fifty times farther away (jitter 0.5 instead of 0.01) that fits the same data as well, to one unit
of chi2, makes it more than {START_FACTOR:g} times as large, by the whole interval:
*{DEPENDS_ON_THE_START}*.
(3) Fewer than {FEWEST_CONVERGED:.0%} of the fits of a window count; or without
over-specification the mean gain over the truth misses the number of free parameters by more than
{GAIN_ERRORS:g} standard errors and {GAIN_SLACK:g}; or inputs from the continuous law give losses
that differ by more than a factor {DESIGN_FACTOR:g}: *{UNDECIDED}*.
(4) The intervals of the two windows lie more than {BEND:g} apart: *{PRE_ASYMPTOTIC}*.
(5) The later window's interval is wider than plus or minus {WIDEST:g}: *{UNDECIDED}*. It comes
within {MARGIN:g} of the claim: *{REPRODUCED}*, but *{UNDECIDED}* if it does so of another of the
rates 0, -1/4 and -1/2 as well; else *{NOT_REPRODUCED}*. A claim of "slower than any power of n" is
a claim of slope 0."""


@dataclass(frozen=True)
class RateEvidence:
    """The evidence for the verdict on one cell.

    Attributes:
        claim: exponent of n; 0 for slower than any power.
        early, late: slopes in the two windows.
        missing: the rank deficiency of the Jacobian at the truth without over-specification, the
            largest over truths.
        noiseless: loss without noise over loss with it, at the largest n; NaN where no fit counts.
        far_start: loss from far starts over loss from near ones, at the largest n, on data sets
            that both fit equally well; NaN where there are too few.
        counted: the share of fits that count, the least over windows.
        gain, free: mean gain without over-specification with its standard error, and the number of
            free parameters.
        continuous: loss under the continuous law over that on the finite design.
    """

    claim: float
    early: Slope
    late: Slope
    missing: int
    noiseless: float
    far_start: Slope
    counted: float
    gain: float
    gain_error: float
    free: float
    continuous: float

    @property
    def gain_misses(self) -> bool:
        allowed = max(GAIN_ERRORS * self.gain_error, GAIN_SLACK)
        return not abs(self.gain - self.free) <= allowed

    @property
    def controls(self) -> str:
        return (
            f"noiseless {self.noiseless:.2g}, far start {self.far_start.value:.2g} "
            f"[{self.far_start.low:.2g}, {self.far_start.high:.2g}], "
            f"gain {self.gain:.1f} ± {self.gain_error:.1f} of {self.free:g}, "
            f"counted {self.counted:.0%}, continuous {self.continuous:.2g}"
        )


def judge(evidence: RateEvidence) -> tuple[str, str]:
    """The verdict and its reason, by ``RULE``."""
    for rule in (_identifiable, _of_the_start, _doubt, _windows):
        verdict = rule(evidence)
        if verdict:
            return verdict
    return against(evidence.late, evidence.claim)


def against(measured: Slope, claim: float) -> tuple[str, str]:
    """A verdict on a claimed slope and its reason, by the part of ``RULE`` on intervals.

    Example:
        >>> against(Slope(-0.27, -0.33, -0.21), -0.25)[0]
        'reproduced'
        >>> against(Slope(-0.37, -0.46, -0.28), -0.25)
        ('undecided', 'slope -0.37 [-0.46, -0.28] against -0.25, but -0.50 is as near')
    """
    if not (measured.high - measured.low) / 2 <= WIDEST:
        return UNDECIDED, f"the interval of the slope, {measured}, is too wide"
    because = f"slope {measured} against {claim:+.2f}"
    if not measured.near(claim, MARGIN):
        return NOT_REPRODUCED, because
    others = [rate for rate in RATES if abs(rate - claim) > MARGIN and measured.near(rate, MARGIN)]
    if others:
        return UNDECIDED, f"{because}, but {others[0]:+.2f} is as near"
    return REPRODUCED, because


def _identifiable(evidence: RateEvidence) -> tuple[str, str] | None:
    if evidence.missing == 0:
        return None
    return NOT_IDENTIFIABLE, (
        f"with the true number of experts {evidence.missing} direction"
        f"{'s' * (evidence.missing > 1)} of the parameters cannot be seen by any data"
    )


def _of_the_start(evidence: RateEvidence) -> tuple[str, str] | None:
    if evidence.noiseless > NOISELESS_SHARE:
        return DEPENDS_ON_THE_START, (
            f"without any noise {evidence.noiseless:.2g} of the loss is still there"
        )
    if evidence.far_start.low > START_FACTOR:
        return DEPENDS_ON_THE_START, (
            f"from far starts that fit as well the loss is {evidence.far_start.value:.2g} times as "
            f"large"
        )
    return None


def _doubt(evidence: RateEvidence) -> tuple[str, str] | None:
    if not evidence.counted >= FEWEST_CONVERGED:
        return UNDECIDED, f"only {evidence.counted:.0%} of the fits are estimates"
    if evidence.gain_misses:
        return UNDECIDED, (
            f"the gain is {evidence.gain:.1f} where {evidence.free:g} parameters are free: "
            f"fits are not at their optimum"
        )
    if not abs(math.log(evidence.continuous)) <= math.log(DESIGN_FACTOR):
        return UNDECIDED, f"continuous inputs give {evidence.continuous:.2g} times the loss"
    return None


def _windows(evidence: RateEvidence) -> tuple[str, str] | None:
    if evidence.early.apart(evidence.late) <= BEND:
        return None
    return PRE_ASYMPTOTIC, f"the slope still moves: {evidence.early}, then {evidence.late}"
