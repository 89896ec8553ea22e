"""Expectation-maximisation for Gaussian experts, and Fisher scoring where EM is slow.

Shape letters: B problems, A of them active, Q observations, k routed and s shared experts, c all of
them, F parameters of a score, E of a routed and G of a shared expert, P of all.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sigmoid_attention.mixtures.data import LeastSquares
from sigmoid_attention.mixtures.gaussian.family import GaussianExperts, Posterior
from sigmoid_attention.mixtures.gaussian.likelihood import GaussianDeviance
from sigmoid_attention.mixtures.solver import Fit, ParameterBox, SolverSettings, descend

# EM stops when an iteration raises the log likelihood by less than 1e-6, or after 1000 iterations,
# as in Nguyen et al. 2025.
EM = SolverSettings(tol=2e-6, patience=1, max_iter=1000)
# Two almost equal experts look stationary while damping is large. Every successful step divides
# damping by three, so a small expected gain counts only after several steps.
SCORING = SolverSettings(tol=1e-3, patience=8, max_iter=300)
# The count of an expert without observations, whose parameters then do not change.
NOTHING = 1e-9
# Along directions that only noise determines, a Newton step would leave the quadratic model.
CAUTION = 1e-3


def em(
    family: GaussianExperts,
    data: LeastSquares,
    start_BP: Tensor,
    *,
    box: ParameterBox,
    settings: SolverSettings = EM,
) -> Fit:
    """Maximum likelihood by EM, from its own start for each problem, inside the box.

    The M-step has closed forms for variances, shared weights and experts that are linear in their
    parameters. The others and the gate take one Gauss-Newton step towards the maximum (a
    generalised EM). A step that lowers the likelihood is halved until it does not, so the
    likelihood never decreases. EM is very slow where several experts share a true one: a small gain
    is then no sign of a maximum. ``maximise`` continues from there.

    Args:
        data: single observations; see ``GaussianDeviance``.
        start_BP: parameters, one row a problem.
        box: bounds; a lower bound of the log variances keeps the likelihood bounded.
        settings: stopping rule, in units of the deviance.

    Returns:
        Parameters, with the deviance as ``chi2_B``.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.data import Samples
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, em
        >>> family = GaussianExperts(Mixture("softmax", "linear", k=1))
        >>> x = torch.linspace(-1, 1, 50).double()
        >>> data = Samples(x[None, :, None], 2 * x[None] + 1 + 0.1 * torch.sin(40 * x))
        >>> box = ParameterBox.around_zero(5, 20.0)
        >>> fit = em(family, data, torch.zeros(1, 5).double(), box=box)
        >>> fit.theta_BP[0, 2:4].numpy().round(1).tolist()
        [2.0, 1.0]
    """
    theta = torch.clamp(start_BP, box.low_P, box.high_P)
    count = len(theta)
    active = torch.arange(count)
    deviance, step = _iteration(family, data, theta, active, box)
    length, iterations = torch.ones_like(deviance), torch.zeros(count, dtype=torch.int64)
    quiet, converged = torch.zeros_like(iterations), torch.zeros(count, dtype=torch.bool)
    for iteration in range(settings.max_iter):
        if len(active) == 0:
            break
        iterations[active] = iteration + 1
        moved = theta[active] + length[active, None] * step[active]
        new_deviance, new_step = _iteration(family, data, moved, active, box)
        fall = deviance[active] - new_deviance
        # Rounding limits the accuracy of sums of n logarithms.
        better = fall >= -1e-13 * new_deviance.abs()
        calm = better & (length[active] == 1) & (fall <= settings.tol)
        quiet[active] = torch.where(calm, quiet[active] + 1, 0)
        theta[active] = torch.where(better[:, None], moved, theta[active])
        step[active] = torch.where(better[:, None], new_step, step[active])
        deviance[active] = torch.where(better, new_deviance, deviance[active])
        length[active] = torch.where(better, 1.0, length[active] / 2)
        done = quiet[active] >= settings.patience
        converged[active] |= done
        active = active[~(done | (length[active] < 1e-9))]
    at_box = ((theta <= box.low_P) | (theta >= box.high_P)) & (box.low_P < box.high_P)
    return Fit(theta, deviance, converged, iterations, at_box.any(-1))


def maximise(
    family: GaussianExperts,
    data: LeastSquares,
    start_BP: Tensor,
    *,
    box: ParameterBox,
    warm: int = 10,
    settings: SolverSettings = SCORING,
) -> Fit:
    """Maximum likelihood by a few iterations of EM, then damped Fisher scoring to the maximum.

    Args:
        data, start_BP, box: see ``em``.
        warm: iterations of EM.
        settings: stopping rule of the scoring, in units of the deviance.

    Returns:
        Parameters, with the deviance as ``chi2_B``; ``converged_B`` of the scoring.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> from sigmoid_attention.mixtures.data import Samples
        >>> from sigmoid_attention.mixtures.gaussian import GaussianExperts, maximise
        >>> family = GaussianExperts(Mixture("softmax", "linear", k=1))
        >>> x = torch.linspace(-1, 1, 50).double()
        >>> data = Samples(x[None, :, None], 2 * x[None] + 1 + 0.1 * torch.sin(40 * x))
        >>> box = ParameterBox.around_zero(5, 20.0)
        >>> fit = maximise(family, data, torch.zeros(1, 5).double(), box=box)
        >>> bool(fit.converged_B)
        True
    """
    first = em(family, data, start_BP, box=box, settings=replace(EM, max_iter=warm))
    fit = descend(GaussianDeviance(family, data), first.theta_BP, box=box, settings=settings)
    return replace(fit, iterations_B=fit.iterations_B + first.iterations_B)


# One iteration --------------------------------------------------------------------------------


@dataclass
class _Sums:
    """The sums over observations that an E-step computes."""

    deviance_A: Tensor
    gradient_AP: Tensor
    count_Ac: Tensor
    gate_AGG: Tensor
    routed_AkEE: Tensor
    shared_AsGG: Tensor


def _iteration(
    family: GaussianExperts, data: LeastSquares, theta: Tensor, which: Tensor, box: ParameterBox
) -> tuple[Tensor, Tensor]:
    """The deviance at theta, and the step from theta to the result of the M-step."""
    sums = _expectation(family, data, theta, which)
    moved = torch.clamp(theta + _maximisation(family, sums, theta, box), box.low_P, box.high_P)
    return sums.deviance_A, moved - theta


def _expectation(
    family: GaussianExperts, data: LeastSquares, theta: Tensor, which: Tensor
) -> _Sums:
    indices = family.indices
    k, s = len(indices.routed_kE), len(indices.shared_sG)
    zeros = lambda *shape: theta.new_zeros(len(theta), *shape)  # noqa: E731
    squares = lambda size: zeros(*size[:-1], size[-1], size[-1])  # noqa: E731
    sums = _Sums(
        zeros(), torch.zeros_like(theta), zeros(k + s), squares((indices.scores_kF.numel(),)),
        squares(indices.routed_kE.shape), squares(indices.shared_sG.shape),
    )  # fmt: skip
    for chunk in data.chunks(which):
        posterior = family.posterior(theta, chunk.inputs, chunk.mean_BQ)
        share_Qc = posterior.share_Qc * chunk.weight_BQ[..., None]
        sums.deviance_A -= 2 * (chunk.weight_BQ * posterior.log_density_Q).sum(-1)
        sums.count_Ac += share_Qc.sum(-2)
        sums.gradient_AP[:, indices.log_variances_c] += 0.5 * (
            share_Qc * (posterior.standard_Qc.square() - 1)
        ).sum(-2)
        _add_gate(family, sums, posterior, share_Qc[..., :k])
        groups = [(indices.routed_kE, sums.routed_AkEE, posterior.routed_slopes_QkE, slice(0, k))]
        if posterior.shared_slopes_QsG is not None:
            groups.append(
                (indices.shared_sG, sums.shared_AsGG, posterior.shared_slopes_QsG, slice(k, k + s))
            )
        for where, information, slopes, group in groups:
            rows = slopes.transpose(-3, -2)  # (A, k, Q, E)
            weight = (share_Qc / posterior.deviation_c.square())[..., group].mT[..., None]
            residual = (posterior.standard_Qc * posterior.deviation_c)[..., group].mT[..., None]
            weighted = rows * weight
            information += weighted.mT @ rows
            sums.gradient_AP[:, where] += (weighted.mT @ residual)[..., 0]
    return sums


def _add_gate(family: GaussianExperts, sums: _Sums, posterior: Posterior, share_Qk: Tensor) -> None:
    """Add the gradient and the complete-data information of the scores' parameters.

    The information is the sum of mass (dlog g_i)(dlog g_i)' over experts i by their weights g_i.
    Both gates have dlog g_i / ds_j = c_j (1[i = j] - g_j) with c_j = 1 or 1 - sigmoid(s_j).
    """
    rate_Qk = torch.sigmoid(-posterior.scores_Qk) if family.routed.gate != "softmax" else 1.0
    weights_Qk, mass_Q1 = posterior.weights_Qk, share_Qk.sum(-1, keepdim=True)
    by_score = rate_Qk * (share_Qk - weights_Qk * mass_Q1)
    features = posterior.features_QkF
    sums.gradient_AP[:, family.indices.scores_kF] += (by_score[..., None] * features).sum(-3)
    routed = ((rate_Qk * rate_Qk * weights_Qk * mass_Q1)[..., None] * features).transpose(-3, -2)
    own_AkFF = routed.mT @ features.transpose(-3, -2)
    joint = ((rate_Qk * weights_Qk)[..., None] * features).flatten(-2)
    sums.gate_AGG -= (joint * mass_Q1).mT @ joint
    k, size = family.indices.scores_kF.shape
    by_expert = sums.gate_AGG.unflatten(-1, (k, size)).unflatten(-3, (k, size))
    by_expert.diagonal(dim1=-4, dim2=-2).add_(own_AkFF.movedim(-3, -1))


def _maximisation(family: GaussianExperts, sums: _Sums, theta: Tensor, box: ParameterBox) -> Tensor:
    """The M-step: a step to, or towards, the maximum of the expected log likelihood."""
    indices, gradient = family.indices, sums.gradient_AP
    pinned = box.low_P == box.high_P
    step = torch.zeros_like(gradient)
    flat = indices.scores_kF.flatten()
    step[:, flat] = _solve(sums.gate_AGG, gradient[:, flat], pinned[flat], CAUTION)
    explained = []
    for where, information in (
        (indices.routed_kE, sums.routed_AkEE),
        (indices.shared_sG, sums.shared_AsGG),
    ):
        towards = gradient[:, where]
        step[:, where] = _solve(information, towards, pinned[where])
        explained.append((towards * step[:, where]).sum(-1))
    # The sum of share z^2 before the experts' step is 2 gradient + count; that step lowers it by
    # the explained part.
    count = sums.count_Ac + NOTHING
    squares = 2 * gradient[:, indices.log_variances_c] - torch.cat(explained, -1)
    ratio = (squares / count + 1).clamp(min=NOTHING)
    step[:, indices.log_variances_c] = ratio.log()
    if family.shared is not None:
        total = count[:, family.routed.k :].log()
        ratio = total - theta[:, indices.log_weights_s].log_softmax(-1)
        # The last weight is the reference.
        step[:, indices.log_weights_s] = ratio - ratio[:, -1:]
    return step


def _solve(information: Tensor, gradient: Tensor, rests: Tensor, damping: float = 1e-12) -> Tensor:
    """information^-1 gradient, with fixed parameters left out; no step without information."""
    system = information.masked_fill(rests[..., None] | rests[..., None, :], 0.0)
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    floor = NOTHING + damping * diagonal.amax(-1, keepdim=True)
    system = system.diagonal_scatter(torch.where(rests, 1.0, diagonal + floor), dim1=-2, dim2=-1)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(gradient.masked_fill(rests, 0.0)[..., None], factor)[..., 0]
