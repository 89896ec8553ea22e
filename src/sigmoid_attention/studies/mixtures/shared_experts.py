"""Study of the four settings of Nguyen et al. 2025: rates of maximum likelihood, shared experts.

Shape letters: N sizes, R replicates.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.statistics import ONE_SIDE
from sigmoid_attention.lab.study import Finding, Measured, Results, Study, Task
from sigmoid_attention.mixtures.gaussian import EM
from sigmoid_attention.mixtures.rates.slopes import Slope, ratio, slope
from sigmoid_attention.mixtures.rates.verdict import (
    DEPENDS_ON_THE_START,
    MARGIN,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    against,
)
from sigmoid_attention.studies.mixtures.shared_experts_protocol import (
    SIZES,
    THEOREMS,
    TOLERANCE,
    SharedExpertsSetting,
    TheoremSetting,
    run,
)

REPLICATES, CONTROLS = 16, 12
# Observations of one task: a few seconds of work.
AT_ONCE = 200_000
# The largest allowed factor of a loss from starts that are 100 times farther away, or from
# continuing EM to the maximum.
FACTOR = 2.0
FEWEST_CONVERGED = 0.8

FEWER = SIZES[:7:2]
# The sizes, replicates and changes of each part.
PARTS: dict[str, tuple[tuple[int, ...], int, dict[str, object]]] = {
    "published": (SIZES, REPLICATES, {}),
    "start x5": (FEWER, CONTROLS, {"start": 5.0}),
    "start x100": (FEWER, CONTROLS, {"start": 100.0}),
    "maximum": (FEWER, CONTROLS, {"to_the_end": True}),
    "exact": (FEWER, CONTROLS, {"to_the_end": True, "extra": 0}),
}


def tasks() -> list[Task]:
    """Every part of every theorem, in pieces of about the same number of observations."""
    tasks = []
    for index, theorem in enumerate(THEOREMS):
        for part, (sizes, replicates, changes) in PARTS.items():
            for n in sizes:
                at_once = max(1, min(replicates, AT_ONCE // n))
                for first in range(0, replicates, at_once):
                    count = min(at_once, replicates - first)
                    setting = replace(SharedExpertsSetting(index, n, first, count), **changes)
                    tasks.append(Task(theorem.name, part, setting, run, n * count / AT_ONCE))
    return tasks


# Verdicts -------------------------------------------------------------------------------------


def judge(results: Results) -> list[Finding]:
    """One line for each theorem; a theorem with missing parts has no line."""
    return [
        _finding(theorem, {part: _merged(results[theorem.name, part]) for part in PARTS})
        for theorem in THEOREMS
        if all((theorem.name, part) in results for part in PARTS)
    ]


def _merged(pieces: Sequence[Measured]) -> Measured:
    return Measured([row for piece in pieces for row in piece.rows])


def _finding(theorem: TheoremSetting, parts: dict[str, Measured]) -> Finding:
    measured = rate(parts["published"])
    published = parts["published"]
    near, far, end = (
        ratio(_at_largest(published), _at_largest(parts[part]))
        for part in ("start x5", "start x100", "maximum")
    )
    converged = published.share("loss")
    word, compared = against(measured, theorem.published)
    doubtful = next((factor for factor in (far, end) if not factor.high <= FACTOR), None)
    decided = False
    if far.low > FACTOR:
        verdict = DEPENDS_ON_THE_START
        because = f"starting 100 times farther away multiplies the loss by {far.value:.3g}"
    elif end.low > FACTOR:
        verdict = DEPENDS_ON_THE_START
        because = (
            f"at the maximum of the likelihood the loss is {end.value:.3g} times what it is where "
            f"EM stops on its way from the start"
        )
    elif not converged >= FEWEST_CONVERGED:
        verdict, because = UNDECIDED, f"EM met its tolerance in only {converged:.0%} of the fits"
    elif doubtful:
        verdict = UNDECIDED
        because = (
            f"whether the start or the end of EM matters is not measured well enough: factor "
            f"{doubtful.value:.2g} [{doubtful.low:.2g}, {doubtful.high:.2g}]"
        )
    else:
        verdict, because, decided = word, compared, True
    return Finding(
        theorem.name,
        f"loss: (log n / n)^{theorem.published:g}",
        f"{compared}; by the median {rate(published, statistic='median')}; on log n "
        f"{rate(published, on_log_n=True)}; at the maximum {rate(parts['maximum'])}; experts alone "
        f"{rate(published, 'experts', 'median')}, at the maximum "
        f"{rate(parts['maximum'], 'experts', 'median')}; exactly specified {rate(parts['exact'])}",
        verdict,
        because,
        _controls(theorem, parts, near, far, end),
        ONE_SIDE if decided else None,
    )


def rate(
    measured: Measured, quantity: str = "loss", statistic: str = "mean", on_log_n: bool = False
) -> Slope:
    """The exponent r of loss ~ (log n / n)^r, or of n^r."""
    sizes_N, values_NR = measured.grid(quantity)
    if on_log_n:
        return slope(sizes_N.tolist(), values_NR, statistic=statistic)
    falling = slope((sizes_N / np.log(sizes_N)).tolist(), values_NR, statistic=statistic)
    return Slope(-falling.value, -falling.high, -falling.low)


def _at_largest(measured: Measured) -> np.ndarray:
    """The losses (R,) of all fits at the controls' largest n, converged or not."""
    chosen = [row for row in measured.rows if row.quantity == "loss" and row.n == FEWER[-1]]
    return np.array([row.value for row in chosen])


