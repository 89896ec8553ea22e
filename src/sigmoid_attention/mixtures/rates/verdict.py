"""The rule that turns slopes and controls into a verdict on a claimed rate."""

from dataclasses import dataclass

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.rates.slopes import Slope

with lab_imports("sigmoid_attention.mixtures"):
    import scipy

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
DEPENDS_ON_THE_START = "depends on the start"
NOT_IDENTIFIABLE = "not identifiable"
PRE_ASYMPTOTIC = "pre-asymptotic"
UNDECIDED = "undecided"
VERDICTS = (
    REPRODUCED, NOT_REPRODUCED, DEPENDS_ON_THE_START, NOT_IDENTIFIABLE, PRE_ASYMPTOTIC, UNDECIDED,
)  # fmt: skip

# The largest difference of slopes that counts as none. Claims are up to logarithms, which bend a
# slope by 1 / log n, 0.05 at n = 1e8; the rates 0, -1/4 and -1/2 lie farther apart than twice this.
MARGIN = 0.1
# Slopes of two windows that differ by more than this still change with n.
BEND = 0.05
FEWEST_CONVERGED = 0.8
# The largest factor by which a start ten or fifty times farther away may increase a loss.
START_FACTOR = 2.0
# The largest share of a loss that may remain without noise.
NOISELESS_SHARE = 1 / 3
# The allowed difference of the median gain from its expectation: in chi2, and in parameters.
GAIN_SLACK, GAIN_SHARE = 1.5, 0.15
DESIGN_FACTOR = 1.5
# The largest share of fits at the wall of the parameters' box.
MOST_AT_BOX = 0.2

RULE = f"""The loss is the one that the claim is about. Its slope on log n is that of the median
over replicates, averaged over truths, in two windows of n. Every interval is Student's over truths,
at 95 %, so that it holds the spread of truths and of replicates; only that of the gain is of order
statistics over fits. The first of these that applies gives the verdict. A fit counts that met its
stopping rule and ended no worse than the truth would; others are no least-squares estimates.
(1) Without over-specification the Jacobian at a truth lacks rank: *{NOT_IDENTIFIABLE}*.
(2) By the whole interval: at the largest n more than a third of the loss is still there without any
noise, or a start fifty times farther away (jitter 0.5 instead of 0.01) that fits the same data as
well, to one unit of chi2, makes the loss more than {START_FACTOR:g} times as large:
*{DEPENDS_ON_THE_START}*.
(3) A control fails: *{UNDECIDED}*. A control passes only by its whole interval, so none passes
because its error is large: less than a third of the loss is left without noise; the far start makes
the loss at most {START_FACTOR:g} times as large; without over-specification the median gain over
the truth lies within {GAIN_SLACK:g} chi2, or {GAIN_SHARE:.0%} of the number of free parameters, of
the median of its law; inputs from the continuous law change the error of the function by at most a
factor {DESIGN_FACTOR:g}. Also {FEWEST_CONVERGED:.0%} of the fits of each window must count, and at
most {MOST_AT_BOX:.0%} of the later window's fits may lie at the wall of the parameters' box.
(4) The slopes of the two windows differ by more than {BEND:g}, by the whole interval of the
difference: *{PRE_ASYMPTOTIC}*. A difference that is too uncertain to be seen leaves the verdict to
the later window, which must then meet the claim by itself.
(5) The whole interval of the later window lies within {MARGIN:g} of the claim: *{REPRODUCED}*. All
of it lies farther away: *{NOT_REPRODUCED}*. Otherwise: *{UNDECIDED}*. A claim of "slower than any
power of n" is a claim of slope 0."""


@dataclass(frozen=True)
class RateEvidence:
    """The evidence for the verdict on one cell. Every `Slope` is a number with its interval.

    Attributes:
        claim: exponent of n; 0 for slower than any power.
        early, late: slopes in the two windows.
        moved: the later slope minus the earlier one, truth by truth.
        missing: the rank deficiency of the Jacobian at the truth without over-specification, the
            largest over truths.
        noiseless: loss without noise over loss with it, at most 1, at the largest n.
        far_start: loss from far starts over loss from near ones, at the largest n, on data sets
            that both fit equally well.
        counted: the share of fits that count, the least over windows.
        at_box: the share of the later window's counted fits at the wall of the box.
        gain, free: median gain without over-specification, and the number of free parameters.
        continuous: error of the function under the continuous law over that on the finite design.
    """

    claim: float
    early: Slope
    late: Slope
    moved: Slope
    missing: int
    noiseless: Slope
    far_start: Slope
    counted: float
    at_box: float
    gain: Slope
    free: float
    continuous: Slope

    @property
    def usual_gain(self) -> float:
        """The median of the law of the gain, chi2 with as many degrees as free parameters."""
        return float(scipy.stats.chi2.median(self.free))

    @property
    def controls(self) -> str:
        return (
            f"noiseless {_told(self.noiseless)}, far start {_told(self.far_start)}, median gain "
            f"{self.gain.value:.1f} [{self.gain.low:.1f}, {self.gain.high:.1f}] of "
            f"{self.usual_gain:.1f}, counted {self.counted:.0%}, at the box {self.at_box:.0%}, "
            f"continuous {_told(self.continuous)}"
        )


