"""Study of both gates on the same truths: with a sigmoid gate, a softmax gate, or another gate.

The rates that Nguyen et al. 2024 compare are those of each gate for truths with that gate; in their
figure 1 a softmax gives the data of both. A sigmoid gate can express a truth of two experts
exactly, for every gate of the truth.

Shape letters: P parameters, Q inputs, N sample sizes, R replicates, S starts, T truths.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.statistics import ONE_SIDE
from sigmoid_attention.lab.study import Finding, Measured, Results, Row, Study, Task
from sigmoid_attention.mixtures import gates
from sigmoid_attention.mixtures.data import FiniteDesign, Summaries
from sigmoid_attention.mixtures.equivalence import shift_scores
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.multistart import multistart, spread, uniform_starts
from sigmoid_attention.mixtures.rates.setting import RateSetting, check_nodes, draw_truth
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED, UNDECIDED
from sigmoid_attention.mixtures.solver import ParameterBox
from sigmoid_attention.mixtures.voronoi import TrueMixture, l2
from sigmoid_attention.studies.mixtures.truths import HELD_OUT

FITS = ("sigmoid", "softmax")
NEITHER = "normalised_sigmoid"
SIGMA = 0.1
# Target errors, in units of the noise.
TARGETS = (1 / 5, 1 / 20, 1 / 100)
DRAWS = 400
# Observations of the noiseless problem: enough for its stopping rule to resolve the floors.
POPULATION = 1e8
# An approximation with at most this error counts as the truth itself.
EXPRESSED = 1e-5
# Subtracted from an expert's intercept for a start with a gate weight near 0.
IDLE = 6.0
# The size of scores and of experts' arguments at random starts.
SPREAD = 3.0


@dataclass(frozen=True)
class SameTruthSetting:
    """One truth and its fits by both families with k + extra experts.

    The best approximation of the truth itself is found from ``candidates`` starts; data sets are
    then fitted from the best ``starts`` of the results.
    """

    truth_gate: str
    expert: str = "gelu"
    k: int = 3
    extra: int = 0
    d: int = 2
    nodes: int = 256
    sizes: tuple[int, ...] = tuple(10**i for i in range(2, 7))
    replicates: int = 6
    candidates: int = 24
    starts: int = 2
    truth_seed: int = 0
    half_width: float = 15.0

    def __post_init__(self) -> None:
        check_nodes(self.nodes, self.family(FITS[0]))

    def family(self, fit_gate: str) -> Mixture:
        return Mixture(fit_gate, self.expert, k=self.k + self.extra, d=self.d)

    @property
    def truth(self) -> RateSetting:
        return RateSetting(
            self.truth_gate, self.expert, d=self.d, k=self.k, extra=0, nodes=self.nodes,
            truth_seed=self.truth_seed,
        )  # fmt: skip


def measure(setting: SameTruthSetting) -> Iterator[Row]:
    """Floors of both families, and the errors of their fits to the same data sets."""
    truth = draw_truth(setting.truth)
    design = FiniteDesign.sobol(setting.nodes, d=setting.d)
    truth_Q = truth.family.predict(truth.theta_P, design.inputs_Qd)
    sizes = [n for n in setting.sizes for _ in range(setting.replicates)]
    data = design.draw(truth_Q, sizes, sigma=SIGMA, seed=setting.truth_seed)
    for fit_gate in FITS:
        family = setting.family(fit_gate)
        box = _box(setting, family)
        nearest_SP = _approximations(setting, family, box, truth, truth_Q)
        floor = l2(family, nearest_SP[:1], truth_Q, design.inputs_Qd)
        yield Row(f"floor {fit_gate}", float(floor[0]))
        start_BSP = nearest_SP[: setting.starts].expand(len(sizes), -1, -1)
        fit = multistart(family, data, start_BSP, sigma=SIGMA, box=box).best
        errors = l2(family, fit.theta_BP, truth_Q, design.inputs_Qd)
        for problem, error in enumerate(errors.tolist()):
            yield Row(
                f"L2 {fit_gate}", error, n=sizes[problem], replicate=problem % setting.replicates,
                converged=bool(fit.converged_B[problem]), at_box=bool(fit.at_box_B[problem]),
            )  # fmt: skip


def _box(setting: SameTruthSetting, family: Mixture) -> ParameterBox:
    box = ParameterBox.around_zero(family.size, setting.half_width)
    held = ~free_parameters(family)
    return box.pinned(held, torch.zeros(int(held.sum()), dtype=torch.float64))


def _approximations(
    setting: SameTruthSetting,
    family: Mixture,
    box: ParameterBox,
    truth: TrueMixture,
    truth_Q: Tensor,
) -> Tensor:
    """Local minimisers of |f - f*| over the family, (S, P), the nearest first."""
    seed, starts = setting.truth_seed, setting.candidates
    start_BSP = uniform_starts(spread(family, SPREAD), problems=1, starts=starts, seed=seed)
    if family.gate == truth.family.gate:
        start_BSP[0, 0] = _at_truth(family, truth)
    inputs_Qd = setting.truth.inputs_Qd
    count = torch.full((1, len(inputs_Qd)), POPULATION / len(inputs_Qd), dtype=torch.float64)
    noiseless = Summaries(inputs_Qd, truth_Q[None], count, torch.zeros(1, dtype=torch.float64))
    attempts = multistart(family, noiseless, start_BSP, sigma=SIGMA, box=box)
    return attempts.theta_BSP[0, attempts.cost_BS[0].argsort()]


def _at_truth(family: Mixture, truth: TrueMixture) -> Tensor:
    """The true experts after copies of the first with gate weights near 0, (P,).

    If only differences of scores matter, scores are shifted so that the last one is 0, the value
    fixed by the box.
    """
    idle = truth.atoms[:1].clone()
    idle[:, family.score_size - 1] -= IDLE
    atoms = torch.cat((idle.expand(family.k - truth.family.k, -1), truth.atoms))
    if gates.gate(family.gate).shift:
        return shift_scores(family, atoms.flatten(), -atoms[-1, : family.score_size])
    return atoms.flatten()


# Samples needed -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleRatio:
    """The ratio of the samples that two families need for one error, with an interval."""

    target: float
    value: float
    low: float
    high: float

    @property
    def reached(self) -> bool:
        """True if at least one family reaches the error."""
        return not math.isnan(self.value)

    def __str__(self) -> str:
        if not self.reached:
            return "neither gets there"
        if self.low == self.high:
            return _said(self.value)
        return f"{_said(self.value)} [{_said(self.low)}, {_said(self.high)}]"


def _said(ratio: float) -> str:
    return {0.0: "only sigmoid", math.inf: "only softmax"}.get(ratio, f"{ratio:.2g}")


def samples_needed(sizes_N: np.ndarray, errors_N: np.ndarray, target: float) -> float:
    """The least n beyond which the error stays at or below a target, by log-log interpolation.

    Infinite if the largest size does not reach the target; the smallest size if all sizes do.

    Example:
        >>> sizes = np.array([100.0, 10000.0])
        >>> round(samples_needed(sizes, np.array([0.1, 0.01]), 0.05))
        400
        >>> samples_needed(sizes, np.array([0.1, 0.05]), 0.01)
        inf
    """
    above = np.flatnonzero(errors_N > target)
    if len(above) == 0:
        return float(sizes_N[0])
    last = int(above[-1])
    if last == len(sizes_N) - 1:
        return math.inf
    pair = slice(last, last + 2)
    return float(np.exp(np.interp(
        -math.log(target), -np.log(errors_N[pair]), np.log(sizes_N[pair])
    )))  # fmt: skip


def needed_ratios(
    sizes_N: np.ndarray,
    first_TNR: np.ndarray,
    second_TNR: np.ndarray,
    targets: Sequence[float],
    seed: int = 0,
) -> list[SampleRatio]:
    """The ratio of the samples needed by the first over those by the second, for each target.

    Each ratio uses the median error over replicates; the result is the middle one of the truths'
    ratios. The interval is a bootstrap over truths, and over replicates within each; resampled
    equally for both families. A ratio is 0 where only the first reach a target, infinite where only
    the second do, and NaN where neither does under most truths.
    """
    rng = np.random.default_rng(seed)
    count = first_TNR.shape[-1]
    resampled_SR = np.vstack([np.arange(count), rng.integers(0, count, (DRAWS, count))])
    truths = len(first_TNR)
    truths_TS = np.column_stack([np.arange(truths), rng.integers(0, truths, (truths, DRAWS))])
    pair = [np.nanmedian(errors[..., resampled_SR], axis=-1) for errors in (first_TNR, second_TNR)]
    ratios = []
    for target in targets:
        needed = [
            np.apply_along_axis(lambda errors_N: samples_needed(sizes_N, errors_N, target), 1, one)  # noqa: B023
            for one in pair
        ]
        with np.errstate(invalid="ignore"):
            ratios_TS = np.take_along_axis(needed[0] / needed[1], truths_TS, axis=0)
        neither_S = 2 * np.isnan(ratios_TS).sum(axis=0) > len(ratios_TS)
        # The middle ratio and not a mean, since some may be infinite; the ratio is 1 where neither
        # reaches the target.
        filled_TS = np.where(np.isnan(ratios_TS), 1.0, ratios_TS)
        ratio_S = np.quantile(filled_TS, 0.5, axis=0, method="inverted_cdf")
        low, high = np.quantile(ratio_S[1:], (0.025, 0.975), method="inverted_cdf")
        value = math.nan if neither_S[0] else float(ratio_S[0])
        ratios.append(SampleRatio(target, value, float(low), float(high)))
    return ratios


# Verdicts -------------------------------------------------------------------------------------

_DEFAULTS = SameTruthSetting("sigmoid")
RULE = f"""Both families have the same number and kind of experts and fit the same data sets, from
the {_DEFAULTS.starts} best approximations of the truth that {_DEFAULTS.candidates}
starts find. For errors of the regression function of {", ".join(f"{t * SIGMA:g}" for t in TARGETS)}
(noise {SIGMA:g}) the samples that the sigmoid family needs are divided by those that the softmax
family needs: medians of replicates, the middle one of {len(HELD_OUT)} truths. The bootstrap
resamples truths, and replicates within each. Errors that neither reaches do not count.
*{REPRODUCED}*: the interval is below 1 at every error.
*{NOT_REPRODUCED}*: it is above 1 at one or more. *{UNDECIDED}* otherwise. "Both ways" is
{REPRODUCED} only if sigmoid needs fewer on truths of either gate; {NOT_REPRODUCED} if it needs more
on those of one."""


def judge(results: Results) -> list[Finding]:
    """A line for each cell and gate of the truth, and one for both gates together."""
    findings = []
    for cell in dict.fromkeys(cell for cell, _ in results):
        parts = {part: truths for (named, part), truths in results.items() if named == cell}
        lines = {gate: _finding(cell, gate, truths) for gate, truths in parts.items()}
        findings += lines.values()
        if set(FITS) <= set(lines):
            findings.append(_both_ways(cell, [lines[gate].verdict for gate in FITS]))
    return findings


def verdict_of(ratios: Sequence[SampleRatio]) -> str:
    """The rule for truths of one gate, from the ratios at every target."""
    telling = [ratio for ratio in ratios if ratio.reached]
    if telling and all(ratio.high < 1 for ratio in telling):
        return REPRODUCED
    return NOT_REPRODUCED if any(ratio.low > 1 for ratio in telling) else UNDECIDED


def _both_ways(cell: str, verdicts: Sequence[str]) -> Finding:
    if NOT_REPRODUCED in verdicts:
        verdict = NOT_REPRODUCED
    else:
        verdict = REPRODUCED if set(verdicts) == {REPRODUCED} else UNDECIDED
    measured = ", ".join(f"{gate} truths: {one}" for gate, one in zip(FITS, verdicts, strict=True))
    return Finding(
        f"{cell}, both ways", "fewer samples for every gate of the truth", measured, verdict,
        "of the lines above",
    )  # fmt: skip


def _finding(cell: str, gate: str, truths: Sequence[Measured]) -> Finding:
    sizes, _ = truths[0].grid("L2 sigmoid")
    sigmoid, softmax = (
        np.stack([of_truth.grid(f"L2 {fit}")[1] for of_truth in truths]) for fit in FITS
    )
    ratios = needed_ratios(sizes, sigmoid, softmax, [target * SIGMA for target in TARGETS])
    converged = [of_truth.share(f"L2 {fit}") for of_truth in truths for fit in FITS]
    measured = "; ".join(f"error {ratio.target:g}: {ratio}" for ratio in ratios)
    return Finding(
        f"{cell}, {gate.replace('_', ' ')} truths",
        "sigmoid needs fewer samples",
        f"samples of sigmoid over softmax at {measured}",
        verdict_of(ratios),
        _because(truths),
        f"{len(truths)} truths, converged {min(converged):.0%} or more",
        ONE_SIDE,
    )


def _because(truths: Sequence[Measured]) -> str:
    floors = {
        fit: [float(of_truth.values(f"floor {fit}")[0]) for of_truth in truths] for fit in FITS
    }
    exact = [fit for fit, values in floors.items() if max(values) < EXPRESSED]
    measured = ", ".join(f"{fit} {np.median(values):.1e}" for fit, values in floors.items())
    match exact:
        case [_, _]:
            why = "both families express the truth, so that numbers of parameters decide"
        case [gate]:
            why = f"the {gate} family expresses the truth, the other does not"
        case _:
            why = "neither family expresses the truth"
    return f"{why} (floors of the error: {measured})"


# Tasks and figure -----------------------------------------------------------------------------

CASES = (("gelu", 2, 0), ("gelu", 3, 0), ("gelu", 3, 1), ("relu", 3, 0))


def cell_of(expert: str, k: int, extra: int) -> str:
    """The name of a line of the table."""
    fitted = f"fitted with {k + extra}" if extra else "fitted with as many"
    return f"{k} {expert} experts, {fitted}"


def tasks() -> list[Task]:
    """Every case with truths of either gate, and with more than two experts of a third gate."""
    return [
        Task(
            cell_of(expert, k, extra), gate,
            SameTruthSetting(gate, expert, k, extra, truth_seed=seed),
            measure, work=float((k + extra) ** 2),
        )
        for expert, k, extra in CASES
        for gate in (*FITS, NEITHER)[: 2 if k == 2 else 3]
        for seed in HELD_OUT
    ]  # fmt: skip


def draw(results: Results) -> Figure:
    """L2 error against n of both families: a row of panels a case, a panel a gate of the truth."""
    figure, axes = panels(len(results))
    for axis, ((cell, gate), truths) in zip(axes, results.items(), strict=True):
        axis.set_title(f"{cell},\n{gate.replace('_', ' ')} truths")
        for fit in FITS:
            grids = [of_truth.grid(f"L2 {fit}") for of_truth in truths]
            values = np.concatenate([errors for _, errors in grids], axis=1)
            loglog(axis, grids[0][0], values, f"{fit} gate fitted", colour=fit)
        axis.set_ylabel("error of the regression function")
    return figure


STUDY = Study(
    "same_truth",
    "Both gates on the same truths",
    "A sigmoid gate needs fewer samples than a softmax gate. The papers' theorems compare rates "
    "under truths of different gates; here both families fit the same data, whose truth has the "
    "one gate, the other, or a third one (normalised sigmoid). Truths with two experts favour the "
    "sigmoid by construction: softmax with two experts is sigma(s) and sigma(-s), which the "
    "sigmoid family holds, and not the other way round.",
    "Nguyen et al. 2024, abstract and figure 1; Yan et al. 2025, figure 1",
    RULE,
    tasks,
    judge,
    draw,
)