def _controls(
    theorem: TheoremSetting, parts: dict[str, Measured], near: Slope, far: Slope, end: Slope
) -> str:
    exact = [row for row in parts["exact"].rows if row.n == FEWER[-1]]
    gains = [row.value for row in exact if row.quantity == "gain"]
    seen = next(row.value for row in exact if row.quantity == "seen")
    boxed = {
        part: np.mean([row.at_box for row in parts[part].rows]) for part in ("published", "maximum")
    }
    # The density does not depend on a common shift of all scores under softmax, nor on the weight
    # of a single shared expert.
    free = theorem.family().size - 1 - 2 * (theorem.gate == "softmax")
    return (
        f"start x5 {near.value:.2g}, x100 {far.value:.2g} [{far.low:.2g}, {far.high:.2g}], "
        f"maximum {end.value:.2g} [{end.low:.2g}, {end.high:.2g}], "
        f"converged {parts['published'].share('loss'):.0%}, at the maximum "
        f"{parts['maximum'].share('loss'):.0%}, at the box {boxed['published']:.0%} and "
        f"{boxed['maximum']:.0%}, gain when exactly specified {np.mean(gains):.1f} ± "
        f"{np.std(gains, ddof=1) / math.sqrt(len(gains)):.1f} of {seen:.0f} directions seen, "
        f"{free} parameters"
    )


# Figure ---------------------------------------------------------------------------------------


def draw(results: Results) -> Figure:
    """A panel for each theorem: loss against n, with the published slope through its middle."""
    figure, axes = panels(len(THEOREMS), columns=2)
    for axis, theorem in zip(axes, THEOREMS, strict=True):
        axis.set_title(theorem.name)
        for part, colour in (
            ("published", theorem.gate),
            ("start x100", "tanh"),
            ("maximum", "relu"),
        ):
            sizes_N, values_NR = _merged(results[theorem.name, part]).grid("loss")
            loglog(axis, sizes_N, values_NR, LABELS[part], colour=colour)
        sizes_N, values_NR = _merged(results[theorem.name, "published"]).grid("loss")
        heights = np.log(np.nanmedian(values_NR, axis=-1))
        x = np.log(np.log(sizes_N) / sizes_N)
        line = np.exp(heights.mean() + theorem.published * (x - x.mean()))
        label = f"{theorem.published:g} (published)"
        axis.plot(sizes_N, line, color="#7f7f7f", linestyle="--", label=label)
        axis.set_ylabel("loss")
        axis.legend(loc="lower left")
    return figure


LABELS = {
    "published": "EM, published start",
    "start x100": "EM, start 100 times farther",
    "maximum": "maximum of the likelihood",
}

RULE = f"""Protocol: EM from the start that public code of the same authors has, until an iteration
adds less than {TOLERANCE:g} to the log likelihood of an observation, at most {EM.max_iter}
iterations; {REPLICATES} data sets of each of {len(SIZES)} sizes from 1e2 to 1e5, one shared and one
routed expert too many. The slope is that of the log of the mean loss on log(log n / n), with a
bootstrap interval over data sets; fits that ran out of iterations are left out of it. The first
of these that applies gives the verdict.
(1) At n = {FEWER[-1]:,}, starting 100 times farther away makes the median loss more than
{FACTOR:g} times as large, by the whole interval; or so does going on from where EM stops to the
maximum of the likelihood: *{DEPENDS_ON_THE_START}*.
(2) EM met its tolerance in fewer than {FEWEST_CONVERGED:.0%} of the fits: *{UNDECIDED}*.
(3) The intervals of the two factors of (1) are not wholly at most {FACTOR:g}: *{UNDECIDED}*.
(4) The whole interval of the slope lies within {MARGIN:g} of the published one: *{REPRODUCED}*; all
of it lies farther away: *{NOT_REPRODUCED}*; else *{UNDECIDED}*. There is one truth a setting, that
of the paper."""

STUDY = Study(
    "shared_experts",
    "Shared experts, the four settings of Nguyen et al. 2025",
    "With shared experts the Voronoi losses of maximum likelihood fall like (log n / n)^0.451 "
    "(softmax, ReLU), 0.517 (softmax, linear), 0.46 (normalised sigmoid, sparse) and 0.552 "
    "(normalised sigmoid, dense).",
    "Nguyen et al. 2025, figures of its synthetic experiments",
    RULE,
    tasks,
    judge,
    draw,
)