def judge(evidence: RateEvidence) -> tuple[str, str]:
    """The verdict and its reason, by ``RULE``."""
    for rule in (_identifiable, _of_the_start, _doubt, _windows):
        verdict = rule(evidence)
        if verdict:
            return verdict
    return against(evidence.late, evidence.claim)


def against(measured: Slope, claim: float) -> tuple[str, str]:
    """A verdict on a claimed slope and its reason, by the test of equivalence (5) of ``RULE``.

    Example:
        >>> against(Slope(-0.27, -0.33, -0.21), -0.25)[0]
        'reproduced'
        >>> against(Slope(-0.37, -0.46, -0.28), -0.25)
        ('undecided', 'slope -0.37 [-0.46, -0.28] against -0.25')
        >>> against(Slope(-0.41, -0.44, -0.38), -0.25)[0]
        'not reproduced'
    """
    because = f"slope {measured} against {claim:+.2f}"
    if measured.within(claim, MARGIN):
        return REPRODUCED, because
    return NOT_REPRODUCED if measured.outside(claim, MARGIN) else UNDECIDED, because


def _identifiable(evidence: RateEvidence) -> tuple[str, str] | None:
    if evidence.missing == 0:
        return None
    return NOT_IDENTIFIABLE, (
        f"with the true number of experts {evidence.missing} direction"
        f"{'s' * (evidence.missing > 1)} of the parameters cannot be seen by any data"
    )


def _of_the_start(evidence: RateEvidence) -> tuple[str, str] | None:
    if evidence.noiseless.low > NOISELESS_SHARE:
        return DEPENDS_ON_THE_START, (
            f"without any noise {evidence.noiseless.value:.2g} of the loss is still there"
        )
    return start_verdict(evidence.far_start)


def start_verdict(far_start: Slope) -> tuple[str, str] | None:
    """The verdict of a factor by which far starts that fit as well increase a loss, if any."""
    if far_start.low > START_FACTOR:
        return DEPENDS_ON_THE_START, (
            f"from far starts that fit as well the loss is {far_start.value:.2g} times as large"
        )
    return None


def start_doubt(far_start: Slope) -> str | None:
    """What is doubtful about a factor of far starts that `start_verdict` lets pass, if anything."""
    if far_start.high <= START_FACTOR:
        return None
    return f"whether the start matters is not measured well enough: factor {_told(far_start)}"


def _doubt(evidence: RateEvidence) -> tuple[str, str] | None:
    slack = max(GAIN_SLACK, GAIN_SHARE * evidence.free)
    start = start_doubt(evidence.far_start)
    doubts = (
        (not evidence.noiseless.high < NOISELESS_SHARE,
         f"without any noise {_told(evidence.noiseless)} of the loss is still there"),
        (start is not None, start or ""),
        (not evidence.counted >= FEWEST_CONVERGED,
         f"only {evidence.counted:.0%} of the fits are estimates"),
        (not evidence.gain.within(evidence.usual_gain, slack),
         f"the median gain is {_told(evidence.gain)} where {evidence.free:g} free parameters make "
         f"it {evidence.usual_gain:.1f}: fits may not be at their optimum"),
        (not (evidence.continuous.low >= 1 / DESIGN_FACTOR
              and evidence.continuous.high <= DESIGN_FACTOR),
         f"continuous inputs give {_told(evidence.continuous)} times the error"),
        (not evidence.at_box <= MOST_AT_BOX,
         f"{evidence.at_box:.0%} of the fits lie at the wall of the parameters' box"),
    )  # fmt: skip
    return next(((UNDECIDED, because) for fails, because in doubts if fails), None)


def _windows(evidence: RateEvidence) -> tuple[str, str] | None:
    if not evidence.moved.outside(0.0, BEND):
        return None
    return PRE_ASYMPTOTIC, (
        f"the slope still moves: {evidence.early}, then {evidence.late}, by {evidence.moved}"
    )


def _told(number: Slope) -> str:
    return f"{number.value:.2g} [{number.low:.2g}, {number.high:.2g}]"
